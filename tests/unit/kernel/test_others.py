# SPDX-License-Identifier: Apache-2.0
"""Files that users name in place of a kernel are called what they are."""

import io
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest

from minguest.kernel import image
from minguest.kernel.others import NotAKernel
from tests.unit.kernel.test_binary import with_pe
from tests.unit.kernel.test_image import AT, HIDDEN, kernel, linked, put, with_section


def at(place: int, magic: bytes) -> bytes:
    """A file of a disk's size with a magic at some place."""
    return (bytes(place) + magic).ljust(0x9000, b"\0")


def zipped() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("vmlinuz", b"x")
    return held.getvalue()


# A boot sector of 512 bytes ends with 55 aa; so do those of the formats that keep room for one.
SECTOR = at(0x1FE, b"\x55\xaa")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        # Documentation/arch/arm64/booting.rst, Documentation/arch/riscv/boot-image-header.rst of Linux
        (at(0x38, b"ARM\x64"), "a kernel for arm64"),
        (at(0x30, b"RISCV\0"), "a kernel for riscv64"),
        (at(0x38, b"RSC\x05"), "a kernel for riscv64"),
        # arch/arm/boot/compressed/head.S: 0x016f2818
        (at(0x24, struct.pack("<I", 0x016F2818)), "a kernel for 32-bit ARM (zImage)"),
        # drivers/firmware/efi/libstub/zboot-header.S, with a PE header that is gone
        (at(0, b"MZ\0\0zimg"), "a compressed kernel for another machine (EFI zboot)"),
        # U-Boot's include/image.h: IH_MAGIC; the Devicetree Specification: 0xd00dfeed; AOSP's bootimg.h
        (at(0, struct.pack(">I", 0x27051956)), "an image for U-Boot, not for a PC"),
        (at(0, struct.pack(">I", 0xD00DFEED)), "a device tree or FIT image, not for a PC"),
        (at(0, b"ANDROID!"), "a boot image of Android; unpack_bootimg takes its kernel out"),
        # cpio(5): newc, newc with checksums, odc, and the old binary format, 070707 as a word
        (at(0, b"070701"), "an initrd (cpio archive)"),
        (at(0, b"070702"), "an initrd (cpio archive)"),
        (at(0, b"070707"), "a cpio archive"),
        (at(0, struct.pack("<H", 0o070707)), "a cpio archive"),
        (at(0x101, b"ustar\0"), "a tarball"),
        # deb(5), ar(5), rpm's lib/rpmlead.cc
        (at(0, b"!<arch>\ndebian-binary   "), "a Debian package; dpkg-deb -x unpacks it"),
        (at(0, b"!<arch>\nlib.o/          "), "a static library (ar archive)"),
        (at(0, b"\xed\xab\xee\xdb\3"), "an RPM package; rpm2cpio unpacks it"),
        (zipped(), "a zip archive"),
        (at(0, b"7z\xbc\xaf\x27\x1c"), "a 7z archive"),
        # QEMU's docs/interop/qcow2.rst; VMDK's sparse extent
        (at(0, b"QFI\xfb"), "a qcow2 disk image"),
        (at(0, b"KDMV"), "a VMDK disk image"),
        # file systems: the magic of the superblock, at its place; ECMA-119
        (at(0, struct.pack("<I", 0x73717368)), "a squashfs file system"),
        (at(1024 + 0x38, struct.pack("<H", 0xEF53)), "an ext4 file system"),
        (SECTOR[:0x8001] + b"CD001".ljust(0xFFF, b"\0"), "an ISO 9660 image"),
        # The UEFI Platform Initialization Specification, EFI_FIRMWARE_VOLUME_HEADER; the UEFI Specification, GPT
        (at(0x28, b"_FVH"), "a firmware image (UEFI volume)"),
        (SECTOR[:0x200] + b"EFI PART".ljust(0x8E00, b"\0"), "a disk image with a partition table (GPT)"),
        (SECTOR[:0x180] + b"GRUB \0" + SECTOR[0x186:], "the boot sector of GRUB"),
        (SECTOR, "a boot sector or disk image"),
        (at(0, b"\x55\xaa\x20"), "an option ROM"),
        (b"#!/bin/sh\nexec qemu-system-x86_64\n", "a script"),
    ],
)  # fmt: skip
def test_a_file_of_another_format(tmp_path: Path, data: bytes, what: str) -> None:
    (tmp_path / "k").write_bytes(data)
    with pytest.raises(NotAKernel) as caught:
        image.read(tmp_path / "k")
    assert caught.value.message == f"{tmp_path}/k: not a kernel: {what}"


PROGRAMS = [
    ("Memtest86+ v6.20", "Memtest86+"),
    ("MemTest86 V10 Free", "MemTest86"),
    ("PassMark Software", "MemTest86"),
    ("iPXE initialising devices", "iPXE"),
    ("http://ipxe.org", "iPXE"),
    ("#### LoaderInfo: systemd-boot 255 ####", "systemd-boot"),
    ("#### LoaderInfo: systemd-stub 255 ####", "systemd's EFI stub"),
    ("Xen version 4.17.7", "the hypervisor Xen"),
    ("Xen hypervisor", "the hypervisor Xen"),
    ("Welcome to GRUB!", "GRUB"),
    ("rEFInd version 0.14", "rEFInd"),
    ("UEFI shim", "shim, the loader for Secure Boot"),
    ("SYSLINUX 6.04", "Syslinux"),
]


@pytest.mark.parametrize(("text", "what"), PROGRAMS)
def test_a_program_that_starts_as_a_kernel_does(tmp_path: Path, text: str, what: str) -> None:
    """As an EFI program; with a kernel's boot header; as an ELF file for 32 and for 64 bits, as Multiboot loads it."""
    said = text.encode() + b"\0"
    (tmp_path / "m.c").write_text(f'const char said[] = "{text}"; void _start(void) {{}}\n')
    argv = ["gcc", "-m32", "-nostdlib", "-static", "-o", "m", "m.c"]
    subprocess.run(argv, cwd=tmp_path, check=True)
    for data, wanted in (
        (with_section(said, b".text"), f"{what}, but no kernel"),
        (kernel(b"") + said, f"{what}: has a kernel's boot header"),
        ((tmp_path / "m").read_bytes(), f"{what}, an ELF file for 32-bit x86"),
        (linked(tmp_path, banner=text), f"not a kernel: {what}: no segment"),
    ):
        (tmp_path / "k").write_bytes(data)
        with pytest.raises(NotAKernel) as caught:
            image.read(tmp_path / "k")
        assert caught.value.message.startswith(f"{tmp_path}/k: {wanted}")


@pytest.mark.parametrize(
    ("number", "what"),
    [(0x14C, "32-bit x86"), (0x1C2, "32-bit ARM"), (0xAA64, "arm64"), (0x5064, "riscv64"), (0x6264, "loongarch64")],
)
def test_an_efi_program_for_another_machine(tmp_path: Path, number: int, what: str) -> None:
    """The numbers are those of the PE specification."""
    (tmp_path / "k").write_bytes(with_pe(bytes(0x1000), number))
    with pytest.raises(NotAKernel, match=f"an EFI program for {what}, not for x86-64"):
        image.read(tmp_path / "k")


@pytest.mark.parametrize(
    ("number", "what"),
    [(8, "MIPS"), (21, "ppc64"), (22, "s390x"), (183, "arm64"), (243, "RISC-V"), (258, "loongarch64")],
)
def test_a_vmlinux_for_another_machine(tmp_path: Path, number: int, what: str) -> None:
    """The numbers are those of elf.h."""
    (tmp_path / "k").write_bytes(put(linked(tmp_path, AT), 0x12, "<H", number))
    with pytest.raises(NotAKernel, match=f"an ELF file for {what}, not for x86-64"):
        image.read(tmp_path / "k")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"X86_32": "y", "X86": "y"}, "32-bit x86"),
        ({"X86": "y", "64BIT": "n"}, "32-bit x86"),
        ({"ARM64": "y", "64BIT": "y"}, "arm64"),
        ({"ARM": "y"}, "32-bit ARM"),
        ({"RISCV": "y", "64BIT": "y"}, "riscv64"),
        ({"RISCV": "y", "32BIT": "y"}, "riscv32"),
        ({"PPC64": "y", "PPC": "y"}, "ppc64"),
        ({"PPC32": "y", "PPC": "y"}, "32-bit PowerPC"),
        ({"SPARC": "y"}, "SPARC"),
        ({"PARISC": "y"}, "PA-RISC"),
        ({"ALPHA": "y"}, "alpha"),
        ({"M68K": "y"}, "m68k"),
        ({"S390": "y", "64BIT": "y"}, "s390x"),
        ({"LOONGARCH": "y", "64BIT": "y"}, "loongarch64"),
        ({"MIPS": "y"}, "MIPS"),
        # arch/x86/um/Kconfig: it is a program on x86-64
        ({"UML": "y", "X86_64": "y", "64BIT": "y"}, "User Mode Linux"),
    ],
)
def test_a_config_for_another_machine(tmp_path: Path, options: dict[str, str], what: str) -> None:
    lines = [f"# CONFIG_{name} is not set" if value == "n" else f"CONFIG_{name}={value}" for name, value in
             {**options, "LOCALVERSION": '""'}.items()]  # fmt: skip
    (tmp_path / "k").write_text("\n".join(lines) + "\n" + HIDDEN)
    with pytest.raises(NotAKernel, match=f"k: a config for {what}, not for x86-64"):
        image.read(tmp_path / "k")


FRAGMENT = "CONFIG_X86_64=y\nCONFIG_EFI=y\n# CONFIG_DRM is not set\n"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (FRAGMENT, 3),
        (FRAGMENT.removeprefix("CONFIG_X86_64=y\n"), 2),
        # with the local version, and some of Kconfig's own options, as in fragments of Kata and Edera
        (FRAGMENT + 'CONFIG_LOCALVERSION="-x"\nCONFIG_X86=y\nCONFIG_HAVE_PCI=y\nCONFIG_HAVE_KVM=y\n', 7),
        # what make savedefconfig writes, as arch/x86/configs/x86_64_defconfig
        ("CONFIG_SYSVIPC=y\nCONFIG_SMP=y\n" + "".join(f"CONFIG_OPTION_{each}=y\n" for each in range(900)), 902),
    ],
)  # fmt: skip
def test_a_fragment_is_not_a_kernels_config(tmp_path: Path, text: str, count: int) -> None:
    (tmp_path / "k").write_text(text)
    with pytest.raises(NotAKernel) as caught:
        image.read(tmp_path / "k")
    assert f"k: a fragment or defconfig, not a whole .config: {count} options" in caught.value.message
    assert caught.value.remedy.startswith("give the whole .config")


def test_a_whole_config_is_taken_without_its_comments(tmp_path: Path) -> None:
    """`grep =` of a .config leaves out what is not set, and its title."""
    (tmp_path / "k").write_text(f'CONFIG_X86_64=y\nCONFIG_LOCALVERSION=""\n{HIDDEN}')
    assert image.read(tmp_path / "k").kind == "config"


def test_a_config_for_a_machine_without_a_name(tmp_path: Path) -> None:
    (tmp_path / "k").write_text(f'CONFIG_ARC=y\nCONFIG_LOCALVERSION=""\n{HIDDEN}')
    with pytest.raises(NotAKernel, match="k: a config, but not for x86-64: no CONFIG_X86_64=y"):
        image.read(tmp_path / "k")
