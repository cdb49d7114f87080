# SPDX-License-Identifier: Apache-2.0
"""out/bench/PART.json: what one part measured, where and how; and the table of it. Pure, but for reading and writing.

A figure is kept as its samples; medians and ratios are computed when they are shown.
"""

import datetime
import math
import os
import platform
import re
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from minguest.bundle import manifests
from minguest.util import files
from minguest.util.errors import UserError
from minguest.vm import emulator
from tests import ROOT

OUT = ROOT / "out/bench"

Unit = Literal["s", "M", "bytes", "MiB"]
"""M: millions of instructions, see instructions() in boot.py."""
Rows = list[list[str]]


class Value(msgspec.Struct, frozen=True):
    """A figure that was measured once or more."""

    unit: Unit
    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def p95(self) -> float:
        """The sample that 95 % of them do not exceed (nearest rank): of fewer than 20, the largest."""
        return sorted(self.samples)[math.ceil(0.95 * len(self.samples)) - 1]

    @property
    def spread(self) -> float:
        """How far the samples lie apart: between the first and the third quartile, as a share of the median."""
        if len(self.samples) < 2 or not self.median:
            return 0.0
        first, _, third = statistics.quantiles(self.samples, n=4, method="inclusive")
        return (third - first) / self.median


class Inside(msgspec.Struct, frozen=True):
    """The kernel's part in one boot with initcall_debug, by the kernel's clock, in milliseconds."""

    groups: dict[str, float]
    """In their order: before the initcalls, each level of them, and what is after the last one."""
    longest: tuple[tuple[str, float], ...]
    gaps: tuple[tuple[float, str, str], ...]
    """Where nothing was printed for long: how long, the line before, the line after."""


class Subject(msgspec.Struct, frozen=True):
    """What was measured, and what it is."""

    kind: Literal["ours", "peer"]
    about: str
    files: dict[str, manifests.File] = {}
    values: dict[str, Value] = {}
    problem: str = ""
    """Why it was not measured, or not to its end."""
    noisy: str = ""
    """Why its figures say nothing: the machine had other work."""
    inside: Inside | None = None
    modules: dict[str, Value] = {}
    """Seconds of each module of a measured firmware."""
    counted_modules: dict[str, Value] = {}
    """Its instructions, likewise."""


class Part(msgspec.Struct, frozen=True):
    """One run of one part."""

    part: str
    command: str
    date: str
    machine: str
    cores: int
    qemu: str
    load: float
    """How many processes were running or waiting to run before it began: the average of a minute."""
    base: str = ""
    """The subject that ratios are against; empty: none."""
    subjects: dict[str, Subject] = {}
    notes: tuple[str, ...] = ()

    @property
    def faults(self) -> list[str]:
        """What keeps this run from being a measurement; empty: nothing."""
        found = [(name, subject.problem or subject.noisy) for name, subject in self.subjects.items()]
        return [f"{name}: {why}" for name, why in found if why]


def machine() -> str:
    """This machine, for a person."""
    name = re.search(r"^model name\s*: (.+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{name[1] if name else platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}"


def begin(part: str, arguments: Sequence[str]) -> Part:
    """The part without its figures: where and when, before anything is measured."""
    return Part(
        part,
        shlex.join(["python", "-m", "tests.bench", *arguments]),
        datetime.datetime.now(datetime.UTC).strftime("%-d %B %Y, %H:%M UTC"),
        machine(),
        os.cpu_count() or 1,
        emulator.version(),
        os.getloadavg()[0],
    )


def save(part: Part, folder: Path = OUT) -> Path:
    place = folder / f"{part.part}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    files.write(place, msgspec.json.format(msgspec.json.encode(part)) + b"\n")
    return place


def load(name: str, folder: Path = OUT) -> Part | None:
    """What a part wrote; None if it was not run; UserError for a file that is not of this program."""
    place = folder / f"{name}.json"
    if not place.exists():
        return None
    try:
        return msgspec.json.decode(place.read_bytes(), type=Part)
    except msgspec.MsgspecError as error:
        raise UserError(f"{place}: {error}", f"another version wrote it: run `doit bench {name}` again") from error


def number(value: float, unit: Unit) -> str:
    """A figure as a person reads it."""
    if unit == "bytes":
        return f"{value:,.0f}"
    return f"{value:.2f}" if unit == "s" else f"{value:.0f}"


def named(measure: str, unit: Unit) -> str:
    return f"{measure}, {'M instructions' if unit == 'M' else unit}"


def cell(value: Value | None, base: Value | None) -> str:
    """A median, and its ratio to the base's."""
    if value is None:
        return "-"
    shown = number(value.median, value.unit)
    return f"{shown} ({value.median / base.median:.2f})" if base is not None and base.median else shown


def table(part: Part, measures: Sequence[str]) -> Rows:
    """A row a subject, a column a measure that any of them has: medians, and ratios to the base."""
    units = {name: value.unit for each in part.subjects.values() for name, value in each.values.items()}
    shown = [name for name in measures if name in units]
    base: Mapping[str, Value] = part.subjects[part.base].values if part.base in part.subjects else {}
    rows = [["", *(named(name, units[name]) for name in shown)]]
    for name, subject in part.subjects.items():
        if subject.values:
            against = base if name != part.base else {}
            rows.append([name, *(cell(subject.values.get(each), against.get(each)) for each in shown)])
    return rows if len(rows) > 1 and shown else []


def spreads(part: Part, measures: Sequence[str]) -> Rows:
    """A row a subject and measure: median, p95, spread, how often."""
    rows = [["", "measure", "median", "p95", "spread", "samples"]]
    for name, subject in part.subjects.items():
        for measure in measures:
            if (value := subject.values.get(measure)) and len(value.samples) > 1:
                unit = value.unit
                row = [name, named(measure, unit), number(value.median, unit), number(value.p95, unit)]
                rows.append([*row, f"{value.spread:.0%}", str(len(value.samples))])
    return rows if len(rows) > 1 else []


def screen(rows: Rows) -> str:
    """Rows for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[f"{text:{width}}" for text, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in padded)


def markdown(rows: Rows) -> str:
    """Rows for a page; a `|` in a cell is escaped."""
    head, *rest = [[text.replace("|", "\\|") for text in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rest))
