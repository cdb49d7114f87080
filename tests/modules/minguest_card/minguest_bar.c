/* SPDX-License-Identifier: GPL-2.0 */
/* Reads the first word of a BAR, for minguest_card: a module that another one needs. */
#include <linux/io.h>
#include <linux/module.h>
#include <linux/pci.h>

#include "minguest_bar.h"

int minguest_bar_word(struct pci_dev *device, int bar, u32 *word)
{
	void __iomem *at = pci_iomap(device, bar, sizeof(*word));

	if (!at)
		return -ENOMEM;
	*word = ioread32(at);
	pci_iounmap(device, at);
	return 0;
}
EXPORT_SYMBOL_GPL(minguest_bar_word);

MODULE_DESCRIPTION("Reads a word of a PCI device's BAR, for minguest's tests");
MODULE_LICENSE("GPL");
