# SPDX-License-Identifier: Apache-2.0
"""What doit and doit.sh take for up to date, whatever the clock says."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from minguest.paths import Layout
from tests import ROOT, workshop

NOTHING = "nothing to do: everything is up to date"
YEAR = 365 * 24 * 3600


@pytest.fixture
def at(tmp_path: Path) -> Layout:
    """A checkout whose overlays are its own."""
    made = workshop.build(tmp_path / "p")
    workshop.checkout(made)
    (made.root / "overlays").unlink()
    shutil.copytree(ROOT / "overlays", made.root / "overlays")
    return made


def doit(at: Layout, *arguments: str, **env: str) -> str:
    done = subprocess.run(
        workshop.doit_argv(*arguments),
        cwd=at.root,
        env=workshop.doit_env(**env),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


@pytest.mark.parametrize("ahead", [YEAR, -YEAR])
def test_a_clock_that_was_set_back_makes_nothing_up_to_date(at: Layout, ahead: int) -> None:
    """What was made has a time of the future, or what is changed then one of long ago; the size is the same."""
    doit(at, "initd")
    doit(at, "initrd")
    assert NOTHING in doit(at, "initrd")
    added = at.root / "overlays/base/etc/added"
    added.parent.mkdir(exist_ok=True)
    for content in (b"one", b"two"):
        added.write_bytes(content)
        now = time.time()
        for made in at.out.rglob("*"):
            os.utime(made, (now + ahead, now + ahead), follow_symlinks=False)
        if content == b"two":
            os.utime(added, (now - YEAR, now - YEAR))
        assert "initrd.img" in doit(at, "initrd")
        assert content in gunzip_all(at.initrd)
        assert NOTHING in doit(at, "initrd")


def gunzip_all(initrd: Path) -> bytes:
    return subprocess.run(["gzip", "-dc", initrd], capture_output=True, check=True).stdout


def test_the_environment_is_made_anew_by_content(tmp_path: Path) -> None:
    """doit.sh: an old time of requirements.txt, such as a clock that was set back gives it, hides no change."""
    (tmp_path / "configs").mkdir()
    for name in ("configs/packages.txt", "requirements.txt", "pyproject.toml", "doit.sh"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    fake = tmp_path / ".venv/bin"
    fake.mkdir(parents=True)
    (fake / "doit").write_text("#!/bin/sh\necho doit ran\n")
    (fake / "doit").chmod(0o755)
    # What doit.sh would do next is not what is looked at: it needs a package that cannot be.
    with (tmp_path / "configs/packages.txt").open("a") as packages:
        packages.write("no-such-package-of-minguest\n")
    files = ["configs/packages.txt", "requirements.txt", "pyproject.toml", "doit.sh"]
    sums = subprocess.run(["sha256sum", *files], cwd=tmp_path, capture_output=True, check=True).stdout
    (tmp_path / ".venv/ready").write_bytes(sums)

    def run() -> str:
        tools = tmp_path / "tools"
        tools.mkdir(exist_ok=True)
        (tools / "apt-get").write_text("#!/bin/sh\necho apt-get ran; exit 1\n")
        (tools / "apt-get").chmod(0o755)
        env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
        return subprocess.run(
            ["sh", "doit.sh"],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        ).stdout

    assert run() == "doit ran\n"
    os.utime(tmp_path / "requirements.txt")
    assert run() == "doit ran\n"
    with (tmp_path / "requirements.txt").open("a") as requirements:
        requirements.write("# another\n")
    os.utime(tmp_path / "requirements.txt", (0, 0))
    assert "apt-get ran" in run()
