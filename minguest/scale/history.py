# SPDX-License-Identifier: Apache-2.0
"""Which cells changed their result, and with what: a bisection's first step. It reads a store's records."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from minguest.scale.records import Record
from minguest.scale.store import Poisoned, Store
from minguest.util.errors import ToolError, UserError

# What differs between two records, in the order in which records are compared; minguest and the bundle change most.
FACTS = ("series", "kernel", "OVMF", "QEMU", "accelerator", "compiler", "minguest", "bundle", "code", "inputs")
# Hashes that say little: they are shown only where no other fact differs.
HASHES = ("code", "inputs")


class Step(msgspec.Struct, frozen=True):
    """Two records of a cell that are next to each other, with different results."""

    before: str
    after: str
    differs: Mapping[str, tuple[str, str]]
    """By fact: its value before and after. Empty: the same inputs gave both."""
    workers: tuple[str, str]


class Change(msgspec.Struct, frozen=True):
    """A cell that changed its result."""

    cell: str
    steps: tuple[Step, ...]


class History(msgspec.Struct, frozen=True):
    """What a store remembers."""

    cells: int
    records: int
    changes: tuple[Change, ...]
    poisoned: tuple[str, ...]
    """Records that are not what was written; they were skipped."""


def read(store: Store) -> History:
    """UserError for a store that is not there, or has no record of a cell."""
    try:
        names = store.records("cells/")
    except ToolError as error:
        raise UserError(f"{store}: cannot be read: {error.message}", error.remedy) from error
    found, poisoned = [], []
    for name in names:
        try:
            record = store.record(name, Record)
        except Poisoned as error:
            poisoned.append(error.message)
            continue
        if record is not None:
            found.append(record)
    if not found and not poisoned:
        raise UserError(
            f"{store}: no record of a cell",
            "a run with scheduler= and this store= makes them: doit pits scheduler=local:2",
        )
    by_cell = of_cells(found)
    return History(len(by_cell), len(found), tuple(changes(by_cell)), tuple(poisoned))


def of_cells(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """The records of each cell of each guest."""
    by_cell: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        by_cell.setdefault((record.facts.get("guest", ""), record.cell), []).append(record)
    return by_cell


def changes(by_cell: Mapping[tuple[str, str], Sequence[Record]]) -> list[Change]:
    """The cells with more than one result, and each step between neighbours whose results differ."""
    found = []
    for (guest, cell), records in sorted(by_cell.items()):
        ordered = sorted(records, key=lambda each: [*(_order(each.facts.get(fact, "")) for fact in FACTS), each.at])
        steps = tuple(_step(one, two) for one, two in itertools.pairwise(ordered) if one.result != two.result)
        if steps:
            found.append(Change(f"{guest} {cell}".strip(), steps))
    return found


def _step(one: Record, two: Record) -> Step:
    differs = {
        fact: (one.facts.get(fact, ""), two.facts.get(fact, ""))
        for fact in FACTS
        if one.facts.get(fact) != two.facts.get(fact)
    }
    if differs.keys() - set(HASHES):
        differs = {fact: pair for fact, pair in differs.items() if fact not in HASHES}
    return Step(one.result, two.result, differs, (one.worker, two.worker))


def _order(text: str) -> list[tuple[int, int, str]]:
    """Numbers in a version by value: 6.12 is after 6.9."""
    parts = re.findall(r"\d+|\D+", text)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def table(history: History) -> str:
    """A line for each step of each cell that changed."""
    lines = []
    for change in history.changes:
        for step in change.steps:
            if step.differs:
                before, after = (
                    " and ".join(f"{fact} {pair[side]}" for fact, pair in step.differs.items()) for side in (0, 1)
                )
                lines.append(f"{change.cell}: {step.before} with {before} → {step.after} with {after}")
            else:
                one, two = step.workers
                lines.append(f"{change.cell}: {step.before} on {one} → {step.after} on {two}, with the same inputs")
    lines.append(
        f"cells: {history.cells}, records: {history.records}; cells that changed their result: "
        f"{len(history.changes) or 'none'}"
    )
    return "\n".join(lines)
