# SPDX-License-Identifier: Apache-2.0
"""What a host has for a passthrough, from /sys, /proc and /dev: read once, never written.

Standard library alone: it needs nothing but python3. `root` is `/`, or a recorded tree.
Sources: Linux' Documentation/ABI/testing/sysfs-bus-pci, sysfs-kernel-iommu_groups and proc(5).
"""

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from minguest.host import inuse, sysfs
from minguest.util import pci

VFIO = "vfio-pci"
MODULES = ("vfio", "vfio_pci", "vfio_iommu_type1")
# Class codes of "PCI Code and ID Assignment Specification": base class and subclass.
CLASSES = {
    0x0106: "SATA controller",
    0x0108: "NVMe controller",
    0x0200: "Ethernet controller",
    0x0300: "VGA controller",
    0x0302: "3D controller",
    0x0380: "display controller",
    0x0403: "audio device",
    0x0600: "host bridge",
    0x0601: "ISA bridge",
    0x0604: "PCI bridge",
    0x0C03: "USB controller",
    0x0C80: "serial bus controller",
    0x1200: "processing accelerator",
}
# PCI bridge, CardBus bridge, semi-transparent bridge: their headers are not of type 0.
_HEADERS = {0x0604: 1, 0x0607: 2, 0x0609: 1}
CAP_IPC_LOCK = 14  # capability.h
UNLIMITED = -1

Module = Literal["there", "on disk", "gone", "not loaded"]
"""`not loaded`: it is not known whether it is on the disk."""
Kvm = Literal["absent", "closed", "open"]


@dataclass(frozen=True)
class Device:
    """One PCI function."""

    bdf: str
    """With its domain, lower case: 0000:01:00.0."""
    kind: int
    """Class code, 24 bits."""
    ids: str
    """vendor:device, hex."""
    header: int
    """Type of its configuration header: 0 is an endpoint's."""
    driver: str | None = None
    override: str | None = None
    group: str | None = None
    boot_vga: bool = False
    physfn: str | None = None
    """For an SR-IOV virtual function: its physical function."""
    vfs: int = 0
    """For a physical function: how many virtual functions it has."""
    uses: tuple[str, ...] = ()
    """How the host uses it; read only for the requested groups."""
    held: tuple[str, ...] = ()
    """Processes that have its device files open; read likewise."""

    @property
    def bridge(self) -> bool:
        return self.kind >> 16 == 0x06 or self.header != 0

    @property
    def card(self) -> bool:
        """A display controller, or an accelerator: AMD's Instinct cards have class 12."""
        return self.kind >> 16 == 0x03 or self.kind >> 8 == 0x1200

    def __str__(self) -> str:
        name = CLASSES.get(self.kind >> 8)
        kind = f"{name} [{self.kind >> 8:04x}]" if name else f"class {self.kind >> 8:04x}"
        of = f", virtual function of {self.physfn}" if self.physfn else ""
        return f"{self.bdf} {kind} {self.ids}{of}, {f'driver {self.driver}' if self.driver else 'no driver'}"


@dataclass(frozen=True)
class Pages:
    """Huge pages of one size (bytes)."""

    size: int
    total: int
    free: int


@dataclass(frozen=True)
class Facts:
    """One look at a host. None: not known."""

    devices: Mapping[str, Device]
    groups: Mapping[str, tuple[str, ...]] | None
    """IOMMU groups: the names of their devices, also of those that are not PCI's."""
    drivers: frozenset[str]
    """The PCI bus's drivers."""
    iommus: Mapping[str, int | None] | None = None
    """IOMMUs by name, with Intel's extended capabilities if there are any."""
    remapping: bool | None = None
    unsafe: bool = False
    """allow_unsafe_interrupts is set."""
    modules: Mapping[str, Module] = field(default_factory=dict)
    memlock: int | None = None
    """Bytes that this user may lock, or UNLIMITED."""
    available: int | None = None
    """Bytes of memory."""
    pages: tuple[Pages, ...] | None = None
    kvm: Kvm | None = None
    nodes: Mapping[str, bool] = field(default_factory=dict)
    """/dev/vfio/ by name: whether this user may open it."""
    hidden: bool = False
    """The open files of some processes could not be read: not root."""
    vendor: str = ""
    cmdline: str = ""
    release: str = ""
    boot: str = ""
    """Differs between boots."""

    def members(self, card: str) -> tuple[str, ...]:
        """The members of a card's group, itself included; none without an IOMMU."""
        group = self.devices[card].group if card in self.devices else None
        return (self.groups or {}).get(group, ()) if group is not None else ()

    def endpoints(self, card: str) -> tuple[str, ...]:
        """The members of a card's group that go with it: all but bridges."""
        return tuple(name for name in self.members(card) if name in self.devices and not self.devices[name].bridge)


def obstacles(facts: Facts, card: str) -> list[str]:
    """Why the group of a card cannot be given to a guest as a whole."""
    found = []
    for name in facts.members(card):
        device = facts.devices.get(name)
        if device is None:
            found.append(f"{name} is in the group but is not a PCI device: vfio-pci cannot take it")
        elif device.driver == VFIO:
            continue
        elif device.bridge:
            # vfio-pci takes no bridge. One with a header of type 1 may keep its driver; one that looks like an
            # endpoint may not (vfio_dev_driver_allowed; since 5.19: driver_managed_dma).
            if device.header == 0 and device.driver not in (None, "pci-stub"):
                found.append(f"{device}: vfio-pci cannot take it, and with that driver the group stays the host's")
        else:
            found += [f"{name} {use}" for use in (*device.uses, *device.held)]
    return found


def read(root: Path = Path("/"), cards: Sequence[str] = (), busy: Callable[[Path], bool] = inuse.claimed) -> Facts:
    """Look at a host; at what is in use only in the IOMMU groups of `cards`. `busy` says whether a disk is in use."""
    sys, proc, dev = root / "sys", root / "proc", root / "dev"
    devices = {path.name: _device(path) for path in sysfs.entries(sys / pci.DEVICES) if pci.is_address(path.name)}
    groups = _groups(sys)
    facts = Facts(
        devices=devices,
        groups=groups,
        drivers=frozenset(path.name for path in sysfs.entries(sys / "bus/pci/drivers")),
        iommus=_iommus(sys),
        remapping=_remapping(proc),
        unsafe=sysfs.text(sys / "module/vfio_iommu_type1/parameters/allow_unsafe_interrupts") == "Y",
        modules=_modules(root),
        memlock=_memlock(proc),
        available=_meminfo(proc).get("MemAvailable"),
        pages=_pages(sys, proc),
        kvm=_kvm(dev),
        nodes={path.name: os.access(path, os.R_OK | os.W_OK) for path in sysfs.entries(dev / "vfio")},
        vendor=sysfs.value(proc / "cpuinfo", "vendor_id"),
        cmdline=sysfs.text(proc / "cmdline") or "",
        release=sysfs.text(proc / "sys/kernel/osrelease") or "",
        boot=sysfs.text(proc / "sys/kernel/random/boot_id") or "",
    )
    wanted = {name for card in cards for name in facts.endpoints(card)}
    if not wanted:
        return facts
    look = inuse.Look(root, wanted, busy)
    held, hidden = look.held({name: devices[name].group for name in wanted if devices[name].driver == VFIO})
    uses = look.uses()
    seen = {
        name: replace(devices[name], uses=(*_own_uses(devices[name]), *uses[name]), held=tuple(held[name]))
        for name in wanted
    }
    return replace(facts, devices={**devices, **seen}, hidden=hidden)


def _own_uses(device: Device) -> list[str]:
    """How the host uses a function, as far as its own folder shows it."""
    found = []
    if device.boot_vga:
        found.append("is the display that the firmware started on (boot_vga)")
    if device.vfs:
        found.append(f"has {device.vfs} virtual functions, which would go with its driver")
    return found


def _device(path: Path) -> Device:
    kind = sysfs.hexadecimal(path / "class") or 0
    try:
        header = path.joinpath("config").read_bytes()[0x0E] & 0x7F  # bit 7: has more functions
    except (OSError, IndexError):
        header = _HEADERS.get(kind >> 8, 0)
    override = sysfs.text(path / "driver_override")
    return Device(
        bdf=path.name,
        kind=kind,
        ids=f"{sysfs.hexadecimal(path / 'vendor') or 0:04x}:{sysfs.hexadecimal(path / 'device') or 0:04x}",
        header=header,
        driver=pci.driver(path),
        override=None if override in ("(null)", "") else override,
        group=sysfs.link(path / "iommu_group"),
        boot_vga=sysfs.text(path / "boot_vga") == "1",
        physfn=sysfs.link(path / "physfn"),
        vfs=sysfs.number(path / "sriov_numvfs"),
    )


def _groups(sys: Path) -> dict[str, tuple[str, ...]] | None:
    folder = sys / "kernel/iommu_groups"
    if not folder.is_dir():
        # The kernel makes it at its start, if it supports IOMMUs at all.
        return {} if (sys / "kernel").is_dir() else None
    return {
        group.name: tuple(sorted(path.name for path in sysfs.entries(group / "devices")))
        for group in sysfs.entries(folder)
        # A group of VFIO's own, without an IOMMU: it protects nothing.
        if sysfs.text(group / "name") != "vfio-noiommu"
    }


def _iommus(sys: Path) -> dict[str, int | None] | None:
    if not (sys / "class").is_dir():
        return None
    return {path.name: sysfs.hexadecimal(path / "intel-iommu/ecap") for path in sysfs.entries(sys / "class/iommu")}


def _remapping(proc: Path) -> bool | None:
    """Remapped interrupts have chips called IR-…: IR-IO-APIC, IR-PCI-MSI (both in 4.12 and 6.12)."""
    try:
        lines = (proc / "interrupts").read_text(errors="replace").splitlines()
    except OSError:
        return None
    chips = [
        each for line in lines for each in line.split() if re.match(r"(IR-)?(IO-APIC|(PCI|HPET|DMAR)[-_]MSI)", each)
    ]
    # DMAR's own interrupts are never remapped.
    if any(chip.startswith("IR-") for chip in chips):
        return True
    return False if any(not chip.startswith("DMAR") for chip in chips) else None


def _modules(root: Path) -> dict[str, Module]:
    if not (root / "sys/module").is_dir():
        return {}
    folder = root / "lib/modules" / (sysfs.text(root / "proc/sys/kernel/osrelease") or "none")
    builtin, disk = (sysfs.text(folder / name) for name in ("modules.builtin", "modules.dep"))

    def named(text: str | None, name: str) -> bool:
        # A line is kernel/drivers/vfio/pci/vfio-pci.ko.xz: …; file names have - or _.
        return re.search(rf"/{name.replace('_', '[-_]')}\.ko\b", text or "") is not None

    def one(name: str) -> Module:
        if (root / "sys/module" / name).exists() or named(builtin, name):
            return "there"
        if named(disk, name):
            return "on disk"
        return "not loaded" if disk is None else "gone"

    return {name: one(name) for name in MODULES}


def _memlock(proc: Path) -> int | None:
    with contextlib.suppress(ValueError):
        # With this capability VFIO checks no limit.
        if int(sysfs.value(proc / "self/status", "CapEff"), 16) >> CAP_IPC_LOCK & 1:
            return UNLIMITED
    match = re.search(r"^Max locked memory\s+(\d+|unlimited)", sysfs.text(proc / "self/limits") or "", re.MULTILINE)
    if not match:
        return None
    return UNLIMITED if match[1] == "unlimited" else int(match[1])


def _meminfo(proc: Path) -> dict[str, int]:
    """Bytes, and plain counts of pages."""
    found = re.findall(r"^(\w+):\s+(\d+)( kB)?$", sysfs.text(proc / "meminfo") or "", re.MULTILINE)
    return {name: int(number) << (10 if unit else 0) for name, number, unit in found}


def _pages(sys: Path, proc: Path) -> tuple[Pages, ...] | None:
    folder = sys / "kernel/mm/hugepages"
    if folder.is_dir():
        sizes = [(path, re.fullmatch(r"hugepages-(\d+)kB", path.name)) for path in sysfs.entries(folder)]
        found = [
            Pages(int(match[1]) << 10, sysfs.number(path / "nr_hugepages"), sysfs.number(path / "free_hugepages"))
            for path, match in sizes
            if match
        ]
        return tuple(sorted(found, key=lambda each: each.size))
    info = _meminfo(proc)
    if "Hugepagesize" in info:
        return (Pages(info["Hugepagesize"], info.get("HugePages_Total", 0), info.get("HugePages_Free", 0)),)
    return () if info else None


def _kvm(dev: Path) -> Kvm | None:
    if not dev.is_dir():
        return None
    node = dev / "kvm"
    return "absent" if not node.exists() else "open" if os.access(node, os.R_OK | os.W_OK) else "closed"
