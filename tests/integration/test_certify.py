# SPDX-License-Identifier: Apache-2.0
"""An option that is left out for real: the option that this project exists for."""

import json

from minguest import paths
from tests.integration.conftest import SERIES, Doit


def test_without_efi_the_guest_has_one_cpu(built: paths.Layout, doit: Doit) -> None:
    result = doit("certify", f"kernel={SERIES}", "only=EFI")
    assert result.returncode == 0, result.stdout
    made = json.loads((built.certified / "certificate.json").read_bytes())
    (row,) = [row for row in made["rows"] if row["option"] == "EFI"]
    assert (row["kind"], row["probe"], row["instead"]) == ("row", "own", "n") and "EFI_STUB" in row["gone"]
    assert row["seen"].startswith("CPUs, ") and row["seen"].endswith("; pit efi-off")
    assert row["bytes"] < 0 and not made["whole"]
    # With all options, every call of a program is there.
    console = built.certified / "runs/with-all-options.userland/console.log"
    lines = [line for line in console.read_text(errors="replace").splitlines() if line.startswith("userland: ")]
    assert lines[-1] == "userland: end" and len(lines) > 30
    assert [line for line in lines[:-1] if not line.endswith(": ok")] == []
