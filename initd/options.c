/* SPDX-License-Identifier: Apache-2.0 */
/* initd's options on the kernel's command line: they begin with "initd.". */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "initd.h"

#define WAIT_S		10	/* the default */
#define WAIT_MAX_S	600
#define ROOT_S		30
#define MODULES_S	30	/* the default */
#define MODULES_MAX_S	600
#define CPUS_MAX	65536	/* beyond any kernel's CONFIG_NR_CPUS */
#define MEMORY_MAX	(1LL << 52)	/* what an x86-64 can address */

static const struct {
	const char *name;
	enum then then;
} thens[] = {
	{ "wait", WAIT },
	{ "shell", SHELL_ON_CONSOLE },
	{ "poweroff", POWEROFF },
	{ "reboot", REBOOT },
	{ "halt", HALT },
	{ "init", INIT },
};

/* The next option, quotes removed as the kernel does it (lib/cmdline.c). */
static char *next_option(char **rest)
{
	char *s = *rest + strspn(*rest, " \t\n"), *option = s, *out = s;
	bool quoted = false;

	if (!*s)
		return NULL;
	for (; *s && (quoted || !strchr(" \t\n", *s)); s++)
		if (*s == '"')
			quoted = !quoted;
		else
			*out++ = *s;
	*rest = *s ? s + 1 : s;
	*out = '\0';
	return option;
}

static void read_report(struct options *options, const char *value)
{
	if (*value == '/')
		options->report = value;
	else
		say("initd.report=%.80s: not a path; known: /dev/ttyS3 and the like", value);
}

static bool read_known(enum then *then, const char *value)
{
	size_t i;

	for (i = 0; i < COUNT(thens); i++)
		if (!strcmp(value, thens[i].name)) {
			*then = thens[i].then;
			return true;
		}
	return false;
}

static void read_then(struct options *options, const char *value)
{
	if (read_known(&options->then, value))
		return;
	if (*value == '/') {
		options->then = PROGRAM;
		options->program = value;
		return;
	}
	say("initd.then=%.80s: not known; known: init, wait, shell, poweroff, reboot, halt, "
	    "/PROGRAM; using wait", value);
	options->then = WAIT;
}

static void read_onfail(struct options *options, const char *value)
{
	if (read_known(&options->onfail, value) && options->onfail != INIT)
		return;
	say("initd.onfail=%.80s: not known; known: poweroff, shell, reboot, halt, wait; "
	    "using poweroff", value);
	options->onfail = POWEROFF;
}

static void read_init(struct options *options, const char *value)
{
	if (*value == '/' && strlen(value) < INIT_MAX)
		options->init = value;
	else
		say("initd.init=%.80s: not a path of 1 to 255 bytes; using %s", value, options->init);
}

static void read_report_after(struct options *options, const char *value)
{
	options->report_after_root = !strcmp(value, "root");
	if (!options->report_after_root)
		say("initd.report-after=%.80s: not known; known: root; ignored", value);
}

static void read_report_log(struct options *options, const char *value)
{
	options->report_log = !strcmp(value, "kernel");
	if (!options->report_log)
		say("initd.report-log=%.80s: not known; known: kernel; ignored", value);
}

static void read_count(long long *count, const char *option, const char *value, long long most)
{
	long long number;
	char *end;

	errno = 0;
	number = strtoll(value, &end, 10);
	/* strtoll() would take a sign and spaces. */
	if (!isdigit((unsigned char)*value) || *end || errno ||
	    number < 1 || number > most)
		say("%.80s: not a number from 1 to %lld; ignored", option, most);
	else
		*count = number;
}

/* What initd.onfail= says is done in place of initd.then=. */
void without_root(struct options *options)
{
	options->root = NULL;
	options->then = options->onfail;
	options->then_why = "initd.onfail";
}

/* The rest of an option that begins with name, or NULL. */
static const char *after(const char *option, const char *name)
{
	size_t len = strlen(name);

	return strncmp(option, name, len) ? NULL : option + len;
}

static void not_known(const char *option, bool first)
{
	say("%.80s: not known; ignored", option);
	if (first)
		say("known: initd.report=, initd.then=, initd.root=, initd.init=, initd.root-seconds=, "
		    "initd.onfail=, initd.report-after=, initd.report-log=, initd.share=, initd.wait-cpus=, "
		    "initd.wait-cpus-left=, initd.wait-memory=, initd.wait-seconds=, initd.modules=, "
		    "initd.modules-seconds=, initd.drivers=");
}

/* The kernel passes no option with a dot to PID 1, so they are read from /proc. */
void read_options(struct options *options)
{
	char *rest = options->line, *option;
	const char *value;
	int unknown = 0;

	*options = (struct options){ .then = UNSET, .then_why = "initd.then", .init = "/sbin/init",
				     .onfail = POWEROFF, .root_seconds = ROOT_S,
				     .wait.seconds = WAIT_S,
				     .modules_seconds = MODULES_S };
	if (!read_text(AT_FDCWD, "/proc/cmdline", options->line, sizeof(options->line)))
		die("/proc/cmdline");

	while ((option = next_option(&rest))) {
		if ((value = after(option, "initd.report=")))
			read_report(options, value);
		else if ((value = after(option, "initd.then=")))
			read_then(options, value);
		else if ((value = after(option, "initd.root=")))
			options->root = value;
		else if ((value = after(option, "initd.init=")))
			read_init(options, value);
		else if ((value = after(option, "initd.onfail=")))
			read_onfail(options, value);
		else if ((value = after(option, "initd.root-seconds=")))
			read_count(&options->root_seconds, option, value, WAIT_MAX_S);
		else if ((value = after(option, "initd.report-after=")))
			read_report_after(options, value);
		else if ((value = after(option, "initd.report-log=")))
			read_report_log(options, value);
		else if (!strcmp(option, "ro") || !strcmp(option, "rw"))
			options->read_only = option[1] == 'o';
		else if ((value = after(option, "initd.share=")))
			options->share = value;
		else if ((value = after(option, "initd.wait-cpus=")))
			read_count(&options->wait.cpus, option, value, CPUS_MAX);
		else if ((value = after(option, "initd.wait-cpus-left=")))
			read_count(&options->wait.cpus_left, option, value, CPUS_MAX);
		else if ((value = after(option, "initd.wait-memory=")))
			read_count(&options->wait.memory, option, value, MEMORY_MAX);
		else if ((value = after(option, "initd.wait-seconds=")))
			read_count(&options->wait.seconds, option, value, WAIT_MAX_S);
		else if ((value = after(option, "initd.modules=")))
			options->modules = value;
		else if ((value = after(option, "initd.drivers=")))
			options->drivers = value;
		else if ((value = after(option, "initd.modules-seconds=")))
			read_count(&options->modules_seconds, option, value, MODULES_MAX_S);
		else if (after(option, "initd."))
			not_known(option, !unknown++);
	}
	if (options->then == UNSET)
		options->then = options->root ? INIT : WAIT;
	if (options->then == INIT && !options->root) {
		say("initd.then=init: no initd.root= names a root; using initd.onfail=");
		without_root(options);
	}
}
