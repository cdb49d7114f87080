/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A driver for the emulated cards of minguest's tests: it enables the card,
 * reads a word of one BAR and prints it. For Linux 4.12 and later.
 */
#include <linux/module.h>
#include <linux/pci.h>

#include "minguest_bar.h"

static int bar;
module_param(bar, int, 0444);
MODULE_PARM_DESC(bar, "which BAR is read (0)");

static int probe(struct pci_dev *device, const struct pci_device_id *id)
{
	u32 word;
	int error = pci_enable_device(device);

	if (error)
		return error;
	error = minguest_bar_word(device, bar, &word);
	if (error) {
		dev_err(&device->dev, "BAR %d: cannot be mapped\n", bar);
		pci_disable_device(device);
		return error;
	}
	dev_info(&device->dev, "BAR %d has %#llx bytes and begins with %08x\n", bar,
		 (unsigned long long)pci_resource_len(device, bar), word);
	return 0;
}

static void remove(struct pci_dev *device)
{
	pci_disable_device(device);
}

static const struct pci_device_id cards[] = {
	{ PCI_DEVICE(0x1234, 0x1111) },	/* QEMU's secondary-vga and bochs-display */
	{ PCI_DEVICE(0x1b36, 0x0005) },	/* pci-testdev: minguest's bar:SIZE */
	{ }
};
MODULE_DEVICE_TABLE(pci, cards);

static struct pci_driver minguest_card_driver = {
	.name = "minguest_card",
	.id_table = cards,
	.probe = probe,
	.remove = remove,
};
module_pci_driver(minguest_card_driver);

MODULE_DESCRIPTION("Driver for the emulated cards of minguest's tests");
MODULE_VERSION("1.2");
MODULE_LICENSE("GPL");
