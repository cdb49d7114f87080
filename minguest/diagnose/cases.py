# SPDX-License-Identifier: Apache-2.0
"""Logs as people post them, reworded, with the right answer of each; and how often `diagnose` gives it.

tests/data/public/*.toml; a file is a kind of log.
"""

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from minguest import settings
from minguest.diagnose import logs, matching
from minguest.diagnose.catalogue import Pit
from minguest.util.errors import UserError

Result = Literal["right", "incomplete", "silent", "wrong", "false alarm"]
RESULTS: tuple[Result, ...] = ("right", "incomplete", "silent", "wrong", "false alarm")


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A log, and what must be said to it."""

    name: str
    roots: tuple[str, ...]
    """The pits that must be named; empty for a log that shows none."""
    log: str
    unexplained: tuple[str, ...] | None = None
    """Exactly the effects that must be shown without a root; None: any."""
    questions: tuple[str, ...] = ()
    source: str = ""
    """Where the wording comes from."""


class Cases(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of cases."""

    title: str
    date: datetime.date
    """When they were last judged by a person."""
    case: tuple[Case, ...]


def load(folder: Path) -> dict[str, Cases]:
    """All files of cases by name. UserError for what is wrong with one."""
    found = {path.stem: settings.decode(path, Cases) for path in sorted(folder.glob("*.toml"))}
    if not found:
        raise UserError(f"{folder}: no cases (*.toml) in this folder")
    for stem, cases in found.items():
        names = Counter(case.name for case in cases.case)
        if twice := [name for name, count in names.items() if count > 1]:
            raise UserError(f"{folder / stem}.toml: two cases are called {twice[0]}")
    return found


def found_in(case: Case, pits: Mapping[str, Pit]) -> matching.Diagnosis:
    """What `diagnose` finds in the log of a case."""
    return matching.diagnose_logs(pits, [logs.unwrapped("log", case.log.encode())])[0]


def judge(case: Case, found: matching.Diagnosis) -> Result:
    """Whether that is the right answer."""
    wanted = {*case.roots, *(case.unexplained or ())}
    effects = found.unexplained if case.unexplained is not None or not case.roots else ()
    got = {hit.id for hit in (*found.roots, *effects)}
    if got == wanted and {hit.id for hit in found.questions} >= set(case.questions):
        return "right"
    if not wanted:
        return "false alarm"
    if not got:
        return "silent"
    return "incomplete" if got < wanted or got == wanted else "wrong"


def figures(cases: Mapping[str, Cases], pits: Mapping[str, Pit]) -> list[tuple[str, Counter[Result]]]:
    """How often each result comes, for each file of cases by its title."""
    return [(each.title, Counter(judge(case, found_in(case, pits)) for case in each.case)) for each in cases.values()]


def table(found: Sequence[tuple[str, Counter[Result]]], date: datetime.date) -> str:
    """The figures in Markdown."""
    rows = [f"| {title} | {' | '.join(str(count[each]) for each in RESULTS)} |" for title, count in found]
    return "\n".join(
        [
            f"| logs, judged {date.isoformat()} | {' | '.join(RESULTS)} |",
            f"| --- |{' ---: |' * len(RESULTS)}",
            *rows,
        ]
    )


def loud(pits: Mapping[str, Pit], healthy: Mapping[str, bytes]) -> list[str]:
    """Pits that a healthy log shows: such a pit must not be."""
    return [
        f"configs/pits/{hit.id}.toml: the healthy log {name} shows it"
        for name, raw in healthy.items()
        for hit in _all(matching.diagnose(pits, *matching.boot([logs.unwrapped(name, raw)])))
    ]


def _all(found: matching.Diagnosis) -> tuple[matching.Found, ...]:
    return (*found.roots, *found.follows, *found.unexplained)


def summary(folder: Path, pits: Mapping[str, Pit]) -> str:
    """The figures of a folder of cases in Markdown; empty where there is no such folder."""
    if not folder.is_dir():
        return ""
    cases = load(folder)
    return table(figures(cases, pits), max(each.date for each in cases.values()))
