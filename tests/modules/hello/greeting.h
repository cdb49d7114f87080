/* SPDX-License-Identifier: GPL-2.0 */
void greet(const char *whom);
