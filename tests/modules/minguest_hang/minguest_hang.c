/* SPDX-License-Identifier: GPL-2.0 */
/* A module whose init function never returns, and cannot be killed. */
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/pci.h>

static bool in_probe;
module_param(in_probe, bool, 0444);
MODULE_PARM_DESC(in_probe, "hang in the probe of a card, whose lock is then held");

static void hang(void)
{
	pr_info("this will never end\n");
	for (;;)
		ssleep(1);
}

static int probe(struct pci_dev *device, const struct pci_device_id *id)
{
	hang();
	return 0;
}

static const struct pci_device_id cards[] = {
	{ PCI_DEVICE(0x1234, 0x1111) },
	{ }
};

static struct pci_driver minguest_hang_driver = {
	.name = "minguest_hang",
	.id_table = cards,
	.probe = probe,
};

static int __init start(void)
{
	if (!in_probe)
		hang();
	return pci_register_driver(&minguest_hang_driver);
}
module_init(start);

MODULE_DESCRIPTION("Hangs, for minguest's tests");
MODULE_LICENSE("GPL");
