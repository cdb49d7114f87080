/* SPDX-License-Identifier: Apache-2.0 */
/* One record a PCI device, from /sys/bus/pci/devices. */
#define _GNU_SOURCE	/* O_PATH */
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "initd.h"

#define DEVICES	"/sys/bus/pci/devices"

/* Configuration space: include/uapi/linux/pci_regs.h has the same numbers. */
#define PCI_COMMAND		0x04
#define PCI_STATUS		0x06
#define PCI_STATUS_CAP_LIST	0x10
#define PCI_HEADER_TYPE		0x0e
#define PCI_BASE_ADDRESS_0	0x10
#define PCI_ROM_ADDRESS		0x30
#define PCI_ROM_ADDRESS1	0x38	/* of a bridge */
#define PCI_CAPABILITY_LIST	0x34
#define PCI_CB_CAPABILITY_LIST	0x14	/* of a CardBus bridge */
#define PCI_CAP_ID_MSI		0x05
#define PCI_CAP_ID_MSIX		0x11

/* include/linux/ioport.h, the same in 4.12 and 6.12 */
#define IORESOURCE_IO		0x00000100
#define IORESOURCE_PREFETCH	0x00002000
#define IORESOURCE_MEM_64	0x00100000
#define IORESOURCE_DISABLED	0x10000000
#define IORESOURCE_UNSET	0x20000000

#define ROM_ROW			6	/* PCI_ROM_RESOURCE, include/linux/pci.h */
#define MAX_CAPABILITIES	48	/* 192 bytes, 4 each: a loop ends here */

/* width bytes of configuration space, or -1 if it cannot be read. */
static long long config(int fd, int offset, int width)
{
	unsigned char b[4];
	long long value = 0;

	if (fd < 0 || pread(fd, b, (size_t)width, offset) != width)
		return -1;
	while (width--)
		value = value << 8 | b[width];
	return value;
}

struct capabilities {
	bool readable;
	int count;
	unsigned char ids[MAX_CAPABILITIES];
	long long msi;		/* message control, or -1 */
	long long msix;
};

/*
 * Read only what is needed: each access to configuration space costs the guest
 * an exit to the hypervisor. Beyond byte 64 it needs CAP_SYS_ADMIN.
 */
static void read_capabilities(struct capabilities *c, int fd, long long header)
{
	long long status = config(fd, PCI_STATUS, 2), at, cap;

	*c = (struct capabilities){ .msi = -1, .msix = -1 };
	if (status < 0)
		return;
	if (!(status & PCI_STATUS_CAP_LIST)) {
		c->readable = true;
		return;
	}

	at = config(fd, header == 2 ? PCI_CB_CAPABILITY_LIST :
				      PCI_CAPABILITY_LIST, 1);
	while (at >= 0x40 && c->count < MAX_CAPABILITIES) {
		cap = config(fd, (int)(at & ~3), 4);
		if (cap < 0)
			return;
		if ((cap & 0xff) == 0xff)	/* the device is gone */
			return;
		c->ids[c->count++] = (unsigned char)cap;
		if ((cap & 0xff) == PCI_CAP_ID_MSI)
			c->msi = cap >> 16;
		if ((cap & 0xff) == PCI_CAP_ID_MSIX)
			c->msix = cap >> 16;
		at = cap >> 8 & 0xff;
	}
	c->readable = true;
}

static void put_vectors(struct json *j, const char *key, int vectors, bool enabled)
{
	json_open(j, key, '{');
	json_int(j, "vectors", vectors);
	json_bool(j, "enabled", enabled);
	json_close(j, '}');
}

static void put_capabilities(struct json *j, const struct capabilities *c)
{
	char id[4];
	int i;

	if (!c->readable) {
		json_null(j, "capabilities");
		json_null(j, "msi");
		json_null(j, "msix");
		return;
	}

	json_open(j, "capabilities", '[');
	for (i = 0; i < c->count; i++) {
		snprintf(id, sizeof(id), "%02x", c->ids[i]);
		json_string(j, NULL, id);
	}
	json_close(j, ']');

	/* PCI Local Bus Specification 3.0, 6.8.1.3 and 6.8.2.3 */
	if (c->msi >= 0)
		put_vectors(j, "msi", 1 << (c->msi >> 1 & 7), c->msi & 1);
	else
		json_null(j, "msi");
	if (c->msix >= 0)
		put_vectors(j, "msix", (int)(c->msix & 0x7ff) + 1, c->msix >> 15 & 1);
	else
		json_null(j, "msix");
}

static const char *kind_of(bool io, bool wide)
{
	return io ? "io" : wide ? "mem64" : "mem32";
}

/* A BAR that the kernel still has: its row has flags. */
static void put_known_bar(struct json *j, int index, unsigned long long start,
			  unsigned long long end, unsigned long long flags)
{
	unsigned long long size = end - start + 1;

	/* 0..0 (4.12) or 0..-1 (6.12): the kernel dropped the size of this row. */
	if (!start && (!end || !size))
		size = 0;

	json_open(j, NULL, '{');
	json_int(j, "index", index);
	json_hex(j, "start", start);
	if (size)
		json_int(j, "size", (long long)size);
	else
		json_null(j, "size");
	json_hex(j, "flags", flags);
	json_string(j, "kind", index == ROM_ROW ? "rom" :
		    kind_of(flags & IORESOURCE_IO, flags & IORESOURCE_MEM_64));
	json_bool(j, "prefetchable", flags & IORESOURCE_PREFETCH);
	json_bool(j, "assigned", size && start &&
		  !(flags & (IORESOURCE_UNSET | IORESOURCE_DISABLED)));
	json_null(j, "register");
	json_close(j, '}');
}

/*
 * A BAR that the kernel gave up. If it finds no room, Linux (4.12 and 6.12)
 * clears the resource: assign_requested_resources_sorted() calls
 * reset_resource(), which sets start, end and flags to 0
 * (drivers/pci/setup-bus.c), so that resource_show() (pci-sysfs.c) prints the
 * row of a BAR that does not exist. Its size is then only in the kernel's log
 * ("no space"). But the register's low bits are hard-wired: they still show
 * that there is a BAR and of what kind, and the rest is the address that the
 * firmware gave it. Only a 32-bit memory BAR without an address from the
 * firmware reads as 0, as if there were none.
 */
static void put_lost(struct json *j, int index, const char *kind,
		     bool prefetchable, unsigned long long address)
{
	json_open(j, NULL, '{');
	json_int(j, "index", index);
	json_null(j, "start");
	json_null(j, "size");
	json_null(j, "flags");
	json_string(j, "kind", kind);
	json_bool(j, "prefetchable", prefetchable);
	json_bool(j, "assigned", false);
	json_hex(j, "register", address);
	json_close(j, '}');
}

static void put_lost_rom(struct json *j, int fd, long long header)
{
	long long reg = config(fd, header == 1 ? PCI_ROM_ADDRESS1 :
						 PCI_ROM_ADDRESS, 4);

	/* Below bit 11 is the enable bit; an address of 0 means no ROM. */
	if (header <= 1 && reg > 0 && reg != 0xffffffff && reg >> 11)
		put_lost(j, ROM_ROW, "rom", false, (unsigned long long)reg & ~0x7ffULL);
}

/* True if the BAR takes the next register as well, for its upper half. */
static bool put_lost_bar(struct json *j, int fd, int index)
{
	long long reg = config(fd, PCI_BASE_ADDRESS_0 + 4 * index, 4);
	long long upper = 0;
	bool io, wide;

	if (reg <= 0 || reg == 0xffffffff)
		return false;
	/* PCI Local Bus Specification 3.0, 6.2.5.1 */
	io = reg & 1;
	wide = !io && (reg >> 1 & 3) == 2;
	if (wide && index < 5)
		upper = config(fd, PCI_BASE_ADDRESS_0 + 4 * (index + 1), 4);
	if (upper < 0)
		upper = 0;
	put_lost(j, index, kind_of(io, wide), !io && reg & 8,
		 (unsigned long long)upper << 32 |
		 ((unsigned long long)reg & (io ? ~3ULL : ~15ULL)));
	return wide;
}

static void put_bars(struct json *j, int dir, int fd, long long header)
{
	/* Bridge windows and the BARs of virtual functions come after row 6. */
	int bars = header == 1 ? 2 : header == 2 ? 1 : 6;
	unsigned long long start, end, flags;
	char rows[TEXT_MAX], *s = rows, *next;
	bool upper_half = false;
	int i;

	if (!read_text(dir, "resource", rows, sizeof(rows))) {
		json_null(j, "bars");
		return;
	}

	json_open(j, "bars", '[');
	for (i = 0; i <= ROM_ROW; i++) {
		start = strtoull(s, &next, 16);
		end = strtoull(next, &next, 16);
		flags = strtoull(next, &next, 16);
		s = next;
		if (i >= bars && i != ROM_ROW)
			continue;

		if (flags) {
			put_known_bar(j, i, start, end, flags);
			upper_half = flags & IORESOURCE_MEM_64;
			continue;
		}
		if (upper_half && i != ROM_ROW) {	/* of the BAR before */
			upper_half = false;
			continue;
		}
		upper_half = false;

		if (i == ROM_ROW)
			put_lost_rom(j, fd, header);
		else
			upper_half = put_lost_bar(j, fd, i);
	}
	json_close(j, ']');
}

/* sysfs prints 0x10de; the report and lspci -n say 10de. */
static void put_id(struct json *j, const char *key, int dir, const char *path)
{
	char text[32], *id = read_text(dir, path, text, sizeof(text));

	json_string(j, key, id && !strncmp(id, "0x", 2) ? id + 2 : id);
}

static void put_flag(struct json *j, const char *key, bool known, bool value)
{
	if (known)
		json_bool(j, key, value);
	else
		json_null(j, key);
}

/* null for the kernel's "none": node -1, IRQ 0. */
static void put_number_from(struct json *j, const char *key, int dir,
			    const char *path, long long least)
{
	long long value;

	if (read_number(dir, path, 10, &value) && value >= least)
		json_int(j, key, value);
	else
		json_null(j, key);
}

static void put_driver(struct json *j, int dir)
{
	char target[512], *name;
	ssize_t n = readlinkat(dir, "driver", target, sizeof(target) - 1);

	if (n < 0 || n == sizeof(target) - 1) {		/* none, or cut */
		json_null(j, "driver");
		return;
	}
	target[n] = '\0';
	name = strrchr(target, '/');
	json_string(j, "driver", name ? name + 1 : target);
}

/*
 * How often one interrupt came, on all CPUs: "3,0,12". -1 if that is not
 * known: from some 400 CPUs on the kernel cuts the list to a page.
 */
static long long arrived(const char *irq)
{
	char path[64], text[TEXT_MAX], *s, *end;
	long long sum = 0, count;

	snprintf(path, sizeof(path), "/sys/kernel/irq/%.20s/per_cpu_count", irq);
	if (!read_text(AT_FDCWD, path, text, sizeof(text)))
		return -1;
	for (s = text; count = strtoll(s, &end, 10), end != s; s = end + (*end == ','))
		sum += count;
	return sum;
}

/*
 * MSI and MSI-X together; null if the device uses neither, or one is not known.
 * If some came, the device's DMA and interrupts work.
 */
static void put_messages(struct json *j, int dir)
{
	int fd = openat(dir, "msi_irqs", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *irqs = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;
	long long sum = 0, count;

	if (!irqs) {
		json_null(j, "messages");
		return;
	}
	while (sum >= 0 && (entry = readdir(irqs)))
		if (entry->d_name[0] != '.') {
			count = arrived(entry->d_name);
			sum = count < 0 ? -1 : sum + count;
		}
	closedir(irqs);
	put_bytes(j, "messages", sum);
}

static void report_device(struct json *j, int dir, const char *address)
{
	int fd = openat(dir, "config", O_RDONLY | O_CLOEXEC);
	long long header = config(fd, PCI_HEADER_TYPE, 1);
	long long command = config(fd, PCI_COMMAND, 2);
	long long class, enables;
	bool has_class = read_number(dir, "class", 16, &class);
	bool has_enables = read_number(dir, "enable", 10, &enables);
	struct capabilities capabilities;
	char text[8];

	if (header >= 0)
		header &= 0x7f;		/* bit 7: it has more functions */
	read_capabilities(&capabilities, fd, header);

	json_begin(j, "pci");
	json_string(j, "address", address);
	put_id(j, "vendor", dir, "vendor");
	put_id(j, "device", dir, "device");
	put_id(j, "subsystem_vendor", dir, "subsystem_vendor");
	put_id(j, "subsystem_device", dir, "subsystem_device");
	put_id(j, "class", dir, "class");
	put_id(j, "revision", dir, "revision");
	put_driver(j, dir);
	put_text(j, "modalias", dir, "modalias");
	put_number_from(j, "numa_node", dir, "numa_node", 0);
	put_number_from(j, "irq", dir, "irq", 1);
	put_messages(j, dir);
	put_flag(j, "gpu", has_class, has_class && class >> 16 == 0x03);
	put_flag(j, "enabled", has_enables, has_enables && enables > 0);
	snprintf(text, sizeof(text), "%04x", (unsigned int)command & 0xffff);
	json_string(j, "command", command < 0 ? NULL : text);
	put_flag(j, "bridge", header >= 0, header == 1);
	put_capabilities(j, &capabilities);
	put_bars(j, dir, fd, header);
	json_end(j);

	if (fd >= 0)
		close(fd);
}

/* "0000:00:1f.2" as a number; a domain may have more than four digits. */
static uint64_t address_key(const char *address)
{
	uint64_t key = 0;
	char *s = NULL;

	key = strtoul(address, &s, 16);
	key = key << 8 | (*s ? strtoul(s + 1, &s, 16) : 0);
	key = key << 8 | (*s ? strtoul(s + 1, &s, 16) : 0);
	return key << 8 | (*s ? strtoul(s + 1, &s, 16) : 0);
}

static int by_address(const struct dirent **a, const struct dirent **b)
{
	uint64_t left = address_key((*a)->d_name);
	uint64_t right = address_key((*b)->d_name);

	return (left > right) - (left < right);
}

static int is_device(const struct dirent *entry)
{
	return entry->d_name[0] != '.';
}

void report_pci(struct json *j)
{
	struct dirent **devices;
	int count = scandir(DEVICES, &devices, is_device, by_address);
	int parent, dir, i;

	if (count < 0)		/* a kernel without PCI: no records */
		return;
	parent = open(DEVICES, O_PATH | O_DIRECTORY | O_CLOEXEC);
	for (i = 0; i < count; i++) {
		dir = openat(parent, devices[i]->d_name,
			     O_PATH | O_DIRECTORY | O_CLOEXEC);
		if (dir >= 0) {
			report_device(j, dir, devices[i]->d_name);
			close(dir);
		}
		free(devices[i]);
	}
	if (parent >= 0)
		close(parent);
	free(devices);
}
