# SPDX-License-Identifier: Apache-2.0
"""The whole trip of a real guest: build, boot-test, release, publish, pull, verify, boot what was pulled."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from minguest import paths
from minguest.boottest import runner
from minguest.release import layout
from minguest.vm import report
from tests import ROOT, registry, workshop
from tests.integration.conftest import SERIES, Doit

MINGUEST = Path(sys.executable).with_name("minguest")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workshop.key(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def made(built: paths.Layout, doit: Doit, key: Path) -> Path:
    """A release of the default guest."""
    result = doit("boot-test", f"kernel={SERIES}")
    assert result.returncode == 0, result.stdout
    result = doit("release", "version=1.0", f"key={key}", f"kernel={SERIES}")
    assert result.returncode == 0, result.stdout
    assert "PASS     boot-test-q35-4" in result.stdout
    assert "NOT RUN  real-card" in result.stdout
    return built.release


def minguest(home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The installed command, in a home of its own, with nothing of this environment."""
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [MINGUEST, *arguments],
        cwd=home,
        env={"HOME": str(home), "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_whole_trip(made: Path, built: paths.Layout, doit: Doit, key: Path, tmp_path: Path) -> None:
    with registry.registry(tmp_path / "registry") as address:
        to = f"oci://{address}/guests/default-{SERIES}"
        result = doit("publish", f"to={to}", f"kernel={SERIES}")
        assert result.returncode == 0, result.stdout
        result = doit("publish", f"to={to}", f"kernel={SERIES}")
        assert result.returncode == 0, result.stdout
        assert "nothing uploaded" in result.stdout

        home = tmp_path / "home"
        found = minguest(home, "pull", f"{to}:1.0", "--key", f"{key}.pub")
        assert found.returncode == 0, found.stdout
        verified = minguest(home, "verify", to, "--key", f"{key}.pub")
        assert verified.returncode == 0, verified.stdout
        stranger = workshop.key(tmp_path / "stranger")
        refused = minguest(home, "pull", f"{to}:1.0", "--to", "other", "--key", f"{stranger}.pub")
        assert refused.returncode == 1 and "not trusted here" in refused.stdout
        assert not (home / "other").exists()

    pulled = home / f"default-{SERIES}-1.0"
    assert layout.load(pulled).items == layout.load(made).items
    verified = minguest(home, "verify", pulled, "--key", f"{key}.pub")
    assert verified.returncode == 0, verified.stdout

    tested = minguest(home, "boot-test", pulled)
    assert tested.returncode == 0, tested.stdout
    assert "PASS: three views agree" in tested.stdout

    # And as its user would start it; nothing of the release is written to. There are machines whose /dev/kvm opens, and
    # cannot run OVMF: run-guest cannot know that, and the boot test can.
    accel = msgspec.json.decode((built.boot_test / "verdict.json").read_bytes(), type=runner.Outcome).spec.accel
    kept = tmp_path / "kept"
    command: list[str | Path] = [pulled / "run-guest", "--accel", accel, "--keep", kept]
    started = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False)
    assert started.returncode == 0, started.stderr
    assert b"Linux version 6.12" in started.stdout
    seen = report.parse((kept / "report.jsonl").read_bytes())
    assert seen.complete and report.cpu_count(seen.record("cpus")["online"]) == 4
    assert minguest(home, "verify", pulled, "--key", f"{key}.pub").returncode == 0


def test_any_changed_byte_of_a_real_release_is_found(made: Path, key: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made, tmp_path / "release")
    dice = random.Random(1)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        place = dice.randrange(len(whole))
        with path.open("r+b") as file:
            file.seek(place)
            file.write(bytes([whole[place] ^ 1 << dice.randrange(8)]))
        found = minguest(tmp_path / "home", "verify", folder, "--key", f"{key}.pub")
        assert found.returncode == 1, f"{path.name}, byte {place}: {found.stdout}"
        assert "Traceback" not in found.stdout
        path.write_bytes(whole)
    assert minguest(tmp_path / "home", "verify", folder, "--key", f"{key}.pub").returncode == 0


def test_a_bundle_that_was_changed_after_its_test_is_repaired_before_it_is_released(
    made: Path, built: paths.Layout, doit: Doit, key: Path
) -> None:
    image = built.bundle / "bzImage"
    whole = image.read_bytes()
    image.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    result = doit("release", "version=1.1", f"key={key}", f"kernel={SERIES}")
    assert result.returncode == 0, result.stdout
    assert image.read_bytes() == (made / "bzImage").read_bytes() == whole
    assert layout.read_facts(made).version == "1.1"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["release"], "no version"),
        (["release", "version=1.1"], "no key to sign with"),
        (["release", "version=1/1"], "not a version"),
        (["release", "version=1.1", "key=/nowhere"], "no such file"),
        (["release", "version=1.1", "unsigned=true"], "unsigned=yes or unsigned=no"),
        (["publish"], "to= is not given"),
        (["publish", "to=ftp://host"], "not a place to publish to"),
        (["publish", "to=oci://127.0.0.1:1/a/b"], "127.0.0.1:1"),
        (["release", "verson=1.1"], "no such variable"),
    ],
)
def test_wrong_arguments_are_named(made: Path, doit: Doit, arguments: list[str], why: str) -> None:
    result = doit(*arguments, f"kernel={SERIES}")
    assert result.returncode != 0
    assert why in result.stdout
    assert "Traceback" not in result.stdout


def test_the_published_files_name_no_machine(made: Path) -> None:
    """What is published does not name the machine that built it."""
    for path in made.iterdir():
        content = path.read_bytes()
        for name in (str(Path.home()), str(ROOT), os.uname().nodename):
            if len(name) > 4:
                assert name.encode() not in content, f"{path.name} names {name}"
    verdict = json.loads((made.parent / "boot-test/verdict.json").read_bytes())
    assert str(ROOT) not in json.dumps(verdict)
