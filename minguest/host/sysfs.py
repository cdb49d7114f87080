# SPDX-License-Identifier: Apache-2.0
"""Reads single files of /sys and /proc, any of which may be missing. Standard library alone."""

import re
from pathlib import Path


def entries(folder: Path) -> list[Path]:
    """What is in a folder, by name; nothing if the folder does not exist."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def text(path: Path) -> str | None:
    """A file's content, without blanks around it; None if it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def value(path: Path, name: str, mark: str = ":") -> str:
    """The value of a name in a file of `name: value` lines; empty if there is none."""
    match = re.search(rf"^{re.escape(name)}[ \t]*{mark}[ \t]*(.*)$", text(path) or "", re.MULTILINE)
    return match[1].strip() if match else ""


def hexadecimal(path: Path) -> int | None:
    """A number in hex, with 0x or without; None if it is not one."""
    try:
        return int(text(path) or "", 16)
    except ValueError:
        return None


def number(path: Path) -> int:
    """A count in decimal digits; 0 if it is not one."""
    digits = text(path) or ""
    return int(digits) if digits.isdigit() else 0


def target(path: Path) -> str:
    """A link's target, as written; empty if it is not a link any more."""
    try:
        return str(path.readlink())
    except OSError:
        return ""


def link(path: Path) -> str | None:
    """The last name in a link's target; None if there is no link."""
    return Path(target(path)).name or None
