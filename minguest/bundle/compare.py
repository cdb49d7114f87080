# SPDX-License-Identifier: Apache-2.0
"""Two folders of build output: what differs, down to the ELF section, the cpio entry or the config option.

The contents of a file are opened in turn: a kernel's `.text` is inside zstd inside a bzImage. Two files that differ
always give a row, at worst one about bytes.
"""

import hashlib
import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from minguest.bundle.openers import OPENERS, Opener, Parts
from minguest.bundle.reproduction import Difference
from minguest.kernel import packing
from minguest.util import files, run, scratch
from minguest.util.errors import ToolError, UserError

# How many rows describe() shows, more or less, and how many differing fields of one object folders() returns.
ROWS = 40
FIELDS = 20
# Bytes and characters of a value around the place where it differs.
SHOWN_BYTES = 8
SHOWN_TEXT = 60
# How many levels of contents are opened.
DEEPEST = 8
CHUNK = 1 << 16
REGULAR = "regular file"
LINK = "link to "
MISSING = "missing"
ENDED = "no such line"

# Where, first, second.
Row = tuple[str, str, str]


def folders(first: Path, second: Path) -> list[Difference]:
    """Compare every file below two folders by content; an empty list: identical.

    Symbolic links are compared as links. Modes, owners, times and empty folders do not count: a build's output does
    not keep them. Files are read whole. UserError if a folder is missing or a file cannot be read.
    """
    found = [_files(folder) for folder in (first, second)]
    return [
        Difference(_printable(name), *row)
        for name in sorted(found[0].keys() | found[1].keys())
        for row in _compare(found[0].get(name), found[1].get(name))
    ]


def describe(differences: Iterable[Difference]) -> str:
    """For a person: a line a difference, about ROWS of them, shared out among the files, and how many more there are.

    Shared out, so that a kernel with other code does not hide the one option of its config that is the reason.
    """
    by_file: dict[str, list[Difference]] = {}
    for each in differences:
        by_file.setdefault(each.file, []).append(each)
    share = max(1, ROWS // max(1, len(by_file)))
    lines = []
    for file, rows in list(by_file.items())[:ROWS]:
        for row in rows[:share]:
            lines.append(f"{file}{f': {row.where}' if row.where else ''}: {row.first} | {row.second}")
        if len(rows) > share:
            lines.append(f"{file}: and {len(rows) - share} more")
    if len(by_file) > ROWS:
        lines.append(f"and {len(by_file) - ROWS} files more")
    return "\n".join(lines)


def diffoscope(first: Path, second: Path, report: Path) -> bool:
    """Write diffoscope's text report on two folders (at most 120 s and about 2 MB); False if there is no report.

    The program is in Debian's package diffoscope-minimal, which is not in configs/packages.txt: folders() finds what
    differs, this shows it disassembled.
    """
    limits = ["--no-progress", "--max-text-report-size", "2000000", "--exclude-directory-metadata", "yes"]
    try:
        run.require("diffoscope")
        # Killed at the deadline, it does not remove its temporary files.
        with files.replacing(report) as temporary, scratch.folder("compare") as work:
            status, output = run.run(
                ["diffoscope", *limits, "--text", temporary, first, second],
                env={"TMPDIR": str(work), "LC_ALL": "C.UTF-8"},
                deadline=120,
                check=False,
                bare=True,
            )
            # 0: the same, 1: they differ, else: it failed.
            if status not in (0, 1):
                raise ToolError(f"diffoscope: exit status {status}: {output[-500:]}")
    except ToolError:
        return False
    return True


def _files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", "give two folders, each with a build's output")
    # Not rglob: before Python 3.12 it fails on a link whose target has too long a name.
    found = {}
    for place, folders, names in os.walk(folder):
        for name in (*names, *(each for each in folders if Path(place, each).is_symlink())):
            path = Path(place, name)
            found[path.relative_to(folder).as_posix()] = path
    return found


def _compare(first: Path | None, second: Path | None) -> list[Row]:
    one, two = _kind(first), _kind(second)
    if one == two and one.startswith(LINK):
        return []
    try:
        if first is not None and second is not None and one == two == REGULAR:
            return _rows("", first.read_bytes(), second.read_bytes(), DEEPEST)
        shown = [
            _summary(path.read_bytes()) if path is not None and kind == REGULAR else _printable(kind)
            for path, kind in ((first, one), (second, two))
        ]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return [("", shown[0], shown[1])]


def _kind(path: Path | None) -> str:
    if path is None:
        return MISSING
    if path.is_symlink():
        return f"{LINK}{path.readlink()}"
    return REGULAR if path.is_file() else "not a regular file, not compared"


def _summary(data: bytes) -> str:
    return f"size {len(data)}, sha256 {hashlib.sha256(data).hexdigest()[:12]}…"


def _rows(where: str, first: bytes, second: bytes, depth: int) -> list[Row]:
    """What differs: in the first format that both have and that shows a difference, else in bytes."""
    if first == second:
        return []
    # Used only if no opener opens it.
    packer = packing.packer(first)
    note = f" (packed by {packer}, not opened)" if packer and packer == packing.packer(second) else ""
    for opener in OPENERS if depth else ():
        one = _opened(opener, first)
        two = _opened(opener, second) if one else None
        if one and two:
            rows = [
                *_contents(where, one.contents, two.contents, depth - 1),
                *_fields(where, one.fields, two.fields),
            ]
            if rows:
                return rows
            note = " (the contents are the same, packed differently)"
    texts = _text(first), _text(second)
    if texts[0] is not None and texts[1] is not None:
        return [_lines(where, texts[0], texts[1])]
    return [_bytes(where + note, first, second)]


def _opened(opener: Opener, data: bytes) -> Parts | None:
    try:
        return opener(data)
    except Exception:
        # Libraries raise nearly anything at damaged input; it is compared as bytes then.
        return None


def _contents(where: str, first: Mapping[str, bytes], second: Mapping[str, bytes], depth: int) -> Iterator[Row]:
    for name in {**first, **second}:
        place = _join(where, name)
        if name in first and name in second:
            yield from _rows(place, first[name], second[name], depth)
        else:
            one, two = (_summary(side[name]) if name in side else MISSING for side in (first, second))
            yield place, one, two
    if list(first) != list(second) and first.keys() == second.keys():
        yield _join(where, "order"), *_window("\n".join(first), "\n".join(second))


def _fields(where: str, first: Mapping[str, str], second: Mapping[str, str]) -> Iterator[Row]:
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    for name in names[:FIELDS]:
        yield _join(where, name), *_window(first.get(name, MISSING), second.get(name, MISSING))
    if len(names) > FIELDS:
        yield _join(where, "more facts"), *2 * (f"{len(names) - FIELDS} that are not shown here",)


def _lines(where: str, first: str, second: str) -> Row:
    """The first line that differs."""
    one, two = first.split("\n"), second.split("\n")
    pairs = enumerate(zip(one, two, strict=False), 1)
    number = next((number for number, (left, right) in pairs if left != right), min(len(one), len(two)) + 1)
    shown = [side[number - 1] if number <= len(side) else ENDED for side in (one, two)]
    return _join(where, f"line {number}"), *_window(*shown)


def _bytes(where: str, first: bytes, second: bytes) -> Row:
    """Sizes, the first differing offset with the bytes there, and how many bytes differ."""
    shared = min(len(first), len(second))
    at, count = shared, abs(len(first) - len(second))
    # Most of two builds is the same: comparing whole chunks is fast.
    for start in range(0, shared, CHUNK):
        one, two = (side[start : min(start + CHUNK, shared)] for side in (first, second))
        if one != two:
            places = [place for place, differs in enumerate(map(operator.ne, one, two), start) if differs]
            at = min(at, places[0])
            count += len(places)
    shown = [
        f"size {len(side)}, at {at:#x}: {side[at : at + SHOWN_BYTES].hex(' ') or 'the end'}" for side in (first, second)
    ]
    return where, shown[0], f"{shown[1]} ({count} bytes differ)"


def _join(where: str, name: str) -> str:
    return " > ".join(filter(None, (where, _printable(name))))


def _window(first: str, second: str) -> tuple[str, str]:
    """Both values around the first character that differs."""
    shared = min(len(first), len(second))
    at = next((place for place in range(shared) if first[place] != second[place]), shared)
    start = at - 20 if at > SHOWN_TEXT // 2 else 0
    shown = [
        ("…" if start else "") + side[start : start + SHOWN_TEXT] + ("…" if len(side) > start + SHOWN_TEXT else "")
        for side in (first, second)
    ]
    return _printable(shown[0]), _printable(shown[1])


def _printable(text: str) -> str:
    """Without control characters for a terminal; short."""
    shown = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return shown if len(shown) <= 3 * SHOWN_TEXT else shown[: 3 * SHOWN_TEXT] + "…"


def _text(data: bytes) -> str | None:
    try:
        return None if b"\0" in data else data.decode()
    except UnicodeDecodeError:
        return None
