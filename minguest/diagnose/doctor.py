# SPDX-License-Identifier: Apache-2.0
"""Examines a kernel before its first boot: what will not come up under OVMF, what a GPU will lack, and what only this
project's launch needs. Pure, except `load`.

The config decides. Where the image carries none, its headers and the messages in its payload are the evidence.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from minguest import settings
from minguest.diagnose import carried, catalogue, matching
from minguest.diagnose.facts import Fact
from minguest.kernel import contract
from minguest.kernel.image import Image
from minguest.model import Launch
from minguest.util.errors import UserError

Sure = Literal["certain", "likely", "not known"]
ORDER: tuple[Sure, ...] = ("certain", "likely", "not known")
Driver = Literal["nvidia", "amdgpu", "xe", "i915"]
GROUPS: Mapping[contract.Scope, str] = {
    "guest": "it will not come up under OVMF",
    "gpu": "the GPU will not work",
    "minguest": "only minguest's launch needs it",
}
# A guest with a card, about which nothing else is known: nothing is asked that only a launch asks.
PLAIN = Launch(cpus=2, max_cpus=2, gpus=("secondary-vga",))
# Messages that a kernel with the option contains, as 4.12, 6.1 and 6.12 have them: one of them is enough. Without a
# config they are the only evidence in the payload.
STRINGS: Mapping[str, tuple[str, ...]] = {
    "EFI": ("efi: EFI v", "efi: Can't find", "efivars: Registered efivars operations", "Registered efivars operations"),
    "ACPI": ("ACPI: Interpreter enabled", "Interpreter enabled"),
    "PCI_MMCONFIG": ("MMCONFIG", "PCI: ECAM"),
    "BLK_DEV_INITRD": ("Unpacking initramfs", "Trying to unpack rootfs image as initramfs"),
    "SERIAL_8250": ("Serial: 8250/16550 driver",),
    "MODULES": ("module: x86/modules", "module verification failed", "loading out-of-tree module taints kernel"),
}
# The option that builds a driver of the kernel's own tree, and the pit of a kernel that loads none.
IN_TREE: Mapping[Driver, str] = {"amdgpu": "DRM_AMDGPU", "xe": "DRM_XE", "i915": "DRM_I915"}
MODULES_OFF = "modules-off"
# What a kernel unpacks an initrd from, and what it can have as its root, by the options that it takes.
PACKINGS = {name: f"RD_{name.upper()}" for name in ("gzip", "bzip2", "xz", "lzma", "lzo", "lz4", "zstd")}
DISKS = {
    "virtio-blk": ("VIRTIO_BLK", "VIRTIO_PCI"), "virtio-blk on MMIO": ("VIRTIO_BLK", "VIRTIO_MMIO"),
    "virtio-scsi": ("SCSI_VIRTIO", "VIRTIO_PCI", "BLK_DEV_SD"), "NVMe": ("BLK_DEV_NVME",),
    "SATA": ("SATA_AHCI", "BLK_DEV_SD"), "virtiofs": ("VIRTIO_FS", "VIRTIO_PCI"),
    "9p": ("9P_FS", "NET_9P_VIRTIO", "VIRTIO_PCI"),
}  # fmt: skip
SYSTEMS = {"ext4": "EXT4_FS", "xfs": "XFS_FS", "btrfs": "BTRFS_FS", "squashfs": "SQUASHFS", "erofs": "EROFS_FS"}


class Need(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a GPU driver needs of the kernel's config: a row of configs/diagnose/drivers.toml."""

    option: str
    without: str
    """What is seen where it is not so."""
    want: Literal["y", "n", "on"] = "y"
    """`on`: y or m."""
    drivers: tuple[Driver, ...] = ()
    """For which; empty: for all."""
    blocks: bool = False
    """Whether the driver does not load, or does not find its card; else it works with less."""
    modules: bool = False
    """Whether it is about loading a module from outside of the tree."""


class _Needs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    need: tuple[Need, ...]


class Finding(msgspec.Struct, frozen=True):
    """One thing that would go wrong, or that is not known."""

    group: contract.Scope
    pit: str
    """Its id in configs/pits/; empty: a driver's need."""
    option: str
    """Of the kernel's config; empty where the launch is wrong."""
    sure: Sure
    why: str
    without: str
    """What happens at boot without it."""
    want: str = ""
    """The value that it should have, as a fragment spells it; empty where the launch is wrong."""
    follows: tuple[str, ...] = ()
    """The pits among the findings that it follows from."""
    blocks: bool = True
    """Whether it counts for the exit status."""


class Report(msgspec.Struct, frozen=True):
    """What is known of one kernel."""

    image: Image
    findings: tuple[Finding, ...]
    boots_from: Mapping[str, tuple[str, ...]]
    """`initrd`, `root disk` and `file system`: what is built in; empty where the config is not known."""
    notes: tuple[str, ...] = ()
    config: Mapping[str, str] | None = None
    """The config that was examined; None: none is known."""

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """What keeps the guest or its card from working."""
        return tuple(
            each for each in self.findings if each.sure != "not known" and each.group != "minguest" and each.blocks
        )


def load(path: Path) -> tuple[Need, ...]:
    """Read what drivers need. UserError names file and option."""
    found = settings.decode(path, _Needs).need
    for each in found:
        if each.option.startswith("CONFIG_"):
            raise UserError(f"{path}: option = {each.option!r}", "write it without CONFIG_")
    return found


def look_for() -> tuple[str, ...]:
    """The messages to look for in an image."""
    return tuple(each for messages in STRINGS.values() for each in messages)


def examine(
    image: Image,
    config: Mapping[str, str] | None,
    known_pits: Mapping[str, catalogue.Pit],
    launch: Launch,
    facts: Mapping[str, Fact] | None = None,
    needs: Sequence[Need] = (),
    driver: Driver | None = None,
) -> Report:
    """Which pits a kernel would fall into with `launch`, whose facts are `facts`, and what its GPU's driver would lack.

    `config` takes precedence over the config in the image.
    """
    rules = catalogue.rules(known_pits)
    series = ".".join((image.version or "").split(".")[:2])
    known = config if config is not None else image.config
    if known is not None:
        found = [_breach(each, "certain", str(each)) for each in contract.check(rules, known, launch, series)]
        if launch.gpus:
            found += _lacks(known, needs, driver)
        if driver and known.get(IN_TREE.get(driver, "")) == "y":
            found = [each for each in found if each.pit != MODULES_OFF]  # nothing has to be loaded
    else:
        found = _by_messages(image, rules, launch, series)
    found = [_old_loader(each) if _starts_without_stub(image, known, each) else each for each in found]
    header = image.bzimage
    if header is not None and not header.efi_stub and not any(each.option == "EFI_STUB" for each in found):
        without = next((rule.without for rule in rules if rule.option == "EFI_STUB"), "")
        why = "the image has no PE header for x86-64"
        lacking = Finding("guest", "efi-stub-off", "EFI_STUB", "certain", why, without, "y")
        found.append(_old_loader(lacking) if header.relocatable else lacking)
    found += _damage(image, known_pits)
    for pit, proof in carried.pits(carried.lines(image, known), known_pits, facts or {}):
        found.append(Finding("guest", pit, "", "certain", proof, known_pits[pit].cause))
    for hit in matching.diagnose(known_pits, matching.see(b"", facts=facts)).roots:
        found.append(Finding("guest", hit.id, "", "certain", "; ".join(hit.proof), hit.pit.cause))
    return Report(image, tuple(_ordered(known_pits, found)), _boots_from(known), carried.notes(image, known), known)


def _starts_without_stub(image: Image, config: Mapping[str, str] | None, found: Finding) -> bool:
    relocatable = image.bzimage.relocatable if image.bzimage else (config or {}).get("RELOCATABLE") == "y"
    return found.option == "EFI_STUB" and found.sure != "not known" and relocatable


def _old_loader(found: Finding) -> Finding:
    without = "OVMF starts it with its older loader (-kernel); a boot from disk and Secure Boot do not start it"
    return msgspec.structs.replace(found, without=without, blocks=False)


def _damage(image: Image, pits: Mapping[str, catalogue.Pit]) -> list[Finding]:
    shown: list[tuple[Sure, str]] = [("certain", image.damage), ("likely", image.doubt)]
    cause = pits["kernel-damaged"].fix
    return [Finding("guest", "kernel-damaged", "", sure, why, cause) for sure, why in shown if why][:1]


def _breach(each: contract.Breach, sure: Sure, why: str) -> Finding:
    want = each.wanted.removeprefix("at least ")
    return Finding(each.scope, each.pit, each.option, sure, why, each.without, want, blocks=each.blocks)


def _lacks(config: Mapping[str, str], needs: Sequence[Need], driver: Driver | None) -> list[Finding]:
    found = []
    for need in needs:
        if (need.drivers and driver not in need.drivers) or (need.modules and config.get("MODULES", "n") == "n"):
            continue
        value = config.get(need.option, "n")
        if value == need.want or (need.want == "on" and value in ("y", "m")):
            continue
        wanted = "y or m" if need.want == "on" else need.want
        why = f"CONFIG_{need.option} is {value}, wanted {wanted}"
        want = "y" if need.want == "on" else need.want
        found.append(Finding("gpu", "", need.option, "certain", why, need.without, want, blocks=need.blocks))
    return found


def _ordered(pits: Mapping[str, catalogue.Pit], found: Sequence[Finding]) -> list[Finding]:
    """By group, roots before what follows from them; in a group by how sure it is."""
    sure = {each.pit for each in found if each.pit and each.sure != "not known"}
    below = {name: catalogue.below(pits, name) for name in sure if name in pits}
    groups = list(GROUPS)
    placed = [
        msgspec.structs.replace(each, follows=tuple(sorted(root for root in below if each.pit in below[root])))
        for each in found
    ]
    return sorted(
        placed,
        key=lambda each: (groups.index(each.group), bool(each.follows), ORDER.index(each.sure), not each.blocks),
    )


def _by_messages(image: Image, rules: Sequence[contract.Rule], launch: Launch, series: str) -> list[Finding]:
    breached = {each.option: each for each in contract.check(rules, {}, launch, series)}
    found = []
    for option, each in breached.items():
        if option == "EFI_STUB" and image.bzimage is not None:
            continue  # its header decides
        smp = carried.smp(image)
        if option == "SMP" and smp is not None:
            if not smp:
                found.append(_breach(each, "certain", "the kernel's version has no SMP behind its number"))
            continue
        if option in STRINGS and image.opened:
            if not image.strings & set(STRINGS[option]):
                found.append(_breach(each, "likely", "the kernel has none of the messages of this option"))
        else:
            why = "the image carries no config" if image.opened else image.closed_because
            found.append(_breach(each, "not known", f"{why}; pass the config: --config FILE"))
    return found


def _boots_from(config: Mapping[str, str] | None) -> dict[str, tuple[str, ...]]:
    """What is built in, so that it is there before a module can be loaded."""
    if config is None:
        return {}

    def built_in(*options: str) -> bool:
        return all(config.get(option) == "y" for option in options)

    initrd = [name for name, option in PACKINGS.items() if built_in("BLK_DEV_INITRD", option)]
    return {
        "initrd": tuple(initrd),
        "root disk": tuple(name for name, options in DISKS.items() if built_in(*options)),
        "file system": tuple(name for name, option in SYSTEMS.items() if built_in(option)),
    }


def describe(report: Report) -> str:
    """For a person: what the file is, what is wrong by group, roots first, and what is not known."""
    image = report.image
    packed = f", {image.compression}" if image.compression and image.kind != "config" else ""
    text = [f"{image.path}: {image.kind}, linux {image.version or '(version not known)'}{packed}"]
    text += [f"  note: {each}" for each in report.notes]
    known = [each for each in report.findings if each.sure != "not known"]
    for group, title in GROUPS.items():
        own = [each for each in known if each.group == group]
        blocking = [each for each in own if each.blocks]
        less = [each for each in own if not each.blocks and not each.follows]
        if blocking:
            text.append(f"{title}:")
            text += _listed([each for each in blocking if not each.follows])
            text += _following([each for each in blocking if each.follows])
        if less:
            text.append(_less_title(group, known))
            text += [f"  {each.why}: {each.without}" for each in less]
    # Of a damaged file nothing else matters.
    unknown = [each for each in report.findings if each.sure == "not known" and not image.damage]
    if unknown:
        text.append(f"not known ({unknown[0].why}): {', '.join(each.option for each in unknown)}")
    if not report.wrong:
        text.append(
            "nothing that keeps a guest or its GPU from working was found" + (" in what is known" if unknown else "")
        )
    modules = (report.config or {}).get("MODULES") == "y"
    for name, found in report.boots_from.items():
        none = "none, an initrd must load it" if modules and name != "initrd" else "none"
        text.append(f"built in, {name}: {', '.join(found) or none}")
    return "\n".join(text)


def _less_title(group: contract.Scope, known: Sequence[Finding]) -> str:
    if any(each.blocks and each.group in ("guest", group) for each in known):
        return f"with that fixed, {'the GPU works' if group == 'gpu' else 'it comes up'}, with less:"
    return "the GPU works, with less:" if group == "gpu" else "it comes up, with less:"


def _listed(found: Sequence[Finding]) -> list[str]:
    lines = []
    for each in found:
        lines += [f"  {each.sure}: {each.pit or each.option}: {each.why}", f"      {each.without}"]
    return lines


def _following(found: Sequence[Finding]) -> list[str]:
    """A line for all that follows from the same roots."""
    by_root: dict[tuple[str, ...], list[str]] = {}
    for each in found:
        by_root.setdefault(each.follows, []).append(f"CONFIG_{each.option}" if each.option else each.pit)
    return [f"  follows from {', '.join(roots)}: {', '.join(names)}" for roots, names in by_root.items()]


def missing(report: Report) -> list[Finding]:
    """The findings that a fragment can repair: what the guest or its card lacks."""
    return [each for each in report.findings if each.option and each.group != "minguest" and each.sure != "not known"]


def fragment(reports: Sequence[Report], needed: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """The options that are missing, as a fragment that merge_config.sh or this project takes, with their reasons.

    `needed`: for an option, the others that it depends on and that are not set, as explain.needed gives them.
    """
    text = ["# SPDX-License-Identifier: Apache-2.0", "# What minguest doctor found missing."]
    seen: set[str] = set()
    for each in [each for report in reports for each in missing(report)]:
        if each.option in seen:
            continue
        seen.add(each.option)
        text += ["", f"# {each.without}".replace("\n", "\n# "), _set(each.option, each.want)]
        for option, value in (needed or {}).get(each.option, {}).items():
            if option not in seen:
                seen.add(option)
                text += ["", f"# {each.option} depends on it.", _set(option, value)]
    return "\n".join(text) + "\n"


def _set(option: str, value: str) -> str:
    return f"# CONFIG_{option} is not set" if value == "n" else f"CONFIG_{option}={value}"


def table(reports: Sequence[Report]) -> str:
    """Several kernels, a row each."""
    rows: list[tuple[str, ...]] = [("kernel", "linux", GROUPS["guest"], GROUPS["gpu"], GROUPS["minguest"])]
    for report in reports:
        cells = []
        for group in GROUPS:
            own = [each for each in report.findings if each.group == group and each.sure != "not known" and each.blocks]
            roots = dict.fromkeys(each.pit or each.option for each in own if not each.follows)
            unknown = any(each.group == group and each.sure == "not known" for each in report.findings)
            cells.append(", ".join(roots) or ("not known" if unknown else "-"))
        rows.append((report.image.path, (report.image.version or "?").split(" ")[0], *cells))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
