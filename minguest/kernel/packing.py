# SPDX-License-Identifier: Apache-2.0
"""Compressed contents, unpacked within bounds: neither a damaged nor a malicious file may fill the memory or run on.

The content is not trusted. It is read in pieces, so that no more than the result is in memory.
"""

import bz2
import io
import lzma
import math
import re
import time
import zlib
from typing import Any, BinaryIO

from minguest.util import run, scratch
from minguest.util.errors import ToolError, UserError

# Most bytes that a file may unpack into: the x86 kernel's own half has room for 1 GiB, and real ones take some 80 MB.
LARGEST = 1 << 28
PIECE = 1 << 20
# Seconds that a program may take where no deadline is given.
PROGRAM_DEADLINE = 60.0

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


# What a program says, and `run` of it, where not the file is wrong; and the name of its file, which it may shorten.
NOT_DAMAGE = re.compile(r"memory|[Aa]llocat|No space|quota|: ended by |: not done after ")
OWN_NAME = re.compile(r"^.*\bpacked *:? *")


class GaveUp(UserError):
    """A bound was reached before the answer was known."""


class TooLarge(ValueError):
    """Unpacks into more than the limit."""


class Window:
    """A range of a file, read where it is needed. It is sliced like bytes, but only from the front: [start:end]."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self.file, self.start, self.size = file, start, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> bytes:
        start, end, _ = part.indices(self.size)
        if start >= end:
            return b""
        self.file.seek(self.start + start)
        return self.file.read(end - start)

    def startswith(self, prefix: bytes | tuple[bytes, ...], at: int = 0) -> bool:
        """Whether the bytes at an offset are these, or one of these."""
        longest = max(map(len, prefix), default=0) if isinstance(prefix, tuple) else len(prefix)
        return self[at : at + longest].startswith(prefix)

    def within(self, start: int, end: int) -> "Window":
        """A part of it as a window of its own."""
        start, end, _ = slice(start, end).indices(self.size)
        return Window(self.file, self.start + start, max(0, end - start))


def window(data: bytes) -> Window:
    """The same for bytes in memory."""
    return Window(io.BytesIO(data), 0, len(data))


def on_time(until: float, doing: str) -> None:
    """Raise GaveUp after a deadline, time.monotonic()."""
    if time.monotonic() > until:
        raise GaveUp(f"gave up at {doing}: it takes too long", "name a smaller file, or unpack it and name its content")


def packer(data: bytes | Window) -> str | None:
    """The compression format, by the first bytes: `gzip`, `bzip2`, `xz`, `lzma`, `zstd`, `lz4`, `lzo` or None."""
    return next((name for magic, name in PACKERS if data.startswith(magic)), None)


def unpack(data: bytes, limit: int = LARGEST) -> tuple[bytes, bytes]:
    """Unpack the first compressed stream, and give its content and what follows it.

    ValueError says what is wrong: an unknown format, damaged, cut short, or more than `limit` bytes. ToolError for a
    format of PROGRAMS without its program; for these formats, nothing may follow the stream.
    """
    content, used = unpacked(window(data), limit)
    return content[0 : len(content)], data[used:]


def unpacked(packed: Window, limit: int = LARGEST, until: float = math.inf) -> tuple[Window, int]:
    """The same with the content as a window, and the number of bytes that its stream takes; GaveUp after `until`."""
    kind = packer(packed)
    if kind in PROGRAMS:
        return _by_program(PROGRAMS[kind], packed, limit, until), len(packed)
    unpacker = _unpacker(kind)
    content = io.BytesIO()
    at = size = 0
    while not unpacker.eof:
        on_time(until, f"byte {size} of what it unpacks into")
        piece = packed[at : at + PIECE] if unpacker.needs_input else b""
        at += len(piece)
        some = _some(unpacker, piece, PIECE)
        if not (piece or some or unpacker.eof):
            raise ValueError("cut short")
        size += len(some)
        if size > limit:
            raise TooLarge(f"unpacks into more than {limit} bytes")
        content.write(some)
    return Window(content, 0, size), at - len(unpacker.unused_data)


def unpack_head(data: bytes | Window, size: int) -> bytes:
    """The first `size` bytes of the content of a compressed stream, or all of it if it is shorter.

    It shows whether unpacking everything is worth the time. ValueError if the stream is damaged, or of PROGRAMS.
    """
    unpacker = _unpacker(packer(data))
    return _some(unpacker, data[0:PIECE], size)


class _Gzip:
    """zlib's unpacker with the interface of the others, which keep the input that they have not used."""

    def __init__(self) -> None:
        self.inner = zlib.decompressobj(31)
        self.full = False

    def decompress(self, data: bytes, size: int) -> bytes:
        some = self.inner.decompress(self.inner.unconsumed_tail + data, size)
        self.full = len(some) == size
        return some

    @property
    def needs_input(self) -> bool:
        return not (self.full or self.inner.unconsumed_tail)

    @property
    def eof(self) -> bool:
        return self.inner.eof

    @property
    def unused_data(self) -> bytes:
        return self.inner.unused_data


def _unpacker(kind: str | None) -> Any:
    match kind:
        case "gzip":
            return _Gzip()
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


def _by_program(program: str, packed: Window, limit: int, until: float) -> Window:
    run.require(program)
    with scratch.folder("image") as folder:
        source, content = folder / "packed", folder / "content"
        with source.open("wb") as file:
            for at in range(0, len(packed), PIECE):
                file.write(packed[at : at + PIECE])
        # lz4 takes the output as a separate argument.
        output = [content] if program == "lz4" else ["-o", content]
        argv = ["prlimit", "--core=0", f"--fsize={limit}", program, "-d", "-q", source, *output]
        try:
            left = until - time.monotonic()
            run.run(argv, deadline=min(PROGRAM_DEADLINE, max(left, 0.1)), bare=True)
        except ToolError as error:
            on_time(until, f"unpacking with {program}")
            if "SIGXFSZ" in error.message:
                raise TooLarge(f"unpacks into more than {limit} bytes") from error
            said = OWN_NAME.sub("", error.message.splitlines()[-1].removeprefix("  | "))
            if NOT_DAMAGE.search(error.message):
                raise GaveUp(f"gave up: {program}: {said}", "make room for it: memory, or space in $TMPDIR") from error
            raise ValueError(f"damaged: {said}") from error
        # The open file outlives the folder.
        return Window(content.open("rb"), 0, content.stat().st_size)
