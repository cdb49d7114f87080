# SPDX-License-Identifier: Apache-2.0
"""Runs doit as a user does, on a series that can be downloaded."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from minguest import paths
from tests import ROOT

SERIES = "6.12"
# With a series whose bundle is there: 4.12 cannot be downloaded everywhere.
ALL_SERIES = [
    SERIES,
    *(each for each in ("4.12",) if (paths.Layout(ROOT, "default", each).bundle / "bzImage").exists()),
]

Doit = Callable[..., subprocess.CompletedProcess[str]]


def run_doit(
    *arguments: str, cwd: Path = ROOT, timeout: float = 1700, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """doit's status and everything that it printed."""
    return subprocess.run(
        ["doit", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=timeout,
    )


@pytest.fixture(scope="session", autouse=True)
def keep_the_choice() -> Iterator[None]:
    """The tests choose a series; the user's choice comes back afterwards."""
    place = ROOT / "out/choice-default.json"
    kept = place.read_bytes() if place.exists() else None
    yield
    if kept is not None:
        place.write_bytes(kept)
    else:
        place.unlink(missing_ok=True)


@pytest.fixture(scope="session", autouse=True)
def can_be_interrupted() -> None:
    """In the background a shell ignores SIGINT, and the programs that the tests start would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def doit() -> Doit:
    return run_doit


@pytest.fixture(scope="session")
def built(doit: Doit) -> paths.Layout:
    """The default guest's bundle."""
    result = doit("build", f"kernel={SERIES}")
    assert result.returncode == 0, result.stdout
    return paths.Layout(ROOT, "default", SERIES)


@pytest.fixture(params=ALL_SERIES)
def series(request: pytest.FixtureRequest) -> str:
    """Each series in turn; the default guest's bundle of it is there."""
    if request.param == SERIES:
        request.getfixturevalue("built")
    return str(request.param)


@pytest.fixture
def bundle(series: str) -> Path:
    """The default guest's bundle of each series in turn."""
    return paths.Layout(ROOT, "default", series).bundle
