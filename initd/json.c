/* SPDX-License-Identifier: Apache-2.0 */
/* A writer of JSON lines: one object a line, nothing read back. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "initd.h"

static void put(struct json *j, const char *text, size_t len)
{
	if (j->len + len > j->size) {
		size_t size = (j->len + len) * 2;
		char *grown = realloc(j->text, size);

		if (!grown)
			die("memory for the report");
		j->text = grown;
		j->size = size;
	}
	memcpy(j->text + j->len, text, len);
	j->len += len;
}

/*
 * The length of the well-formed UTF-8 sequence that starts here, else 0.
 * Unicode 15, table 3-7: the second byte's range excludes overlong forms,
 * surrogates and values above U+10FFFF.
 */
static size_t utf8_length(const unsigned char *s)
{
	unsigned char low = 0x80, high = 0xbf;
	size_t len, i;

	if (s[0] >= 0xc2 && s[0] <= 0xdf)
		len = 2;
	else if (s[0] >= 0xe0 && s[0] <= 0xef)
		len = 3;
	else if (s[0] >= 0xf0 && s[0] <= 0xf4)
		len = 4;
	else
		return 0;

	if (s[0] == 0xe0)
		low = 0xa0;
	if (s[0] == 0xed)
		high = 0x9f;
	if (s[0] == 0xf0)
		low = 0x90;
	if (s[0] == 0xf4)
		high = 0x8f;

	if (s[1] < low || s[1] > high)
		return 0;
	for (i = 2; i < len; i++)	/* the final NUL stops it as well */
		if (s[i] < 0x80 || s[i] > 0xbf)
			return 0;
	return len;
}

static void put_string(struct json *j, const char *value)
{
	const unsigned char *s = (const unsigned char *)value;
	char escape[8];
	size_t len;

	put(j, "\"", 1);
	while (*s) {
		len = 1;
		if (*s == '"' || *s == '\\') {
			put(j, "\\", 1);
		} else if (*s < 0x20 || *s >= 0x7f) {
			len = *s > 0x7f ? utf8_length(s) : 0;
			if (!len) {
				snprintf(escape, sizeof(escape), "\\u%04x", *s++);
				put(j, escape, 6);
				continue;
			}
		}
		put(j, (const char *)s, len);
		s += len;
	}
	put(j, "\"", 1);
}

/* The comma and the key that come before a value. */
static void lead(struct json *j, const char *key)
{
	char last = j->text[j->len - 1];

	/* A string ends with a quote, so a bracket here is not part of one. */
	if (last != '{' && last != '[')
		put(j, ",", 1);
	if (key) {
		put_string(j, key);
		put(j, ":", 1);
	}
}

static void put_value(struct json *j, const char *key, const char *value)
{
	lead(j, key);
	put(j, value, strlen(value));
}

void json_begin(struct json *j, const char *record)
{
	put(j, "{", 1);
	json_string(j, "record", record);
}

void json_end(struct json *j)
{
	put(j, "}\n", 2);
	j->records++;
}

void json_open(struct json *j, const char *key, char bracket)
{
	lead(j, key);
	put(j, &bracket, 1);
}

void json_close(struct json *j, char bracket)
{
	put(j, &bracket, 1);
}

void json_null(struct json *j, const char *key)
{
	put_value(j, key, "null");
}

void json_bool(struct json *j, const char *key, bool value)
{
	put_value(j, key, value ? "true" : "false");
}

void json_int(struct json *j, const char *key, long long value)
{
	char text[24];

	snprintf(text, sizeof(text), "%lld", value);
	put_value(j, key, text);
}

/* An address or flags: a string, because JSON's numbers lose bits above 2^53. */
void json_hex(struct json *j, const char *key, unsigned long long value)
{
	char text[24];

	snprintf(text, sizeof(text), "\"0x%llx\"", value);
	put_value(j, key, text);
}

void json_seconds(struct json *j, const char *key, long long us)
{
	char text[40];

	snprintf(text, sizeof(text), "%lld.%06lld", us / 1000000, us % 1000000);
	put_value(j, key, text);
}

void json_string(struct json *j, const char *key, const char *value)
{
	if (!value) {
		json_null(j, key);
		return;
	}
	lead(j, key);
	put_string(j, value);
}

void json_free(struct json *j)
{
	free(j->text);
	*j = (struct json){ 0 };
}
