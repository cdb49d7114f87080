# SPDX-License-Identifier: Apache-2.0
"""The bundle of a real kernel: whole, inspected, reproducible, and not made twice."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from minguest import paths, settings
from minguest.bundle import manifests
from minguest.kernel import binary, kconfig
from minguest.util import files
from minguest.util.errors import UserError
from tests import ROOT
from tests.integration.conftest import SERIES, Doit


def test_the_bundle_is_whole_and_small(built: paths.Layout) -> None:
    manifest = manifests.load(built.bundle)
    assert set(manifest.files) == {
        "bzImage", "initrd.img", "OVMF_CODE.fd", "OVMF_VARS.fd", "kernel.config", "System.map",
        "kernel-devel.tar.zst", "run-guest", "domain.xml",
    }  # fmt: skip
    assert manifest.kernel.series == SERIES
    assert manifest.config.problems == ()
    assert manifest.files["bzImage"].size + manifest.files["initrd.img"].size < 5e6
    assert built.initd.stat().st_size < 102e3
    assert binary.elf(built.initd).static
    config = kconfig.parse_config((built.bundle / "kernel.config").read_text())
    assert (config["EFI"], config["EFI_STUB"], config["SMP"], config["NR_CPUS"]) == ("y", "y", "y", "64")


@pytest.mark.parametrize("task", [("build",), ()])
def test_a_second_build_does_nothing(built: paths.Layout, doit: Doit, task: tuple[str, ...]) -> None:
    before = (built.bundle / "manifest.json").stat().st_mtime_ns
    result = doit(*task, f"kernel={SERIES}")
    assert result.returncode == 0, result.stdout
    assert "nothing to do" in result.stdout
    assert (built.bundle / "manifest.json").stat().st_mtime_ns == before


def test_a_changed_bundle_is_refused(built: paths.Layout, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(built.bundle, copy)
    with (copy / "bzImage").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    with pytest.raises(UserError, match="bzImage: is not the file that the manifest names"):
        manifests.load(copy)


@pytest.mark.parametrize("name", ["bundle/bzImage", "bundle/run-guest", "kernel/System.map", "initd", "firmware"])
def test_a_damaged_product_is_made_again(built: paths.Layout, doit: Doit, name: str) -> None:
    """One byte differs, and no time shows it."""
    manifest = (built.bundle / "manifest.json").read_bytes()
    (code,) = built.out.glob("firmware/*/OVMF_CODE.fd")
    path = {"initd": built.initd, "firmware": code}.get(name, built.work / name)
    times, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x20
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    result = doit("build", f"kernel={SERIES}")
    assert result.returncode == 0, result.stdout
    assert path.read_bytes() != content
    assert (built.bundle / "manifest.json").read_bytes() == manifest
    manifests.load(built.bundle)


def test_a_file_that_is_gone_is_made_again(built: paths.Layout, doit: Doit) -> None:
    (built.kernel / "System.map").unlink()
    result = doit("build", f"kernel={SERIES}")
    assert result.returncode == 0, result.stdout
    assert (built.kernel / "System.map").read_bytes() == (built.bundle / "System.map").read_bytes()


def test_a_folder_in_which_make_cannot_build_is_named_before_anything_is_unpacked(doit: Doit, tmp_path: Path) -> None:
    store = tmp_path / "a store: mine"
    result = doit("build", f"kernel={SERIES}", env={"MINGUEST_STORE": str(store)})
    assert result.returncode != 0
    assert "make cannot build in a folder with ' ' in its path" in result.stdout and "MINGUEST_STORE=" in result.stdout
    assert "Traceback" not in result.stdout and not store.exists()


def clone(target: Path) -> Path:
    """What git tracks or would track, without out/ and .venv/."""
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
    )
    for name in filter(None, listing.stdout.decode().split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    return target


def test_another_folder_and_a_killed_build_give_the_same_bytes(built: paths.Layout, doit: Doit, tmp_path: Path) -> None:
    other = clone(tmp_path / "another-place-with-a-longer-name")
    log = other / f"out/default-{SERIES}/log/kernel.log"
    # Tools whose version Kconfig would query, and that the first build's machine may not have.
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, said in {
        "rustc": "rustc 1.95.0 (59807616e 2026-04-14)",
        "pahole": "v1.24",
        "bindgen": "bindgen 0.70",
    }.items():
        (tools / name).write_text(f"#!/bin/sh\necho '{said}'\n")
        (tools / name).chmod(0o755)
    # A store of its own: no object of a kernel is reused. The firmware is: tests/slow/test_ovmf.py builds that twice.
    store = paths.Store(tmp_path / "store")
    store.folder.mkdir()
    store.firmware.symlink_to(settings.store_folder() / store.firmware.name)
    surroundings = {"PATH": f"{tools}:{os.environ['PATH']}", "MINGUEST_STORE": str(store.folder)}
    argv = ["doit", "build", f"kernel={SERIES}"]
    with subprocess.Popen(argv, cwd=other, env={**os.environ, **surroundings}, start_new_session=True) as process:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and process.poll() is None:
            if log.exists() and log.read_text(errors="replace").count("\n") > 200:
                break
            time.sleep(0.2)
        assert process.poll() is None, "it ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
    # After SIGKILL doit could not end make, whose group is its own; wait for it as a user's next run might not.
    result = doit("build", f"kernel={SERIES}", cwd=other, env=surroundings)
    assert result.returncode == 0, result.stdout
    for name in ("bzImage", "initrd.img", "kernel.config", "kernel-devel.tar.zst"):
        assert files.sha256(other / f"out/default-{SERIES}/bundle" / name) == files.sha256(built.bundle / name), name
    shutil.rmtree(other)
    shutil.rmtree(store.folder)
