# SPDX-License-Identifier: Apache-2.0
"""Whether a kernel is linked from complete objects: it checks the result, not only make's exit status.

A killed compiler leaves an empty or truncated object, and for kbuild an object newer than its source is complete. The
image then lacks a subsystem, without an error.
"""

import io
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from minguest.kernel import binary, packing
from minguest.util import run

# ar(1): an archive, or a thin one, which only names its members (kbuild's since 4.20).
AR = (b"!<arch>\n", b"!<thin>\n")
# Folders whose objects are not part of vmlinux.
BESIDE = ("arch/x86/boot", "arch/x86/purgatory", "arch/x86/realmode/rm", "scripts", "tools", "usr")


def faults(tree: Path, out: Path, image: Path, config: Mapping[str, str]) -> list[str]:
    """What is wrong with a build in the folder `out`; empty if there is nothing. Reads, never writes.

    Every object and archive is complete; for each option that is `y` and has an object, System.map has that object's
    symbols; System.map belongs to vmlinux; and the image unpacks to the code of this vmlinux. An object that is older
    than `out`/.config is left from another config, and need not be linked.
    """
    if cut := sorted(str(path.relative_to(out)) for path in _objects(out) if not whole(path)):
        return [f"cut short: {', '.join(cut[:5])}" + (f" and {len(cut) - 5} more" if len(cut) > 5 else "")]
    # A line of System.map: address, kind, name. Of nm: name, kind, address, size.
    table = _addresses((fields[2], fields[0]) for fields in _fields((out / "System.map").read_text(encoding="utf-8")))
    found = [
        f"CONFIG_{option} is y, but {path}'s symbols ({', '.join(sorted(names)[:3])}) are not in System.map"
        for option, path, names in _claimed(tree, out, config)
        if names.isdisjoint(table)
    ]
    linked = _addresses((fields[0], fields[2]) for fields in _fields(_nm(out / "vmlinux")))
    if strangers := [name for name, at in table.items() if linked.get(name) != at]:
        found.append(f"System.map belongs to another vmlinux: {', '.join(strangers[:3])}")
    if other := _other_code(out / "vmlinux", image):
        found.append(f"{image.name} was made from another vmlinux: {other}")
    return found


def whole(path: Path) -> bool:
    """Whether an object or an archive is complete: the section headers are the last part of an ELF file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(AR):
        return True
    # System V ABI, "ELF Header": e_shoff, e_shentsize and e_shnum, of the 64-bit and the 32-bit class.
    if head[:5] == b"\x7fELF\x02" and len(head) == 64:
        (at,), (each, count) = struct.unpack_from("<Q", head, 0x28), struct.unpack_from("<HH", head, 0x3A)
    elif head[:5] == b"\x7fELF\x01" and len(head) >= 52:
        (at,), (each, count) = struct.unpack_from("<I", head, 0x20), struct.unpack_from("<HH", head, 0x2E)
    else:
        return False
    return bool(0 < at <= size - each * count)


def _objects(out: Path) -> Iterator[Path]:
    for kind in ("*.o", "*.a"):
        yield from (path for path in out.rglob(kind) if path.is_file() and not path.is_symlink())


def _claimed(tree: Path, out: Path, config: Mapping[str, str]) -> list[tuple[str, str, set[str]]]:
    """Options that are `y`, an object that kbuild makes for each, and the global symbols of that object."""
    wanted: dict[str, str] = {}
    since = (out / ".config").stat().st_mtime_ns
    for folder in sorted({path.parent for path in out.rglob("*.o")}):
        name = str(folder.relative_to(out))
        if name.startswith(BESIDE):
            continue
        for option, built in _rules(tree / name):
            path = f"{name}/{built}"
            if config.get(option) == "y" and (out / path).is_file() and (out / path).stat().st_mtime_ns >= since:
                wanted.setdefault(path, option)
    symbols: dict[str, set[str]] = {}
    if wanted:
        for line in _nm("-A", "-g", "--defined-only", *wanted, cwd=out).splitlines():
            path, _, rest = line.partition(": ")
            symbols.setdefault(path, set()).add(rest.split(" ")[0])
    return [(option, path, symbols[path]) for path, option in wanted.items() if path in symbols]


def _rules(folder: Path) -> Iterator[tuple[str, str]]:
    """`obj-$(CONFIG_X) += a.o` of a folder's Makefile, as (X, a.o)."""
    for name in ("Kbuild", "Makefile"):
        path = folder / name
        if path.is_file():
            text = path.read_text(errors="replace").replace("\\\n", " ")
            for option, objects in re.findall(
                r"^obj-\$\(CONFIG_(\w+)\)[ \t]*[:+]?=[ \t]*([^#\n]*)", text, re.MULTILINE
            ):
                yield from ((option, each) for each in objects.split() if each.endswith(".o"))
            return


def _fields(text: str) -> Iterator[list[str]]:
    """The fields of each line of a symbol table, without symbols that have no address."""
    yield from (fields for line in text.splitlines() if len(fields := line.split()) >= 3)


def _nm(*arguments: str | Path, cwd: Path | None = None) -> str:
    return run.run(["nm", "--format=posix", *arguments], cwd=cwd, bare=True, merge=False)[1]


def _addresses(lines: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Symbols by name, from pairs of name and address; a name that occurs more than once is left out."""
    found: dict[str, int] = {}
    twice: set[str] = set()
    for name, at in lines:
        if name in found:
            twice.add(name)
        found[name] = int(at, 16)
    return {name: at for name, at in found.items() if name not in twice}


def _other_code(vmlinux: Path, image: Path) -> str:
    """A section of code or data that differs between a vmlinux and the unpacked image; empty if none does."""
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415 - slow

    data = image.read_bytes()
    packed = binary.payload(data)
    if packed is None or packed.compression is None:
        return "the compression of its payload is unknown"
    stream = data[packed.start : packed.end]
    inner = stream if packed.compression == "none" else packing.unpack(stream)[0]
    with vmlinux.open("rb") as file:
        one, two = ELFFile(file), ELFFile(io.BytesIO(inner))
        for section in (".text", ".rodata", ".data", ".init.text", ".init.data"):
            if _content(one, section) != _content(two, section):
                return section
    return ""


def _content(image: Any, name: str) -> bytes | None:
    section = image.get_section_by_name(name)
    return section.data() if section is not None else None
