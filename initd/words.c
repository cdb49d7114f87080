/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel's command line asks of initd: the words that begin with "initd.". */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "initd.h"

#define WAIT_S		10	/* if the words do not say */
#define WAIT_MAX_S	600
#define CPUS_MAX	65536	/* beyond any kernel's CONFIG_NR_CPUS */
#define MEMORY_MAX	(1LL << 52)	/* what an x86-64 can address */

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
void read_words(struct words *words)
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
