/* SPDX-License-Identifier: Apache-2.0 */
/*
 * initd: PID 1 of a minguest guest. docs/report.md is the contract with the
 * host: what initd writes to its port, field by field.
 *
 * The files are declared in order: each one uses what is declared above its
 * own part, and nothing below it. initd.c, with main(), is the last.
 */
#ifndef INITD_H
#define INITD_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#ifndef INITD_VERSION
#define INITD_VERSION "0.1.0"
#endif

/* Raise it when a reader of the old report would misread the new one. */
#define REPORT_PROTOCOL 1

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

/* say.c: the console, the clock, and the one failure path */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void say_without_waiting(void);
int messages_lost(void);
void die(const char *what) __attribute__((noreturn));
void die_by(void (*leave)(void));	/* as PID 1, which must not end */
long long uptime_us(void);

struct moment {
	long long us;	/* since the kernel's start */
	unsigned long long tsc;
};

struct moment moment(void);

/* files.c: small files of /proc and /sys; dir is a directory or AT_FDCWD */
#define TEXT_MAX 8192	/* a file of sysfs is a page at most */

char *read_text(int dir, const char *path, char *buf, size_t size);
bool read_number(int dir, const char *path, int base, long long *value);
bool write_text(int dir, const char *path, const char *text);
bool numbered(const char *name, const char *prefix);

/* json.c: JSON lines in memory; key is NULL inside a list; a NULL text becomes null */
struct json {
	char *text;
	size_t len;
	size_t size;
	int records;
};

void json_begin(struct json *j, const char *record);
void json_end(struct json *j);
void json_open(struct json *j, const char *key, char bracket);
void json_close(struct json *j, char bracket);
void json_null(struct json *j, const char *key);
void json_bool(struct json *j, const char *key, bool value);
void json_int(struct json *j, const char *key, long long value);
void json_hex(struct json *j, const char *key, unsigned long long value);
void json_seconds(struct json *j, const char *key, long long us);
void json_string(struct json *j, const char *key, const char *value);
void json_free(struct json *j);

/* fields.c: fields of the report; null for a file that cannot be read */
void put_text(struct json *j, const char *key, int dir, const char *path);
void put_number(struct json *j, const char *key, int dir, const char *path);
void put_bytes(struct json *j, const char *key, long long bytes);	/* < 0: null */

/* blocks.c: memory blocks, the unit of memory hotplug */
struct blocks {
	long long bytes;	/* of each */
	int present;
	int online;
};

bool count_blocks(struct blocks *blocks);

/* kmsg.c: the kernel's messages, and those between two moments */
#define KMSG_MAX	8192	/* bytes of a record. 4.12: CONSOLE_EXT_LOG_MAX; later kernels write less */
#define KMSG_COUNT_MAX	8192	/* a driver may print faster than this reads */
#define MESSAGES_MAX	10
#define MESSAGE_MAX	200	/* bytes; the rest of a longer one is dropped */

struct messages {
	int count;
	char text[MESSAGES_MAX][MESSAGE_MAX + 1];
};

int kmsg_open(void);
int kmsg_from_now(void);
bool kmsg_next(int fd, char record[KMSG_MAX + 1]);
void kmsg_read(int fd, struct messages *messages);
void keep_message(struct messages *messages, const char *text, size_t len);

/* depmod.c: the files of /lib/modules/RELEASE, of the disk of drivers or else of the initrd */
#define DRIVERS "/run/drivers"	/* where that disk is mounted: /run moves to the root */
#define MODULE_NAME	64	/* with its NUL; the kernel's own limit is 56 */

bool module_name(char name[MODULE_NAME], const char *path);
void module_path(char path[PATH_MAX], const char *file);
bool only_others(char *others, size_t size);
bool have_aliases(void);
char *dependencies(const char *wanted);
void each_alias(const char *modalias, void (*found)(const char *module));
void each_soft(const char *wanted, bool post, void (*found)(const char *module));

/* port.c: where the report goes */
struct port {
	const char *device;
	int tty;	/* the host's port, or -1 */
	int file;	/* /run/initd/report.jsonl, or -1 */
};

#define CLOSED_PORT { .device = NULL, .tty = -1, .file = -1 }

void port_open(struct port *port, const char *device);
void port_first(struct port *port, const struct json *j);
void port_more(struct port *port, const struct json *j);
void port_close_file(struct port *port);
void port_drain(struct port *port);

/* log.c: the kernel's log beside the report */
void log_from_start(void);
void report_log(struct port *port);

/* orders.c: how the guest ends, and who ordered it */
struct ending {
	const char *why;	/* as the report has it */
	int how;		/* RB_..., of sys/reboot.h */
};

void take_orders(void);
void free_signals(void);
bool order_waits(void);
const struct ending *order_given(void);

/* volumes.c: block devices and what they hold */
struct volume {
	char device[48];	/* /dev/vda1 */
	const char *type;	/* of the file system; NULL: not known */
	char label[257];
	char uuid[40];
	char part_label[40];
	char part_uuid[40];
	char serial[24];	/* of the disk; virtio's has 20 bytes */
};

bool read_volume(const char *device, struct volume *volume);
void each_volume(bool (*visit)(const struct volume *, void *), void *argument);

/* within.c: what may hang */
bool child_ended(pid_t pid, int *status, long long seconds, bool (*give_up)(void));
int within(long long seconds, bool (*give_up)(void), int (*step)(void *), void *argument);

/* nodes.c: what the initrd has in /dev */
void copy_nodes(int from);

/* mounts.c */
/* Of a 9p share. msize: larger messages mean fewer of them. */
#define P9 "trans=virtio,version=9p2000.L,msize=524288"
#define SYSROOT "/sysroot"	/* where a root is mounted, before it becomes "/" */

void open_console(void);
void mount_filesystems(void);
void enter_root(const char *share);

/* options.c: the kernel's command line */
struct wait {
	long long cpus;		/* initd.wait-cpus=, or 0 */
	long long memory;	/* initd.wait-memory=, bytes, or 0 */
	long long cpus_left;	/* initd.wait-cpus-left=, or 0 */
	long long seconds;	/* initd.wait-seconds= */
};

#define INIT_MAX 256	/* initd.init=, with its NUL */

enum then { UNSET, WAIT, SHELL_ON_CONSOLE, PROGRAM, POWEROFF, REBOOT, HALT, INIT };

struct options {
	char line[TEXT_MAX];	/* the command line, split into options in place */
	const char *report;	/* initd.report=, a device, or NULL */
	enum then then;		/* initd.then= */
	const char *then_why;	/* the option that set it, as the report has it */
	const char *program;
	const char *root;	/* initd.root=, or NULL */
	const char *init;	/* initd.init=, in that root */
	enum then onfail;	/* initd.onfail=, without that root */
	long long root_seconds;	/* initd.root-seconds= */
	bool report_after_root;	/* initd.report-after=root */
	bool report_log;	/* initd.report-log=kernel */
	bool read_only;		/* ro: the root too */
	const char *share;	/* initd.share=, a 9p share, or NULL */
	struct wait wait;	/* initd.wait-...= */
	const char *modules;	/* initd.modules=, names with commas, or NULL */
	long long modules_seconds;	/* initd.modules-seconds=, for each */
	const char *drivers;	/* initd.drivers=, a device, or NULL */
};

void read_options(struct options *options);
void without_root(struct options *options);

/* modules.c: kernel modules */
void load_modules(const struct options *options);
void load_for_devices(void);
void load_for(const char *modalias);
void stop_loading(void);
void report_modules(struct json *j);

/* hotplug.c */
#define NO_HURRY LLONG_MAX

int hotplug_listen(void);
void hotplug_all_online(long long until_us);
void hotplug_handle(int uevents, struct port *port, long long until_us);

/* await.c: until what the host plugs in is in use */
bool await_plugged(const struct wait *wait, struct port *port, int uevents);
void await_unplugged(const struct wait *wait, struct port *port, int uevents);

/* root.c: the root that initd.root= names */
#define ROOT_THERE_MAX 16

struct root {
	const char *what;	/* "root", or another disk, for messages */
	const char *result;	/* "found", or why not: docs/report.md */
	char error[200];
	struct volume volume;	/* no device: a share of the host */
	const char *type;	/* of the file system */
	bool read_only;
	char init[INIT_MAX];
	long long asked_us;
	long long appeared_us;	/* the device was there; 0: never */
	long long mounted_us;
	int count;
	struct volume there[ROOT_THERE_MAX];	/* what there is, if the root is not */
};

struct root *find_root(const struct options *options, struct port *port, int uevents, const char *what);
void report_root(struct json *j, const struct root *root, const char *wanted);

/* drivers.c: the disk of drivers */
void mount_drivers(const struct options *options, int uevents);

/* pci.c */
void report_pci(struct json *j);

/* gpu.c */
void report_drivers(struct json *j);

/* report.c */
void report_all(struct json *j, const struct moment *started, const struct root *root,
		const char *wanted);

/* program.c: initd as an ordinary program */
int as_program(int argc, char **argv, const struct moment *started);

/* shutdown.c */
void shut_down(struct port *port, const struct ending *ending) __attribute__((noreturn));
void shut_down_failed(void) __attribute__((noreturn));

/* handover.c: from the initrd to the root's init */
void hand_over(const struct root *root, struct port *port, int uevents, char **argv);

/* supervise.c: what comes after the report */
struct ending do_as_requested(const struct options *options, struct port *port, int uevents);

#endif
