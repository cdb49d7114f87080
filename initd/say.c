/* SPDX-License-Identifier: Apache-2.0 */
/* The console, the clock, and the one failure path. */
#define _GNU_SOURCE	/* MAP_ANONYMOUS */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "initd.h"

#define PATIENCE_MS	2000	/* for a console that takes no bytes: a message is sent in 1.1 s at 9600 baud */
#define LOOK_MS		20

static int console = STDERR_FILENO;

/* What the console did not take. initd's children count here too. */
struct lost {
	int now;	/* messages since the last one that it took */
	int all;
};

static struct lost only_ours, *lost = &only_ours;

/*
 * PID 1 must not wait for a console: ^S, a pipe that nobody reads, or a program
 * that is stuck in its own write() would stop the guest. So it gets a
 * description of its own, since O_NONBLOCK is shared by all who have the same
 * one: the programs that start with ours would not expect it. What was opened
 * as /dev/console survives a vhangup() of the terminal behind it.
 */
void say_without_waiting(void)
{
	struct lost *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (shared != MAP_FAILED)
		lost = shared;
	console = -1;
}

/* Waits for the first message only that is not taken. */
static bool sent(const char *text, size_t len)
{
	long long until = uptime_us() + (lost->now ? 0 : PATIENCE_MS * 1000LL);
	struct pollfd ready = { .fd = console, .events = POLLOUT };
	ssize_t n;

	for (;;) {
		n = write(console, text, len);
		if (n >= 0) {
			text += n;
			len -= (size_t)n;
		} else if (errno != EAGAIN && errno != EINTR) {
			return false;
		}
		if (!len)
			return true;
		if (uptime_us() >= until)
			return false;
		/* It is ready only if its buffer is nearly empty, but takes a part before. */
		poll(&ready, 1, LOOK_MS);
	}
}

/* One write() a message, so that printk can only come between messages. */
void say(const char *format, ...)
{
	char text[1024] = "initd: ", before[64];
	size_t len = strlen(text), i;
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(text + len, sizeof(text) - len - 1, format, args);
	va_end(args);
	if (n < 0)
		return;
	len += (size_t)n;
	if (len > sizeof(text) - 2)
		len = sizeof(text) - 2;
	/* A name from outside may have an escape sequence or a line of its own. */
	for (i = 0; i < len; i++)
		if ((unsigned char)text[i] < ' ' || text[i] == 0x7f)
			text[i] = '?';
	text[len++] = '\n';

	if (console < 0)	/* a read-only root may have no such node until devtmpfs is there */
		console = open("/dev/console", O_WRONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	if (lost->now) {
		/* The last one may have been cut. */
		n = snprintf(before, sizeof(before), "\ninitd: the console lost %d messages\n", lost->now);
		if (sent(before, (size_t)n))
			lost->now = 0;
	}
	if (lost->now || !sent(text, len)) {
		lost->now++;
		lost->all++;
	}
}

int messages_lost(void)
{
	return lost->all;
}

long long uptime_us(void)
{
	struct timespec now;

	if (clock_gettime(CLOCK_BOOTTIME, &now))
		die("clock_gettime");
	return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

/* The TSC counts from the machine's start, so it has the firmware's time too. */
struct moment moment(void)
{
	return (struct moment){ uptime_us(), __builtin_ia32_rdtsc() };
}

static void (*way_out)(void);

void die_by(void (*leave)(void))
{
	way_out = leave;
}

void die(const char *what)
{
	say("%s: %s", what, strerror(errno));
	if (getpid() == 1 && way_out)
		way_out();
	_exit(1);	/* in a child: leave its parent's buffers and handlers alone */
}
