# SPDX-License-Identifier: Apache-2.0
"""Temporary folders of killed runs go with the next run; those of a process that lives stay."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minguest.util import scratch
from tests import workshop

HOLDS = """
import sys, time
from pathlib import Path
from minguest.util import scratch
with scratch.folder("test") as folder:
    (folder / "file").write_text("content")
    print(folder, flush=True)
    time.sleep(600)
"""
# Makes, uses and leaves folders as fast as it can; says nothing if none was taken away from it.
BUSY = """
from minguest.util import scratch
for count in range(150):
    with scratch.folder("busy") as folder:
        (folder / "file").write_text(str(count))
        assert (folder / "file").read_text() == str(count)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A $TMPDIR of its own, for this process and its children."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield tmp_path
    tempfile.tempdir = None


def holder() -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS], env=workshop.doit_env(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_the_next_run_clears_what_a_killed_one_left(temporary: Path) -> None:
    (killed, left), (alive, kept) = holder(), holder()
    strangers = [temporary / "minguest-of-somebody", temporary / "other"]
    for path in strangers:
        path.mkdir()
    (temporary / "linked").mkdir()
    (temporary / f"{scratch.PREFIX}link").symlink_to(temporary / "linked")
    killed.kill()
    killed.wait()
    try:
        assert (left / "file").exists()
        with scratch.folder("test") as mine:
            assert mine.is_dir() and not left.exists()
            assert (kept / "file").read_text() == "content"
            scratch.sweep(temporary)  # what another run does
            assert mine.is_dir()
        assert not mine.exists()
        assert all(path.is_dir() for path in [*strangers, temporary / "linked", kept])
    finally:
        alive.kill()
        alive.wait()
    with scratch.folder("test"):
        assert not kept.exists()


def test_a_folder_beside_what_it_becomes(tmp_path: Path) -> None:
    (tmp_path / f".{scratch.PREFIX}pull-left").mkdir()
    (tmp_path / f"{scratch.PREFIX}pull-other").mkdir()
    with scratch.folder("pull", tmp_path) as mine:
        assert mine.parent == tmp_path and mine.name.startswith(".")
        assert not (tmp_path / f".{scratch.PREFIX}pull-left").exists()
    assert [path.name for path in tmp_path.iterdir()] == [f"{scratch.PREFIX}pull-other"]


def test_no_run_takes_a_folder_from_another(temporary: Path) -> None:
    """A folder that is made and not yet locked is not removed."""
    argv, env = [sys.executable, "-c", BUSY], workshop.doit_env()
    processes = [subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    time.sleep(0.3)
    processes[0].kill()
    for number, process in enumerate(processes):
        _, said = process.communicate(timeout=120)
        assert number == 0 or (process.returncode, said) == (0, "")
    with scratch.folder("test") as mine:
        assert list(temporary.iterdir()) == [mine]


def test_verify_killed_at_any_moment_leaves_nothing_to_the_next(tmp_path: Path, temporary: Path) -> None:
    at = workshop.build(tmp_path / "p")
    workshop.tested(at)
    key = workshop.key(tmp_path)
    workshop.make(at, key)
    argv = [sys.executable, "-m", "minguest.cli", "verify", "--key", f"{key}.pub", str(at.release)]
    chance = random.Random(27)
    begun = time.monotonic()
    assert subprocess.run(argv, env=workshop.doit_env(), capture_output=True, check=False).returncode == 0
    whole = time.monotonic() - begun
    for _ in range(8):
        process = subprocess.Popen(argv, env=workshop.doit_env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(whole / 3, whole))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert subprocess.run(argv, env=workshop.doit_env(), capture_output=True, check=False).returncode == 0
    assert not [path.name for path in temporary.iterdir() if path.name.startswith("minguest")]
