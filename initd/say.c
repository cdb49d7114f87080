/* SPDX-License-Identifier: Apache-2.0 */
/* The console, the clock, and the one failure path. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "initd.h"

/* One write() a message, so that printk can only come between messages. */
void say(const char *format, ...)
{
	char text[1024] = "initd: ";
	size_t len = strlen(text);
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
	text[len++] = '\n';
	if (write(STDERR_FILENO, text, len) < 0)
		return;		/* no console, and no other way to report it */
}

long long uptime_us(void)
{
	struct timespec now;

	if (clock_gettime(CLOCK_BOOTTIME, &now))
		die("clock_gettime");
	return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
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
