# SPDX-License-Identifier: Apache-2.0
"""bench page: docs/performance.md and docs/performance.svg, from what the parts measured. Pure."""

import re
from collections.abc import Callable, Mapping, Sequence

from tests.bench import boot, build, check, growth, record, size
from tests.bench.record import Part, Rows

# The parts of the page, in their order, with what makes their tables.
PARTS: dict[str, tuple[str, Callable[[Part], dict[str, Rows]]]] = {
    "boot": ("Boot", boot.tables),
    "build": ("Build", build.tables),
    "size": ("Size", size.tables),
    "growth": ("Growth", growth.tables),
}
ALT = "A row for each guest, a bar for each phase of its boot: seconds, and instructions"


def page(parts: Mapping[str, Part | None], found: Sequence[check.Found], drawn: bool) -> str:
    """docs/performance.md. `drawn`: there is a timeline beside it."""
    sections = [_section(title, name, parts.get(name), tables) for name, (title, tables) in PARTS.items()]
    picture = f"![{ALT}](performance.svg)\n\n" if drawn else ""
    return f"""# Performance

What a guest costs, beside other kernels that were measured in the same run: made by `python -m tests.bench page`. A \
ratio is in brackets, against the base of the table. Times are of one machine, in software emulation: quote the ratios.

{picture}## Budgets
`doit bench check`, against [configs/budget.toml](../configs/budget.toml):

{record.markdown(check.table(found))}

{chr(10).join(sections)}"""


def placeless(command: str) -> str:
    """A command without the folders of the machine that it ran on: `--peer=NAME=/any/where/bzImage` becomes
    `--peer=NAME=bzImage`."""
    return re.sub(r"(?<=[=, ])/[^\s,]*/(?=[^/\s,]+(?:[,\s]|$))", "", command)


def _section(title: str, name: str, part: Part | None, tables: Callable[[Part], dict[str, Rows]]) -> str:
    if part is None:
        return f"## {title}\nNOT RUN: `doit bench {name}`.\n"
    base = f"- base: {part.base}\n" if part.base else ""
    subjects = "".join(f"- {each}: {subject.about}\n" for each, subject in part.subjects.items())
    faults = "".join(f"- **not measured**: {fault}\n" for fault in part.faults)
    notes = "".join(f"{note}\n\n" for note in part.notes)
    shown = "".join(f"### {head}\n{record.markdown(rows)}\n\n" for head, rows in tables(part).items() if rows)
    return f"""## {title}
- `{placeless(part.command)}`
- {part.date}; {part.machine}; load {part.load:.1f} before it began
- QEMU {part.qemu}
{base}{subjects}{faults}
{notes}{shown}"""
