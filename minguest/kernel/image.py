# SPDX-License-Identifier: Apache-2.0
"""Facts of a kernel that was built elsewhere: headers, config, damage and characteristic strings.

The content decides what a file is, not its name. A file that is not an x86-64 Linux kernel is refused, and the error
says what it is instead. If a kernel's payload cannot be unpacked, its headers still give facts.
"""

import io
import re
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from minguest.kernel import binary, damage, kconfig, others, packing, vmlinux
from minguest.kernel.others import REMEDY, NotAKernel
from minguest.kernel.packing import GaveUp, Window
from minguest.kernel.vmlinux import ELF, cut
from minguest.util.errors import ToolError, UserError

# Bytes from the start that show what a file is: the magic of ISO 9660 comes after 32 KiB.
HEAD = 0x9000
# A kernel in a UKI in gzip; not deeper, because a file may contain itself.
DEEPEST = 3
# Seconds for one file. All of a distribution's kernel takes less than one.
SECONDS = 4.0
# The third line of a .config, written by scripts/kconfig/confdata.c from `mainmenu`.
MAIN_MENU = re.compile(r"^[ \t]*# Linux/\S+ (\S+) Kernel Configuration\s*$", re.MULTILINE)
# Symbols HAVE_… have no prompt: Kconfig sets them itself (Documentation/kbuild/kconfig-language.rst). The smallest
# whole .config of linux 4.12 has 78 of them; a fragment or a defconfig has none, or a few that somebody copied.
SET_BY_KCONFIG = 20
# The same of other projects with kconfig, and of a kernel for another architecture.
OTHER_MENU = re.compile(r"^[ \t]*# ((?!Automatically)\S.{0,80}?) Configuration\s*$", re.MULTILINE)
# Bytes of a program in which its name is looked for.
PROGRAM = 1 << 22


class Image(msgspec.Struct, frozen=True):
    """The facts of a kernel's file."""

    kind: Literal["bzImage", "vmlinux", "config"]
    """What it is, without its wrapping."""
    path: str
    size: int
    """Bytes of the file."""
    wrapped_in: str
    """`UKI`, `libkrunfw`, or the compression of the whole file; comma-separated, outermost first; "" for none."""
    version: str | None
    """Release (user@host) #number …; of a config only 6.12.94; None if the file does not say it."""
    bzimage: binary.BzImage | None
    """For a bzImage, also for one in a UKI."""
    compression: str | None
    """Of the kernel: gzip, bzip2, lzma, xz, lzo, lz4, zstd, none; None if it is unknown."""
    opened: bool
    """Whether the kernel was unpacked, so that the fields below could be read."""
    closed_because: str
    """Why not; "" if it was opened."""
    config: dict[str, str] | None
    """All options by name as kconfig.parse_config gives them, if the kernel carries them (CONFIG_IKCONFIG)."""
    strings: frozenset[str]
    """Which of the `look_for` strings are in the unpacked kernel; empty for a config."""
    compiler: str | None = None
    """Compiler and linker, as the banner in the unpacked kernel has them."""
    pvh_entry: int | None = None
    """The address of the unpacked kernel's entry for PVH loaders (CONFIG_PVH)."""
    damage: str = ""
    """What shows for certain that the file is damaged; "" for nothing."""
    doubt: str = ""
    """What makes damage likely; "" for nothing."""
    cmdline: str | None = None
    """The command line in a UKI's section .cmdline."""


def read(path: Path, look_for: Sequence[str] = (), until: float | None = None) -> Image:
    """Read a bzImage, a vmlinux or a .config, also in a UKI or compressed as a whole; look for strings in it.

    NotAKernel if it is none of these for x86-64; GaveUp at a bound: packing.LARGEST, or the time `until` (else SECONDS
    from now, time.monotonic()); UserError if it cannot be read. Of a bzImage at most the size that it records is
    unpacked. lz4, lzo and zstd need the programs lz4, lzop and zstd: without them a bzImage is not opened.
    """
    until = time.monotonic() + SECONDS if until is None else until
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            if stat.S_ISDIR(mode):
                raise NotAKernel(f"{path}: a folder, not a kernel", REMEDY)
            kind = "a pipe" if stat.S_ISFIFO(mode) else "not a plain file"
            raise NotAKernel(f"{path}: {kind}: a kernel is not read from one", "write it to a file, and name that")
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            image = _look(Window(file, 0, size), str(path), look_for, until)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}", REMEDY) from error
    except MemoryError as error:
        raise GaveUp(
            f"{path}: gave up: this process may not use enough memory", "raise its limit (ulimit -v)"
        ) from error
    return msgspec.structs.replace(image, path=str(path), size=size)


def _look(window: Window, name: str, look_for: Sequence[str], until: float) -> Image:
    """Find out what a file is; messages call it `name`. What wraps the kernel is taken off, a layer a round."""
    layers: list[str] = []
    cmdline: str | None = None
    for _ in range(DEEPEST + 1):
        head = window[0:HEAD]
        if not head:
            raise NotAKernel(f"{name}: empty", REMEDY)
        if head.startswith(ELF):
            return _wrapped(_vmlinux(window, name, look_for, until), layers, cmdline)
        if head.startswith(b"HdrS", binary.MAGIC):
            return _wrapped(_bzimage(window, name, look_for, until), layers, cmdline)
        if packer := packing.packer(head):
            inner_name = f"{name} (unpacked from {packer})"
            window = _unpacked(window, packer, name, inner_name, until)
            layers.append(packer)
        elif headed := binary.pe(window):
            window, cmdline, inner_name = _uki(window, headed, name)
            layers.append("UKI")
        else:
            return _wrapped(_config(window, head, name), layers, cmdline)
        name = inner_name
    raise others.refusal(head, name)


def _wrapped(image: Image, layers: list[str], cmdline: str | None) -> Image:
    compression = image.compression
    if image.kind != "bzImage":
        compression = next((each for each in layers if each != "UKI"), compression)
    wrapped_in = ", ".join(filter(None, [*layers, image.wrapped_in]))
    return msgspec.structs.replace(image, wrapped_in=wrapped_in, compression=compression, cmdline=cmdline)


def _config(window: Window, head: bytes, name: str) -> Image:
    if not binary.may_be_text(head):
        raise others.refusal(head, name)
    if len(window) > binary.LARGEST_CONFIG:
        raise GaveUp(f"{name}: gave up at {len(window)} bytes: a text, and larger than any config", REMEDY)
    text = binary.config_text(window[0 : len(window)]) or ""
    config = kconfig.parse_config(text)
    if not config:
        raise others.refusal(head, name)
    title = MAIN_MENU.search(text)
    if other := others.architecture(config):
        raise NotAKernel(f"{name}: a config for {other}, not for x86-64", REMEDY)
    menu = OTHER_MENU.search(text)
    # Kconfig always writes the local version, even an empty one; Xen has no such option.
    if menu and not title and "LOCALVERSION" not in config:
        raise NotAKernel(f"{name}: the config of {menu[1]!r}, not of a Linux kernel", REMEDY)
    if sum(option.startswith("HAVE_") for option in config) < SET_BY_KCONFIG or "LOCALVERSION" not in config:
        raise NotAKernel(
            f"{name}: a fragment or defconfig, not a whole .config: {len(config)} options, without Kconfig's own",
            "give the whole .config that the kernel was built from; in the kernel's tree, "
            "scripts/kconfig/merge_config.sh makes it from fragments, make olddefconfig from a defconfig",
        )
    if config.get("X86_64") != "y":
        raise NotAKernel(f"{name}: a config, but not for x86-64: no CONFIG_X86_64=y", REMEDY)
    return Image(
        kind="config",
        path=name,
        size=len(window),
        wrapped_in="",
        version=title[1] if title else None,
        bzimage=None,
        compression="none",
        opened=True,
        closed_because="",
        config=config,
        strings=frozenset(),
    )


def _plausible(head: bytes) -> bool:
    """Whether the whole content is worth unpacking: a bzImage, an EFI program, something compressed, or a text."""
    bzimage = head.startswith(b"HdrS", binary.MAGIC)
    return bzimage or head.startswith((ELF, b"MZ")) or packing.packer(head) is not None or binary.may_be_text(head)


def _unpacked(window: Window, packer: str, name: str, inner_name: str, until: float) -> Window:
    """The content of a compressed file. A tarball or an initrd is recognized by its head, before all is unpacked."""
    limit = packing.LARGEST
    try:
        if packer not in packing.PROGRAMS:
            head = packing.unpack_head(window, HEAD)
            if not _plausible(head):
                raise others.refusal(head, inner_name)
            if binary.may_be_text(head) and not packing.packer(head):
                limit = binary.LARGEST_CONFIG
        return packing.unpacked(window, limit, until)[0]
    except packing.TooLarge as error:
        what = "more than any kernel" if limit == packing.LARGEST else "a text, and larger than any config"
        raise GaveUp(f"{name}: compressed with {packer}: gave up at {limit} bytes: {what}", REMEDY) from error
    except ValueError as error:
        raise UserError(f"{name}: compressed with {packer}, and cannot be unpacked: {error}", REMEDY) from error
    except ToolError as error:
        program = packing.PROGRAMS[packer]
        raise UserError(
            f"{name}: compressed with {packer}, and the program {program} is not installed",
            f"apt-get install {program}, or unpack the file and name its content",
        ) from error


# ── wrapped in headers ──


def _uki(window: Window, headed: binary.Pe, name: str) -> tuple[Window, str | None, str]:
    """The kernel in a UKI (UAPI.5, Unified Kernel Image): its section .linux; and its section .cmdline."""
    if headed.machine != "AMD64":
        # drivers/firmware/efi/libstub/zboot-header.S; and arm64's and riscv64's Image with an EFI stub.
        zboot, image = window.startswith(b"zimg", 4), window.startswith((b"ARM\x64", b"RSC\x05"), 0x38)
        what = "a compressed kernel (EFI zboot)" if zboot else "a kernel" if image else "an EFI program"
        raise NotAKernel(f"{name}: {what} for {others.machine(headed.machine)}, not for x86-64", REMEDY)
    if ".linux" not in headed.sections:
        known = others.program(window[0:PROGRAM])
        raise NotAKernel(
            f"{name}: {known or 'an EFI program'}, but no kernel: neither a boot header nor a section .linux", REMEDY
        )
    start, end = headed.sections[".linux"]
    if end > len(window):
        raise cut(name, len(window), end)
    line = None
    if ".cmdline" in headed.sections:
        first, last = headed.sections[".cmdline"]
        text = window[first : min(last, first + binary.LARGEST_CMDLINE)]
        line = " ".join(text.split(b"\0", 1)[0].decode(errors="replace").split())
    return window.within(start, end), line, f"{name} (its section .linux)"


def _bzimage(window: Window, name: str, look_for: Sequence[str], until: float) -> Image:
    if len(window) < 0x1000:
        raise cut(name, len(window), 0x1000)
    facts = binary.bzimage_facts(window, name)
    header = binary.setup_header(window)
    packed = binary.payload(window)
    if packed is None:
        raise _not_linux(window, facts, name)
    # Since protocol 2.12, linux 3.8, the header shows it; before, the payload does.
    if header["version"] >= 0x20C and "kernel-64" not in facts.xloadflags:
        raise NotAKernel(f"{name}: {facts.version}: a 32-bit kernel (no kernel-64 in xloadflags)", REMEDY)
    found = damage.of_file(window, packed, facts.version, until)
    kernel, closed, broken = None, found.certain, found.certain
    if packed.behind <= len(window):
        try:
            content = damage.unpacked(window, packed, until)
            kernel = vmlinux.read(content, f"{name} (its payload)", look_for, until)
            closed, broken = "", broken or kernel.damage
        except others.OtherMachine:
            raise  # before protocol 2.12, only the payload shows that it has 32 bits
        except (ToolError, GaveUp) as error:
            closed = error.message
        except UserError as error:
            closed = error.message.removeprefix(f"{name} (its payload): ")
            broken = broken or closed
    banner, doubt = kernel.version if kernel else None, found.likely
    if kernel and facts.version and not (doubt or found.intact):
        names = facts.version.split()[0], (banner or "no version").split()[0]
        if names[0] != names[1]:
            doubt = f"its header has the version {names[0]}, its payload {names[1]}"
    return Image(
        kind="bzImage",
        path=name,
        size=len(window),
        wrapped_in="",
        version=facts.version or banner,
        bzimage=facts,
        compression=packed.compression,
        opened=kernel is not None,
        closed_because=closed,
        config=kernel.config if kernel else None,
        strings=kernel.strings if kernel else frozenset(),
        compiler=kernel.compiler if kernel else None,
        pvh_entry=kernel.pvh_entry if kernel else None,
        damage=broken,
        doubt=doubt,
    )


def _not_linux(window: Window, facts: binary.BzImage, name: str) -> NotAKernel:
    """The error for what has a boot header and no payload: Memtest86+ and iPXE are started like a kernel."""
    what = f"{name}: {others.program(window[0:PROGRAM]) or facts.version or 'a program'}: has a kernel's boot header"
    if facts.protocol >= "2.08":
        why = f"boot protocol {facts.protocol}), but no compressed kernel: it is not Linux"
    elif damage.RELEASE.match(facts.version):
        why = f"boot protocol {facts.protocol}) of a time before linux 2.6.26: such kernels are not examined"
    else:
        why = f"boot protocol {facts.protocol}), but not the version of a Linux kernel: iPXE's .lkrn is like that"
    return NotAKernel(f"{what} ({why}", REMEDY)


def _vmlinux(window: Window, name: str, look_for: Sequence[str], until: float) -> Image:
    kernel = vmlinux.read(window, name, look_for, until)
    if kernel.version is None:
        raise NotAKernel(f"{name}: an ELF file, but not a Linux kernel: it has no text “Linux version”", REMEDY)
    return Image(
        kind="vmlinux",
        path=name,
        size=len(window),
        wrapped_in=kernel.library,
        version=kernel.version,
        bzimage=None,
        compression="none",
        opened=True,
        closed_because="",
        config=kernel.config,
        strings=kernel.strings,
        compiler=kernel.compiler,
        pvh_entry=kernel.pvh_entry,
        damage=kernel.damage,
    )
