# SPDX-License-Identifier: Apache-2.0
"""bench growth: the same boot with more and more CPUs, and the smallest memory that it passes with."""

import random
from collections.abc import Callable, Sequence

import msgspec

from tests.bench import boot, guests, record
from tests.bench.guests import Change, Guest
from tests.bench.record import Part, Subject, Unit, Value

CPUS = (1, 2, 4, 8, 16)
KINDS: dict[str, Unit] = {"report": "s", "CPU": "s", "instructions": "M"}
MEMORY = "smallest memory"
# MiB: what is tried, and how finely.
LEAST, MOST, STEP = 32, 512, 16
NOTES = (
    "report and CPU as in bench boot. -icount runs one CPU only: with more of them there are no instructions. "
    "A guest with more CPUs than the machine shares its cores.",
    f"smallest memory: the guest reports all its CPUs and powers off with it, and not with {STEP} MiB less.",
)


def at(kind: str, cpus: int) -> str:
    """The name of a measure, such as `report, 4 CPUs`."""
    return f"{kind}, {cpus} CPU{'s' * (cpus != 1)}"


def smallest(passes: Callable[[int], bool], least: int = LEAST, most: int = MOST, step: int = STEP) -> int | None:
    """The least of least, least + step, … most that passes, if what is larger passes too; None if the largest fails."""
    low, high = 0, (most - least) // step
    if not passes(least + high * step):
        return None
    while low < high:
        middle = (low + high) // 2
        if passes(least + middle * step):
            high = middle
        else:
            low = middle + 1
    return least + low * step


def run(part: Part, wanted: boot.Wanted, counts: Sequence[int], memory: bool, say: Callable[[str], None]) -> Part:
    """Measure. What goes wrong with a subject at one number of CPUs is in its `problem`; the other numbers go on."""
    found = {each.name: boot.about(each) for each in wanted.subjects}
    failed: set[tuple[str, int]] = set()

    def keep(name: str, values: dict[str, Value]) -> None:
        found[name] = msgspec.structs.replace(found[name], values=boot.added(found[name].values, values))

    def once(guest: Guest, cpus: int, counted: bool) -> None:
        deadline = boot.COUNTED_DEADLINE if counted else wanted.deadline
        seen = guests.boot(guest, Change(cpus=cpus, counted=counted), deadline)
        if why := guests.problem(seen, cpus, deadline):
            failed.add((guest.name, cpus))
            why = f"{at('with', cpus).replace(',', '')}: {why}"
            found[guest.name] = _also(found[guest.name], why)
            say(f"{guest.name} {why}")
            return
        kept = boot.instructions(seen) if counted else boot.phases(seen)
        keep(guest.name, {at(kind, cpus): value for kind, value in kept.items() if kind in KINDS})

    for number in range(wanted.times):
        todo = [(guest, cpus) for guest in wanted.subjects for cpus in counts if (guest.name, cpus) not in failed]
        for guest, cpus in random.sample(todo, len(todo)):
            once(guest, cpus, False)
        say(f"round {number + 1} of {wanted.times}")
    for guest in wanted.subjects:
        if wanted.counted and 1 in counts and (guest.name, 1) not in failed:
            once(guest, 1, True)
        if memory:
            least = smallest(lambda mib, guest=guest: _passes(guest, mib, wanted.deadline, say))  # type: ignore[misc]
            if least is None:
                found[guest.name] = _also(found[guest.name], f"it does not pass with {MOST} MiB")
            else:
                keep(guest.name, {MEMORY: Value("MiB", (float(least),))})
        kinds = [(name.partition(", ")[0], value) for name, value in found[guest.name].values.items()]
        noisy = [boot.noisy({kind: value}, wanted.spread) for kind, value in kinds]
        found[guest.name] = msgspec.structs.replace(found[guest.name], noisy=next(filter(None, noisy), ""))
    return msgspec.structs.replace(part, base=wanted.base, subjects=found, notes=NOTES)


def _also(subject: Subject, why: str) -> Subject:
    return msgspec.structs.replace(subject, problem="; ".join(filter(None, (subject.problem, why))))


def _passes(guest: Guest, mib: int, deadline: float, say: Callable[[str], None]) -> bool:
    why = guests.problem(guests.boot(guest, Change(memory=mib), deadline), guest.cpus, deadline)
    say(f"{guest.name}, {mib} MiB: {why or 'passes'}")
    return not why


def counts_of(part: Part) -> list[int]:
    names = {name for subject in part.subjects.values() for name in subject.values}
    return [n for n in range(1, 4096) if any(at(kind, n) in names for kind in KINDS)]


def tables(part: Part) -> dict[str, record.Rows]:
    counts = counts_of(part)
    rows = [["", "measure", *map(str, counts)]]
    for name, subject in part.subjects.items():
        for kind, unit in KINDS.items():
            values = [subject.values.get(at(kind, n)) for n in counts]
            if any(values):
                first = next(filter(None, values))
                cells = [record.cell(value, None if value is first else first) for value in values]
                rows.append([name, record.named(kind, unit), *cells])
    return {
        "By number of CPUs; in brackets against the first": rows if len(rows) > 1 else [],
        "Memory": record.table(part, (MEMORY,)),
    }
