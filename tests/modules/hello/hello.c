// SPDX-License-Identifier: GPL-2.0
/* The smallest module that says something and takes a parameter; it needs greeting.ko beside it. */
#include <linux/init.h>
#include <linux/module.h>
#include <linux/pci.h>

#include "greeting.h"

static char *whom = "world";
module_param(whom, charp, 0444);
MODULE_PARM_DESC(whom, "whom it greets");

/* Of QEMU's devices; only for modules.alias: no driver is registered for it. */
static const struct pci_device_id ids[] = {
	{ PCI_DEVICE(0x1b36, 0x0005) },
	{ }
};
MODULE_DEVICE_TABLE(pci, ids);

static int __init hello_init(void)
{
	greet(whom);
	return 0;
}

static void __exit hello_exit(void)
{
}

module_init(hello_init);
module_exit(hello_exit);
MODULE_DESCRIPTION("Greets, for tests of building modules");
MODULE_FIRMWARE("minguest/hello.bin");
MODULE_VERSION("1.0");
MODULE_LICENSE("GPL");
