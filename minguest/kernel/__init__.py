# SPDX-License-Identifier: Apache-2.0
"""A kernel: its source, config and build, and the facts in any built kernel."""
