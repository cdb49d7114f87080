# SPDX-License-Identifier: Apache-2.0
"""The guests amdgpu, xe and i915: drivers of the kernel's own source, which a card of theirs would load.

Builds three kernels and their modules: an hour on two cores. The machine has no such card: what needs one is NOT RUN.
"""

import fnmatch
import subprocess

import msgspec
import pytest

from minguest import paths
from minguest.bundle import manifests
from minguest.util.run import require
from minguest.vm import report
from tests import ROOT
from tests.integration.conftest import SERIES, run_doit

# A card of each, as the kernel would name it: Radeon RX 7900 XTX, Arc B580, Arc A770 (pci.ids).
CARDS = {
    "amdgpu": "pci:v00001002d0000744Csv00001002sd00000E3Bbc03sc00i00",
    "xe": "pci:v00008086d0000E20Bsv00008086sd00001100bc03sc00i00",
    "i915": "pci:v00008086d000056A0sv00008086sd00001020bc03sc00i00",
}


@pytest.fixture(scope="module", params=CARDS)
def at(request: pytest.FixtureRequest) -> paths.Layout:
    """The bundle of a guest as it is shipped, after its boot test."""
    done = run_doit("boot-test", f"guest={request.param}", f"kernel={SERIES}", "--accel", "tcg", timeout=3600)
    assert done.returncode == 0, done.stdout
    return paths.Layout(ROOT, request.param, SERIES)


def test_its_card_would_load_the_driver(at: paths.Layout) -> None:
    manifest = manifests.load(at.bundle)
    assert manifest.drivers is not None
    (built,) = manifest.drivers.modules
    image = at.bundle / "drivers.img"
    place = f"lib/modules/{built.kernel.release}"
    alias = subprocess.run([require("unsquashfs"), "-cat", image, f"{place}/modules.alias"], capture_output=True,
                           text=True, check=True).stdout  # fmt: skip
    rows = [line.split() for line in alias.splitlines() if line.startswith("alias ")]
    assert {module for _, pattern, module in rows if fnmatch.fnmatchcase(CARDS[at.guest], pattern)} == {at.guest}
    listed = subprocess.run([require("unsquashfs"), "-l", image], capture_output=True, text=True, check=True).stdout
    for module in built.modules:
        assert f"squashfs-root/{place}/extra/in-tree/{module.file}\n" in listed


def test_without_its_card_nothing_of_it_is_loaded(at: paths.Layout) -> None:
    seen = msgspec.json.decode((at.boot_test / "report.json").read_bytes(), type=report.Report)
    assert at.guest not in {module.name for module in seen.modules}
    assert all(module.result == "loaded" for module in seen.modules)
