/* SPDX-License-Identifier: Apache-2.0 */
/* The small files of /proc and /sys. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "initd.h"

/* The kernel's scnprintf() fills a page to here: longer files of sysfs are cut. */
#define PAGE_FULL	4095

/*
 * The whole file without its last newline. NULL if it is unreadable, longer
 * than size - 1, or cut by the kernel: a part of a list looks like a whole one.
 */
char *read_text(int dir, const char *path, char *buf, size_t size)
{
	int fd = openat(dir, path, O_RDONLY | O_CLOEXEC);
	size_t len = 0;
	ssize_t n = 0;

	if (fd < 0)
		return NULL;
	while (len < size) {
		n = read(fd, buf + len, size - len);
		if (n <= 0)
			break;
		len += (size_t)n;
	}
	close(fd);
	if (n < 0)
		return NULL;
	if (len == size || (len >= PAGE_FULL && buf[len - 1] != '\n')) {
		errno = EFBIG;
		return NULL;
	}
	if (len && buf[len - 1] == '\n')
		len--;
	buf[len] = '\0';
	return buf;
}

bool read_number(int dir, const char *path, int base, long long *value)
{
	char text[64], *end;

	if (!read_text(dir, path, text, sizeof(text)))
		return false;
	errno = 0;
	*value = strtoll(text, &end, base);
	return end != text && !errno;
}

bool write_text(int dir, const char *path, const char *text)
{
	int fd = openat(dir, path, O_WRONLY | O_CLOEXEC);
	ssize_t n;
	int error;

	if (fd < 0)
		return false;
	n = write(fd, text, strlen(text));
	error = errno;
	close(fd);
	errno = error;
	return n == (ssize_t)strlen(text);
}

/* Is it prefix and a number, such as "cpu4"? ("cpufreq" and "cpuidle" are not.) */
bool numbered(const char *name, const char *prefix)
{
	size_t len = strlen(prefix);

	if (strncmp(name, prefix, len) || !name[len])
		return false;
	for (name += len; *name; name++)
		if (!isdigit((unsigned char)*name))
			return false;
	return true;
}
