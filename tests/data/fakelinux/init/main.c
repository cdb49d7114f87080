// SPDX-License-Identifier: Apache-2.0
const char linux_banner[] = "Linux version 6.12.1";
int start(void);
int start(void) { return linux_banner[0]; }
