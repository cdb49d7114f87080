# SPDX-License-Identifier: Apache-2.0
"""The firmware's own records: its phases, its modules, and which firmware can be measured."""

from pathlib import Path

import msgspec
import pytest

from minguest import settings
from minguest.bundle import edk2, manifests
from minguest.util.errors import UserError
from tests import ROOT, workshop
from tests.bench import boot, firmware, guests
from tests.bench.consoles import Pieces
from tests.bench.firmware import NOBODY
from tests.bench.guests import Boot
from tests.unit.bench.test_boot import REPORT

PEI, DXE, BDS, PCI = "a" * 32, "b" * 32, "c" * 32, "d" * 32
NAMES = {PEI: "PeiCore", DXE: "DxeCore", BDS: "BdsDxe", PCI: "PciBusDxe"}
MS = 1_000_000
# Type, milliseconds by the CPU's clock, module, text: as edk2 2025.02 writes them, but far fewer.
RECORDS = [
    (0x00, 10, PEI, "SEC"),
    (0x50, 10, PEI, "PEI"),
    (0x01, 20, PEI, ""),
    (0x02, 50, PEI, ""),
    (0x51, 60, DXE, "PEI"),
    (0x50, 60, DXE, "DXE"),
    (0x30, 70, DXE, "CoreDispatcher"),
    (0x03, 75, NOBODY, ""),
    (0x04, 95, PCI, ""),
    (0x01, 95, PCI, ""),
    (0x02, 105, PCI, ""),
    (0x31, 110, DXE, "CoreDispatcher"),
    (0x51, 120, BDS, "DXE"),
    (0x50, 120, BDS, "BDS"),
    (0x40, 130, BDS, "BeforeConsole"),
    (0x05, 140, PCI, ""),
    (0x06, 170, PCI, ""),
    (0x05, 170, NOBODY, ""),
    (0x06, 175, NOBODY, ""),
    (0x41, 180, BDS, "BeforeConsole"),
    (0x01, 200, NOBODY, ""),
    (0x41, 230, BDS, "the kernel's own end is none of the firmware's"),
]


def debug(late: float = 0.5) -> Pieces:
    """The port of a machine that ran from `late` seconds on, in pieces that end anywhere."""
    lines = [
        (late + ms / 1000, f"perf {kind:02x} {ms * MS:016x} {module} {text}\n".encode())
        for kind, ms, module, text in RECORDS
    ]
    halves = [(when, half) for when, line in lines for half in (line[:9], line[9:])]
    return [(0.1, b"noise\nperf zz\n"), *halves]


def test_phases_are_by_the_hosts_clock_and_begin_with_the_machine() -> None:
    found = firmware.phases(firmware.marks(debug()))
    assert found == pytest.approx({"QEMU": 0.5, "SEC, PEI": 0.06, "DXE": 0.06, "BDS": 0.08})


def test_phases_are_counted_by_the_cpus_clock() -> None:
    found = firmware.counted(firmware.marks(debug()))
    assert found == {"SEC, PEI": 60 * MS, "DXE": 60 * MS, "BDS": 80 * MS}


@pytest.mark.parametrize("without", ["DXE", "BDS", NOBODY + " \n"])
def test_a_firmware_that_did_not_say_all_says_nothing(without: str) -> None:
    pieces = [(1.0, b"".join(line for _, line in debug()).replace(without.encode(), b"x"))]
    marks = firmware.marks(pieces)
    assert firmware.bounds(marks) is None
    assert firmware.phases(marks) == firmware.counted(marks) == firmware.modules(marks, NAMES) == {}
    assert firmware.marks([]) == [] and firmware.bounds([]) is None


def test_a_modules_time_is_its_own() -> None:
    found = firmware.modules(firmware.marks(debug()), NAMES)
    assert {name: ticks / MS for name, ticks in found.items()} == {
        "SEC": 10, "PEI": 10 + 10, "PeiCore": 30, "DXE": 10 + 10, "CoreDispatcher": 5 + 5, "PciBusDxe": 20 + 10,
        "BDS": 10 + 20, "BeforeConsole": 10 + 5, "PciBusDxe, devices": 30,
        "another driver, devices": 5,
    }  # fmt: skip
    assert sum(found.values()) == 200 * MS
    # A module that the build does not name is its GUID.
    assert "PciBusDxe" not in firmware.modules(firmware.marks(debug()), {}) and PCI in firmware.modules(
        firmware.marks(debug()), {}
    )


def test_names_are_those_of_the_build() -> None:
    assert firmware.names("1BA0062E-C779-4582-8566-336AE8F78F09 ResetVector\nPLATFORM_NAME X\n") == {
        "1ba0062ec77945828566336ae8f78f09": "ResetVector"
    }
    assert firmware.xref(Path("/none")) == {}


def test_a_measured_boot_has_its_phases_modules_and_instructions(tmp_path: Path) -> None:
    """In boot's own figures: firmware ends where the kernel's image starts, and the stub begins there."""
    (tmp_path / edk2.NAMES).write_text(f"{PCI[:8]}-{PCI[8:12]}-{PCI[12:16]}-{PCI[16:20]}-{PCI[20:]} PciBusDxe\n")
    console = [(0.75, b"EFI stub: x\n"), (0.8, b"Linux version 6")]
    seen = Boot(console, [(2.0, REPORT[:-1]), (2.25, REPORT[-1:])], debug(), 3.0, 1.0, 0, "")
    values = {name: value.median for name, value in boot.phases(seen).items()}
    assert values["firmware"] == pytest.approx(0.7) and values["stub"] == pytest.approx(0.1)
    assert sum(values[name] for name in boot.FIRMWARE) == pytest.approx(values["firmware"])
    guest = guests.Guest("a+phases", tmp_path, tmp_path, tmp_path, 4, 64, like="a")
    assert boot.modules(seen, guest)["PciBusDxe"].median == pytest.approx(0.03)
    assert boot.counted_modules(seen, guest)["PciBusDxe, devices"].median == 30
    counted = {name: value.median for name, value in boot.instructions(seen).items()}
    # The report's TSC is 1500 M at 0.5 s of the kernel's clock.
    assert (counted["before the kernel"], counted["BDS'"], counted["stub's"]) == (1000, 80, 800)
    plain = Boot(console, seen.report, [], 3.0, 1.0, 0, "")
    assert boot.modules(plain, guest) == {} and "stub's" not in boot.instructions(plain)


def test_only_this_checkouts_firmware_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = guests.ours(workshop.build(tmp_path / "root").bundle)
    with pytest.raises(UserError, match=r"is not ovmf-minimal .* of this checkout, so its phases cannot be measured"):
        firmware.measured(guest, print)
    manifest = manifests.load(guest.bundle)
    own = {name: manifests.describe(path).sha256 for name, path in edk2.inputs(ROOT / "configs/firmware").items()}
    wanted = settings.sources(ROOT / "configs/sources.toml").firmware["ovmf-minimal"]
    built = manifests.Built(manifests.Part((), ""), (), own, {})

    def shows(platform: dict[str, str]) -> None:
        of = msgspec.structs.replace(built, platform=platform)
        firm = msgspec.structs.replace(manifest.firmware, version=wanted.version, built=of)
        monkeypatch.setattr(manifests, "load", lambda _: msgspec.structs.replace(manifest, firmware=firm))

    asked: list[bool] = []

    def build(*_: object, measured: bool, **__: object) -> Path:
        asked.append(measured)
        return tmp_path / "kept"

    monkeypatch.setattr(edk2, "build", build)
    shows(own)
    found = firmware.measured(guest, print)
    assert (found.name, found.like, found.firmware, asked) == (
        f"{guest.name}+phases", guest.name, tmp_path / "kept", [True],
    )  # fmt: skip
    shows({**own, "minguest.dsc": "another"})
    with pytest.raises(UserError, match="of this checkout"):
        firmware.measured(guest, print)
