# SPDX-License-Identifier: Apache-2.0
"""Whether KVM runs a guest with this firmware on this machine. Only a guest that is started proves it."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import msgspec

from minguest.model import Launch
from minguest.vm import launch, qemu

DEVICE = Path("/dev/kvm")
# The guest's time in seconds; under KVM a boot takes one or two.
TIME = 20.0


class Proof(msgspec.Struct, frozen=True):
    """What starting a guest under KVM proved."""

    works: bool
    why: str
    sure: bool
    """Whether KVM is the reason: another trial would end the same."""


def closed() -> str:
    """Why /dev/kvm cannot be opened; empty if it can."""
    try:
        # Its mode is not enough: in a container, or without its module, opening may still fail.
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{DEVICE} cannot be opened: {os.strerror(error.errno or 0)}"
    return ""


def probe(spec: launch.Spec, sysfs: Path, series: str = "") -> launch.Spec:
    """The guest that is started for the proof. It has the launch's CPU, on which the result depends, and nothing else:
    no CPUs or memory to wait for, no nodes, disks, cards, huge pages or parameters that may fail by themselves."""
    alone = Launch(cpu=spec.cpu, hide_kvm=spec.hide_kvm, cpus=1, max_cpus=1, gpus=(), accel="kvm", timeout=int(TIME))
    return launch.settle(alone, launch.Options(), 1, (), sysfs, series)


def prove(argv: Sequence[str], folder: Path) -> Proof:
    """Start the guest. `argv` has accel=kvm; `folder` gets the files of qemu.boot.

    A /dev/kvm that opens proves nothing: there are hosts where KVM runs a kernel and cannot run OVMF. A guest that is
    late, or a QEMU that refuses or is killed, proves nothing either: time, memory or the disk may be short only today.
    """
    result = qemu.start(argv, folder, TIME)
    if result.ending == "internal error" or result.status == -signal.SIGABRT:
        said = qemu.last_output(folder / "qemu.log", 1) if result.status else ""
        why = ": ".join(filter(None, (result.detail, said)))
        return Proof(False, f"/dev/kvm opens, but OVMF or the kernel does not run under it: {why}", True)
    if result.end is not None and result.ending in qemu.QUIET:
        return Proof(True, "OVMF and the kernel ran under it", True)
    said = qemu.last_output(folder / "qemu.log", 1) if result.ending == "qemu died" else ""
    why = ": ".join(filter(None, (result.ending, result.detail, said)))
    return Proof(False, f"it is not known whether KVM works, the trial failed: {why}", False)
