/* SPDX-License-Identifier: Apache-2.0 */
/* The driver of each display controller: its version, its firmware's, and the device nodes that programs open. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "initd.h"

#define DEVICES	"/sys/bus/pci/devices"
#define NVIDIA	"/proc/driver/nvidia/gpus"
#define CLASS_DISPLAY	3

/* NVIDIA's driver makes no DRM node without nvidia-drm; those for all cards come after the card's own. */
static const char *const of_nvidia[] = { "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-modeset" };

/* The last part of where a link leads, or NULL. */
static const char *leads_to(const char *path, char *buf, size_t size)
{
	ssize_t len = readlink(path, buf, size - 1);
	char *slash;

	if (len < 0)
		return NULL;
	buf[len] = '\0';
	slash = strrchr(buf, '/');
	return slash ? slash + 1 : buf;
}

/* The value of "NAME: \t value" in what NVIDIA's driver says of a card, or NULL. */
static char *nvidia_says(const char *address, const char *name, char *buf, size_t size)
{
	char path[128], *line;

	snprintf(path, sizeof(path), NVIDIA "/%.20s/information", address);
	if (!read_text(AT_FDCWD, path, buf, size))
		return NULL;
	line = strstr(buf, name);
	if (!line)
		return NULL;
	line += strlen(name);
	line += strspn(line, ": \t");
	line[strcspn(line, "\n")] = '\0';
	return line;
}

static void put_node(struct json *j, const char *path)
{
	if (!access(path, F_OK))
		json_string(j, NULL, path);
}

static void put_drm_nodes(struct json *j, const char *device)
{
	char path[128];
	struct dirent *entry;
	DIR *folder;

	snprintf(path, sizeof(path), "%.60s/drm", device);
	folder = opendir(path);
	while (folder && (entry = readdir(folder))) {
		if (!numbered(entry->d_name, "card") && !numbered(entry->d_name, "renderD"))
			continue;
		snprintf(path, sizeof(path), "/dev/dri/%.40s", entry->d_name);
		put_node(j, path);
	}
	if (folder)
		closedir(folder);
}

static void put_nvidia_nodes(struct json *j, const char *address)
{
	char text[1024], path[64], *minor = nvidia_says(address, "Device Minor", text, sizeof(text));
	size_t i;

	if (!minor)
		return;
	snprintf(path, sizeof(path), "/dev/nvidia%.8s", minor);
	put_node(j, path);
	for (i = 0; i < COUNT(of_nvidia); i++)
		put_node(j, of_nvidia[i]);
}

static void report_driver(struct json *j, const char *address)
{
	char device[64], path[128], driver[256], module[256], text[1024];
	const char *name, *of;
	long long class;

	snprintf(device, sizeof(device), DEVICES "/%.20s", address);
	snprintf(path, sizeof(path), "%s/class", device);
	if (!read_number(AT_FDCWD, path, 16, &class) || class >> 16 != CLASS_DISPLAY)
		return;
	snprintf(path, sizeof(path), "%s/driver", device);
	name = leads_to(path, driver, sizeof(driver));
	if (!name)
		return;
	snprintf(path, sizeof(path), "%s/driver/module", device);
	of = leads_to(path, module, sizeof(module));

	json_begin(j, "driver");
	json_string(j, "address", address);
	json_string(j, "name", name);
	json_string(j, "module", of);
	snprintf(path, sizeof(path), "%s/driver/module/version", device);
	put_text(j, "version", AT_FDCWD, path);
	json_string(j, "firmware", nvidia_says(address, "GPU Firmware", text, sizeof(text)));
	json_open(j, "nodes", '[');
	put_drm_nodes(j, device);
	put_nvidia_nodes(j, address);
	json_close(j, ']');
	json_end(j);
}

void report_drivers(struct json *j)
{
	struct dirent **entries;
	int count = scandir(DEVICES, &entries, NULL, alphasort), i;

	for (i = 0; i < count; i++) {
		if (*entries[i]->d_name != '.')
			report_driver(j, entries[i]->d_name);
		free(entries[i]);
	}
	if (count >= 0)
		free(entries);
}
