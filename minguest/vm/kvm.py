# SPDX-License-Identifier: Apache-2.0
"""Whether KVM runs a guest with this firmware on this machine: found out by a guest, for nothing less proves it."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import msgspec

from minguest.model import Launch
from minguest.vm import launch, qemu

DEVICE = Path("/dev/kvm")
# Seconds that the guest has; under KVM a boot takes one or two.
TIME = 20.0


class Proof(msgspec.Struct, frozen=True):
    """What a guest's start under KVM proved."""

    works: bool
    why: str
    sure: bool
    """Whether it is KVM that answered: it would answer the same again."""


def closed() -> str:
    """Why /dev/kvm cannot be opened; empty if it can."""
    try:
        # To look at its mode is not enough: in a container, or without its module, it may refuse all the same.
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{DEVICE} cannot be opened: {os.strerror(error.errno or 0)}"
    return ""


def probe(spec: launch.Spec, sysfs: Path, series: str = "") -> launch.Spec:
    """The guest that is started for it. Of the launch it has the CPU, on which KVM's answer depends, and nothing else:
    no CPUs or memory that are waited for, no nodes, disks, cards, huge pages or words that may fail by themselves."""
    wanted = Launch(cpu=spec.cpu, hide_kvm=spec.hide_kvm, cpus=1, max_cpus=1, gpus=(), accel="kvm", timeout=int(TIME))
    return launch.settle(wanted, launch.Options(), 1, (), sysfs, series)


def prove(argv: Sequence[str], folder: Path) -> Proof:
    """Start the guest. `argv` has accel=kvm; `folder` gets what qemu.boot leaves.

    That /dev/kvm opens proves nothing: there are hosts where KVM runs a kernel and cannot run OVMF. A guest that is
    late, a QEMU that refuses or is killed, prove nothing either: time, memory or the disk may be short only today.
    """
    result = qemu.start(argv, folder, TIME)
    if result.ending == "internal error" or result.status == -signal.SIGABRT:
        said = qemu.last_words(folder / "qemu.log", 1) if result.status else ""
        why = ": ".join(filter(None, (result.detail, said)))
        return Proof(False, f"/dev/kvm opens, but OVMF or the kernel does not run under it: {why}", True)
    if result.end is not None and result.ending in qemu.QUIET:
        return Proof(True, "OVMF and the kernel ran under it", True)
    said = qemu.last_words(folder / "qemu.log", 1) if result.ending == "qemu died" else ""
    why = ": ".join(filter(None, (result.ending, result.detail, said)))
    return Proof(False, f"whether KVM works is not known, its trial came to nothing: {why}", False)
