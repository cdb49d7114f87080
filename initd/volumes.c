/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Block devices, and what they hold: the file system's type, label and UUID
 * from its superblock, and a partition's UUID and label from the GPT or MBR.
 * devtmpfs has the names; nobody else in this guest could make by-uuid links.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "initd.h"

#define BLOCKS "/sys/class/block"

/*
 * Where each file system has its magic number, UUID and label (0: it has none):
 * fs/ext4/ext4.h, fs/xfs/libxfs/xfs_format.h, include/uapi/linux/btrfs_tree.h,
 * fs/squashfs/squashfs_fs.h, fs/erofs/erofs_fs.h. The last two are named so
 * that a message can say what a disk is; initd opens neither.
 */
static const struct {
	const char *type;
	off_t at;
	const char *magic;
	size_t magic_len;
	off_t uuid;
	off_t label;
	size_t label_len;
} supers[] = {
	{ "ext4", 1080, "\x53\xef", 2, 1128, 1144, 16 },
	{ "xfs", 0, "XFSB", 4, 32, 108, 12 },
	{ "btrfs", 65600, "_BHRfS_M", 8, 65568, 65835, 256 },
	{ "squashfs", 0, "hsqs", 4, 0, 0, 0 },
	{ "erofs", 1024, "\xe2\xe1\xf5\xe0", 4, 1072, 1088, 16 },
	{ "LUKS", 0, "LUKS\xba\xbe", 6, 0, 0, 0 },
	{ "LVM", 536, "LVM2 001", 8, 0, 0, 0 },
};

static bool read_at(int fd, off_t at, void *to, size_t size)
{
	return pread(fd, to, size, at) == (ssize_t)size;
}

static uint64_t little(const unsigned char *bytes, int count)
{
	uint64_t value = 0;

	while (count--)
		value = value << 8 | bytes[count];
	return value;
}

/* A GUID of a GPT has its first three numbers in little endian (UEFI, appendix A). */
static void put_uuid(char *text, const unsigned char *id, bool guid)
{
	static const unsigned char order[2][16] = {
		{ 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 },
		{ 3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15 },
	};
	int i;

	for (i = 0; i < 16; i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*text++ = '-';
		text += sprintf(text, "%02x", id[order[guid][i]]);
	}
}

static void read_super(int fd, struct volume *volume)
{
	char magic[8];
	unsigned char uuid[16];
	size_t i;

	for (i = 0; i < COUNT(supers); i++) {
		if (!read_at(fd, supers[i].at, magic, supers[i].magic_len) ||
		    memcmp(magic, supers[i].magic, supers[i].magic_len))
			continue;
		volume->type = supers[i].type;
		if (supers[i].uuid && read_at(fd, supers[i].uuid, uuid, sizeof(uuid)))
			put_uuid(volume->uuid, uuid, false);
		if (supers[i].label && !read_at(fd, supers[i].label, volume->label, supers[i].label_len))
			*volume->label = '\0';
		return;
	}
}

/* ASCII of UTF-16; any other character becomes '?'. */
static void put_ascii(char *text, const unsigned char *utf16, size_t count)
{
	uint64_t unit;

	while (count-- && (unit = little(utf16, 2))) {
		*text++ = unit < 127 ? (char)unit : '?';
		utf16 += 2;
	}
	*text = '\0';
}

/* UEFI 2.10, 5.3: the header is in the second block, an entry has 128 bytes or more. */
static void read_gpt(int fd, long long block, long long number, struct volume *volume)
{
	unsigned char header[92], entry[128];
	uint64_t entries, size;

	if (!read_at(fd, block, header, sizeof(header)) || memcmp(header, "EFI PART", 8))
		return;
	entries = little(header + 72, 8);
	size = little(header + 84, 4);
	if (number > (long long)little(header + 80, 4) || entries > 1 << 20 || size > 4096)
		return;
	if (!read_at(fd, (off_t)((long long)entries * block + (number - 1) * (long long)size), entry, sizeof(entry)))
		return;
	put_uuid(volume->part_uuid, entry + 16, true);
	put_ascii(volume->part_label, entry + 56, 36);
}

/* An MBR has a disk signature; the kernel makes "SSSSSSSS-PP" of it (block/partitions/msdos.c). */
static void read_mbr(int fd, long long number, struct volume *volume)
{
	unsigned char sector[512];

	if (read_at(fd, 0, sector, sizeof(sector)) && sector[510] == 0x55 && sector[511] == 0xaa)
		snprintf(volume->part_uuid, sizeof(volume->part_uuid), "%08x-%02x",
			 (unsigned int)little(sector + 440, 4), (unsigned int)number & 0xff);
}

/* The folder of a partition lies in its disk's: /sys/devices/…/block/vda/vda1. */
static void read_partition(const char *name, struct volume *volume)
{
	char path[128], link[512], *disk, *slash;
	long long number, block = 512;
	ssize_t len;
	int fd;

	snprintf(path, sizeof(path), BLOCKS "/%.40s/partition", name);
	if (!read_number(AT_FDCWD, path, 10, &number) || number < 1)
		return;
	snprintf(path, sizeof(path), BLOCKS "/%.40s", name);
	len = readlink(path, link, sizeof(link) - 1);
	if (len < 0)
		return;
	link[len] = '\0';
	slash = strrchr(link, '/');
	if (!slash)
		return;
	*slash = '\0';
	disk = strrchr(link, '/');
	if (!disk)
		return;
	snprintf(path, sizeof(path), BLOCKS "/%.40s/queue/logical_block_size", disk + 1);
	read_number(AT_FDCWD, path, 10, &block);
	snprintf(path, sizeof(path), "/dev/%.40s", disk + 1);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	read_gpt(fd, block, number, volume);
	if (!*volume->part_uuid)
		read_mbr(fd, number, volume);
	close(fd);
}

/* False if there is no such device, or none that can be read. */
bool read_volume(const char *device, struct volume *volume)
{
	int fd = open(device, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	char path[128];

	*volume = (struct volume){ .type = NULL };
	snprintf(volume->device, sizeof(volume->device), "%s", device);
	if (fd < 0)
		return false;
	read_super(fd, volume);
	close(fd);
	snprintf(path, sizeof(path), BLOCKS "/%.40s/serial", strrchr(device, '/') + 1);
	if (!read_text(AT_FDCWD, path, volume->serial, sizeof(volume->serial)))
		*volume->serial = '\0';
	read_partition(strrchr(device, '/') + 1, volume);
	return true;
}

/* Every block device that has a size, in the order of the folder, until `visit` returns false. */
void each_volume(bool (*visit)(const struct volume *, void *), void *argument)
{
	DIR *folder = opendir(BLOCKS);
	struct volume volume;
	struct dirent *entry;
	char path[128];
	long long size;

	if (!folder)		/* no CONFIG_BLOCK */
		return;
	while ((entry = readdir(folder))) {
		snprintf(path, sizeof(path), "%.40s/size", entry->d_name);
		if (!read_number(dirfd(folder), path, 10, &size) || size <= 0)
			continue;
		snprintf(path, sizeof(path), "/dev/%.40s", entry->d_name);
		if (read_volume(path, &volume) && !visit(&volume, argument))
			break;
	}
	closedir(folder);
}
