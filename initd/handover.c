/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The end of the initrd: the root that was mounted at SYSROOT becomes "/", and
 * its init becomes PID 1. A child of initd stays, to bring CPUs and memory
 * online that are plugged in later: no distribution's udev does it for both.
 */
#define _GNU_SOURCE	/* O_PATH, environ */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "initd.h"

/* include/uapi/linux/magic.h */
#define RAMFS_MAGIC	0x858458f6
#define TMPFS_MAGIC	0x01021994
#define DEPTH_MAX	64

/* What the new root's init gets from this one. An init mounts them itself if they are missing. */
static const char *const moved[] = { "/dev", "/proc", "/sys", "/run" };

static void move_mounts(void)
{
	char target[64];
	size_t i;

	for (i = 0; i < COUNT(moved); i++) {
		snprintf(target, sizeof(target), SYSROOT "%s", moved[i]);
		mkdir(target, 0755);	/* it fails if the folder is there, or the root read-only */
		if (!mount(moved[i], target, NULL, MS_MOVE, NULL))
			continue;
		say("%s of the new root: %s", moved[i], strerror(errno));
		umount2(moved[i], MNT_DETACH);
	}
	umount2("/tmp", MNT_DETACH);
}

/* Frees the initrd's memory: never what another file system has. */
static void erase(int folder, dev_t device, int depth)
{
	struct dirent *entry;
	struct stat facts;
	DIR *list;
	int inner;

	list = depth < DEPTH_MAX ? fdopendir(folder) : NULL;
	if (!list) {
		close(folder);
		return;
	}
	while ((entry = readdir(list))) {
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") ||
		    fstatat(folder, entry->d_name, &facts, AT_SYMLINK_NOFOLLOW) || facts.st_dev != device)
			continue;
		if (!S_ISDIR(facts.st_mode)) {
			unlinkat(folder, entry->d_name, 0);
			continue;
		}
		inner = openat(folder, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (inner >= 0)
			erase(inner, device, depth + 1);
		unlinkat(folder, entry->d_name, AT_REMOVEDIR);
	}
	closedir(list);
}

/* The mount moves onto "/", as switch_root does it: a rootfs cannot be pivoted or unmounted. */
static void switch_root(void)
{
	int old = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct statfs system;
	struct stat facts;

	if (chdir(SYSROOT) || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
		die("the new root");
	if (old >= 0 && !fstatfs(old, &system) && !fstat(old, &facts) &&
	    (system.f_type == RAMFS_MAGIC || system.f_type == TMPFS_MAGIC))
		erase(old, facts.st_dev, 0);
	else if (old >= 0)
		close(old);
}

/* SIGTERM ends it: the guest's init sends that to all programs before a power-off. */
static void keep_online(struct port *port, int uevents)
{
	struct pollfd ready = { .fd = uevents, .events = POLLIN };
	pid_t pid = uevents < 0 ? 0 : fork();

	if (pid < 0)
		say("initd-hotplug: %s; what is plugged in later stays offline", strerror(errno));
	if (pid || uevents < 0)
		return;
	prctl(PR_SET_NAME, "initd-hotplug");
	write_text(AT_FDCWD, "/proc/self/oom_score_adj", "-1000");	/* nobody starts it again */
	setsid();
	stop_loading();
	free_signals();
	for (;;)
		if (poll(&ready, 1, -1) > 0)
			hotplug_handle(uevents, port, NO_HURRY);
}

static void report_handover(struct port *port, const struct root *root)
{
	struct json j = { 0 };

	json_begin(&j, "handover");
	json_seconds(&j, "uptime", uptime_us());
	json_string(&j, "init", root->init);
	json_seconds(&j, "took", uptime_us() - root->appeared_us);
	json_end(&j);
	port_more(port, &j);
	json_free(&j);
}

/* /dev/console is opened anew: the old one was a file of the initrd. */
static void take_console(void)
{
	int fd = open("/dev/console", O_RDWR | O_NOCTTY);

	if (fd < 0)
		return;		/* keep the descriptors of the initrd's */
	dup2(fd, STDIN_FILENO);
	dup2(fd, STDOUT_FILENO);
	dup2(fd, STDERR_FILENO);
	if (fd > STDERR_FILENO)
		close(fd);
}

/*
 * `argv` are initd's own: the kernel passes what it does not know itself, such
 * as "single". Returns if an order came: the guest ends from its new root then.
 */
void hand_over(const struct root *root, struct port *port, int uevents, char **argv)
{
	move_mounts();
	switch_root();
	take_console();
	if (order_waits())	/* the root's init would not get it */
		return;
	report_handover(port, root);
	keep_online(port, uevents);
	if (order_waits())	/* a port that takes nothing has taken its time */
		return;
	say("starting %s", root->init);
	free_signals();
	argv[0] = (char *)root->init;
	execv(root->init, argv);
	die(root->init);
}
