/* SPDX-License-Identifier: Apache-2.0 */
/*
 * initd: PID 1 of a minguest guest. It mounts, reads its words from the
 * kernel's command line, reports what the guest is, and then does as asked.
 */
#define _GNU_SOURCE	/* ppoll */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "initd.h"

#define SHELL "/bin/sh"

#define WAIT_S		10	/* if the words do not say */
#define WAIT_MAX_S	600
#define CPUS_MAX	65536	/* beyond any kernel's CONFIG_NR_CPUS */
#define MEMORY_MAX	(1LL << 52)	/* what an x86-64 can address */

enum then { WAIT, SHELL_ON_CONSOLE, PROGRAM, POWEROFF, REBOOT, HALT };

struct words {
	char line[TEXT_MAX];	/* the command line, cut into words in place */
	const char *report;	/* initd.report=, a device, or NULL */
	enum then then;		/* initd.then= */
	const char *program;
	const char *root;	/* initd.root=, a 9p share, or NULL */
	const char *share;	/* initd.share=, likewise */
	struct wait wait;	/* initd.wait-...= */
};

static const struct {
	const char *word;
	enum then then;
} thens[] = {
	{ "wait", WAIT },
	{ "shell", SHELL_ON_CONSOLE },
	{ "poweroff", POWEROFF },
	{ "reboot", REBOOT },
	{ "halt", HALT },
};

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

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
		return;		/* no console, and nobody else to tell */
}

long long uptime_us(void)
{
	struct timespec now;

	if (clock_gettime(CLOCK_BOOTTIME, &now))
		die("clock_gettime");
	return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

void die(const char *what)
{
	static const struct ending failed = { "error", RB_POWER_OFF };
	struct port port = CLOSED_PORT;

	say("%s: %s", what, strerror(errno));
	if (getpid() != 1)
		_exit(1);	/* a child of ours: not its parent's buffers and handlers */
	shut_down(&port, &failed);
}

/* The next word, quotes removed as the kernel does it (lib/cmdline.c). */
static char *next_word(char **rest)
{
	char *s = *rest + strspn(*rest, " \t\n"), *word = s, *out = s;
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
	return word;
}

static void read_report(struct words *words, const char *value)
{
	if (*value == '/')
		words->report = value;
	else
		say("initd.report=%s: not a path; known: /dev/ttyS3 and the like", value);
}

static void read_then(struct words *words, const char *value)
{
	size_t i;

	for (i = 0; i < COUNT(thens); i++)
		if (!strcmp(value, thens[i].word)) {
			words->then = thens[i].then;
			return;
		}
	if (*value == '/') {
		words->then = PROGRAM;
		words->program = value;
		return;
	}
	say("initd.then=%s: not known; known: wait, shell, poweroff, reboot, halt, "
	    "/PROGRAM; taking wait", value);
	words->then = WAIT;
}

static void read_count(long long *count, const char *word, size_t name, long long most)
{
	const char *value = word + name;
	long long number;
	char *end;

	errno = 0;
	number = strtoll(value, &end, 10);
	/* strtoll() would take a sign and spaces. */
	if (!isdigit((unsigned char)*value) || *end || errno ||
	    number < 1 || number > most)
		say("%s: not a number from 1 to %lld; ignored", word, most);
	else
		*count = number;
}

/* The kernel hands no word with a dot to PID 1, so it is read from /proc. */
static void read_words(struct words *words)
{
	char *rest = words->line, *word;

	*words = (struct words){ .then = WAIT, .wait.seconds = WAIT_S };
	if (!read_text(AT_FDCWD, "/proc/cmdline", words->line, sizeof(words->line)))
		die("/proc/cmdline");

	while ((word = next_word(&rest))) {
		if (!strncmp(word, "initd.report=", 13))
			read_report(words, word + 13);
		else if (!strncmp(word, "initd.then=", 11))
			read_then(words, word + 11);
		else if (!strncmp(word, "initd.root=", 11))
			words->root = word + 11;
		else if (!strncmp(word, "initd.share=", 12))
			words->share = word + 12;
		else if (!strncmp(word, "initd.wait-cpus=", 16))
			read_count(&words->wait.cpus, word, 16, CPUS_MAX);
		else if (!strncmp(word, "initd.wait-cpus-left=", 21))
			read_count(&words->wait.cpus_left, word, 21, CPUS_MAX);
		else if (!strncmp(word, "initd.wait-memory=", 18))
			read_count(&words->wait.memory, word, 18, MEMORY_MAX);
		else if (!strncmp(word, "initd.wait-seconds=", 19))
			read_count(&words->wait.seconds, word, 19, WAIT_MAX_S);
		else if (!strncmp(word, "initd.", 6))
			say("%s: not known; known: initd.report=, initd.then=, "
			    "initd.root=, initd.share=, initd.wait-cpus=, "
			    "initd.wait-cpus-left=, initd.wait-memory=, "
			    "initd.wait-seconds=", word);
	}
}

static void wait_if_asked(const struct words *words, struct port *port, int uevents)
{
	if (!words->wait.cpus && !words->wait.memory)
		return;
	port_open(port, words->report);
	if (await_plugged(&words->wait, port, uevents) && words->wait.cpus_left)
		await_unplugged(&words->wait, port, uevents);
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

/*
 * /dev/console cannot be a controlling terminal; the tty behind it can. The
 * last name in "active" is the one that /dev/console stands for.
 */
static void take_terminal(void)
{
	char active[256], path[300] = "/dev/console", *name;
	int fd;

	if (read_text(AT_FDCWD, "/sys/class/tty/console/active",
		      active, sizeof(active)) && *active) {
		name = strrchr(active, ' ');
		snprintf(path, sizeof(path), "/dev/%s", name ? name + 1 : active);
	}
	setsid();
	fd = open(path, O_RDWR);
	if (fd < 0)
		return;		/* then with what PID 1 has */
	ioctl(fd, TIOCSCTTY, 1);
	dup2(fd, STDIN_FILENO);
	dup2(fd, STDOUT_FILENO);
	dup2(fd, STDERR_FILENO);
	if (fd > STDERR_FILENO)
		close(fd);
}

static pid_t start(const char *path, const struct words *words)
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (pid)
		return pid;

	take_terminal();
	if (words->root)
		enter_root(words->root, words->share);
	free_signals();
	setenv("PATH", "/bin:/sbin:/usr/bin:/usr/sbin", 0);
	execl(path, path, (char *)NULL);
	say("%s: %s", path, strerror(errno));
	_exit(127);
}

/* What the program on the console did; the power goes off after it. */
static void report_exit(struct port *port, const char *program, int status)
{
	struct json j = { 0 };

	json_begin(&j, "exit");
	json_seconds(&j, "uptime", uptime_us());
	json_string(&j, "program", program);
	if (WIFEXITED(status))
		json_int(&j, "status", WEXITSTATUS(status));
	else
		json_null(&j, "status");
	if (WIFSIGNALED(status))
		json_int(&j, "signal", WTERMSIG(status));
	else
		json_null(&j, "signal");
	json_end(&j);
	port_more(port, &j);
	json_free(&j);
}

/* Reaps whatever has ended; true if the program was among it. */
static bool reap(pid_t program, int *program_status)
{
	bool ended = false;
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		if (pid == program) {
			*program_status = status;
			ended = true;
		}
	return ended;
}

/* Until the program ends, if there is one, or an order comes. */
static struct ending supervise(const struct words *words, struct port *port, int uevents,
			       const char *path)
{
	struct pollfd ready = { .fd = uevents, .events = POLLIN };
	pid_t program = path ? start(path, words) : 0;
	sigset_t none;
	int status = 0;

	sigemptyset(&none);
	for (;;) {
		if (ppoll(&ready, 1, NULL, &none) < 0 && errno != EINTR)
			die("ppoll");
		if (ready.revents)
			hotplug_handle(uevents, port, NO_HURRY);
		if (reap(program, &status)) {
			report_exit(port, path, status);
			return (struct ending){ "exit", RB_POWER_OFF };
		}
		if (!order_given())
			continue;
		if (words->then == SHELL_ON_CONSOLE && program)
			kill(program, SIGHUP);	/* interactive, it ignores SIGTERM */
		return *order_given();
	}
}

static struct ending do_as_asked(const struct words *words, struct port *port, int uevents)
{
	switch (words->then) {
	case POWEROFF:
		return (struct ending){ "initd.then", RB_POWER_OFF };
	case REBOOT:
		return (struct ending){ "initd.then", RB_AUTOBOOT };
	case HALT:
		return (struct ending){ "initd.then", RB_HALT_SYSTEM };
	case PROGRAM:
		return supervise(words, port, uevents, words->program);
	case SHELL_ON_CONSOLE:
		if (words->root || !access(SHELL, X_OK))
			return supervise(words, port, uevents, SHELL);
		say("initd.then=shell: %s: %s; waiting instead", SHELL, strerror(errno));
		break;
	case WAIT:
		break;
	}
	return supervise(words, port, uevents, NULL);
}

static int print_report(long long started_us)
{
	struct json report = { 0 };

	report_all(&report, started_us);
	if (fwrite(report.text, 1, report.len, stdout) != report.len || fflush(stdout))
		die("write");
	json_free(&report);
	return 0;
}

/* Not PID 1: an ordinary program, which mounts nothing and changes nothing. */
static int as_program(int argc, char **argv, long long started_us)
{
	static const char usage[] =
		"usage: initd --report | --help | --version\n"
		"\n"
		"As PID 1 initd starts a guest. As a program it only looks:\n"
		"  --report   print the report of this machine, as JSON lines\n"
		"\n"
		"Words on the guest kernel's command line:\n"
		"  initd.report=DEVICE   where the report goes, e.g. /dev/ttyS3\n"
		"  initd.then=WHAT       then: wait (the default), shell, poweroff,\n"
		"                        reboot, halt, or a program's /PATH\n"
		"  initd.root=TAG        the root of that program or shell: a 9p share\n"
		"                        of the host's, read-only\n"
		"  initd.share=TAG       its /run/share: another one, writable\n"
		"Before the report, wait until as much is in use:\n"
		"  initd.wait-cpus=N         so many CPUs\n"
		"  initd.wait-cpus-left=N    then no more CPUs than that\n"
		"  initd.wait-memory=BYTES   so much memory, in whole blocks\n"
		"  initd.wait-seconds=S      but no longer than that (1 to 600; 10)\n";

	if (argc == 2 && !strcmp(argv[1], "--report"))
		return print_report(started_us);
	if (argc == 2 && !strcmp(argv[1], "--version"))
		return puts("initd " INITD_VERSION) < 0;
	if (argc == 2 && !strcmp(argv[1], "--help"))
		return fputs(usage, stdout) < 0;
	fputs(usage, stderr);
	return 2;
}

int main(int argc, char **argv)
{
	long long started_us = uptime_us();
	struct words words;
	struct port port = CLOSED_PORT;
	struct ending ending;
	int uevents;

	if (getpid() != 1)
		return as_program(argc, argv, started_us);

	open_console();
	mount_filesystems();
	take_orders();
	read_words(&words);
	/* Listen first: what is plugged in meanwhile waits in the socket. */
	uevents = hotplug_listen();
	hotplug_all_online(NO_HURRY);
	wait_if_asked(&words, &port, uevents);
	send_report(&port, words.report, started_us);
	ending = do_as_asked(&words, &port, uevents);
	shut_down(&port, &ending);
}
