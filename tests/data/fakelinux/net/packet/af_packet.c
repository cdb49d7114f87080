// SPDX-License-Identifier: Apache-2.0
int packet_init(void);
int packet_init(void) { return 17; }
