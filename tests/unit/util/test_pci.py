# SPDX-License-Identifier: Apache-2.0
"""PCI addresses, as people write them and sysfs does."""

from pathlib import Path

import pytest

from minguest.util import pci
from minguest.util.errors import UserError


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("01:00.0", "0000:01:00.0"), ("0000:AB:1F.7", "0000:ab:1f.7"), (" 41:00.1 ", "0000:41:00.1"),
        ("00000001:02:03.4", "0001:02:03.4"), ("10000:e1:00.0", "10000:e1:00.0"),
    ],
)  # fmt: skip
def test_an_address_is_written_in_full(text: str, full: str) -> None:
    assert pci.is_address(text) and pci.address(text) == full
    assert ":".join(pci.parts(full).values()) == full.replace(".", ":")


@pytest.mark.parametrize("text", ["", "1:00.0", "01:20.0", "01:00.8", "000:01:00.0", "01:00", "0000:01:00.0 x"])
def test_what_is_no_address_is_refused(text: str) -> None:
    assert not pci.is_address(text)
    with pytest.raises(UserError, match=r"--gpu .*: not a PCI address\n.*lspci -D"):
        pci.address(text, "--gpu")


def test_a_function_has_its_driver(tmp_path: Path) -> None:
    place = pci.function(tmp_path, "0000:01:00.0")
    place.mkdir(parents=True)
    assert pci.driver(place) is None
    (place / "driver").symlink_to(tmp_path / "bus/pci/drivers/vfio-pci")
    assert pci.driver(place) == "vfio-pci"
