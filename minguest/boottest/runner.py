# SPDX-License-Identifier: Apache-2.0
"""boot-test: start a bundle in QEMU, bounded in time, and judge it."""

import os
import platform
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

import msgspec

from minguest import model, paths, settings
from minguest.boottest import verdict
from minguest.bundle import manifests
from minguest.diagnose import catalogue, matching
from minguest.kernel import contract, kconfig
from minguest.model import Accel, Launch, Machine
from minguest.util import files, units
from minguest.util.errors import GuestFailed, GuestLost, ToolError, UserError
from minguest.util.run import run as run_tool
from minguest.vm import arguments, bar_window, bar_window_text, emulator, kvm, launch, qemu, report
from minguest.vm.launch import Options

SYSFS = Path("/sys")
CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
# Seconds that run-guest has to print some words.
SHOW = 20.0


class Test(msgspec.Struct, frozen=True):
    """A boot test that a release tells of: the guest's own launch, but for the words."""

    name: str
    title: str
    words: Options


# What a release is expected to have been tested with, beside the guest's own launch.
MACHINES: tuple[Machine, ...] = get_args(Machine)
CPUS = (1, 4, 8)
# 2 to 8 CPUs are what is said most of hot-adding; a DIMM of 2 GiB crosses 4 GiB on q35. 128 GiB is the BAR of an H100.
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
# What is kept of a boot test as evidence.
KEPT = ("console.log", "report.json", "verdict.json")
# And in its place of a test that this machine has no room for.
NO_ROOM = "no-room.json"
# And all that one makes in its folder.
MADE = (*KEPT, "OVMF_VARS.fd", arguments.LINK, "qemu.log", "qemu.sh", "qmp.sock", "report.jsonl")


# What a user may say of one boot test: the fields of Words.
OPTIONS = {
    "cpus": "how many CPUs",
    "memory": "how much memory, such as 2G",
    "gpu": "emulated cards or PCI addresses of the host's, with commas; none for none",
    "machine": "q35 or pc",
    "accel": "auto, kvm or tcg",
    "timeout": "seconds after which the guest counts as lost",
    "plug-cpus": "plug CPUs in while the guest runs, until there are so many",
    "unplug-cpus": "then take CPUs out again, until so many are left",
    "plug-memory": "plug memory in while the guest runs, until there is so much, such as 3G",
}
# And what takes no value.
FLAGS = {"power-button": "press the power button after the report: the guest must shut down in order"}


class Bench(msgspec.Struct, frozen=True):
    """Where a boot test is done."""

    name: str
    bundle: Path
    folder: Path
    """Gets console.log, report.json, verdict.json and qemu.sh; what a boot test before left in it is removed."""
    kvm: Path
    """A file: whether KVM runs this firmware on this machine."""
    pits: Path | None = None
    """configs/pits/: a guest that fails is told its pit."""
    evidence: Path | None = None
    """A folder: a run that is one of `cells` is kept here too, by the cell's name."""


class Outcome(msgspec.Struct, frozen=True):
    """verdict.json: the verdict and what it was about."""

    bundle: dict[str, manifests.File]
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
    run_guest: bool = False
    """Whether QEMU was told what the bundle's run-guest tells it, and no more than watching takes."""


class NoRoom(msgspec.Struct, frozen=True):
    """no-room.json: why a test was not run."""

    bundle: dict[str, manifests.File]
    wanted: Launch
    why: str


class Trial(msgspec.Struct, frozen=True):
    """What one start of QEMU came to."""

    verdict: verdict.Verdict | None
    """None: QEMU did not start the guest."""
    report: report.Report
    diagnosis: matching.Diagnosis
    blind: matching.Diagnosis
    """The same without knowing the kernel's config, as for a stranger's console."""
    argv: tuple[str, ...]
    refusal: str = ""
    """What QEMU said in place of starting."""

    @property
    def roots(self) -> tuple[str, ...]:
        return tuple(hit.id for hit in self.diagnosis.roots)


def tests(launch: Launch) -> list[Test]:
    """Every boot test that a release tells of; the guest's own launch is among them."""
    own = (launch.machine, launch.cpus)
    cells = {(machine, cpus) for machine in MACHINES for cpus in CPUS} | {own}
    found = []
    for machine, cpus in sorted(cells, key=lambda cell: (MACHINES.index(cell[0]), cell[1])):
        title = f"boot test: {machine}, {cpus} CPU{'s' * (cpus > 1)}"
        title += ", the guest's own launch" * ((machine, cpus) == own)
        found.append(Test(f"boot-test-{machine}-{cpus}", title, Options(cpus=str(cpus), machine=machine)))
    return found + EXTRA


def own_test(launch: Launch) -> str:
    """The name of the boot test of the guest's launch as its file says it."""
    return f"boot-test-{launch.machine}-{launch.cpus}"


def cannot(test: Test, launch: Launch, nr_cpus: int) -> str:
    """Why a guest of this launch cannot be tested so, if it cannot; `nr_cpus` is what its kernel was built for."""
    most = max(int(test.words.cpus or 0), int(test.words.plug_cpus or 0))
    if most > nr_cpus:
        return "the kernel was built for fewer CPUs"
    if test.words.plug_cpus and most > launch.max_cpus:
        return "the launch has no room for more CPUs"
    if test.words.machine == "pc" and any(node.gpus for node in launch.numa):
        return "the launch has cards near nodes, which pc has no buses for"
    if test.words.memory and launch.numa:
        return "the launch has its memory in nodes"
    return ""


def without_room(bench: Bench, test: Test, wanted: Launch) -> str:
    """Why a test's own cards have no room on this machine, by the plan, and keep that as evidence; empty: they have.

    The guest's own cards are what it is for: without room it fails.
    """
    if not test.words.gpu:
        return ""
    manifest = manifests.load(bench.bundle)
    spec = launch.settle(wanted, test.words, nr_cpus_of(bench.bundle), (), SYSFS, manifest.kernel.series)
    accel, _ = accelerator(bench, spec, emulator.version(), manifest)
    _, made = launch.with_room(msgspec.structs.replace(spec, accel=accel), SYSFS, CPUINFO.read_text(encoding="utf-8"))
    if made is None or made.fits:
        return ""
    said = [line.strip() for warning in bar_window_text.warnings(made) for line in warning.splitlines()]
    why = f"no room on this machine under {accel}: {'; '.join(said)}"
    if bench.evidence is not None:
        with files.replacing_tree(bench.evidence / test.name) as kept:
            files.write(kept / NO_ROOM, msgspec.json.encode(NoRoom(manifest.files, wanted, why)))
    return why


def run(bench: Bench, words: Options, wanted: Launch, say: Callable[[str], None]) -> None:
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
    say(matching.describe(trial.diagnosis))
    kind = GuestFailed if judged.result == "failed" else GuestLost
    raise kind(f"FAIL, {judged.result}: {judged.reason}", f"read {bench.folder / 'console.log'}")


def _pit(trial: Trial) -> str:
    return matching.describe(trial.diagnosis) if trial.diagnosis.roots else ""


def _boot(bench: Bench, words: Options, wanted: Launch, say: Callable[[str], None]) -> Trial:
    manifest = manifests.load(bench.bundle)
    nr_cpus = nr_cpus_of(bench.bundle)
    if manifest.config.problems:
        # contract=ignore: the guest is booted as it was meant, to see what comes of its wrong config.
        nr_cpus = max(nr_cpus, wanted.max_cpus)
    series = manifest.kernel.series
    spec = launch.settle(wanted, words, nr_cpus, emulator.display_models(), SYSFS, series)
    version = emulator.version()
    accel, why = accelerator(bench, spec, version, manifest)
    requested = msgspec.structs.replace(spec, accel=accel)
    cpuinfo = CPUINFO.read_text(encoding="utf-8")
    spec, made = launch.with_room(requested, SYSFS, cpuinfo)
    own = scripted(manifest, wanted, requested, cpuinfo)
    check_memory(spec, MEMINFO.read_text(encoding="utf-8"))
    folder = bench.folder
    make_empty(folder, bench.bundle)
    say(f"{bench.name}: linux {manifest.kernel.version}, OVMF {manifest.firmware.version}, {spec.machine}, {why}")
    if made is not None:
        say(launch.window_line(spec, made))
    known = catalogue.load(bench.pits) if bench.pits else {}
    breaches = breaches_of(known, bench.bundle / "kernel.config", wanted, spec, series)
    command = argv(bench, spec, folder)
    if own is not None:
        scripts = script_argv(folder, accel)
        if scripts != command:
            own = None
            say(f"{paths.RUN_GUEST}: does not know these cards as this machine has them, so it is not used")
    # A window that the launch insists on is not the plan's.
    window = made.window if made is not None and made.fits and not wanted.window else None
    shipped = verdict.Shipped(manifest.kernel.release, manifest.firmware.version)
    trial = attempt(spec, command, folder, known, breaches, manifest.config.problems, window=window, shipped=shipped)
    if trial.verdict is None:
        return trial
    outcome = Outcome(
        manifest.files, wanted, spec, version, why, trial.argv, trial.verdict, trial.roots, own is not None
    )
    files.write(folder / "verdict.json", msgspec.json.format(msgspec.json.encode(outcome)))
    test = next((test for test in tests(wanted) if is_of(spec, wanted, test)), None)
    # Cards of the test's own that have no room on this machine tell nothing of the bundle.
    hopeless = test is not None and test.words.gpu and made is not None and not made.fits
    if bench.evidence is not None and test is not None and not hopeless:
        with files.replacing_tree(bench.evidence / test.name) as kept:
            for name in KEPT:
                shutil.copyfile(folder / name, kept / name)
    return trial


def make_empty(folder: Path, of: Path) -> None:
    """Make a boot test's folder, or remove what one before left in it; UserError, and nothing is removed, where
    there is anything else. `of`: the bundle that it is about."""
    names = "|".join(map(re.escape, MADE))
    made = re.compile(rf"{names}|\.({names})\.\w{{8}}")  # or as files.replacing names it until it is whole
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    others = [path for path in there if not made.fullmatch(path.name) or (path.is_dir() and not path.is_symlink())]
    link = folder / arguments.LINK
    if there and not link.is_symlink():
        others = there  # it comes first, and stays
    if others:
        names = ", ".join(path.name for path in others[:3])
        raise UserError(
            f"{folder}: has {names}, which no boot test made; a boot test empties its folder first",
            "move that away, or give another folder with --work",
        )
    folder.mkdir(parents=True, exist_ok=True)
    for path in there:
        if path != link:
            path.unlink()
    _link(link, of)


def _link(link: Path, of: Path) -> None:
    """Link to a bundle from a boot test's folder: relative, so that qemu.sh can be moved with the bundle."""
    target = os.path.relpath(of.resolve(), link.parent.resolve())
    if link.is_symlink():
        if str(link.readlink()) == target:
            return
        link.unlink()
    link.symlink_to(target)


def check_memory(spec: launch.Spec, meminfo: str) -> None:
    """UserError for more memory than the host, whose /proc/meminfo is given, can ever give.

    QEMU would start, and be killed when the guest takes it; with a card all of it is taken at once.
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
    command: Sequence[str],
    folder: Path,
    known: Mapping[str, catalogue.Pit],
    breaches: Sequence[contract.Breach],
    problems: Sequence[str] = (),
    nmi: bool = False,
    window: bar_window.Window | None = None,
    shipped: verdict.Shipped | None = None,
) -> Trial:
    """Start QEMU in `folder`, which gets console.log, report.json and qemu.sh; judge and diagnose what came of it."""
    plugged = (spec.plug_memory - spec.memory,) if spec.plug_memory else ()
    try:
        deeds = qemu.Deeds(spec.plug_cpus, spec.unplug_cpus, plugged, nmi, spec.power_button)
        result = qemu.boot(command, folder, spec.timeout, deeds)
    except ToolError as error:
        said = (folder / "qemu.log").read_bytes() if (folder / "qemu.log").exists() else b""
        told = {**verdict.facts_of_launch(spec), "ending": "refused", "report": "none"}
        found = matching.diagnose(known, matching.see(said, facts=told))
        return Trial(None, report.Report(False, (), ()), found, found, tuple(command), str(error))
    seen = report.parse(result.report)
    files.write(folder / "report.json", msgspec.json.format(msgspec.json.encode(seen)))
    # QEMU's own words too: some pits are the host's.
    text = result.console + b"\n" + (folder / "qemu.log").read_bytes()
    found = matching.diagnose(known, matching.see(text, seen, verdict.facts(spec, result, seen), breaches))
    blind = matching.diagnose(known, matching.see(text, seen, verdict.facts(spec, result, seen))) if breaches else found
    judged = verdict.judge(spec, result, seen, problems, window, shipped)
    if known:
        judged = verdict.with_pits(judged, {hit.id: hit.pit.title for hit in found.roots})
    return Trial(judged, seen, found, blind, result.argv)


def breaches_of(
    known: Mapping[str, catalogue.Pit], config: Path, wanted: Launch, spec: launch.Spec, series: str
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
    return contract.check(
        catalogue.rules(known), kconfig.parse_config(config.read_text(encoding="utf-8")), launched, series
    )


def nr_cpus_of(folder: Path) -> int:
    """How many CPUs a bundle's kernel was built for."""
    config = kconfig.parse_config((folder / "kernel.config").read_text(encoding="utf-8"))
    return int(config.get("NR_CPUS", "1")) if config.get("SMP") == "y" else 1


def is_of(spec: launch.Spec, wanted: Launch, test: Test) -> bool:
    """Whether what was booted is this test of the guest's launch.

    How it is accelerated, how long it may take and what room its BARs were given does not matter; the verdict tells it.
    """
    words = test.words
    cpus = int(words.cpus or wanted.cpus)
    memory = words.memory or wanted.memory
    cards = words.gpu.split(",") if words.gpu else [name for name in wanted.gpus if name != "none"]
    return (
        (spec.machine, spec.cpus) == (words.machine or wanted.machine, cpus)
        and re.sub(WIDENED, "", spec.cpu) == re.sub(WIDENED, "", wanted.cpu)
        and spec.disks == wanted.disks
        and spec.max_cpus == max(cpus, wanted.max_cpus)
        and spec.memory == settings.size(memory, "launch.memory")
        and (spec.plug_cpus, spec.unplug_cpus) == (int(words.plug_cpus or 0), int(words.unplug_cpus or 0))
        and spec.plug_memory == (settings.size(words.plug_memory, "--plug-memory") if words.plug_memory else 0)
        and spec.power_button == words.power_button
        and spec.cmdline == wanted.cmdline
        and [_short(gpu.name) for gpu in spec.gpus] == [_short(name) for name in cards]
    )


def _short(word: str) -> str:
    return word.lower().removeprefix("0000:")


def scripted(manifest: manifests.Manifest, wanted: Launch, requested: launch.Spec, cpuinfo: str) -> launch.Spec | None:
    """The launch that the bundle's run-guest is for, if it is what is requested; the time that it may take is the
    asker's. None: it is another, or the bundle is of a minguest that made no run-guest."""
    if paths.RUN_GUEST not in manifest.files or wanted != manifest.guest.launch:
        return None
    own = launch.shipped(wanted, manifest.kernel.series, SYSFS, cpuinfo)[requested.accel]
    own = msgspec.structs.replace(own, timeout=requested.timeout)
    return own if msgspec.structs.replace(own, cpu=requested.cpu, window=requested.window) == requested else None


def argv(bench: Bench, spec: launch.Spec, folder: Path) -> list[str]:
    """QEMU's command for a boot test in `folder`, which gets what run-guest has in its own: a fresh copy of the
    variables, and the link to the bundle."""
    files.copy(bench.bundle / "OVMF_VARS.fd", folder / "OVMF_VARS.fd")
    _link(folder / arguments.LINK, bench.bundle)
    return arguments.argv(spec)


def script_argv(folder: Path, accel: Accel) -> list[str]:
    """The same by the bundle's own run-guest; `folder` is as `argv` left it."""
    # By sh: a bundle that was copied may have lost the bit that makes it a program.
    script = [f"{arguments.LINK}/{paths.RUN_GUEST}", "--accel", accel, "--show"]
    _, shown = run_tool(["sh", *script], cwd=folder, deadline=SHOW, merge=False)
    return arguments.watching(shown.split("\n"))


def accelerator(bench: Bench, spec: launch.Spec, version: str, manifest: manifests.Manifest) -> tuple[Accel, str]:
    """KVM or TCG, and why. What KVM answered is kept until QEMU, the bundle's bytes, the CPU or the host's kernel
    change; where it gave no answer, it is asked again the next time."""
    if spec.accel != "auto":
        return spec.accel, f"{spec.accel} as requested"
    if shut := kvm.closed():
        return "tcg", f"software emulation ({shut})"
    parts = (manifest.files["bzImage"], manifest.files["OVMF_CODE.fd"])
    key = msgspec.json.encode([version, platform.release(), *parts, spec.cpu, spec.hide_kvm]).decode()
    proof = _kept(bench.kvm, key)
    if proof is None:
        folder = bench.folder.with_name("kvm-proof")
        proof = kvm.prove(argv(bench, kvm.probe(spec, SYSFS, manifest.kernel.series), folder), folder)
        if proof.sure:
            files.write(bench.kvm, msgspec.json.encode((key, proof.works, proof.why)))
    return ("kvm", f"kvm ({proof.why})") if proof.works else ("tcg", f"software emulation ({proof.why})")


def _kept(place: Path, key: str) -> kvm.Proof | None:
    try:
        kept, works, why = msgspec.json.decode(place.read_bytes(), type=tuple[str, bool, str])
    except (OSError, msgspec.DecodeError):
        return None
    return kvm.Proof(works, why, True) if kept == key else None
