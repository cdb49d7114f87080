# SPDX-License-Identifier: Apache-2.0
"""Injects faults: starts a guest with one thing wrong, and compares what its verdict names with what was injected.

The cells of all pits on one series, healthy guests included, are the matrix.
"""

import difflib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from minguest import paths
from minguest.boottest import hostfaults, runner
from minguest.boottest.faults import FAULTS, Parts
from minguest.boottest.records import HEALTHY, MATRIX_SCHEMA, Cell, Matrix
from minguest.bundle import manifests
from minguest.diagnose import answer, catalogue
from minguest.kernel import kconfig
from minguest.model import Launch
from minguest.util import files, templates
from minguest.util.errors import MinguestError, UserError
from minguest.vm import arguments, emulator, launch

# Seconds after which a guest counts as lost; a healthy one is done in four to ten.
TIMEOUT = 40
# What an injection may need from the machine.
NEEDS = {"broken-kvm": "a /dev/kvm that opens and cannot run this guest"}
NODES = [{"cpus": "0-1", "memory": "512M"}, {"cpus": "2-3", "memory": "512M"}]
# Guests with nothing wrong, in the same run: they must pass, and no pit may be named.
CONTROLS = (
    catalogue.Injection("as-built"),
    catalogue.Injection("1-cpu", launch={"cpus": 1}),
    catalogue.Injection("pc-8-cpus", launch={"machine": "pc", "cpus": 8}),
    catalogue.Injection("256M", launch={"memory": "256M"}),
    catalogue.Injection("two-other-cards", launch={"gpus": ["virtio-gpu-pci", "bochs-display"]}),
    catalogue.Injection("bar-16G", launch={"gpus": ["bar:16G"]}),
    catalogue.Injection("bar-256G", launch={"gpus": ["bar:256G"]}),
    catalogue.Injection("two-nodes", launch={"numa": NODES}),
    catalogue.Injection("plugged", launch={"cpus": 2}, plug={"cpus": 4, "memory": "2G"}),
)
# The modules that inject and judge: when they change, kept cells are dropped.
CODE = (
    "boottest/drivers", "boottest/faults", "boottest/inject", "boottest/verdict", "diagnose/catalogue",
    "diagnose/facts", "diagnose/logs", "diagnose/matching", "kernel/contract", "util/pci", "util/units",
    "vm/arguments", "vm/bar_window", "vm/bar_window_text", "vm/cards", "vm/disks", "vm/emulator", "vm/launch",
    "vm/qemu", "vm/qmp", "vm/report",
)  # fmt: skip
# Builds a kernel with these options, and returns the folder with its bzImage and kernel.config.
Kernels = Callable[[Mapping[str, str | int | bool]], Path]


class Site(msgspec.Struct, frozen=True):
    """Where faults are injected."""

    bench: runner.Bench
    """The healthy guest's."""
    launch: Launch
    known: Mapping[str, catalogue.Pit]
    folder: Path
    """Gets matrix.json and, in runs/, a folder an injection."""
    package: Path
    """Debian's package of OVMF."""
    kernels: Kernels


Begin = Callable[[str], None]
"""Called with a cell's id before its files are replaced: what was known of it is dropped."""
Doer = Callable[[Site, manifests.Manifest, Sequence[tuple[str, catalogue.Injection]], Begin], Iterator[Cell]]
"""Injects each of some faults, in any order: here, or on other machines (minguest/scale)."""


def one_by_one(
    site: Site, manifest: manifests.Manifest, chosen: Sequence[tuple[str, catalogue.Injection]], begin: Begin
) -> Iterator[Cell]:
    """The Doer of this process."""
    for name, each in chosen:
        begin(planned(site, name, each).id)
        yield injected(site, name, each, manifest)


def verify(known: Mapping[str, catalogue.Pit]) -> None:
    """Check every injection; UserError names pit and value."""
    for name, pit in known.items():
        for each in pit.inject:
            where = f"{name}.toml: [[inject]] {each.name}".rstrip()
            for fault in each.fault:
                if fault not in FAULTS:
                    raise UserError(f"{where}: fault = {fault!r}: not known", f"known: {', '.join(FAULTS)}")
            if each.needs and each.needs not in NEEDS:
                raise UserError(f"{where}: needs = {each.needs!r}: not known", f"known: {', '.join(NEEDS)}")
            if each.host and each.host not in hostfaults.FAULTS:
                known_faults = ", ".join(hostfaults.FAULTS)
                raise UserError(f"{where}: host = {each.host!r}: not known", f"known: {known_faults}")
            if bool(each.cannot) == _changes(each):
                raise UserError(f"{where}: changes nothing", "give a change, or cannot = WHY, and not both")
            try:
                _launch(Launch(), each)
            except msgspec.ValidationError as error:
                raise UserError(f"{where}: launch: {error}") from error


def plan(known: Mapping[str, catalogue.Pit], series: str, only: Sequence[str]) -> list[tuple[str, catalogue.Injection]]:
    """What is injected, in order: controls, what needs no other kernel, the rest. UserError for an unknown id."""
    names = [HEALTHY, *(name for name, pit in known.items() if any(not each.host for each in pit.inject))]
    if unknown := [name for name in only if name not in names]:
        near = difflib.get_close_matches(unknown[0], names, 1)
        raise UserError(
            f"only={unknown[0]}: not a pit that can be injected",
            f"nearest: {near[0]}" if near else f"known: {', '.join(names)}",
        )
    injections = [(HEALTHY, each) for each in CONTROLS]
    injections += [
        (name, each)
        for name, pit in known.items()
        for each in pit.inject
        if not each.host and (not each.series or series in each.series)
    ]
    chosen = [(name, each) for name, each in injections if not only or name in only]
    return sorted(chosen, key=lambda pair: bool(pair[1].options))


def run(site: Site, only: Sequence[str], say: Callable[[str], None], doer: Doer = one_by_one) -> Matrix:
    """Inject, and write matrix.json after every cell. Cells of an earlier run with the same bytes and pits stay."""
    with files.lock(site.folder / ".run", lambda: say("waiting for another matrix")):
        return _run(site, only, say, doer)


def _run(site: Site, only: Sequence[str], say: Callable[[str], None], doer: Doer) -> Matrix:
    verify(site.known)
    manifest = manifests.load(site.bench.bundle)
    series = manifest.kernel.series
    chosen = plan(site.known, series, only)
    key = key_of(manifest, site.launch, site.known)
    kept = load(site.folder)
    cells = {cell.id: cell for cell in kept.cells} if kept and kept.key == key else {}
    order = [planned(site, name, each).id for name, each in plan(site.known, series, ())]

    def keep() -> Matrix:
        done = tuple(cells[each] for each in order if each in cells)
        whole = len(done) == len(order)
        matrix = Matrix(MATRIX_SCHEMA, series, manifest.kernel.version, manifest.files, key, whole, done)
        files.write(site.folder / "matrix.json", msgspec.json.format(msgspec.json.encode(matrix)))
        return matrix

    def begin(name: str) -> None:
        # Removed first: its console is about to be overwritten.
        cells.pop(name, None)
        keep()

    for cell in doer(site, manifest, chosen, begin):
        say(row(cell))
        cells[cell.id] = cell
        keep()
    return keep()


def key_of(manifest: manifests.Manifest, wanted: Launch, known: Mapping[str, catalogue.Pit]) -> str:
    """The key that a matrix must have to be valid for this bundle, this launch and these pits."""
    judged = [(name, pit.layer, pit.symptom, pit.require, pit.leads_to, pit.inject) for name, pit in known.items()]
    code = [files.sha256(paths.PACKAGE / f"{name}.py") for name in CODE]
    return hashlib.sha256(
        msgspec.json.encode([MATRIX_SCHEMA, manifest.files, wanted, CONTROLS, judged, code])
    ).hexdigest()


def load(folder: Path) -> Matrix | None:
    """The matrix of an earlier run; None if there is none, or it cannot be read."""
    try:
        return msgspec.json.decode((folder / "matrix.json").read_bytes(), type=Matrix)
    except (OSError, ValueError):
        return None


def row(cell: Cell) -> str:
    """One cell on the terminal."""
    shown = cell.got if cell.result == "right" else f"{cell.got or cell.why}"
    text = f"  {cell.result:<7}  {cell.id:<28}  {cell.seconds:5.1f} s  {shown}"
    if cell.result == "wrong":
        text += f"\n           done: {cell.done}\n           wanted: {cell.wanted}\n           {cell.why}"
    return text


def summary(cells: Iterable[Cell]) -> str:
    """How many cells have which result."""
    results = [cell.result for cell in cells]
    return ", ".join(f"{results.count(each)} {each}" for each in ("right", "wrong", "NOT RUN"))


def page(template: Path, matrices: Sequence[Matrix], folders: Sequence[str]) -> str:
    """The page: a row for each injection, a column for each series. `folders` are relative to the page."""
    by_series = [{cell.id: cell for cell in matrix.cells} for matrix in matrices]
    names = list(dict.fromkeys(name for cells in by_series for name in cells))
    return templates.render(
        template,
        all_series=list(zip(matrices, folders, strict=True)),
        rows=[
            (next(cells[name] for cells in by_series if name in cells), [c.get(name) for c in by_series])
            for name in names
        ],
        healthy=HEALTHY,
        summaries=[summary(matrix.cells) for matrix in matrices],
    )


def _changes(each: catalogue.Injection) -> bool:
    return bool(each.options or each.cmdline or each.launch or each.plug or each.fault or each.host)


def _launch(base: Launch, each: catalogue.Injection) -> Launch:
    """The healthy guest's launch with what the injection changes."""
    changed = {**msgspec.to_builtins(base), "timeout": TIMEOUT, **each.launch}
    return msgspec.convert({**changed, "cmdline": [*base.cmdline, *each.cmdline]}, Launch)


def planned(site: Site, name: str, each: catalogue.Injection) -> Cell:
    """The cell of an injection that was not tried yet."""
    title = site.known[name].title if name in site.known else "a guest with nothing wrong"
    done = [f"CONFIG_{option}={kconfig.spell(value)}" for option, value in each.options.items()]
    done += [*each.cmdline, *each.fault]
    done += [f"{key}={value}" for key, value in each.launch.items()]
    done += [f"plugged: {key} {value}" for key, value in each.plug.items()]
    if name == HEALTHY:
        wanted = "pass"
    else:
        wanted = " or ".join(each.result) + f": {', '.join(each.wrong)}" * bool(each.wrong) + f"; pit {name}"
    return Cell(name, each.name, title, ", ".join(done) or "nothing", wanted, "", "NOT RUN", each.cannot)


def injected(site: Site, name: str, each: catalogue.Injection, manifest: manifests.Manifest) -> Cell:
    """Inject one fault and see what is named. An error makes the cell wrong, and is not raised."""
    cell = planned(site, name, each)
    folder = site.folder / "runs" / cell.id
    shutil.rmtree(folder, ignore_errors=True)
    if each.cannot:
        return cell
    folder.mkdir(parents=True)
    start = time.monotonic()
    try:
        trial, why_not = attempt(site, each, manifest, folder)
    except MinguestError as error:
        return msgspec.structs.replace(cell, result="wrong", why=str(error), seconds=time.monotonic() - start)
    if trial is None:
        return msgspec.structs.replace(cell, why=why_not)
    why = against(name, each, trial, _blind(site, name, each))
    return msgspec.structs.replace(
        cell,
        got=_got(trial),
        result="wrong" if why else "right",
        why=why,
        diagnosis=answer.findings(trial.diagnosis),
        seconds=time.monotonic() - start,
        qemu=emulator.version(),
    )


def attempt(
    site: Site,
    each: catalogue.Injection,
    manifest: manifests.Manifest,
    folder: Path,
    *,
    button: bool = False,
    more: Sequence[Callable[[Parts], None]] = (),
) -> tuple[runner.Trial | None, str]:
    """The trial, in `folder`, which is empty; or None, and why this machine cannot try it.

    `button`: the power button is pressed after the report. `more`: other faults.
    """
    # A fault's parts have no disk of drivers.
    wanted = msgspec.structs.replace(_launch(site.launch, each), drivers=None)
    options = launch.Options(
        plug_cpus=str(each.plug.get("cpus", "")), plug_memory=str(each.plug.get("memory", "")), power_button=button
    )
    # The kernel may be for fewer CPUs than requested: that is what is tried.
    series = manifest.kernel.series
    spec = launch.settle(wanted, options, wanted.max_cpus, emulator.display_models(), runner.SYSFS, series)
    healthy, why = runner.accelerator(
        site.bench, msgspec.structs.replace(spec, accel="auto"), emulator.version(), manifest
    )
    if each.needs == "broken-kvm" and "/dev/kvm opens, but" not in why:
        return None, f"needs {NEEDS[each.needs]}"
    if spec.accel == "auto":
        spec = msgspec.structs.replace(spec, accel=healthy)
    spec, _ = launch.with_room(spec, runner.SYSFS, runner.CPUINFO.read_text(encoding="utf-8"))
    own = site.kernels(each.options) if each.options else site.bench.bundle
    base = site.bench.bundle
    parts = Parts(
        folder, site.package, base / "OVMF_CODE.fd", base / "OVMF_VARS.fd", own / "bzImage", base / "initrd.img"
    )
    for change in (*(FAULTS[fault] for fault in each.fault), *more):
        change(parts)
    files.copy(parts.variables, folder / "OVMF_VARS.fd")
    argv = arguments.argv(
        spec,
        code=os.path.relpath(parts.code, folder),
        variables="OVMF_VARS.fd",
        kernel=os.path.relpath(parts.kernel, folder),
        initrd=os.path.relpath(parts.initrd, folder),
    )
    for edit in parts.edits:
        argv = edit(argv)
    breaches = runner.breaches_of(site.known, own / "kernel.config", wanted, spec, series)
    trial = runner.attempt(spec, argv, folder, site.known, breaches, nmi=parts.nmi)
    if trial.verdict:
        files.write(folder / "verdict.json", msgspec.json.format(msgspec.json.encode(trial.verdict)))
    return trial, ""


def wrong_rows(trial: runner.Trial) -> list[str]:
    """The rows of the verdict that are not as they must be."""
    return [check.name for check in trial.verdict.checks if not check.ok] if trial.verdict else []


def _result(trial: runner.Trial) -> str:
    return trial.verdict.result if trial.verdict else "not started"


def _got(trial: runner.Trial) -> str:
    wrong = wrong_rows(trial)
    named = ", ".join(trial.roots)
    text = _result(trial) + (f": {', '.join(wrong)}" if wrong else "")
    return f"{text}; pit {named}" if named else text


def _blind(site: Site, name: str, each: catalogue.Injection) -> str:
    """What must be named if the kernel's config is not known."""
    if each.blind is not None:
        return each.blind
    return name if name in site.known and site.known[name].symptom else ""


def against(name: str, each: catalogue.Injection, trial: runner.Trial, blind: str) -> str:
    """What in the trial is not as it must be; empty if nothing."""
    against = []
    results = ("pass",) if name == HEALTHY else each.result
    if _result(trial) not in results:
        reason = trial.verdict.reason if trial.verdict else trial.refusal
        against.append(f"the verdict is {_result(trial)}: {reason}")
    elif set(wrong_rows(trial)) != set(each.wrong):
        rows = (
            "; ".join(f"{each.name}: {each.why}" for each in trial.verdict.checks if not each.ok)
            if trial.verdict
            else ""
        )
        against.append(f"wrong rows are {rows or 'none'}")
    if trial.roots != (() if name == HEALTHY else (name,)):
        against.append(f"it names {', '.join(trial.roots) or 'no pit'}")
    if (named := ", ".join(hit.id for hit in trial.blind.roots)) != blind:
        against.append(f"without the kernel's config it names {named or 'no pit'}, not {blind or 'none'}")
    if trial.diagnosis.unexplained:
        against.append(f"unexplained: {', '.join(hit.id for hit in trial.diagnosis.unexplained)}")
    return "; ".join(against)
