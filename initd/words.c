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

static void read_count(long long *count, const char *word, const char *value, long long most)
{
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

/* What comes after the name in a word that begins with it, or NULL. */
static const char *after(const char *word, const char *name)
{
	size_t len = strlen(name);

	return strncmp(word, name, len) ? NULL : word + len;
}

/* The kernel hands no word with a dot to PID 1, so it is read from /proc. */
void read_words(struct words *words)
{
	char *rest = words->line, *word;
	const char *value;

	*words = (struct words){ .then = WAIT, .wait.seconds = WAIT_S };
	if (!read_text(AT_FDCWD, "/proc/cmdline", words->line, sizeof(words->line)))
		die("/proc/cmdline");

	while ((word = next_word(&rest))) {
		if ((value = after(word, "initd.report=")))
			read_report(words, value);
		else if ((value = after(word, "initd.then=")))
			read_then(words, value);
		else if ((value = after(word, "initd.root=")))
			words->root = value;
		else if ((value = after(word, "initd.share=")))
			words->share = value;
		else if ((value = after(word, "initd.wait-cpus=")))
			read_count(&words->wait.cpus, word, value, CPUS_MAX);
		else if ((value = after(word, "initd.wait-cpus-left=")))
			read_count(&words->wait.cpus_left, word, value, CPUS_MAX);
		else if ((value = after(word, "initd.wait-memory=")))
			read_count(&words->wait.memory, word, value, MEMORY_MAX);
		else if ((value = after(word, "initd.wait-seconds=")))
			read_count(&words->wait.seconds, word, value, WAIT_MAX_S);
		else if (after(word, "initd."))
			say("%s: not known; known: initd.report=, initd.then=, "
			    "initd.root=, initd.share=, initd.wait-cpus=, "
			    "initd.wait-cpus-left=, initd.wait-memory=, "
			    "initd.wait-seconds=", word);
	}
}
