# SPDX-License-Identifier: Apache-2.0
"""Real boot tests that are interrupted or killed: one line, no QEMU left, and evidence that is whole or not there."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import msgspec
import pytest

from minguest import paths
from minguest.boottest import runner
from tests import ROOT
from tests.integration.conftest import SERIES, Doit

# Seconds: a boot takes at least as long; and until nothing is left of what was ended.
BOOT_S = 2.5
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


@pytest.mark.parametrize("after", [0.0, 1.0, BOOT_S])
def test_ctrl_c_in_a_boot_test(built: paths.Layout, doit: Doit, after: float) -> None:
    process = begin("boot-test")
    until_booting(process)
    time.sleep(after)
    assert after < BOOT_S or guests(built.boot_test)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130
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
