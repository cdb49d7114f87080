# SPDX-License-Identifier: Apache-2.0
"""A program that a root starts as its init, which tries what a guest's programs ask of the kernel: initd/userland.

Each call is a line on the console, `userland: NAME: ok` or why not.
"""

import re
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minguest.boottest import faults
from minguest.boottest.faults import Parts

SECTOR, SECTORS = 512, 16384
# A partition's first and last sector.
FIRST, LAST = 2048, 4095
# The device that the kernel looks for: virtio-net, virtio-rng and virtio-console.
DEVICES = (
    "-device", "virtio-net-pci", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
    "-chardev", "null,id=hvc0", "-device", "virtconsole,chardev=hvc0",
)  # fmt: skip
# On q35, a slot that the kernel's own hot-plug serves; on pc, and on q35 by default, ACPI's does.
NATIVE = (
    "-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
    "-device", "pcie-root-port,id=native,chassis=77,slot=77",
)  # fmt: skip
# LINUX_FILESYSTEM (0FC63DAF-8483-4772-8E79-3D69D8477DE4) as GPT writes it, and GUIDs of this disk and its partition.
LINUX = bytes.fromhex("af3dc60f838472478e793d69d8477de4")
DISK, PARTITION = b"minguest disk 01", b"minguest part 01"


def devices(program: Path, launch: Mapping[str, Any]) -> Sequence[Callable[[Parts], None]]:
    """The root with the program, a disk with GPT, another with an MBR, a network card, random numbers, a console, and
    what the launch's machine can have."""
    more = (*DEVICES, *(() if launch.get("machine") == "pc" else NATIVE))
    return (
        faults.disk({"sbin/init": program.read_bytes()}),
        _attach("gpt", gpt()),
        _attach("mbr", mbr()),
        lambda parts: parts.edits.append(lambda argv: [*argv, *more]),
    )


def found(folder: Path) -> frozenset[str]:
    """What is there, by the console of a boot."""
    console = (folder / "console.log").read_text(encoding="utf-8", errors="replace")
    return frozenset(re.findall(r"userland: ([^:]+): ok\b", console))


def mbr() -> bytes:
    """A disk with one partition of type 0x83 in a master boot record (UEFI specification 2.10, 5.2.1)."""
    entry = struct.pack("<B3sB3sII", 0, b"\xff" * 3, 0x83, b"\xff" * 3, FIRST, LAST - FIRST + 1)
    return (bytes(446) + entry + bytes(48) + b"\x55\xaa").ljust(SECTORS * SECTOR, b"\0")


def gpt() -> bytes:
    """A disk with one partition in a GUID partition table (UEFI specification 2.10, 5.3)."""
    protective = struct.pack("<B3sB3sII", 0, b"\0\x02\0", 0xEE, b"\xff" * 3, 1, SECTORS - 1)
    entry = LINUX + PARTITION + struct.pack("<QQQ", FIRST, LAST, 0) + bytes(72)
    entries = entry.ljust(128 * 128, b"\0")

    def header(own: int, other: int, table: int) -> bytes:
        fields = (own, other, 34, SECTORS - 34, DISK, table, 128, 128, zlib.crc32(entries))
        body = struct.pack("<QQQQ16sQIII", *fields)
        start = struct.pack("<8sII", b"EFI PART", 0x10000, 92)
        checksum = zlib.crc32(start + bytes(8) + body)
        return (start + struct.pack("<II", checksum, 0) + body).ljust(SECTOR, b"\0")

    front = bytes(446) + protective + bytes(48) + b"\x55\xaa" + header(1, SECTORS - 1, 2) + entries
    back = entries + header(SECTORS - 1, 1, SECTORS - 33)
    return front.ljust(SECTORS * SECTOR - len(back), b"\0") + back


def _attach(name: str, content: bytes) -> Callable[[Parts], None]:
    def do(parts: Parts) -> None:
        image = parts.folder / f"{name}.disk"
        image.write_bytes(content)
        parts.edits.append(lambda argv: [*argv, "-drive", f"if=virtio,format=raw,file={image.name}"])

    return do
