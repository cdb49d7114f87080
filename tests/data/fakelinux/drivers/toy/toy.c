// SPDX-License-Identifier: Apache-2.0
/* What a module has: .modinfo, and a symbol that it wants. */
const char info[] __attribute__((section(".modinfo"))) =
	"license=GPL\0" "vermagic=6.12.1 SMP mod_unload \0" "alias=pci:v00001234d*\0" "depends=";
int toy_exported(void);
int init_module(void) { return toy_exported(); }
