# SPDX-License-Identifier: Apache-2.0
"""boot-test: start a bundle in QEMU, bounded in time, and judge it."""

import os
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

import msgspec

from minguest import (
    bundle,
    contract,
    files,
    kconfig,
    launch,
    model,
    pits,
    qemu,
    report,
    settings,
    verdict,
)
from minguest.errors import GuestFailed, GuestLost, ToolError, UserError
from minguest.model import Accel, Launch, Machine

SYSFS = Path("/sys")
CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
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
    "plug-cpus": "plug CPUs in while the guest runs, until there are so many",
    "plug-memory": "plug memory in while the guest runs, until there is so much, such as 3G",
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


class Trial(msgspec.Struct, frozen=True):
    """What one start of QEMU came to."""

    verdict: verdict.Verdict | None
    """None: QEMU did not start the guest."""
    report: report.Report
    diagnosis: pits.Diagnosis
    blind: pits.Diagnosis
    """The same without knowing the kernel's config, as for a stranger's console."""
    argv: tuple[str, ...]
    refusal: str = ""
    """What QEMU said in place of starting."""

    @property
    def roots(self) -> tuple[str, ...]:
        return tuple(hit.id for hit in self.diagnosis.roots)


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


def run(bench: Bench, words: launch.Words, wanted: Launch, say: Callable[[str], None]) -> None:
    """Boot the bundle and write console.log, report.json, verdict.json and qemu.sh.

    Raises GuestFailed, GuestLost or ToolError for anything but a pass. A second run waits for the first.
    """

    def waiting() -> None:
        say(f"waiting for another boot test of {bench.name}")

    with files.lock(bench.folder.with_name(f".{bench.folder.name}.run"), waiting):
        trial = _boot(bench, words, wanted, say)
    judged = trial.verdict
    if judged is None:
        raise ToolError(trial.refusal, _pit(trial))
    say(verdict.table(judged))
    if judged.result == "pass":
        say(f"PASS: {judged.reason}")
        return
    say(pits.describe(trial.diagnosis))
    kind = GuestFailed if judged.result == "failed" else GuestLost
    raise kind(f"FAIL, {judged.result}: {judged.reason}", f"read {bench.folder / 'console.log'}")


def _pit(trial: Trial) -> str:
    return pits.describe(trial.diagnosis) if trial.diagnosis.roots else ""


def _boot(bench: Bench, words: launch.Words, wanted: Launch, say: Callable[[str], None]) -> Trial:
    manifest = bundle.load(bench.bundle)
    nr_cpus = nr_cpus_of(bench.bundle)
    if manifest.config.problems:
        # contract=ignore: the guest is booted as it was meant, to see what comes of its wrong config.
        nr_cpus = max(nr_cpus, wanted.max_cpus)
    line = manifest.kernel.line
    spec = launch.settle(wanted, words, nr_cpus, launch.display_models(), SYSFS, line)
    version = qemu.version()
    accel, why = accelerator(bench, spec, version, manifest)
    spec, made = launch.with_room(msgspec.structs.replace(spec, accel=accel), SYSFS, CPUINFO.read_text())
    check_memory(spec, MEMINFO.read_text())
    folder = bench.folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    say(f"{bench.name}: linux {manifest.kernel.version}, OVMF {manifest.firmware.version}, {spec.machine}, {why}")
    if made is not None:
        say(launch.room_told(spec, made))
    known = pits.load(bench.pits) if bench.pits else {}
    breaches = breaches_of(known, bench.bundle / "kernel.config", wanted, spec, line)
    trial = attempt(spec, argv(bench, spec, folder), folder, known, breaches, manifest.config.problems)
    if trial.verdict is None:
        return trial
    outcome = Outcome(manifest.files, wanted, spec, version, why, trial.argv, trial.verdict, trial.roots)
    files.write(folder / "verdict.json", msgspec.json.format(msgspec.json.encode(outcome)))
    if bench.evidence is not None and is_of(spec, wanted):
        with files.replacing_tree(bench.evidence / cell_name(spec.machine, spec.cpus)) as kept:
            for name in KEPT:
                shutil.copyfile(folder / name, kept / name)
    return trial


def check_memory(spec: launch.Spec, meminfo: str) -> None:
    """UserError for more memory than the host, whose /proc/meminfo is given, can ever give.

    QEMU would start, and be killed when the guest takes it; with a card all of it is taken at once.
    """
    if spec.hugepages:
        return
    locked = spec.lock_memory or any(gpu.host for gpu in spec.gpus)
    name = "MemAvailable" if locked else "MemTotal"
    there = next(int(line.split()[1]) << 10 for line in meminfo.splitlines() if line.startswith(f"{name}:"))
    asked = max(spec.memory, spec.plug_memory)
    if asked > there:
        why = "are available, and all of the guest's memory is locked" if locked else "are all that this host has"
        raise UserError(f"memory {launch.short(asked)}: {there >> 20} MiB {why}", "--memory or launch.memory with less")


def attempt(
    spec: launch.Spec,
    command: Sequence[str],
    folder: Path,
    known: Mapping[str, pits.Pit],
    breaches: Sequence[contract.Breach],
    problems: Sequence[str] = (),
    nmi: bool = False,
) -> Trial:
    """Start QEMU in `folder`, which gets console.log, report.json and qemu.sh; judge and diagnose what came of it."""
    plugged = (spec.plug_memory - spec.memory,) if spec.plug_memory else ()
    try:
        result = qemu.boot(command, folder, spec.timeout, qemu.Deeds(spec.plug_cpus, plugged, nmi))
    except ToolError as error:
        said = (folder / "qemu.log").read_bytes() if (folder / "qemu.log").exists() else b""
        told = {**verdict.facts_of_launch(spec), "ending": "refused", "report": "none"}
        found = pits.diagnose(known, pits.see(said, facts=told))
        return Trial(None, report.Report(False, (), ()), found, found, tuple(command), str(error))
    seen = report.parse(result.report)
    files.write(folder / "report.json", msgspec.json.format(msgspec.json.encode(seen)))
    # QEMU's own words too: some pits are the host's.
    text = result.console + b"\n" + (folder / "qemu.log").read_bytes()
    found = pits.diagnose(known, pits.see(text, seen, verdict.facts(spec, result, seen), breaches))
    blind = pits.diagnose(known, pits.see(text, seen, verdict.facts(spec, result, seen))) if breaches else found
    judged = verdict.judge(spec, result, seen, problems)
    if known:
        judged = verdict.with_pits(judged, {hit.id: hit.pit.title for hit in found.roots})
    return Trial(judged, seen, found, blind, result.argv)


def breaches_of(
    known: Mapping[str, pits.Pit], config: Path, wanted: Launch, spec: launch.Spec, line: str
) -> list[contract.Breach]:
    """Where a kernel's config breaks the contract of what is launched in fact."""
    launched = msgspec.structs.replace(
        wanted,
        machine=spec.machine,
        cpus=spec.cpus,
        max_cpus=spec.max_cpus,
        max_memory=str(spec.max_memory or ""),
        gpus=tuple(str(gpu) for gpu in spec.gpus),
        numa=tuple(model.Node("") for _ in spec.numa),
    )
    return contract.check(pits.rules(known), kconfig.parse_config(config.read_text()), launched, line)


def nr_cpus_of(folder: Path) -> int:
    """How many CPUs a bundle's kernel was built for."""
    config = kconfig.parse_config((folder / "kernel.config").read_text())
    return int(config.get("NR_CPUS", "1")) if config.get("SMP") == "y" else 1


def is_of(spec: launch.Spec, wanted: Launch) -> bool:
    """Whether a boot test was of the guest's own launch but for machine and CPUs, and one of `cells`.

    How it is accelerated and how long it may take does not matter; the verdict tells it.
    """
    cards = [gpu.word.lower().removeprefix("0000:") for gpu in spec.gpus]
    return (
        (spec.machine, spec.cpus) in cells(wanted)
        and spec.cpu == wanted.cpu
        and spec.disks == wanted.disks
        and spec.max_cpus == max(spec.cpus, wanted.max_cpus)
        and spec.memory == settings.size(wanted.memory, "launch.memory")
        and not (spec.plug_cpus or spec.plug_memory)
        and spec.cmdline == wanted.cmdline
        and cards == [name.lower().removeprefix("0000:") for name in wanted.gpus if name != "none"]
    )


def argv(bench: Bench, spec: launch.Spec, folder: Path) -> list[str]:
    """QEMU's command for a boot test in `folder`, which gets a fresh copy of the variables."""
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


def accelerator(bench: Bench, spec: launch.Spec, version: str, manifest: bundle.Manifest) -> tuple[Accel, str]:
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
        works, why = qemu.kvm_works(argv(bench, probe, folder), folder, KVM_PROOF)
        files.write(bench.kvm, msgspec.json.encode((key.decode(), works, why)))
    return ("kvm", f"kvm ({why})") if works else ("tcg", f"software emulation ({why})")
