# SPDX-License-Identifier: Apache-2.0
"""What `pip install .` leaves: a command that needs no checkout. Build backend: this environment's, no network."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from minguest import paths
from tests import ROOT

PITS = ROOT / "configs" / "pits"
DIAGNOSE = ROOT / "configs/diagnose"
CARDS = ROOT / "configs" / "cards"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (made,) = folder.glob("*.whl")
    return made


def test_a_wheel_has_every_pit_and_card_and_nothing_beside_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    data = {name: raw for name, raw in packed.items() if not name.endswith(".py")}
    wanted = [*PITS.glob("*.toml"), *CARDS.glob("*.toml"), *DIAGNOSE.glob("*.toml")]
    assert data == {f"minguest/data/{path.parent.name}/{path.name}": path.read_bytes() for path in wanted}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "minguest").rglob("*.py")}
    assert packed.keys() - data.keys() == modules


def test_a_wheel_diagnoses_without_a_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    found = subprocess.run(
        [sys.executable, "-m", "minguest.cli", "diagnose", str(ROOT / "tests/data/consoles/6.12-efi-off.log")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("efi-off: ")


def test_a_checkout_reads_its_own_pits() -> None:
    assert paths.known_pits().resolve() == PITS.resolve()
    assert paths.known_cards().resolve() == CARDS.resolve()
