# SPDX-License-Identifier: Apache-2.0
"""A kernel: its source, config, build, and what can be read from any built one."""
