# SPDX-License-Identifier: Apache-2.0
"""The fault matrix for real: all faults that need no other kernel, and the one that this project exists for."""

import re
from pathlib import Path

import msgspec
import pytest

from minguest import paths, settings
from minguest.boottest import inject, runner
from minguest.boottest.records import HEALTHY, Cell
from minguest.diagnose import catalogue
from minguest.model import Launch
from minguest.util import fetch
from tests import ROOT
from tests.integration.conftest import SERIES, Doit

KNOWN = catalogue.load(ROOT / "configs/pits")
GUESTS = {name: [each for each in pit.inject if not each.host] for name, pit in KNOWN.items()}
NO_KERNEL = [name for name, ways in GUESTS.items() if ways and not any(each.options for each in ways)]
CHOSEN = [HEALTHY, *NO_KERNEL, "efi-off"]


@pytest.fixture(scope="module")
def injected(built: paths.Layout, doit: Doit) -> str:
    """The screen of one run over all of them."""
    result = doit("pits", f"kernel={SERIES}", f"only={','.join(CHOSEN)}")
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def cells(built: paths.Layout, injected: str) -> dict[str, Cell]:
    matrix = inject.load(built.matrix)
    assert matrix is not None and matrix.series == SERIES
    return {cell.id: cell for cell in matrix.cells if cell.pit in CHOSEN}


@pytest.mark.parametrize("name", CHOSEN)
def test_the_first_boot_names_the_pit_and_nothing_else(cells: dict[str, Cell], name: str) -> None:
    of_pit = [cell for cell in cells.values() if cell.pit == name]
    assert of_pit
    for cell in of_pit:
        each = next((one for one in (KNOWN[name].inject if name in KNOWN else ()) if one.name == cell.name), None)
        if each is not None and (each.cannot or each.needs) and cell.result == "NOT RUN":
            assert cell.why
        else:
            assert (cell.result, cell.why) == ("right", "")


def test_every_cell_has_its_console_and_the_page_leads_there(
    built: paths.Layout, injected: str, cells: dict[str, Cell]
) -> None:
    page = built.matrices / "index.html"
    links = set(re.findall(r'href="([^"#]+)"', page.read_text()))
    for cell in cells.values():
        if cell.result == "right":
            assert f"{built.name}/runs/{cell.id}/console.log" in links
    assert all((page.parent / link).exists() for link in links)
    assert re.search(rf"linux {SERIES}\S*: \d+ right, 0 wrong, \d+ NOT RUN", injected)


def test_the_story_of_efi_off_is_diagnosed(cells: dict[str, Cell]) -> None:
    diagnosis = cells["efi-off"].diagnosis
    assert diagnosis.startswith("efi-off: the kernel was built without CONFIG_EFI\n")
    assert re.search(r"\n  \| console\.log:\d+: .*A valid RSDP was not found", diagnosis)
    assert "CONFIG_EFI is n, wanted y" in diagnosis
    assert "fix:   CONFIG_EFI=y" in diagnosis
    assert re.search(r"follows from [\w, -]*efi-off.*: SMP is off", diagnosis)


def test_a_pit_that_is_not_named_is_a_wrong_cell(built: paths.Layout, tmp_path: Path) -> None:
    """The matrix can fail: a symptom that no guest shows, and a pit that is named although nothing is wrong."""
    deaf = msgspec.structs.replace(
        KNOWN["msi-off-cmdline"], symptom=(catalogue.Symptom(console=("not said by anyone",)),)
    )
    loud = msgspec.structs.replace(KNOWN["nmi-panic"], symptom=(catalogue.Symptom(console=("Linux version",)),))
    wrong = {"msi-off-cmdline": deaf, "nmi-panic": loud}
    sources = settings.sources(ROOT / "configs/sources.toml")
    site = inject.Site(
        bench=runner.Bench(built.name, built.bundle, tmp_path / "boot-test", built.kvm),
        launch=Launch(),
        known=wrong,
        folder=tmp_path,
        package=fetch.fetch(sources.firmware["ovmf"], "OVMF", settings.cache_folder(), print),
        kernels=lambda _: built.bundle,
    )
    said: list[str] = []
    matrix = inject.run(site, ["msi-off-cmdline"], said.append)
    (cell,) = matrix.cells
    assert (cell.result, matrix.whole) == ("wrong", False)
    assert "it names nmi-panic" in cell.why
    assert "wrong  " in said[0] and "wanted: failed: pits; pit msi-off-cmdline" in said[0]
