# SPDX-License-Identifier: Apache-2.0
"""Two guests built at once in one checkout: they share the tree, initd, the firmware and doit's database."""

import os
import shutil
import subprocess
from pathlib import Path

from minguest import paths
from tests import ROOT
from tests.integration.conftest import SERIES, Doit

STEPS = ("config", "initrd", "firmware")


def test_two_guests_at_once(built: paths.Layout, doit: Doit, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    text = (ROOT / "configs/guest.toml").read_text(encoding="utf-8")
    other.write_text(text.replace('name = "default"', 'name = "other-test"', 1), encoding="utf-8")
    second = paths.Layout(ROOT, "other-test", SERIES)
    arguments: dict[paths.Layout, list[str]] = {
        built: [f"kernel={SERIES}"],
        second: [f"guest={other}", f"kernel={SERIES}"],
    }
    try:
        for each in (built.config, second.work, built.initd.parent, built.out / "firmware"):
            shutil.rmtree(each, ignore_errors=True)
        runs = [
            subprocess.Popen(
                ["doit", *STEPS, *own],
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for own in arguments.values()
        ]
        for run in runs:
            said, _ = run.communicate(timeout=1700)
            assert run.returncode == 0, said
        for at, own_arguments in arguments.items():
            again = doit(*STEPS, *own_arguments)
            assert again.returncode == 0 and "nothing to do" in again.stdout, again.stdout
            assert (at.config / "kernel.config").is_file() and at.initrd.is_file() and at.initd.is_file()
        # Neither guest got files of the other.
        assert (built.config / "kernel.config").read_bytes() == (second.config / "kernel.config").read_bytes()
        assert built.initrd.read_bytes() == second.initrd.read_bytes()
    finally:
        shutil.rmtree(second.work, ignore_errors=True)
        second.choice.unlink(missing_ok=True)
        doit("build", f"kernel={SERIES}")
