# SPDX-License-Identifier: Apache-2.0
"""The cards of a launch, and the BARs that each needs room for, from the host's sysfs or from a saved description
(TOML).

A BAR takes one index, a 64-bit BAR the next one too; its size is a power of two (PCI Local Bus Specification 3.0,
6.2.5.1).
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from minguest import settings
from minguest.util import pci, units
from minguest.util.errors import UserError

# The index of the expansion ROM, and how many lines of `resource` are the device's own BARs.
ROM, OWN = 6, 7
# Linux, include/linux/ioport.h: flags in the third column of `resource`.
MEMORY, PREFETCHABLE, BITS_64 = 0x200, 0x2000, 0x100000
# The first byte of a bridge's class code.
BRIDGE = "06"
# A 32-bit BAR is at most half of what 32 bits address; a 64-bit one ends with x86-64's physical addresses.
LARGEST = {32: 1 << 31, 64: 1 << 51}


class Bar(msgspec.Struct, frozen=True):
    """A memory BAR, or the expansion ROM with the index 6; `size` in bytes."""

    index: int
    size: int
    bits: Literal[32, 64]
    prefetchable: bool

    @property
    def high(self) -> bool:
        """Whether it can lie above 4 GiB behind a root port: a bridge's only 64-bit window is the prefetchable one
        (PCI-to-PCI Bridge Architecture Specification 1.2, 3.2.5.8 and 3.2.5.9)."""
        return self.bits == 64 and self.prefetchable


class Card(msgspec.Struct, frozen=True):
    """A card by the BARs of its one function. `vendor`, `device` and `pci_class` are hex digits."""

    name: str
    vendor: str
    device: str
    pci_class: str
    bars: tuple[Bar, ...]


class Gpu(msgspec.Struct, frozen=True):
    """A card of the guest: an emulated `model`, or the `host`'s PCI address for vfio-pci."""

    id: str
    name: str
    """As the launch names it."""
    model: str | None = None
    host: str | None = None
    bar: int = 0
    """Bytes of the BAR of a card that has nothing else: QEMU's pci-testdev."""
    functions: tuple[str, ...] = ()
    """PCI addresses of the card's other functions, such as its sound, which are passed through with it."""
    card: Card | None = None
    """What the host's sysfs says about it."""
    node: int | None = None
    """The NUMA node that it is near; None: no node in particular."""

    def __str__(self) -> str:
        return self.model or (f"BAR {units.whole(self.bar)}" if self.bar else f"vfio-pci {self.host}")


class _Bar(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    index: int
    size: str
    bits: Literal[32, 64]
    prefetchable: bool


class _Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    vendor: str
    device: str
    pci_class: str
    bar: tuple[_Bar, ...]


def one_gpu(name: str, requested: str, models: Sequence[str], sysfs: Path, here: bool = True) -> Gpu:
    """The card that `requested` names; UserError if this QEMU does not have it, or if it must be `here` and this host
    does not have it."""
    if pci.is_address(requested):
        host = _bound(pci.address(requested), sysfs, here)
        others = sorted(path.name for path in (sysfs / pci.DEVICES).glob(f"{host.rpartition('.')[0]}.*"))
        # A virtual function (SR-IOV) is a card of its own: it does not belong to the other functions, nor they to it.
        virtual = [each for each in (host, *others) if (pci.function(sysfs, each) / "physfn").exists()]
        others = [] if host in virtual else [each for each in others if each != host and each not in virtual]
        functions = tuple(_bound(each, sysfs, here) for each in others)
        there = here or pci.function(sysfs, host).is_dir()
        return Gpu(name, requested, host=host, functions=functions, card=on_host(host, sysfs) if there else None)
    if requested.startswith("bar:"):
        size = settings.size(requested.removeprefix("bar:"), f"--gpu {requested}")
        if size & (size - 1):
            raise UserError(f"--gpu {requested}: a BAR's size is a power of two", "for example bar:64G")
        return Gpu(name, requested, bar=size)
    if requested in models:
        return Gpu(name, requested, model=requested)
    if ":" in requested:
        pci.address(requested, "--gpu")  # it is not an address: this raises, and shows how one is written
    near = difflib.get_close_matches(requested, models, 1)
    raise UserError(
        f"--gpu {requested}: this QEMU has no PCI display device of that name",
        f"did you mean {near[0]}?" if near else f"it has {', '.join(models)}; or give a card's address, 0000:01:00.0",
    )


def _bound(bdf: str, sysfs: Path, here: bool) -> str:
    """The full address of a card; with `here`, UserError unless the card exists and is bound to vfio-pci."""
    if not here:
        return bdf
    device = pci.function(sysfs, bdf)
    if not device.is_dir():
        raise UserError(f"--gpu {bdf}: this host has no such PCI device", "lspci -Dd ::0300/ff00 and ::0302 list cards")
    if (code := (device / "class").read_text().strip() if (device / "class").exists() else "").startswith("0x06"):
        raise UserError(f"--gpu {bdf}: is a bridge (class {code[2:]})", "name the card behind it: lspci -tv shows it")
    driver = pci.driver(device) or "no driver"
    if driver != "vfio-pci":
        raise UserError(
            f"--gpu {bdf}: is bound to {driver}; a card can be passed through only while it is bound to vfio-pci",
            f"minguest host-bind --gpu {bdf} shows how to bind it, with its IOMMU group, to vfio-pci; --yes does it",
        )
    return bdf


def known(folder: Path) -> list[str]:
    """The names of the cards that are described in `folder`."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def described(name: str, folder: Path) -> Card:
    """Read a saved description: a file, or the name of one in `folder`. UserError names file, value and remedy."""
    named = "/" not in name and not name.endswith(".toml")
    if named and name not in known(folder):
        raise UserError(
            f"--card {name}: no card of that name is described",
            f"--card FILE.toml with a description, or a known name: {', '.join(known(folder))}",
        )
    path = folder / f"{name}.toml" if named else Path(name).expanduser()
    found = settings.decode(path, _Card)
    for key, value, digits in (
        ("vendor", found.vendor, 4),
        ("device", found.device, 4),
        ("pci_class", found.pci_class, 6),
    ):
        if not re.fullmatch(rf"[0-9a-f]{{{digits}}}", value):
            raise UserError(
                f"{path}: {key} = {value!r}: not {digits} lower-case hex digits",
                "lspci -nn -s BDF prints them" if digits == 4 else "three bytes, such as 030200 for a 3D controller",
            )
    bars = tuple(Bar(bar.index, _size(bar, path), bar.bits, bar.prefetchable) for bar in found.bar)
    return _checked(Card(found.name, found.vendor, found.device, found.pci_class, bars), str(path))


def on_host(address: str, sysfs: Path) -> Card:
    """Read a card of this host, by its PCI address; `sysfs` is /sys. Its driver does not matter.

    The format of `resource` is in Linux' Documentation/ABI/testing/sysfs-bus-pci: start, end and flags a line.
    """
    if not pci.is_address(address):
        raise UserError(
            f"--gpu {address}: not a PCI address, so its BARs cannot be read",
            "write it as lspci -D prints it, for example 0000:01:00.0; or bar:SIZE; or --card FILE, for one elsewhere",
        )
    bdf = pci.address(address)
    device = pci.function(sysfs, bdf)
    if not device.is_dir():
        raise UserError(
            f"--gpu {bdf}: {device} does not exist: this host has no such PCI device",
            "lspci -Dd ::0300/ff00 and ::0302 list cards; --card FILE plans for a card elsewhere",
        )
    ids = {name: _line(device / name) for name in ("vendor", "device", "class")}
    return _checked(Card(bdf, ids["vendor"], ids["device"], ids["class"], bars_on_host(bdf, sysfs)), str(device))


def bars_on_host(bdf: str, sysfs: Path) -> tuple[Bar, ...]:
    """The memory BARs of a function, by its full address; there may be none."""
    resource = pci.function(sysfs, bdf) / "resource"
    bars = []
    lines = _text(resource).splitlines()[:OWN]
    for index, line in enumerate(lines):
        try:
            start, end, flags = (int(number, 16) for number in line.split())
        except ValueError:
            raise UserError(
                f"{resource}: line {index + 1}, {line!r}, is not START END FLAGS in hex",
                "is this sysfs? --card FILE takes a description in its place",
            ) from None
        if flags & MEMORY:
            bits: Literal[32, 64] = 64 if flags & BITS_64 else 32
            bars.append(Bar(index, end - start + 1, bits, bool(flags & PREFETCHABLE)))
    return tuple(bars)


def named(names: Sequence[str], sysfs: Path) -> list[Card]:
    """The cards that --gpu names, by address or as bar:SIZE; UserError if one is named twice."""
    found = [one_bar(name) if name.startswith("bar:") else on_host(name, sysfs) for name in names]
    addresses = [card.name for card in found if pci.is_address(card.name)]
    if twice := [address for address in addresses if addresses.count(address) > 1]:
        raise UserError(f"--gpu {','.join(names)}: {twice[0]} is named twice", "a card can be passed through once")
    return found


def one_bar(name: str) -> Card:
    """The card that `bar:SIZE` names: QEMU's pci-testdev with one large BAR (hw/misc/pci-testdev.c)."""
    size = settings.size(name.removeprefix("bar:"), f"--gpu {name}")
    # And 4 KiB of registers.
    bars = (Bar(0, 4096, 32, False), Bar(2, size, 64, True))
    return _checked(Card(name, "1b36", "0005", "00ff00", bars), f"--gpu {name}")


def _checked(card: Card, where: str) -> Card:
    """The same card; UserError for a card that cannot exist."""
    if card.pci_class.startswith(BRIDGE):
        raise UserError(
            f"{where}: {card.vendor}:{card.device} is a bridge (class {card.pci_class}): it cannot be passed through",
            "name the card behind it: lspci -tv shows it",
        )
    taken: dict[int, Bar] = {}
    for bar in card.bars:
        place = f"{where}: BAR {bar.index}"
        if not 0 <= bar.index <= ROM:
            raise UserError(f"{place}: a device has the indices 0 to 5, and 6 for its expansion ROM", "see lspci -vv")
        if bar.size < 16 or bar.size & (bar.size - 1):
            raise UserError(
                f"{place}: size {bar.size} bytes: a BAR's size is a power of two, 16 bytes at least",
                "take the size that lspci -vv prints",
            )
        if bar.size > LARGEST[bar.bits]:
            raise UserError(
                f"{place}: size {bar.size} bytes: more than a {bar.bits}-bit BAR can have, {LARGEST[bar.bits]}",
                "bits = 64" if bar.bits == 32 else "take the size that lspci -vv prints",
            )
        if bar.bits == 64 and bar.index >= 5:
            raise UserError(
                f"{place}: a 64-bit BAR needs the next index too, and 5 is the last",
                "give it index 4 or less, or bits = 32",
            )
        for index in (bar.index, bar.index + 1) if bar.bits == 64 else (bar.index,):
            if index in taken:
                other = taken[index]
                why = f"is there twice, with {other.size} and {bar.size} bytes"
                if other.index != bar.index:
                    low, high = sorted((bar.index, other.index))
                    place, why = f"{where}: BAR {low}", f"is 64-bit and takes index {high} too, which BAR {high} has"
                raise UserError(f"{place} {why}", "a 64-bit BAR takes two indices: 0, 2 and 4 are usual")
            taken[index] = bar
    if not card.bars:
        raise UserError(f"{where}: no memory BAR, so there is nothing to plan", "name the card's function, usually .0")
    return card


def _size(bar: _Bar, path: Path) -> int:
    count = units.read(bar.size)
    if count is None:
        raise UserError(f"{path}: BAR {bar.index}: size = {bar.size!r} is not a size", "write for example 16M or 128G")
    return count


def _line(path: Path) -> str:
    return _text(path).strip().removeprefix("0x")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}", "--card FILE takes a description in its place") from None
