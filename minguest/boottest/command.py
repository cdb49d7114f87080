# SPDX-License-Identifier: Apache-2.0
"""QEMU's command for a boot test: the one that the bundle's own run-guest has, but for what watching needs."""

import os
from pathlib import Path

import msgspec

from minguest import paths
from minguest.bundle import manifests
from minguest.model import Launch
from minguest.util import files
from minguest.util.run import run as run_tool
from minguest.vm import arguments, launch

# Seconds that run-guest has to print QEMU's command.
SHOW = 20.0


def link_to(link: Path, of: Path) -> None:
    """Link to a bundle from a boot test's folder: relative, so that qemu.sh can be moved with the bundle."""
    target = os.path.relpath(of.resolve(), link.parent.resolve())
    if link.is_symlink():
        if str(link.readlink()) == target:
            return
        link.unlink()
    link.symlink_to(target)


def scripted(
    manifest: manifests.Manifest, wanted: Launch, requested: launch.Spec, sysfs: Path, cpuinfo: str
) -> launch.Spec | None:
    """The launch that the bundle's run-guest is for, if that is what is requested, with the requested timeout. None: it
    is another launch, or the bundle has no run-guest."""
    if paths.RUN_GUEST not in manifest.files or wanted != manifest.guest.launch:
        return None
    own = launch.shipped(wanted, manifest.kernel.series, sysfs, cpuinfo)[requested.accel]
    own = msgspec.structs.replace(own, timeout=requested.timeout, driver=requested.driver)
    return own if msgspec.structs.replace(own, cpu=requested.cpu, window=requested.window) == requested else None


def argv(bundle: Path, spec: launch.Spec, folder: Path) -> list[str]:
    """QEMU's command for a boot test in `folder`, which gets the same as run-guest's own: a fresh copy of the
    variables, and the link to the bundle."""
    files.copy(bundle / "OVMF_VARS.fd", folder / "OVMF_VARS.fd")
    link_to(folder / arguments.LINK, bundle)
    command = arguments.argv(spec)
    if append := _append(spec):
        command[command.index("-append") + 1] += f" {append}"
    return command


def _append(spec: launch.Spec) -> str:
    """A boot test ends after the report: a guest with a root does not start the root's init. The last option wins."""
    return f"initd.then={arguments.after_report(spec)}" if spec.root else ""


def script_argv(folder: Path, spec: launch.Spec) -> list[str]:
    """The same command from the bundle's own run-guest; `folder` is as `argv` left it."""
    # With sh: a bundle that was copied may have lost the executable bit.
    script = [f"{arguments.LINK}/{paths.RUN_GUEST}", "--accel", spec.accel, "--append", _append(spec), "--show"]
    _, shown = run_tool(["sh", *script], cwd=folder, deadline=SHOW, merge=False)
    return arguments.watching(shown.split("\n"))
