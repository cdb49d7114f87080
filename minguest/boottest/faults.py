# SPDX-License-Identifier: Apache-2.0
"""Faults beside changes of config, command line or launch: what the `fault` of a pit's [[inject]] can name."""

import gzip
import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from minguest.bundle import cpio, firmware
from minguest.util import archive, run
from minguest.vm import arguments


@dataclass
class Parts:
    """The files of one start of QEMU, and what is changed in its command."""

    folder: Path
    """Gets the changed files."""
    package: Path
    """Debian's package of OVMF, which has other builds too."""
    code: Path
    variables: Path
    kernel: Path
    initrd: Path
    edits: list[Callable[[list[str]], list[str]]] = field(default_factory=list)
    """Changes to QEMU's argv, in this order."""
    nmi: bool = False
    """Whether the guest gets a non-maskable interrupt after its report."""


def _cut(*parts: str) -> Callable[[Parts], None]:
    """Leave out the options whose name is, or whose value begins with, one of these."""

    def edit(argv: list[str]) -> list[str]:
        kept, rest = argv[:1], argv[1:]
        while rest:
            size = 2 if len(rest) > 1 and not rest[1].startswith("-") else 1
            option, rest = rest[:size], rest[size:]
            if not any(option[0] == part or option[-1].startswith(part) for part in parts):
                kept += option
        return kept

    return lambda parts: parts.edits.append(edit)


def _add(*options: str) -> Callable[[Parts], None]:
    return lambda parts: parts.edits.append(lambda argv: [*argv, *options])


def _parameter(old: str, new: str) -> Callable[[Parts], None]:
    """Replace a parameter on the kernel's command line."""

    def edit(argv: list[str]) -> list[str]:
        at = argv.index("-append") + 1
        return [*argv[:at], " ".join(new if each == old else each for each in argv[at].split()), *argv[at + 1 :]]

    return lambda parts: parts.edits.append(edit)


def _file(part: str, change: Callable[[bytes], bytes]) -> Callable[[Parts], None]:
    """Use a changed copy of the file that is `part`."""

    def do(parts: Parts) -> None:
        path = parts.folder / f"{part}.changed"
        path.write_bytes(change(getattr(parts, part).read_bytes()))
        setattr(parts, part, path)

    return do


def _with_files(files: Mapping[str, bytes]) -> Callable[[Parts], None]:
    """Use an initrd that has these files too."""

    def do(image: bytes) -> bytes:
        members, _ = cpio.parse(gzip.decompress(image))
        entries = [cpio.Entry(each.name, each.mode, each.data, each.device) for each in members]
        added = [cpio.Entry(name, 0o100644, data) for name, data in files.items()]
        return archive.gzip_bytes(cpio.archive(cpio.merge([*entries, *added])))

    return _file("initrd", do)


def _init(change: Callable[[bytes], bytes] | None, mode: int = 0o100755) -> Callable[[Parts], None]:
    """Use an initrd whose /init is changed; None: without /init."""

    def do(image: bytes) -> bytes:
        members, _ = cpio.parse(gzip.decompress(image))
        entries = [cpio.Entry(each.name, each.mode, each.data, each.device) for each in members if each.name != "init"]
        if change is not None:
            initd = next(each.data for each in members if each.name == "init")
            entries.append(cpio.Entry("init", mode, change(initd)))
        return archive.gzip_bytes(cpio.archive(cpio.merge(entries)))

    return _file("initrd", do)


def program(code: bytes) -> bytes:
    """The smallest ELF program for x86-64 that runs `code` (System V ABI, gABI chapters 4 and 5)."""
    base, start = 0x400000, 64 + 56
    size = (start + len(code)).to_bytes(8, "little")
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0\x3e\0\x01\0\0\0"
    header += (base + start).to_bytes(8, "little") + (64).to_bytes(8, "little") + bytes(12)
    header += b"\x40\0\x38\0\x01\0\0\0\0\0\0\0"
    segment = b"\x01\0\0\0\x05\0\0\0" + bytes(8) + base.to_bytes(8, "little") * 2 + size * 2
    return header + segment + (0x1000).to_bytes(8, "little") + code


def module(info: bytes) -> bytes:
    """An object file that is a kernel module as far as its .modinfo `info`, which is what the kernel reads first (gABI
    chapter 4; kernel/module/main.c, elf_validity_cache_copy). Its struct module has the size of no kernel's."""
    name = bytes(24) + b"other".ljust(56, b"\0")  # struct module: state, list, name
    names = b"\0.modinfo\0.gnu.linkonce.this_module\0.symtab\0.strtab\0.shstrtab\0"
    # Name, type (1 code and data, 2 symbols, 3 strings), flags (2: in memory), content.
    sections = [(b".modinfo", 1, 2, info), (b".gnu.linkonce.this_module", 1, 2, name.ljust(1024, b"\0")),
                (b".symtab", 2, 0, bytes(24)), (b".strtab", 3, 0, b"\0"), (b".shstrtab", 3, 0, names)]  # fmt: skip
    headers, content = bytes(64), b""
    for title, kind, flags, data in sections:
        offset = 64 + len(content)
        content += data.ljust(-(-len(data) // 8) * 8, b"\0")
        entry = (4, 1, 8, 24) if kind == 2 else (0, 0, 8, 0)  # link, info, alignment, size of each
        headers += struct.pack("<IIQQQQIIQQ", names.index(title), kind, flags, 0, offset, len(data), *entry)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, 64 + len(content), 0, 64, 0, 0, 64, 6, 5)
    return header + content + headers


def _other_machine(elf: bytes) -> bytes:
    """e_machine at 18: 183 is AArch64."""
    return elf[:18] + (183).to_bytes(2, "little") + elf[20:]


def _other_pe(image: bytes) -> bytes:
    """The machine of the PE header that 0x3c points at: 0x014c is i386."""
    at = int.from_bytes(image[0x3C:0x40], "little") + 4
    return image[:at] + (0x14C).to_bytes(2, "little") + image[at + 2 :]


def _flipped(image: bytes) -> bytes:
    """The image with every bit of 4 KiB in its middle, in the compressed kernel, inverted."""
    half = len(image) // 2
    return image[:half] + bytes(byte ^ 0xFF for byte in image[half : half + 4096]) + image[half + 4096 :]


def _noise(data: bytes) -> bytes:
    """As many bytes of noise, the same each time."""
    return hashlib.shake_256(b"minguest").digest(len(data))


def _from_package(code: str, variables: str) -> Callable[[Parts], None]:
    """Another build of OVMF, with its variables."""

    def do(parts: Parts) -> None:
        names = {part: f"{firmware.FOLDER}/OVMF_{file}" for part, file in (("code", code), ("variables", variables))}
        members = archive.deb_member(parts.package, list(names.values()))
        for part, name in names.items():
            path = parts.folder / f"{part}.changed"
            path.write_bytes(members[name])
            setattr(parts, part, path)

    return do


def disk(content: Mapping[str, bytes] | None, change: Callable[[bytes], bytes] = bytes) -> Callable[[Parts], None]:
    """Add a disk of 8 MiB with an ext4 of these programs by path; None: of zeros. Then change its bytes."""

    def do(parts: Parts) -> None:
        image = parts.folder / "disk.changed"
        with image.open("wb") as file:
            file.truncate(8 << 20)
        if content is not None:
            tree = parts.folder / "disk.tree"
            for name, data in content.items():
                path = tree / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                path.chmod(0o755)
            run.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(image)])
            image.write_bytes(change(image.read_bytes()))
        parts.edits.append(lambda argv: [*argv, "-drive", f"if=virtio,format=raw,file={image.name}"])

    return do


def _no_groups(disk: bytes) -> bytes:
    """An ext4 whose superblock, at 1024, is whole, and whose group descriptors, in the second block, are zeros."""
    return disk[:2048] + bytes(2048) + disk[4096:]


def _nmi(parts: Parts) -> None:
    parts.nmi = True


CRASHES = bytes.fromhex("31c0 8800")  # xor eax, eax; mov [rax], al
ENDS = bytes.fromhex("b83c000000 bf03000000 0f05")  # exit(3)
# reboot(LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF); then wait
POWERS_OFF = bytes.fromhex("b8a9000000 bfaddee1fe be69191228 badcfe2143 0f05 ebfe")
# mmap(NULL, 1 MiB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_POPULATE, -1, 0); repeat
EATS = bytes.fromhex("31ff be00001000 ba03000000 41ba22c00000 49c7c0ffffffff 4531c9 b809000000 0f05 ebdb")

# What modpost writes for a kernel that is not this one.
OTHER = b"license=GPL\0name=other\0vermagic=1.2.3 SMP mod_unload \0"

FAULTS: Mapping[str, Callable[[Parts], None]] = {
    # Virtual time is the instructions that ran, one a nanosecond: QEMU's -icount. It does not depend on the machine.
    "clock=instructions": _add("-icount", "shift=0,sleep=off"),
    "console=elsewhere": _parameter(f"console={arguments.CONSOLE}", "console=ttyS1"),
    "disk=32-bit-init": disk({"sbin/init": b"\x7fELF\x01\x01\x01" + bytes(9) + b"\x02\0\x03\0" + bytes(44)}),
    "disk=damaged": disk({"sbin/init": program(ENDS)}, _no_groups),
    "disk=empty": disk(None),
    "disk=no-init": disk({"etc/hostname": b"guest"}),
    # With the shell and the variables that the guest's own firmware may not have.
    "firmware=debian": _from_package("CODE_4M.fd", "VARS_4M.fd"),
    "firmware=odd-size": _file("code", lambda code: code[:-1000]),
    "firmware=seabios": _cut("if=pflash"),
    # With Secure Boot, and with Microsoft's keys.
    "firmware=secure-boot": _from_package("CODE_4M.secboot.fd", "VARS_4M.ms.fd"),
    "firmware=wrong-variables": _file("variables", lambda old: b"\xff" * len(old)),
    "gpu=left-out": _cut("secondary-vga"),
    "gpu=no-such-card": _add("-device", "vfio-pci,host=ffff:1f:1f.7"),
    "init=crashes": _init(lambda _: program(CRASHES)),
    "init=eats-memory": _init(lambda _: program(EATS)),
    "init=ends": _init(lambda _: program(ENDS)),
    "init=missing": _init(None),
    "init=not-executable": _init(lambda initd: initd, 0o100644),
    "init=other-machine": _init(_other_machine),
    "init=powers-off": _init(lambda _: program(POWERS_OFF)),
    "init=script": _init(lambda _: b"#!/bin/sh\nexec /bin/true\n"),
    "initrd=cut": _file("initrd", lambda image: image[: len(image) // 2]),
    "initrd=noise": _file("initrd", _noise),
    "initrd=none": _cut("-initrd"),
    "kernel=damaged": _file("kernel", _flipped),
    "kernel=none": _cut("-kernel", "-initrd", "-append"),
    "kernel=other-machine": _file("kernel", _other_pe),
    "module=other-kernel": _with_files({"other.ko": module(OTHER)}),
    "modules=other-release": _with_files({"lib/modules/1.2.3/modules.dep": b"other.ko:\n"}),
    "nmi": _nmi,
}
