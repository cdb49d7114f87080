# SPDX-License-Identifier: Apache-2.0
"""Passthroughs of emulated cards for real: VFIO, an IOMMU, KVM, in an emulated host."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from minguest import paths
from minguest.boottest import steps
from tests import ROOT
from tests.integration.conftest import SERIES, Doit

CARD, NAME = "minguest_card", "with-driver"
# BAR 2 of QEMU's secondary-vga begins with the EDID of its monitor (QEMU, docs/specs/standard-vga.rst).
GUEST = f"""
name = "{NAME}"
kernel = ["{SERIES}"]
overlays = ["base"]
modules = ["{CARD}"]

[launch]
driver = "{CARD}"
cmdline = ["{CARD}.bar=2"]
"""


def there(folder: Path) -> list[str]:
    """The programs that run in `folder`, or in one of that name that is gone; not of others' rehearsals."""
    found = []
    for cwd in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if str(cwd.readlink()).startswith(str(folder)):
                found.append(cwd.parent.name)
    return found


@pytest.fixture
def not_kept(built: paths.Layout) -> Iterator[None]:
    """The record of a rehearsal that is no pass goes: a release uses the last record of its bundle."""
    before = built.rehearsed.read_bytes() if built.rehearsed.exists() else b""
    yield
    if before:
        built.rehearsed.write_bytes(before)
    else:
        built.rehearsed.unlink(missing_ok=True)


@pytest.mark.usefixtures("not_kept")
def test_a_rehearsal_that_takes_too_long_is_lost_and_leaves_nothing(built: paths.Layout, doit: Doit) -> None:
    result = doit("rehearse", "--timeout", "4", f"kernel={SERIES}")
    assert result.returncode != 0
    # The later tries have twice the time.
    assert result.stdout.count("the host was not done in its time") == 3
    assert result.stdout.count("trying once more") == 2
    assert "FAIL, lost" in result.stdout and "8 s are over" in result.stdout
    assert "Traceback" not in result.stdout
    record = json.loads(built.rehearsed.read_bytes())
    assert record["result"] == "lost" and len(record["before"]) == 2
    assert there(built.rehearse) == []


@pytest.mark.parametrize(
    ("options", "cards"),
    [
        ((), ["1234:1111"]),
        (("--gpu", "secondary-vga,bochs-display"), ["1234:1111", "1234:1111"]),
        # Each page of a BAR is mapped for the card's own DMA: see docs/passthrough.md for larger ones.
        (("--gpu", "bar:1G"), ["1b36:0005"]),
    ],
)
def test_cards_go_to_the_guest_and_back(
    built: paths.Layout, doit: Doit, options: tuple[str, ...], cards: list[str]
) -> None:
    result = doit("rehearse", *options, f"kernel={SERIES}")
    assert result.returncode == 0, result.stdout
    assert "PASS: the cards went to the guest and back" in result.stdout
    record = json.loads(built.rehearsed.read_bytes())
    assert record["result"] == "pass"
    assert (record["outcome"]["spec"]["accel"], record["outcome"]["verdict"]["result"]) == ("kvm", "pass")
    rows = {check["name"]: check for check in record["outcome"]["verdict"]["checks"]}
    for number, ids in enumerate(cards):
        row = rows[f"GPU gpu{number}"]
        assert row["ok"] and row["requested"] == f"vfio-pci 0000:{number + 1:02x}:00.0" and row["guest"].startswith(ids)
    # The guest ran under KVM, and its CPUID did not show it.
    assert ",kvm=off" in record["outcome"]["argv"][record["outcome"]["argv"].index("-cpu") + 1]
    # Its own host recorded what it did.
    share = built.rehearse / "share"
    assert "vfio-pci vfio-pci" in (share / "during").read_text()
    assert (share / "before").read_text() == (share / "after").read_text()


@pytest.fixture(scope="module")
def with_driver(built: paths.Layout, doit: Doit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A guest with the driver for the emulated card, which reads the card's EDID."""
    guest = tmp_path_factory.mktemp("guest") / "guest.toml"
    guest.write_text(GUEST)
    options = [f"guest={guest}", f"kernel={SERIES}"]
    result = doit("modules", *options, f"src={ROOT / 'tests/modules' / CARD}")
    assert result.returncode == 0, result.stdout
    yield guest
    at = paths.Layout(ROOT, NAME, SERIES)
    shutil.rmtree(at.work)
    at.choice.unlink()


def test_a_card_that_was_passed_through_has_its_driver(with_driver: Path, doit: Doit) -> None:
    result = doit("rehearse", f"guest={with_driver}", f"kernel={SERIES}")
    assert result.returncode == 0, result.stdout
    at = paths.Layout(ROOT, NAME, SERIES)
    record = json.loads(at.rehearsed.read_bytes())
    assert record["result"] == "pass"
    rows = {check["name"]: check for check in record["checks"]}
    assert rows["driver of gpu0"] == {"name": "driver of gpu0", "found": CARD, "why": ""}
    checks = {check["name"]: check for check in record["outcome"]["verdict"]["checks"]}
    assert checks["GPU gpu0"]["requested"] == "vfio-pci 0000:01:00.0" and checks["driver of gpu0"]["ok"]
    # What it read is the card's own: VESA's E-EDID begins with 00 ff ff ff (3.3).
    seen = steps.left(at.rehearse / "share")[1]
    assert seen is not None
    (module,) = [each for each in seen.modules if each.name == CARD]
    assert [line.partition(": ")[2] for line in module.messages if "BAR" in line] == [
        "BAR 2 has 0x1000 bytes and begins with ffffff00"
    ]


@pytest.mark.usefixtures("not_kept")
def test_a_card_with_another_driver_or_none_is_no_pass(with_driver: Path, built: paths.Layout, doit: Doit) -> None:
    result = doit("rehearse", f"guest={with_driver}", f"kernel={SERIES}", "--driver", "other")
    assert result.returncode != 0
    why = f"{CARD} is bound; no module other was requested, by initd.modules= or by a device's MODALIAS"
    assert f"driver of gpu0: {why}" in result.stdout
    # The default guest has no module for it.
    result = doit("rehearse", f"kernel={SERIES}", "--driver", CARD)
    assert result.returncode != 0
    why = f"no driver is bound; no module {CARD} was requested, by initd.modules= or by a device's MODALIAS"
    assert f"driver of gpu0: {why}" in result.stdout
    # The host has its card again all the same.
    record = json.loads(built.rehearsed.read_bytes())
    assert record["result"] == "failed"
    assert {check["name"] for check in record["checks"] if check["why"]} == {"boot-test", "driver of gpu0"}
    assert "Traceback" not in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gpu", "0000:01:00.0"), "a rehearsal uses emulated cards"),
        (("--gpu", "secondary-vgaa"), "did you mean secondary-vga"),
        (("--memory", "900T"), "are all that this host has"),
        (("--timeout", "soon"), "is not a whole number"),
    ],
)
def test_wrong_options_are_named(built: paths.Layout, doit: Doit, options: tuple[str, ...], message: str) -> None:
    result = doit("rehearse", *options, f"kernel={SERIES}")
    assert result.returncode != 0
    assert message in result.stdout
    assert "Traceback" not in result.stdout
