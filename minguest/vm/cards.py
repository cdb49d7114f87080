# SPDX-License-Identifier: Apache-2.0
"""The cards of a launch by their words, and what each asks of the address space: its BARs, from the host's sysfs or
from a saved description (TOML).

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

# The index of the expansion ROM, and how many lines of `resource` are a device's own.
ROM, OWN = 6, 7
# Linux, include/linux/ioport.h: what the third column of `resource` says.
MEMORY, PREFETCHABLE, BITS_64 = 0x200, 0x2000, 0x100000
# The first byte of a class code that is no endpoint's.
BRIDGE = "06"
# A 32-bit BAR is at most half of what 32 bits address; 64-bit ones end with x86-64's physical addresses.
LARGEST = {32: 1 << 31, 64: 1 << 51}


class Bar(msgspec.Struct, frozen=True):
    """A memory BAR, or the expansion ROM with the index 6; `size` in bytes."""

    index: int
    size: int
    bits: Literal[32, 64]
    prefetchable: bool

    @property
    def high(self) -> bool:
        """Whether it can lie above 4 GiB behind a root port: a bridge has no 64-bit window but the prefetchable one
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
    word: str
    """As the launch names it."""
    model: str | None = None
    host: str | None = None
    bar: int = 0
    """Bytes of the BAR of a card that is nothing but one: QEMU's pci-testdev."""
    functions: tuple[str, ...] = ()
    """PCI addresses of the card's other functions, its sound for one, that go along with it."""
    card: Card | None = None
    """What the host's sysfs says of it."""
    node: int | None = None
    """The NUMA node that it is near; None: none in particular."""

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


def one_gpu(name: str, word: str, models: Sequence[str], sysfs: Path, here: bool = True) -> Gpu:
    """A card by its word; UserError for one that this QEMU has not, or this host, unless it need not be `here`."""
    if pci.is_address(word):
        host = _bound(pci.address(word), sysfs, here)
        others = sorted(path.name for path in (sysfs / pci.DEVICES).glob(f"{host.rpartition('.')[0]}.*"))
        # A virtual function (SR-IOV) is a card of its own: it has no others, and is no other's.
        virtual = [each for each in (host, *others) if (pci.function(sysfs, each) / "physfn").exists()]
        others = [] if host in virtual else [each for each in others if each != host and each not in virtual]
        functions = tuple(_bound(each, sysfs, here) for each in others)
        there = here or pci.function(sysfs, host).is_dir()
        return Gpu(name, word, host=host, functions=functions, card=on_host(host, sysfs) if there else None)
    if word.startswith("bar:"):
        size = settings.size(word.removeprefix("bar:"), f"--gpu {word}")
        if size & (size - 1):
            raise UserError(f"--gpu {word}: a BAR's size is a power of two", "for example bar:64G")
        return Gpu(name, word, bar=size)
    if word in models:
        return Gpu(name, word, model=word)
    if ":" in word:
        pci.address(word, "--gpu")  # it is none, and this says how one is written
    near = difflib.get_close_matches(word, models, 1)
    raise UserError(
        f"--gpu {word}: this QEMU has no PCI display device of that name",
        f"did you mean {near[0]}?" if near else f"it has {', '.join(models)}; or give a card's address, 0000:01:00.0",
    )


def _bound(bdf: str, sysfs: Path, here: bool) -> str:
    """The address, in full, of a card that, where it is started `here`, exists and is vfio-pci's."""
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
            f"--gpu {bdf}: is bound to {driver}; a card can be passed through only while vfio-pci has it",
            f"doit host-bind gpu={bdf} shows how to give it, with its IOMMU group, to vfio-pci; yes=yes does it",
        )
    return bdf


def described(word: str, folder: Path) -> Card:
    """Read a saved description: a file, or the name of one in `folder`. UserError names file, value and remedy."""
    path = Path(word).expanduser() if "/" in word or word.endswith(".toml") else folder / f"{word}.toml"
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


def on_host(word: str, sysfs: Path) -> Card:
    """Read a card of this host, by its PCI address; `sysfs` is /sys. Its driver does not matter.

    What `resource` tells is Documentation/ABI/testing/sysfs-bus-pci of Linux: start, end and flags a line.
    """
    if not pci.is_address(word):
        raise UserError(
            f"gpu={word}: not a PCI address, so its BARs cannot be read",
            "write it as lspci -D prints it, for example 0000:01:00.0; or bar:SIZE; or card=FILE for a card elsewhere",
        )
    bdf = pci.address(word)
    device = pci.function(sysfs, bdf)
    if not device.is_dir():
        raise UserError(
            f"gpu={bdf}: {device} is not there: this host has no such PCI device",
            "lspci -Dd ::0300/ff00 and ::0302 list cards; card=FILE plans for one that is elsewhere",
        )
    told = {name: _line(device / name) for name in ("vendor", "device", "class")}
    return _checked(Card(bdf, told["vendor"], told["device"], told["class"], bars_on_host(bdf, sysfs)), str(device))


def bars_on_host(bdf: str, sysfs: Path) -> tuple[Bar, ...]:
    """The memory BARs of a function, by its address in full; it may have none."""
    resource = pci.function(sysfs, bdf) / "resource"
    bars = []
    lines = _text(resource).splitlines()[:OWN]
    for index, line in enumerate(lines):
        try:
            start, end, flags = (int(number, 16) for number in line.split())
        except ValueError:
            raise UserError(
                f"{resource}: line {index + 1}, {line!r}, is not START END FLAGS in hex",
                "is this sysfs? card=FILE takes a description in its place",
            ) from None
        if flags & MEMORY:
            bits: Literal[32, 64] = 64 if flags & BITS_64 else 32
            bars.append(Bar(index, end - start + 1, bits, bool(flags & PREFETCHABLE)))
    return tuple(bars)


def of_words(words: Sequence[str], sysfs: Path) -> list[Card]:
    """The cards that gpu= names, by address or as bar:SIZE; UserError where one is named twice."""
    found = [one_bar(word) if word.startswith("bar:") else on_host(word, sysfs) for word in words]
    named = [card.name for card in found if pci.is_address(card.name)]
    if twice := [name for name in named if named.count(name) > 1]:
        raise UserError(f"gpu={','.join(words)}: {twice[0]} is there twice", "a card can be passed through once")
    return found


def one_bar(word: str) -> Card:
    """The card that `bar:SIZE` stands for: QEMU's pci-testdev with one large BAR (hw/misc/pci-testdev.c)."""
    size = settings.size(word.removeprefix("bar:"), f"gpu={word}")
    # Beside it, 4 KiB of registers.
    bars = (Bar(0, 4096, 32, False), Bar(2, size, 64, True))
    return _checked(Card(word, "1b36", "0005", "00ff00", bars), f"gpu={word}")


def _checked(card: Card, where: str) -> Card:
    """The same card; UserError for what no card can be."""
    if card.pci_class.startswith(BRIDGE):
        raise UserError(
            f"{where}: {card.vendor}:{card.device} is a bridge (class {card.pci_class}): it cannot be passed through",
            "name the card behind it: lspci -tv shows which that is",
        )
    taken: dict[int, Bar] = {}
    for bar in card.bars:
        told = f"{where}: BAR {bar.index}"
        if not 0 <= bar.index <= ROM:
            raise UserError(f"{told}: a device has the indices 0 to 5, and 6 for its expansion ROM", "see lspci -vv")
        if bar.size < 16 or bar.size & (bar.size - 1):
            raise UserError(
                f"{told}: size {bar.size} bytes: a BAR's size is a power of two, 16 bytes at least",
                "its address decoder has no other; take the size that lspci -vv prints",
            )
        if bar.size > LARGEST[bar.bits]:
            raise UserError(
                f"{told}: size {bar.size} bytes: more than a {bar.bits}-bit BAR can have, {LARGEST[bar.bits]}",
                "bits = 64" if bar.bits == 32 else "take the size that lspci -vv prints",
            )
        if bar.bits == 64 and bar.index >= 5:
            raise UserError(
                f"{told}: a 64-bit BAR needs the next index too, and there is none after 5",
                "give it index 4 or less, or bits = 32",
            )
        for index in (bar.index, bar.index + 1) if bar.bits == 64 else (bar.index,):
            if index in taken:
                other = taken[index]
                why = f"is there twice, {other.size} and {bar.size} bytes"
                if other.index != bar.index:
                    low, high = sorted((bar.index, other.index))
                    told, why = f"{where}: BAR {low}", f"is 64-bit and takes index {high} too, which is BAR {high}'s"
                raise UserError(f"{told} {why}", "a 64-bit BAR takes two indices: 0, 2 and 4 are usual")
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
        raise UserError(f"{path}: cannot be read: {error}", "card=FILE takes a description in its place") from None
