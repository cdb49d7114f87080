# SPDX-License-Identifier: Apache-2.0
"""A kernel of others is taken for what its content says; everything else is refused by name."""

import bz2
import gzip
import io
import lzma
import os
import struct
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minguest.bundle import cpio
from minguest.kernel import binary, image, kconfig
from minguest.kernel.image import Image
from minguest.kernel.others import NotAKernel
from minguest.kernel.packing import GaveUp
from minguest.util.errors import UserError
from tests import ROOT
from tests.unit.bundle.test_compare import image as bzimage
from tests.unit.bundle.test_compare import with_size, zstd
from tests.unit.kernel.test_binary import header, with_pe

Read = Callable[..., Image]
VERSION = "6.1.0-9-foreign (me@host) #1 SMP Debian 6.1.1 (2026-01-01)"
BANNER = "Linux version 6.1.0-9-foreign (me@host) (gcc-12 (Debian 12.2.0) 12.2.0, GNU ld 2.40) #1 SMP Debian 6.1.1 (2026-01-01)"  # noqa: E501
# Some of the options that Kconfig sets by itself: without them, a config is a fragment.
HIDDEN = "".join(f"CONFIG_HAVE_ARCH_{number}=y\n" for number in range(20))
CONFIG = f'CONFIG_X86_64=y\nCONFIG_LOCALVERSION=""\nCONFIG_EFI=y\n# CONFIG_SMP is not set\n{HIDDEN}'
OPTIONS = {"X86_64": "y", "LOCALVERSION": '""', "EFI": "y", "SMP": "n", **kconfig.parse_config(HIDDEN)}
LINK = ["gcc", "-nostdlib", "-static", "-no-pie", "-mcmodel=kernel", "-fno-pic", "-Wl,--build-id=none"]
AT = "-Wl,-Ttext-segment=0xffffffff81000000"


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads bytes as a file named `k`."""

    def read(data: bytes, *look_for: str) -> Image:
        (tmp_path / "k").write_bytes(data)
        return image.read(tmp_path / "k", look_for)

    return read


def linked(folder: Path, *flags: str, banner: str = BANNER, config: bytes = b"") -> bytes:
    """A kernel as small as can be: linked to where kernels run, with a banner, a string and maybe a config."""
    (folder / "config").write_bytes(b"IKCFG_ST" + gzip.compress(config) + b"IKCFG_ED" if config else b"")
    (folder / "x.c").write_text(
        f'const char linux_banner[] = "{banner}\\n"; const char said[] = "\\0016efi: EFI v%u.%.02u by";\n'
        '__asm__(".section .rodata\\n.incbin \\"config\\"\\n.text");\n'
        "void _start(void) {}\n"
    )
    subprocess.run([*LINK, *flags, "-o", "vmlinux", "x.c"], cwd=folder, check=True)
    return (folder / "vmlinux").read_bytes()


@pytest.fixture(scope="session")
def vmlinux(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return linked(tmp_path_factory.mktemp("kernel"), AT, config=CONFIG.encode())


@pytest.fixture(scope="session")
def stripped(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """As a bzImage has it, with relocations behind it."""
    return linked(tmp_path_factory.mktemp("kernel"), AT, "-s", config=CONFIG.encode()) + b"relocs\0\xff" * 3


def kernel(payload: bytes, *, pe: bool = True) -> bytes:
    """A bzImage with its CRC-32, and with the size that a whole one has."""
    made = bzimage(payload, tail=b"decompressor\0" * 0x200, pe=pe)
    made += b"\0" * (-(len(made) + 4) % 16)
    return with_crc(put(made, 0x1F4, "<I", (len(made) + 4 - 4 * 512) // 16))


def with_crc(data: bytes) -> bytes:
    """With the CRC-32 that makes the CRC-32 of all 0xffffffff: Documentation/arch/x86/boot.rst."""
    return data + struct.pack("<I", zlib.crc32(data) ^ 0xFFFF_FFFF)


def rebuilt(data: bytes) -> bytes:
    """A kernel that was built so: with the right CRC-32 again."""
    return with_crc(data[:-4])


def put(data: bytes, at: int, layout: str, *values: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(layout, changed, at, *values)
    return bytes(changed)


def put_bytes(data: bytes, at: int, content: bytes) -> bytes:
    return data[:at] + content + data[at + len(content) :]


def piped(*argv: str) -> Callable[[bytes], bytes]:
    return lambda content: subprocess.run(argv, input=content, capture_output=True, check=True).stdout


def xz_for_x86(content: bytes) -> bytes:
    """As scripts/xz_wrap.sh of the kernel does it."""
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 25}]
    return lzma.compress(content, check=lzma.CHECK_CRC32, filters=filters)


def lzma_alone(content: bytes) -> bytes:
    return lzma.compress(content, lzma.FORMAT_ALONE)


PACKERS = [
    pytest.param("gzip", gzip.compress, id="gzip"),
    pytest.param("bzip2", bz2.compress, id="bzip2"),
    pytest.param("lzma", lzma_alone, id="lzma"),
    pytest.param("xz", xz_for_x86, id="xz"),
    pytest.param("zstd", zstd, id="zstd"),
    pytest.param("lz4", piped("lz4", "-l", "-9", "-", "-"), id="lz4"),
    pytest.param("lzo", piped("lzop", "-9"), id="lzo"),
]


def pack(name: str, packed: bytes, content: bytes) -> bytes:
    return packed if name == "gzip" else with_size(packed, content)


# ── what is read ──


@pytest.mark.parametrize(("name", "compress"), PACKERS)
def test_a_kernel_of_every_compression(
    read: Read, stripped: bytes, name: str, compress: Callable[[bytes], bytes]
) -> None:
    found = read(kernel(pack(name, compress(stripped), stripped)), "efi: EFI v", "smpboot: Allowing")
    assert (found.kind, found.compression, found.opened, found.closed_because) == ("bzImage", name, True, "")
    assert found.config == OPTIONS
    assert found.strings == {"efi: EFI v"}
    assert found.version == "6.12.94 (me@host"  # the header's
    assert found.bzimage
    assert (found.bzimage.compression, found.bzimage.efi_stub) == (name, True)
    assert found.size == found.bzimage.size == Path(found.path).stat().st_size


def test_a_kernel_that_is_not_packed(read: Read, stripped: bytes) -> None:
    found = read(kernel(stripped, pe=False))
    assert (found.compression, found.opened, found.config) == ("none", True, OPTIONS)
    assert found.bzimage
    assert not found.bzimage.efi_stub


def test_a_vmlinux(read: Read, vmlinux: bytes) -> None:
    found = read(vmlinux, "efi: EFI v", "\u2026")
    assert (found.kind, found.compression, found.opened, found.bzimage) == ("vmlinux", "none", True, None)
    assert (found.version, found.config) == (VERSION, OPTIONS)
    assert found.strings == {"efi: EFI v"}


def test_a_vmlinux_without_symbols_and_config(read: Read, tmp_path: Path) -> None:
    found = read(linked(tmp_path, AT, "-s", banner="Linux version 7.0 of nobody"))
    assert (found.version, found.config) == ("7.0 of nobody", None)


def test_only_what_is_loaded_is_searched(read: Read, vmlinux: bytes, tmp_path: Path) -> None:
    (tmp_path / "debug").write_bytes(b"efi: a string of debug information")
    argv = ["objcopy", "--add-section", f".debug_str={tmp_path}/debug"]
    (tmp_path / "v").write_bytes(vmlinux)
    subprocess.run([*argv, tmp_path / "v"], check=True)
    assert read((tmp_path / "v").read_bytes(), "efi: EFI v", "efi: a string").strings == {"efi: EFI v"}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_config(read: Read, newline: str) -> None:
    text = f"#\n# Automatically generated file; DO NOT EDIT.\n# Linux/x86 6.12.94 Kernel Configuration\n#\n{CONFIG}"
    found = read(text.replace("\n", newline).encode(), "EFI")
    assert (found.kind, found.version, found.config) == ("config", "6.12.94", OPTIONS)
    assert (found.opened, found.strings, found.compression) == (True, frozenset(), "none")
    assert read(CONFIG.encode()).version is None
    assert read(gzip.compress(CONFIG.encode())).wrapped_in == "gzip"  # /proc/config.gz


TITLE = "# Linux/x86 6.12.94 Kernel Configuration\n"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param((TITLE + CONFIG).replace("\n", " \t\n").encode(), id="blanks at the ends"),
        pytest.param((TITLE + CONFIG).replace("\n", "\n  \t").encode(), id="indented"),
        pytest.param(b"\xef\xbb\xbf" + (TITLE + CONFIG).encode(), id="byte order mark"),
        pytest.param((TITLE + CONFIG).encode("utf-16"), id="UTF-16"),
        pytest.param(b'CONFIG_DEFAULT_HOSTNAME="m\xfcller"\n' + (TITLE + CONFIG).encode(), id="a byte of Latin-1"),
        pytest.param(gzip.compress((TITLE + CONFIG + " \n").encode()), id="gzip"),
        pytest.param(lzma.compress((TITLE + CONFIG + " \n").encode()), id="xz"),
        pytest.param(zstd((TITLE + CONFIG + " \n").encode()), id="zstd"),
    ],
)
def test_a_config_that_went_through_an_editor(read: Read, data: bytes) -> None:
    found = read(data)
    assert (found.kind, found.version) == ("config", "6.12.94")
    assert found.config
    assert {name: found.config[name] for name in OPTIONS} == OPTIONS


def test_a_config_has_nothing_else_in_it(read: Read) -> None:
    with pytest.raises(NotAKernel, match="a text that begins"):
        read(f"{CONFIG} <<<<<<< HEAD\n".encode())


@pytest.mark.parametrize(("name", "compress"), PACKERS)
def test_a_file_that_is_packed_as_a_whole(
    read: Read, vmlinux: bytes, name: str, compress: Callable[[bytes], bytes]
) -> None:
    found = read(compress(vmlinux))
    assert (found.kind, found.wrapped_in, found.compression, found.version) == ("vmlinux", name, name, VERSION)
    assert found.size < len(vmlinux)


def with_section(data: bytes, name: bytes = b".linux", machine: int = 0x8664) -> bytes:
    """An EFI program with one section, filled up to the file's alignment."""
    stub = put(with_pe(bytes(0x600), machine), 0x46, "<H", 1)
    filled = len(data) + 0x100
    row = struct.pack("<8sIIII12xI", name, len(data), 0x10000, filled, 0x600, 0x40000040)
    return stub[: 0x58 + 0xA0] + row + stub[0x58 + 0xA0 + len(row) :] + data + bytes(0x100)


def test_the_kernel_inside_of_a_uki(read: Read, stripped: bytes) -> None:
    inner = kernel(gzip.compress(stripped))
    found = read(with_section(inner))
    assert (found.kind, found.wrapped_in, found.compression, found.config) == ("bzImage", "UKI", "gzip", OPTIONS)
    assert found.bzimage
    assert found.bzimage.size == len(inner) < found.size
    assert read(gzip.compress(with_section(inner))).wrapped_in == "gzip, UKI"


def with_sections(sections: dict[bytes, bytes]) -> bytes:
    """A UKI with these sections, as ukify, mkosi and dracut make it."""
    stub = put(with_pe(bytes(0x600), 0x8664), 0x46, "<H", len(sections))
    rows, content = b"", b""
    for name, data in sections.items():
        filled = data + bytes(-len(data) % 512)
        rows += struct.pack("<8sIIII12xI", name, len(data), 0x10000, len(filled), 0x600 + len(content), 0x40000040)
        content += filled
    return stub[: 0x58 + 0xA0] + rows + stub[0x58 + 0xA0 + len(rows) :] + content


def test_the_command_line_of_a_uki(read: Read, stripped: bytes) -> None:
    inner = kernel(gzip.compress(stripped))
    line = b" root=LABEL=x  acpi=off\n\0"
    found = read(with_sections({b".osrel": b"ID=x\n", b".cmdline": line, b".linux": inner, b".initrd": b"x"}))
    assert (found.wrapped_in, found.cmdline, found.damage) == ("UKI", "root=LABEL=x acpi=off", "")
    assert found.config == OPTIONS
    assert read(with_sections({b".linux": inner})).cmdline is None


def test_the_entry_for_pvh_loaders(read: Read, tmp_path: Path) -> None:
    note = (
        '__asm__(".section .note.Xen,\\"a\\",@note\\n.long 4, 8, 18\\n.asciz \\"Xen\\"\\n.quad 0x1000080\\n.text");\n'
    )
    (tmp_path / "note.c").write_text(note)
    assert read(linked(tmp_path, AT, "note.c")).pvh_entry == 0x1000080
    assert read(linked(tmp_path, AT)).pvh_entry is None


# ── what stays closed: the headers are still facts ──


def closed(read: Read, payload: bytes) -> str:
    found = read(kernel(payload), "efi: EFI v")
    assert (found.opened, found.config, found.strings) == (False, None, frozenset())
    assert (found.kind, found.version) == ("bzImage", "6.12.94 (me@host")
    return found.closed_because


@pytest.mark.parametrize(
    ("magic", "why"),
    [
        (b"\x02\x21\x4c\x18", "lz4: the program lz4 is not installed"),
        (b"\x89LZO\0\r\n\x1a\n", "lzo: the program lzop is not installed"),
        (b"\x28\xb5\x2f\xfd", "zstd: the program zstd is not installed"),
    ],
)
def test_a_program_that_is_missing_is_named(
    read: Read, monkeypatch: pytest.MonkeyPatch, magic: bytes, why: str
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert closed(read, with_size(magic, b"content")) == why
    with pytest.raises(UserError, match=f"{why.split(': ')[1]}\n  remedy: apt-get install"):
        read(magic)


def test_lzop_gets_its_arguments(read: Read, stripped: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a fake lzop, which takes the arguments of the real one; to pack is to add the magic."""
    (tmp_path / "bin").mkdir()
    script = '#!/bin/sh\n[ "$1 $2 $4" = "-d -q -o" ] && tail -c +6 "$3" >"$5"\n'
    (tmp_path / "bin/lzop").write_text(script)
    (tmp_path / "bin/lzop").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=":")
    assert read(kernel(with_size(b"\x89LZO\0" + stripped, stripped))).config == OPTIONS


@pytest.mark.parametrize(("name", "compress"), PACKERS)
def test_a_damaged_payload_is_said(read: Read, stripped: bytes, name: str, compress: Callable[[bytes], bytes]) -> None:
    packed = compress(stripped)
    assert closed(read, pack(name, packed[: len(packed) // 2], stripped)).startswith(f"{name}: ")


@pytest.mark.parametrize(("name", "compress"), PACKERS)
def test_more_than_it_says_is_not_unpacked(
    read: Read, stripped: bytes, name: str, compress: Callable[[bytes], bytes]
) -> None:
    packed = compress(stripped)
    packed = packed[:-4] if name == "gzip" else packed
    less = closed(read, packed + struct.pack("<I", len(stripped) - 1))
    more = closed(read, packed + struct.pack("<I", len(stripped) + 1))
    if name == "gzip":  # it checks its own size
        assert less == more == "gzip: damaged: Error -3 while decompressing data: incorrect length check"
    else:
        assert less == f"{name}: unpacks into more than {len(stripped) - 1} bytes"
        assert more == f"{name}: unpacks into {len(stripped)} bytes, but records {len(stripped) + 1}"


def test_a_payload_of_an_unlikely_size(read: Read) -> None:
    assert "2147483648 bytes, more than any kernel" in closed(read, b"BZh9" + struct.pack("<I", 1 << 31))
    assert closed(read, b"unknown to us") == "unknown compression: its first bytes are " + (b"unknown ".hex(" "))


@pytest.mark.parametrize(("name", "compress"), PACKERS)
def test_a_flipped_bit_in_the_payload_is_damage(
    read: Read, stripped: bytes, name: str, compress: Callable[[bytes], bytes]
) -> None:
    payload = pack(name, compress(stripped), stripped)
    whole = kernel(payload)
    assert (read(whole).damage, read(whole).doubt) == ("", "")
    start = whole.index(payload)
    shown = 0
    for part in range(1, 20):
        at = start + len(payload) * part // 20
        found = read(put(whole, at, "<B", whole[at] ^ 0x10))
        # Where unpacking does not show it, the header's CRC-32 does.
        assert found.damage.startswith(f"{name}: ") or (
            found.doubt == "its CRC-32 is wrong: damaged, or a tool changed its header"
        )
        shown += bool(found.damage)
    # lz4 and lzma have no checksum of their content. All have bits that say nothing: tables that no block uses, or how
    # far back in a run of zeros they are copied from.
    assert shown > (0 if name in ("lz4", "lzma") else 12)


@pytest.mark.parametrize("part", [0.3, 0.9])
def test_a_payload_that_is_cut_short_is_damage(read: Read, stripped: bytes, part: float) -> None:
    whole = kernel(gzip.compress(stripped + os.urandom(1 << 16)))
    found = read(whole[: int(len(whole) * part)])
    assert found.damage == f"cut short: {int(len(whole) * part)} bytes, but its header requires at least {len(whole)}"
    assert (found.version, found.opened) == ("6.12.94 (me@host", False)


def test_zeros_from_some_point_on_are_damage(read: Read, stripped: bytes) -> None:
    payload = gzip.compress(stripped + os.urandom(1 << 16))
    whole = kernel(payload)
    behind = whole.index(payload) + len(payload)
    for at in (behind - 20000, behind, len(whole) - 4):
        found = read(whole[:at] + bytes(len(whole) - at))
        if at <= behind:
            used = len(whole[:at].rstrip(b"\0"))
            assert found.damage == f"nothing but zeros from byte {used} on: the copy was not completed"
        else:
            assert found.doubt == "its CRC-32 is wrong: damaged, or a tool changed its header"


def test_a_signed_kernel_is_not_damaged(read: Read, stripped: bytes) -> None:
    """To sign changes two fields of the PE header, and adds a table behind the image."""
    whole = kernel(gzip.compress(stripped))
    signed = put(put(whole, 0x58 + 64, "<I", 0xA5B3D8), 0x58 + 144, "<II", len(whole), 8) + b"\x08\0\0\0\0\2\2\0"
    assert (read(signed).damage, read(signed).doubt) == ("", "")
    assert read(put(signed, 0x1FA, "<H", 0x317)).doubt  # the header's video mode


def test_a_kernel_of_a_time_without_crc_is_not_doubted(read: Read, stripped: bytes) -> None:
    whole = kernel(gzip.compress(stripped))
    for version, doubted in ((b"6.14.2 (m@h", True), (b"6.16.1 (m@h", False), (b"7.0.1 (m@h", False)):
        new = put_bytes(whole, 0x300, version)
        assert ("CRC-32" in read(new).doubt) is doubted


def test_what_is_unpacked_and_not_a_kernel_is_damage(read: Read, stripped: bytes, tmp_path: Path) -> None:
    assert "not an ELF file" in read(kernel(gzip.compress(b"\0" + stripped[1:]))).damage
    config = linked(tmp_path, AT, "-s", config=CONFIG.encode())
    at = config.index(b"IKCFG_ST") + 30
    assert "embedded config is unreadable" in read(kernel(gzip.compress(put(config, at, "<Q", 0)))).damage
    other = kernel(gzip.compress(linked(tmp_path, AT, "-s", banner="Linux version 5.4.0 (a@b) (gcc) #1")))
    assert read(other).doubt == ""
    found = read(put_bytes(other, 0x300, b"6.16.1 (m@h"))  # without a CRC-32
    assert found.doubt == "its header has the version 6.16.1, its payload 5.4.0"


# ── what is refused ──


def tarball() -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("vmlinuz"))
    return held.getvalue()


ARM64 = put(bytes(0x1000), 0x38, "<I", 0x644D5241)
INITRD = cpio.archive([cpio.Entry("init", 0o100755, b"\x7fELF" * 20000)])


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "k: empty"),
        (INITRD, "not a kernel: an initrd"),
        (gzip.compress(INITRD), r"k \(unpacked from gzip\): not a kernel: an initrd"),
        (zstd(INITRD), r"k \(unpacked from zstd\): not a kernel: an initrd"),
        (tarball(), "not a kernel: a tarball"),
        (lzma.compress(tarball()), r"\(unpacked from xz\): not a kernel: a tarball"),
        (ARM64, "not a kernel: a kernel for arm64"),
        (b"MZ" + ARM64[2:], "not a kernel: a kernel for arm64"),
        (gzip.compress(ARM64), r"\(unpacked from gzip\): not a kernel: a kernel for arm64"),
        (with_section(b"", b".text"), "an EFI program, but no kernel"),
        (with_section(b"", b".linux", 0xAA64), "an EFI program for arm64, not for x86-64"),
        (with_pe(ARM64, 0xAA64), "k: a kernel for arm64, not for x86-64"),
        (with_section(b"MZ"), r"its section .linux\): not a kernel"),
        (with_section(bytes(0x2000))[:0x1000], "k: cut short: 4096 bytes, but its header requires at least 9728"),
        (b"\0\x01\x02\x03random", "not a kernel: bytes that begin 00 01 02 03"),
        (b"\xc3\x28 no text", "not a kernel: bytes that begin c3 28"),
        (b"0000 T _text\n", "not a kernel: a text that begins '0000 T _text'"),
        (header()[:0x300], "k: cut short: 768 bytes"),
        (kernel(b""), r"6.12.94 .*\(boot protocol 2.15\), but no compressed kernel: it is not Linux\n"),
        (put(kernel(b"x" * 9), 0x206, "<H", 0x207), r"\(boot protocol 2.07\) of a time before linux 2.6.26: .* not ex"),
        (rebuilt(put(kernel(b"x" * 9), 0x236, "<H", 0)), "a 32-bit kernel"),
        (gzip.compress(b"x" * 99)[:20], "k: compressed with gzip, and cannot be unpacked: cut short"),
        (b"\x7fELF", "k: not an ELF file, or cut short"),
        (b"!<arch>\ndebian-binary   1\0", "a Debian package"),
        (b"\xed\xab\xee\xdb\3\0", "an RPM package"),
        (put_bytes(bytes(0x9000), 0x8001, b"CD001"), "an ISO 9660 image"),
        (put_bytes(bytes(0x200), 0x180, b"GRUB "), "the boot sector of GRUB"),
        (put_bytes(kernel(b""), 0x800, b"Memtest86+"), r"k: Memtest86\+: has .*boot protocol 2.15.*it is not Linux"),
        (put_bytes(put(kernel(b""), 0x206, "<H", 0x207), 0x300, b"1.21.1+git\0"), "2.07.* not the version of a Linux"),
        (put_bytes(with_section(b"", b".text"), 0x500, b"iPXE 1.21"), "k: iPXE, but no kernel"),
        (put_bytes(with_section(b"", b".text"), 0x500, b"Xen version "), "k: the hypervisor Xen, but no kernel"),
        (put_bytes(with_section(b"", b".text"), 0x500, b"GRUB 2.06"), "k: GRUB, but no kernel"),
        (put_bytes(with_section(b"", b".text", 0xAA64), 4, b"zimg"), r"a compressed kernel \(EFI zboot\) for arm64"),
        (put_bytes(with_section(b"", b".text", 0x5064), 0x38, b"RSC\x05"), "k: a kernel for riscv64, not for x86-64"),
        (b"CONFIG_ARM64=y\nCONFIG_64BIT=y\n" + CONFIG.encode()[16:], "k: a config for arm64, not for x86-64"),
        (b"CONFIG_RISCV=y\nCONFIG_64BIT=y\n" + CONFIG.encode()[16:], "k: a config for riscv64, not for x86-64"),
        (b"CONFIG_X86_32=y\nCONFIG_X86=y\n" + CONFIG.encode()[16:], "k: a config for 32-bit x86, not for x86-64"),
        (b"#\n# Xen/x86 4.17.7 Configuration\n#\nCONFIG_X86_64=y\n", "the config of 'Xen/x86 4.17.7', not of a Linux"),
    ],
)  # fmt: skip
def test_what_is_no_kernel_is_named(read: Read, data: bytes, what: str) -> None:
    with pytest.raises(UserError, match=what) as caught:
        read(data)
    assert caught.value.remedy


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, what in ((tmp_path, "a folder"), (tmp_path / "none", "No such file"), (tmp_path / "pipe", "a pipe"),
                       (Path("/dev/null"), "not a plain file")):  # fmt: skip
        with pytest.raises(UserError, match=what) as caught:
            image.read(path)
        assert str(path) in caught.value.message


def test_elf_files_that_are_no_kernel(read: Read, vmlinux: bytes, tmp_path: Path) -> None:
    (tmp_path / "o.c").write_text("int x;\n")
    for flag in ("-m64", "-m32"):
        subprocess.run(["gcc", flag, "-c", "-o", f"o{flag}", "o.c"], cwd=tmp_path, check=True)
    # Linked as a program is; and a kernel of another name.
    program = linked(tmp_path)
    other = linked(tmp_path, AT, banner="FreeBSD 15")
    for data, what in (
        ((tmp_path / "o-m64").read_bytes(), "not a kernel: it is not a linked program"),
        ((tmp_path / "o-m32").read_bytes(), "for 32-bit x86, not for x86-64"),
        (put(vmlinux, 0x12, "<H", 183), "for arm64, not for x86-64"),
        (program, "no segment is in the kernel's address space"),
        (other, "not a Linux kernel"),
        (vmlinux[:-1], "cut short"),
        (vmlinux[:0x20], "not an ELF file, or cut short"),
        (put(vmlinux, 0x40 + 32, "<Q", 1 << 40), "cut short"),
    ):
        with pytest.raises(UserError, match=what):
            read(data)


def test_a_kernel_inside_of_a_library(read: Read, tmp_path: Path, vmlinux: bytes) -> None:
    """libkrunfw has the kernel's segments as data, and functions that say where they are."""
    (tmp_path / "kernel").write_bytes(vmlinux)
    (tmp_path / "l.c").write_text(
        '__asm__(".data\\n.globl bundle\\nbundle: .incbin \\"kernel\\"\\n.text");\n'
        "extern char bundle[]; char *krunfw_get_kernel(void) { return bundle; }\n"
    )
    argv = ["gcc", "-shared", "-fPIC", "-nostdlib", "-o", "library", "l.c"]
    subprocess.run(argv, cwd=tmp_path, check=True)
    found = read((tmp_path / "library").read_bytes(), "efi: EFI v")
    assert (found.kind, found.wrapped_in, found.version, found.config) == ("vmlinux", "libkrunfw", VERSION, OPTIONS)
    assert found.strings == {"efi: EFI v"}
    # Any other library is not a kernel, also with one inside.
    (tmp_path / "l.c").write_text((tmp_path / "l.c").read_text().replace("krunfw_get_kernel", "another_get_it"))
    subprocess.run(argv, cwd=tmp_path, check=True)
    with pytest.raises(NotAKernel, match=r"a shared library or program, with a kernel inside \(6.1.0-9-foreign"):
        read((tmp_path / "library").read_bytes())


def test_the_banner_with_a_number_counts(read: Read, tmp_path: Path) -> None:
    """Since 6.2 a kernel has a second one, without its number."""
    two = BANNER.replace(" #1 ", " # ") + '\\n"; const char second[] = "' + BANNER
    assert read(linked(tmp_path, AT, banner=two)).version == VERSION


def test_an_older_kernel_does_not_say_in_its_header_that_it_is_of_64_bits(read: Read, stripped: bytes) -> None:
    old = put(put(kernel(gzip.compress(stripped)), 0x206, "<H", 0x20A), 0x236, "<H", 0)
    assert read(old).config == OPTIONS


def test_the_payload_of_an_older_kernel_says_that_it_is_32_bit(read: Read, tmp_path: Path) -> None:
    (tmp_path / "o.c").write_text("int x;\n")
    subprocess.run(["gcc", "-m32", "-c", "-o", "o", "o.c"], cwd=tmp_path, check=True)
    old = put(kernel(gzip.compress((tmp_path / "o").read_bytes())), 0x206, "<H", 0x20A)
    with pytest.raises(UserError, match=r"k \(its payload\): an ELF file for 32-bit x86"):
        read(old)


# ── bounds ──


def test_a_bomb_is_recognized_by_its_head(read: Read) -> None:
    bomb = gzip.compress(bytes(1 << 27), 1)
    tracemalloc.start()
    with pytest.raises(UserError, match="not a kernel"):
        read(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 23


def test_a_bomb_of_text_ends_at_the_limit(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary, "LARGEST_CONFIG", 1 << 20)
    for data in (gzip.compress(b"#\n" * (1 << 20)), CONFIG.encode() + b"#\n" * (1 << 20)):
        with pytest.raises(GaveUp, match=r"gave up at .* bytes: a text, and larger than any config"):
            read(data)
    assert read(CONFIG.encode() + b"#\n" * (1 << 18)).config == OPTIONS


def test_names_of_symbols_are_not_read(read: Read, vmlinux: bytes) -> None:
    """25,000 symbols with overlapping names took 4 GB."""
    names = b"\0" + b"a" * 500_000 + b"\0"
    symbols = b"".join(struct.pack("<IBBHQQ", 1 + number, 0x12, 0, 1, 0, 0) for number in range(25_000))
    (at,) = struct.unpack_from("<Q", vmlinux, 0x28)
    count = struct.unpack_from("<H", vmlinux, 0x3C)[0]
    rows = [struct.unpack_from("<IIQQQQIIQQ", vmlinux, at + 64 * number) for number in range(count)]
    end = len(vmlinux)
    table = b""
    for row in rows:
        kind, place, size = row[1], row[4], row[5]
        if kind == 2:
            place, size = end, len(symbols)
        elif kind == 3 and row is not rows[-1]:
            place, size = end + len(symbols), len(names)
        table += struct.pack("<IIQQQQIIQQ", *row[:4], place, size, *row[6:])
    data = put(vmlinux + symbols + names + table, 0x28, "<Q", end + len(symbols) + len(names))
    tracemalloc.start()
    assert read(data).version == VERSION
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 26


def test_a_config_of_a_gigabyte_is_given_up(read: Read) -> None:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    text = b"".join(b"CONFIG_A%07d=y\n" % number for number in range(1 << 16))
    bomb = b"".join(packer.compress(text) for _ in range(200)) + packer.flush()
    tracemalloc.start()
    with pytest.raises(GaveUp, match="gave up at 16777216 bytes: a text, and larger than any config"):
        read(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 27


@pytest.mark.parametrize("filler", ["\n", "#\n", "#\U0001f600\n", " \n", "CONFIG_A=y \n"])
def test_a_text_of_millions_of_lines_is_read_in_time(read: Read, filler: str) -> None:
    text = (CONFIG + filler * (15_000_000 // len(filler.encode()))).encode()
    start = time.process_time()
    assert (read(text).config or {})["EFI"] == "y"
    assert time.process_time() - start < 5


def test_too_little_memory_is_said(tmp_path: Path, stripped: bytes) -> None:
    (tmp_path / "k").write_bytes(kernel(gzip.compress(stripped + bytes(1 << 27))))
    code = (
        "import resource, sys; from pathlib import Path; from minguest.kernel import image;"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 27, 1 << 27));"
        "from minguest.util.errors import MinguestError\n"
        "try: print(image.read(Path(sys.argv[1])).closed_because)\nexcept MinguestError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "k"], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.decode().startswith(f"{tmp_path}/k: gave up: this process may not use enough memory")


def test_it_gives_up_in_time(read: Read, vmlinux: bytes, tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(vmlinux)
    with pytest.raises(GaveUp, match=r"gave up at .*: it takes too long"):
        image.read(tmp_path / "v", (), time.monotonic() - 1)


def test_what_cannot_be_a_kernel_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "disk").open("wb") as file:
        file.truncate(1 << 27)
    tracemalloc.start()
    with pytest.raises(UserError, match="not a kernel"):
        image.read(tmp_path / "disk")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 23


def test_what_holds_itself_ends(read: Read) -> None:
    packed = CONFIG.encode()
    for _ in range(image.DEEPEST + 1):
        packed = gzip.compress(packed)
    with pytest.raises(UserError, match="not a kernel"):
        read(packed)


def test_segments_that_overlap_are_read_once(read: Read, vmlinux: bytes) -> None:
    # All program headers the same, each for the whole file.
    (count,) = struct.unpack_from("<H", vmlinux, 0x38)
    data = vmlinux
    for number in range(count):
        row = (1, 4, 0, 0xFFFF_FFFF_8100_0000, 0, len(vmlinux), len(vmlinux), 0x1000)
        data = put(data, 0x40 + 56 * number, "<IIQQQQQQ", *row)
    with pytest.raises(UserError, match="segments that overlap"):
        read(data)


def test_a_large_kernel_takes_less_than_two_seconds(read: Read, tmp_path: Path) -> None:
    # 60 MB of which one in four bytes is hard to pack: some 15 MB.
    filler = b"".join(os.urandom(1024) + bytes(3072) for _ in range(15000))
    (tmp_path / "filler").write_bytes(filler)
    (tmp_path / "y.c").write_text('__asm__(".section .rodata\\n.incbin \\"filler\\"\\n.text");\n')
    content = linked(tmp_path, AT, "-s", "y.c")
    whole = kernel(with_size(zstd(content), content))
    assert len(whole) > 15e6
    start = time.process_time()
    assert read(whole, *(f"not in it {number}" for number in range(40)), "efi: EFI v").strings == {"efi: EFI v"}
    assert time.process_time() - start < 2


# ── damage ──


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_damage_is_said_and_no_failure(read: Read, vmlinux: bytes, stripped: bytes, data: st.DataObject) -> None:
    bzimage_of = kernel(gzip.compress(stripped, mtime=0))
    wholes = [vmlinux, bzimage_of, kernel(stripped), with_section(bzimage_of), gzip.compress(vmlinux, mtime=0)]
    whole = data.draw(st.sampled_from(wholes))
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        # Often in the headers, where sizes and offsets are.
        at = data.draw(st.integers(0, len(whole) - 1) | st.integers(0, min(0x300, len(whole) - 1)))
        damaged[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0xFF]) | st.integers(0, 255))
    try:
        found = read(bytes(damaged[: data.draw(st.just(len(whole)) | st.integers(0, len(whole)))]))
    except UserError as error:
        assert str(error)
    else:
        assert found.opened is (found.closed_because == "")
