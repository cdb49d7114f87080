# SPDX-License-Identifier: Apache-2.0
"""Counts of bytes as people write and read them. Units are powers of 1024. Uses the standard library alone."""

import re

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
# In a size that is read (`512M`), and in one that is shown.
LETTERS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
NAMES = {"TiB": TIB, "GiB": GIB, "MiB": MIB, "KiB": KIB}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:iB|B)?", re.IGNORECASE)


def read(text: str) -> int | None:
    """Bytes of `512M`, `2 GiB`, `1.5G`, `4096`; None if it is not a size, or not a whole number of bytes."""
    match = SIZE.fullmatch(text.strip())
    count = float(match[1]) * LETTERS[match[2].upper()] if match else 0.5
    return int(count) if count.is_integer() else None


def whole(count: int) -> str:
    """Bytes in the largest unit that gives a whole number: `1536 MiB`."""
    for name, unit in NAMES.items():
        if count >= unit and count % unit == 0:
            return f"{count // unit} {name}"
    return f"{count} bytes"


def exact(count: int) -> str:
    """Bytes without rounding: `128 GiB 48 MiB`; TiB only for a whole number of them."""
    if count and count % TIB == 0:
        return f"{count // TIB} TiB"
    parts = []
    for name, unit in {**NAMES, "bytes": 1}.items():
        if name != "TiB" and count >= unit:
            parts.append(f"{count // unit} {name}")
            count %= unit
    return " ".join(parts) or "0 bytes"


def rounded(count: int) -> str:
    """Bytes to the nearest unit, to compare memory: below 8 GiB in MiB, because differences are some MiB."""
    if count >= 8 * GIB and count % GIB == 0:
        return f"{count // GIB} GiB"
    for name in ("MiB", "KiB"):
        if count >= NAMES[name]:
            return f"{count / NAMES[name]:.0f} {name}"
    return f"{count} bytes"
