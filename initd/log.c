/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel's log for a host whose console is quiet: what came since the last
 * call, as records beside the report.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "initd.h"

#define HALF		(32 << 10)	/* bytes that are sent of the first messages, and of the last ones */
#define RECORD		(4 << 10)	/* of a record, about: a cut one is lost whole */

static int kmsg = -1;
static unsigned long long expected;	/* the number of the next message */

void log_from_start(void)
{
	kmsg = kmsg_open();
}

/* What was printed, as "6,339,5140900,-;text" and a NUL each; the length of it. */
static size_t read_all(char **text)
{
	char record[KMSG_MAX + 1];
	size_t len = 0, size = 0, n;
	int i;

	*text = NULL;
	for (i = 0; i < KMSG_COUNT_MAX && kmsg_next(kmsg, record); i++) {
		n = strcspn(record, "\n");	/* the rest are fields for udev */
		record[n++] = '\0';
		if (len + n > size) {
			char *grown = realloc(*text, size = (len + n) * 2);

			if (!grown)
				break;
			*text = grown;
		}
		memcpy(*text + len, record, n);
		len += n;
	}
	return len;
}

/* As the console has it: the time, and the text. */
static void put_line(struct json *j, char *message, unsigned long long us)
{
	char line[KMSG_MAX + 32];
	const char *text = strchr(message, ';');

	snprintf(line, sizeof(line), "[%5llu.%06llu] %s", us / 1000000, us % 1000000, text ? text + 1 : message);
	json_string(j, NULL, line);
}

static void end_record(struct json *j, struct port *port)
{
	json_close(j, ']');
	json_end(j);
	port_more(port, j);
	json_free(j);
}

void report_log(struct port *port)
{
	struct json j = { 0 };
	char *text, *message, *end;
	unsigned long long number, us;
	size_t len, at, n;

	if (kmsg < 0)
		return;
	len = read_all(&text);
	for (at = 0; at < len; at += n) {
		message = text + at;
		n = strlen(message) + 1;
		if (at >= HALF && at + HALF < len)
			continue;
		number = strtoull(message + strcspn(message, ",") + 1, &end, 10);
		us = strtoull(end + 1, NULL, 10);
		if (j.len && (number != expected || j.len > RECORD))
			end_record(&j, port);
		if (!j.len) {
			json_begin(&j, "log");
			json_int(&j, "left_out", (long long)(number - expected));
			json_open(&j, "lines", '[');
		}
		put_line(&j, message, us);
		expected = number + 1;
	}
	if (j.len)
		end_record(&j, port);
	free(text);
}
