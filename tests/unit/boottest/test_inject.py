# SPDX-License-Identifier: Apache-2.0
"""The matrix: what is injected, what counts as right, and what is kept. The injection itself needs a guest."""

import json
from pathlib import Path

import msgspec
import pytest

from minguest.boottest import hostmatrix, inject, runner, verdict
from minguest.boottest.records import HEALTHY, Cell, Matrix
from minguest.bundle import manifests
from minguest.diagnose import catalogue, matching
from minguest.diagnose.catalogue import Injection
from minguest.model import Launch
from minguest.util.errors import UserError
from minguest.vm import report
from tests import ROOT, workshop
from tests.damage import Damage, each_way

KNOWN = catalogue.load(ROOT / "configs/pits")
PHASES = verdict.Phases(1.0, 1.0, 0.1, 2.1)


def trial(
    result: str, wrong: tuple[str, ...] = (), roots: tuple[str, ...] = (), effects: tuple[str, ...] = ()
) -> runner.Trial:
    """A possible result of a boot."""
    checks = tuple(verdict.Check(name, "", "", "", False, "why") for name in wrong)
    judged = None if result == "not started" else verdict.Verdict(result, "a reason", checks, PHASES, "")  # type: ignore[arg-type]
    found = matching.Diagnosis(
        tuple(matching.Found(name, KNOWN[name], ()) for name in roots),
        (),
        tuple(matching.Found(name, KNOWN[name], ()) for name in effects),
        (),
        (),
    )
    return runner.Trial(judged, report.Report(True, (), ()), found, found, ("qemu",), "QEMU said no")


EFI = Injection(options={"EFI": False}, wrong=("CPUs", "firmware"))
LOST = Injection(fault=("initrd=none",), result=("lost", "not started"))


@pytest.mark.parametrize(
    ("name", "each", "came", "why"),
    [
        ("efi-off", EFI, trial("failed", ("firmware", "CPUs"), ("efi-off",)), ""),
        ("efi-off", EFI, trial("failed", ("CPUs",), ("efi-off",)), "wrong rows are CPUs: why"),
        ("efi-off", EFI, trial("failed", ("CPUs", "firmware", "memory"), ("efi-off",)), "memory: why"),
        ("efi-off", EFI, trial("pass"), "the verdict is pass: a reason; it names no pit"),
        ("efi-off", EFI, trial("lost", (), ("efi-off",)), "the verdict is lost: a reason"),
        ("efi-off", EFI, trial("failed", ("CPUs", "firmware"), ("acpi-off",)), "it names acpi-off"),
        ("efi-off", EFI, trial("failed", ("CPUs", "firmware"), ("efi-off", "acpi-off")), "it names efi-off, acpi-off"),
        ("efi-off", EFI, trial("failed", ("CPUs", "firmware")), "it names no pit"),
        ("efi-off", EFI, trial("failed", ("CPUs", "firmware"), ("efi-off",), ("one-cpu",)), "unexplained: one-cpu"),
        ("initrd-missing", LOST, trial("lost", (), ("initrd-missing",)), ""),
        ("initrd-missing", LOST, trial("not started", (), ("initrd-missing",)), ""),
        ("initrd-missing", EFI, trial("not started", (), ("initrd-missing",)), "not started: QEMU said no"),
        (HEALTHY, Injection(), trial("pass"), ""),
        (HEALTHY, Injection(), trial("pass", (), ("efi-off",)), "it names efi-off"),
        (HEALTHY, Injection(), trial("pass", (), (), ("one-cpu",)), "unexplained: one-cpu"),
        (HEALTHY, Injection(), trial("failed", ("CPUs",)), "the verdict is failed"),
    ],
)  # fmt: skip
def test_what_is_right(name: str, each: Injection, came: runner.Trial, why: str) -> None:
    found = inject.against(name, each, came, ", ".join(came.roots))
    assert why in found
    assert bool(found) == bool(why)


def test_a_config_pit_is_named_by_its_symptoms_too() -> None:
    came = trial("failed", ("CPUs", "firmware"), ("efi-off",))
    assert "without the kernel's config it names efi-off, not none" in inject.against("efi-off", EFI, came, "")
    deaf = msgspec.structs.replace(came, blind=matching.Diagnosis((), (), (), (), ()))
    assert "it names no pit, not efi-off" in inject.against("efi-off", EFI, deaf, "efi-off")


def test_a_matrix_is_of_its_bundle_launch_and_pits(tmp_path: Path) -> None:
    manifest = manifests.load(workshop.build(tmp_path / "project").bundle)
    key = inject.key_of(manifest, Launch(), KNOWN)
    assert key == inject.key_of(manifest, Launch(), dict(KNOWN))
    assert key != inject.key_of(manifest, Launch(memory="2G"), KNOWN)
    reworded = msgspec.structs.replace(KNOWN["efi-off"], cause="otherwise", fix="otherwise")
    assert key == inject.key_of(manifest, Launch(), {**KNOWN, "efi-off": reworded})
    other = msgspec.structs.replace(KNOWN["efi-off"], leads_to=())
    assert key != inject.key_of(manifest, Launch(), {**KNOWN, "efi-off": other})


def test_every_pit_of_the_project_can_be_injected_or_says_why_not() -> None:
    inject.verify(KNOWN)
    assert sum(pit.layer != "effect" for pit in KNOWN.values()) >= 20
    in_host = {name for name, _ in hostmatrix.wanted(KNOWN)}
    for line in ("4.12", "6.12"):
        injected = in_host | {name for name, _ in inject.plan(KNOWN, line, ())}
        assert {name for name, pit in KNOWN.items() if pit.layer != "effect"} <= injected
        assert HEALTHY in injected


def test_the_plan() -> None:
    assert [name for name, _ in inject.plan(KNOWN, "6.12", ["efi-off", "msi-off-cmdline"])] == [
        "msi-off-cmdline",
        "efi-off",
    ]
    assert [each.name for name, each in inject.plan(KNOWN, "4.12", ["pci-off"])] == ["without-acpi"]
    assert len(inject.plan(KNOWN, "6.12", ["healthy"])) == len(inject.CONTROLS)
    with pytest.raises(UserError, match=r"only=efi-of: not a pit that can be injected\n.*nearest: efi-off"):
        inject.plan(KNOWN, "6.12", ["efi-of"])
    with pytest.raises(UserError, match=r"known: healthy, "):
        inject.plan(KNOWN, "6.12", ["zzz"])


@pytest.mark.parametrize(
    ("each", "why"),
    [
        (Injection(), "changes nothing"),
        (Injection(cannot="why", cmdline=("a",)), "changes nothing"),
        (Injection(fault=("firmware=gone",)), "fault = 'firmware=gone': not known"),
        (Injection(cmdline=("a",), needs="a-card"), "needs = 'a-card': not known"),
        (Injection(launch={"cpu": 3}), r"launch: Expected `str`, got `int`"),
        (Injection(launch={"cpuss": 3}), r"launch: .*unknown field `cpuss`"),
    ],
)
def test_a_wrong_injection_is_named(each: Injection, why: str) -> None:
    with pytest.raises(UserError, match=rf"efi-off.toml: \[\[inject\]\].*{why}"):
        inject.verify({"efi-off": msgspec.structs.replace(KNOWN["efi-off"], inject=(each,))})


def cell(pit: str, result: str, line_why: str = "") -> Cell:
    return Cell(pit, "", "a title", "EFI <b>", "failed", "got", result, line_why, "it <was>", 1.5, "7.2")  # type: ignore[arg-type]


def test_the_page_has_a_cell_for_each_pit_and_series_with_its_console(tmp_path: Path) -> None:
    cells = (
        cell("efi-off", "right"),
        cell("msi-off", "wrong", "it names no pit"),
        cell("apic-off", "NOT RUN", "cannot"),
    )
    files = {"bzImage": manifests.File("a" * 64, 1)}
    first = Matrix(1, "4.12", "4.12.14", files, "key", False, cells)
    second = msgspec.structs.replace(first, series="6.12", version="6.12.94", whole=True, cells=cells[:1])
    text = inject.page(ROOT / "configs/templates/pits.html.j2", [first, second], ["default-4.12", "default-6.12"])
    for line in ("4.12", "6.12"):
        assert f'href="default-{line}/runs/efi-off/console.log"' in text
    assert "Linux 4.12.14, QEMU 7.2: 1 right, 1 wrong, 1 NOT RUN; not every pit was brought about" in text
    assert "Linux 6.12.94, QEMU 7.2: 1 right, 0 wrong, 0 NOT RUN<" in text
    assert text.count("no cell") == 2
    assert "NOT RUN: cannot" in text and "it names no pit" in text
    assert "EFI &lt;b&gt;" in text and "it &lt;was&gt;" in text


def test_a_matrix_that_cannot_be_read_does_not_count(tmp_path: Path) -> None:
    assert inject.load(tmp_path) is None
    (tmp_path / "matrix.json").write_text(json.dumps({"schema": 1}))
    assert inject.load(tmp_path) is None


@each_way
def test_a_damaged_matrix_does_not_count(damage: Damage, tmp_path: Path) -> None:
    kept = Matrix(1, "6.12", "6.12.94", {}, "key", True, ())
    (tmp_path / "matrix.json").write_bytes(msgspec.json.encode(kept))
    assert inject.load(tmp_path) == kept
    damage(tmp_path / "matrix.json")
    assert inject.load(tmp_path) is None
