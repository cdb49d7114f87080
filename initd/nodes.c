/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Device nodes and links in the initrd's own /dev, which devtmpfs covers. A
 * driver that makes no nodes itself needs those that an overlay brings.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "initd.h"

/* Folders below /dev: /dev/dri, /dev/snd/by-id. */
#define DEEPEST	4

static void copy_folder(int from, int to, int depth);

static int copy_link(int from, int to, const char *name)
{
	char target[PATH_MAX];
	ssize_t len = readlinkat(from, name, target, sizeof(target) - 1);

	if (len < 0)
		return -1;
	target[len] = '\0';
	return symlinkat(target, to, name);
}

/* mknod() takes the umask off the mode, and chown() its set-ID bits. */
static int copy_node(int to, const char *name, const struct stat *stat)
{
	if (mknodat(to, name, stat->st_mode, stat->st_rdev))
		return -1;
	if (fchownat(to, name, stat->st_uid, stat->st_gid, AT_SYMLINK_NOFOLLOW))
		return -1;
	return fchmodat(to, name, stat->st_mode & 07777, 0);
}

static int enter(int from, int to, const char *name, const struct stat *stat, int depth)
{
	int below, new;

	if (mkdirat(to, name, 0700)) {
		if (errno != EEXIST)
			return -1;
	} else if (fchownat(to, name, stat->st_uid, stat->st_gid, AT_SYMLINK_NOFOLLOW) ||
		   fchmodat(to, name, stat->st_mode & 07777, 0)) {
		return -1;
	}
	below = openat(from, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	new = openat(to, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (below < 0 || new < 0) {
		if (below >= 0)
			close(below);
		if (new >= 0)
			close(new);
		return -1;
	}
	copy_folder(below, new, depth + 1);
	close(new);
	return 0;
}

static int copy(int from, int to, const char *name, int depth)
{
	struct stat stat;

	if (fstatat(from, name, &stat, AT_SYMLINK_NOFOLLOW))
		return -1;
	if (S_ISDIR(stat.st_mode)) {
		errno = ELOOP;
		return depth < DEEPEST ? enter(from, to, name, &stat, depth) : -1;
	}
	if (S_ISLNK(stat.st_mode))
		return copy_link(from, to, name);
	if (S_ISCHR(stat.st_mode) || S_ISBLK(stat.st_mode))
		return copy_node(to, name, &stat);
	return 0;
}

/* Takes `from`. What the kernel has made already stays as it is. */
static void copy_folder(int from, int to, int depth)
{
	DIR *folder = fdopendir(from);
	struct dirent *entry;

	if (!folder) {
		close(from);
		return;
	}
	while ((entry = readdir(folder))) {
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		if (copy(dirfd(folder), to, entry->d_name, depth) && errno != EEXIST)
			say("/dev: %s of the initrd: %s", entry->d_name, strerror(errno));
	}
	closedir(folder);
}

/* Into /dev, from a descriptor of the folder that it covers, which is closed. */
void copy_nodes(int from)
{
	int to = open("/dev", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (to < 0) {
		close(from);
		return;
	}
	copy_folder(from, to, 0);
	close(to);
}
