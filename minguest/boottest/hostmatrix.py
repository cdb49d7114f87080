# SPDX-License-Identifier: Apache-2.0
"""The host's column of the fault matrix: each host fault in a real, emulated host, and whether its logs name its pit.

QEMU emulates the host, as in a rehearsal; in it a second QEMU, of the same or of another version, is started with VFIO
on a card. What that QEMU and the host's kernel say is diagnosed as a user's logs are.
"""

import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from minguest.boottest import hostfaults, inject, rehearse
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


def make(site: Site, say: Callable[[str], None], only: Sequence[str] = ()) -> Matrix:
    """Bring about all faults, and write matrix.json."""
    theirs = version(site.system)
    folder = site.folder / f"host-qemu-{theirs}"
    host = manifests.load(site.host)
    number = tuple(int(each) for each in re.findall(r"\d+", theirs)[:2])
    chosen = [(name, each) for name, each in wanted(site.known) if not only or name in only]
    cells: dict[str, Cell] = {}
    for name, each in chosen:
        fault = FAULTS.get(each.host, CONTROL)
        cell = _cell(site, name, each, theirs)
        if number < fault.since:
            cell = msgspec.structs.replace(cell, why=f"needs QEMU {'.'.join(map(str, fault.since))}")
            cells[cell.id] = cell
            say(inject.row(cell))
    platforms = dict.fromkeys(FAULTS.get(each.host, CONTROL).platform for _, each in chosen)
    shutil.rmtree(folder, ignore_errors=True)
    for platform in platforms:
        todo = {
            _cell(site, name, each, theirs).id: (name, each)
            for name, each in chosen
            if FAULTS.get(each.host, CONTROL).platform == platform
        }
        todo = {key: pair for key, pair in todo.items() if key not in cells}
        place = folder / "hosts" / platform
        uptimes = _host(site, platform, {key: FAULTS.get(each.host, CONTROL) for key, (_, each) in todo.items()}, place)
        before = 0.0
        for key, (name, each) in todo.items():
            cell = _judge(site, _cell(site, name, each, theirs), each, place / "share" / key, uptimes.get(key))
            if step := uptimes.get(key):
                cell = msgspec.structs.replace(cell, seconds=step.uptime - before)
                before = step.uptime
            if (place / "share" / key).is_dir():
                shutil.copytree(place / "share" / key, folder / "runs" / key)
            cells[key] = cell
            say(inject.row(cell))
    order = [_cell(site, name, each, theirs).id for name, each in chosen]
    matrix = Matrix(
        MATRIX_SCHEMA,
        f"host, QEMU {theirs}",
        host.kernel.version,
        host.files,
        "",
        not only,
        tuple(cells[each] for each in order),
    )
    files.write(folder / "matrix.json", msgspec.json.format(msgspec.json.encode(matrix)))
    return matrix


def _host(site: Site, platform: Platform, faults: Mapping[str, Fault], folder: Path) -> dict[str, rehearse.Step]:
    """Start one host, which goes through its faults. What each did, as far as it came."""
    found = [cards.one_gpu("card0", hostfaults.CARDS[platform], emulator.display_models(), Path("/sys"))]
    console = "" if platform == "framebuffer" else rehearse.NO_CONSOLE
    spec = rehearse.host_spec(found, GUEST_MEMORY, TIMEOUT, console)
    (folder / "share").mkdir(parents=True)
    files.copy(site.host / "OVMF_VARS.fd", folder / "OVMF_VARS.fd")
    text = script(site, faults)
    files.write(folder / "share" / rehearse.SCRIPT, text)
    (folder / "share" / rehearse.SCRIPT).chmod(0o755)
    argv = rehearse.argv(site.host.resolve(), spec, found, hostfaults.IOMMUS[platform])
    result = qemu.boot(argv, folder, TIMEOUT, linger=TIMEOUT)
    steps = {step.name: step for step in rehearse.read_steps(folder / "share" / rehearse.STEP_FILE)}
    if not steps:
        raise GuestLost(
            f"the host {platform} did none of its steps: {result.ending} {result.detail}", f"read {folder}/console.log"
        )
    return steps


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


def _judge(site: Site, cell: Cell, each: catalogue.Injection, folder: Path, step: rehearse.Step | None) -> Cell:
    """What the logs of one fault name."""
    if step is None:
        return msgspec.structs.replace(cell, result="wrong", why="the host did not come as far")
    read = []
    for name in ("qemu.log", "host.log"):
        text = (folder / name).read_bytes()
        if text.strip():
            read.append(logs.unwrapped(name, text))
    seen = matching.boot(read)
    found = matching.diagnose(site.known, *seen)
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
