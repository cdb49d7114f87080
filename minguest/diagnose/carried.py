# SPDX-License-Identifier: Apache-2.0
"""What a kernel's image brings with it beside its options: a command line, an entry for other loaders. Pure."""

from collections.abc import Mapping

import msgspec

from minguest.diagnose import catalogue, matching
from minguest.diagnose.facts import Fact, of_options
from minguest.kernel import kconfig, vmlinux
from minguest.kernel.image import Image


class Line(msgspec.Struct, frozen=True):
    """A command line that the kernel brings with it."""

    options: tuple[str, ...]
    where: str
    """Where it is, for messages."""


def lines(image: Image, config: Mapping[str, str] | None) -> list[Line]:
    """The command lines of the kernel's config and of a UKI."""
    found = []
    built_in = kconfig.command_line(config or {})
    if built_in.text:
        found.append(Line(_options(built_in.text), "CONFIG_CMDLINE"))
    if image.cmdline:
        found.append(Line(_options(image.cmdline), "the UKI's section .cmdline"))
    return found


def _options(text: str) -> tuple[str, ...]:
    # What comes after "--" is init's (admin-guide/kernel-parameters).
    return tuple(text.partition(" -- ")[0].split())


def pits(
    carried: list[Line], known_pits: Mapping[str, catalogue.Pit], launch: Mapping[str, Fact]
) -> list[tuple[str, str]]:
    """The pits that these command lines are under OVMF, each with what shows it; `launch`: its facts."""
    found = []
    for line in carried:
        facts = {**launch, **of_options(line.options), "firmware.kind": "uefi"}
        seen = msgspec.structs.replace(matching.see(b""), options=line.options, facts=facts)
        for hit in matching.diagnose(known_pits, seen).roots:
            if any(each.endswith("is on the command line") for each in hit.proof):
                # That the firmware is OVMF is what doctor is about.
                shown = [each for each in hit.proof if not each.startswith("firmware.kind ")]
                proof = "; ".join(shown).replace("is on the command line", f"is in {line.where}")
                found.append((hit.id, proof))
    return found


def smp(image: Image) -> bool | None:
    """Whether it is built for more than one CPU, as its banner says; None if the banner is not known."""
    words = vmlinux.flags(image.version or "")
    return None if words is None else "SMP" in words


def notes(image: Image, config: Mapping[str, str] | None) -> tuple[str, ...]:
    """What to know before it is started."""
    found = []
    if "libkrunfw" in image.wrapped_in:
        found.append("a kernel inside of a library: libkrun starts it without firmware, OVMF does not find it")
    elif image.kind == "vmlinux":
        found.append(
            "a vmlinux: OVMF does not start it, -kernel ends in the UEFI shell; pass the bzImage of the same build "
            "(arch/x86/boot/bzImage, /boot/vmlinuz-…)"
        )
        if image.pvh_entry is not None:
            found.append(
                f"it has an entry for PVH loaders at {image.pvh_entry:#x}: QEMU's -kernel with SeaBIOS starts it "
                "there, without UEFI"
            )
        else:
            found.append(
                "it has no entry for PVH loaders (CONFIG_PVH): QEMU's -kernel refuses it (“Error loading uncompressed "
                "kernel without PVH ELF Note”)"
            )
    built_in = kconfig.command_line(config or {})
    if built_in.text:
        what = "replaces" if built_in.overrides else "comes before"
        found.append(f"built-in command line, which {what} the loader's (CONFIG_CMDLINE): {built_in.text}")
    if image.cmdline:
        found.append(f"the UKI's command line, which QEMU's -append replaces without Secure Boot: {image.cmdline}")
    return tuple(found)
