/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shutdown: programs get time to end, their data is written to its disk,
 * and the host gets a record of how that went. No phase may stop or hang the
 * others: each is bounded in time, and the last one comes in any case.
 */
#define _GNU_SOURCE	/* UMOUNT_NOFOLLOW */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "initd.h"

/* Seconds. A test has shorter ones. */
#ifndef GRACE_S
#define GRACE_S		5	/* from SIGTERM to SIGKILL */
#define SYNC_S		30	/* a disk may have much to write, or be dead */
#define UNMOUNT_S	10
#define END_S		20	/* for the kernel's part: it shuts its devices down */
#endif
#define KILL_S		2	/* for the next killed program to be gone */
#define KILL_MAX_S	30	/* for all of them */
#define NAMES_S		5	/* to look for programs */
#define NAMES_MAX	10	/* of a fork storm's thousands */

/* How it went. */
struct outcome {
	const struct ending *ending;
	int killed;	/* programs that did not end by themselves */
	int left;	/* of these, the ones that could not be killed */
	bool synced;
	int busy;	/* file systems that stayed writable; -1: unknown */
};

static const char *name_of(int how)
{
	return how == RB_POWER_OFF ? "power-off" : how == RB_AUTOBOOT ? "reboot" : "halt";
}

/*
 * Reaps until no child is left, and so no process: one that loses its parent
 * becomes PID 1's child. False if none ended for `idle` seconds, or if some are
 * left after `most`; in a fork storm there is always one more to reap.
 */
static bool all_ended(int idle, int most)
{
	long long end = uptime_us() + most * 1000000LL, until = uptime_us() + idle * 1000000LL, now;
	struct timespec pause = { .tv_nsec = 100000000 };
	sigset_t child;
	pid_t pid;

	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	for (;;) {
		pid = waitpid(-1, NULL, WNOHANG);
		if (pid < 0)
			return true;
		now = uptime_us();
		if (pid > 0)
			until = now + idle * 1000000LL;
		if (now > until || now > end)
			return false;
		if (!pid)
			sigtimedwait(&child, NULL, &pause);	/* SIGCHLD is blocked */
	}
}

/* Counts the programs that run, and names the first ones. */
static int say_programs(const char *what)
{
	long long until = uptime_us() + NAMES_S * 1000000LL;
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	char path[64], name[64];
	int count = 0;

	if (!proc)
		return 0;
	while ((entry = readdir(proc)) && uptime_us() < until) {
		if (!numbered(entry->d_name, "") || !strcmp(entry->d_name, "1"))
			continue;
		/* The kernel's own threads and zombies have no such link. */
		snprintf(path, sizeof(path), "%.20s/exe", entry->d_name);
		if (readlinkat(dirfd(proc), path, name, sizeof(name)) < 0)
			continue;
		if (count++ >= NAMES_MAX)
			continue;
		snprintf(path, sizeof(path), "%.20s/comm", entry->d_name);
		if (!read_text(dirfd(proc), path, name, sizeof(name)))
			strcpy(name, "?");
		say("%s (%s) %s", name, entry->d_name, what);
	}
	if (count > NAMES_MAX)
		say("%s%d more: %s", entry ? "at least " : "", count - NAMES_MAX, what);
	closedir(proc);
	return count;
}

/*
 * SIGCONT: a stopped program does not run its handler. No SIGHUP: if both are
 * pending, it comes first, and ends a program that handles only SIGTERM.
 *
 * SIGSTOP ends a fork storm: a fork() that is under way when kill() comes is
 * begun again after the signal, or its child gets it too (kernel/fork.c,
 * copy_process()). So no child is missed, and what is named is all that there is.
 */
static void end_programs(struct outcome *outcome)
{
	kill(-1, SIGTERM);
	kill(-1, SIGCONT);
	if (all_ended(GRACE_S, GRACE_S))
		return;
	kill(-1, SIGSTOP);
	outcome->killed = say_programs("did not end in time and is killed");
	kill(-1, SIGKILL);
	if (!all_ended(KILL_S, KILL_MAX_S))
		outcome->left = say_programs("cannot be killed");
}

static int sync_all(void *nothing)
{
	(void)nothing;
	sync();
	return 0;
}

/* What the last phases need. */
static const char *const needed[] = { "/", "/dev", "/proc", "/sys", NULL };

/* File systems whose content ends with the guest. */
static const char *const in_memory[] = {
	"rootfs", "ramfs", "tmpfs", "devtmpfs", "devpts", "proc", "sysfs", NULL
};

static bool among(const char *const *names, const char *name)
{
	while (*names && strcmp(*names, name))
		names++;
	return *names;
}

struct mounts {
	int count;
	struct place {
		char *path;
		bool in_memory;
		bool writable;
	} *place;
};

/* "\\040" is a space: the kernel escapes some bytes so (fs/proc_namespace.c, mangle). */
static void unmangle(char *s)
{
	char *out = s;

	while (*s)
		if (*s == '\\' && s[1] && s[2] && s[3]) {
			*out++ = (char)((s[1] - '0') << 6 | (s[2] - '0') << 3 | (s[3] - '0'));
			s += 4;
		} else {
			*out++ = *s++;
		}
	*out = '\0';
}

static void add_mount(struct mounts *mounts, const char *path, const char *type,
		      const char *options)
{
	size_t count = (size_t)mounts->count;
	struct place *grown = realloc(mounts->place, (count + 1) * sizeof(*grown));

	if (!grown)
		die("memory for the mounts");
	mounts->place = grown;
	grown[count].path = strdup(path);
	grown[count].in_memory = among(in_memory, type);
	grown[count].writable = !strncmp(options, "rw", 2);
	if (!grown[count].path)
		die("memory for the mounts");
	mounts->count++;
}

/* In the order in which they were mounted. */
static void read_mounts(struct mounts *mounts)
{
	FILE *f = fopen("/proc/self/mounts", "re");
	char *line = NULL, *save, *path, *type, *options;
	size_t size = 0;

	*mounts = (struct mounts){ 0 };
	while (f && getline(&line, &size, f) > 0) {
		strtok_r(line, " ", &save);		/* the source */
		path = strtok_r(NULL, " ", &save);
		type = strtok_r(NULL, " ", &save);
		options = strtok_r(NULL, " ", &save);
		if (!options)
			continue;
		unmangle(path);
		add_mount(mounts, path, type, options);
	}
	free(line);
	if (f)
		fclose(f);
}

/*
 * The last one first, because it may lie on the others. What is busy, and the
 * root, becomes read-only. Returns how many stayed writable, from the kernel's
 * list: a mount below another, or above the root, has no path of its own.
 */
static int unmount_all(void *nothing)
{
	struct mounts mounts;
	struct place *place;
	int busy = 0, i;

	(void)nothing;
	read_mounts(&mounts);
	for (i = mounts.count - 1; i >= 0; i--) {
		place = &mounts.place[i];
		if (!among(needed, place->path) && !umount2(place->path, UMOUNT_NOFOLLOW))
			continue;
		if (!place->in_memory)
			mount(NULL, place->path, NULL, MS_REMOUNT | MS_RDONLY, NULL);
	}

	read_mounts(&mounts);
	for (i = 0; i < mounts.count; i++) {
		place = &mounts.place[i];
		if (place->in_memory || !place->writable)
			continue;
		say("%s is still mounted, and writable", place->path);
		busy++;
	}
	return busy < 255 ? busy : 255;		/* an exit status */
}

/* Only to the port: the report's file is in /run, which is about to be unmounted. */
static void report_shutdown(struct port *port, const struct outcome *outcome)
{
	struct json j = { 0 };

	json_begin(&j, "shutdown");
	json_seconds(&j, "uptime", uptime_us());
	json_string(&j, "why", outcome->ending->why);
	json_string(&j, "how", name_of(outcome->ending->how));
	json_int(&j, "killed", outcome->killed);
	json_int(&j, "left", outcome->left);
	json_bool(&j, "synced", outcome->synced);
	put_bytes(&j, "busy", outcome->busy);
	json_int(&j, "console_lost", messages_lost());
	json_end(&j);
	port_more(port, &j);
	json_free(&j);
}

static int end_machine(void *how)
{
	reboot(*(int *)how);
	return 0;
}

static void leave(int how) __attribute__((noreturn));

/*
 * The kernel waits for each device's lock (drivers/base/core.c,
 * device_shutdown()), and a driver that hangs in its probe keeps one.
 * A panic waits for nothing.
 */
static void leave(int how)
{
	if (how == RB_POWER_OFF && access("/sys/firmware/acpi", F_OK))
		say("no ACPI, so no way to power off: this guest will halt");
	if (within(END_S, NULL, end_machine, &how) < 0) {
		say("%s is not done in %d s: a driver holds its device; a panic ends this guest", name_of(how), END_S);
		write_text(AT_FDCWD, "/proc/sys/kernel/panic", "-1");
		_exit(1);
	}
	/* If reboot() returned, PID 1 still must not end: the kernel would panic. */
	for (;;)
		pause();
}

void shut_down(struct port *port, const struct ending *ending)
{
	static bool under_way;
	struct outcome outcome = { .ending = ending };
	sigset_t all;

	if (under_way)		/* a phase died */
		leave(ending->how);
	under_way = true;
	sigfillset(&all);
	sigdelset(&all, SIGALRM);
	sigprocmask(SIG_SETMASK, &all, NULL);
	say("%s: %s", ending->why, name_of(ending->how));

	end_programs(&outcome);
	outcome.synced = !within(SYNC_S, NULL, sync_all, NULL);
	port_close_file(port);
	outcome.busy = within(UNMOUNT_S, NULL, unmount_all, NULL);
	report_log(port);
	report_shutdown(port, &outcome);
	port_drain(port);
	leave(ending->how);
}

void shut_down_failed(void)
{
	static const struct ending failed = { "error", RB_POWER_OFF };
	struct port port = CLOSED_PORT;

	shut_down(&port, &failed);
}
