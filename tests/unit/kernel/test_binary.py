# SPDX-License-Identifier: Apache-2.0
"""Images are read, not trusted."""

import gzip
import struct
import subprocess
from pathlib import Path

import pytest

from minguest.kernel import binary
from minguest.util.errors import UserError


def header(flags: int = 0b1011, size: int = 0x4000) -> bytes:
    """A boot header without a PE header before it, from Documentation/arch/x86/boot.rst."""
    data = bytearray(size)
    data[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", data, 0x206, 0x020F)
    struct.pack_into("<H", data, 0x20E, 0x100)
    data[0x300:0x310] = b"6.12.94 (me@host"
    data[0x234] = 1
    struct.pack_into("<H", data, 0x236, flags)
    struct.pack_into("<I", data, 0x260, 0x1234000)
    return bytes(data)


def with_pe(data: bytes, machine: int = 0x8664, subsystem: int = 10) -> bytes:
    """The same with a PE header, from the PE/COFF specification."""
    image = bytearray(data)
    image[0:2] = b"MZ"
    struct.pack_into("<I", image, 0x3C, 0x40)
    struct.pack_into("<4sHHIIIHH", image, 0x40, b"PE\0\0", machine, 0, 0, 0, 0, 0xA0, 0x206)
    struct.pack_into("<H", image, 0x58, 0x20B)
    struct.pack_into("<H", image, 0x58 + 68, subsystem)
    return bytes(image)


def test_the_boot_header(tmp_path: Path) -> None:
    path = tmp_path / "bzImage"
    path.write_bytes(header())
    facts = binary.bzimage(path)
    assert (facts.protocol, facts.version, facts.relocatable) == ("2.15", "6.12.94 (me@host", True)
    assert facts.xloadflags == ("kernel-64", "above-4g", "efi-handover-64")
    assert facts.init_size == 0x1234000
    assert not facts.efi_stub
    assert facts.compression is None


def test_where_a_kernel_likes_to_be(tmp_path: Path) -> None:
    data = bytearray(header())
    struct.pack_into("<I", data, 0x230, 0x200000)
    data[0x235] = 12
    struct.pack_into("<Q", data, 0x258, 0x1000000)
    struct.pack_into("<I", data, 0x264, 0x190)
    struct.pack_into("<H", data, 0x20E, 0)
    facts = binary.bzimage_facts(bytes(data), "k")
    assert (facts.alignment, facts.min_alignment) == (0x200000, 0x1000)
    assert (facts.pref_address, facts.handover_offset, facts.version) == (0x1000000, 0x190, "")


def test_where_the_payload_is() -> None:
    data = bytearray(header())
    data[0x1F1] = 3
    struct.pack_into("<II", data, 0x248, 0x10, 0x20)
    start = 4 * 512 + 0x10
    struct.pack_into("<I", data, start + 0x1C, 777)

    def found(first: bytes) -> binary.Payload | None:
        data[start : start + 8] = first.ljust(8, b"\0")
        return binary.payload(bytes(data))

    size_behind = {b"BZh9": "bzip2", b"\x28\xb5\x2f\xfd": "zstd", b"\x5d\0\0": "lzma", b"?": None}
    for first, name in size_behind.items():
        assert found(first) == binary.Payload(start, start + 0x1C, start + 0x20, name, 777)
    assert found(b"\x1f\x8b\x08") == binary.Payload(start, start + 0x20, start + 0x20, "gzip", 777)
    assert found(b"\x7fELF") == binary.Payload(start, start + 0x20, start + 0x20, "none", None)
    data[0x1F1] = 0  # stands for 4
    assert found(b"")
    assert binary.payload(bytes(data)).start == start + 512  # type: ignore[union-attr]
    struct.pack_into("<H", data, 0x206, 0x207)
    assert found(b"") is None


@pytest.mark.parametrize(("machine", "subsystem", "stub"), [(0x8664, 10, True), (0x14C, 10, False), (0x8664, 3, False)])
def test_the_efi_stub_is_a_pe_header_for_this_machine(tmp_path: Path, machine: int, subsystem: int, stub: bool) -> None:
    path = tmp_path / "bzImage"
    path.write_bytes(with_pe(header(), machine, subsystem))
    assert binary.bzimage(path).efi_stub is stub


@pytest.mark.parametrize("data", [b"", b"\x7fELF" + b"\0" * 0x2000, header()[:0x300]])
def test_what_is_no_kernel_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bzImage"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"bzImage: not an x86 kernel image"):
        binary.bzimage(path)


def test_static_and_dynamic_programs(tmp_path: Path) -> None:
    (tmp_path / "x.c").write_text("int main(void) { return 0; }\n")
    for name, argv in {"static": ["musl-gcc", "-static"], "dynamic": ["gcc"], "pie": ["gcc", "-static-pie"]}.items():
        subprocess.run([*argv, "-o", tmp_path / name, tmp_path / "x.c"], check=True)
        facts = binary.elf(tmp_path / name)
        assert (facts.machine, facts.bits, facts.static) == ("x64", 64, name != "dynamic")
    assert binary.elf(tmp_path / "dynamic").needed == ("libc.so.6",)


def test_a_text_is_no_elf_file() -> None:
    with pytest.raises(UserError, match="not an ELF file"):
        binary.elf(Path(__file__))


def test_the_embedded_config(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    packed = gzip.compress(b"CONFIG_EFI=y\n")
    path.write_bytes(b"code" + b"IKCFG_ST" + packed + b"IKCFG_ED" + b"data")
    assert binary.embedded_config(path) == "CONFIG_EFI=y\n"
    path.write_bytes(b"code")
    assert binary.embedded_config(path) is None
    path.write_bytes(b"IKCFG_ST" + packed[:-4] + b"IKCFG_ED")
    with pytest.raises(UserError, match="embedded config is unreadable"):
        binary.embedded_config(path)


def test_an_embedded_config_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary, "LARGEST_CONFIG", 100)
    with pytest.raises(UserError, match="k: its embedded config is unreadable: unpacks into more than 100 bytes"):
        binary.embedded_config_in(b"IKCFG_ST" + gzip.compress(bytes(101)) + b"IKCFG_ED", "k")
