# SPDX-License-Identifier: Apache-2.0
"""The host's column of the fault matrix: its faults, the script that the host runs, and what its logs must name.

The logs are reworded from those of the emulated host with QEMU 7.2 and 10.0; doit pits-host makes new ones.
"""

import subprocess
from pathlib import Path

import pytest

from minguest.boottest import hostfaults, hostmatrix, inject, steps
from minguest.boottest.records import HEALTHY
from minguest.diagnose import catalogue
from minguest.util.errors import UserError
from tests import ROOT

NOT_VIABLE = catalogue.Pit(
    "t", "host", (catalogue.Symptom(("group \\d+ is not viable",)),), cause="c", fix="f",
    inject=(catalogue.Injection(host="group-half-bound", result=("not started",)),),
)  # fmt: skip
OTHER = catalogue.Pit("t", "host", (catalogue.Symptom(("other trouble",)),), cause="c", fix="f")
KNOWN = {"group-not-viable": NOT_VIABLE, "other": OTHER}


@pytest.fixture
def site(tmp_path: Path) -> hostmatrix.Site:
    return hostmatrix.Site(tmp_path / "it's a host", KNOWN, tmp_path, ROOT / "configs/templates", None)


def judge(site: hostmatrix.Site, qemu: str, kernel: str, status: int, pit: str = "group-not-viable") -> tuple[str, str]:
    name, each = next(pair for pair in hostmatrix.wanted(KNOWN) if pair[0] == pit)
    folder = site.folder / "logs"
    folder.mkdir()
    (folder / "qemu.log").write_text(qemu)
    (folder / "host.log").write_text(kernel)
    cell = hostmatrix._cell(site, name, each, "7.2")
    cell = hostmatrix.judge(KNOWN, cell, each, folder, steps.Step("x", status, 1.0))
    return cell.result, cell.why


NO = "qemu-system-x86_64: vfio 0000:01:00.0: group 5 is not viable\n"


@pytest.mark.parametrize(
    ("qemu", "kernel", "status", "why"),
    [
        (NO, "", 1, ""),
        ("", NO, 1, ""),
        (NO, "", 124, "the guest started"),
        ("", "", 1, "it names no pit"),
        (NO, "[ 1.000000] other trouble\n", 1, "it names group-not-viable, other"),
    ],
)
def test_a_cell_is_right_only_if_its_pit_and_no_other_is_named(
    site: hostmatrix.Site, qemu: str, kernel: str, status: int, why: str
) -> None:
    result, against = judge(site, qemu, kernel, status)
    assert result == ("wrong" if why else "right")
    assert why in against


def test_a_healthy_host_must_start_its_guest_and_name_nothing(site: hostmatrix.Site) -> None:
    assert judge(site, "", "", 124, HEALTHY) == ("right", "")


def test_a_healthy_host_that_names_a_pit_is_wrong(site: hostmatrix.Site) -> None:
    assert judge(site, NO, "", 1, HEALTHY)[0] == "wrong"


def test_a_fault_that_the_host_did_not_reach_is_wrong(site: hostmatrix.Site) -> None:
    name, each = hostmatrix.wanted(KNOWN)[1]
    cell = hostmatrix.judge(KNOWN, hostmatrix._cell(site, name, each, "7.2"), each, site.folder, None)
    assert (cell.result, cell.why) == ("wrong", "the host did not come as far")


@pytest.mark.parametrize("system", ["", "another root"])
def test_the_script_is_sh_and_quotes_what_it_is_given(site: hostmatrix.Site, system: str, tmp_path: Path) -> None:
    given = {**hostfaults.FAULTS, "control": hostmatrix.CONTROL}
    if system:
        site = hostmatrix.Site(site.host, KNOWN, tmp_path, ROOT / "configs/templates", tmp_path / system)
    text = hostmatrix.script(site, given)
    assert subprocess.run(["sh", "-n"], input=text, text=True, check=False).returncode == 0
    assert ("chroot '" in text) == bool(system)
    for fault in given.values():
        for part in (fault.script, fault.undo):
            assert subprocess.run(["sh", "-n"], input=part, text=True, check=False).returncode == 0


def test_each_platform_has_an_iommu_and_a_card() -> None:
    for fault in hostfaults.FAULTS.values():
        assert fault.platform in hostfaults.IOMMUS and fault.platform in hostfaults.CARDS


def test_a_fault_that_is_not_known_is_refused() -> None:
    wrong = catalogue.Pit(
        "t", "host", OTHER.symptom, cause="c", fix="f", inject=(catalogue.Injection(host="group-half"),)
    )
    with pytest.raises(UserError, match=r"p\.toml: \[\[inject\]\]: host = 'group-half': not known"):
        inject.verify({"p": wrong})


def test_a_guests_matrix_leaves_out_what_is_the_hosts() -> None:
    assert "group-not-viable" not in [name for name, _ in inject.plan(KNOWN, "6.12", ())]


def test_a_system_without_qemu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--qemu .*: no usr/bin/qemu-system-x86_64"):
        hostmatrix.version(tmp_path)


def test_a_pit_that_no_host_fault_brings_about_is_refused(site: hostmatrix.Site) -> None:
    with pytest.raises(UserError, match="only=other: no pit that a host's fault brings about"):
        hostmatrix.make(site, lambda _: None, ["other"])
