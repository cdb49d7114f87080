/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The report: what this guest has, seen from inside. Every value comes from the
 * kernel, and none is judged: that is the host's job. docs/report.md has the
 * fields.
 */
#define _GNU_SOURCE	/* versionsort, O_PATH */
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "initd.h"

#define CPUS	"/sys/devices/system/cpu/"
#define NODES	"/sys/devices/system/node"
#define DMI	"/sys/class/dmi/id/"
#define EFI	"/sys/firmware/efi"
#define TABLES	"/sys/firmware/acpi/tables"

/* MemTotal of a meminfo file in bytes, or -1. */
static long long memory_total(int dir, const char *path)
{
	char text[TEXT_MAX], *row;

	if (!read_text(dir, path, text, sizeof(text)))
		return -1;
	row = strstr(text, "MemTotal:");
	return row ? strtoll(row + strlen("MemTotal:"), NULL, 10) * 1024 : -1;
}

static void report_begin(struct json *j, const struct moment *started)
{
	struct utsname kernel;

	if (uname(&kernel))
		die("uname");

	json_begin(j, "begin");
	json_int(j, "protocol", REPORT_PROTOCOL);
	json_string(j, "initd", INITD_VERSION);
	json_int(j, "pid", getpid());
	json_seconds(j, "uptime", started->us);
	json_open(j, "kernel", '{');
	json_string(j, "release", kernel.release);
	json_string(j, "version", kernel.version);
	json_string(j, "machine", kernel.machine);
	json_close(j, '}');
	put_text(j, "cmdline", AT_FDCWD, "/proc/cmdline");
	json_end(j);
}

/* How many CPUs /proc/cpuinfo lists: a second source beside sysfs. */
static int cpus_listed(void)
{
	FILE *f = fopen("/proc/cpuinfo", "re");
	char *line = NULL;
	size_t size = 0;
	int count = 0;

	if (!f)
		return -1;
	while (getline(&line, &size, f) > 0)
		if (!strncmp(line, "processor\t", 10))
			count++;
	free(line);
	fclose(f);
	return count;
}

static void report_cpus(struct json *j)
{
	json_begin(j, "cpus");
	put_text(j, "possible", AT_FDCWD, CPUS "possible");
	put_text(j, "present", AT_FDCWD, CPUS "present");
	put_text(j, "online", AT_FDCWD, CPUS "online");
	put_text(j, "offline", AT_FDCWD, CPUS "offline");
	put_bytes(j, "listed", cpus_listed());
	put_number(j, "kernel_max", AT_FDCWD, CPUS "kernel_max");
	json_end(j);
}

static void put_distances(struct json *j, int dir)
{
	char text[TEXT_MAX], *s, *end;
	long value;

	if (!read_text(dir, "distance", text, sizeof(text))) {
		json_null(j, "distances");
		return;
	}
	json_open(j, "distances", '[');
	for (s = text; value = strtol(s, &end, 10), end != s; s = end)
		json_int(j, NULL, value);
	json_close(j, ']');
}

static int is_node(const struct dirent *entry)
{
	return numbered(entry->d_name, "node");
}

static void report_nodes(struct json *j)
{
	struct dirent **nodes;
	int count = scandir(NODES, &nodes, is_node, versionsort);
	int parent, dir, i;

	if (count < 0)		/* no CONFIG_NUMA: no records */
		return;
	parent = open(NODES, O_PATH | O_DIRECTORY | O_CLOEXEC);
	for (i = 0; i < count; i++) {
		dir = openat(parent, nodes[i]->d_name,
			     O_PATH | O_DIRECTORY | O_CLOEXEC);
		json_begin(j, "node");
		json_int(j, "id", atoi(nodes[i]->d_name + strlen("node")));
		put_text(j, "cpus", dir, "cpulist");
		put_bytes(j, "memory_bytes", memory_total(dir, "meminfo"));
		put_distances(j, dir);
		json_end(j);
		if (dir >= 0)
			close(dir);
		free(nodes[i]);
	}
	if (parent >= 0)
		close(parent);
	free(nodes);
}

/* The "System RAM" of /proc/iomem, or -1 if the addresses are hidden. */
static long long ram_bytes(void)
{
	FILE *f = fopen("/proc/iomem", "re");
	unsigned long long start, end;
	long long sum = 0;
	bool hidden = true;
	char *line = NULL, *s;
	size_t size = 0;

	if (!f)
		return -1;
	while (getline(&line, &size, f) > 0) {
		if (line[0] == ' ' || !strstr(line, " : System RAM"))
			continue;
		start = strtoull(line, &s, 16);
		end = *s == '-' ? strtoull(s + 1, NULL, 16) : start;
		/* Without CAP_SYS_ADMIN each row is 00000000-00000000. */
		if (start || end)
			hidden = false;
		sum += (long long)(end - start + 1);
	}
	free(line);
	fclose(f);
	return hidden ? -1 : sum;
}

static void put_blocks(struct json *j)
{
	struct blocks blocks;

	if (!count_blocks(&blocks)) {
		json_null(j, "block_bytes");
		json_null(j, "blocks_present");
		json_null(j, "blocks_online");
		return;
	}
	json_int(j, "block_bytes", blocks.bytes);
	json_int(j, "blocks_present", blocks.present);
	json_int(j, "blocks_online", blocks.online);
}

static void report_memory(struct json *j)
{
	json_begin(j, "memory");
	put_bytes(j, "total_bytes", memory_total(AT_FDCWD, "/proc/meminfo"));
	put_bytes(j, "ram_bytes", ram_bytes());
	put_blocks(j);
	json_end(j);
}

/* The address of the RSDP in the UEFI system table, ACPI 2.0's first. */
static void put_rsdp(struct json *j)
{
	static const char *const names[] = { "ACPI20", "ACPI" };
	char systab[TEXT_MAX], *row, *save = NULL;
	unsigned long long address[2] = { 0, 0 };
	size_t i, len;

	if (read_text(AT_FDCWD, EFI "/systab", systab, sizeof(systab)))
		for (row = strtok_r(systab, "\n", &save); row;
		     row = strtok_r(NULL, "\n", &save))
			for (i = 0; i < 2; i++) {
				len = strlen(names[i]);
				if (!strncmp(row, names[i], len) && row[len] == '=')
					address[i] = strtoull(row + len + 1, NULL, 16);
			}

	i = address[0] ? 0 : 1;
	if (!address[i]) {
		json_null(j, "rsdp");
		return;
	}
	json_open(j, "rsdp", '{');
	json_hex(j, "address", address[i]);
	json_string(j, "source", names[i]);
	json_close(j, '}');
}

static void report_firmware(struct json *j)
{
	json_begin(j, "firmware");
	json_string(j, "kind", access(EFI, F_OK) ? "bios" : "uefi");
	put_number(j, "efi_bits", AT_FDCWD, EFI "/fw_platform_size");
	put_text(j, "vendor", AT_FDCWD, DMI "bios_vendor");
	put_text(j, "version", AT_FDCWD, DMI "bios_version");
	put_text(j, "date", AT_FDCWD, DMI "bios_date");
	put_text(j, "machine", AT_FDCWD, DMI "product_name");
	put_rsdp(j);
	json_end(j);
}

/* Not the folders "data" and "dynamic". */
static int is_table(const struct dirent *entry)
{
	return entry->d_type == DT_REG;
}

static void report_acpi(struct json *j)
{
	struct dirent **tables;
	int count = scandir(TABLES, &tables, is_table, alphasort);
	int i;

	json_begin(j, "acpi");
	if (count < 0) {
		json_null(j, "tables");
	} else {
		json_open(j, "tables", '[');
		for (i = 0; i < count; i++) {
			json_string(j, NULL, tables[i]->d_name);
			free(tables[i]);
		}
		json_close(j, ']');
		free(tables);
	}
	json_end(j);
}

#define MAX_CONTROLLERS	64

struct controllers {
	int count;	/* -1: more names, or longer ones, than fit */
	char names[MAX_CONTROLLERS][32];	/* sorted, each once */
};

static void add_controller(struct controllers *c, const char *name)
{
	int at = 0;

	while (at < c->count && strcmp(c->names[at], name) < 0)
		at++;
	if (c->count < 0 || (at < c->count && !strcmp(c->names[at], name)))
		return;
	if (c->count == MAX_CONTROLLERS || strlen(name) >= sizeof(c->names[0])) {
		c->count = -1;
		return;
	}
	memmove(c->names[at + 1], c->names[at],
		(size_t)(c->count++ - at) * sizeof(c->names[0]));
	strcpy(c->names[at], name);
}

/*
 * The chip's name in a row of /proc/interrupts: after the IRQ's number come
 * one count a CPU, then the name (kernel/irq/proc.c, show_interrupts). NULL
 * for rows with no number, which are the architecture's own (NMI, LOC, ...).
 */
static char *controller(char *row, int cpus)
{
	char *s = row + strspn(row, " "), *end, *msi;

	if (!isdigit((unsigned char)*s))
		return NULL;
	s += strspn(s, "0123456789");
	if (*s++ != ':')
		return NULL;
	while (cpus--) {
		strtoull(s, &end, 10);
		s = end;
	}
	s += strspn(s, " ");
	s[strcspn(s, " \n")] = '\0';

	/* Kernels >= 6.2 have a chip for each device: PCI-MSIX-0000:00:02.0 */
	msi = strstr(s, "PCI-MSI");
	if (msi)
		msi[strcspn(msi + 4, "-") + 4] = '\0';
	return s;
}

static int columns(const char *header)
{
	int count = 0;

	while ((header = strstr(header, "CPU"))) {
		count++;
		header++;
	}
	return count;
}

static void report_interrupts(struct json *j)
{
	FILE *f = fopen("/proc/interrupts", "re");
	struct controllers controllers = { .count = 0 };
	int cpus = -1, rows = 0, i;
	char *line = NULL, *name;
	size_t size = 0;

	json_begin(j, "interrupts");
	if (!f) {
		json_null(j, "controllers");
		json_null(j, "rows");
		json_end(j);
		return;
	}
	while (getline(&line, &size, f) > 0) {
		if (cpus < 0) {
			cpus = columns(line);
			continue;
		}
		name = controller(line, cpus);
		if (!name)
			continue;
		rows++;
		if (*name)
			add_controller(&controllers, name);
	}
	free(line);
	fclose(f);

	if (controllers.count < 0) {
		json_null(j, "controllers");
	} else {
		json_open(j, "controllers", '[');
		for (i = 0; i < controllers.count; i++)
			json_string(j, NULL, controllers.names[i]);
		json_close(j, ']');
	}
	json_int(j, "rows", rows);
	json_end(j);
}

static void report_times(struct json *j, const struct moment *started)
{
	json_begin(j, "times");
	json_seconds(j, "start", started->us);
	json_seconds(j, "report", uptime_us());
	json_int(j, "tsc", (long long)started->tsc);
	json_end(j);
}

/* A report without this line was cut off, whatever else it has. */
static void report_end(struct json *j)
{
	int records = j->records;

	json_begin(j, "end");
	json_string(j, "status", "ok");
	json_int(j, "records", records);
	json_end(j);
}

/* `root` is what became of the root that was `wanted`, if that is known already, or NULL. */
void report_all(struct json *j, const struct moment *started, const struct root *root,
		const char *wanted)
{
	report_begin(j, started);
	report_cpus(j);
	report_nodes(j);
	report_memory(j);
	report_firmware(j);
	report_acpi(j);
	report_interrupts(j);
	report_pci(j);
	report_drivers(j);
	report_modules(j);
	if (root)
		report_root(j, root, wanted);
	report_times(j, started);
	report_end(j);
}
