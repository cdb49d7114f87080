# SPDX-License-Identifier: Apache-2.0
"""Facts of a kernel that was built elsewhere: headers, config, symbols and characteristic strings.

The content decides what a file is, not its name. A file that is not an x86-64 Linux kernel is refused, and the error
says what it is instead. If a kernel's payload cannot be unpacked, its headers still give facts.
"""

import io
import re
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from minguest.kernel import binary, kconfig
from minguest.util.errors import MinguestError, ToolError, UserError

# Bytes from the start that show what a file is: the magic of ISO 9660 comes after 32 KiB.
HEAD = 0x9000
# A kernel in a UKI in gzip; not deeper, because a file may contain itself.
DEEPEST = 3
ELF = b"\x7fELF"
# Where the kernel's own half of the address space begins: Documentation/arch/x86/x86_64/mm.rst.
KERNEL_HALF = 0xFFFF_8000_0000_0000
# init/version.c: release (user@host) (compiler) #number …
BANNER = re.compile(rb"Linux version (\d[^\n\0]{0,1000})")
WITH_COMPILER = re.compile(r"(\S+ \([^)]*\)) \(.*\) (#.*)")
# The third line of a .config, written by scripts/kconfig/confdata.c from `mainmenu`.
MAIN_MENU = re.compile(r"^# Linux/\S+ (\S+) Kernel Configuration$", re.MULTILINE)
# Elf64_Sym: name, info, other, section, value, size. A linked kernel names only symbols that it defines.
SYMBOL = struct.Struct("<IBBHQQ")
# Files that users have beside their kernels, and kernels of other machines: offset, magic, what it is.
OTHERS = (
    (0x38, b"ARM\x64", "a kernel for arm64"),
    (0x30, b"RISCV\0", "a kernel for RISC-V"),
    (0x24, b"\x18\x28\x6f\x01", "a kernel for 32-bit ARM (zImage)"),
    (0, b"\x27\x05\x19\x56", "an image for U-Boot, not for a PC"),
    (0, b"\xd0\x0d\xfe\xed", "a device tree or FIT image, not for a PC"),
    (0, b"070701", "an initrd (cpio archive)"),
    (0, b"070702", "an initrd (cpio archive)"),
    (0, b"070707", "a cpio archive"),
    (0, b"\xc7\x71", "a cpio archive"),
    (0x101, b"ustar", "a tarball"),
    (0, b"!<arch>\ndebian-binary", "a Debian package; dpkg-deb -x unpacks it"),
    (0, b"\xed\xab\xee\xdb", "an RPM package; rpm2cpio unpacks it"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"hsqs", "a squashfs file system"),
    (0x8001, b"CD001", "an ISO 9660 image"),
    (0, b"#!", "a script"),
    (0x1FE, b"\x55\xaa", "a boot sector or disk image"),
)
REMEDY = "name an x86-64 kernel: its bzImage (usually /boot/vmlinuz-…), its vmlinux, or the .config it was built from"


class Image(msgspec.Struct, frozen=True):
    """The facts of a kernel's file."""

    kind: Literal["bzImage", "vmlinux", "config"]
    """What it is, without its wrapping."""
    path: str
    size: int
    """Bytes of the file."""
    wrapped_in: str
    """`UKI`, or the compression of the whole file; comma-separated, outermost first; "" for neither."""
    version: str | None
    """Release (user@host) #number …; of a config only 6.12.94; None if the file does not say it."""
    bzimage: binary.BzImage | None
    """For a bzImage, also for one in a UKI."""
    compression: str | None
    """Of the kernel: gzip, bzip2, lzma, xz, lzo, lz4, zstd, none; None if it is unknown."""
    opened: bool
    """Whether the kernel was unpacked, so that the fields below could be read."""
    closed_because: str
    """Why not; "" if it was opened."""
    config: dict[str, str] | None
    """All options by name as kconfig.parse_config gives them, if the kernel carries them (CONFIG_IKCONFIG)."""
    symbols: frozenset[str] | None
    """Names in the ELF symbol table; None if there is none, as in a bzImage."""
    strings: frozenset[str]
    """Which of the `look_for` strings are in the unpacked kernel; empty for a config."""


class _Kernel(msgspec.Struct, frozen=True):
    """The facts of an uncompressed kernel."""

    version: str | None
    config: dict[str, str] | None
    symbols: frozenset[str] | None
    strings: frozenset[str]


def read(path: Path, look_for: Sequence[str] = ()) -> Image:
    """Read a bzImage, a vmlinux or a .config, also in a UKI or compressed as a whole; look for strings in it.

    UserError if it is none of these for x86-64, or cut short. At most 1 GiB is unpacked, and of a bzImage at most the
    size that it records. lz4, lzo and zstd need the programs lz4, lzop and zstd: without them a bzImage is not opened.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise UserError(f"{path}: {'a folder' if stat.S_ISDIR(mode) else 'not a plain file'}, not a kernel", REMEDY)
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            image = _look(file, size, str(path), look_for, DEEPEST)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}", REMEDY) from error
    return msgspec.structs.replace(image, path=str(path), size=size)


def _look(file: BinaryIO, size: int, name: str, look_for: Sequence[str], depth: int) -> Image:
    """Find out what a file is; messages call it `name`."""
    file.seek(0)
    head = file.read(HEAD)
    if not head:
        raise UserError(f"{name}: empty", REMEDY)
    if head.startswith(ELF):
        return _vmlinux(file, size, name, look_for)
    if size > binary.LARGEST or not depth or not _plausible(head):
        raise _refusal(head, name)
    file.seek(0)
    data = file.read()
    if data[binary.MAGIC : binary.MAGIC + 4] == b"HdrS":
        return _bzimage(data, name, look_for)
    if packer := binary.packer(data):
        inner_name = f"{name} (unpacked from {packer})"
        content = _unpacked(data, packer, name, inner_name)
        del data  # it may be large
        inner = _look(io.BytesIO(content), len(content), inner_name, look_for, depth - 1)
        packed_by = inner.compression if inner.kind == "bzImage" else packer
        return msgspec.structs.replace(inner, compression=packed_by, wrapped_in=_wrapped(packer, inner))
    if data.startswith(b"MZ") and (headed := binary.pe(data)):
        return _efi_program(data, headed, name, look_for, depth)
    return _config(data, name)


def _config(data: bytes, name: str) -> Image:
    # It may have line ends of Windows.
    text = binary.config_text(data.replace(b"\r\n", b"\n")) or ""
    config = kconfig.parse_config(text)
    if not config:
        raise _refusal(data[:HEAD], name)
    # Kconfig always writes the local version, even an empty one; Xen has no such option.
    for option, held in (("X86_64=y", config.get("X86_64") == "y"), ("LOCALVERSION", "LOCALVERSION" in config)):
        if not held:
            raise UserError(
                f"{name}: {len(config)} options, but not the whole .config of an x86-64 kernel: no CONFIG_{option}",
                f"{REMEDY}; make olddefconfig completes a fragment",
            )
    title = MAIN_MENU.search(text)
    return Image(
        kind="config",
        path=name,
        size=len(data),
        wrapped_in="",
        version=title[1] if title else None,
        bzimage=None,
        compression="none",
        opened=True,
        closed_because="",
        config=config,
        symbols=None,
        strings=frozenset(),
    )


def _plausible(head: bytes) -> bool:
    """Whether the whole file is worth reading: a bzImage, an EFI program, something compressed, or a text."""
    bzimage = head.startswith(b"HdrS", binary.MAGIC)
    return bzimage or head.startswith((ELF, b"MZ")) or binary.packer(head) is not None or b"\0" not in head


def _wrapped(by: str, inner: Image) -> str:
    return ", ".join(filter(None, (by, inner.wrapped_in)))


def _unpacked(data: bytes, packer: str, name: str, inner_name: str) -> bytes:
    """The content of a compressed file. A tarball or an initrd is recognized by its head, before all is unpacked."""
    try:
        if packer not in binary.PROGRAMS and not _plausible(head := binary.unpack_head(data, HEAD)):
            raise _refusal(head, inner_name)
        return binary.unpack(data)[0]
    except ValueError as error:
        raise UserError(f"{name}: compressed with {packer}, and cannot be unpacked: {error}", REMEDY) from error
    except ToolError as error:
        program = binary.PROGRAMS[packer]
        raise UserError(
            f"{name}: compressed with {packer}, and the program {program} is not installed",
            f"apt-get install {program}, or unpack the file and name its content",
        ) from error


def _other(head: bytes) -> str | None:
    return next((what for at, magic, what in OTHERS if head.startswith(magic, at)), None)


def _refusal(head: bytes, name: str) -> UserError:
    """An error that says what the file is instead, if that is known."""
    shown = f"bytes that begin {head[:8].hex(' ')}"
    if head[:64].isascii() and b"\0" not in head:
        shown = f"a text that begins {head[:64].decode().splitlines()[0]!r}"
    return UserError(f"{name}: not a kernel: {_other(head) or shown}", REMEDY)


# ── wrapped in headers ──


def _efi_program(data: bytes, headed: binary.Pe, name: str, look_for: Sequence[str], depth: int) -> Image:
    """A UKI (UAPI.5, Unified Kernel Image): its kernel is in the section .linux."""
    if headed.machine != "AMD64":
        raise UserError(f"{name}: an EFI program for {headed.machine}, not for x86-64", REMEDY)
    if ".linux" not in headed.sections:
        raise UserError(f"{name}: an EFI program, but no kernel: neither a boot header nor a section .linux", REMEDY)
    start, end = headed.sections[".linux"]
    if end > len(data):
        raise _cut(name, len(data), end)
    inner = _look(io.BytesIO(data[start:end]), end - start, f"{name} (its section .linux)", look_for, depth - 1)
    return msgspec.structs.replace(inner, wrapped_in=_wrapped("UKI", inner))


def _cut(name: str, size: int, least: int) -> UserError:
    return UserError(f"{name}: cut short: {size} bytes, but its header requires at least {least}", "copy it again")


def _bzimage(data: bytes, name: str, look_for: Sequence[str]) -> Image:
    if len(data) < 0x1000:
        raise _cut(name, len(data), 0x1000)
    facts = binary.bzimage_facts(data, name)
    header = binary.setup_header(data)
    packed = binary.payload(data)
    # memtest86+ and iPXE can be started like a kernel.
    if packed is None:
        raise UserError(
            f"{name}: {facts.version or 'a program'}: has a kernel's boot header, but no compressed kernel: not Linux, "
            f"or older than 2.6.26 (boot protocol {facts.protocol})",
            REMEDY,
        )
    least = max(packed.behind, binary.setup_size(header) + 16 * header["syssize"])
    if least > len(data):
        raise _cut(name, len(data), least)
    # Since protocol 2.12, linux 3.8, the header shows it; before, the payload does.
    if header["version"] >= 0x20C and "kernel-64" not in facts.xloadflags:
        raise UserError(f"{name}: {facts.version}: a 32-bit kernel (no kernel-64 in xloadflags)", REMEDY)
    kernel, closed = None, ""
    try:
        content = _payload(data, packed)
    except MinguestError as error:
        closed = error.message
    else:
        kernel = _elf(io.BytesIO(content), len(content), f"{name} (its payload)", look_for)
    return Image(
        kind="bzImage",
        path=name,
        size=len(data),
        wrapped_in="",
        version=facts.version or (kernel.version if kernel else None),
        bzimage=facts,
        compression=packed.compression,
        opened=kernel is not None,
        closed_because=closed,
        config=kernel.config if kernel else None,
        symbols=kernel.symbols if kernel else None,
        strings=kernel.strings if kernel else frozenset(),
    )


def _payload(data: bytes, packed: binary.Payload) -> bytes:
    """The kernel itself; ToolError or UserError says why it cannot be unpacked."""
    stream = data[packed.start : packed.end]
    if packed.compression is None or packed.unpacked is None:
        if packed.compression == "none":
            return stream
        raise UserError(f"unknown compression: its first bytes are {stream[:8].hex(' ')}")
    if packed.unpacked > binary.LARGEST:
        raise UserError(f"{packed.compression}: claims to unpack into {packed.unpacked} bytes, more than any kernel")
    try:
        content = binary.unpack(stream, packed.unpacked)[0]
    except ValueError as error:
        raise UserError(f"{packed.compression}: {error}") from error
    except ToolError as error:
        program = binary.PROGRAMS[packed.compression]
        raise ToolError(f"{packed.compression}: the program {program} is not installed") from error
    if len(content) != packed.unpacked:
        raise UserError(f"{packed.compression}: unpacks into {len(content)} bytes, but records {packed.unpacked}")
    return content


# ── the kernel itself ──


def _vmlinux(file: BinaryIO, size: int, name: str, look_for: Sequence[str]) -> Image:
    kernel = _elf(file, size, name, look_for)
    if kernel.version is None:
        raise UserError(f"{name}: an ELF file, but not a Linux kernel: it has no text “Linux version”", REMEDY)
    return Image(
        kind="vmlinux",
        path=name,
        size=size,
        wrapped_in="",
        version=kernel.version,
        bzimage=None,
        compression="none",
        opened=True,
        closed_because="",
        config=kernel.config,
        symbols=kernel.symbols,
        strings=kernel.strings,
    )


def _elf(file: BinaryIO, size: int, name: str, look_for: Sequence[str]) -> _Kernel:
    """Read an ELF kernel: its loaded segments and its symbol table, not a gigabyte of debug information."""
    try:
        image = ELFFile(file)
        table_end = image["e_shoff"] + image.num_sections() * image["e_shentsize"]
    except Exception as error:  # pyelftools raises nearly any exception for damaged input
        raise UserError(f"{name}: not an ELF file, or cut short: {error or type(error).__name__}", REMEDY) from error
    machine, bits, kind = image.get_machine_arch(), image.elfclass, image["e_type"]
    if (machine, bits) != ("x64", 64):
        raise UserError(f"{name}: an ELF file for {machine}, {bits} bits, not for x86-64", REMEDY)
    if kind not in ("ET_EXEC", "ET_DYN"):
        raise UserError(f"{name}: an ELF file ({kind}), but not a kernel: it is not a linked program", REMEDY)
    if table_end > size:
        raise _cut(name, size, table_end)
    try:
        return _loaded(file, image, size, name, look_for)
    except UserError:
        raise
    except Exception as error:  # as above
        raise UserError(f"{name}: a damaged ELF file: {error or type(error).__name__}", REMEDY) from error


def _loaded(file: BinaryIO, image: ELFFile, size: int, name: str, look_for: Sequence[str]) -> _Kernel:
    if image.num_sections() > binary.SECTIONS or image.num_segments() > binary.SECTIONS:
        raise ValueError("more sections or segments than any kernel has")
    segments = [
        (each["p_offset"], each["p_filesz"], each["p_vaddr"])
        for each in image.iter_segments("PT_LOAD")
        if each["p_filesz"]
    ]
    least = max((offset + length for offset, length, _ in segments), default=0)
    if least > size:
        raise _cut(name, size, least)
    if sum(length for _, length, _ in segments) > size:
        raise ValueError("segments that overlap")
    if not any(address >= KERNEL_HALF for _, _, address in segments):
        raise UserError(f"{name}: an ELF file, but not a kernel: no segment is in the kernel's address space", REMEDY)
    version: str | None = None
    config: dict[str, str] | None = None
    wanted = {each: each.encode() for each in look_for}
    found: set[str] = set()
    for offset, length, _ in segments:
        file.seek(offset)
        data = file.read(length)
        if version is None and (match := BANNER.search(data)):
            banner = match[1].decode(errors="backslashreplace").strip()
            # As a bzImage's header has it, without the compiler.
            version = WITH_COMPILER.sub(r"\1 \2", banner)
        if config is None and (text := binary.embedded_config_in(data, name)):
            config = kconfig.parse_config(text)
        found |= {each for each, sought in wanted.items() if each not in found and sought in data}
    return _Kernel(version, config, _symbols(image), frozenset(found))


def _symbols(image: ELFFile) -> frozenset[str] | None:
    """Parsed by hand: pyelftools takes seconds for the 100,000 symbols of a kernel."""
    table = image.get_section_by_name(".symtab")
    if not isinstance(table, SymbolTableSection):
        return None
    names = table.stringtable.data()
    starts = (name for name, *_ in SYMBOL.iter_unpack(table.data()) if name)
    return frozenset(names[start : names.index(b"\0", start)].decode(errors="backslashreplace") for start in starts)
