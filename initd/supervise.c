/* SPDX-License-Identifier: Apache-2.0 */
/* After the report: run a program on the console, or wait, until an order or the program's end. */
#define _GNU_SOURCE	/* ppoll, syscall */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "initd.h"

#define SHELL "/bin/sh"
#define REAP_MAX 1000

/*
 * /dev/console cannot be a controlling terminal; the tty behind it can. The
 * last name in "active" is the one behind /dev/console.
 */
static void take_terminal(void)
{
	char active[256], path[300] = "/dev/console", *name;
	int fd;

	if (read_text(AT_FDCWD, "/sys/class/tty/console/active",
		      active, sizeof(active)) && *active) {
		name = strrchr(active, ' ');
		snprintf(path, sizeof(path), "/dev/%s", name ? name + 1 : active);
	}
	setsid();
	fd = open(path, O_RDWR);
	if (fd < 0)
		return;		/* keep PID 1's */
	ioctl(fd, TIOCSCTTY, 1);
	dup2(fd, STDIN_FILENO);
	dup2(fd, STDOUT_FILENO);
	dup2(fd, STDERR_FILENO);
	if (fd > STDERR_FILENO)
		close(fd);
}

static pid_t start(const char *path, const struct options *options)
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (pid)
		return pid;

	take_terminal();
	if (options->root)
		enter_root(options->share);
	free_signals();
	setenv("PATH", "/bin:/sbin:/usr/bin:/usr/sbin", 0);
	execl(path, path, (char *)NULL);
	say("%s: %s", path, strerror(errno));
	_exit(127);
}

/* How the program on the console ended; the guest powers off after it. */
static void report_exit(struct port *port, const char *program, int status)
{
	struct json j = { 0 };

	json_begin(&j, "exit");
	json_seconds(&j, "uptime", uptime_us());
	json_string(&j, "program", program);
	if (WIFEXITED(status))
		json_int(&j, "status", WEXITSTATUS(status));
	else
		json_null(&j, "status");
	if (WIFSIGNALED(status))
		json_int(&j, "signal", WTERMSIG(status));
	else
		json_null(&j, "signal");
	json_end(&j);
	port_more(port, &j);
	json_free(&j);
}

/*
 * Reaps what has ended; true if the program is one of them. In a fork storm
 * there is always one more: the rest waits for the next turn, after orders and
 * uevents.
 */
static bool reap(pid_t program, int *program_status)
{
	bool ended = false;
	int status, count;
	pid_t pid;

	for (count = 0; (pid = waitpid(-1, &status, WNOHANG)) > 0; count++) {
		if (pid == program) {
			*program_status = status;
			ended = true;
		}
		if (count == REAP_MAX) {
			raise(SIGCHLD);		/* it is blocked, and ends the next ppoll() */
			break;
		}
	}
	return ended;
}

/*
 * Thousands of programs that run must not keep initd from the order to end
 * them. What it starts is an ordinary program again. musl's own function only
 * fails.
 */
static void go_first(void)
{
	struct sched_param lowest = { .sched_priority = 1 };

	syscall(SYS_sched_setscheduler, 0, SCHED_FIFO | SCHED_RESET_ON_FORK, &lowest);
}

/* Waits until the program ends, if there is one, or an order comes. */
static struct ending supervise(const struct options *options, struct port *port, int uevents,
			       const char *path)
{
	struct pollfd ready = { .fd = uevents, .events = POLLIN };
	pid_t program = path ? start(path, options) : 0;
	sigset_t none;
	int status = 0;

	go_first();
	sigemptyset(&none);
	for (;;) {
		if (ppoll(&ready, 1, NULL, &none) < 0 && errno != EINTR)
			die("ppoll");
		if (ready.revents)
			hotplug_handle(uevents, port, NO_HURRY);
		if (reap(program, &status)) {
			report_exit(port, path, status);
			return (struct ending){ "exit", RB_POWER_OFF };
		}
		if (!order_given())
			continue;
		if (options->then == SHELL_ON_CONSOLE && program)
			kill(program, SIGHUP);	/* interactive, it ignores SIGTERM */
		return *order_given();
	}
}

struct ending do_as_requested(const struct options *options, struct port *port, int uevents)
{
	if (order_waits())	/* it comes before what the options request */
		return supervise(options, port, uevents, NULL);
	switch (options->then) {
	case POWEROFF:
		return (struct ending){ options->then_why, RB_POWER_OFF };
	case REBOOT:
		return (struct ending){ options->then_why, RB_AUTOBOOT };
	case HALT:
		return (struct ending){ options->then_why, RB_HALT_SYSTEM };
	case PROGRAM:
		return supervise(options, port, uevents, options->program);
	case SHELL_ON_CONSOLE:
		if (options->root || !access(SHELL, X_OK))
			return supervise(options, port, uevents, SHELL);
		say("initd.then=shell: %s: %s; waiting instead", SHELL, strerror(errno));
		break;
	case UNSET:
	case WAIT:
	case INIT:
		break;
	}
	return supervise(options, port, uevents, NULL);
}
