# SPDX-License-Identifier: Apache-2.0
"""Budgets: reached, missed, or NOT RUN, and never the first for what was not measured."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from minguest.util.errors import UserError
from tests.bench import boot, build, check, growth, size
from tests.bench.check import Budget
from tests.bench.record import Part, Subject, Value


def subject(problem: str = "", noisy: str = "", **values: float) -> Subject:
    return Subject("ours", "", {}, {name: Value("s", (value,)) for name, value in values.items()}, problem, noisy)


OURS, CLOUD = subject(report=2.0, cold=9.0), subject(report=4.0)
PART = Part("boot", "it", "today", "a machine", 2, "7.2", 0.5, "", {"ours": OURS, "cloud": CLOUD})
BUDGET = Budget("it", "boot", "ours", "report", 0.5, "cloud")


def state(budget: Budget = BUDGET, part: Part | None = PART) -> tuple[str, str]:
    (found,) = check.held([budget], {"boot": part})
    return found.state, found.why


def changed(**fields: Any) -> Budget:
    return msgspec.structs.replace(BUDGET, **fields)


def test_the_most_is_reached_and_a_little_more_is_missed() -> None:
    assert state() == ("reached", "")
    assert state(changed(most=0.4999)) == ("missed", "by 0.0001, 0.0%")
    assert state(changed(most=0.4)) == ("missed", "by 0.1, 25.0%")
    assert state(changed(most=0.4, limit="light")) == ("missed", "by 0.1, 25.0%: light")
    assert state(changed(limit="light")) == ("reached", "")
    assert state(changed(measure="cold", against="ours", of="report", most=4.0)) == ("missed", "by 0.5, 12.5%")
    assert state(changed(against="", most=2.0)) == ("reached", "")
    assert state(changed(against="", most=1.9))[0] == "missed"


@pytest.mark.parametrize(
    ("budget", "why"),
    [
        (changed(against="kata"), "kata was not in that run; there were ours, cloud"),
        (changed(subject="mine"), "mine was not in that run; there were ours, cloud"),
        (changed(measure="cold"), "cloud: cold was not measured"),
        (changed(cores=16), "the machine has 2 CPUs, 16 are needed"),
    ],
)
def test_what_was_not_measured_is_not_run(budget: Budget, why: str) -> None:
    assert state(budget) == ("NOT RUN", why)


def test_a_part_that_was_not_run_and_figures_that_say_nothing_are_not_run() -> None:
    assert state(part=None) == ("NOT RUN", "no out/bench/boot.json: `doit bench boot` was not run")
    for bad in (subject("hangs", report=9.0), subject("", "hangs", report=9.0)):
        part = msgspec.structs.replace(PART, subjects={"ours": OURS, "cloud": bad})
        assert state(part=part) == ("NOT RUN", "cloud: hangs")
    bytes_ = Subject("peer", "", {}, {"report": Value("bytes", (4.0,))})
    part = msgspec.structs.replace(PART, subjects={"ours": OURS, "cloud": bytes_})
    assert state(part=part) == ("NOT RUN", "s against 4 bytes: no ratio")


def test_the_status_is_0_only_if_all_are_reached() -> None:
    reached, missed, unrun = BUDGET, changed(most=0.1), changed(against="kata")
    for budgets, status in (
        ([reached], 0),
        ([reached, missed], 1),
        ([missed, unrun], 1),
        ([reached, unrun], 2),
    ):
        assert check.status(check.held(budgets, {"boot": PART})) == status


def test_the_table_has_a_row_a_budget() -> None:
    rows = check.table(check.held([BUDGET, changed(name="other", against="kata")], {"boot": PART}))
    assert rows[1] == ["it", "cloud", "0.50", "0.500", "reached", ""]
    assert rows[2][:5] == ["other", "kata", "0.50", "", "NOT RUN"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", r"has no \[\[budget\]\]"),
        ("{0}mots = 1\n", "mots"),
        ("{0}most = 0.0\n", "most = 0"),
        ('{0}most = 1.0\nof = "x"\n', "has of = 'x' and no against"),
        ('{0}most = 1.0\nagainst = "s"\n', "is against itself"),
        ("{0}most = 1.0\n{0}most = 1.0\n", "there are two of that name"),
    ],
)
def test_a_wrong_budget_is_named(tmp_path: Path, text: str, why: str) -> None:
    place = tmp_path / "budget.toml"
    place.write_text(text.format('[[budget]]\nname = "n"\npart = "boot"\nsubject = "s"\nmeasure = "m"\n'))
    with pytest.raises(UserError, match=why):
        check.load(place)


def test_the_projects_budgets_are_of_figures_that_there_are() -> None:
    known = {
        "boot": set(boot.MEASURES),
        "build": set(build.MEASURES),
        "size": set(size.MEASURES),
        "growth": {growth.MEMORY, *(growth.at(kind, n) for kind in growth.KINDS for n in growth.CPUS)},
    }
    budgets = check.load()
    assert len(budgets) >= 12
    assert [each.name for each in budgets if not {each.measure, each.of or each.measure} <= known[each.part]] == []
