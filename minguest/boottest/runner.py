# SPDX-License-Identifier: Apache-2.0
"""boot-test: start a bundle in QEMU, bounded in time, and judge it."""

import platform
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

import msgspec

from minguest import model, paths, settings
from minguest.boottest import command, facts, verdict
from minguest.bundle import manifests
from minguest.diagnose import answer, catalogue, logs, matching
from minguest.kernel import contract, kconfig
from minguest.model import Accel, Launch, Machine
from minguest.util import files, units
from minguest.util.errors import GuestFailed, GuestLost, ToolError, UserError
from minguest.vm import arguments, bar_window, bar_window_text, disks, emulator, kvm, launch, monitors, qemu, report
from minguest.vm.launch import Options

SYSFS = Path("/sys")
CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")


class Test(msgspec.Struct, frozen=True):
    """A boot test that a release lists: the guest's own launch, changed by the options."""

    name: str
    title: str
    options: Options


# The boot tests of a release, beside the guest's own launch.
MACHINES: tuple[Machine, ...] = get_args(Machine)
CPUS = (1, 4, 8)
# 2 to 8 CPUs is the usual example of hot-adding; a DIMM of 2 GiB crosses 4 GiB on q35. 128 GiB is the BAR of an H100.
EXTRA = [
    Test(
        "hotplug",
        "2 CPUs become 8, and 1 GiB of memory 3 GiB, while the guest runs",
        Options(cpus="2", plug_cpus="8", memory="1G", plug_memory="3G"),
    ),
    Test("power-button", "the power button is pressed, and the guest shuts down in order", Options(power_button=True)),
    Test("large-bars", "8 cards with a BAR of 128 GiB each", Options(machine="q35", gpu=",".join(["bar:128G"] * 8))),
]
# What launch.with_room appends to an emulated CPU.
WIDENED = r",phys-bits=\d+$"
# A boot test's files that are kept as evidence.
KEPT = ("console.log", "report.json", "verdict.json")
# And of a quiet console.
KERNEL_LOG = logs.KERNEL
# The file that is kept instead for a test that this machine has no room for.
NO_ROOM = "no-room.json"
# All files that a boot test writes to its folder.
OUTPUT = (*KEPT, KERNEL_LOG, "OVMF_VARS.fd", arguments.LINK, "qemu.log", "qemu.sh", "qmp.sock", "report.jsonl")

# The options of a boot test: the fields of Options.
OPTIONS = {
    "cpus": "how many CPUs",
    "memory": "how much memory, such as 2G",
    "gpu": "emulated cards, bar:SIZE, or PCI addresses of the host's cards, with commas; none for no card",
    "driver": "the driver that each card must have in the guest, such as nvidia",
    "machine": "q35 or pc",
    "accel": "auto, kvm or tcg",
    "timeout": "seconds after which the guest counts as lost",
    "plug-cpus": "plug CPUs in while the guest runs, until there are so many",
    "unplug-cpus": "then unplug CPUs again, until so many are left",
    "plug-memory": "plug memory in while the guest runs, until there is so much, such as 3G",
    "console": "full or quiet: the kernel prints warnings and worse, and its log comes after the report",
}
# And those without a value.
FLAGS = {"power-button": "press the power button after the report: the guest must shut down in order"}


class Bench(msgspec.Struct, frozen=True):
    """Where a boot test is done."""

    name: str
    bundle: Path
    folder: Path
    """Gets console.log, report.json, verdict.json and qemu.sh; the files of an earlier boot test are removed."""
    kvm: Path
    """A file: whether KVM runs this firmware on this machine."""
    pits: Path | None = None
    """configs/pits/: a failure is reported with its pit."""
    evidence: Path | None = None
    """A folder: a run that is one of `tests` is kept here too, by the test's name."""


class Outcome(msgspec.Struct, frozen=True):
    """verdict.json: the verdict and what it is about."""

    bundle: dict[str, manifests.File]
    wanted: Launch
    """The guest's own launch, before the user's options."""
    spec: launch.Spec
    qemu: str
    accel: str
    """Which accelerator was used, and why."""
    argv: tuple[str, ...]
    verdict: verdict.Verdict
    pits: tuple[str, ...] = ()
    """Known ways to fail that were recognized, roots only; none for a pass."""
    run_guest: bool = False
    """Whether QEMU's command was that of the bundle's run-guest, changed only as watching needs it."""


class NoRoom(msgspec.Struct, frozen=True):
    """no-room.json: why a test was not run."""

    bundle: dict[str, manifests.File]
    wanted: Launch
    why: str


class Trial(msgspec.Struct, frozen=True):
    """The result of one start of QEMU."""

    verdict: verdict.Verdict | None
    """None: QEMU did not start the guest."""
    report: report.Report
    diagnosis: matching.Diagnosis
    blind: matching.Diagnosis
    """The same without the kernel's config, as for the console of an unknown kernel."""
    argv: tuple[str, ...]
    refusal: str = ""
    """QEMU's error, if it did not start."""

    @property
    def roots(self) -> tuple[str, ...]:
        return tuple(hit.id for hit in self.diagnosis.roots)


def tests(launch: Launch) -> list[Test]:
    """Every boot test that a release lists, the guest's own launch included."""
    own = (launch.machine, launch.cpus)
    cells = {(machine, cpus) for machine in MACHINES for cpus in CPUS} | {own}
    found = []
    for machine, cpus in sorted(cells, key=lambda cell: (MACHINES.index(cell[0]), cell[1])):
        title = f"boot test: {machine}, {cpus} CPU{'s' * (cpus > 1)}"
        title += ", the guest's own launch" * ((machine, cpus) == own)
        found.append(Test(f"boot-test-{machine}-{cpus}", title, Options(cpus=str(cpus), machine=machine)))
    return found + EXTRA


def own_test(launch: Launch) -> str:
    """The name of the boot test of the guest's launch as in its file."""
    return f"boot-test-{launch.machine}-{launch.cpus}"


def cannot(test: Test, launch: Launch, nr_cpus: int) -> str:
    """Why a guest of this launch cannot run this test, if it cannot; `nr_cpus` is what its kernel was built for."""
    most = max(int(test.options.cpus or 0), int(test.options.plug_cpus or 0))
    if most > nr_cpus:
        return "the kernel was built for fewer CPUs"
    if test.options.plug_cpus and most > launch.max_cpus:
        return "the launch has no room for more CPUs"
    if test.options.machine == "pc" and any(node.gpus for node in launch.numa):
        return "the launch has cards near nodes, and pc has no buses for them"
    if test.options.memory and launch.numa:
        return "the launch has its memory in nodes"
    return ""


def without_room(bench: Bench, test: Test, wanted: Launch) -> str:
    """Why the plan has no room on this machine for a test's own cards, kept as evidence too; empty: there is room. The
    guest's own cards are different: the guest is built for them, so without room its test fails."""
    if not test.options.gpu:
        return ""
    manifest = manifests.load(bench.bundle)
    spec = launch.settle(wanted, test.options, nr_cpus_of(bench.bundle), (), SYSFS, manifest.kernel.series)
    accel, _ = accelerator(bench, spec, emulator.version(), manifest)
    _, plan = launch.with_room(msgspec.structs.replace(spec, accel=accel), SYSFS, CPUINFO.read_text(encoding="utf-8"))
    if plan is None or plan.fits:
        return ""
    said = [line.strip() for warning in bar_window_text.warnings(plan) for line in warning.splitlines()]
    why = f"no room on this machine under {accel}: {'; '.join(said)}"
    if bench.evidence is not None:
        with files.replacing_tree(bench.evidence / test.name) as kept:
            files.write(kept / NO_ROOM, msgspec.json.encode(NoRoom(manifest.files, wanted, why)))
    return why


def run(bench: Bench, options: Options, wanted: Launch, say: Callable[[str], None]) -> None:
    """Boot the bundle and write console.log, report.json, verdict.json and qemu.sh.

    Raises GuestFailed, GuestLost or ToolError for anything but a pass. A second run waits for the first.
    """

    def waiting() -> None:
        say(f"waiting for another boot test of {bench.name}")

    with files.lock(bench.folder.with_name(f".{bench.folder.name}.run"), waiting):
        trial = _boot(bench, options, wanted, say)
    judged = trial.verdict
    if judged is None:
        raise ToolError(trial.refusal, answer.findings(trial.diagnosis) if trial.roots else "")
    say(verdict.table(judged))
    if judged.result == "pass":
        say(f"PASS: {judged.reason}")
        return
    say(answer.findings(trial.diagnosis))
    kind = GuestFailed if judged.result == "failed" else GuestLost
    raise kind(f"FAIL, {judged.result}: {judged.reason}", f"read {bench.folder / 'console.log'}")


def settled(bundle: Path, manifest: manifests.Manifest, options: Options, wanted: Launch) -> launch.Spec:
    """The launch with the user's options; UserError or ToolError for one that cannot start. Writes nothing."""
    nr_cpus = nr_cpus_of(bundle)
    if manifest.config.problems:
        # contract=ignore: the guest is booted as it was meant, to show what its wrong config leads to.
        nr_cpus = max(nr_cpus, wanted.max_cpus)
    spec = launch.settle(wanted, options, nr_cpus, emulator.display_models(), SYSFS, manifest.kernel.series)
    check_memory(spec, MEMINFO.read_text(encoding="utf-8"))
    return spec


def _boot(bench: Bench, options: Options, wanted: Launch, say: Callable[[str], None]) -> Trial:
    manifest = manifests.load(bench.bundle)
    spec = settled(bench.bundle, manifest, options, wanted)
    monitors.check(spec.disks)
    version = emulator.version()
    accel, why = accelerator(bench, spec, version, manifest)
    requested = msgspec.structs.replace(spec, accel=accel)
    cpuinfo = CPUINFO.read_text(encoding="utf-8")
    spec, plan = launch.with_room(requested, SYSFS, cpuinfo)
    own = command.scripted(manifest, wanted, requested, SYSFS, cpuinfo)
    folder = bench.folder
    make_empty(folder, bench.bundle)
    say(f"{bench.name}: linux {manifest.kernel.version}, OVMF {manifest.firmware.version}, {spec.machine}, {why}")
    if plan is not None:
        say(launch.window_line(spec, plan))
    known = catalogue.load(bench.pits) if bench.pits else {}
    breaches = breaches_of(known, bench.bundle / "kernel.config", wanted, spec, manifest.kernel.series)
    started = command.argv(bench.bundle, spec, folder)
    if own is not None and command.script_argv(folder, spec) != started:
        own = None
        say(f"{paths.RUN_GUEST}: was not made for these cards as this machine has them, so it is not used")
    # A window that the launch itself sets is not the plan's.
    window = plan.window if plan is not None and plan.fits and not wanted.window else None
    shipped = verdict.Shipped(manifest.kernel.release, manifest.firmware.version)
    trial = attempt(spec, started, folder, known, breaches, manifest.config.problems, window=window, shipped=shipped)
    if trial.verdict is None:
        return trial
    outcome = Outcome(
        manifest.files, wanted, spec, version, why, trial.argv, trial.verdict, trial.roots, own is not None
    )
    files.write(folder / "verdict.json", msgspec.json.format(msgspec.json.encode(outcome)))
    test = next((test for test in tests(wanted) if is_of(spec, wanted, test)), None)
    # If a test's own cards have no room on this machine, that says nothing about the bundle.
    hopeless = test is not None and test.options.gpu and plan is not None and not plan.fits
    if bench.evidence is not None and test is not None and not hopeless:
        with files.replacing_tree(bench.evidence / test.name) as kept:
            for name in kept_of(spec):
                shutil.copyfile(folder / name, kept / name)
    return trial


def kept_of(spec: launch.Spec) -> tuple[str, ...]:
    """The files of a boot test that passed, which are kept as evidence."""
    return (*KEPT, KERNEL_LOG) if spec.console == "quiet" else KEPT


def make_empty(folder: Path, of: Path) -> None:
    """Make a boot test's folder, or remove what an earlier one left in it; UserError, and nothing is removed, if
    there is anything else. `of`: the bundle under test."""
    names = "|".join(map(re.escape, OUTPUT))
    ours = re.compile(rf"{names}|\.({names})\.\w{{8}}")  # or the temporary name that files.replacing gives
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    others = [path for path in there if not ours.fullmatch(path.name) or (path.is_dir() and not path.is_symlink())]
    link = folder / arguments.LINK
    if there and not link.is_symlink():
        others = there  # a boot test makes the link first, and keeps it
    if others:
        names = ", ".join(path.name for path in others[:3])
        raise UserError(
            f"{folder}: has {names}, which no boot test wrote; a boot test empties its folder first",
            "move that away, or give another folder with --work",
        )
    folder.mkdir(parents=True, exist_ok=True)
    for path in there:
        if path != link:
            path.unlink()
    command.link_to(link, of)


def check_memory(spec: launch.Spec, meminfo: str) -> None:
    """UserError for more memory than the host has; `meminfo` is its /proc/meminfo.

    QEMU would start, and be killed when the guest uses the memory; with a card all of it is allocated at the start.
    """
    if spec.hugepages:
        return
    locked = spec.lock_memory or any(gpu.host for gpu in spec.gpus)
    name = "MemAvailable" if locked else "MemTotal"
    there = next(int(line.split()[1]) << 10 for line in meminfo.splitlines() if line.startswith(f"{name}:"))
    requested = max(spec.memory, spec.plug_memory)
    if requested > there:
        why = "are available, and all of the guest's memory is locked" if locked else "are all that this host has"
        raise UserError(
            f"memory {units.whole(requested)}: {there >> 20} MiB {why}", "--memory or launch.memory with less"
        )


def attempt(
    spec: launch.Spec,
    started: Sequence[str],
    folder: Path,
    known: Mapping[str, catalogue.Pit],
    breaches: Sequence[contract.Breach],
    problems: Sequence[str] = (),
    nmi: bool = False,
    window: bar_window.Window | None = None,
    shipped: verdict.Shipped | None = None,
) -> Trial:
    """Start QEMU in `folder`, which gets console.log, report.json and qemu.sh; judge and diagnose the result."""
    plugged = (spec.plug_memory - spec.memory,) if spec.plug_memory else ()
    try:
        deeds = qemu.Deeds(spec.plug_cpus, spec.unplug_cpus, plugged, nmi, spec.power_button)
        result = qemu.boot(started, folder, spec.timeout, deeds)
    except ToolError as error:
        said = (folder / "qemu.log").read_bytes() if (folder / "qemu.log").exists() else b""
        known_of = {**facts.of_launch(spec), "ending": "refused", "report": "none"}
        found = matching.diagnose(known, matching.see(logs.Log("qemu.log", said), facts=known_of))
        return Trial(None, report.Report(False, (), ()), found, found, tuple(started), str(error))
    seen = report.parse(result.report)
    files.write(folder / "report.json", msgspec.json.format(msgspec.json.encode(seen)))
    if seen.log:
        files.write(folder / KERNEL_LOG, report.kernel_log(seen.log))
    # QEMU's own output too: some pits are the host's.
    text = logs.Log("console.log", result.console + b"\n" + (folder / "qemu.log").read_bytes())
    found = matching.diagnose(known, matching.see(text, seen, facts.of_boot(spec, result, seen), breaches))
    blind = matching.diagnose(known, matching.see(text, seen, facts.of_boot(spec, result, seen))) if breaches else found
    judged = verdict.judge(spec, result, seen, problems, window, shipped)
    if known:
        judged = verdict.with_pits(judged, {hit.id: hit.pit.title for hit in found.roots})
    return Trial(judged, seen, found, blind, result.argv)


def breaches_of(
    known: Mapping[str, catalogue.Pit], config: Path, wanted: Launch, spec: launch.Spec, series: str
) -> list[contract.Breach]:
    """Where a kernel's config breaks the contract of this launch."""
    launched = msgspec.structs.replace(
        wanted,
        machine=spec.machine,
        cpus=spec.cpus,
        max_cpus=spec.max_cpus,
        max_memory=str(spec.max_memory or ""),
        gpus=tuple(str(gpu) for gpu in spec.gpus),
        numa=tuple(model.Node("") for _ in spec.numa),
    )
    return contract.check(
        catalogue.rules(known), kconfig.parse_config(config.read_text(encoding="utf-8")), launched, series
    )


def nr_cpus_of(folder: Path) -> int:
    """How many CPUs a bundle's kernel was built for."""
    config = kconfig.parse_config((folder / "kernel.config").read_text(encoding="utf-8"))
    return int(config.get("NR_CPUS", "1")) if config.get("SMP") == "y" else 1


def is_of(spec: launch.Spec, wanted: Launch, test: Test) -> bool:
    """Whether what was booted is this test of the guest's launch.

    The accelerator, the timeout and the room for BARs do not matter; the verdict records them.
    """
    options = test.options
    cpus = int(options.cpus or wanted.cpus)
    memory = options.memory or wanted.memory
    cards = options.gpu.split(",") if options.gpu else [name for name in wanted.gpus if name != "none"]
    return (
        (spec.machine, spec.cpus) == (options.machine or wanted.machine, cpus)
        and re.sub(WIDENED, "", spec.cpu) == re.sub(WIDENED, "", wanted.cpu)
        and tuple(disk for disk in spec.disks if disk != disks.DRIVERS) == wanted.disks
        and spec.max_cpus == max(cpus, wanted.max_cpus)
        and spec.memory == settings.size(memory, "launch.memory")
        and (spec.plug_cpus, spec.unplug_cpus) == (int(options.plug_cpus or 0), int(options.unplug_cpus or 0))
        and spec.plug_memory == (settings.size(options.plug_memory, "--plug-memory") if options.plug_memory else 0)
        and spec.console == wanted.console
        and (spec.power_button, spec.driver) == (options.power_button, "" if options.gpu else wanted.driver)
        and (spec.cmdline, spec.root, spec.drivers) == (wanted.cmdline, wanted.root, wanted.drivers)
        and [_short(gpu.name) for gpu in spec.gpus] == [_short(name) for name in cards]
    )


def _short(name: str) -> str:
    return name.lower().removeprefix("0000:")


def accelerator(bench: Bench, spec: launch.Spec, version: str, manifest: manifests.Manifest) -> tuple[Accel, str]:
    """KVM or TCG, and why. A sure result is kept until QEMU, the bundle's bytes, the CPU or the host's kernel change;
    an unsure one is tried again the next time."""
    if spec.accel != "auto":
        return spec.accel, f"{spec.accel} as requested"
    if shut := kvm.closed():
        return "tcg", f"software emulation ({shut})"
    parts = (manifest.files["bzImage"], manifest.files["OVMF_CODE.fd"])
    key = msgspec.json.encode([version, platform.release(), *parts, spec.cpu, spec.hide_kvm]).decode()
    proof = _kept(bench.kvm, key)
    if proof is None:
        folder = bench.folder.with_name("kvm-proof")
        proof = kvm.prove(command.argv(bench.bundle, kvm.probe(spec, SYSFS, manifest.kernel.series), folder), folder)
        if proof.sure:
            files.write(bench.kvm, msgspec.json.encode((key, proof.works, proof.why)))
    return ("kvm", f"kvm ({proof.why})") if proof.works else ("tcg", f"software emulation ({proof.why})")


def kept_accelerator(place: Path) -> Accel:
    """What `auto` came to in the last boot with this Bench.kvm."""
    kept = _read_proof(place)
    return "kvm" if kept is not None and kept[1] and not kvm.closed() else "tcg"


def _kept(place: Path, key: str) -> kvm.Proof | None:
    kept = _read_proof(place)
    return kvm.Proof(kept[1], kept[2], True) if kept is not None and kept[0] == key else None


def _read_proof(place: Path) -> tuple[str, bool, str] | None:
    try:
        return msgspec.json.decode(place.read_bytes(), type=tuple[str, bool, str])
    except (OSError, ValueError):
        return None
