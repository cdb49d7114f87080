# SPDX-License-Identifier: Apache-2.0
"""What shows that a bzImage is damaged: its length, its CRC-32, zeros at its end, and what unpacks its payload."""

import re
import zlib

import msgspec

from minguest.kernel import binary, packing, vmlinux
from minguest.kernel.packing import Window
from minguest.util.errors import ToolError, UserError

# The last 4 bytes make the CRC-32 over all bytes up to syssize this: Documentation/arch/x86/boot.rst, "The Image
# Checksum". Linux 6.16 dropped it.
CRC_RIGHT = 0xFFFF_FFFF
WITH_CRC_BEFORE = (6, 15)
RELEASE = re.compile(r"(\d+)\.(\d+)\S* \(")
# Zero bytes at the end that a kernel without a CRC-32 may have: it is padded to pages.
PADDING = 8192


class Damaged(UserError):
    """The payload cannot be unpacked, because it is damaged."""


class Found(msgspec.Struct, frozen=True):
    """What shows damage; "" for nothing."""

    certain: str
    likely: str
    intact: bool = False
    """The CRC-32 is right."""


def of_file(data: Window, packed: binary.Payload, version: str, until: float) -> Found:
    """Damage that shows without unpacking anything."""
    header = binary.setup_header(data)
    end = binary.setup_size(header) + 16 * header["syssize"]
    end = max(packed.behind, end)
    if end > len(data):
        return Found(vmlinux.cut_short(len(data), end), "")
    if _crc_right(data, end, until):
        return Found("", "", intact=True)
    used = _last_used(data, end, until)
    if used <= packed.behind or end - used >= PADDING:
        return Found(f"nothing but zeros from byte {used} on: the copy was not completed", "")
    release = RELEASE.match(version)
    if release and (int(release[1]), int(release[2])) < WITH_CRC_BEFORE and header["version"] >= 0x208:
        return Found("", "its CRC-32 is wrong: damaged, or a tool changed its header")
    return Found("", "")


def unpacked(data: Window, packed: binary.Payload, until: float) -> Window:
    """The kernel itself; Damaged, or ToolError or GaveUp for what prevents unpacking."""
    stream, kind = data.within(packed.start, packed.end), packed.compression
    if kind is None or packed.unpacked is None:
        if kind == "none":
            return stream
        raise ToolError(f"unknown compression: its first bytes are {stream[0:8].hex(' ')}")
    if packed.unpacked > 1 << 30:
        raise Damaged(f"{kind}: claims to unpack into {packed.unpacked} bytes, more than any kernel")
    if packed.unpacked > packing.LARGEST:
        raise packing.GaveUp(f"{kind}: gave up at {packing.LARGEST} of {packed.unpacked} unpacked bytes")
    try:
        content, _ = packing.unpacked(stream, packed.unpacked, until)
    except ValueError as error:
        raise Damaged(f"{kind}: {error}") from error
    except ToolError as error:
        raise ToolError(f"{kind}: the program {packing.PROGRAMS[kind]} is not installed") from error
    if len(content) != packed.unpacked:
        raise Damaged(f"{kind}: unpacks into {len(content)} bytes, but records {packed.unpacked}")
    return content


def _crc_right(data: Window, end: int, until: float) -> bool:
    """Whether the CRC-32 is right, also before the image was signed: that changes two fields of the PE header."""
    head = bytearray(data[0 : min(end, packing.PIECE)])
    crcs = [zlib.crc32(head)]
    at = int.from_bytes(head[0x3C:0x40], "little") + 24  # of PE's optional header
    if binary.pe(data) and at + 152 <= len(head):
        head[at + 64 : at + 68] = bytes(4)  # CheckSum
        head[at + 144 : at + 152] = bytes(8)  # the certificate table's address and size, in PE32+
        crcs.append(zlib.crc32(head))
    for place in range(packing.PIECE, end, packing.PIECE):
        packing.on_time(until, f"byte {place}")
        piece = data[place : min(end, place + packing.PIECE)]
        crcs = [zlib.crc32(piece, crc) for crc in crcs]
    return CRC_RIGHT in crcs


def _last_used(data: Window, end: int, until: float) -> int:
    """The offset behind the last byte that is not zero."""
    while end > 0:
        packing.on_time(until, f"byte {end}")
        start = max(0, end - packing.PIECE)
        used = len(data[start:end].rstrip(b"\0"))
        if used:
            return start + used
        end = start
    return 0
