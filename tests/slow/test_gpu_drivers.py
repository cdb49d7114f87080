# SPDX-License-Identifier: Apache-2.0
"""Real GPU drivers on a disk of drivers: one of the kernel's own source, whose card QEMU has (bochs-drm), and NVIDIA's
open modules, whose card it has not. One kernel for both: its build is most of the time, eight minutes.
"""

import msgspec
import pytest

from minguest import paths
from minguest.bundle import manifests
from minguest.vm import report
from tests import ROOT
from tests.integration.conftest import SERIES, run_doit
from tests.integration.test_cards import checks

GUEST = f"""
name = "it-gpu-drivers"
kernel = ["{SERIES}"]
fragments = ["*", "configs/kernel/root/squashfs.config", "configs/kernel/drivers/nvidia.config",
             "configs/kernel/drivers/drm.config"]
overlays = ["base"]

[options]
DRM_BOCHS = "m"

[drivers]
modules = ["in-tree", "nvidia"]
overlays = ["nvidia-gsp-550"]
load = ["nvidia-uvm"]

[launch]
cpus = 2
memory = "1G"
driver = "bochs-drm"
"""
NO_CARD = "NVRM: No NVIDIA GPU found."


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> paths.Layout:
    """The bundle of GUEST, booted."""
    file = tmp_path_factory.mktemp("gpu-drivers") / "guest.toml"
    file.write_text(GUEST)
    for arguments in (("modules", "src=nvidia-open-kernel-source", "name=nvidia"), ("boot-test", "--accel", "tcg")):
        done = run_doit(*arguments, f"guest={file}", f"kernel={SERIES}")
        assert done.returncode == 0, done.stdout
    return paths.Layout(ROOT, "it-gpu-drivers", SERIES)


@pytest.fixture(scope="module")
def seen(at: paths.Layout) -> report.Report:
    return msgspec.json.decode((at.boot_test / "report.json").read_bytes(), type=report.Report)


def test_a_driver_of_the_kernels_own_source_has_its_card(at: paths.Layout, seen: report.Report) -> None:
    modules = {module.name: module for module in seen.modules}
    bochs = modules["bochs"]
    assert bochs.result == "loaded" and bochs.file is not None
    assert bochs.file.startswith("/run/drivers/lib/modules/")
    # Nothing names it: the card's MODALIAS does. What it needs came before it.
    assert {"drm", "drm_kms_helper", "drm_vram_helper"} <= {
        name for name in modules if modules[name].result == "loaded"
    }
    manifest = manifests.load(at.bundle)
    assert manifest.drivers is not None
    own = {each.name: each for each in manifest.drivers.modules}["in-tree"]
    assert own.kernel == manifest.kernel.devel
    assert {each.name: each.depends for each in own.modules}["bochs"] != ()


def test_nvidias_driver_runs_and_says_that_there_is_no_card(seen: report.Report) -> None:
    modules = {module.name: module for module in seen.modules}
    nvidia = modules["nvidia"]
    assert (nvidia.result, nvidia.errno) == ("failed", "ENODEV")
    assert NO_CARD in nvidia.messages and not any("Unknown symbol" in line for line in nvidia.messages)
    assert modules["nvidia_uvm"].messages == ("initd: not tried, because it needs nvidia",)


def test_the_verdict_has_both(at: paths.Layout) -> None:
    rows = checks(at.boot_test)
    assert rows["driver of gpu0"]["ok"] and rows["driver of gpu0"]["guest"] == "bochs-drm"
    assert rows["drivers"]["ok"] and rows["drivers"]["guest"] == "no card, ENODEV"
