/* SPDX-License-Identifier: Apache-2.0 */
/*
 * initd: PID 1 of a minguest guest. It mounts, reads its options from the
 * kernel's command line, reports what the guest has, and then does what
 * initd.then= requests.
 */
#include <unistd.h>

#include "initd.h"

static void wait_if_requested(const struct options *options, struct port *port, int uevents)
{
	if (!options->wait.cpus && !options->wait.memory)
		return;
	port_open(port, options->report);
	if (await_plugged(&options->wait, port, uevents) && options->wait.cpus_left)
		await_unplugged(&options->wait, port, uevents);
}

static void send_report(struct port *port, const char *device, long long started_us)
{
	struct json report = { 0 };

	report_all(&report, started_us);
	port_open(port, device);
	port_first(port, &report);
	say("%s: %d records, %zu bytes, to %s", INITD_VERSION, report.records,
	    report.len, port->tty < 0 ? "no port" : device);
	json_free(&report);
}

int main(int argc, char **argv)
{
	struct port port = CLOSED_PORT;
	long long started_us;
	struct options options;
	struct ending ending;
	int uevents;

	die_by(shut_down_failed);
	started_us = uptime_us();
	if (getpid() != 1)
		return as_program(argc, argv, started_us);

	open_console();
	mount_filesystems();
	take_orders();
	read_options(&options);
	/* Listen first: what is plugged in meanwhile waits in the socket. */
	uevents = hotplug_listen();
	hotplug_all_online(NO_HURRY);
	wait_if_requested(&options, &port, uevents);
	send_report(&port, options.report, started_us);
	ending = do_as_requested(&options, &port, uevents);
	shut_down(&port, &ending);
}
