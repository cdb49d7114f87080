# SPDX-License-Identifier: Apache-2.0
"""The facts of an uncompressed kernel, an ELF file: its banner, config, messages and entries.

Only the headers and the loaded segments are read, a part at a time: a vmlinux may have a gigabyte of debug information,
and a malicious one may have anything. Names of sections and symbols are not read.
"""

import itertools
import re
import struct
from collections.abc import Sequence

import msgspec

from minguest.kernel import binary, kconfig, others, packing
from minguest.kernel.packing import Window
from minguest.util.errors import UserError

ELF = b"\x7fELF"
# Where the kernel's own half of the address space begins: Documentation/arch/x86/x86_64/mm.rst.
KERNEL_HALF = 0xFFFF_8000_0000_0000
# init/version.c: release (user@host) (compiler) #number …
LONGEST_BANNER = 1000
BANNER = re.compile(rb"Linux version (\d[^\n\0]{0,%d})" % LONGEST_BANNER)
WITH_COMPILER = re.compile(r"(\S+ \([^)]*\)) \((.*)\) (#.*)")
NUMBERED = re.compile(r" #\d")
FLAGS = re.compile(r" #\d+\S*(.*)")
# A program may have "Linux version 2.6" in a message; a kernel's banner goes on.
WHOLE_BANNER = re.compile(r"\S+ \(\S+@\S+\) .*#\d")
# Bytes of a segment that are in memory at a time; what is looked for must be shorter than the overlap.
PART = 1 << 24
OVERLAP = 1 << 16
# Most bytes of a config in a kernel, packed.
LARGEST_PACKED = 1 << 22
LARGEST_NOTES = 1 << 16
ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
ET_EXEC, ET_DYN = 2, 3
KINDS = {0: "without a type", 1: "an object file", 4: "a core dump"}
PT_LOAD, PT_NOTE = 1, 4
X86_64 = 62
# include/xen/interface/elfnote.h: the 32-bit entry of PVH loaders.
PHYS32_ENTRY = 18
# In a library that carries a kernel as data: https://github.com/containers/libkrunfw
LIBKRUNFW = "krunfw_get_kernel"


class Kernel(msgspec.Struct, frozen=True):
    """The facts of an uncompressed kernel."""

    version: str | None
    """Release (user@host) #number …"""
    compiler: str | None
    """As its banner has it: compiler, linker."""
    config: dict[str, str] | None
    strings: frozenset[str]
    """Which of the sought strings it has."""
    pvh_entry: int | None
    """The address of its entry for PVH loaders (CONFIG_PVH)."""
    damage: str
    """What shows that it is damaged; "" for nothing."""
    library: str = ""
    """`libkrunfw`, if the ELF file is a library that carries the kernel as data."""


def read(data: Window, name: str, look_for: Sequence[str], until: float) -> Kernel:
    """Read an ELF kernel; messages call it `name`. NotAKernel if it is none; UserError if it is damaged."""
    kind, notes, loaded = _segments(data, name)
    scan = _Scan((*look_for, LIBKRUNFW))
    for offset, length, _ in loaded:
        for at in range(offset, offset + length, PART):
            packing.on_time(until, f"byte {at} of {name}")
            end = min(at + PART + OVERLAP, offset + length)
            scan.part(data, data[at:end], at, until)
    found = Kernel(
        version=scan.version,
        compiler=scan.compiler,
        config=scan.config,
        strings=frozenset(scan.found - {LIBKRUNFW}),
        pvh_entry=_pvh_entry(data[slice(*notes)]) if notes else None,
        damage=scan.damage,
    )
    whole = WHOLE_BANNER.match(scan.banner) is not None
    if not any(address >= KERNEL_HALF for _, _, address in loaded):
        if LIBKRUNFW in scan.found and whole:
            return msgspec.structs.replace(found, library="libkrunfw")
        what = "a shared library or program" if kind == ET_DYN else "a program"
        inside = f", with a kernel inside ({found.version})" if whole else ""
        known = others.program(data[0:PART])
        raise others.NotAKernel(
            f"{name}: not a kernel: {known or what}{inside}: no segment is in the kernel's address space", others.REMEDY
        )
    return found


def _segments(data: Window, name: str) -> tuple[int, tuple[int, int] | None, list[tuple[int, int, int]]]:
    """The file's kind; where its notes are; and offset, length and address of each loaded segment."""
    raw = data[0 : ELF_HEADER.size]
    if len(raw) < ELF_HEADER.size or not raw.startswith(ELF):
        raise UserError(f"{name}: not an ELF file, or cut short: {len(data)} bytes", others.REMEDY)
    ident, kind, machine, _, _, at, sections, _, _, each, count, section_size, section_count, _ = ELF_HEADER.unpack(raw)
    big = ident[5] == 2
    if ident[4] == 1 or big or machine != X86_64:
        what = others.machine(struct.unpack_from(">H" if big else "<H", raw, 18)[0])
        bits = ", 32 bits" if ident[4] == 1 and "32-bit" not in what else ""
        known = others.program(data[0:PART])
        raise others.OtherMachine(
            f"{name}: {f'{known}, ' if known else ''}an ELF file for {what}{bits}, not for x86-64", others.REMEDY
        )
    if kind not in (ET_EXEC, ET_DYN):
        raise others.NotAKernel(
            f"{name}: an ELF file ({KINDS.get(kind, f'type {kind}')}), but not a kernel: it is not a linked program",
            others.REMEDY,
        )
    if count > binary.SECTIONS or section_count > binary.SECTIONS:
        raise UserError(f"{name}: a damaged ELF file: more sections or segments than any kernel has", others.REMEDY)
    if count and each != PROGRAM_HEADER.size:
        raise UserError(f"{name}: a damaged ELF file: program headers of {each} bytes", others.REMEDY)
    table = data[at : at + each * count]
    rows = list(PROGRAM_HEADER.iter_unpack(table[: len(table) // PROGRAM_HEADER.size * PROGRAM_HEADER.size]))
    loaded = [(row[2], row[5], row[3]) for row in rows if row[0] == PT_LOAD and row[5]]
    least = max(
        at + each * count,
        sections + section_size * section_count,
        max((offset + length for offset, length, _ in loaded), default=0),
    )
    if least > len(data):
        raise cut(name, len(data), least)
    total = sum(length for _, length, _ in loaded)
    if total > len(data):
        raise UserError(f"{name}: a damaged ELF file: segments that overlap", others.REMEDY)
    if total > packing.LARGEST:
        raise packing.GaveUp(f"{name}: gave up at {total} bytes of segments: more than any kernel has", others.REMEDY)
    notes = next(((row[2], row[2] + min(row[5], LARGEST_NOTES)) for row in rows if row[0] == PT_NOTE), None)
    return kind, notes, loaded


def flags(version: str) -> list[str] | None:
    """What stands behind the number in a version, `SMP PREEMPT_DYNAMIC …`; None if it has no number."""
    match = FLAGS.search(version)
    return match[1].split() if match else None


def cut(name: str, size: int, least: int) -> UserError:
    """The error for a file that is shorter than its header says."""
    return UserError(f"{name}: {cut_short(size, least)}", "copy it again")


def cut_short(size: int, least: int) -> str:
    """The same as a text."""
    return f"cut short: {size} bytes, but its header requires at least {least}"


def _pvh_entry(notes: bytes) -> int | None:
    """From Xen's note PHYS32_ENTRY; a note is a row of three sizes, a name and a content, each padded to 4 bytes."""
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        content = at + 12 + (name_size + 3) // 4 * 4
        if kind == PHYS32_ENTRY and notes[at + 12 : at + 12 + name_size] == b"Xen\0" and size in (4, 8):
            return int.from_bytes(notes[content : content + size], "little")
        at = content + (size + 3) // 4 * 4
    return None


class _Scan:
    """What was found in the parts so far."""

    def __init__(self, look_for: Sequence[str]) -> None:
        self.wanted = {each: each.encode() for each in look_for}
        self.found: set[str] = set()
        self.banner = self.damage = ""
        self.version: str | None = None
        self.compiler: str | None = None
        self.config: dict[str, str] | None = None

    def part(self, data: Window, part: bytes, at: int, until: float) -> None:
        """Look at one part of a segment, which begins at `at`."""
        # Since 6.2 there are two banners, and the
        # one without a number is not the one that is printed.
        known = NUMBERED.search(self.banner)
        banners = [] if known else list(itertools.islice(BANNER.finditer(part, 0, PART + LONGEST_BANNER), 64))
        numbered = next((each for each in banners if NUMBERED.search(each[1].decode(errors="replace"))), None)
        if match := numbered or (banners[0] if banners and self.version is None else None):
            self.banner = match[1].decode(errors="backslashreplace").strip()
            parts = WITH_COMPILER.match(self.banner)
            # As a bzImage's header has it, without the compiler.
            self.version, self.compiler = (f"{parts[1]} {parts[3]}", parts[2]) if parts else (self.banner, None)
        if self.config is None and not self.damage and (start := part.find(binary.IKCFG_START)) >= 0:
            self._config(data, at + start, until)
        self.found |= {
            each for each, sought in self.wanted.items() if each not in self.found and part.find(sought) >= 0
        }

    def _config(self, data: Window, at: int, until: float) -> None:
        at += len(binary.IKCFG_START)
        packed = data.within(at, at + LARGEST_PACKED)
        if not packed.startswith(b"\x1f\x8b"):
            return  # the mark is in other code
        try:
            content, _ = packing.unpacked(packed, binary.LARGEST_CONFIG, until)
        except ValueError as error:
            self.damage = f"its embedded config is unreadable: {error}"
            return
        self.config = kconfig.parse_config(content[0 : len(content)].decode(errors="surrogateescape"))
