# SPDX-License-Identifier: Apache-2.0
"""Figures as samples: medians, ratios, and what a table shows of them."""

from pathlib import Path

import msgspec
import pytest

from minguest.util.errors import UserError
from tests.bench import record
from tests.bench.record import Part, Subject, Value

OURS = Subject("ours", "", values={"report": Value("s", (3.0, 1.0, 2.0)), "size": Value("bytes", (2_000.0,))})
PEER = Subject("peer", "", values={"report": Value("s", (4.0,))})
PART = Part("boot", "it", "today", "a machine", 2, "7.2", 0.5, "peer", {"ours": OURS, "peer": PEER})


def test_a_value_is_its_samples() -> None:
    value = Value("s", tuple(float(n) for n in range(1, 101)))
    assert (value.median, value.p95) == (50.5, 95.0)
    assert Value("s", (2.0, 9.0, 1.0)).p95 == 9.0
    # Quartiles of 1 to 5 are 2 and 4, the median 3.
    assert Value("s", (5.0, 1.0, 3.0, 2.0, 4.0)).spread == pytest.approx(2 / 3)
    assert Value("s", (7.0,)).spread == 0.0


def test_a_ratio_is_against_the_base_and_what_is_missing_is_shown() -> None:
    assert record.table(PART, ("report", "size", "nothing")) == [
        ["", "report, s", "size, bytes"],
        ["ours", "2.00 (0.50)", "2,000"],
        ["peer", "4.00", "-"],
    ]
    assert record.table(PART, ("nothing",)) == []


def test_spreads_are_of_what_has_samples() -> None:
    assert record.spreads(PART, ("report", "size"))[1:] == [["ours", "report, s", "2.00", "3.00", "50%", "3"]]


def test_what_is_wrong_with_a_run_is_said() -> None:
    wrong = {"a": msgspec.structs.replace(OURS, noisy="loaded"), "b": Subject("peer", "", problem="hangs"), "c": PEER}
    assert msgspec.structs.replace(PART, subjects=wrong).faults == ["a: loaded", "b: hangs"]


def test_a_part_is_kept_and_read_again(tmp_path: Path) -> None:
    assert record.load("boot", tmp_path / "out") is None
    place = record.save(PART, tmp_path / "out")
    assert record.load("boot", tmp_path / "out") == PART
    place.write_text('{"part": 7}')
    with pytest.raises(UserError, match=r"boot\.json: .*part"):
        record.load("boot", tmp_path / "out")


def test_a_page_escapes_what_would_be_a_column() -> None:
    assert record.markdown([["a|b", "c"], ["1", "2"]]) == "| a\\|b | c |\n| --- | --- |\n| 1 | 2 |"
    assert record.screen([["a", "b"], ["long", ""]]) == "a     b\nlong"
