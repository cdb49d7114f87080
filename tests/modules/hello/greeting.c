// SPDX-License-Identifier: GPL-2.0
/* Exports what hello.ko needs. */
#include <linux/module.h>

#include "greeting.h"

void greet(const char *whom)
{
	pr_info("hello, %s: %s\n", whom, __FILE__);
}
EXPORT_SYMBOL_GPL(greet);

MODULE_DESCRIPTION("A greeting, for tests of building modules");
MODULE_LICENSE("GPL");
