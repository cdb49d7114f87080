# SPDX-License-Identifier: Apache-2.0
"""A store's records: one for each result of the same inputs; and which cells changed theirs."""

import json
from pathlib import Path

import msgspec
import pytest

from minguest import cli
from minguest.boottest import runner
from minguest.model import Launch
from minguest.scale import history, records
from minguest.scale.orders import Made, Order, Setting
from minguest.scale.store import Folder, Store
from minguest.vm import kvm

MADE = Made("gcc 12.2.0", "7.2.22 (Debian)")
FACTS = {
    "guest": "default",
    "series": "6.12",
    "kernel": "6.12.94",
    "OVMF": "2025.02",
    "minguest": "0.1.0",
    "bundle": "b",
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Folder(tmp_path / "store"))


def keep(
    store: Store,
    result: str,
    made: Made = MADE,
    cell: str = "efi-off",
    worker: str = "one",
    accel: str = "tcg",
    **facts: str,
) -> list[str]:
    setting = Setting("default-6.12", Launch(), {}, facts={**FACTS, **facts})
    order = Order(cell, "pits", setting.key, msgspec.Raw(b"{}"))
    return records.keep(store, order, setting, made, accel, result, worker, 1.0, {"console.log": "0" * 64})


def test_the_same_cell_twice_is_one_record(store: Store) -> None:
    assert keep(store, "right") == keep(store, "right", worker="two") == []
    (name,) = store.records("cells/")
    record = store.record(name, records.Record)
    assert record is not None and (record.worker, record.facts["QEMU"]) == ("one", "7.2.22 (Debian)")


def test_what_was_measured_beside_a_cell_is_not_in_its_key() -> None:
    one = Order("EPOLL", "certify", "s", msgspec.Raw(b"{}"), True, msgspec.Raw(b"1"))
    measured = msgspec.structs.replace(one, beside=msgspec.Raw(b"2"))
    other = msgspec.structs.replace(one, what=msgspec.Raw(b"[]"))
    assert records.key(one, MADE, "tcg") == records.key(measured, MADE, "tcg") != records.key(other, MADE, "tcg")


def test_another_result_of_the_same_inputs_names_both_workers(store: Store) -> None:
    keep(store, "right")
    (line,) = keep(store, "wrong", worker="two")
    assert line.startswith("efi-off: two has wrong, but one had right for the same inputs")
    assert len(store.records("cells/")) == 2
    # Other tools are other inputs, and so is another accelerator.
    assert keep(store, "wrong", Made("gcc 13", MADE.qemu)) == []
    assert keep(store, "wrong", accel="kvm") == []
    (change,) = history.read(store).changes
    assert [step.differs for step in change.steps] == [{"accelerator": ("kvm", "tcg")}, {}]
    assert "pits efi-off: right on one → wrong on two, with the same inputs" in history.table(history.read(store))


def test_what_changed_is_listed_with_what_differs(store: Store) -> None:
    for qemu, result in (("10.0.2", "wrong"), ("7.2.22", "right"), ("9.1", "right")):
        keep(store, result, Made(MADE.compiler, qemu), OVMF="2025.05" if qemu == "10.0.2" else "2025.02")
        keep(store, "right", Made(MADE.compiler, qemu), "acpi-off")
    found = history.read(store)
    assert (found.cells, found.records, len(found.changes), found.poisoned) == (2, 6, 1, ())
    assert history.table(found) == (
        "default pits efi-off: right with OVMF 2025.02 and QEMU 9.1 → wrong with OVMF 2025.05 and QEMU 10.0.2\n"
        "cells: 2, records: 6; cells that changed their result: 1"
    )


def test_versions_are_in_the_order_of_their_numbers(store: Store) -> None:
    for qemu, result in (("10.0.2", "wrong"), ("7.2.22", "right"), ("9.1", "right")):
        keep(store, result, Made(MADE.compiler, qemu))
    line = history.table(history.read(store)).splitlines()[0]
    assert line == "default pits efi-off: right with QEMU 9.1 → wrong with QEMU 10.0.2"


def test_two_series_are_compared(store: Store) -> None:
    keep(store, "right", series="6.12", kernel="6.12.94")
    keep(store, "wrong", series="4.12", kernel="4.12.14")
    line = history.table(history.read(store)).splitlines()[0]
    assert (
        line
        == "default pits efi-off: wrong with series 4.12 and kernel 4.12.14 → right with series 6.12 and kernel 6.12.94"
    )


def test_the_command(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(tmp_path / "store")
    assert cli.main(["history", place]) == 1
    assert f"{place}: no such folder" in capsys.readouterr().err
    Path(place).mkdir()
    assert cli.main(["history", place]) == 1
    assert f"{place}: no record of a cell" in capsys.readouterr().err
    keep(store, "right")
    keep(store, "wrong", Made(MADE.compiler, "8.0"))
    assert cli.main(["history", place]) == 0
    assert "right with QEMU 7.2.22 (Debian) → wrong with QEMU 8.0\n" in capsys.readouterr().out
    (path, _) = sorted(Path(place, "cells").rglob("*.json"))
    path.write_text(path.read_text().replace('"seconds": 1.0', '"seconds": 2.0'))
    assert cli.main(["history", place, "--json"]) == 1
    printed = capsys.readouterr()
    said = json.loads(printed.out)
    name = path.relative_to(place).as_posix()
    assert f"{name} is poisoned" in said["error"] and f"{name} is poisoned" in printed.err
    assert (said["cells"], said["records"], said["changes"]) == (1, 1, [])


def test_auto_is_what_it_came_to_in_the_last_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, device = tmp_path / "kvm.json", tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(kvm, "DEVICE", device)
    assert runner.kept_accelerator(place) == "tcg"
    place.write_text('["key", true, "why"]')
    assert runner.kept_accelerator(place) == "kvm"
    place.write_text('["key", false, "why"]')
    assert runner.kept_accelerator(place) == "tcg"
    place.write_text('["key", true, "why"]')
    device.unlink()
    assert runner.kept_accelerator(place) == "tcg"
