# SPDX-License-Identifier: Apache-2.0
"""The benchmark of cards and BARs: what did not pass is shown, and a run that was ended goes on."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from minguest.boottest import runner
from minguest.boottest.verdict import Phases
from minguest.model import Launch
from minguest.util.errors import ToolError
from tests.bench import cards as bench
from tests.bench.cards import Boot

WANTED = [(1, "16M"), (1, "64G"), (8, "16M"), (8, "64G")]
BOOTS = [
    Boot(1, "16M", "pass", "", Phases(2.0, 1.0, 0.1, 3.5)),
    Boot(1, "16M", "pass", "", Phases(3.0, 2.0, 0.1, 4.5)),
    Boot(1, "64G", "pass", "", Phases(2.0, 1.0, 0.1, 3.0)),
    Boot(1, "64G", "lost", "no report", Phases(None, None, None, 120.0)),
    Boot(8, "16M", "refused", "QEMU said no"),
]
FOUND = bench.grouped(BOOTS, WANTED)


def test_the_table_shows_every_combination_as_what_it_was() -> None:
    assert bench.table(FOUND, bench.whole).splitlines() == [
        "| BAR of each card | 1 card | 8 cards |",
        "| --- | --- | --- |",
        "| 16M | 4.00 (3.50 to 4.50) | **refused 1 of 1** |",
        "| 64G | 3.00 (3.00 to 3.00), **lost 1 of 2** | **NOT RUN** |",
    ]
    assert bench.table(FOUND, bench.parts).splitlines()[2] == "| 16M | 2.50 + 1.50 |  |"


def test_the_plot_has_a_point_for_a_median_and_a_cross_for_what_did_not_pass() -> None:
    plot = ElementTree.fromstring(bench.plot(FOUND))
    kinds = [each.tag.rpartition("}")[2] for each in plot]
    assert kinds.count("circle") == 2 + 2  # two in the legend
    assert [each.text for each in plot].count("\N{MULTIPLICATION SIGN}") == 3


def test_nothing_passed_is_still_a_plot() -> None:
    ElementTree.fromstring(bench.plot(bench.grouped([], [(1, "16M")])))


def test_what_is_missing_is_run_in_rounds() -> None:
    todo = bench.missing(FOUND, 2)
    assert todo[0] == (8, "64G")
    assert sorted(todo[1:]) == [(8, "16M"), (8, "64G")]


def test_a_boot_without_a_verdict_is_reported_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ToolError("QEMU said no")

    monkeypatch.setattr(runner, "run", refuse)
    assert bench.boot(tmp_path, tmp_path, Launch(), 2, "4G") == Boot(2, "4G", "refused", "QEMU said no")
