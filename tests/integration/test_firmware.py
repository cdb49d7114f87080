# SPDX-License-Identifier: Apache-2.0
"""The firmware that is built here, and Debian's, in real guests."""

import json
import shutil
import subprocess
from pathlib import Path

from minguest import paths
from minguest.bundle import manifests
from tests import ROOT
from tests.integration.conftest import SERIES, Doit


def test_a_guest_passes_with_all_cpus_and_the_card(built: paths.Layout, doit: Doit) -> None:
    result = doit("boot-test", "--cpus", "16", "--gpu", "bar:64G,secondary-vga", "--accel", "tcg", f"kernel={SERIES}")
    assert result.returncode == 0, result.stdout
    found = json.loads((built.boot_test / "verdict.json").read_bytes())
    checks = {check["name"]: check for check in found["verdict"]["checks"]}
    assert (checks["CPUs"]["guest"], checks["CPUs"]["ok"]) == ("16", True)
    assert "minguest2" in checks["firmware"]["guest"]
    assert all(check["ok"] for check in checks.values())


def test_debians_binary_is_a_choice(built: paths.Layout, doit: Doit, tmp_path: Path) -> None:
    text = (ROOT / "configs/guest.toml").read_text(encoding="utf-8")
    name = "debians-ovmf"
    for old, new in (('name = "default"', f'name = "{name}"'), ('firmware = "ovmf-minimal" ', 'firmware = "ovmf" ')):
        assert text.count(old) == 1
        text = text.replace(old, new)
    file = tmp_path / f"{name}.toml"
    file.write_text(text, encoding="utf-8")
    at = paths.Layout(ROOT, name, SERIES)
    result = doit("build", "boot-test", f"guest={file}", f"kernel={SERIES}")
    assert result.returncode == 0, result.stdout
    found = json.loads((at.boot_test / "verdict.json").read_bytes())
    (row,) = [check for check in found["verdict"]["checks"] if check["name"] == "firmware"]
    assert row["ok"] and row["guest"].endswith("2025.02-8+deb13u1")
    assert manifests.load(at.bundle).firmware.built is None
    shutil.rmtree(at.work)
    at.choice.unlink()


def test_the_manifest_says_what_it_was_built_from(built: paths.Layout) -> None:
    firmware = manifests.load(built.bundle).firmware
    assert firmware.built is not None
    assert {"nasm", "gcc"} <= set(firmware.built.tools)
    named = [patch.file for patch in firmware.built.patches]
    own = sorted(path.name for path in (ROOT / "configs/firmware/patches").glob("*.patch"))
    assert named[-len(own) :] == [f"patches/{name}" for name in own]
    assert named[0].startswith("debian/")


def test_it_says_that_a_kernel_cannot_be_started_and_ends(built: paths.Layout, tmp_path: Path) -> None:
    bundle = built.bundle
    shutil.copyfile(bundle / "OVMF_VARS.fd", tmp_path / "vars.fd")
    (tmp_path / "kernel").write_bytes(b"no kernel " * 30000)
    argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35,accel=tcg",
            "-drive", f"if=pflash,format=raw,readonly=on,file={bundle}/OVMF_CODE.fd",
            "-drive", f"if=pflash,format=raw,file={tmp_path}/vars.fd",
            "-kernel", str(tmp_path / "kernel"), "-serial", "stdio"]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, check=False, timeout=120)
    assert b'BdsDxe: failed to load Boot0000 "UEFI Non-Block Boot Device"' in done.stdout
    assert b"ovmf-minimal: the kernel could not be started" in done.stdout
