# SPDX-License-Identifier: Apache-2.0
"""Facts read from kernels, built here or elsewhere: ELF files, x86 bzImages, and their compression.

The image is inspected, not trusted.
"""

import bz2
import lzma
import struct
import zlib
from pathlib import Path
from typing import Any

import msgspec

from minguest.util import run, scratch
from minguest.util.errors import ToolError, UserError

# Most bytes that a file may unpack into: a damaged file must not fill the memory.
LARGEST = 1 << 30
# A config has some 300 KB at most.
LARGEST_CONFIG = 1 << 24
# Sections of one ELF object; vmlinux has some 40.
SECTIONS = 4096

# Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header": from 0x1f1 on, without gaps.
MAGIC = 0x202
BOOT_HEADER = 0x1F1
BOOT_FORMAT = "<BHIHHHHHIHIHHBBHIIIIHBBIIIBBHIIQIIQQIII"
BOOT_FIELDS = (
    "setup_sects", "root_flags", "syssize", "ram_size", "vid_mode", "root_dev", "boot_flag", "jump", "header",
    "version", "realmode_swtch", "start_sys_seg", "kernel_version", "type_of_loader", "loadflags",
    "setup_move_size", "code32_start", "ramdisk_image", "ramdisk_size", "bootsect_kludge", "heap_end_ptr",
    "ext_loader_ver", "ext_loader_type", "cmd_line_ptr", "initrd_addr_max", "kernel_alignment",
    "relocatable_kernel", "min_alignment", "xloadflags", "cmdline_size", "hardware_subarch",
    "hardware_subarch_data", "payload_offset", "payload_length", "setup_data", "pref_address", "init_size",
    "handover_offset", "kernel_info_offset",
)  # fmt: skip
XLOADFLAGS = ("kernel-64", "above-4g", "efi-handover-32", "efi-handover-64", "efi-kexec", "5level", "5level-enabled")
# kernel/configs.c puts gzip between these marks.
IKCFG_START, IKCFG_END = b"IKCFG_ST", b"IKCFG_ED"

# Compression formats of kernels, by their first bytes, as in lib/decompress.c of the kernel; lz4 in its legacy format
# and in the current one. lzma has no magic: these are the usual properties and a dictionary of whole 64 KiB.
PACKERS = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x5d\0\0", "lzma"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x89LZO\0", "lzo"),
)
# Formats that the standard library does not unpack, and the program that does; its package has the same name.
PROGRAMS = {"zstd": "zstd", "lz4": "lz4", "lzo": "lzop"}


class Elf(msgspec.Struct, frozen=True):
    """Facts of an ELF file. `static`: no interpreter and no needed library; static-pie counts as static."""

    machine: str
    bits: int
    entry: int
    static: bool
    needed: tuple[str, ...]
    symbols: int


class BzImage(msgspec.Struct, frozen=True):
    """The headers of a bzImage (boot protocol and PE)."""

    protocol: str
    version: str
    """The kernel's version string: release (user@host) #number …"""
    efi_stub: bool
    """A PE header for x86-64 and subsystem 10, EFI application: firmware can start it."""
    xloadflags: tuple[str, ...]
    relocatable: bool
    init_size: int
    """Bytes of memory that it needs from its load address on."""
    size: int
    handover_offset: int
    """Of the EFI handover entry, relative to the protected-mode code; 0: none."""
    pref_address: int
    """The preferred load address."""
    alignment: int
    """Bytes; of the load address, when it is relocatable."""
    min_alignment: int
    """Bytes; the smallest alignment that it accepts."""
    compression: str | None
    """Of its payload: a name as `packer` gives it, or `none`; None for an unknown one."""


class Payload(msgspec.Struct, frozen=True):
    """The place of the compressed kernel in a bzImage: bytes `start` to `end` of the file are the stream itself."""

    start: int
    end: int
    behind: int
    """`end`, or 4 bytes later, if the unpacked size follows the stream."""
    compression: str | None
    """A name as `packer` gives it, `none` for an uncompressed ELF file, None for anything else."""
    unpacked: int | None
    """Bytes that it unpacks into, as recorded in the file."""


class Pe(msgspec.Struct, frozen=True):
    """The facts of a PE header."""

    machine: str
    """As the specification names it, without its prefix: `AMD64`, `ARM64`."""
    efi_application: bool
    sections: dict[str, tuple[int, int]]
    """Offsets of each one in the file: from, to."""


def elf(path: Path) -> Elf:
    """Read an ELF file; UserError if it is not one."""
    # These and pefile are slow to import, and few commands look into a binary.
    from elftools.common.exceptions import ELFError  # noqa: PLC0415
    from elftools.elf.dynamic import DynamicSection  # noqa: PLC0415
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415
    from elftools.elf.sections import SymbolTableSection  # noqa: PLC0415

    try:
        with path.open("rb") as file:
            image = ELFFile(file)
            dynamic = image.get_section_by_name(".dynamic")
            tags = dynamic.iter_tags("DT_NEEDED") if isinstance(dynamic, DynamicSection) else ()
            needed = tuple(str(tag.needed) for tag in tags)  # type: ignore[attr-defined]
            interpreter = any(segment["p_type"] == "PT_INTERP" for segment in image.iter_segments())
            table = image.get_section_by_name(".symtab")
            return Elf(
                machine=image.get_machine_arch(),
                bits=image.elfclass,
                entry=image["e_entry"],
                static=not interpreter and not needed,
                needed=needed,
                symbols=table.num_symbols() if isinstance(table, SymbolTableSection) else 0,
            )
    except (OSError, ELFError) as error:
        raise UserError(f"{path}: not an ELF file: {error}") from error


def bzimage(path: Path) -> BzImage:
    """Read a bzImage's headers; UserError if it is not one, or cut short."""
    return bzimage_facts(path.read_bytes(), str(path))


def bzimage_facts(data: bytes, name: str) -> BzImage:
    """The same for bytes; messages call them `name`."""
    if len(data) < 0x1000 or data[MAGIC : MAGIC + 4] != b"HdrS":
        raise UserError(f"{name}: not an x86 kernel image: no boot header (HdrS) at {MAGIC:#x}")
    header = setup_header(data)
    packed = payload(data)
    headed = pe(data)
    protocol = header["version"]
    return BzImage(
        protocol=f"{protocol >> 8}.{protocol & 0xFF:02d}",
        version=kernel_version(data),
        efi_stub=headed is not None and headed.machine == "AMD64" and headed.efi_application,
        xloadflags=tuple(name for bit, name in enumerate(XLOADFLAGS) if header["xloadflags"] >> bit & 1),
        relocatable=bool(header["relocatable_kernel"]),
        init_size=header["init_size"],
        size=len(data),
        handover_offset=header["handover_offset"],
        pref_address=header["pref_address"],
        alignment=header["kernel_alignment"],
        min_alignment=1 << header["min_alignment"],
        compression=packed.compression if packed else None,
    )


def setup_header(data: bytes) -> dict[str, int]:
    """A bzImage's boot header by field; struct.error if the bytes end before the header does."""
    return dict(zip(BOOT_FIELDS, struct.unpack_from(BOOT_FORMAT, data, BOOT_HEADER), strict=True))


def setup_size(header: dict[str, int]) -> int:
    """Bytes before the protected-mode code: the boot sector and the setup sectors; a count of 0 means 4."""
    return ((header["setup_sects"] or 4) + 1) * 512


def kernel_version(data: bytes) -> str:
    """The version string that a bzImage's boot header points to; "" if it points nowhere."""
    at = setup_header(data)["kernel_version"]
    return data[at + 0x200 :][:512].split(b"\0", 1)[0].decode(errors="backslashreplace") if at else ""


def payload(data: bytes) -> Payload | None:
    """The place of a bzImage's compressed kernel, perhaps beyond the file's end; None before protocol 2.08, or if the
    bzImage has none.

    The unpacked size follows every format except gzip, which ends with it anyway (the kernel's scripts/Makefile.lib,
    size_append).
    """
    header = setup_header(data)
    if header["version"] < 0x208 or not header["payload_length"]:
        return None
    start = setup_size(header) + header["payload_offset"]
    behind = start + header["payload_length"]
    if data.startswith(b"\x7fELF", start):
        return Payload(start, behind, behind, "none", None)
    compression = packer(data[start : start + 16])
    size = int.from_bytes(data[behind - 4 : behind], "little")
    return Payload(start, behind - 4 * (compression != "gzip"), behind, compression, size)


def pe(data: bytes) -> Pe | None:
    """The PE header of an EFI program, or None; source: Microsoft's PE/COFF specification, by pefile."""
    import pefile  # noqa: PLC0415 - slow, see elf

    try:
        image = pefile.PE(data=data, fast_load=True)
    except pefile.PEFormatError:
        return None
    machine: int = image.FILE_HEADER.Machine
    subsystem: int = image.OPTIONAL_HEADER.Subsystem
    # The first section of a name counts, as in systemd's stub.
    sections = {
        each.Name.rstrip(bytes(1)).decode(errors="backslashreplace"): (
            each.PointerToRawData,
            # In the file, a section is padded to the file's alignment.
            each.PointerToRawData + min(each.SizeOfRawData, each.Misc_VirtualSize or each.SizeOfRawData),
        )
        for each in reversed(image.sections)
    }
    image.close()
    return Pe(
        machine=pefile.MACHINE_TYPE.get(machine, f"{machine:#x}").removeprefix("IMAGE_FILE_MACHINE_"),
        efi_application=subsystem == pefile.SUBSYSTEM_TYPE["IMAGE_SUBSYSTEM_EFI_APPLICATION"],
        sections=sections,
    )


def embedded_config(vmlinux: Path) -> str | None:
    """The .config that an uncompressed kernel carries (CONFIG_IKCONFIG), or None."""
    return embedded_config_in(vmlinux.read_bytes(), str(vmlinux))


def embedded_config_in(data: bytes, name: str) -> str | None:
    """The same for bytes; messages call them `name`."""
    start = data.find(IKCFG_START)
    end = data.find(IKCFG_END, start)
    if start < 0 or end < 0:
        return None
    try:
        return unpack(data[start + len(IKCFG_START) : end], LARGEST_CONFIG)[0].decode()
    except ValueError as error:
        raise UserError(f"{name}: its embedded config is unreadable: {error}") from error


def config_text(data: bytes) -> str | None:
    """The text of a .config: nothing but options, comments and blank lines; None for anything else."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return text if all(line.startswith(("#", "CONFIG_")) for line in text.split("\n") if line) else None


# ── compression ──


def packer(data: bytes) -> str | None:
    """The compression format, by the first bytes: `gzip`, `bzip2`, `xz`, `lzma`, `zstd`, `lz4`, `lzo` or None."""
    return next((name for magic, name in PACKERS if data.startswith(magic)), None)


def unpack(data: bytes, limit: int = LARGEST) -> tuple[bytes, bytes]:
    """Unpack the first compressed stream, and give its content and what follows it.

    ValueError says what is wrong: an unknown format, damaged, cut short, or more than `limit` bytes. ToolError for a
    format of PROGRAMS without its program; for these formats, nothing may follow the stream.
    """
    kind = packer(data)
    if kind in PROGRAMS:
        return _by_program(PROGRAMS[kind], data, limit), b""
    unpacker = _unpacker(kind)
    # One byte more than the limit: zlib reports its end only after the last byte was read.
    content = _some(unpacker, data, limit + 1)
    if len(content) > limit:
        raise ValueError(f"unpacks into more than {limit} bytes")
    if not unpacker.eof:
        raise ValueError("cut short")
    rest: bytes = unpacker.unused_data
    return content, rest


def unpack_head(data: bytes, size: int) -> bytes:
    """The first `size` bytes of the content of a compressed stream, or all of it if it is shorter.

    It shows whether unpacking everything is worth the time. ValueError if the stream is damaged, or of PROGRAMS.
    """
    return _some(_unpacker(packer(data)), data, size)


def _unpacker(kind: str | None) -> Any:
    match kind:
        case "gzip":
            return zlib.decompressobj(31)
        case "bzip2":
            return bz2.BZ2Decompressor()
        case "xz" | "lzma":
            return lzma.LZMADecompressor(memlimit=LARGEST)
        case _:
            raise ValueError("not compressed, or in an unknown format")


def _some(unpacker: Any, data: bytes, size: int) -> bytes:
    try:
        content: bytes = unpacker.decompress(data, size)
    except (zlib.error, OSError, lzma.LZMAError) as error:
        raise ValueError(f"damaged: {error}") from error
    return content


def _by_program(program: str, data: bytes, limit: int) -> bytes:
    run.require(program)
    with scratch.folder("image") as folder:
        packed, content = folder / "packed", folder / "content"
        packed.write_bytes(data)
        # lz4 takes the output as a separate argument.
        output = [content] if program == "lz4" else ["-o", content]
        argv = ["prlimit", "--core=0", f"--fsize={limit}", program, "-d", "-q", packed, *output]
        try:
            run.run(argv, deadline=60, bare=True)
        except ToolError as error:
            if "SIGXFSZ" in error.message:
                raise ValueError(f"unpacks into more than {limit} bytes") from error
            said = error.message.replace(str(folder), "").splitlines()
            raise ValueError(f"damaged: {said[-1].removeprefix('  | ')}") from error
        return content.read_bytes()
