# SPDX-License-Identifier: Apache-2.0
"""Opens files: each format's opener splits bytes into named fields and named contents.

The content of a file decides its format, not its name. An opener of a binary format covers every byte; bytes outside
all parts are a content of their own.
"""

import io
import json
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec
import pefile
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from minguest.bundle import cpio
from minguest.kernel import binary, kconfig, packing


class Parts(msgspec.Struct, frozen=True):
    """What an opener found: facts by name, and byte strings by name, in the order of the file."""

    fields: dict[str, str]
    contents: dict[str, bytes]


# Parts, or None for another format; may raise anything for damaged input.
Opener = Callable[[bytes], Parts | None]


class _Names:
    """Makes equal names different: `x`, `x #2`."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def of(self, name: str) -> str:
        self.seen[name] += 1
        return name if self.seen[name] == 1 else f"{name} #{self.seen[name]}"


def _partition(data: bytes, ranges: Iterable[tuple[str, int, int]], rest: str) -> dict[str, bytes]:
    """Give each byte to the first range (name, start, end) that has it, and bytes in no range to `rest`."""
    free = [(0, len(data))]
    parts = {}
    for name, start, end in ranges:
        parts[name] = b"".join(data[max(start, low) : max(min(end, high), 0)] for low, high in free)
        pieces = [piece for low, high in free for piece in ((low, min(high, start)), (max(low, end), high))]
        free = [(low, high) for low, high in pieces if low < high] if start < end else free
    return {**parts, rest: b"".join(data[low:high] for low, high in free)}


def _flat(prefix: str, facts: Mapping[str, Any], without: Iterable[str] = ()) -> dict[str, str]:
    """A header's fields, numbers in hex."""
    flat: dict[str, str] = {}
    for key, value in facts.items():
        if isinstance(value, Mapping):
            flat |= _flat(f"{prefix} {key}", value)
        elif key not in without:
            flat[f"{prefix} {key}"] = f"{value:#x}" if isinstance(value, int) else str(value)
    return flat


def _elf(data: bytes) -> Parts | None:
    """Sections, segments and symbols. Section data is taken as it is: a compressed one is not unpacked."""
    if not data.startswith(b"\x7fELF"):
        return None
    image = ELFFile(io.BytesIO(data))
    if image.num_sections() > binary.SECTIONS or image.num_segments() > binary.SECTIONS:
        raise ValueError("more sections than any object has")
    fields = _flat("ELF header", image.header)
    for number, segment in enumerate(image.iter_segments()):
        fields |= _flat(f"program header {number}", segment.header)
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
        fields |= _flat(f"section header {name}", section.header, without=("sh_name", "sh_offset"))
        if section["sh_type"] != "SHT_NOBITS":
            ranges.append((name, section["sh_offset"], section["sh_offset"] + section["sh_size"]))
        if isinstance(section, SymbolTableSection):
            symbols |= _symbols(name, section)
    contents = _partition(data, [*tables, *ranges], "outside of all sections")
    # These are fields already.
    for name, _, _ in tables:
        del contents[name]
    # Last, because there are so many.
    return Parts({**fields, **symbols}, contents)


def _symbols(table: str, section: SymbolTableSection) -> dict[str, str]:
    if section["sh_entsize"] not in (16, 24):  # Elf32_Sym, Elf64_Sym
        raise ValueError("symbols of an unknown size")
    names = _Names()
    symbols: dict[str, str] = {}
    for symbol in section.iter_symbols():
        if symbol.name:
            symbols |= _flat(f"{table} symbol {names.of(symbol.name)}", symbol.entry, without=("st_name",))
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
    """A PE header's fields and where its sections lie; both empty for a kernel without EFI stub."""
    try:
        image = pefile.PE(data=data, fast_load=True)
    except pefile.PEFormatError:
        return {}, []
    fields: dict[str, str] = {}
    for header in (image.FILE_HEADER, image.OPTIONAL_HEADER):
        fields |= _flat("PE header", _structure(header))
    for entry in image.OPTIONAL_HEADER.DATA_DIRECTORY:
        fields[f"PE directory {entry.name}"] = f"{entry.VirtualAddress:#x}, size {entry.Size:#x}"
    names = _Names()
    # A row of the section table is 40 bytes; it ends the header.
    ends = [section.get_file_offset() + 40 for section in image.sections]
    ranges = [("PE header", image.DOS_HEADER.e_lfanew, max(ends))] if ends else []
    for section in image.sections:
        name = names.of(f"PE section {section.Name.rstrip(bytes(1)).decode(errors='backslashreplace')}")
        fields |= _flat(name, _structure(section), without=("Name",))
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
    """Compressed formats whose header is not compared."""
    return Parts({}, _unpacked(data)) if packing.packer(data) else None


def _unpacked(data: bytes) -> dict[str, bytes]:
    content, rest = packing.unpack(data)
    # Without a name: packed content has no name, and a path through it reads better without.
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
    # The length of zero padding depends only on what comes before it.
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
