# SPDX-License-Identifier: Apache-2.0
"""Facts read out of what was built: ELF files and x86 bzImages. The image is inspected, not trusted."""

import gzip
import struct
import zlib
from pathlib import Path

import msgspec
import pefile
from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from minguest.errors import UserError

# Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header"
SETUP_SECTS = 0x1F1
MAGIC = 0x202
XLOADFLAGS = ("kernel-64", "above-4g", "efi-handover-32", "efi-handover-64", "efi-kexec", "5level", "5level-enabled")
# kernel/configs.c puts gzip between these marks.
IKCFG_START, IKCFG_END = b"IKCFG_ST", b"IKCFG_ED"


class Elf(msgspec.Struct, frozen=True):
    """What an ELF file is. `static`: no interpreter and no needed library, static-pie counts."""

    machine: str
    bits: int
    entry: int
    static: bool
    needed: tuple[str, ...]
    symbols: int


class BzImage(msgspec.Struct, frozen=True):
    """What the headers of a bzImage say (boot protocol and PE)."""

    protocol: str
    version: str
    """The kernel's version string: release (user@host) #number …"""
    efi_stub: bool
    """A PE header for x86-64 and subsystem 10, EFI application: firmware can start it."""
    xloadflags: tuple[str, ...]
    relocatable: bool
    init_size: int
    """Bytes of memory that it needs from where it is loaded."""
    size: int


def elf(path: Path) -> Elf:
    """Read an ELF file; UserError if it is none."""
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
    """Read a bzImage's headers; UserError if it is none or cut short."""
    data = path.read_bytes()
    if len(data) < 0x1000 or data[MAGIC : MAGIC + 4] != b"HdrS":
        raise UserError(f"{path}: not an x86 kernel image: no boot header (HdrS) at {MAGIC:#x}")
    protocol, _, _, version_at = struct.unpack_from("<HIHH", data, MAGIC + 4)
    relocatable = data[0x234]
    (flags,) = struct.unpack_from("<H", data, 0x236)
    (init_size,) = struct.unpack_from("<I", data, 0x260)
    version = data[version_at + 0x200 : version_at + 0x200 + 512].split(b"\0", 1)[0]
    return BzImage(
        protocol=f"{protocol >> 8}.{protocol & 0xFF:02d}",
        version=version.decode("ascii", "replace"),
        efi_stub=_is_efi_application(data),
        xloadflags=tuple(name for bit, name in enumerate(XLOADFLAGS) if flags >> bit & 1),
        relocatable=bool(relocatable),
        init_size=init_size,
        size=len(data),
    )


def _is_efi_application(data: bytes) -> bool:
    try:
        image = pefile.PE(data=data, fast_load=True)
    except pefile.PEFormatError:
        return False
    machine: int = image.FILE_HEADER.Machine
    subsystem: int = image.OPTIONAL_HEADER.Subsystem
    image.close()
    return bool(
        machine == pefile.MACHINE_TYPE["IMAGE_FILE_MACHINE_AMD64"]
        and subsystem == pefile.SUBSYSTEM_TYPE["IMAGE_SUBSYSTEM_EFI_APPLICATION"]
    )


def embedded_config(vmlinux: Path) -> str | None:
    """The .config that an uncompressed kernel carries (CONFIG_IKCONFIG), or None."""
    data = vmlinux.read_bytes()
    start = data.find(IKCFG_START)
    end = data.find(IKCFG_END, start)
    if start < 0 or end < 0:
        return None
    try:
        return gzip.decompress(data[start + len(IKCFG_START) : end]).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{vmlinux}: its embedded config cannot be read: {error}") from error
