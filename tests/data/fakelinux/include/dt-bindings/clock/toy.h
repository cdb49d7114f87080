/* SPDX-License-Identifier: Apache-2.0 */
/* A header of no use on x86. */
