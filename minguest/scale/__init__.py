# SPDX-License-Identifier: Apache-2.0
"""Cells on many machines: one store, workers of Dask, and what the store remembers of every cell."""
