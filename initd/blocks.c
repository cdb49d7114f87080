/* SPDX-License-Identifier: Apache-2.0 */
/* Memory blocks, the unit of memory hotplug: each is online or not. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "initd.h"

#define MEMORY	"/sys/devices/system/memory"

/* False for a kernel without memory hotplug. */
bool count_blocks(struct blocks *blocks)
{
	struct dirent *entry;
	char path[64], state[32];
	DIR *folder = NULL;

	*blocks = (struct blocks){ 0 };
	/* In hexadecimal with no 0x: drivers/base/memory.c, block_size_bytes_show */
	if (read_number(AT_FDCWD, MEMORY "/block_size_bytes", 16, &blocks->bytes))
		folder = opendir(MEMORY);
	if (!folder)
		return false;
	while ((entry = readdir(folder))) {
		if (!numbered(entry->d_name, "memory"))
			continue;
		blocks->present++;
		snprintf(path, sizeof(path), "%.40s/state", entry->d_name);
		if (read_text(dirfd(folder), path, state, sizeof(state)) &&
		    !strcmp(state, "online"))
			blocks->online++;
	}
	closedir(folder);
	return true;
}
