# SPDX-License-Identifier: Apache-2.0
"""Passthroughs of emulated cards for real: VFIO, an IOMMU, KVM, in an emulated host."""

import contextlib
import json
from pathlib import Path

import pytest

from minguest import paths
from tests.integration.conftest import SERIES, Doit


def there(folder: Path) -> list[str]:
    """The programs that run in `folder`, or in one of that name that is gone; not of others' rehearsals."""
    found = []
    for cwd in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if str(cwd.readlink()).startswith(str(folder)):
                found.append(cwd.parent.name)
    return found


# This test comes first: its record is not a pass, and a release uses the last one.
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
