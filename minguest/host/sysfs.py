# SPDX-License-Identifier: Apache-2.0
"""Reads single files of /sys and /proc, where any of them may be missing. Standard library alone."""

import re
from pathlib import Path


def entries(folder: Path) -> list[Path]:
    """What is in a folder, by name; nothing where there is none."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def text(path: Path) -> str | None:
    """What is in a file, without blanks around it; None where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def value(path: Path, name: str, mark: str = ":") -> str:
    """What a file of `name: value` lines says of a name; empty if nothing."""
    match = re.search(rf"^{re.escape(name)}[ \t]*{mark}[ \t]*(.*)$", text(path) or "", re.MULTILINE)
    return match[1].strip() if match else ""


def hexadecimal(path: Path) -> int | None:
    """A number in hex, with 0x or without."""
    try:
        return int(text(path) or "", 16)
    except ValueError:
        return None


def number(path: Path) -> int:
    """A count in decimal digits; 0 if it is none."""
    digits = text(path) or ""
    return int(digits) if digits.isdigit() else 0


def target(path: Path) -> str:
    """Where a link leads, as it is written; empty if it is none any more."""
    try:
        return str(path.readlink())
    except OSError:
        return ""


def link(path: Path) -> str | None:
    """The last name of where a link leads; None where there is none."""
    return Path(target(path)).name or None
