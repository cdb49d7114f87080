/* SPDX-License-Identifier: Apache-2.0 */
/*
 * initd.wait-cpus= and initd.wait-memory=: report to the host that CPUs or
 * memory may be plugged in now, and delay the report until they are in use;
 * with initd.wait-cpus-left=, until CPUs are gone again. The host may do
 * nothing, and a CPU may not start or go: the report is written in any case.
 */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "initd.h"

#define LOOK_MS		100	/* between two looks at everything, at first */
#define LOOK_MAX_MS	1000

/* What is in use; -1 if the kernel does not say. */
struct in_use {
	long long cpus;
	long long memory;	/* bytes */
};

/*
 * How many CPUs the kernel's list names: "0-3,8" is five. At least the CPU
 * that runs this is online.
 */
static long long cpus_online(void)
{
	char text[TEXT_MAX], *s, *end;
	long long count = 0, first, last;

	if (!read_text(AT_FDCWD, "/sys/devices/system/cpu/online",
		       text, sizeof(text)))
		return -1;
	for (s = text; first = strtoll(s, &end, 10), end != s; s = end + (*end == ',')) {
		last = *end == '-' ? strtoll(end + 1, &end, 10) : first;
		count += last - first + 1;
	}
	return count > 0 ? count : -1;
}

static struct in_use look(void)
{
	struct in_use now = { .cpus = cpus_online(), .memory = -1 };
	struct blocks blocks;

	if (count_blocks(&blocks))
		now.memory = blocks.online * blocks.bytes;
	return now;
}

/* 0: not requested. Else -1, which is "not known", is never enough. */
static bool enough(const struct wait *wait, const struct in_use *now)
{
	return (!wait->cpus || now->cpus >= wait->cpus) &&
	       (!wait->memory || now->memory >= wait->memory);
}

static long long mib(long long bytes)
{
	return bytes < 0 ? -1 : (bytes + (1 << 20) - 1) >> 20;
}

/* "8 CPUs and 3072 MiB", or "2 of 8 CPUs, 1024 of 3072 MiB". */
static void put_amount(char *text, size_t size, long long there,
		       long long wanted, const char *unit, bool done)
{
	size_t len = strlen(text);
	const char *comma = !len ? "" : done ? " and " : ", ";

	if (!wanted)
		return;
	if (done)
		snprintf(text + len, size - len, "%s%lld %s", comma, there, unit);
	else if (there < 0)
		snprintf(text + len, size - len, "%sunknown of %lld %s",
			 comma, wanted, unit);
	else
		snprintf(text + len, size - len, "%s%lld of %lld %s",
			 comma, there, wanted, unit);
}

static void say_end(const struct wait *wait, const struct in_use *now, long long us)
{
	bool done = enough(wait, now);
	char text[160] = "";

	put_amount(text, sizeof(text), now->cpus, wait->cpus, "CPUs", done);
	put_amount(text, sizeof(text), mib(now->memory), mib(wait->memory), "MiB", done);
	if (done)
		say("%s after %.1f s", text, (double)us / 1e6);
	else
		say("gave up after %.0f s: %s", (double)us / 1e6, text);
}

/* For the host: plug in, or unplug again, now. */
static void send(struct port *port, const char *record, const struct in_use *now)
{
	struct json j = { 0 };

	json_begin(&j, record);
	put_bytes(&j, "cpus", now->cpus);
	put_bytes(&j, "memory_bytes", now->memory);
	json_end(&j);
	port_more(port, &j);	/* not to the file, which is not open yet */
	json_free(&j);
}

/*
 * Uevents make it fast, but a kernel may have none, and a CPU or a block may
 * be busy when its uevent comes: so everything is checked after each pause.
 * What cannot be brought online gives a message each time, hence longer pauses.
 *
 * An order ends it: nobody plugs into a guest that is to end. Signals stay
 * blocked, and supervise() handles it. True when all of it is in use.
 */
bool await_plugged(const struct wait *wait, struct port *port, int uevents)
{
	struct pollfd ready = { .fd = uevents, .events = POLLIN };
	struct port nowhere = CLOSED_PORT;	/* no event comes before "begin" */
	long long start = uptime_us(), until = start + wait->seconds * 1000000, left_ms;
	struct in_use before, now = look();
	int pause_ms = LOOK_MS;

	send(port, "ready", &now);
	while (!enough(wait, &now) && !order_waits()) {
		left_ms = (until - uptime_us() + 999) / 1000;
		if (left_ms <= 0)
			break;
		poll(&ready, 1, left_ms < pause_ms ? (int)left_ms : pause_ms);
		if (ready.revents)
			hotplug_handle(uevents, &nowhere, until);
		else
			hotplug_all_online(until);

		before = now;
		now = look();
		if (now.cpus != before.cpus || now.memory != before.memory)
			pause_ms = LOOK_MS;
		else if (!ready.revents && pause_ms < LOOK_MAX_MS)
			pause_ms *= 2;
	}
	say_end(wait, &now, uptime_us() - start);
	return enough(wait, &now);
}

/* False if the number of CPUs is not known. */
static bool gone(const struct wait *wait, const struct in_use *now)
{
	return now->cpus >= 0 && now->cpus <= wait->cpus_left;
}

/* The kernel takes a CPU offline by itself, so there is nothing to do but wait. */
void await_unplugged(const struct wait *wait, struct port *port, int uevents)
{
	struct pollfd ready = { .fd = uevents, .events = POLLIN };
	struct port nowhere = CLOSED_PORT;
	long long start = uptime_us(), until = start + wait->seconds * 1000000;
	struct in_use now = look();
	char count[24] = "unknown";

	send(port, "in-use", &now);
	while (!gone(wait, &now) && uptime_us() < until && !order_waits()) {
		poll(&ready, 1, LOOK_MS);
		hotplug_handle(uevents, &nowhere, until);
		now = look();
	}
	if (now.cpus >= 0)
		snprintf(count, sizeof(count), "%lld", now.cpus);
	say("%s after %.1f s: %s CPUs, %lld are to be left",
	    gone(wait, &now) ? "done" : "gave up",
	    (double)(uptime_us() - start) / 1e6, count, wait->cpus_left);
}
