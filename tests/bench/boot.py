# SPDX-License-Identifier: Apache-2.0
"""bench boot: from QEMU's start to the whole report, phase by phase, ours beside peers.

All subjects are started in turns, in a random order in each round; then each once with its clock counting instructions,
and once more so with initcall_debug. A subject that does not boot is not tried again.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from minguest.bundle import manifests
from minguest.util.errors import UserError
from minguest.vm import report
from tests.bench import consoles, firmware, guests, record
from tests.bench.guests import Boot, Change, Guest
from tests.bench.record import Part, Subject, Value

# Phases of the wall time, in their order; OVMF's own are there where it says them.
FIRMWARE = (firmware.QEMU, *firmware.PHASES)
PHASES = ("firmware", "stub", "kernel", "initd", "report's port")
WHOLE = ("first line", "report", "CPU")
FIRMWARE_COUNTED = {"SEC, PEI": "SEC's, PEI's", "DXE": "DXE's", "BDS": "BDS'"}
COUNTED = ("instructions", "before the kernel", *FIRMWARE_COUNTED.values(), "stub's", "kernel's", "initd's")
MEASURES = (*WHOLE, *FIRMWARE, *PHASES, *COUNTED)
# What is the same in each boot of a machine with nothing else to do, and how far it may lie apart.
STEADY = {"CPU": "CPU seconds", "report": "times to the report"}
SPREAD = 0.10
DEADLINE, COUNTED_DEADLINE = 60.0, 300.0
# How many modules of a firmware are shown.
MODULES = 12
INITCALLS = "initcall_debug ignore_loglevel log_buf_len=1M"

NOTES = (
    "first line, report: from QEMU's start until the kernel's first line is on the console, and until the report's end "
    "is there. CPU: user and system time of the whole QEMU process, to its end.",
    "firmware: to the EFI stub's first line; of a kernel without one, to the kernel's first line. stub: from there to "
    "the kernel's first line, so with decompression, and with what the kernel does before it has a console. kernel: to "
    "initd's start. initd: to the report. report's port: from the report's first byte to its last.",
    "Instructions: one boot with one CPU and -icount shift=0,sleep=off, in which virtual time is the instructions that "
    "ran, one a nanosecond, and the waits of an idle CPU; it does not depend on the machine's load. before the kernel: "
    "the TSC at initd's start less the kernel's own time, so the firmware, the stub and decompression.",
)
PHASES_NOTE = (
    f"A guest with {firmware.SUFFIX} has the firmware that ships, with edk2's performance records, which it writes to "
    "QEMU's debug port: what that costs is the difference to the guest without. QEMU: until the machine runs. SEC, PEI:"
    " from its reset. BDS: until the kernel's image starts. There firmware ends and stub begins in such a row; without "
    "records the first mark is the stub's first line, which 6.12 prints after its decompression. A module's time is its"
    " own: what it calls is counted there. stub's: from the image's start to the start of the kernel's clock."
)


class Wanted(msgspec.Struct, frozen=True):
    """What was asked for on the command line."""

    subjects: tuple[Guest, ...]
    base: str
    times: int
    deadline: float = DEADLINE
    spread: float = SPREAD
    counted: bool = True


def pair(text: str, what: str) -> tuple[str, str]:
    """NAME=VALUE; UserError for anything else."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UserError(f"{what} {text}: not NAME=FILE", f"for example {what} debian-cloud=/boot/vmlinuz")
    return name, value


def subjects(bundles: Sequence[str], peers: Sequence[str], ovmf: Path, base: str) -> tuple[Guest, ...]:
    """The guests of a run, ours first; UserError for two of one name, or a base that is not among them.

    `ovmf`: a folder, for the peers.
    """
    mine = []
    for text in bundles:
        name, _, folder = text.rpartition("=")
        mine.append(guests.ours(Path(folder), name))
    theirs = [pair(text, "--peer") for text in peers]
    made = (*mine, *(guests.peer(mine[0], name, Path(kernel), ovmf) for name, kernel in theirs))
    names = [each.name for each in made]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two subjects are named {', '.join(twice)}", "--bundle NAME=FOLDER, --peer NAME=BZIMAGE")
    one_of(base, names)
    return made


def one_of(base: str, names: Sequence[str]) -> str:
    """The base; UserError if it is none of the subjects. Empty: no base."""
    if base and base not in names:
        raise UserError(f"--base {base}: no such subject", f"one of {', '.join(names)}")
    return base


def about(guest: Guest) -> Subject:
    """What a subject is, before anything is measured."""
    names = {
        "bzImage": guest.kernel,
        "initrd.img": guest.bundle / "initrd.img",
        "OVMF_CODE.fd": guest.firmware / "OVMF_CODE.fd",
    }
    described = {name: manifests.describe(path) for name, path in names.items()}
    whose = f"started as {guest.bundle.parent.name}" if guest.peer else "as it ships"
    if guest.like:
        whose = f"as {guest.like}" + f" with {guest.append}" * bool(guest.append)
    ovmf = manifests.load(guest.firmware).firmware.version if (guest.firmware / manifests.NAME).exists() else "given"
    if guest.like and guest.firmware != guest.bundle:
        ovmf = f"{manifests.load(guest.bundle).firmware.version}, measured"
    return Subject("peer" if guest.peer else "ours", f"{whose}, {guest.cpus} CPUs, OVMF {ovmf}", described)


def phases(seen: Boot) -> dict[str, Value]:
    """The figures of one boot whose report is whole, in seconds."""
    times = report.parse(consoles.whole(seen.report)).record("times")
    start, made = float(times["start"]), float(times["report"])
    begin, end = consoles.at(seen.report, report.BEGIN), consoles.line(seen.report, report.END)
    assert begin is not None
    assert end is not None
    # The host's clock: that of an emulated guest runs slow on a loaded machine, while it has no clock but its ticks.
    stub, first = consoles.at(seen.console, consoles.STUB), consoles.at(seen.console, consoles.FIRST)
    marks = firmware.marks(seen.debug)
    starts = between[3].when if (between := firmware.bounds(marks)) else stub
    over = starts if starts is not None else first
    up = first if first is not None else stub
    found = {
        "first line": first,
        "report": end,
        "CPU": seen.cpu,
        **(firmware.phases(marks) or consoles.firmware(seen.debug, over)),
        "firmware": over,
        "stub": first - starts if first is not None and starts is not None else None,
        "kernel": begin - (made - start) - up if up is not None else None,
        "initd": made - start,
        "report's port": end - begin,
    }
    return {name: Value("s", (round(each, 4),)) for name, each in found.items() if each is not None}


def instructions(seen: Boot) -> dict[str, Value]:
    """The same in millions of instructions, of a boot that counted them; empty if initd did not say its TSC."""
    parsed = report.parse(consoles.whole(seen.report))
    times = parsed.record("times")
    tsc = times.get("tsc")
    if tsc is None:
        return {}
    start, made = float(times["start"]) * 1e9, float(times["report"]) * 1e9
    inside = firmware.counted(firmware.marks(seen.debug))
    found = {
        "instructions": tsc + made - start,
        "before the kernel": tsc - start,
        **{FIRMWARE_COUNTED[name]: ticks for name, ticks in inside.items()},
        **({"stub's": tsc - start - sum(inside.values())} if inside else {}),
        "kernel's": start,
        "initd's": made - start,
    }
    return {name: Value("M", (round(each / 1e6, 3),)) for name, each in found.items()}


def modules(seen: Boot, guest: Guest) -> dict[str, Value]:
    """Seconds of the modules of a measured firmware; empty for another one."""
    marks = firmware.marks(seen.debug)
    own = firmware.modules(marks, firmware.xref(guest.firmware))
    took = firmware.phases(marks)
    if not own or not took:
        return {}
    counts = sum(own.values())
    whole = sum(took[name] for name in firmware.PHASES)
    return {name: Value("s", (round(ticks / counts * whole, 6),)) for name, ticks in own.items()}


def counted_modules(seen: Boot, guest: Guest) -> dict[str, Value]:
    """The same in millions of instructions, of a boot that counted them."""
    own = firmware.modules(firmware.marks(seen.debug), firmware.xref(guest.firmware))
    return {name: Value("M", (round(ticks / 1e6, 3),)) for name, ticks in own.items()}


def added(to: Mapping[str, Value], more: Mapping[str, Value]) -> dict[str, Value]:
    """The samples of both."""
    both = dict(to)
    for name, value in more.items():
        both[name] = Value(value.unit, (*(both[name].samples if name in both else ()), *value.samples))
    return both


def noisy(values: Mapping[str, Value], bound: float) -> str:
    """Why the figures say nothing; empty: they do."""
    for name, what in STEADY.items():
        if (value := values.get(name)) and value.spread > bound:
            apart = f"{what} lie {value.spread:.0%} apart (quartiles), {bound:.0%} is the most"
            return f"the machine is too loaded to measure: {apart}"
    return ""


def symbols(kernel: Path) -> str:
    """The System.map of a kernel, beside it or where its build or Debian has it; empty if it is not there."""
    version = kernel.name.partition("-")[2]
    places = [kernel.with_name("System.map"), kernel.with_name(f"System.map-{version}")]
    places += [folder / "System.map" for folder in list(kernel.parents)[3:4]]
    found = next((place for place in places if place.is_file()), None)
    return found.read_text(encoding="utf-8", errors="replace") if found else ""


def run(part: Part, wanted: Wanted, say: Callable[[str], None]) -> Part:
    """Measure. What goes wrong with a subject is in its `problem`."""
    found = {each.name: about(each) for each in wanted.subjects}

    def once(guest: Guest, change: Change, deadline: float) -> Boot | None:
        seen = guests.boot(guest, change, deadline)
        why = guests.problem(seen, 1 if change.counted else guest.cpus, deadline)
        if not why:
            return seen
        how = f"with {change.append or 'instructions counted'}: " if change.counted else ""
        found[guest.name] = msgspec.structs.replace(found[guest.name], problem=how + why)
        say(f"{guest.name}: {how}{why}")
        return None

    for number in range(wanted.times):
        alive = [each for each in wanted.subjects if not found[each.name].problem]
        for guest in random.sample(alive, len(alive)):
            if seen := once(guest, Change(), wanted.deadline):
                subject = found[guest.name]
                found[guest.name] = msgspec.structs.replace(
                    subject,
                    values=added(subject.values, phases(seen)),
                    modules=added(subject.modules, modules(seen, guest)),
                )
        say(f"round {number + 1} of {wanted.times}")
    for guest in wanted.subjects:
        subject = found[guest.name]
        found[guest.name] = msgspec.structs.replace(subject, noisy=noisy(subject.values, wanted.spread))
        if wanted.counted and not subject.problem and (seen := once(guest, Change(counted=True), COUNTED_DEADLINE)):
            say(f"{guest.name}: instructions counted")
            counted = added(found[guest.name].values, instructions(seen))
            found[guest.name] = msgspec.structs.replace(
                found[guest.name], values=counted, counted_modules=counted_modules(seen, guest)
            )
            if traced := once(guest, Change(counted=True, append=INITCALLS), COUNTED_DEADLINE):
                text = consoles.whole(traced.console).decode(errors="replace")
                into = consoles.inside(text, consoles.levels(symbols(guest.kernel)))
                found[guest.name] = msgspec.structs.replace(found[guest.name], inside=into)
    notes = (*NOTES, PHASES_NOTE) if any(each.modules for each in found.values()) else NOTES
    return msgspec.structs.replace(part, base=wanted.base, subjects=found, notes=notes)


def tables(part: Part) -> dict[str, record.Rows]:
    """The tables of the part, by their headings."""
    return {
        "From QEMU's start to the report": record.table(part, (*WHOLE, *FIRMWARE, *PHASES)),
        "Instructions of one CPU": record.table(part, COUNTED),
        "Spread": record.spreads(part, WHOLE),
        "The firmware's modules that take longest": of_firmware(part),
        "The kernel by initcalls, milliseconds": groups(part),
        "The longest initcalls": longest(part),
        "Where nothing was printed for long": quiet(part),
    }


def of_firmware(part: Part) -> record.Rows:
    rows = []
    for name, each in part.subjects.items():
        order = sorted(each.modules, key=lambda module: -each.modules[module].median)
        for module in order[:MODULES]:
            counts = each.counted_modules.get(module)
            took = each.modules[module].median * 1000
            rows.append([name, module, f"{took:.1f}", f"{counts.median:.1f}" if counts else "-"])
    return [["", "module", "ms", "M instructions"], *rows] if rows else []


def groups(part: Part) -> record.Rows:
    traced = {name: each.inside.groups for name, each in part.subjects.items() if each.inside}
    order = (consoles.BEFORE, consoles.CALLS, *consoles.LEVELS.values(), consoles.AFTER)
    shown = [name for name in order if any(name in each for each in traced.values())]
    cells = [[name, *(f"{each[g]:.1f}" if g in each else "-" for g in shown)] for name, each in traced.items()]
    return [["", *shown], *cells] if cells else []


def longest(part: Part) -> record.Rows:
    rows = [
        [name, call, f"{took:.1f}"]
        for name, each in part.subjects.items()
        for call, took in (each.inside.longest if each.inside else ())
    ]
    return [["", "initcall", "ms"], *rows] if rows else []


def quiet(part: Part) -> record.Rows:
    rows = [
        [name, f"{took:.1f}", before[:60], after[:60]]
        for name, each in part.subjects.items()
        for took, before, after in (each.inside.gaps[: consoles.LONGEST] if each.inside else ())
    ]
    return [["", "ms", "line before", "line after"], *rows] if rows else []
