/* SPDX-License-Identifier: Apache-2.0 */
/*
 * initd: PID 1 of a minguest guest. It mounts, reads its options from the
 * kernel's command line, reports what the guest has, and then does what
 * initd.then= requests.
 */
#include <string.h>
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

static void send_report(struct port *port, const struct options *options,
			const struct moment *started, const struct root *root)
{
	struct json report = { 0 };

	report_all(&report, started, root, options->root);
	port_open(port, options->report);
	port_first(port, &report);
	say("%s: %d records, %zu bytes, to %s", INITD_VERSION, report.records,
	    report.len, port->tty < 0 ? "no port" : options->report);
	json_free(&report);
}

static void send_root(struct port *port, const struct options *options, const struct root *root)
{
	struct json j = { 0 };

	report_root(&j, root, options->root);
	port_more(port, &j);
	json_free(&j);
}

/* The report comes first, or after the root was looked for, as requested. */
static struct root *report_and_root(struct options *options, struct port *port, int uevents,
				    const struct moment *started)
{
	struct port nowhere = CLOSED_PORT;	/* no event comes before "begin" */
	struct root *root = NULL;

	if (options->root && options->report_after_root)
		root = find_root(options, &nowhere, uevents, "root");
	send_report(port, options, started, root);
	if (options->root && !root) {
		root = find_root(options, port, uevents, "root");
		send_root(port, options, root);
	}
	if (root && strcmp(root->result, "found"))
		without_root(options);
	return root;
}

int main(int argc, char **argv)
{
	struct port port = CLOSED_PORT;
	struct moment started;
	struct options options;
	struct ending ending;
	struct root *root;
	int uevents;

	die_by(shut_down_failed);
	started = moment();
	if (getpid() != 1)
		return as_program(argc, argv, &started);

	open_console();
	say_without_waiting();
	mount_filesystems();
	take_orders();
	read_options(&options);
	if (options.report_log)
		log_from_start();
	/* Listen first: what is plugged in meanwhile waits in the socket. */
	uevents = hotplug_listen();
	hotplug_all_online(NO_HURRY);
	mount_drivers(&options, uevents);
	load_modules(&options);
	wait_if_requested(&options, &port, uevents);
	root = report_and_root(&options, &port, uevents, &started);
	report_log(&port);
	if (options.then == INIT && !order_waits())
		hand_over(root, &port, uevents, argv);
	ending = do_as_requested(&options, &port, uevents);
	shut_down(&port, &ending);
}
