# SPDX-License-Identifier: Apache-2.0
"""docs/kernels.md: each claim is read a second time, and a difference makes no page."""

from pathlib import Path

import pytest

from minguest.util.errors import UserError
from tests import kernels_page
from tests.unit.kernel.test_image import HIDDEN

CONFIG = f"""\
#
# Linux/x86 6.6.0 Kernel Configuration
#
CONFIG_64BIT=y
CONFIG_X86_64=y
CONFIG_LOCALVERSION=""
CONFIG_NR_CPUS=1
# CONFIG_EFI is not set
CONFIG_EXT4_FS=y
CONFIG_BLK_DEV_INITRD=y
CONFIG_RD_GZIP=y
CONFIG_PCI=y
CONFIG_MODULES=y
CONFIG_MODULE_SIG_FORCE=y
{HIDDEN}"""
KERNEL = kernels_page.Kernel(
    "k.config", "A project", "v", "6.6.0", "https://example.org/x", "p", "a" * 40, "2026-01-02"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "k.config").write_text(CONFIG)
    return tmp_path


def test_a_row_has_the_roots_and_the_source(folder: Path) -> None:
    made = kernels_page.row(KERNEL, kernels_page.examined(folder, KERNEL))
    assert "| A project: v | 6.6.0 |" in made and "[aaaaaaa, 2026-01-02](https://example.org/x)" in made
    assert "[acpi-off](pits.md#acpi-off)" in made
    assert "efi-off" not in made  # it follows from acpi-off
    assert "`MODULE_SIG_FORCE`" in made


def test_what_a_kernel_lacks_makes_it_whole(folder: Path) -> None:
    text = kernels_page.repair(kernels_page.examined(folder, KERNEL))
    assert "CONFIG_EFI=y" in text and "# CONFIG_MODULE_SIG_FORCE is not set" in text
    (folder / "k.config").write_text(CONFIG + text + "\n")
    assert not kernels_page.examined(folder, KERNEL).wrong


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("# CONFIG_EFI is not set", "CONFIG_EFI=y"),
        ("CONFIG_EXT4_FS=y", ""),
        ("CONFIG_BLK_DEV_INITRD=y", ""),
        ("CONFIG_NR_CPUS=1", "CONFIG_NR_CPUS=8"),
    ],
)
def test_a_claim_that_a_second_reading_does_not_bear_out_is_refused(folder: Path, before: str, after: str) -> None:
    report = kernels_page.examined(folder, KERNEL)
    with pytest.raises(UserError, match=r"k\.config: .*(a second reading|not)"):
        kernels_page.check(report, CONFIG.replace(before, after))
