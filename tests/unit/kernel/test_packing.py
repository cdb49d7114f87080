# SPDX-License-Identifier: Apache-2.0
"""Every compression is unpacked, within bounds."""

import bz2
import gzip
import io
import lzma
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from minguest.kernel import packing
from minguest.util.errors import ToolError


def zstd(content: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c"], input=content, capture_output=True, check=True).stdout


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("gzip", gzip.compress),
        ("bzip2", bz2.compress),
        ("xz", lzma.compress),
        ("lzma", lambda content: lzma.compress(content, lzma.FORMAT_ALONE)),
        ("zstd", zstd),
    ],
)
def test_what_is_packed(name: str, pack: Callable[[bytes], bytes]) -> None:
    content = bytes(range(256)) * 1000
    packed = pack(content)
    assert packing.packer(packed) == name
    assert packing.unpack(packed, len(content)) == (content, b"")
    with pytest.raises(ValueError, match="unpacks into more than 255999 bytes"):
        packing.unpack(packed, len(content) - 1)
    with pytest.raises(ValueError, match="damaged" if name == "zstd" else "cut short"):
        packing.unpack(packed[:-9])
    with pytest.raises(ValueError, match="damaged"):
        packing.unpack(packed[:8] + bytes(range(99)) + packed[9:])
    if name != "zstd":
        assert packing.unpack_head(packed, 10) == content[:10]
        assert packing.unpack(packed + b"more") == (content, b"more")


def test_what_is_not_packed() -> None:
    assert packing.packer(b"BZ") is None
    for unpack in (packing.unpack, packing.unpack_head):
        with pytest.raises(ValueError, match="not compressed"):
            unpack(b"text", 10)


def test_a_program_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolError, match="lz4: no such program"):
        packing.unpack(b"\x02\x21\x4c\x18")


def test_a_program_without_memory_does_not_make_a_file_damaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for said, error in (
        ("packed : Decoding error (36) : Allocation error : not enough memory", packing.GaveUp),
        ("error 28: No space left on device", packing.GaveUp),
        ("packed : Decoding error (36) : Restored data doesn't match checksum", ValueError),
    ):
        (tmp_path / "zstd").write_text(f'#!/bin/sh\necho "{said}" >&2; exit 1\n')
        (tmp_path / "zstd").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}", prepend=":")
        with pytest.raises(error) as caught:
            packing.unpack(b"\x28\xb5\x2f\xfd")
        assert "packed" not in str(caught.value)


def test_unpacking_ends_in_time() -> None:
    with pytest.raises(packing.GaveUp, match="gave up at byte 0 of what it unpacks into: it takes too long"):
        packing.unpacked(packing.window(gzip.compress(bytes(1 << 21))), until=time.monotonic() - 1)


def test_a_window_is_sliced_like_bytes() -> None:
    data = bytes(range(100))
    window = packing.Window(io.BytesIO(b"before" + data + b"behind"), 6, 100)
    for part in (slice(0, 10), slice(90, 200), slice(100, 300), slice(20, 10), slice(0, 100)):
        assert window[part] == data[part]
    inner = window.within(10, 500)
    assert (len(inner), inner[0:3], inner.startswith(b"\x0a"), inner.startswith(b"\x0c", 2)) == (
        90,
        data[10:13],
        True,
        True,
    )
