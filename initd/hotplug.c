/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CPUs and memory that are present but offline are of no use: bring them
 * online, at start and whenever the kernel reports that one was added. A device
 * that was added gets its module.
 */
#define _GNU_SOURCE	/* O_PATH */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "initd.h"

#define CPUS	"/sys/devices/system/cpu"
#define MEMORY	"/sys/devices/system/memory"

/*
 * From include/uapi/linux/netlink.h: musl does not ship the kernel's headers.
 * Group 1 is what the kernel itself multicasts to (lib/kobject_uevent.c).
 */
#define NETLINK_KOBJECT_UEVENT	15
#define KERNEL_GROUP		1

struct sockaddr_nl {
	sa_family_t nl_family;
	unsigned short nl_pad;
	uint32_t nl_pid;
	uint32_t nl_groups;
};

/* The socket, or -1 and a message: a kernel may have no CONFIG_NET. */
int hotplug_listen(void)
{
	struct sockaddr_nl kernel = {
		.nl_family = AF_NETLINK,
		.nl_groups = KERNEL_GROUP,
	};
	int size = 1 << 20;	/* a large DIMM is hundreds of blocks at once */
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK,
			NETLINK_KOBJECT_UEVENT);

	if (fd < 0 || bind(fd, (struct sockaddr *)&kernel, sizeof(kernel))) {
		say("no uevents, so hotplug is not seen: %s", strerror(errno));
		if (fd >= 0)
			close(fd);
		return -1;
	}
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
	return fd;
}

/*
 * dir is the CPU's folder. No "online" file means a CPU that cannot be taken
 * offline, such as cpu0.
 */
static bool cpu_online(int dir, const char *name)
{
	long long online;

	if (!read_number(dir, "online", 10, &online) || online)
		return true;
	if (!write_text(dir, "online", "1"))
		say("%s: online: %s", name, strerror(errno));
	return read_number(dir, "online", 10, &online) && online;
}

static bool memory_is_online(int dir)
{
	char state[32];

	return read_text(dir, "state", state, sizeof(state)) &&
	       !strcmp(state, "online");
}

/*
 * "online" and not "online_movable": a driver pins its DMA pages, and pinned
 * pages must leave ZONE_MOVABLE first. initd need not unplug memory again.
 */
static bool memory_online(int dir, const char *name)
{
	int error = 0;

	if (memory_is_online(dir))
		return true;
	if (!write_text(dir, "state", "online"))
		error = errno;
	/* The kernel may have been faster; then the write failed, and that is fine. */
	if (memory_is_online(dir))
		return true;
	say("%s: online: %s", name, strerror(error));
	return false;
}

static bool bring_online(const char *subsystem, const char *name)
{
	bool cpu = !strcmp(subsystem, "cpu");
	int parent = open(cpu ? CPUS : MEMORY, O_PATH | O_DIRECTORY | O_CLOEXEC);
	int dir = openat(parent, name, O_PATH | O_DIRECTORY | O_CLOEXEC);
	bool online = false;

	if (dir >= 0) {		/* else it is already gone again */
		online = cpu ? cpu_online(dir, name) : memory_online(dir, name);
		close(dir);
	}
	if (parent >= 0)
		close(parent);
	return online;
}

static void all_online(const char *path, const char *subsystem, long long until_us)
{
	DIR *folder = opendir(path);
	struct dirent *entry;

	if (!folder)
		return;
	while (uptime_us() < until_us && (entry = readdir(folder)))
		if (numbered(entry->d_name, subsystem))
			bring_online(subsystem, entry->d_name);
	closedir(folder);
}

/* A CPU may take seconds to start: after until_us no more are started. */
void hotplug_all_online(long long until_us)
{
	/* A kernel without memory hotplug does not have this file. */
	write_text(AT_FDCWD, MEMORY "/auto_online_blocks", "online");
	all_online(CPUS, "cpu", until_us);
	all_online(MEMORY, "memory", until_us);
}

static void report_event(struct port *port, const char *action,
			 const char *subsystem, const char *device, bool online)
{
	struct json j = { 0 };

	json_begin(&j, "event");
	json_seconds(&j, "uptime", uptime_us());
	json_string(&j, "action", action);
	json_string(&j, "subsystem", subsystem);
	json_string(&j, "device", device);
	if (device)
		json_bool(&j, "online", online);
	else
		json_null(&j, "online");
	json_end(&j);
	port_more(port, &j);
	json_free(&j);
}

/* A port that is still closed means: before the report, which will have them. */
static void send_modules(struct port *port)
{
	struct json j = { 0 };

	if (port->tty < 0 && port->file < 0)
		return;
	report_modules(&j);
	if (j.records)
		port_more(port, &j);
	json_free(&j);
}

/* "add@/devices/system/cpu/cpu4", then NAME=value strings, NUL after each. */
static void handle_uevent(const char *message, size_t len, struct port *port)
{
	const char *action = "", *subsystem = "", *path = "", *modalias = NULL, *device, *s;
	bool online = false;

	for (s = message; s < message + len; s += strlen(s) + 1) {
		if (!strncmp(s, "ACTION=", 7))
			action = s + 7;
		else if (!strncmp(s, "SUBSYSTEM=", 10))
			subsystem = s + 10;
		else if (!strncmp(s, "DEVPATH=", 8))
			path = s + 8;
		else if (!strncmp(s, "MODALIAS=", 9))
			modalias = s + 9;
	}

	if (modalias && !strcmp(action, "add")) {
		load_for(modalias);
		send_modules(port);
	}

	if (strcmp(subsystem, "cpu") && strcmp(subsystem, "memory"))
		return;
	device = strrchr(path, '/');
	if (!device || !numbered(++device, subsystem))
		return;

	/* Our own writes come back as "online": nothing new. */
	if (!strcmp(action, "add"))
		online = bring_online(subsystem, device);
	else if (strcmp(action, "remove"))
		return;
	report_event(port, action, subsystem, device, online);
}

/* Everything that is on the socket; after until_us, or an order, the rest stays there. */
void hotplug_handle(int uevents, struct port *port, long long until_us)
{
	char message[8192];
	struct sockaddr_nl from = { 0 };
	socklen_t from_len;
	ssize_t n;

	while (uptime_us() < until_us && !order_waits()) {
		from_len = sizeof(from);
		n = recvfrom(uevents, message, sizeof(message) - 1, 0,
			     (struct sockaddr *)&from, &from_len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == ENOBUFS) {
			/* Events were lost: look at everything instead. */
			hotplug_all_online(until_us);
			load_for_devices();
			send_modules(port);
			report_event(port, "overrun", NULL, NULL, false);
			continue;
		}
		if (n <= 0)
			return;
		if (from.nl_pid)	/* not from the kernel */
			continue;
		message[n] = '\0';
		handle_uevent(message, (size_t)n, port);
	}
}
