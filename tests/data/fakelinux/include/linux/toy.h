/* SPDX-License-Identifier: Apache-2.0 */
/* A header for modules. */
int toy_exported(void);
