# SPDX-License-Identifier: Apache-2.0
"""The host's column of the fault matrix: each host fault in a real, emulated host, and whether its logs name its pit.

QEMU emulates the host, as in a rehearsal; in it a second QEMU, of the same or of another version, is started with VFIO
on a card. What that QEMU and the host's kernel say is diagnosed as a user's logs are.
"""

import hashlib
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from minguest import paths
from minguest.boottest import hostfaults, inject, rehearse, steps
from minguest.boottest.hostfaults import FAULTS, Fault, Platform
from minguest.boottest.records import HEALTHY, MATRIX_SCHEMA, Cell, Matrix
from minguest.bundle import manifests
from minguest.diagnose import answer, catalogue, logs, matching
from minguest.util import files, run, templates
from minguest.util.errors import GuestLost, UserError
from minguest.vm import cards, emulator, qemu

# Seconds of the host's time that a guest runs where nothing stops it.
SECONDS = 40
# Seconds for one host with all of its faults.
TIMEOUT = 900
GUEST_MEMORY = 512 << 20
CONTROL = Fault('bind "$card" "$second"; vm -device vfio-pci,host="$card"')
HEALTHY_HOST = catalogue.Injection("host", result=("started",))
RAN = 124  # timeout's status

# The modules that bring about and judge: when they change, kept cells are dropped.
CODE = (
    "boottest/hostfaults", "boottest/hostmatrix", "boottest/rehearse", "boottest/steps", "diagnose/catalogue",
    "diagnose/facts", "diagnose/logs", "diagnose/matching", "vm/arguments", "vm/qemu",
)  # fmt: skip

OPTIONS = {"qemu": "the root of a system with another QEMU, such as one that debootstrap made; default: this machine's"}


class Site(msgspec.Struct, frozen=True):
    """Where the host's faults are brought about."""

    host: Path
    """The host's bundle."""
    known: Mapping[str, catalogue.Pit]
    folder: Path
    """Gets a folder for each QEMU."""
    templates: Path
    system: Path | None
    """The root of the system whose QEMU starts the guests; None: this machine's."""


def wanted(known: Mapping[str, catalogue.Pit]) -> list[tuple[str, catalogue.Injection]]:
    """The pits that a host's fault brings about, and the control."""
    return [
        (HEALTHY, HEALTHY_HOST),
        *((name, each) for name, pit in known.items() for each in pit.inject if each.host),
    ]


def version(system: Path | None) -> str:
    """That of the QEMU that starts the guests: `10.0.2`."""
    if system is None:
        return emulator.version().split()[0]
    if not (system / "usr/bin/qemu-system-x86_64").exists():
        raise UserError(
            f"--qemu {system}: no usr/bin/qemu-system-x86_64 in it",
            "debootstrap --include=qemu-system-x86,util-linux trixie DIR",
        )
    said = run.run(["chroot", system, "qemu-system-x86_64", "--version"])[1]
    found = re.search(r"version (\S+)", said)
    if not found:
        raise UserError(f"--qemu {system}: its QEMU does not say its version: {said[:80]!r}")
    return found[1]


class _Trial(msgspec.Struct, frozen=True):
    cell: Cell
    each: catalogue.Injection
    fault: Fault


def make(site: Site, say: Callable[[str], None], only: Sequence[str] = ()) -> Matrix:
    """Bring about the faults of `only`, or all, and write matrix.json. Other cells stay where they are still valid."""
    theirs = version(site.system)
    trials = _trials(site, theirs)
    names = list(dict.fromkeys(trial.cell.pit for trial in trials))
    if unknown := [name for name in only if name not in names]:
        raise UserError(f"only={unknown[0]}: no pit that a host's fault brings about", f"known: {', '.join(names)}")
    folder = site.folder / f"host-qemu-{theirs}"
    with files.lock(folder.with_name(f".{folder.name}.run"), lambda: say("waiting for another matrix of the host")):
        return _make(site, theirs, folder, [trial for trial in trials if not only or trial.cell.pit in only], say)


def _make(site: Site, theirs: str, folder: Path, chosen: Sequence[_Trial], say: Callable[[str], None]) -> Matrix:
    host = manifests.load(site.host)
    key = key_of(site, host, theirs)
    kept = inject.load(folder)
    cells = {cell.id: cell for cell in kept.cells} if kept and kept.key == key else {}
    if not cells:
        shutil.rmtree(folder, ignore_errors=True)
    by_platform: dict[Platform, list[_Trial]] = {}
    for trial in chosen:
        cells.pop(trial.cell.id, None)
        if _number(theirs) < trial.fault.since:
            why = f"needs QEMU {'.'.join(map(str, trial.fault.since))}"
            cells[trial.cell.id] = msgspec.structs.replace(trial.cell, why=why)
            say(inject.row(cells[trial.cell.id]))
        else:
            by_platform.setdefault(trial.fault.platform, []).append(trial)
    for platform, trials in by_platform.items():
        for cell in _host(site, platform, trials, folder):
            cells[cell.id] = cell
            say(inject.row(cell))
    order = [trial.cell.id for trial in _trials(site, theirs)]
    done = tuple(cells[each] for each in order if each in cells)
    matrix = Matrix(
        MATRIX_SCHEMA, f"host, QEMU {theirs}", host.kernel.version, host.files, key, len(done) == len(order), done
    )
    files.write(folder / "matrix.json", msgspec.json.format(msgspec.json.encode(matrix)))
    return matrix


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(each) for each in re.findall(r"\d+", version)[:2])


def _trials(site: Site, theirs: str) -> list[_Trial]:
    return [
        _Trial(_cell(site, name, each, theirs), each, FAULTS.get(each.host, CONTROL))
        for name, each in wanted(site.known)
    ]


def key_of(site: Site, host: manifests.Manifest, theirs: str) -> str:
    """The key that a matrix must have for its cells to be kept."""
    judged = [(name, pit.layer, pit.symptom, pit.leads_to, pit.inject) for name, pit in site.known.items()]
    code = [files.sha256(paths.PACKAGE / f"{name}.py") for name in CODE]
    script = files.sha256(site.templates / "hostfaults.j2")
    return hashlib.sha256(
        msgspec.json.encode([MATRIX_SCHEMA, theirs, host.files, judged, FAULTS, CONTROL, code, script])
    ).hexdigest()


def _host(site: Site, platform: Platform, trials: Sequence[_Trial], folder: Path) -> Iterator[Cell]:
    """Start one host, which goes through its faults; what their logs name."""
    place = folder / "hosts" / platform
    share = place / "share"
    shutil.rmtree(place, ignore_errors=True)
    share.mkdir(parents=True)
    files.copy(site.host / "OVMF_VARS.fd", place / "OVMF_VARS.fd")
    files.write(share / rehearse.SCRIPT, script(site, {trial.cell.id: trial.fault for trial in trials}))
    (share / rehearse.SCRIPT).chmod(0o755)
    found = [cards.one_gpu("card0", hostfaults.CARDS[platform], emulator.display_models(), Path("/sys"))]
    console = "" if platform == "framebuffer" else rehearse.NO_CONSOLE
    spec = rehearse.host_spec(found, GUEST_MEMORY, TIMEOUT, console)
    argv = rehearse.argv(site.host.resolve(), spec, found, hostfaults.IOMMUS[platform])
    result = qemu.boot(argv, place, TIMEOUT, linger=TIMEOUT)
    done = {step.name: step for step in steps.read(share)}
    if not done:
        raise GuestLost(
            f"the host {platform} did none of its steps: {result.ending} {result.detail}", f"read {place}/console.log"
        )
    before = 0.0
    for trial in trials:
        name = trial.cell.id
        step = done.get(name)
        cell = judge(site.known, trial.cell, trial.each, share / name, step)
        runs = folder / "runs" / name
        shutil.rmtree(runs, ignore_errors=True)
        if step is not None:
            shutil.copytree(share / name, runs)
            cell = msgspec.structs.replace(cell, seconds=step.uptime - before)
            before = step.uptime
        yield cell


def script(site: Site, faults: Mapping[str, Fault]) -> str:
    """What the host runs."""
    card = rehearse.address(0)
    system = shlex.quote(str(site.system.resolve())) if site.system else ""
    return templates.render(
        site.templates / "hostfaults.j2",
        card=card,
        second=rehearse.second(card),
        system=system,
        chroot=f"chroot {system}" if system else "",
        seconds=SECONDS,
        firmware=shlex.quote(str(site.host.resolve())),
        faults=[
            (shlex.quote(name), shlex.quote(fault.script), shlex.quote(fault.undo)) for name, fault in faults.items()
        ],
    )


def _cell(site: Site, name: str, each: catalogue.Injection, theirs: str) -> Cell:
    title = site.known[name].title if name in site.known else "a host with nothing wrong"
    follows = " or ".join(each.result) + (f"; pit {name}" if name != HEALTHY else "")
    return Cell(name, each.name, title, f"host: {each.host or 'as it should be'}", follows, "", "NOT RUN", qemu=theirs)


def judge(
    known: Mapping[str, catalogue.Pit],
    cell: Cell,
    each: catalogue.Injection,
    folder: Path,
    step: steps.Step | None,
) -> Cell:
    """What the logs of one fault name, and whether that is right. `step`: what QEMU ended with; None: not reached."""
    if step is None:
        return msgspec.structs.replace(cell, result="wrong", why="the host did not come as far")
    read = []
    for name in ("qemu.log", "host.log"):
        text = (folder / name).read_bytes()
        if text.strip():
            read.append(logs.unwrapped(name, text))
    seen = matching.boot(read)
    found = matching.diagnose(known, *seen)
    named = tuple(hit.id for hit in found.roots)
    came = "started" if step.status == RAN else "not started"
    against = []
    if came not in each.result:
        against.append(f"the guest {came.replace('not started', 'did not start')} (status {step.status})")
    if named != (() if cell.pit == HEALTHY else (cell.pit,)):
        against.append(f"it names {', '.join(named) or 'no pit'}")
    if found.unexplained:
        against.append(f"unexplained: {', '.join(hit.id for hit in found.unexplained)}")
    return msgspec.structs.replace(
        cell,
        got=came + (f"; pit {', '.join(named)}" if named else ""),
        result="wrong" if against else "right",
        why="; ".join(against),
        diagnosis=answer.findings(found, ()),
    )
