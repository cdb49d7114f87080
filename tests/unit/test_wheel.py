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
from tests.unit.kernel.test_image import CONFIG

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


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed."""
    folder = tmp_path_factory.mktemp("installed") / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def installed(site: Path, *argv: str, **env: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "minguest.cli", *argv],
        cwd=site.parent,
        env={**os.environ, "PYTHONPATH": str(site), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_default_guest_of_a_wheel_is_built_in(site: Path) -> None:
    asks = ["plan", "--card", "nvidia-h100", "--phys-bits", "46"]
    status, said, _ = installed(site, *asks)
    assert (status, said) == (0, installed(site, *asks, "--guest", "default")[1])
    (site.parent / "mine.toml").write_text((ROOT / "configs/guest.toml").read_text())
    assert installed(site, *asks, "--guest", "mine.toml")[0] == 0


def test_a_wheel_has_no_guests_by_name(site: Path) -> None:
    status, _, said = installed(site, "plan", "--card", "nvidia-h100", "--guest", "host")
    assert (status, said) == (
        1,
        "minguest: --guest host: an installed minguest has no guest of that name, because it has no configs/guests/\n"
        "  remedy: --guest FILE.toml names the file of a guest; without --guest the launch is the built-in one\n",
    )


def test_the_messages_of_a_wheel_name_what_it_has(site: Path, tmp_path: Path) -> None:
    (tmp_path / ".config").write_text(CONFIG)
    said = "\n".join(
        "".join(installed(site, *argv, PATH=str(tmp_path))[1:])
        for argv in (["--help"], ["diagnose", "--help"], ["plan", "--help"], ["plan"], ["boot-test", "--help"],
                     ["plan", "--card", "none"], ["doctor", str(tmp_path / ".config")])
    )  # fmt: skip
    assert f"cause and fix of each: {site}/minguest/data/pits/{{" in said
    assert said.count("--card FILE.toml") and said.count("nvidia-h100") >= 2
    for absent in ("docs/", "configs/", "doit.sh"):
        assert absent not in said.replace(str(site), "")


def test_the_message_about_a_missing_program_is_right_without_a_checkout(site: Path, tmp_path: Path) -> None:
    program = "from minguest.vm import emulator; emulator.version()"
    env = {**os.environ, "PYTHONPATH": str(site), "PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert "remedy: install the package that has it; in a checkout, ./doit.sh installs all of them" in done.stderr
