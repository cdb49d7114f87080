# SPDX-License-Identifier: Apache-2.0
"""The tests: unit/ mirrors the packages, integration/ starts real kernels; the rest helps both."""

from pathlib import Path

# The checkout.
ROOT = Path(__file__).parents[1]
