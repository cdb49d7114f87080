/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The console, the file systems that everything else needs, and another root
 * for a program.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "initd.h"

static const struct {
	const char *source;
	const char *target;
	const char *type;
	unsigned long flags;
	const char *data;
	bool required;
} mounts[] = {
	{ "proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, true },
	{ "sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, true },
	{ "devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755", true },
	/* Full, they and the rootfs, which gets 50 %, must leave initd the memory to fork. */
	{ "tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=20%", false },
	{ "tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777,size=20%", false },
	{ "devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
	  "mode=0620,ptmxmode=0666", false },
};

/*
 * The kernel gives PID 1 no descriptors if the initrd has no /dev/console.
 * This comes before the mounts, so that every later failure can print a
 * message; the node is made on the initrd's own root, which is RAM.
 */
void open_console(void)
{
	int fd;

	if (fcntl(STDERR_FILENO, F_GETFD) >= 0)
		return;

	mkdir("/dev", 0755);
	mknod("/dev/console", S_IFCHR | 0600, makedev(5, 1));
	fd = open("/dev/console", O_RDWR | O_NOCTTY);
	if (fd < 0) {
		/* No console driver: the guest is silent, but it runs. */
		mknod("/dev/null", S_IFCHR | 0666, makedev(1, 3));
		fd = open("/dev/null", O_RDWR);
	}
	if (fd < 0)
		return;
	dup2(fd, STDIN_FILENO);
	dup2(fd, STDOUT_FILENO);
	dup2(fd, STDERR_FILENO);
	if (fd > STDERR_FILENO)
		close(fd);
}

void mount_filesystems(void)
{
	/* What an overlay has there is hidden from now on, but not from this. */
	int initrd_dev = open("/dev", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	char what[64];
	size_t i;

	for (i = 0; i < COUNT(mounts); i++) {
		mkdir(mounts[i].target, 0755);
		if (!mount(mounts[i].source, mounts[i].target, mounts[i].type,
			   mounts[i].flags, mounts[i].data))
			continue;
		if (errno == EBUSY)	/* mounted already */
			continue;

		/* ENODEV: the kernel was built without this file system. */
		snprintf(what, sizeof(what), "mount %s on %s",
			 mounts[i].type, mounts[i].target);
		if (mounts[i].required)
			die(what);
		say("%s: %s (going on without)", what, strerror(errno));
	}
	if (initrd_dev >= 0)
		copy_nodes(initrd_dev);
}

/* The guest's own mounts in a program's root, in place of the host's. */
static const struct {
	const char *source;
	const char *target;
	const char *type;	/* NULL: bind our own, with all below it */
} of_program[] = {
	{ "/proc", SYSROOT "/proc", NULL },
	{ "/sys", SYSROOT "/sys", NULL },
	{ "/dev", SYSROOT "/dev", NULL },
	{ "tmpfs", SYSROOT "/run", "tmpfs" },
};

#define SHARE SYSROOT "/run/share"


static void must_mount(const char *source, const char *target, const char *type,
		       unsigned long flags, const char *data)
{
	char what[128];

	if (!mount(source, target, type, flags, data))
		return;
	snprintf(what, sizeof(what), "mount %.40s on %s", source, target);
	die(what);
}

/*
 * Make SYSROOT the root of this process, and the host's 9p share `share`, if
 * there is one, its /run/share, writable. Only /run replaces the root's own: a
 * program may need any other folder, also /tmp and /mnt.
 */
void enter_root(const char *share)
{
	size_t i;

	for (i = 0; i < COUNT(of_program); i++)
		must_mount(of_program[i].source, of_program[i].target, of_program[i].type,
			   of_program[i].type ? MS_NOSUID | MS_NODEV : MS_BIND | MS_REC,
			   NULL);
	if (share) {
		mkdir(SHARE, 0755);
		must_mount(share, SHARE, "9p", MS_NOSUID | MS_NODEV, P9);
	}
	if (chroot(SYSROOT) || chdir("/"))
		die("chroot " SYSROOT);
}
