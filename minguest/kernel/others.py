# SPDX-License-Identifier: Apache-2.0
"""What a file is that is not a kernel for x86-64: users name initrds, packages and other machines' kernels."""

from collections.abc import Mapping

from minguest.util.errors import UserError

REMEDY = "name an x86-64 kernel: its bzImage (usually /boot/vmlinuz-…), its vmlinux, or the .config it was built from"
# Files that users have beside their kernels, and kernels of other machines: offset, magic, what it is.
OTHERS = (
    (0x38, b"ARM\x64", "a kernel for arm64"),
    (0x30, b"RISCV\0", "a kernel for riscv64"),
    (0x38, b"RSC\x05", "a kernel for riscv64"),
    (0x24, b"\x18\x28\x6f\x01", "a kernel for 32-bit ARM (zImage)"),
    (4, b"zimg", "a compressed kernel for another machine (EFI zboot)"),
    (0, b"\x27\x05\x19\x56", "an image for U-Boot, not for a PC"),
    (0, b"\xd0\x0d\xfe\xed", "a device tree or FIT image, not for a PC"),
    (0, b"ANDROID!", "a boot image of Android; unpack_bootimg takes its kernel out"),
    (0, b"070701", "an initrd (cpio archive)"),
    (0, b"070702", "an initrd (cpio archive)"),
    (0, b"070707", "a cpio archive"),
    (0, b"\xc7\x71", "a cpio archive"),
    (0x101, b"ustar", "a tarball"),
    (0, b"!<arch>\ndebian-binary", "a Debian package; dpkg-deb -x unpacks it"),
    (0, b"!<arch>\n", "a static library (ar archive)"),
    (0, b"\xed\xab\xee\xdb", "an RPM package; rpm2cpio unpacks it"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"KDMV", "a VMDK disk image"),
    (0, b"hsqs", "a squashfs file system"),
    (0x438, b"\x53\xef", "an ext4 file system"),
    (0x8001, b"CD001", "an ISO 9660 image"),
    (0x28, b"_FVH", "a firmware image (UEFI volume)"),
    (0x200, b"EFI PART", "a disk image with a partition table (GPT)"),
    (0x180, b"GRUB ", "the boot sector of GRUB"),
    (0, b"#!", "a script"),
    (0, b"\x55\xaa", "an option ROM"),
    (0x1FE, b"\x55\xaa", "a boot sector or disk image"),
)
# Programs that bring a kernel's boot header or are EFI programs: a text in them, what it is.
PROGRAMS = (
    (b"Memtest86+", "Memtest86+"),
    (b"MemTest86", "MemTest86"),
    (b"PassMark", "MemTest86"),
    (b"iPXE", "iPXE"),
    (b"ipxe.org", "iPXE"),
    (b"#### LoaderInfo: systemd-boot", "systemd-boot"),
    (b"#### LoaderInfo: systemd-stub", "systemd's EFI stub"),
    (b"Xen version ", "the hypervisor Xen"),
    (b"Xen hypervisor", "the hypervisor Xen"),
    (b"GRUB", "GRUB"),
    (b"rEFInd", "rEFInd"),
    (b"UEFI shim", "shim, the loader for Secure Boot"),
    (b"SYSLINUX", "Syslinux"),
)
# Of ELF's e_machine and of PE: what the kernel calls it.
MACHINES: Mapping[str | int, str] = {
    3: "32-bit x86", 8: "MIPS", 20: "32-bit PowerPC", 21: "ppc64", 22: "s390x", 40: "32-bit ARM", 62: "x86-64",
    183: "arm64", 243: "RISC-V", 258: "loongarch64",
    "I386": "32-bit x86", "ARM": "32-bit ARM", "ARMNT": "32-bit ARM", "THUMB": "32-bit ARM", "ARM64": "arm64",
    "RISCV64": "riscv64", "RISCV32": "riscv32", "LOONGARCH64": "loongarch64", "IA64": "ia64", "AMD64": "x86-64",
}  # fmt: skip
# Options that only the configs of one architecture have.
ARCHITECTURES = (
    ("X86_32", "32-bit x86"), ("ARM64", "arm64"), ("RISCV", "riscv"), ("ARM", "32-bit ARM"), ("PPC64", "ppc64"),
    ("PPC32", "32-bit PowerPC"), ("S390", "s390x"), ("MIPS", "MIPS"), ("LOONGARCH", "loongarch64"),
    ("SPARC", "SPARC"), ("PARISC", "PA-RISC"), ("ALPHA", "alpha"), ("M68K", "m68k"), ("UML", "User Mode Linux"),
)  # fmt: skip


class NotAKernel(UserError):
    """The file is whole, as far as can be seen, but not a kernel for x86-64."""


class OtherMachine(NotAKernel):
    """It is for another machine."""


def machine(of: str | int) -> str:
    """The name of a machine in ELF (a number) or PE (a name)."""
    return MACHINES.get(of, of if isinstance(of, str) else f"machine {of}")


def architecture(config: Mapping[str, str]) -> str | None:
    """What a config is for; None for x86-64, and where it does not say it."""
    if config.get("X86_64") == "y" and config.get("UML") != "y":
        return None
    name = next((what for option, what in ARCHITECTURES if config.get(option) == "y"), None)
    if name == "riscv":
        return "riscv32" if config.get("32BIT") == "y" else "riscv64"
    # X86_32 has no prompt in a tree's own config of i386, but 64BIT has.
    return name or ("32-bit x86" if config.get("X86") == "y" and config.get("64BIT") == "n" else None)


def program(content: bytes) -> str | None:
    """Which well-known program has this content; None for any other."""
    return next((what for text, what in PROGRAMS if text in content), None)


def refusal(head: bytes, name: str) -> NotAKernel:
    """An error that says what the file is instead, if that is known; `head` is its beginning."""
    what = next((what for at, magic, what in OTHERS if head.startswith(magic, at)), None)
    shown = f"bytes that begin {head[:8].hex(' ')}"
    if head[:64].isascii() and b"\0" not in head and head.strip():
        shown = f"a text that begins {head.strip()[:64].decode(errors='replace').splitlines()[0]!r}"
    return NotAKernel(f"{name}: not a kernel: {what or shown}", REMEDY)
