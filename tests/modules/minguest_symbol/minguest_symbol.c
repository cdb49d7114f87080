/* SPDX-License-Identifier: GPL-2.0 */
/* A module that needs a function that no kernel has. */
#include <linux/module.h>

int minguest_no_such_function(void);

static int __init start(void)
{
	return minguest_no_such_function();
}
module_init(start);

MODULE_DESCRIPTION("Needs what is not there, for minguest's tests");
MODULE_LICENSE("GPL");
