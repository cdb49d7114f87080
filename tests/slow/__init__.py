# SPDX-License-Identifier: Apache-2.0
"""Tests whose builds take too long for the ordinary run: python -m pytest tests/slow"""
