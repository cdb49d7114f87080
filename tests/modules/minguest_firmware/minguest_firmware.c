/* SPDX-License-Identifier: GPL-2.0 */
/* A driver for the emulated card that wants a firmware file. */
#include <linux/firmware.h>
#include <linux/module.h>
#include <linux/pci.h>

static int probe(struct pci_dev *device, const struct pci_device_id *id)
{
	const struct firmware *file;
	int error = request_firmware(&file, "minguest/card.bin", &device->dev);

	if (error)
		return error;
	dev_info(&device->dev, "%zu bytes of firmware\n", file->size);
	release_firmware(file);
	return 0;
}

static const struct pci_device_id cards[] = {
	{ PCI_DEVICE(0x1234, 0x1111) },
	{ }
};
MODULE_DEVICE_TABLE(pci, cards);

static struct pci_driver minguest_firmware_driver = {
	.name = "minguest_firmware",
	.id_table = cards,
	.probe = probe,
};
module_pci_driver(minguest_firmware_driver);

MODULE_DESCRIPTION("Wants a firmware file, for minguest's tests");
MODULE_FIRMWARE("minguest/card.bin");
MODULE_LICENSE("GPL");
