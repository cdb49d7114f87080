# SPDX-License-Identifier: Apache-2.0
"""What a measured firmware says about itself on the debug port: edk2's performance records, a line each, as
configs/firmware/measured/Performance.c writes them. Pure, but for `built`.

Such a firmware is the one that ships, and writes those lines beside: `minguest.bundle.edk2`, `measured`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from minguest import settings
from minguest.bundle import edk2, manifests
from minguest.paths import Store
from minguest.util import fetch
from minguest.util.errors import UserError
from tests import ROOT
from tests.bench.consoles import Pieces
from tests.bench.guests import Guest

# The source of sources.toml that can be measured, and what is appended to the name of a guest that is.
SOURCE, SUFFIX = "ovmf-minimal", "+phases"
QEMU, SEC, PHASES = "QEMU", "SEC", ("SEC, PEI", "DXE", "BDS")
# Types of records, MdePkg/Include/Library/PerformanceLib.h: what begins, by what ends it.
BEGINS = {0x02: 0x01, 0x04: 0x03, 0x06: 0x05, 0x31: 0x30, 0x41: 0x40, 0x51: 0x50}
START_IMAGE, LOAD_IMAGE, START_DEVICE, PHASE = 0x01, 0x03, 0x05, 0x50
NOBODY = "0" * 32
# What has no file in a volume: the kernel, and a second driver in one module.
KERNEL, OTHER = "the kernel's image", "another driver"

_LINE = re.compile(rb"^perf ([0-9a-f]{2}) ([0-9a-f]{16}) ([0-9a-f]{32}) ([ -~]*)$")
_NAME = re.compile(r"^([0-9A-Fa-f-]{36}) (\S+)", re.MULTILINE)


class Mark(msgspec.Struct, frozen=True):
    """One record."""

    when: float
    """Seconds of the host since QEMU's start."""
    tsc: int
    """The CPU's clock: it starts with the machine."""
    kind: int
    module: str
    """The GUID of its file, as digits."""
    text: str


def marks(debug: Pieces) -> list[Mark]:
    """The records, in their order; a line that is not one is left out."""
    found = []
    rest = b""
    for when, piece in debug:
        *lines, rest = (rest + piece).split(b"\n")
        for each in lines:
            if line := _LINE.match(each.rstrip(b"\r")):
                kind, tsc, module, text = line.groups()
                found.append(Mark(when, int(tsc, 16), int(kind, 16), module.decode(), text.decode()))
    return found


def names(xref: str) -> dict[str, str]:
    """Modules' names by GUID, from edk2's Guid.xref."""
    return {guid.replace("-", "").lower(): name for guid, name in _NAME.findall(xref)}


def bounds(found: Sequence[Mark]) -> tuple[Mark, Mark, Mark, Mark] | None:
    """The first record, the starts of DXE and of BDS, and that of the kernel; None if one is missing."""
    dxe = next((mark for mark in found if mark.kind == PHASE and mark.text == "DXE"), None)
    bds = next((mark for mark in found if mark.kind == PHASE and mark.text == "BDS"), None)
    kernel = next((mark for mark in reversed(found) if mark.kind == START_IMAGE), None)
    if dxe is None or bds is None or kernel is None or kernel.tsc <= bds.tsc:
        return None
    return found[0], dxe, bds, kernel


def phases(found: Sequence[Mark]) -> dict[str, float]:
    """Seconds of QEMU before the machine runs, SEC and PEI, DXE, and BDS until the kernel starts; empty without all
    records. The clock's rate is that between the first record and the last."""
    if (between := bounds(found)) is None:
        return {}
    first, dxe, bds, kernel = between
    rate = (kernel.tsc - first.tsc) / (kernel.when - first.when) if kernel.when > first.when else 0.0
    reset = max(0.0, first.when - first.tsc / rate) if rate else first.when
    took = (reset, dxe.when - reset, bds.when - dxe.when, kernel.when - bds.when)
    return dict(zip((QEMU, *PHASES), took, strict=True))


def counted(found: Sequence[Mark]) -> dict[str, float]:
    """The phases by the CPU's clock, in units of it."""
    if (between := bounds(found)) is None:
        return {}
    _, dxe, bds, kernel = between
    return dict(zip(PHASES, (dxe.tsc, bds.tsc - dxe.tsc, kernel.tsc - bds.tsc), strict=True))


def modules(found: Sequence[Mark], name_of: Mapping[str, str]) -> dict[str, float]:
    """How long each module and function ran, without what it called in turn, by the CPU's clock, until the kernel
    starts: a driver's loading and start, its start of devices, functions of BDS; the rest of a phase by its name."""
    if (between := bounds(found)) is None:
        return {}
    took: dict[str, int] = {}
    open_: list[tuple[int, str]] = []
    last = 0

    def name(mark: Mark) -> str:
        if mark.kind in (START_IMAGE, START_IMAGE + 1, LOAD_IMAGE + 1, START_DEVICE):
            device = mark.kind == START_DEVICE
            # A driver may have handles of its own for more of its kind: they have no file.
            nobody = OTHER if device else KERNEL
            module = nobody if mark.module == NOBODY else name_of.get(mark.module, mark.module)
            return module + ", devices" * device
        return mark.text

    for mark in found:
        running = open_[-1][1] if open_ else SEC
        begin = BEGINS.get(mark.kind)
        place = next((n for n in reversed(range(len(open_))) if open_[n][0] == begin), None)
        if begin == LOAD_IMAGE and place is not None:
            running = name(mark)  # which image it is, only its end says
        took[running] = took.get(running, 0) + mark.tsc - last
        last = mark.tsc
        if mark.tsc >= between[3].tsc:
            break
        if mark.kind in BEGINS.values():
            open_.append((mark.kind, name(mark)))
        elif place is not None:
            del open_[place:]
    return {module: float(ticks) for module, ticks in took.items() if ticks}


def measured(guest: Guest, say: Callable[[str], None]) -> Guest:
    """The same guest with its firmware measured; UserError for one with another firmware than this checkout's."""
    manifest = manifests.load(guest.bundle)
    built = manifest.firmware.built
    platform = ROOT / "configs/firmware"
    wanted = settings.sources(ROOT / "configs/sources.toml").firmware[SOURCE]
    # What ships is made of these files, so what is measured must be.
    own = {name: manifests.describe(path).sha256 for name, path in edk2.inputs(platform).items()}
    used = {**built.platform, **{each.file: each.sha256 for each in built.patches}} if built else {}
    if built is None or manifest.firmware.version != wanted.version or any(used.get(name) != own[name] for name in own):
        raise UserError(
            f"{guest.bundle}: its firmware, {manifest.firmware.version}, is not {SOURCE} {wanted.version} of this "
            "checkout, so its phases cannot be measured",
            f'a guest with firmware = "{SOURCE}", and doit build',
        )
    folder = edk2.build(
        wanted,
        platform,
        Store(settings.store_folder()),
        lambda source, name: fetch.fetch(source, name, settings.cache_folder(), say),
        log=ROOT / "out/bench/edk2.log",
        say=say,
        measured=True,
    )
    return msgspec.structs.replace(guest, name=guest.name + SUFFIX, firmware=folder, like=guest.name)


def xref(folder: Path) -> dict[str, str]:
    """The names of a measured firmware's modules; empty for another one."""
    place = folder / edk2.NAMES
    return names(place.read_text(encoding="utf-8", errors="replace")) if place.exists() else {}
