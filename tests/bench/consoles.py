# SPDX-License-Identifier: Apache-2.0
"""What a console says about where the time went. Pure: a console is text, or pieces of it with the time of each."""

import itertools
import re
from collections.abc import Mapping, Sequence

from tests.bench.record import Inside

Pieces = Sequence[tuple[float, bytes]]
"""What came from a port: seconds since QEMU's start, and the bytes."""

# The console's own marks. The stub says little, and first that it has the initrd; a kernel without EFI has no stub.
STUB, FIRST = b"EFI stub: ", b"Linux version "
# OVMF's debug port, of a build that writes to it: MdeModulePkg/Core/DxeIplPeim/DxeLoad.c,
# MdeModulePkg/Universal/BdsDxe/BdsEntry.c.
DXE, BDS = b"Loading DXE CORE at ", b"[Bds] Entry..."
# include/linux/init.h: the levels, in the order in which they run.
LEVELS = {
    "early": "early, other CPUs",
    "0": "pure",
    "1": "core",
    "2": "postcore",
    "3": "arch",
    "4": "subsys",
    "5": "fs",
    "rootfs": "rootfs",
    "6": "device",
    "7": "late",
}
BEFORE, CALLS, AFTER = "before initcalls", "initcalls", "to init"
# Milliseconds without a line that are worth showing, and how many initcalls are.
GAP, LONGEST = 5.0, 10

_STAMP = re.compile(r"\[ *(\d+\.\d{6})\](?:\[ *[TC]\d+\])? ")
# init/main.c: trace_initcall_start_cb, trace_initcall_finish_cb.
_CALLING = re.compile(r"calling  (\S+?)(?:\+0x\S+)? (?:\[\w+\] )?@ \d+$")
_RETURNED = re.compile(r"initcall (\S+?)(?:\+0x\S+)? (?:\[\w+\] )?returned -?\d+ after (\d+) usecs")
_INIT = re.compile(r"Run /\S+ as init process$")
# include/linux/init.h: __initcall_id. 4.12 has the function alone; later ones the module, a counter and the line.
_SYMBOL = re.compile(r" __initcall_(?:_kmod_\w+?__\d+_\d+_)?(\w+?)(early|rootfs|[0-7])(s?)$", re.MULTILINE)


def at(pieces: Pieces, text: bytes) -> float | None:
    """When a text was there for the first time, also one that came in two pieces."""
    seen = b""
    for when, piece in pieces:
        seen = seen[-len(text) :] + piece
        if text in seen:
            return when
    return None


def line(pieces: Pieces, start: bytes) -> float | None:
    """When the line that begins so was whole."""
    seen = b""
    for when, piece in pieces:
        seen = seen[max(seen.find(start), 0) :] + piece
        if (found := seen.find(start)) >= 0 and seen.find(b"\n", found) >= 0:
            return when
    return None


def whole(pieces: Pieces) -> bytes:
    return b"".join(piece for _, piece in pieces)


def firmware(debug: Pieces, end: float | None) -> dict[str, float]:
    """Seconds of SEC and PEI, DXE, and BDS until `end`; empty if the firmware did not write all marks."""
    dxe, bds = at(debug, DXE), at(debug, BDS)
    if dxe is None or bds is None or end is None:
        return {}
    return {"SEC, PEI": dxe, "DXE": bds - dxe, "BDS": end - bds}


def levels(symbols: str) -> dict[str, str]:
    """The level of each initcall, from a System.map."""
    return {name: level for name, level, _ in _SYMBOL.findall(symbols)}


def stamped(console: str) -> list[tuple[float, str]]:
    """The kernel's lines: milliseconds by its clock, and the text."""
    found = []
    for line in console.splitlines():
        if stamp := _STAMP.match(line):
            found.append((float(stamp[1]) * 1000, line[stamp.end() :].rstrip()))
    return found


def inside(console: str, level_of: Mapping[str, str]) -> Inside | None:
    """The kernel's part, from the console of a boot with initcall_debug; None if it has no such lines.

    Times before the clock's start, all 0, are in no group. initcall_debug's own lines take their time too.
    """
    lines = stamped(console)
    end = next((n for n, (_, text) in enumerate(lines) if _INIT.search(text)), None)
    lines = lines[: end + 1] if end is not None else lines
    calls = [(when, call[1]) for when, text in lines if (call := _CALLING.match(text))]
    done = [(call[1], int(call[2]) / 1000) for _, text in lines if (call := _RETURNED.match(text))]
    if not calls or not done:
        return None
    starts = {BEFORE: 0.0}
    order = list(LEVELS)
    running = -1
    for when, name in calls:
        # Two functions may have one name; and one of no known level belongs to the level that is running.
        level = level_of.get(name, "")
        if level in order and order.index(level) > running:
            running = order.index(level)
            starts[LEVELS[level]] = when
    if running < 0:
        starts[CALLS] = calls[0][0]
    starts[AFTER] = max(when for when, text in lines if _RETURNED.match(text))
    places = [*starts.values(), lines[-1][0]]
    groups = {name: after - before for name, before, after in zip(starts, places, places[1:], strict=False)}
    longest = sorted(done, key=lambda call: -call[1])[:LONGEST]
    return Inside({name: round(took, 3) for name, took in groups.items()}, tuple(longest), tuple(gaps(lines)))


def gaps(lines: Sequence[tuple[float, str]]) -> list[tuple[float, str, str]]:
    """Where two lines are further apart than GAP, the longest first."""
    found = [
        (round(after - before, 3), text, following)
        for (before, text), (after, following) in itertools.pairwise(lines)
        if after - before > GAP
    ]
    return sorted(found, key=lambda gap: -gap[0])
