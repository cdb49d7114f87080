# SPDX-License-Identifier: Apache-2.0
"""Real boot tests that are interrupted or killed: one line, no QEMU left, and evidence that is whole or not there."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from minguest import paths
from minguest.boottest import runner
from tests import ROOT
from tests.integration.conftest import SERIES, Doit

# Seconds until QEMU is started, or its guest's kernel prints; and until nothing is left of what was ended.
BEGUN_S = 60.0
GONE_S = 5.0
KILLS = 5


def begin(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["doit", *arguments, f"kernel={SERIES}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def until_booting(process: subprocess.Popen[str]) -> None:
    """Wait until doit prints what it boots, just before it does."""
    assert process.stdout is not None
    said = ""
    while "OVMF" not in said:
        said = process.stdout.readline()
        assert said, "it ended before it booted anything"


def guests(folder: Path) -> list[int]:
    """QEMUs that run in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == folder and b"qemu-system" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue  # it ended, or is another user's
    return found


def gone(folder: Path) -> bool:
    end = time.monotonic() + GONE_S
    while guests(folder) and time.monotonic() < end:
        time.sleep(0.05)
    return not guests(folder)


# What is there when Ctrl-C comes: a boot may be so short that seconds would say nothing.
MOMENTS: dict[str, Callable[[Path], object]] = {
    "before QEMU": lambda folder: True,
    "QEMU runs": guests,
    "the guest prints": lambda folder: guests(folder) and (folder / "console.log").stat().st_size,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_in_a_boot_test(built: paths.Layout, doit: Doit, moment: str) -> None:
    process = begin("boot-test")
    until_booting(process)
    end = time.monotonic() + BEGUN_S
    while not MOMENTS[moment](built.boot_test):
        assert process.poll() is None and time.monotonic() < end, "it did not come so far"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert said == "interrupted: what is complete is kept; run the same command again to continue\n"
    assert gone(built.boot_test)


def test_evidence_that_is_killed_goes_on(built: paths.Layout, doit: Doit, tmp_path: Path) -> None:
    """SIGKILL at random moments: what counts as run is whole, and the next run does only what is missing."""
    chance = random.Random(35)
    for _ in range(KILLS):
        process = begin("evidence")
        time.sleep(chance.uniform(1, 20))
        process.kill()
        process.communicate(timeout=30)
        assert gone(built.boot_test)
        for kept in built.evidence.glob("[!.]*"):
            assert {path.name for path in kept.iterdir()} == set(runner.KEPT)
            msgspec.json.decode((kept / "verdict.json").read_bytes(), type=runner.Outcome)
    result = doit("evidence", f"kernel={SERIES}")
    assert result.returncode == 0, result.stdout
    again = doit("evidence", f"kernel={SERIES}")
    assert again.returncode == 0 and "three views agree" not in again.stdout
    result = doit("release", "version=1.0", "unsigned=yes", f"kernel={SERIES}")
    assert result.returncode == 0, result.stdout
