/* SPDX-License-Identifier: GPL-2.0 */
/* A module whose init function writes through a pointer that is NULL. */
#include <linux/module.h>

static int *volatile nowhere;

static int __init start(void)
{
	*nowhere = 1;
	return 0;
}
module_init(start);

MODULE_DESCRIPTION("Oopses, for minguest's tests");
MODULE_LICENSE("GPL");
