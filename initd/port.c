/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the report goes: the host's port, and a file for programs in the guest.
 * No failure here may stop PID 1 or hang it: the console still has something to
 * show.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "initd.h"

#define FOLDER		"/run/initd"
#define PATIENCE_S	5	/* for a port that accepts no bytes */

static bool write_whole(int fd, const char *text, size_t len)
{
	struct pollfd ready = { .fd = fd, .events = POLLOUT };
	ssize_t n;

	while (len) {
		n = write(fd, text, len);
		if (n > 0) {
			text += n;
			len -= (size_t)n;
		} else if (n < 0 && errno == EINTR) {
			continue;
		} else if (n < 0 && errno == EAGAIN) {
			if (poll(&ready, 1, PATIENCE_S * 1000) > 0)
				continue;
			errno = ETIMEDOUT;
			return false;
		} else {
			return false;
		}
	}
	return true;
}

/* Bytes must arrive as they were written: no echo, no CR before each LF. */
static bool make_raw(int fd)
{
	struct termios t;

	if (tcgetattr(fd, &t))
		return errno == ENOTTY;	/* not a tty: nothing to do */
	cfmakeraw(&t);
	t.c_cflag |= CLOCAL;	/* no modem, so no carrier to wait for */
	/*
	 * Faster than the default of 9600. An emulated port sends at once
	 * anyway, but the driver computes its waits from this number.
	 */
	cfsetspeed(&t, B115200);
	return !tcsetattr(fd, TCSANOW, &t);
}

/* A second call changes nothing. */
void port_open(struct port *port, const char *device)
{
	struct stat facts;

	if (!device || port->device)
		return;
	port->device = device;

	/*
	 * O_NONBLOCK: neither a missing carrier nor a reader that is gone may
	 * block us. No O_CREAT: a wrong name must not become a file.
	 */
	port->tty = open(device, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	if (port->tty < 0) {
		say("report port %.80s: %s", device, strerror(errno));
		return;
	}
	if (fstat(port->tty, &facts) || !S_ISCHR(facts.st_mode)) {
		say("report port %.80s: not a character device", device);
		close(port->tty);
		port->tty = -1;
		return;
	}
	if (!make_raw(port->tty))
		say("report port %.80s: raw mode: %s", device, strerror(errno));
	/*
	 * OVMF uses each serial port as a console: its escape sequences and
	 * the EFI stub's messages are on this port already, perhaps without an
	 * end of line. The first record must have a line of its own.
	 */
	write_whole(port->tty, "\n", 1);
}

static void write_tty(struct port *port, const struct json *j)
{
	if (port->tty < 0 || write_whole(port->tty, j->text, j->len))
		return;
	/* A ttyS with a node but without a UART gives EIO here. */
	say("report port %.80s: write: %s", port->device, strerror(errno));
	close(port->tty);
	port->tty = -1;
}

/* An open file keeps its file system busy. */
void port_close_file(struct port *port)
{
	if (port->file >= 0)
		close(port->file);
	port->file = -1;
}

/* A full /run, for example. The port has the rest. */
static void give_up_file(struct port *port)
{
	say("%s/report.jsonl: %s; it ends here", FOLDER, strerror(errno));
	port_close_file(port);
}

/* The report: the file appears whole or not at all. */
void port_first(struct port *port, const struct json *j)
{
	write_tty(port, j);

	mkdir(FOLDER, 0755);
	port->file = open(FOLDER "/report.jsonl.new",
			  O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644);
	if (port->file < 0 || !write_whole(port->file, j->text, j->len) ||
	    rename(FOLDER "/report.jsonl.new", FOLDER "/report.jsonl")) {
		give_up_file(port);
		unlink(FOLDER "/report.jsonl.new");
	}
}

/* A record beside the report: one line, to the port and the file if open. */
void port_more(struct port *port, const struct json *j)
{
	write_tty(port, j);
	if (port->file >= 0 && !write_whole(port->file, j->text, j->len))
		give_up_file(port);
}

static void on_alarm(int number)
{
	(void)number;
}

/*
 * Power-off drops what the UART has not sent yet. tcdrain() has no time-out
 * of its own, hence the alarm; no SA_RESTART, so that it ends the wait.
 */
void port_drain(struct port *port)
{
	struct sigaction action = { .sa_handler = on_alarm };

	if (port->tty < 0)
		return;
	sigaction(SIGALRM, &action, NULL);
	alarm(PATIENCE_S);
	if (tcdrain(port->tty) && errno != ENOTTY)
		say("report port %.80s: drain: %s", port->device, strerror(errno));
	alarm(0);
}
