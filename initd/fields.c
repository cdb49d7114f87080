/* SPDX-License-Identifier: Apache-2.0 */
/* Fields of the report that are read from a small file, or may be unknown. */
#include "initd.h"

void put_text(struct json *j, const char *key, int dir, const char *path)
{
	char text[TEXT_MAX];

	json_string(j, key, read_text(dir, path, text, sizeof(text)));
}

void put_number(struct json *j, const char *key, int dir, const char *path)
{
	long long value;

	if (read_number(dir, path, 10, &value))
		json_int(j, key, value);
	else
		json_null(j, key);
}

void put_bytes(struct json *j, const char *key, long long bytes)
{
	if (bytes >= 0)
		json_int(j, key, bytes);
	else
		json_null(j, key);
}
