# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's driver, from Debian's source package to its own word that this guest has no card of NVIDIA's.

Fetches 75 MB for each version, and builds a kernel and, for each version, modules: half an hour on two cores. The
guest has no NVIDIA card: what needs one is NOT RUN.
"""

import subprocess
from pathlib import Path

import msgspec
import pytest

from minguest import paths
from minguest.bundle import manifests
from minguest.util.run import require
from minguest.vm import report
from tests import ROOT
from tests.integration.conftest import SERIES, run_doit

# Version, package of sources.toml, overlay.
VERSIONS = [
    ("550.163.01", "nvidia-open-kernel-source", "nvidia-gsp-550"),
    ("535.261.03", "nvidia-open-kernel-source-535", "nvidia-gsp-535"),
]
NO_CARD = "NVRM: No NVIDIA GPU found."


class Guest:
    """The project's own guest `nvidia`, or one like it with the other version."""

    def __init__(self, version: str, package: str, overlay: str, folder: Path) -> None:
        own = (ROOT / "configs/guests/nvidia.toml").read_text()
        assert '"nvidia-gsp-550"' in own and 'name = "nvidia"\n' in own
        self.name = f"it-nvidia-{version[:3]}"
        text = own.replace("nvidia-gsp-550", overlay).replace('name = "nvidia"\n', f'name = "{self.name}"\n')
        self.file = folder / f"{self.name}.toml"
        self.file.write_text(text)
        self.version, self.at = version, paths.Layout(ROOT, self.name, SERIES)
        done = self.doit("modules", f"src={package}", "name=nvidia")
        assert done.returncode == 0, done.stdout
        done = self.doit("build")
        assert done.returncode == 0, done.stdout

    def doit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_doit(*arguments, f"guest={self.file}", f"kernel={SERIES}")


@pytest.fixture(scope="module", params=VERSIONS, ids=[version for version, _, _ in VERSIONS])
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    version, package, overlay = request.param
    return Guest(version, package, overlay, tmp_path_factory.mktemp("nvidia"))


def test_the_disk_has_both_modules_and_their_firmware(guest: Guest) -> None:
    manifest = manifests.load(guest.at.bundle)
    assert manifest.drivers is not None
    (built,) = manifest.drivers.modules
    assert {each.name: each.version for each in built.modules} == {
        "nvidia": guest.version, "nvidia_uvm": guest.version,
    }  # fmt: skip
    assert {each.name: each.depends for each in built.modules} == {"nvidia": (), "nvidia_uvm": ("nvidia",)}
    assert built.kernel == manifest.kernel.devel
    image = guest.at.bundle / "drivers.img"
    listed = subprocess.run([require("unsquashfs"), "-l", image], capture_output=True, text=True, check=True).stdout
    nvidia = next(each for each in built.modules if each.name == "nvidia")
    # Every file that the module itself says it may ask for.
    assert len(nvidia.firmware) == 2
    for name in nvidia.firmware:
        assert f"squashfs-root/lib/firmware/{name}\n" in listed
    assert "squashfs-root/usr/share/doc/firmware-nvidia-gsp/copyright\n" in listed


def test_the_driver_runs_and_says_that_there_is_no_card(guest: Guest) -> None:
    done = guest.doit("boot-test", "--accel", "tcg")
    assert done.returncode == 0, done.stdout
    seen = msgspec.json.decode((guest.at.boot_test / "report.json").read_bytes(), type=report.Report)
    modules = {module.name: module for module in seen.modules}
    nvidia, uvm = modules["nvidia"], modules["nvidia_uvm"]
    assert (nvidia.result, nvidia.errno) == ("failed", "ENODEV")
    assert NO_CARD in nvidia.messages and not any("Unknown symbol" in line for line in nvidia.messages)
    assert nvidia.file is not None and nvidia.file.startswith("/run/drivers/lib/modules/")
    assert uvm.messages == ("initd: not tried, because it needs nvidia",)


def test_a_guest_that_must_have_the_driver_fails_without_a_card(guest: Guest) -> None:
    done = guest.doit("boot-test", "--accel", "tcg", "--driver", "nvidia")
    assert done.returncode != 0
    assert "driver of gpu0" in done.stdout and "module nvidia: failed, ENODEV" in done.stdout


def test_a_release_must_name_the_firmware(guest: Guest) -> None:
    done = guest.doit("release", "version=1.0", "unsigned=yes")
    assert done.returncode != 0 and not guest.at.release.exists()
    assert "LicenseRef-NVIDIA-driver" in done.stdout and "redistribute=firmware-nvidia-gsp" in done.stdout
