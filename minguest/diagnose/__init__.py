# SPDX-License-Identifier: Apache-2.0
"""Known ways to fail (pits), and which one a console, a report or a kernel shows."""
