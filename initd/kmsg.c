/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel printed between two moments, from /dev/kmsg. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "initd.h"

#define TRIES		100	/* a driver may print faster than this reads */
#define FIRST		4	/* an oops says first what happened */

/* A descriptor for all that the kernel still has; -1 in a kernel without printk. */
int kmsg_open(void)
{
	return open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
}

/* And for what is printed from now on. */
int kmsg_from_now(void)
{
	int fd = kmsg_open();

	if (fd >= 0)
		lseek(fd, 0, SEEK_END);
	return fd;
}

void keep_message(struct messages *messages, const char *text, size_t len)
{
	int at = messages->count;

	if (at == MESSAGES_MAX) {
		at--;
		memmove(messages->text[FIRST], messages->text[FIRST + 1],
			(size_t)(at - FIRST) * sizeof(messages->text[0]));
	} else {
		messages->count++;
	}
	if (len > MESSAGE_MAX)
		len = MESSAGE_MAX;
	memcpy(messages->text[at], text, len);
	messages->text[at][len] = '\0';
}

/*
 * Documentation/ABI/testing/dev-kmsg: "6,339,5140900,-;text", a newline, and
 * lines that begin with a space. The first number is level + 8 * facility; the
 * kernel's own facility is 0. Bytes that cannot be printed are escaped.
 */
static void keep_record(struct messages *messages, const char *record)
{
	char *end;
	long priority = strtol(record, &end, 10);
	const char *text = strchr(end, ';');

	if (text && priority >= 0 && priority < 8)
		keep_message(messages, text + 1, strcspn(text + 1, "\n"));
}

/* The next record; false if there is none yet. */
bool kmsg_next(int fd, char record[KMSG_MAX + 1])
{
	int tries = TRIES;
	ssize_t n;

	/* EPIPE: some were overwritten; the next read gives what is left. */
	do
		n = read(fd, record, KMSG_MAX);
	while (n < 0 && (errno == EPIPE || errno == EINTR) && --tries);
	record[n > 0 ? n : 0] = '\0';
	return n > 0;
}

/* The first and the last of what was printed since; closes the descriptor. */
void kmsg_read(int fd, struct messages *messages)
{
	char record[KMSG_MAX + 1];
	int i;

	if (fd < 0)
		return;
	for (i = 0; i < KMSG_COUNT_MAX && kmsg_next(fd, record); i++)
		keep_record(messages, record);
	close(fd);
}
