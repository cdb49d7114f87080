# SPDX-License-Identifier: Apache-2.0
"""A disk of drivers: the modules and the firmware of a guest whose initrd has none. An ext4 here, which every guest can
mount; a bundle's own disk is a squashfs."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from minguest.model import Drivers, Launch
from minguest.util.run import require
from minguest.vm import disks
from tests import guests
from tests.integration.test_drivers import CARD, Booted, Modules, all_modules, modinfo

__all__ = ["all_modules"]

FIRMWARE = "minguest_firmware"
Boot = Callable[..., Booted]


def make_disk(modules: Modules, names: tuple[str, ...], image: Path, release: str = "") -> None:
    """A disk with these modules and the card's firmware, as a normal user can make it."""
    tree = image.with_name("tree")
    place = tree / "lib/modules" / (release or modules.release)
    place.mkdir(parents=True)
    for name in names:
        (place / f"{name}.ko").write_bytes(modules.built[name])
    needed = {name: [f"{each}.ko" for each in modinfo(modules.built[name], "depends")[0].split(",") if each]
              for name in names}  # fmt: skip
    (place / "modules.dep").write_text("".join(f"{name}.ko: {' '.join(needed[name])}\n" for name in names))
    (tree / "lib/firmware/minguest").mkdir(parents=True)
    (tree / "lib/firmware/minguest/card.bin").write_bytes(b"f" * 1000)
    image.parent.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run([require("mke2fs"), "-q", "-t", "ext4", "-d", str(tree), str(image)], check=True)


@pytest.fixture
def boot(series: str, bundle: Path, all_modules: Callable[[str], Modules], tmp_path: Path) -> Boot:
    """Boots a guest with these modules on its disk of drivers, and an initrd without any."""
    modules = all_modules(series)

    def boot(*names: str, load: tuple[str, ...] = (), driver: str = "", release: str = "", serial: str = "") -> Booted:
        wanted = Launch(driver=driver, drivers=Drivers(("any",), load=load), timeout=90)
        make_disk(modules, names, tmp_path / disks.DRIVERS.file, release)
        image = guests.make_initrd(tmp_path / "initrd.img", initd=modules.initd)
        spec, argv = guests.command(bundle, wanted, image, tmp_path, series)
        if serial:
            argv = [each.replace(f"serial={disks.DRIVERS.serial}", f"serial={serial}") for each in argv]
        return Booted(spec, argv, tmp_path)

    return boot


def test_modules_and_firmware_come_from_the_disk(boot: Boot) -> None:
    found = boot(FIRMWARE, load=("minguest-firmware",), driver=FIRMWARE)
    assert found.verdict.result == "pass", found.verdict.reason
    module = found.modules[FIRMWARE]
    assert module.file is not None and module.file.startswith("/run/drivers/lib/modules/")
    assert any("1000 bytes of firmware" in line for line in module.messages)
    assert (found.row("drivers").guest, found.row("driver of gpu0").guest) == ("loaded", FIRMWARE)
    assert "drivers: /dev/vda (ext4, read-only) after " in found.console


def test_a_disk_that_is_not_there_is_said(boot: Boot) -> None:
    found = boot(FIRMWARE, load=(FIRMWARE,), serial="other")
    assert (found.verdict.result, found.verdict.ending) == ("failed", "power-off")
    assert "no drivers: SERIAL=drivers: not found in 10 s" in found.console
    assert not found.row("drivers").ok and "module minguest_firmware: absent" in found.row("drivers").why


def test_modules_for_another_kernel_are_not_looked_at(boot: Boot) -> None:
    found = boot(CARD, load=(CARD,), release="1.2.3")
    assert found.verdict.result == "failed"
    assert found.modules[CARD].result == "absent" and found.pits == ("module-missing",)
