/* SPDX-License-Identifier: Apache-2.0 */
/* Orders to PID 1 from outside: signals, one of which is the power button's. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <unistd.h>

#include "initd.h"

/*
 * SIGRTMIN + 4 if the C library keeps 32 and 33; a number here because musl's
 * SIGRTMIN differs. It is the default of CONFIG_ACPI_TINY_POWER_BUTTON_SIGNAL,
 * and systemd powers off on it.
 */
#define POWER_BUTTON	38

/*
 * The others are what the applets of busybox send to PID 1 (init/halt.c):
 * "poweroff", "reboot" and "halt" work in an overlay that has them. SIGINT is
 * Ctrl-Alt-Del, SIGPWR a failing supply.
 */
static const struct {
	int signal;
	struct ending ending;
} orders[] = {
	{ POWER_BUTTON, { "power-button", RB_POWER_OFF } },
	{ SIGINT, { "SIGINT", RB_AUTOBOOT } },
	{ SIGTERM, { "SIGTERM", RB_AUTOBOOT } },
	{ SIGUSR1, { "SIGUSR1", RB_HALT_SYSTEM } },
	{ SIGUSR2, { "SIGUSR2", RB_POWER_OFF } },
	{ SIGPWR, { "SIGPWR", RB_POWER_OFF } },
};

static volatile sig_atomic_t order = -1;	/* the last one, in orders[] */

static void on_signal(int number)
{
	size_t i;

	for (i = 0; i < COUNT(orders); i++)
		if (orders[i].signal == number)
			order = (sig_atomic_t)i;
}

/*
 * Signals are blocked except in ppoll(). That does what a signalfd would do,
 * and works in a kernel without CONFIG_SIGNALFD.
 */
static void hold_signals(void)
{
	struct sigaction action = { .sa_handler = on_signal };
	sigset_t all;
	size_t i;

	sigfillset(&all);
	sigdelset(&all, SIGALRM);	/* port_drain() needs it */
	sigprocmask(SIG_SETMASK, &all, NULL);
	sigaction(SIGCHLD, &action, NULL);	/* it only has to wake ppoll() */
	for (i = 0; i < COUNT(orders); i++)
		sigaction(orders[i].signal, &action, NULL);
	reboot(RB_DISABLE_CAD);		/* Ctrl-Alt-Del: a SIGINT to us instead */
}

/* drivers/acpi/button.c gives it this name, in the FADT or in the namespace. */
static bool is_button(int folder, const char *event)
{
	char path[64], name[64];

	snprintf(path, sizeof(path), "%.20s/device/name", event);
	return read_text(folder, path, name, sizeof(name)) &&
	       !strcmp(name, "Power Button");
}

/*
 * A kernel with CONFIG_ACPI_TINY_POWER_BUTTON sends the signal itself. In an
 * older one, such as 4.12, the button is an input device with a single key, so
 * any event means that it was pressed: let that send the signal. The descriptor
 * stays open as long as initd runs.
 */
static void hear_button(const char *event)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/dev/input/%.20s", event);
	fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0 || fcntl(fd, F_SETOWN, getpid()) || fcntl(fd, F_SETSIG, POWER_BUTTON) ||
	    fcntl(fd, F_SETFL, O_NONBLOCK | O_ASYNC))
		say("power button %s: %s", path, strerror(errno));
}

static void hear_buttons(void)
{
	DIR *folder = opendir("/sys/class/input");
	struct dirent *entry;

	if (!folder)		/* no CONFIG_INPUT: no such button */
		return;
	while ((entry = readdir(folder)))
		if (numbered(entry->d_name, "event") &&
		    is_button(dirfd(folder), entry->d_name))
			hear_button(entry->d_name);
	closedir(folder);
}

void take_orders(void)
{
	hold_signals();
	hear_buttons();
}

/*
 * For a child, before it becomes a program. First the handlers: a SIGTERM that
 * came after fork() must end the child, not set its copy of the order.
 */
void free_signals(void)
{
	sigset_t none;
	size_t i;

	for (i = 0; i < COUNT(orders); i++)
		signal(orders[i].signal, SIG_DFL);
	signal(SIGCHLD, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* An order came that ppoll() has not let through yet. */
bool order_waits(void)
{
	sigset_t pending;
	size_t i;

	sigpending(&pending);
	for (i = 0; i < COUNT(orders); i++)
		if (sigismember(&pending, orders[i].signal) > 0)
			return true;
	return false;
}

/* The last order, or NULL. */
const struct ending *order_given(void)
{
	return order < 0 ? NULL : &orders[order].ending;
}
