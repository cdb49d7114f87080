# SPDX-License-Identifier: Apache-2.0
"""Counts of bytes, as people write and read them."""

import pytest

from minguest.util import units
from minguest.util.units import GIB, KIB, MIB, TIB


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("512M", 512 * MIB), ("2G", 2 * GIB), ("1.5G", 3 << 29), ("2GiB", 2 * GIB), ("2 GiB", 2 * GIB),
        (" 16k ", 16 * KIB), ("4096T", 4096 * TIB), ("1048576", MIB), ("8B", 8), ("0", 0), ("1.5", None), ("", None),
        ("G", None), ("-1G", None), ("1P", None), ("1G2", None), ("much", None), ("9" * 5000, None),
    ],
)  # fmt: skip
def test_sizes_are_read(text: str, count: int | None) -> None:
    assert units.read(text) == count


@pytest.mark.parametrize(
    ("count", "whole", "exact", "rounded"),
    [
        (0, "0 bytes", "0 bytes", "0 bytes"),
        (1023, "1023 bytes", "1023 bytes", "1023 bytes"),
        (KIB + 1, "1025 bytes", "1 KiB 1 bytes", "1 KiB"),
        (16 * KIB, "16 KiB", "16 KiB", "16 KiB"),
        (3 << 29, "1536 MiB", "1 GiB 512 MiB", "1536 MiB"),
        (GIB, "1 GiB", "1 GiB", "1024 MiB"),
        (8 * GIB, "8 GiB", "8 GiB", "8 GiB"),
        (8 * GIB + MIB, "8193 MiB", "8 GiB 1 MiB", "8193 MiB"),
        (128 * GIB + 48 * MIB, "131120 MiB", "128 GiB 48 MiB", "131120 MiB"),
        (8 * TIB, "8 TiB", "8 TiB", "8192 GiB"),
        (TIB + MIB, "1048577 MiB", "1024 GiB 1 MiB", "1048577 MiB"),
    ],
)
def test_byte_counts_are_shown(count: int, whole: str, exact: str, rounded: str) -> None:
    assert (units.whole(count), units.exact(count), units.rounded(count)) == (whole, exact, rounded)
