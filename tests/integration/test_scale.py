# SPDX-License-Identifier: Apache-2.0
"""The fault matrix on workers: the same cells as without, if a worker is killed, and if the store is poisoned."""

import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import msgspec
import pytest

from minguest import paths
from minguest.boottest import inject
from minguest.boottest.records import Cell
from tests import ROOT
from tests.integration.conftest import SERIES, Doit

# No other kernel is built.
ONLY = "healthy,msi-off-cmdline"
HANG = 120


def cells(built: paths.Layout) -> dict[str, Cell]:
    """What was found out, without times."""
    matrix = inject.load(built.matrix)
    assert matrix is not None
    found = {cell.id: cell for cell in matrix.cells if cell.pit in ONLY.split(",")}
    return {name: msgspec.structs.replace(cell, seconds=0.0, diagnosis="") for name, cell in found.items()}


def children(of: int, name: bytes) -> list[int]:
    """The processes that a process started, with this in their command."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == of and name in command:
            found.append(int(folder.name))
    return found


def kill_a_worker(of: int) -> None:
    """SIGKILL for a worker of this doit whose guest runs; QEMU ends with it."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for worker in children(of, b"spawn_main"):
            if children(worker, b"qemu-system"):
                os.kill(worker, signal.SIGKILL)
                return
        time.sleep(0.05)
    raise AssertionError("no worker had a guest")


@pytest.fixture(scope="module")
def alone(built: paths.Layout, doit: Doit) -> dict[str, Cell]:
    """The cells without workers."""
    result = doit("-s", "pits", f"kernel={SERIES}", f"only={ONLY}")
    assert result.returncode == 0, result.stdout
    return cells(built)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cells")


def arguments(store: Path, only: str) -> list[str]:
    return ["-s", "pits", f"kernel={SERIES}", f"only={only}", "scheduler=local:2", f"store={store}"]


def test_a_worker_that_is_killed_in_the_middle_loses_nothing(
    built: paths.Layout, alone: dict[str, Cell], store: Path
) -> None:
    (built.matrix / "matrix.json").unlink()
    said: list[str] = []
    with subprocess.Popen(
        ["doit", *arguments(store, ONLY)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as program:
        guard = threading.Timer(HANG, program.kill)
        guard.start()
        assert program.stdout is not None
        for line in program.stdout:
            said.append(line)
            if sum("  right  " in each for each in said) == 2 and "  right  " in line:
                kill_a_worker(program.pid)
        guard.cancel()
    assert program.returncode == 0, "".join(said)
    assert cells(built) == alone
    assert [line for line in said if re.search(r": its worker is gone; \S+ \(127\.0\.0\.1:\d+\) runs it again", line)]
    assert "Traceback" not in "".join(said)
    assert (built.matrix / "runs/healthy.as-built/console.log").stat().st_size > 10_000


def test_a_poisoned_entry_is_named_and_replaced(
    built: paths.Layout, alone: dict[str, Cell], store: Path, doit: Doit
) -> None:
    initrd = next(path for path in (store / "blobs").rglob("*") if _same(path, built.bundle / "initrd.img"))
    initrd.write_bytes(b"poison")
    result = doit(*arguments(store, "msi-off-cmdline"))
    assert result.returncode != 0
    name = initrd.relative_to(store).as_posix()
    assert f"{store}: {name} was poisoned, and was replaced\n" in result.stdout
    assert cells(built) == alone and _same(initrd, built.bundle / "initrd.img")


def _same(one: Path, two: Path) -> bool:
    return one.is_file() and one.read_bytes() == two.read_bytes()
