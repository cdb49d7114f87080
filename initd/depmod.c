/* SPDX-License-Identifier: Apache-2.0 */
/* What depmod wrote to /lib/modules/RELEASE: which module needs which, and which device needs it. */
#define _GNU_SOURCE	/* asprintf */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "initd.h"

#define MODULES		"/lib/modules/"
#define LIST_MAX	(16 << 20)	/* a distribution's modules.alias has 1.5 MB */

/* "extra/a/my-card.ko.xz" is my_card. False if that is longer than the kernel's names. */
bool module_name(char name[MODULE_NAME], const char *path)
{
	const char *base = strrchr(path, '/'), *suffix;
	size_t len, i;

	base = base ? base + 1 : path;
	suffix = strstr(base, ".ko");
	len = suffix ? (size_t)(suffix - base) : strlen(base);
	if (!len || len >= MODULE_NAME)
		return false;
	for (i = 0; i < len; i++)
		name[i] = base[i] == '-' ? '_' : base[i];
	name[len] = '\0';
	return true;
}

/* Where the running kernel's modules are. */
static void in_folder(char path[PATH_MAX], const char *file)
{
	struct utsname kernel;

	if (uname(&kernel))
		die("uname");
	snprintf(path, PATH_MAX, "%s" MODULES "%s/%s", access(DRIVERS MODULES, F_OK) ? "" : DRIVERS,
		 kernel.release, file);
}

/* A path of modules.dep: relative to that folder, or not. */
void module_path(char path[PATH_MAX], const char *file)
{
	if (*file == '/')
		snprintf(path, PATH_MAX, "%s", file);
	else
		in_folder(path, file);
}

/* NULL if it is not there; or, with a message, if it cannot be read or is too large. */
static FILE *open_list(const char *file)
{
	char path[PATH_MAX];
	struct stat facts;
	FILE *list;

	in_folder(path, file);
	list = fopen(path, "re");
	if (!list && errno != ENOENT)
		say("%s: %s", path, strerror(errno));
	if (!list || (!fstat(fileno(list), &facts) && S_ISREG(facts.st_mode) &&
		      facts.st_size <= LIST_MAX))
		return list;
	say("%s: not a file of at most %d MiB; not used", path, LIST_MAX >> 20);
	fclose(list);
	return NULL;
}

bool have_aliases(void)
{
	FILE *list = open_list("modules.alias");

	if (list)
		fclose(list);
	return list;
}

/* Whether these are modules for other kernels only; `others` gets their releases. */
bool only_others(char *others, size_t size)
{
	char own[PATH_MAX];
	struct stat facts;
	struct dirent *entry;
	size_t len = 0;
	DIR *folder;

	in_folder(own, "");
	folder = stat(own, &facts) ? opendir(MODULES) : NULL;
	if (!folder)
		return false;
	while (len < size && (entry = readdir(folder)))
		if (entry->d_name[0] != '.')
			len += (size_t)snprintf(others + len, size - len, "%s%s",
						len ? ", " : "", entry->d_name);
	closedir(folder);
	return len;
}

/*
 * The module's row of modules.dep, "extra/a/x.ko: extra/a/y.ko extra/b/z.ko",
 * for the caller to free; NULL if there is none.
 */
char *dependencies(const char *wanted)
{
	FILE *list = open_list("modules.dep");
	char *line = NULL, *found = NULL, *colon;
	char name[MODULE_NAME];
	size_t size = 0;

	while (list && !found && getline(&line, &size, list) > 0) {
		line[strcspn(line, "\n")] = '\0';
		colon = strchr(line, ':');
		if (!colon)
			continue;
		*colon = '\0';
		if (module_name(name, line) && !strcmp(name, wanted)) {
			*colon = ':';
			found = strdup(line);
			if (!found)
				die("memory for modules.dep");
		}
	}
	free(line);
	if (list)
		fclose(list);
	return found;
}

/* Whether c is in the set whose "[" is before *pattern, such as "[0-9A-F]"; moves on to what follows. */
static bool in_set(const char **pattern, char c)
{
	const char *s = *pattern;
	bool found = false;

	for (; *s && *s != ']'; s++)
		if (s[1] == '-' && s[2] && s[2] != ']') {
			found |= s[0] <= c && c <= s[2];
			s += 2;
		} else {
			found |= *s == c;
		}
	*pattern = *s ? s + 1 : s;
	return found;
}

/*
 * fnmatch() would bring musl's tables of Unicode, 16 KB. The kernel writes only
 * "*", "?" and sets (scripts/mod/file2alias.c). Only the last "*" is tried
 * again, so the time is at most the product of both lengths.
 */
static bool matches(const char *pattern, const char *text)
{
	const char *star = NULL, *from = NULL, *next;

	while (*text || *pattern == '*') {
		next = pattern + 1;
		if (*pattern == '*') {
			star = pattern = next;
			from = text;
		} else if (*pattern == '[' ? in_set(&next, *text) :
			   *pattern && (*pattern == '?' || *pattern == *text)) {
			pattern = next;
			text++;
		} else if (star) {
			pattern = star;
			text = ++from;
		} else {
			return false;
		}
	}
	return !*pattern;
}

/* Each module whose pattern matches: "alias pci:v00001234d*sv*sd*bc*sc*i* my_card". */
void each_alias(const char *modalias, void (*found)(const char *module))
{
	FILE *list = open_list("modules.alias");
	char *line = NULL, *save, *pattern, *module;
	size_t size = 0;

	while (list && getline(&line, &size, list) > 0) {
		pattern = strtok_r(line, " \n", &save);
		if (!pattern || strcmp(pattern, "alias"))
			continue;
		pattern = strtok_r(NULL, " \n", &save);
		module = strtok_r(NULL, " \n", &save);
		if (module && matches(pattern, modalias))
			found(module);
	}
	free(line);
	if (list)
		fclose(list);
}

/* "softdep my_card pre: a b post: c": each of pre, or of post. They may be missing. */
void each_soft(const char *wanted, bool post, void (*found)(const char *module))
{
	FILE *list = open_list("modules.softdep");
	char *line = NULL, *save, *word;
	char name[MODULE_NAME];
	bool taken;
	size_t size = 0;

	while (list && getline(&line, &size, list) > 0) {
		word = strtok_r(line, " \n", &save);
		if (!word || strcmp(word, "softdep"))
			continue;
		word = strtok_r(NULL, " \n", &save);
		if (!word || !module_name(name, word) || strcmp(name, wanted))
			continue;
		taken = false;
		while ((word = strtok_r(NULL, " \n", &save)))
			if (!strcmp(word, "pre:") || !strcmp(word, "post:"))
				taken = post == (word[1] == 'o');
			else if (taken)
				found(word);
	}
	free(line);
	if (list)
		fclose(list);
}
