/* SPDX-License-Identifier: Apache-2.0 */
/*
 * initd.root=: finds the root, waits for it with a deadline, mounts it, and
 * checks that the init in it can start, all before the initrd is given up.
 *
 * A child does it: a disk that does not answer hangs who reads it.
 */
#define _GNU_SOURCE	/* MAP_ANONYMOUS */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "initd.h"

#define LOOK_MS	100
/* To read and mount what is there: a large journal takes seconds to replay. */
#define MOUNT_S	60

static const struct {
	const char *name;
	size_t offset;
} tags[] = {
	{ "LABEL=", offsetof(struct volume, label) },
	{ "UUID=", offsetof(struct volume, uuid) },
	{ "PARTUUID=", offsetof(struct volume, part_uuid) },
	{ "PARTLABEL=", offsetof(struct volume, part_label) },
	{ "SERIAL=", offsetof(struct volume, serial) },
};

static const struct {
	const char *name;
	const char *type;
} shares[] = {
	{ "9p:", "9p" },
	{ "virtiofs:", "virtiofs" },
};

/* The rest of `text` that begins with `start`, or NULL. */
static const char *after(const char *text, const char *start)
{
	size_t len = strlen(start);

	return strncmp(text, start, len) ? NULL : text + len;
}

static bool is_known(const char *text)
{
	size_t i;

	for (i = 0; i < COUNT(tags); i++)
		if (after(text, tags[i].name))
			return true;
	for (i = 0; i < COUNT(shares); i++)
		if (after(text, shares[i].name))
			return true;
	return after(text, "/dev/") != NULL;
}

struct search {
	const char *wanted;
	struct volume found;
	int count;
};

/* UUIDs are compared without case, as everyone else does. */
static bool is_wanted(const char *wanted, const struct volume *volume)
{
	const char *value;
	size_t i;

	if (!strcmp(wanted, volume->device))
		return true;
	for (i = 0; i < COUNT(tags); i++) {
		value = after(wanted, tags[i].name);
		if (!value || !*value)
			continue;
		if (strstr(tags[i].name, "UUID") ? !strcasecmp(value, (const char *)volume + tags[i].offset) :
						   !strcmp(value, (const char *)volume + tags[i].offset))
			return true;
	}
	return false;
}

static bool look_at(const struct volume *volume, void *argument)
{
	struct search *search = argument;

	if (!is_wanted(search->wanted, volume))
		return true;
	if (!search->count++)
		search->found = *volume;
	else
		say("%.80s is on %s too; %s is taken", search->wanted, volume->device, search->found.device);
	return true;
}

static bool remember(const struct volume *volume, void *argument)
{
	struct root *root = argument;
	struct volume *there = &root->there[root->count];

	*there = *volume;
	return ++root->count < ROOT_THERE_MAX;
}

static bool in_kernel(const char *type)
{
	char line[64], *name;
	FILE *f = fopen("/proc/filesystems", "re");
	bool found = false;

	while (f && !found && fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = '\0';
		name = strrchr(line, '\t');
		found = name && !strcmp(name + 1, type);
	}
	if (f)
		fclose(f);
	return found;
}

static bool failed(struct root *root, const char *result, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

static bool failed(struct root *root, const char *result, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(root->error, sizeof(root->error), format, args);
	va_end(args);
	root->result = result;
	return false;
}

/* Waits until the device is there. Uevents make it fast; a kernel may have none. */
static bool wait_for_device(struct root *root, const struct options *options, struct port *port, int uevents)
{
	struct pollfd ready = { .fd = uevents, .events = POLLIN };
	struct search search = { .wanted = options->root };
	long long until = uptime_us() + options->root_seconds * 1000000;

	for (;;) {
		each_volume(look_at, &search);
		if (search.count)
			break;
		if (uptime_us() > until) {
			each_volume(remember, root);
			return failed(root, "absent", "not found in %lld s", options->root_seconds);
		}
		poll(&ready, 1, LOOK_MS);
		if (ready.revents)
			hotplug_handle(uevents, port, until);
	}
	root->volume = search.found;
	root->type = search.found.type;
	root->appeared_us = uptime_us();
	return true;
}

static bool mount_it(struct root *root, const char *source, const char *data)
{
	unsigned long flags = root->read_only ? MS_RDONLY : 0;

	if (!in_kernel(root->type))
		return failed(root, "not-mounted", "this kernel has no %s: set CONFIG_%s", root->type,
			      !strcmp(root->type, "9p") ? "9P_FS and NET_9P_VIRTIO" :
			      !strcmp(root->type, "virtiofs") ? "VIRTIO_FS" :
			      !strcmp(root->type, "ext4") ? "EXT4_FS" :
			      !strcmp(root->type, "xfs") ? "XFS_FS" :
			      !strcmp(root->type, "btrfs") ? "BTRFS_FS" :
			      !strcmp(root->type, "squashfs") ? "SQUASHFS" : "EROFS_FS");
	mkdir(SYSROOT, 0755);
	if (!mount(source, SYSROOT, root->type, flags, data))
		return true;
	/* A disk that QEMU has as read-only; 4.12 and 6.12 differ in the error. */
	if (!root->read_only && (errno == EROFS || errno == EACCES) &&
	    !mount(source, SYSROOT, root->type, MS_RDONLY, data)) {
		say("%s is read-only", source);
		root->read_only = true;
		return true;
	}
	return failed(root, "not-mounted", "mount as %s: %s", root->type, strerror(errno));
}

static bool mount_volume(struct root *root)
{
	const char *type = root->type;

	if (!type)
		return failed(root, "no-filesystem", "holds no file system that initd knows "
			      "(ext4, xfs, btrfs, squashfs, erofs)");
	if (!strcmp(type, "LUKS") || !strcmp(type, "LVM"))
		return failed(root, "no-filesystem", "holds %s, which initd does not open", type);
	if (!strcmp(type, "squashfs") || !strcmp(type, "erofs"))
		root->read_only = true;
	return mount_it(root, root->volume.device, NULL);
}

static bool mount_share(struct root *root, const char *wanted)
{
	size_t i;

	for (i = 0; i < COUNT(shares); i++) {
		const char *tag = after(wanted, shares[i].name);

		if (!tag)
			continue;
		root->type = shares[i].type;
		root->appeared_us = uptime_us();
		if (strcmp(root->type, "9p"))
			return mount_it(root, tag, NULL);
		/* A share that is only read does not change here: it may be cached. */
		return mount_it(root, tag, root->read_only ? P9 ",cache=loose" : P9);
	}
	return false;
}

/* An ELF program's interpreter is wanted in the same root. */
static bool check_elf(struct root *root, int fd, const Elf64_Ehdr *header)
{
	char interpreter[256] = "";
	Elf64_Phdr program;
	int i;

	if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_machine != EM_X86_64)
		return failed(root, "wrong-init", "%s is for another machine (ELF machine %d, %d bits)", root->init,
			      header->e_machine, header->e_ident[EI_CLASS] == ELFCLASS64 ? 64 : 32);
	for (i = 0; i < header->e_phnum && i < 64; i++) {
		if (pread(fd, &program, sizeof(program), (off_t)header->e_phoff + i * (off_t)sizeof(program)) !=
		    (ssize_t)sizeof(program))
			break;
		if (program.p_type != PT_INTERP || program.p_filesz >= sizeof(interpreter))
			continue;
		if (pread(fd, interpreter, program.p_filesz, (off_t)program.p_offset) != (ssize_t)program.p_filesz)
			break;
		if (access(interpreter, X_OK))
			return failed(root, "wrong-init", "%s needs %s: %s", root->init, interpreter, strerror(errno));
	}
	return true;
}

/* In the root itself, so that links lead where they will lead then. */
static bool check_init(struct root *root)
{
	union {
		Elf64_Ehdr elf;
		char text[sizeof(Elf64_Ehdr)];
	} start = { .text = "" };
	struct stat facts;
	bool good = true;
	int fd;

	if (chroot(SYSROOT) || chdir("/"))
		return failed(root, "not-mounted", "chroot: %s", strerror(errno));
	if (stat(root->init, &facts))
		return failed(root, "no-init", "%s: %s", root->init, strerror(errno));
	if (!S_ISREG(facts.st_mode) || access(root->init, X_OK))
		return failed(root, "no-init", "%s is not an executable file", root->init);
	fd = open(root->init, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || pread(fd, &start, sizeof(start), 0) < 4)
		good = failed(root, "no-init", "%s: cannot be read", root->init);
	else if (!memcmp(start.text, ELFMAG, SELFMAG))
		good = check_elf(root, fd, &start.elf);
	else if (memcmp(start.text, "#!", 2))
		good = failed(root, "wrong-init", "%s is neither an ELF program nor a script", root->init);
	if (fd >= 0)
		close(fd);
	return good;
}

struct job {
	struct root *root;
	const struct options *options;
	struct port *port;
	int uevents;
};

static int prepare(void *argument)
{
	struct job *job = argument;
	struct root *root = job->root;
	const char *wanted = job->options->root;
	bool share = after(wanted, "9p:") || after(wanted, "virtiofs:");

	if (!is_known(wanted))
		return !failed(root, "absent", "not known; known: /dev/NAME, LABEL=, UUID=, PARTUUID=, PARTLABEL=, "
			       "SERIAL=, 9p:TAG, virtiofs:TAG");
	if (share ? !mount_share(root, wanted) :
		    !wait_for_device(root, job->options, job->port, job->uevents) || !mount_volume(root))
		return 1;
	root->mounted_us = uptime_us();
	/* A program's root needs no init of its own. */
	if (job->options->then == PROGRAM || job->options->then == SHELL_ON_CONSOLE)
		return 0;
	return !check_init(root);
}

static void say_root(const struct root *root, const char *wanted)
{
	int i;

	if (!strcmp(root->result, "found")) {
		say("%s: %.80s (%s%s) after %.2f s", root->what,
		    *root->volume.device ? root->volume.device : wanted, root->type, root->read_only ? ", read-only" : "", (double)(root->mounted_us - root->asked_us) / 1e6);
		return;
	}
	say("no %s: %.80s%s%s: %s", root->what, wanted,
	    *root->volume.device && strcmp(root->volume.device, wanted) ? " is " : "",
	    strcmp(root->volume.device, wanted) ? root->volume.device : "", root->error);
	if (strcmp(root->result, "absent"))
		return;
	for (i = 0; i < root->count; i++)
		say("there is %s: %s%s%s%s%s%s%s", root->there[i].device,
		    root->there[i].type ? root->there[i].type : "no known file system",
		    *root->there[i].label ? ", LABEL=" : "", root->there[i].label,
		    *root->there[i].uuid ? ", UUID=" : "", root->there[i].uuid,
		    *root->there[i].part_uuid ? ", PARTUUID=" : "", root->there[i].part_uuid);
	if (!root->count)
		say("there is no block device: no disk, or a kernel without its driver");
}

/*
 * The root is at SYSROOT afterwards if `result` is "found". The memory is shared
 * with the child, and lives as long as initd does.
 */
struct root *find_root(const struct options *options, struct port *port, int uevents, const char *what)
{
	struct root *root = mmap(NULL, sizeof(*root), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct job job = { root, options, port, uevents };
	int result;

	if (root == MAP_FAILED)
		die("memory for the root");
	root->asked_us = uptime_us();
	root->what = what;
	root->result = "found";
	root->read_only = options->read_only;
	snprintf(root->init, sizeof(root->init), "%s", options->init);
	result = within(options->root_seconds + MOUNT_S, order_waits, prepare, &job);
	if (result < 0 && order_waits())
		failed(root, "absent", "the guest is to end before it was found");
	else if (result < 0)
		failed(root, "hangs", "it does not answer");
	else if (result && !strcmp(root->result, "found"))
		failed(root, "hangs", "initd's child ended with status %d", result);
	say_root(root, options->root);
	return root;
}

static void put_there(struct json *j, const struct root *root)
{
	int i;

	json_open(j, "there", '[');
	for (i = 0; i < root->count; i++) {
		json_open(j, NULL, '{');
		json_string(j, "device", root->there[i].device);
		json_string(j, "type", root->there[i].type);
		json_string(j, "label", root->there[i].label);
		json_string(j, "uuid", root->there[i].uuid);
		json_string(j, "part_uuid", root->there[i].part_uuid);
		json_close(j, '}');
	}
	json_close(j, ']');
}

void report_root(struct json *j, const struct root *root, const char *wanted)
{
	bool found = !strcmp(root->result, "found");

	json_begin(j, "root");
	json_seconds(j, "uptime", uptime_us());
	json_string(j, "requested", wanted);
	json_string(j, "result", root->result);
	json_string(j, "error", found ? NULL : root->error);
	json_string(j, "device", *root->volume.device ? root->volume.device : NULL);
	json_string(j, "type", root->type);
	json_bool(j, "read_only", root->read_only);
	json_string(j, "init", root->init);
	if (root->appeared_us)
		json_seconds(j, "waited", root->appeared_us - root->asked_us);
	else
		json_null(j, "waited");
	if (root->mounted_us)
		json_seconds(j, "mounting", root->mounted_us - root->appeared_us);
	else
		json_null(j, "mounting");
	put_there(j, root);
	json_end(j);
}
