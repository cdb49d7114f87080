# SPDX-License-Identifier: Apache-2.0
"""Facts read from kernels, built here or elsewhere: ELF files, x86 bzImages.

The image is inspected, not trusted.
"""

import re
import struct
from pathlib import Path

import msgspec

from minguest.kernel import packing
from minguest.kernel.packing import Window
from minguest.util.errors import UserError

# A config has some 300 KB at most.
LARGEST_CONFIG = 1 << 24
UTF16 = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
NOT_OF_CONFIG = re.compile(r"^[ \t\r\f\v]*+(?!#|CONFIG_|$)", re.MULTILINE)
# Bytes of a UKI's command line; x86 kernels take 2048.
LARGEST_CMDLINE = 1 << 14
# Sections of one ELF object; vmlinux has some 40.
SECTIONS = 4096

# Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header": from 0x1f1 on, without gaps.
MAGIC = 0x202
BOOT_HEADER = 0x1F1
BOOT_FORMAT = "<BHIHHHHHIHIHHBBHIIIIHBBIIIBBHIIQIIQQIII"
BOOT_SIZE = struct.calcsize(BOOT_FORMAT)
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
# Of the PE/COFF specification.
MACHINES = {
    0x14C: "I386", 0x1C0: "ARM", 0x1C2: "THUMB", 0x1C4: "ARMNT", 0x200: "IA64", 0xEBC: "EBC", 0x5032: "RISCV32",
    0x5064: "RISCV64", 0x6232: "LOONGARCH32", 0x6264: "LOONGARCH64", 0x8664: "AMD64", 0xAA64: "ARM64",
}  # fmt: skip
EFI_APPLICATION = 10
# kernel/configs.c puts gzip between these marks.
IKCFG_START, IKCFG_END = b"IKCFG_ST", b"IKCFG_ED"


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
    """Of its payload: a name as `packing.packer` gives it, or `none`; None for an unknown one."""


class Payload(msgspec.Struct, frozen=True):
    """The place of the compressed kernel in a bzImage: bytes `start` to `end` of the file are the stream itself."""

    start: int
    end: int
    behind: int
    """`end`, or 4 bytes later, if the unpacked size follows the stream."""
    compression: str | None
    """A name as `packing.packer` gives it, `none` for an uncompressed ELF file, None for anything else."""
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
    # These are slow to import, and few commands look into a binary.
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


def bzimage_facts(data: bytes | Window, name: str) -> BzImage:
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


def setup_header(data: bytes | Window) -> dict[str, int]:
    """A bzImage's boot header by field; struct.error if the bytes end before the header does."""
    return dict(zip(BOOT_FIELDS, struct.unpack(BOOT_FORMAT, data[BOOT_HEADER : BOOT_HEADER + BOOT_SIZE]), strict=True))


def setup_size(header: dict[str, int]) -> int:
    """Bytes before the protected-mode code: the boot sector and the setup sectors; a count of 0 means 4."""
    return ((header["setup_sects"] or 4) + 1) * 512


def kernel_version(data: bytes | Window) -> str:
    """The version string that a bzImage's boot header points to; "" if it points nowhere."""
    at = setup_header(data)["kernel_version"]
    return data[at + 0x200 : at + 0x200 + 512].split(b"\0", 1)[0].decode(errors="backslashreplace") if at else ""


def payload(data: bytes | Window) -> Payload | None:
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
    compression = packing.packer(data[start : start + 16])
    size = int.from_bytes(data[behind - 4 : behind], "little")
    return Payload(start, behind - 4 * (compression != "gzip"), behind, compression, size)


def pe(data: bytes | Window) -> Pe | None:
    """The PE header of an EFI program, or None; source: Microsoft's PE/COFF specification.

    Not by pefile: it counts every byte of a file, which takes seconds for a large one.
    """
    if not data.startswith(b"MZ"):
        return None
    at = int.from_bytes(data[0x3C:0x40], "little")
    coff = data[at : at + 24]
    if len(coff) < 24 or not coff.startswith(b"PE\0\0"):
        return None
    machine, count, optional_size = struct.unpack_from("<HH12xH", coff, 4)
    optional = data[at + 24 : at + 24 + 70]
    if len(optional) < 70 or optional[:2] not in (b"\x0b\x01", b"\x0b\x02"):  # PE32, PE32+
        return None
    rows = data[at + 24 + optional_size : at + 24 + optional_size + 40 * min(count, SECTIONS)]
    rows = rows[: len(rows) // 40 * 40]
    sections = {
        name.rstrip(b"\0").decode(errors="backslashreplace"): (
            start,
            # In the file, a section is padded to the file's alignment.
            start + min(filled, length or filled),
        )
        # The first section of a name counts, as in systemd's stub.
        for name, length, filled, start in reversed(list(struct.iter_unpack("<8sI4xII16x", rows)))
    }
    return Pe(
        machine=MACHINES.get(machine, f"{machine:#x}"),
        efi_application=int.from_bytes(optional[68:70], "little") == EFI_APPLICATION,
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
        return packing.unpack(data[start + len(IKCFG_START) : end], LARGEST_CONFIG)[0].decode()
    except ValueError as error:
        raise UserError(f"{name}: its embedded config is unreadable: {error}") from error


def config_text(data: bytes) -> str | None:
    """The text of a .config: nothing but options, comments and blank lines; None for anything else.

    It may be indented, have line ends of Windows, a byte order mark, and bytes that are not UTF-8.
    """
    coding = next((name for mark, name in UTF16.items() if data.startswith(mark)), "utf-8-sig")
    text = data.decode(coding, errors="backslashreplace").removeprefix("\ufeff")
    return None if NOT_OF_CONFIG.search(text) else text


def may_be_text(head: bytes) -> bool:
    """Whether bytes from the start of a file may be a .config."""
    return head.startswith(tuple(UTF16)) or b"\0" not in head
