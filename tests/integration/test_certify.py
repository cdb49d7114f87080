# SPDX-License-Identifier: Apache-2.0
"""An option that is left out for real: the option that this project exists for."""

import json
import shutil
from pathlib import Path

from minguest import paths
from tests import ROOT
from tests.integration.conftest import SERIES, Doit


def test_without_efi_the_guest_has_one_cpu(doit: Doit, tmp_path: Path) -> None:
    # The row of the default guest may be in docs/necessity.json: this guest's launch has none there.
    at = paths.Layout(ROOT, "certify-test", SERIES)
    text = (ROOT / "configs/guest.toml").read_text(encoding="utf-8")
    for old, new in (('name = "default"', f'name = "{at.guest}"'), ("\ncpus = 4\n", "\ncpus = 3\n")):
        assert text.count(old) == 1
        text = text.replace(old, new)
    guest = tmp_path / "guest.toml"
    guest.write_text(text, encoding="utf-8")
    shutil.rmtree(at.certified, ignore_errors=True)
    result = doit("build", "certify", f"guest={guest}", f"kernel={SERIES}", "only=EFI")
    assert result.returncode == 0, result.stdout
    made = json.loads((at.certified / "certificate.json").read_bytes())
    (row,) = [row for row in made["rows"] if row["option"] == "EFI"]
    assert (row["kind"], row["probe"], row["instead"]) == ("row", "own", "n") and "EFI_STUB" in row["gone"]
    assert row["seen"].startswith("CPUs, ") and row["seen"].endswith("; pit efi-off")
    assert row["bytes"] < 0 and not made["whole"]
    # With all options, every call of a program is there.
    console = at.certified / "runs/with-all-options.userland/console.log"
    lines = [line for line in console.read_text(errors="replace").splitlines() if line.startswith("userland: ")]
    assert lines[-1] == "userland: end" and len(lines) > 30
    assert [line for line in lines[:-1] if not line.endswith(": ok")] == []
    shutil.rmtree(at.work)
    shutil.rmtree(at.certified)
    at.choice.unlink()
