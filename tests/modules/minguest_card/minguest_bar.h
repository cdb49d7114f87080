/* SPDX-License-Identifier: GPL-2.0 */
#ifndef MINGUEST_BAR_H
#define MINGUEST_BAR_H

#include <linux/pci.h>

int minguest_bar_word(struct pci_dev *device, int bar, u32 *word);

#endif
