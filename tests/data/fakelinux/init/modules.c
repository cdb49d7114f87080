// SPDX-License-Identifier: Apache-2.0
/* What a kernel with modules has: its vermagic, and a symbol that it exports. */
const char vermagic[] = "\0" "6.12.1 SMP mod_unload ";
int toy_exported(void) { return vermagic[1]; }
int (*const __ksymtab_toy_exported)(void) = toy_exported;
