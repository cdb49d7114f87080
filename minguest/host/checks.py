# SPDX-License-Identifier: Apache-2.0
"""Whether a host can give a card to a guest: a row a check, with what was found and what to do. Reads, never writes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from minguest import settings
from minguest.host import survey
from minguest.host.survey import UNLIMITED, VFIO, Facts
from minguest.model import Launch
from minguest.util import pci, units
from minguest.util.errors import ToolError
from minguest.vm import emulator

State = Literal["ok", "WRONG", "not known"]
# What QEMU maps for a guest's DMA beside its memory; libvirt allows as much (qemuDomainGetMemLockLimitBytes).
BESIDE = 1 << 30
ECAP_IR = 1 << 3  # VT-d specification, Extended Capability Register: interrupt remapping support


class Wish(msgspec.Struct, frozen=True):
    """What a launch needs from the host. Memory in bytes."""

    cards: tuple[str, ...]
    """PCI addresses in full."""
    memory: int
    most: int
    """Bytes with what can be plugged in."""
    kvm: bool
    """The launch requires KVM."""
    qemu: str = ""
    """QEMU's version; empty: there is none."""
    ovmf: str = ""
    """Which OVMF would run, as text; empty: not known."""
    proof: tuple[bool, str] | None = None
    """Whether KVM ran OVMF here, and why not, from a boot-test with this QEMU on this kernel."""


class Row(msgspec.Struct, frozen=True):
    """One check."""

    name: str
    state: State
    found: str
    remedy: str = ""
    needed: bool = True
    """A guest with a card does not start without it."""


def wish(launch: Launch, cards: Sequence[str], proofs: Sequence[Path], ovmf: str, release: str) -> Wish:
    """What a launch needs from the host that runs this kernel `release`; `proofs` are boot tests' kvm.json."""
    memory = settings.size(launch.memory, "launch.memory")
    most = settings.size(launch.max_memory, "launch.max_memory") if launch.max_memory else memory
    try:
        version = emulator.version()
    except ToolError:
        version = ""
    return Wish(
        cards=tuple(dict.fromkeys(pci.address(card) for card in cards)),
        memory=memory,
        most=max(memory, most),
        kvm=launch.accel == "kvm",
        qemu=version,
        ovmf=ovmf,
        proof=proven(proofs, version, release),
    )


def proven(places: Sequence[Path], version: str, release: str) -> tuple[bool, str] | None:
    """What the last boot test recorded about KVM that ran with this QEMU on this kernel; None if there is none."""
    found = {place: proof for place in places if (proof := _proven(place, version, release)) is not None}
    return found[max(found, key=lambda place: place.stat().st_mtime)] if found else None


def _proven(place: Path, version: str, release: str) -> tuple[bool, str] | None:
    try:
        key, works, why = msgspec.json.decode(place.read_bytes(), type=tuple[str, bool, str])
        of = msgspec.json.decode(key, type=list[msgspec.Raw])[:2]
        same = [msgspec.json.decode(each, type=str) for each in of] == [version, release]
    except (OSError, ValueError):
        return None
    return (works, why) if same else None


def checks(facts: Facts, wanted: Wish) -> list[Row]:
    """Every check, in the order in which to fix them. `facts` must have been read for the wish's cards."""
    rows = [_iommu(facts), _remapping(facts), _modules(facts)]
    if not wanted.cards:
        rows.append(_cards(facts))
    for card in wanted.cards:
        rows += _card(facts, card)
    return [*rows, _memlock(facts, wanted), _memory(facts, wanted), _pages(facts), *_programs(facts, wanted)]


def missing(rows: Sequence[Row]) -> list[str]:
    """The names of what is needed and wrong."""
    return [row.name for row in rows if row.needed and row.state == "WRONG"]


def table(rows: Sequence[Row]) -> str:
    """For a person: name, state, what was found; the remedy in the next line."""
    width = max(len(row.name) for row in rows)
    text = []
    for row in rows:
        spare = "" if row.needed or row.state != "WRONG" else " (not needed)"
        text.append(f"  {row.name:<{width}}  {row.state:<9}  {row.found}{spare}")
        if row.remedy:
            text.append(f"  {'':<{width}}  {'':<9}  remedy: {row.remedy}")
    return "\n".join(text)


def _iommu(facts: Facts) -> Row:
    if facts.groups is None or facts.iommus is None:
        return Row("IOMMU", "not known", "no /sys/kernel or /sys/class")
    if facts.groups:
        names = ", ".join(facts.iommus) or "one without a name in /sys/class/iommu"
        return Row("IOMMU", "ok", f"{names}; {len(facts.groups)} groups")
    said = [each for each in facts.cmdline.split() if "iommu" in each]
    mentions = f"has {' '.join(said)}" if said else "does not mention it"
    # AMD's is on by default; Intel's only with CONFIG_INTEL_IOMMU_DEFAULT_ON.
    parameter = ", intel_iommu=on on the kernel's command line" if facts.vendor == "GenuineIntel" else ""
    return Row(
        "IOMMU",
        "WRONG",
        f"no IOMMU groups; the kernel's command line {mentions}",
        f"VT-d or AMD-Vi (IOMMU) on in the firmware's setup{parameter}; if this is a virtual machine itself, it needs "
        "an emulated one: -device intel-iommu,intremap=on",
    )


def _remapping(facts: Facts) -> Row:
    name = "interrupt remapping"
    able = [each for each, ecap in (facts.iommus or {}).items() if ecap is not None and ecap & ECAP_IR]
    can = f"; {', '.join(able)} can (ecap bit 3)" if able else ""
    if facts.remapping:
        return Row(name, "ok", "/proc/interrupts has IR- chips")
    if facts.unsafe:
        return Row(
            name, "ok", f"not seen, but allow_unsafe_interrupts is set: VFIO works without it, and isolates less{can}"
        )
    if facts.remapping is None:
        return Row(name, "not known", f"/proc/interrupts has no chip that would show it{can}", "dmesg | grep -i remap")
    return Row(
        name,
        "WRONG",
        f"/proc/interrupts has no IR- chip{can}",
        "no intremap=off or nointremap on the kernel's command line, x2APIC/VT-d on in the firmware's setup; else, for "
        "guests that you trust: modprobe vfio_iommu_type1 allow_unsafe_interrupts=1",
    )


def _modules(facts: Facts) -> Row:
    if not facts.modules:
        return Row("VFIO", "not known", "no /sys/module")
    lost = {name: state for name, state in facts.modules.items() if state != "there"}
    if not lost:
        return Row("VFIO", "ok", f"{', '.join(facts.modules)} are there")
    said = {"gone": "not in this kernel", "on disk": "not loaded, but on the disk", "not loaded": "not loaded"}
    found = ", ".join(f"{name} {said[state]}" for name, state in lost.items())
    if "gone" in lost.values():
        return Row("VFIO", "WRONG", found, "a kernel with CONFIG_VFIO, CONFIG_VFIO_PCI and CONFIG_VFIO_IOMMU_TYPE1")
    return Row("VFIO", "WRONG", found, "modprobe -a vfio-pci vfio_iommu_type1")


def _cards(facts: Facts) -> Row:
    there = [f"{device}, group {device.group or 'none'}" for device in facts.devices.values() if device.card]
    if there:
        return Row("card", "not known", "; ".join(there), "name it: --gpu BDF", needed=False)
    return Row("card", "WRONG", f"none of this host's {len(facts.devices)} PCI devices is a display controller")


def _card(facts: Facts, card: str) -> list[Row]:
    device = facts.devices.get(card)
    if device is None:
        return [Row(f"card {card}", "WRONG", "no such PCI device", "lspci -Dd ::0300/ff00 and ::0302 list cards")]
    if device.bridge:
        return [Row(f"card {card}", "WRONG", f"a bridge: {device}", "lspci -Dd ::0300/ff00 and ::0302 list cards")]
    row = Row(f"card {card}", "ok", str(device))
    if not device.card:
        # An accelerator need not be one; but it may be a sound function that was named by mistake.
        row = Row(row.name, "not known", f"not a display controller: {device}", "is it the one that you mean?")
    return [row, _group(facts, card), _driver(facts, card)]


def _group(facts: Facts, card: str) -> Row:
    name = f"group of {card}"
    group = facts.devices[card].group
    if card not in facts.members(card):
        if facts.groups is None:
            return Row(name, "not known", "no /sys/kernel")
        return Row(name, "WRONG", "it is in no group", "see IOMMU above")
    others = [facts.devices[each] for each in facts.members(card) if each in facts.devices and each != card]
    along = [str(each) for each in others if not each.bridge]
    stay = [each.bdf for each in others if each.bridge]
    found = f"{group}: " + ("with it must go " + "; ".join(along) if along else "it alone")
    found += f"; bridges stay: {', '.join(stay)}" if stay else ""
    if blocked := survey.obstacles(facts, card):
        return Row(
            name,
            "WRONG",
            f"{found}; cannot go: {'; '.join(blocked)}",
            "end these uses; or put the card into another slot, where it is in another group",
        )
    if facts.hidden:
        found += "; not known whether programs of other users have it open (root can see that)"
    return Row(name, "ok", found)


def _driver(facts: Facts, card: str) -> Row:
    name = f"driver of {card}"
    other = [each for each in facts.endpoints(card) or (card,) if facts.devices[each].driver != VFIO]
    if other:
        has = ", ".join(f"{each} has {facts.devices[each].driver or 'no driver'}" for each in other)
        return Row(
            name,
            "WRONG",
            has,
            f"minguest host-bind --gpu {card} shows how to bind the whole group to vfio-pci, with the command",
        )
    node = facts.devices[card].group or ""
    if not facts.nodes.get(node):
        why = "you may not open" if node in facts.nodes else "there is no"
        return Row(
            name, "WRONG", f"vfio-pci, but {why} /dev/vfio/{node}", f"chown YOU /dev/vfio/{node}, or a udev rule"
        )
    return Row(name, "ok", f"vfio-pci; /dev/vfio/{node} can be opened")


def _memlock(facts: Facts, wanted: Wish) -> Row:
    name, limit = "locked memory", facts.memlock
    remedy = f"ulimit -l {(wanted.most + BESIDE) >> 10}, or memlock in /etc/security/limits.conf"
    if limit is None:
        return Row(name, "not known", "not in /proc/self/limits")
    if limit == UNLIMITED:
        return Row(name, "ok", "no limit")
    found = f"at most {units.whole(limit)}; VFIO locks all of the guest's {units.whole(wanted.most)}"
    if limit < wanted.most:
        return Row(name, "WRONG", found, remedy)
    if limit < wanted.most + BESIDE:
        return Row(name, "not known", f"{found} and some more; libvirt allows {units.whole(BESIDE)} more", remedy)
    return Row(name, "ok", found)


def _memory(facts: Facts, wanted: Wish) -> Row:
    if facts.available is None:
        return Row("free memory", "not known", "no MemAvailable in /proc/meminfo")
    # In whole MiB: it is never a round number.
    available, requested = units.whole(facts.available >> 20 << 20), units.whole(wanted.memory)
    found = f"{available} available; the guest has {requested}, locked from its start"
    if facts.available < wanted.memory:
        return Row("free memory", "WRONG", found, "end some programs, or give the guest less: launch.memory")
    return Row("free memory", "ok", found)


def _pages(facts: Facts) -> Row:
    name = "huge pages"
    if facts.pages is None:
        return Row(name, "not known", "neither /sys/kernel/mm/hugepages nor /proc/meminfo", needed=False)
    found = ", ".join(f"{each.free} of {each.total} free of {units.whole(each.size)}" for each in facts.pages)
    return Row(name, "ok", f"{found or 'this kernel has none'}; the launch needs none", needed=False)


def _programs(facts: Facts, wanted: Wish) -> list[Row]:
    return [
        _kvm(facts, wanted),
        Row("QEMU", "ok", wanted.qemu)
        if wanted.qemu
        else Row("QEMU", "WRONG", "no qemu-system-x86_64", "apt install qemu-system-x86"),
        Row("OVMF", "ok", wanted.ovmf)
        if wanted.ovmf
        else Row("OVMF", "not known", "no release or bundle was named", "each brings its own OVMF; name its folder"),
    ]


def _kvm(facts: Facts, wanted: Wish) -> Row:
    does = "" if wanted.kvm else "; without KVM boot-test uses software emulation, which is much slower"
    if facts.kvm is None:
        return Row("KVM", "not known", "no /dev", needed=wanted.kvm)
    if facts.kvm == "absent":
        return Row("KVM", "WRONG", "no /dev/kvm", f"modprobe kvm-intel or kvm-amd{does}", needed=wanted.kvm)
    if facts.kvm == "closed":
        remedy = f"sudo adduser YOU kvm, then log in again{does}"
        return Row("KVM", "WRONG", "/dev/kvm is there, but you may not open it", remedy, needed=wanted.kvm)
    if wanted.proof is None:
        return Row("KVM", "not known", "/dev/kvm opens; only boot-test proves that it runs OVMF", "boot-test once")
    works, why = wanted.proof
    if works:
        return Row("KVM", "ok", f"boot-test: {why}")
    return Row("KVM", "WRONG", f"boot-test: {why}", does.lstrip("; "), needed=wanted.kvm)
