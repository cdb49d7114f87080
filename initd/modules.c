/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kernel modules: those that initd.modules= names, and those that a device's
 * MODALIAS asks for, each after what it needs. An init function that hangs or
 * oopses ends a child, not the guest, and the report says so.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "initd.h"

#define MODULES_MAX	128
#define PASSES_MAX	4	/* a driver of a bus brings devices, whose drivers bring... */

static struct {
	long long seconds;	/* for each to load */
	int count;
	int reported;		/* of them */
	bool full;
	bool off;
	struct module {
		char name[MODULE_NAME];
		char file[PATH_MAX];	/* or empty */
		char version[64];	/* or empty */
		enum { LOADING, LOADED, FAILED, TIMEOUT, ABSENT } result;
		int error;	/* errno, or 0 */
		int signal;	/* what ended the child, or 0 */
		long long us;	/* how long loading took; -1: it was not tried */
		struct messages said;
	} list[MODULES_MAX];
} modules;

static const char *const results[] = { "loading", "loaded", "failed", "timeout", "absent" };

/* The names of errno that finit_module(2) and drivers give; musl has none. */
static const struct {
	int number;
	const char *name;
} errors[] = {
	{ EPERM, "EPERM" }, { ENOENT, "ENOENT" }, { EINTR, "EINTR" }, { EIO, "EIO" },
	{ ENXIO, "ENXIO" }, { E2BIG, "E2BIG" }, { ENOEXEC, "ENOEXEC" }, { EBADF, "EBADF" },
	{ EAGAIN, "EAGAIN" }, { ENOMEM, "ENOMEM" }, { EACCES, "EACCES" },
	{ EFAULT, "EFAULT" }, { EBUSY, "EBUSY" }, { EEXIST, "EEXIST" },
	{ ENODEV, "ENODEV" }, { EINVAL, "EINVAL" }, { ENOSPC, "ENOSPC" },
	{ ERANGE, "ERANGE" }, { ENOSYS, "ENOSYS" }, { EBADMSG, "EBADMSG" },
	{ EOPNOTSUPP, "EOPNOTSUPP" }, { ETIMEDOUT, "ETIMEDOUT" }, { ENOPKG, "ENOPKG" },
	{ ENOKEY, "ENOKEY" }, { EKEYREJECTED, "EKEYREJECTED" },
};

static const char *error_name(int number, char text[16])
{
	size_t i;

	for (i = 0; i < COUNT(errors); i++)
		if (errors[i].number == number)
			return errors[i].name;
	snprintf(text, 16, "%d", number);
	return text;
}

/* In place of the kernel's messages, where initd knows why. */
static void note(struct module *module, const char *what, const char *name)
{
	char text[MESSAGE_MAX + 1];

	snprintf(text, sizeof(text), "initd: %s %s", what, name);
	keep_message(&module->said, text, strlen(text));
}

static struct module *known(const char *name)
{
	int i;

	for (i = 0; i < modules.count; i++)
		if (!strcmp(modules.list[i].name, name))
			return &modules.list[i];
	return NULL;
}

static struct module *add(const char *name)
{
	struct module *module = &modules.list[modules.count];

	if (modules.count == MODULES_MAX) {
		if (!modules.full)
			say("module %s: not loaded, nor are others: %d is the limit",
			    name, MODULES_MAX);
		modules.full = true;
		return NULL;
	}
	modules.count++;
	module->us = -1;
	strcpy(module->name, name);
	return module;
}

/*
 * "name.parameter=value" on the kernel's command line, up to "--", as kmod
 * reads it. Quotes stay: the kernel removes them (lib/cmdline.c, next_arg).
 */
static void read_parameters(const char *wanted, char *parameters, size_t size)
{
	char line[TEXT_MAX], name[MODULE_NAME], *s = line, *dot, *equals, end;
	bool quoted, quote;
	char *option;
	size_t len = 0;

	*parameters = '\0';
	if (!read_text(AT_FDCWD, "/proc/cmdline", line, sizeof(line)))
		return;
	for (;; s++) {
		s += strspn(s, " \t\n");
		option = s;
		for (quoted = false; *s && (quoted || !isspace((unsigned char)*s)); s++)
			quoted ^= *s == '"';
		end = *s;
		*s = '\0';
		if (!strcmp(option, "--"))
			return;
		quote = *option == '"';		/* around all of it */
		equals = strchr(option, '=');
		dot = strchr(option, '.');
		if (dot && (!equals || dot < equals)) {
			*dot = '\0';
			if (module_name(name, option + quote) && !strcmp(name, wanted) &&
			    len < size)
				len += (size_t)snprintf(parameters + len, size - len, "%s%s ",
							quote ? "\"" : "", dot + 1);
		}
		if (!end)
			return;
	}
}

static void load_in_child(struct module *module, int fd)
{
	char parameters[TEXT_MAX];
	int status = 0;
	pid_t child;

	read_parameters(module->name, parameters, sizeof(parameters));
	child = fork();
	if (child < 0) {
		module->error = errno;
		return;
	}
	if (!child) {
		prctl(PR_SET_NAME, module->name);	/* for the kernel's messages */
		_exit(syscall(SYS_finit_module, fd, parameters, 0) ? errno : 0);
	}
	if (!child_ended(child, &status, modules.seconds, order_waits))
		module->result = TIMEOUT;
	else if (WIFSIGNALED(status))
		module->signal = WTERMSIG(status);
	else if (WEXITSTATUS(status) && WEXITSTATUS(status) != EEXIST)
		module->error = WEXITSTATUS(status);
	else
		module->result = LOADED;
}

/* Not inlined: load() calls itself, and must stay small on the stack. */
__attribute__((noinline)) static void insert(struct module *module)
{
	const char *suffix = strstr(module->file, ".ko");
	long long start = uptime_us();
	int fd, kmsg;

	module->result = FAILED;
	if (!suffix || suffix[3]) {
		note(module, "only plain .ko files are loaded; unpack", module->file);
		return;
	}
	fd = open(module->file, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		module->error = errno;
		module->result = errno == ENOENT ? ABSENT : FAILED;
		return;
	}
	kmsg = kmsg_from_now();
	load_in_child(module, fd);
	kmsg_read(kmsg, &module->said);
	close(fd);
	module->us = uptime_us() - start;
}

static void read_version(struct module *module)
{
	char path[MODULE_NAME + 32];

	snprintf(path, sizeof(path), "/sys/module/%s/version", module->name);
	if (!read_text(AT_FDCWD, path, module->version, sizeof(module->version)))
		module->version[0] = '\0';
}

static bool built_in(const char *name)
{
	char path[MODULE_NAME + 32];

	snprintf(path, sizeof(path), "/sys/module/%s", name);
	return !access(path, F_OK);
}

static void say_result(const struct module *module)
{
	char text[16];

	if (module->result == LOADED && module->us < 0)
		say("module %s: is part of the kernel", module->name);
	else if (module->result == LOADED)
		say("module %s: loaded in %.2f s", module->name, (double)module->us / 1e6);
	else if (module->result == TIMEOUT)
		say("module %s: not loaded within %.0f s, and left alone",
		    module->name, (double)module->us / 1e6);
	else if (module->result == ABSENT)
		say("module %s: absent: %s", module->name,
		    *module->file ? module->file : "modules.dep does not have it");
	else if (module->signal)
		say("module %s: failed: the kernel ended its loading with signal %d",
		    module->name, module->signal);
	else if (module->error)
		say("module %s: failed: %s (%s)", module->name,
		    error_name(module->error, text), strerror(module->error));
	else
		say("module %s: failed: %s", module->name, module->said.text[0]);
}

static bool load(const char *wanted);

static void load_found(const char *name)
{
	load(name);
}

/* What the module needs, the last first: depmod writes the nearest first. */
static bool load_needed(struct module *module, char *row)
{
	char name[MODULE_NAME], *space;
	bool all = true;

	while ((space = strrchr(row, ' '))) {
		if (module_name(name, space + 1) && !load(name)) {
			note(module, "not tried, because it needs", name);
			all = false;
		}
		*space = '\0';
	}
	return all;
}

static bool load(const char *wanted)
{
	char name[MODULE_NAME], *row = NULL;
	struct module *module;

	if (order_waits())	/* the guest is to end */
		return false;
	if (!module_name(name, wanted)) {
		say("module %.80s: not a module's name", wanted);
		return false;
	}
	module = known(name);
	if (module && module->result == LOADING)
		say("modules.dep: %s needs itself", name);
	if (module || !(module = add(name)))
		return module && module->result == LOADED;

	if (*wanted != '/')
		row = dependencies(name);
	each_soft(name, false, load_found);
	if (row) {
		row[strcspn(row, ":")] = '\0';
		module_path(module->file, row);
		if (load_needed(module, row + strlen(row) + 1))
			insert(module);
		else
			module->result = FAILED;
		free(row);
	} else if (*wanted == '/') {
		module_path(module->file, wanted);
		insert(module);
	} else {
		module->result = built_in(name) ? LOADED : ABSENT;
	}
	read_version(module);
	say_result(module);
	each_soft(name, true, load_found);
	return module->result == LOADED;
}

/* /lib/modules is now that of a root whose own init loads modules. */
void stop_loading(void)
{
	modules.off = true;
}

void load_for(const char *modalias)
{
	if (!modules.off)
		each_alias(modalias, load_found);
}

static void load_for_bus(const char *bus)
{
	char path[PATH_MAX], modalias[TEXT_MAX];
	struct dirent *entry;
	DIR *folder;

	snprintf(path, sizeof(path), "/sys/bus/%s/devices", bus);
	folder = opendir(path);
	while (folder && (entry = readdir(folder))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/modalias", entry->d_name);
		if (read_text(dirfd(folder), path, modalias, sizeof(modalias)))
			load_for(modalias);
	}
	if (folder)
		closedir(folder);
}

/* Every device that is there; again, as long as that brings modules. */
void load_for_devices(void)
{
	int before = -1, pass;
	struct dirent *entry;
	DIR *folder;

	if (modules.off || !have_aliases())
		return;
	for (pass = 0; before != modules.count && pass < PASSES_MAX; pass++) {
		before = modules.count;
		folder = opendir("/sys/bus");
		while (folder && (entry = readdir(folder)))
			if (entry->d_name[0] != '.')
				load_for_bus(entry->d_name);
		if (folder)
			closedir(folder);
	}
}

void load_modules(const struct options *options)
{
	const char *s = options->modules;
	char wanted[PATH_MAX], others[256];
	size_t len;

	modules.seconds = options->modules_seconds;
	if (only_others(others, sizeof(others)))
		say("/lib/modules has no modules for this kernel, but for %s", others);
	for (; s && *s; s += len + (s[len] == ',')) {
		len = strcspn(s, ",");
		if (len && snprintf(wanted, sizeof(wanted), "%.*s", (int)len, s) <
		    (int)sizeof(wanted))
			load(wanted);
	}
	load_for_devices();
}

static void report_module(struct json *j, const struct module *module)
{
	char text[16];
	int i;

	json_begin(j, "module");
	json_string(j, "name", module->name);
	json_string(j, "file", *module->file ? module->file : NULL);
	json_string(j, "version", *module->version ? module->version : NULL);
	json_string(j, "result", results[module->result]);
	json_string(j, "errno", module->error ? error_name(module->error, text) : NULL);
	if (module->signal)
		json_int(j, "signal", module->signal);
	else
		json_null(j, "signal");
	if (module->us < 0)
		json_null(j, "seconds");
	else
		json_seconds(j, "seconds", module->us);
	json_open(j, "messages", '[');
	for (i = 0; i < module->said.count; i++)
		json_string(j, NULL, module->said.text[i]);
	json_close(j, ']');
	json_end(j);
}

/* Those that were not reported yet. */
void report_modules(struct json *j)
{
	while (modules.reported < modules.count)
		report_module(j, &modules.list[modules.reported++]);
}
