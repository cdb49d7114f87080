# SPDX-License-Identifier: Apache-2.0
"""When a step runs again, as doit decides it: by content, of what goes in and of what came out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

DODO = """
from pathlib import Path
from minguest.tasks import reporter, step
from minguest.util import files

DOIT_CONFIG = {"minversion": "0.37.0", "reporter": reporter.Reporter, "check_file_uptodate": step.ByContent,
               "default_tasks": ["second"]}
HERE = Path(__file__).parent

def task_first():
    def make():
        files.write(HERE / "first", (HERE / "input").read_text().upper())
    return step.step(make, doc="one", file_dep=[HERE / "input"], targets=[HERE / "first"],
                      facts=lambda: {"fact": (HERE / "fact").read_text()})

def task_second():
    def make():
        files.write(HERE / "second", (HERE / "first").read_text() * 2)
    return step.step(make, doc="two", file_dep=[HERE / "first"], targets=[HERE / "second"])

def task_always():
    return step.step(lambda: None, doc="three", facts=step.always)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "dodo.py").write_text(DODO)
    (tmp_path / "input").write_text("ab")
    (tmp_path / "fact").write_text("1")
    assert doit(tmp_path) == ["first", "second"]
    assert (tmp_path / "second").read_text() == "ABAB"
    return tmp_path


def doit(place: Path, *tasks: str, path: str = str(ROOT)) -> list[str]:
    """The steps that ran."""
    argv = [sys.executable, "-m", "doit", "--backend", "sqlite3", "--db-file", ".db", *tasks]
    result = subprocess.run(
        argv, cwd=place, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return [line.removeprefix("── ") for line in result.stdout.splitlines() if line.startswith("── ")]


def keeping_times(path: Path, content: str) -> None:
    times = path.stat()
    path.write_text(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_nothing_is_done_twice(place: Path) -> None:
    assert doit(place) == []
    (place / "input").touch()
    assert doit(place) == []


def test_a_clock_that_stands_makes_nothing_up_to_date(place: Path) -> None:
    """What always runs was once remembered with the time of its last run."""
    stands = place / "stands"
    stands.mkdir()
    (stands / "sitecustomize.py").write_text("import time\ntime.time = lambda: 1.5e9\n")
    for _ in range(2):
        assert doit(place, "always", path=os.pathsep.join([str(stands), str(ROOT)])) == ["always"]


def test_what_goes_in_is_known_by_content(place: Path) -> None:
    keeping_times(place / "input", "cd")
    assert doit(place) == ["first", "second"]
    assert (place / "second").read_text() == "CDCD"


def test_what_came_out_is_repaired_before_it_is_used(place: Path) -> None:
    keeping_times(place / "first", "XY")
    assert doit(place) == ["first"]
    assert (place / "second").read_text() == "ABAB"
    keeping_times(place / "second", "????")
    assert doit(place) == ["second"]
    assert (place / "second").read_text() == "ABAB"
    (place / "first").unlink()
    assert doit(place) == ["first"]


def test_a_fact_that_changed_runs_a_step_again(place: Path) -> None:
    (place / "fact").write_text("2")
    assert doit(place) == ["first"]
    assert doit(place) == []
