# SPDX-License-Identifier: Apache-2.0
"""The host's column of the fault matrix: two of the five emulated hosts, a few faults. doit pits-host has all."""

import json

from minguest import paths
from tests.integration.conftest import SERIES, Doit

FAULTS = ("group-not-viable", "iommu-off", "kvm-denied", "not-bound")


def test_a_hosts_faults_are_named_by_its_logs(built: paths.Layout, doit: Doit) -> None:
    result = doit("pits-host", f"only={','.join(FAULTS)}", f"kernel={SERIES}")
    assert result.returncode == 0, result.stdout
    place = max(built.matrices.glob("host-qemu-*/matrix.json"), key=lambda each: each.stat().st_mtime)
    cells = {cell["pit"]: cell for cell in json.loads(place.read_bytes())["cells"] if cell["pit"] in FAULTS}
    assert {name: cell["result"] for name, cell in cells.items()} == dict.fromkeys(FAULTS, "right")
    for name in FAULTS:
        assert (place.parent / "runs" / name / "qemu.log").read_text().strip()
        assert name in cells[name]["got"] and name in cells[name]["diagnosis"]
    page = (built.matrices / "index.html").read_text()
    assert "host-qemu" in page and all(name in page for name in FAULTS)
