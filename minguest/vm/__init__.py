# SPDX-License-Identifier: Apache-2.0
"""One run of QEMU: launch, arguments, QMP, console and report."""
