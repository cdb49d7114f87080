# SPDX-License-Identifier: Apache-2.0
"""Two folders of build output: what differs, down to the ELF section, the cpio entry or the config option.

What a file is, its content says and not its name. Each format has one opener that takes bytes apart into named fields
and named contents; contents are opened in turn, so that a kernel's `.text` is found inside of zstd inside of a bzImage.
An opener of a binary format covers every byte, what is outside of all parts as a content of its own. Two files that
differ always give a row, at worst one about bytes.
"""

import hashlib
import io
import json
import operator
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pefile
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from minguest.bundle import cpio
from minguest.bundle.reproduction import Difference
from minguest.kernel import binary, kconfig
from minguest.util import files, run, scratch
from minguest.util.errors import ToolError, UserError

# How many rows describe() shows, more or less, and how many differing fields of one object folders() gives.
ROWS = 40
FIELDS = 20
# Bytes and characters of a value around the place where it differs.
SHOWN_BYTES = 8
SHOWN_TEXT = 60
# How deep contents are opened.
DEEPEST = 8
CHUNK = 1 << 16
REGULAR = "regular file"
LINK = "link to "
MISSING = "missing"
ENDED = "no such line"


class Parts(msgspec.Struct, frozen=True):
    """What an opener found: facts by name, and byte strings by name, in the order in which they lie there."""

    fields: dict[str, str]
    contents: dict[str, bytes]


# Where, first, second.
Row = tuple[str, str, str]
# Parts, or None for another format; raises whatever it likes at what is damaged.
Opener = Callable[[bytes], Parts | None]


def folders(first: Path, second: Path) -> list[Difference]:
    """Compare every file below two folders by content; an empty list: identical.

    Symbolic links are compared as links. Modes, owners, times and empty folders do not count: of those a build's
    output keeps none. Files are read whole. UserError when a folder is missing or a file cannot be read.
    """
    found = [_files(folder) for folder in (first, second)]
    return [
        Difference(_printable(name), *row)
        for name in sorted(found[0].keys() | found[1].keys())
        for row in _compare(found[0].get(name), found[1].get(name))
    ]


def describe(differences: Iterable[Difference]) -> str:
    """For a person: a line a difference, about ROWS of them, shared out among the files, and how many there are more.

    Shared out, so that a kernel of other code does not hide the one option of its config that made it so.
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
    """Write diffoscope's text report on two folders (at most 120 s and about 2 MB); False where it made none.

    The program is in Debian's package diffoscope-minimal, which is not among configs/packages.txt: folders() finds
    what differs, this shows it disassembled.
    """
    limits = ["--no-progress", "--max-text-report-size", "2000000", "--exclude-directory-metadata", "yes"]
    try:
        run.require("diffoscope")
        # Ended at the deadline, it does not tidy up itself.
        with files.replacing(report) as temporary, scratch.folder("compare") as work:
            status, output = run.run(
                ["diffoscope", *limits, "--text", temporary, first, second],
                env={"TMPDIR": str(work), "LC_ALL": "C.UTF-8"},
                deadline=120,
                check=False,
                bare=True,
            )
            # 0: the same, 1: they differ, else: trouble.
            if status not in (0, 1):
                raise ToolError(f"diffoscope: exit status {status}: {output[-500:]}")
    except ToolError:
        return False
    return True


# ── comparing ──


def _files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", "two folders are compared, each with a build's output")
    # Not rglob: before Python 3.12 it stumbles over a link whose target is too long a name.
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
    return REGULAR if path.is_file() else "no regular file, not compared"


def _summary(data: bytes) -> str:
    return f"size {len(data)}, sha256 {hashlib.sha256(data).hexdigest()[:12]}…"


def _rows(where: str, first: bytes, second: bytes, depth: int) -> list[Row]:
    """What differs: the first format that both are in and that shows something says it, else the bytes do."""
    if first == second:
        return []
    # Where it is opened after all, what is found says more.
    packer = binary.packer(first)
    note = f" (packed by {packer}, not opened)" if packer and packer == binary.packer(second) else ""
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
            note = " (all that is in it is the same, packed otherwise)"
    texts = _text(first), _text(second)
    if texts[0] is not None and texts[1] is not None:
        return [_lines(where, texts[0], texts[1])]
    return [_bytes(where + note, first, second)]


def _opened(opener: Opener, data: bytes) -> Parts | None:
    try:
        return opener(data)
    except Exception:
        # Libraries raise nearly anything at damaged input; it is still to be compared, as bytes then.
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
        yield _join(where, "more facts"), *2 * (f"{len(names) - FIELDS} that are not told here",)


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
    # Most of two builds is the same: whole chunks are compared quickly.
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
    """Without what a terminal obeys; short."""
    shown = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return shown if len(shown) <= 3 * SHOWN_TEXT else shown[: 3 * SHOWN_TEXT] + "…"


def _text(data: bytes) -> str | None:
    try:
        return None if b"\0" in data else data.decode()
    except UnicodeDecodeError:
        return None


# ── taking apart ──


class _Names:
    """Tells those apart that have one name: `x`, `x #2`."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def of(self, name: str) -> str:
        self.seen[name] += 1
        return name if self.seen[name] == 1 else f"{name} #{self.seen[name]}"


def _partition(data: bytes, ranges: Iterable[tuple[str, int, int]], rest: str) -> dict[str, bytes]:
    """Give each byte to the first range (name, start, end) that it is in, and what is in none to `rest`."""
    free = [(0, len(data))]
    parts = {}
    for name, start, end in ranges:
        parts[name] = b"".join(data[max(start, low) : max(min(end, high), 0)] for low, high in free)
        pieces = [piece for low, high in free for piece in ((low, min(high, start)), (max(low, end), high))]
        free = [(low, high) for low, high in pieces if low < high] if start < end else free
    return {**parts, rest: b"".join(data[low:high] for low, high in free)}


def _told(prefix: str, facts: Mapping[str, Any], without: Iterable[str] = ()) -> dict[str, str]:
    """A header's fields, numbers in hex."""
    told: dict[str, str] = {}
    for key, value in facts.items():
        if isinstance(value, Mapping):
            told |= _told(f"{prefix} {key}", value)
        elif key not in without:
            told[f"{prefix} {key}"] = f"{value:#x}" if isinstance(value, int) else str(value)
    return told


def _elf(data: bytes) -> Parts | None:
    """Sections, segments and symbols. Section data is taken as it lies there: a compressed one is not unpacked."""
    if not data.startswith(b"\x7fELF"):
        return None
    image = ELFFile(io.BytesIO(data))
    if image.num_sections() > binary.SECTIONS or image.num_segments() > binary.SECTIONS:
        raise ValueError("more sections than any object has")
    fields = _told("ELF header", image.header)
    for number, segment in enumerate(image.iter_segments()):
        fields |= _told(f"program header {number}", segment.header)
    names = _Names()
    tables = [
        ("ELF header", 0, image["e_ehsize"]),
        ("program headers", image["e_phoff"], image["e_phoff"] + image["e_phnum"] * image["e_phentsize"]),
        ("section headers", image["e_shoff"], image["e_shoff"] + image.num_sections() * image["e_shentsize"]),
    ]
    ranges: list[tuple[str, int, int]] = []
    symbols: dict[str, str] = {}
    for section in image.iter_sections():
        if section["sh_type"] == "SHT_NULL":
            continue
        name = names.of(section.name or "a section without a name")
        # Its offset is left out: it moves with every byte before it, and the bytes themselves are compared.
        fields |= _told(f"section header {name}", section.header, without=("sh_name", "sh_offset"))
        if section["sh_type"] != "SHT_NOBITS":
            ranges.append((name, section["sh_offset"], section["sh_offset"] + section["sh_size"]))
        if isinstance(section, SymbolTableSection):
            symbols |= _symbols(name, section)
    contents = _partition(data, [*tables, *ranges], "outside of all sections")
    # Told as fields already, in words.
    for name, _, _ in tables:
        del contents[name]
    # Last, as there are so many.
    return Parts({**fields, **symbols}, contents)


def _symbols(table: str, section: SymbolTableSection) -> dict[str, str]:
    if section["sh_entsize"] not in (16, 24):  # Elf32_Sym, Elf64_Sym
        raise ValueError("symbols of a size that none has")
    names = _Names()
    symbols: dict[str, str] = {}
    for symbol in section.iter_symbols():
        if symbol.name:
            symbols |= _told(f"{table} symbol {names.of(symbol.name)}", symbol.entry, without=("st_name",))
    return symbols


def _bzimage(data: bytes) -> Parts | None:
    """Boot header, PE header, PE sections, setup code, and the compressed kernel as one content."""
    if data[0x202:0x206] != b"HdrS":
        return None
    header = binary.setup_header(data)
    fields = {f"setup header {name}": f"{value:#x}" for name, value in header.items()}
    setup = binary.setup_size(header)
    fields["kernel version"] = binary.kernel_version(data)
    ranges = [("boot header", binary.BOOT_HEADER, binary.BOOT_HEADER + struct.calcsize(binary.BOOT_FORMAT))]
    packed = {}
    if payload := binary.payload(data):
        ranges.append(("compressed payload", payload.start, payload.behind))
        packed["compressed payload"] = data[payload.start : payload.end]
        if payload.behind > payload.end:
            fields["compressed payload size when unpacked"] = str(payload.unpacked)
    pe_fields, pe_ranges = _pe(data)
    ranges += [*pe_ranges, ("setup code", 0, setup), ("protected-mode code", setup, len(data))]
    contents = _partition(data, ranges, "")
    for name in ("boot header", "PE header", ""):
        contents.pop(name, None)
    return Parts({**fields, **pe_fields}, {**contents, **packed})


def _pe(data: bytes) -> tuple[dict[str, str], list[tuple[str, int, int]]]:
    """A PE header's fields and where its sections lie; nothing of either for a kernel without EFI stub."""
    try:
        image = pefile.PE(data=data, fast_load=True)
    except pefile.PEFormatError:
        return {}, []
    fields: dict[str, str] = {}
    for header in (image.FILE_HEADER, image.OPTIONAL_HEADER):
        fields |= _told("PE header", _structure(header))
    for entry in image.OPTIONAL_HEADER.DATA_DIRECTORY:
        fields[f"PE directory {entry.name}"] = f"{entry.VirtualAddress:#x}, size {entry.Size:#x}"
    names = _Names()
    # A row of the section table is 40 bytes; it ends the header.
    ends = [section.get_file_offset() + 40 for section in image.sections]
    ranges = [("PE header", image.DOS_HEADER.e_lfanew, max(ends))] if ends else []
    for section in image.sections:
        name = names.of(f"PE section {section.Name.rstrip(bytes(1)).decode(errors='backslashreplace')}")
        fields |= _told(name, _structure(section), without=("Name",))
        ranges.append((name, section.PointerToRawData, section.PointerToRawData + section.SizeOfRawData))
    image.close()
    return fields, ranges


def _structure(structure: Any) -> dict[str, Any]:
    """pefile's structures as a dict."""
    return {key: getattr(structure, key) for keys in structure.__keys__ for key in keys}


def _gzip(data: bytes) -> Parts | None:
    """RFC 1952: the first member's header and content, and what follows it."""
    if not data.startswith(b"\x1f\x8b\x08"):
        return None
    flags, mtime, extra_flags, system = struct.unpack_from("<BIBB", data, 3)
    at = 10
    if flags & 4:
        at += 2 + struct.unpack_from("<H", data, at)[0]
    fields = {"flags": f"{flags:#x}", "mtime": str(mtime), "extra flags": str(extra_flags), "OS": str(system)}
    for bit, name in ((8, "name"), (16, "comment")):
        if flags & bit:
            end = data.index(b"\0", at)
            fields[name] = data[at:end].decode("latin-1")
            at = end + 1
    return Parts({f"gzip {name}": value for name, value in fields.items()}, _unpacked(data))


def _packed(data: bytes) -> Parts | None:
    """Formats of which no header is told."""
    return Parts({}, _unpacked(data)) if binary.packer(data) else None


def _unpacked(data: bytes) -> dict[str, bytes]:
    content, rest = binary.unpack(data)
    # Without a name: what is packed has none of its own, and a path through it reads better without.
    return {"": content, **({"after the packed stream": rest} if rest else {})}


def _cpio(data: bytes) -> Parts | None:
    if not data.startswith((b"070701", b"070702")):
        return None
    members, rest = cpio.parse(data)
    names = _Names()
    fields: dict[str, str] = {}
    contents: dict[str, bytes] = {}
    for member in members:
        name = names.of("/" + member.name.removeprefix("./").lstrip("/"))  # as the kernel unpacks it
        contents[name] = member.data
        facts = {
            "name as written": member.name,
            "mode": f"{member.mode:o}",
            "uid": member.uid,
            "gid": member.gid,
            "links": member.nlink,
            "mtime": member.mtime,
            "device": member.device,
            "file system": member.on,
            "check sum": member.check,
            "inode": member.ino,
        }
        fields |= {f"{name} {key}": str(value) for key, value in facts.items()}
    # Padding with zeros is as long as what is before it makes it.
    return Parts(fields, {**contents, **({"after the trailer": rest} if rest.strip(b"\0") else {})})


def _json(data: bytes) -> Parts | None:
    if not data.lstrip().startswith((b"{", b"[")):
        return None
    return Parts(dict(_leaves("", json.loads(data))), {})


def _leaves(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """Each value with its path: `tools.gcc`, `kernel.patches[0].file`."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(f"{path}.{key}" if path else key, inner)
    elif isinstance(value, list) and value:
        for number, inner in enumerate(value):
            yield from _leaves(f"{path}[{number}]", inner)
    else:
        yield path, json.dumps(value, ensure_ascii=False)


def _config(data: bytes) -> Parts | None:
    """A kernel's .config: nothing but options and comments."""
    options = kconfig.parse_config(binary.config_text(data) or "")
    if not options:
        return None
    return Parts({f"CONFIG_{name}": value for name, value in options.items()}, {})


OPENERS: tuple[Opener, ...] = (
    _bzimage, _elf, _gzip, _packed, _cpio, _json, _config,
)  # fmt: skip
