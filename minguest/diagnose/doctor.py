# SPDX-License-Identifier: Apache-2.0
"""Examines a kernel before its first boot: which pits it would fall into with a launch under OVMF. Pure.

The config decides. Where the image carries none, its headers and the messages in its payload are the evidence.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from minguest.diagnose import catalogue, matching
from minguest.diagnose.facts import Fact
from minguest.kernel import contract
from minguest.kernel.image import Image
from minguest.model import Launch

Sure = Literal["certain", "likely", "not known"]
# Messages that a kernel with the option contains, as 4.12, 6.1 and 6.12 have them: one of them is enough. Without a
# config they are the only evidence in the payload.
STRINGS: Mapping[str, tuple[str, ...]] = {
    "EFI": ("efi: EFI v", "efi: Can't find", "efivars: Registered efivars operations", "Registered efivars operations"),
    "ACPI": ("ACPI: Interpreter enabled", "Interpreter enabled"),
    "SMP": ("smpboot: Allowing", "CPU topo: Allowing", "Allowing %u present CPUs", "Brought up %d node"),
    "PCI_MMCONFIG": ("MMCONFIG", "PCI: ECAM"),
    "BLK_DEV_INITRD": ("Unpacking initramfs", "Trying to unpack rootfs image as initramfs"),
    "SERIAL_8250": ("Serial: 8250/16550 driver",),
    "MODULES": ("module: x86/modules", "module verification failed", "loading out-of-tree module taints kernel"),
}


class Finding(msgspec.Struct, frozen=True):
    """One thing that would go wrong, or that is not known."""

    pit: str
    """Its id in configs/pits/."""
    option: str
    """Of the kernel's config; empty where the launch is wrong."""
    sure: Sure
    why: str
    without: str
    """What happens at boot without it."""


def look_for() -> tuple[str, ...]:
    """The messages to look for in an image."""
    return tuple(each for messages in STRINGS.values() for each in messages)


def examine(
    image: Image,
    config: Mapping[str, str] | None,
    known_pits: Mapping[str, catalogue.Pit],
    launch: Launch,
    facts: Mapping[str, Fact] | None = None,
) -> list[Finding]:
    """Which pits a kernel would fall into with `launch`, whose facts are `facts`.

    `config` takes precedence over the config in the image.
    """
    rules = catalogue.rules(known_pits)
    series = ".".join((image.version or "").split(".")[:2])
    known = config if config is not None else image.config
    if known is not None:
        found = [
            Finding(each.pit, each.option, "certain", str(each), each.without)
            for each in contract.check(rules, known, launch, series)
        ]
    else:
        found = _by_messages(image, rules, launch, series)
    header = image.bzimage
    if header is not None and not header.efi_stub and not any(each.option == "EFI_STUB" for each in found):
        without = next((rule.without for rule in rules if rule.option == "EFI_STUB"), "")
        found.append(Finding("efi-stub-off", "EFI_STUB", "certain", "the image has no PE header for x86-64", without))
    for hit in matching.diagnose(known_pits, matching.see(b"", facts=facts)).roots:
        found.append(Finding(hit.id, "", "certain", "; ".join(hit.proof), hit.pit.cause))
    order: tuple[Sure, ...] = ("certain", "likely", "not known")
    return sorted(found, key=lambda each: order.index(each.sure))


def _by_messages(image: Image, rules: Sequence[contract.Rule], launch: Launch, series: str) -> list[Finding]:
    breached = {each.option: each for each in contract.check(rules, {}, launch, series)}
    found = []
    for option, each in breached.items():
        if option == "EFI_STUB" and image.bzimage is not None:
            continue  # its header decides
        if option in STRINGS and image.opened:
            if not image.strings & set(STRINGS[option]):
                why = "the kernel has none of the messages of this option"
                found.append(Finding(each.pit, option, "likely", why, each.without))
        else:
            why = "the image carries no config" if image.opened else image.closed_because
            found.append(Finding(each.pit, option, "not known", f"{why}; pass the config: --config FILE", each.without))
    return found


def describe(image: Image, findings: Sequence[Finding]) -> str:
    """For a person: what the file is, what is wrong and how sure that is, what is not known."""
    packed = f", {image.compression}" if image.compression else ""
    text = [f"{image.path}: {image.kind}, linux {image.version or '(version not known)'}{packed}"]
    for each in findings:
        if each.sure != "not known":
            text += [f"  {each.sure}: {each.pit}: {each.why}", f"      at boot: {each.without}"]
    unknown = [each for each in findings if each.sure == "not known"]
    if unknown:
        text.append(f"  not known ({unknown[0].why}): {', '.join(each.option for each in unknown)}")
    if len(unknown) == len(findings):
        text.append("  nothing wrong was found" + (" in what is known" if unknown else ""))
    return "\n".join(text)
