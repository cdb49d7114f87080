# SPDX-License-Identifier: Apache-2.0
"""boot-test: start a bundle in QEMU, bounded in time, and judge it."""

import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import msgspec

from minguest import bundle, files, kconfig, launch, pits, qemu, report, settings, verdict
from minguest.errors import GuestFailed, GuestLost
from minguest.model import Accel, Launch, Machine

SYSFS = Path("/sys")
# Seconds that a guest gets to prove that KVM can run it; under KVM a boot takes one or two.
KVM_PROOF = 20.0


# What a release is expected to have been tested with, beside the guest's own launch.
MACHINES: tuple[Machine, ...] = get_args(Machine)
CPUS = (1, 4, 8)
# What is kept of a boot test as evidence.
KEPT = ("console.log", "report.json", "verdict.json")


# What a user may say of one boot test: the fields of launch.Words.
WORDS = {
    "cpus": "how many CPUs",
    "memory": "how much memory, such as 2G",
    "gpu": "emulated cards or PCI addresses of the host's, with commas; none for none",
    "machine": "q35 or pc",
    "accel": "auto, kvm or tcg",
    "timeout": "seconds after which the guest counts as lost",
}


class Bench(msgspec.Struct, frozen=True):
    """Where a boot test is done."""

    name: str
    bundle: Path
    folder: Path
    """Gets console.log, report.json, verdict.json and qemu.sh; what was in it is removed."""
    kvm: Path
    """A file: whether KVM runs this firmware on this machine."""
    pits: Path | None = None
    """configs/pits/: a guest that fails is told its pit."""
    evidence: Path | None = None
    """A folder: a run that is one of `cells` is kept here too, by the cell's name."""


class Outcome(msgspec.Struct, frozen=True):
    """verdict.json: the verdict and what it was about."""

    bundle: dict[str, bundle.File]
    wanted: Launch
    """The guest's own launch, before the user's words."""
    spec: launch.Spec
    qemu: str
    accel: str
    """Which accelerator was taken, and why."""
    argv: tuple[str, ...]
    verdict: verdict.Verdict
    pits: tuple[str, ...] = ()
    """Known ways to fail that were recognized, roots only; of a pass none."""


def cells(launch: Launch) -> list[tuple[Machine, int]]:
    """Machine and number of CPUs of every boot test that a release tells of; the guest's own launch is among them."""
    wanted = {(machine, cpus) for machine in MACHINES for cpus in CPUS} | {own_cell(launch)}
    return sorted(wanted, key=lambda cell: (MACHINES.index(cell[0]), cell[1]))


def own_cell(launch: Launch) -> tuple[Machine, int]:
    """The cell of the guest's launch as its file says it."""
    return launch.machine, launch.cpus


def cell_name(machine: Machine, cpus: int) -> str:
    """The name of a cell as a check, and of its folder of evidence."""
    return f"boot-test-{machine}-{cpus}"


def run(bench: Bench, words: launch.Words, wanted: Launch, say: Callable[[str], None]) -> Outcome:
    """Boot the bundle and write console.log, report.json, verdict.json and qemu.sh.

    Raises GuestFailed or GuestLost for anything but a pass. A second run waits for the first.
    """

    def waiting() -> None:
        say(f"waiting for another boot test of {bench.name}")

    with files.lock(bench.folder.with_name(f".{bench.folder.name}.run"), waiting):
        outcome, diagnosis = _boot(bench, words, wanted, say)
    judged = outcome.verdict
    say(verdict.table(judged))
    if judged.result == "pass":
        say(f"PASS: {judged.reason}")
        return outcome
    if diagnosis:
        say(diagnosis)
    kind = GuestFailed if judged.result == "failed" else GuestLost
    raise kind(f"FAIL, {judged.result}: {judged.reason}", f"read {bench.folder / 'console.log'}")


def _boot(bench: Bench, words: launch.Words, wanted: Launch, say: Callable[[str], None]) -> tuple[Outcome, str]:
    """The outcome, and for a guest that did not pass what its pit is, in words."""
    manifest = bundle.load(bench.bundle)
    nr_cpus = nr_cpus_of(bench.bundle)
    if manifest.config.problems:
        # contract=ignore: the guest is booted as it was meant, to see what comes of its wrong config.
        nr_cpus = max(nr_cpus, wanted.max_cpus)
    spec = launch.settle(wanted, words, nr_cpus, launch.display_models(), SYSFS)
    version = qemu.version()
    accel, why = _accelerator(bench, spec, version, manifest)
    spec = msgspec.structs.replace(spec, accel=accel)
    folder = bench.folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    say(f"{bench.name}: linux {manifest.kernel.version}, OVMF {manifest.firmware.version}, {spec.machine}, {why}")
    result = qemu.boot(_argv(bench, spec, folder), folder, spec.timeout)
    seen = report.parse(result.report)
    judged = verdict.judge(spec, result, seen, manifest.config.problems)
    files.write(folder / "report.json", msgspec.json.format(msgspec.json.encode(seen)))
    roots: tuple[str, ...] = ()
    diagnosis = ""
    if bench.pits and judged.result != "pass":
        known = pits.load(bench.pits)
        # QEMU's own words too: some pits are the host's.
        text = result.console + b"\n" + (folder / "qemu.log").read_bytes()
        found = pits.diagnose(known, pits.see(text, seen))
        roots, diagnosis = tuple(hit.id for hit in found.roots), pits.describe(found, known)
    outcome = Outcome(manifest.files, wanted, spec, version, why, result.argv, judged, roots)
    files.write(folder / "verdict.json", msgspec.json.format(msgspec.json.encode(outcome)))
    if bench.evidence is not None and is_of(spec, wanted):
        with files.replacing_tree(bench.evidence / cell_name(spec.machine, spec.cpus)) as kept:
            for name in KEPT:
                shutil.copyfile(folder / name, kept / name)
    return outcome, diagnosis


def nr_cpus_of(folder: Path) -> int:
    """How many CPUs a bundle's kernel was built for."""
    config = kconfig.parse_config((folder / "kernel.config").read_text())
    return int(config.get("NR_CPUS", "1")) if config.get("SMP") == "y" else 1


def is_of(spec: launch.Spec, wanted: Launch) -> bool:
    """Whether a boot test was of the guest's own launch but for machine and CPUs, and one of `cells`.

    How it is accelerated and how long it may take does not matter; the verdict tells it.
    """
    cards = [gpu.model or (gpu.host or "").removeprefix("0000:") for gpu in spec.gpus]
    return (
        (spec.machine, spec.cpus) in cells(wanted)
        and spec.cpu == wanted.cpu
        and spec.max_cpus == max(spec.cpus, wanted.max_cpus)
        and spec.memory == settings.size(wanted.memory, "launch.memory")
        and spec.cmdline == wanted.cmdline
        and cards == [name.lower().removeprefix("0000:") for name in wanted.gpus if name != "none"]
    )


def _argv(bench: Bench, spec: launch.Spec, folder: Path) -> list[str]:
    files.copy(bench.bundle / "OVMF_VARS.fd", folder / "OVMF_VARS.fd")
    # Relative, so that a verdict tells nothing of the machine and qemu.sh can be moved with the bundle.
    parts = Path(os.path.relpath(bench.bundle, folder))
    return launch.argv(
        spec,
        code=str(parts / "OVMF_CODE.fd"),
        variables="OVMF_VARS.fd",
        kernel=str(parts / "bzImage"),
        initrd=str(parts / "initrd.img"),
    )


def _accelerator(bench: Bench, spec: launch.Spec, version: str, manifest: bundle.Manifest) -> tuple[Accel, str]:
    """KVM or TCG, and why. A proof of KVM is kept until QEMU, the bundle's bytes or the host's kernel change."""
    if spec.accel != "auto":
        return spec.accel, f"{spec.accel} as asked"
    key = msgspec.json.encode([version, platform.release(), manifest.files["bzImage"], manifest.files["OVMF_CODE.fd"]])
    try:
        kept, works, why = msgspec.json.decode(bench.kvm.read_bytes(), type=tuple[str, bool, str])
    except (OSError, msgspec.DecodeError):
        kept = ""
    if kept != key.decode():
        probe = msgspec.structs.replace(spec, accel="kvm", gpus=(), cpus=1)
        folder = bench.folder.with_name("kvm-proof")
        folder.mkdir(parents=True, exist_ok=True)
        works, why = qemu.kvm_works(_argv(bench, probe, folder), folder, KVM_PROOF)
        files.write(bench.kvm, msgspec.json.encode((key.decode(), works, why)))
    return ("kvm", f"kvm ({why})") if works else ("tcg", f"software emulation ({why})")
