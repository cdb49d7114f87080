/* SPDX-License-Identifier: Apache-2.0 */
/*
 * initd.drivers=: a disk of modules and of their cards' firmware, which would be
 * memory in the initrd. A driver may load firmware when a program first opens its
 * card, long after the root has taken over, so the disk stays: it is mounted
 * below /run, which moves to the root, and the kernel gets its path.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "initd.h"

#define DISK_S	10	/* until it is there */
/* drivers/base/firmware_loader/main.c: fw_path_para, searched before /lib/firmware. */
#define FIRMWARE_PATH "/sys/module/firmware_class/parameters/path"

void mount_drivers(const struct options *options, int uevents)
{
	/* As the root of a program, which needs no init. */
	struct options wanted = { .root = options->drivers, .root_seconds = DISK_S, .read_only = true,
				  .init = "", .then = PROGRAM };
	struct port nowhere = CLOSED_PORT;	/* no event comes before "begin" */

	if (!wanted.root || strcmp(find_root(&wanted, &nowhere, uevents, "drivers")->result, "found"))
		return;
	mkdir(DRIVERS, 0755);
	if (mount(SYSROOT, DRIVERS, NULL, MS_MOVE, NULL) ||
	    !write_text(AT_FDCWD, FIRMWARE_PATH, DRIVERS "/lib/firmware"))
		say(DRIVERS ": %s", strerror(errno));
}
