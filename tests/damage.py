# SPDX-License-Identifier: Apache-2.0
"""Ways in which a kept JSON file may be damaged: by a full disk, a killed copy, or somebody's hand."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

Damage = Callable[[Path], object]


def not_text(place: Path) -> None:
    place.write_bytes(b"\xff")


def not_utf8(place: Path) -> None:
    """JSON but for a string's bytes: msgspec raises UnicodeDecodeError, which is not its DecodeError."""
    whole = place.read_bytes()
    # Of a value; of an element; else of the first name.
    for begin in (rb':\s*"', rb'\[\s*"', b'"'):
        changed, count = re.subn(begin, lambda found: found[0] + b"\xff", whole, count=1)
        if count:
            break
    place.write_bytes(changed)


def truncated(place: Path) -> None:
    whole = place.read_bytes()
    place.write_bytes(whole[: len(whole) // 2])


def emptied(place: Path) -> None:
    place.write_bytes(b"")


def a_folder(place: Path) -> None:
    place.unlink()
    place.mkdir()


WAYS: tuple[Damage, ...] = (not_text, not_utf8, truncated, emptied, a_folder)
each_way = pytest.mark.parametrize("damage", WAYS)
