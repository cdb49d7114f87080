# SPDX-License-Identifier: Apache-2.0
"""One boot of a guest, ours or a peer's: QEMU's command from the bundle's own run-guest, and when it wrote what.

QEMU writes to pipes, which are read as it does: what came carries the time. Nothing else runs meanwhile.
"""

import contextlib
import fcntl
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from minguest import paths, settings
from minguest.bundle import firmware, manifests
from minguest.util import fetch, files
from minguest.util.errors import UserError
from minguest.util.run import bound, end_group, require, run
from minguest.vm import arguments, console, report
from minguest.vm.disks import comma
from tests import ROOT
from tests.bench import consoles
from tests.bench.consoles import Pieces

# Seconds that run-guest has to print QEMU's command, and that a guest has to power off after its report.
SHOW, POWER_OFF = 20.0, 10.0
PIPE = 1 << 20
PORTS = ("console", "report", "debug")
# QEMU's drive of the firmware's code, but for the file's path.
CODE = "if=pflash,unit=0,format=raw,readonly=on,file="
# How many of a failed guest's last lines are shown.
TAIL = 3


class Guest(msgspec.Struct, frozen=True):
    """What is started: a bundle, perhaps with another kernel and firmware in it."""

    name: str
    bundle: Path
    kernel: Path
    firmware: Path
    """A folder with OVMF_CODE.fd and OVMF_VARS.fd."""
    cpus: int
    most: int
    """CPUs that there may be, plugged in ones included."""
    peer: bool = False
    like: str = ""
    """The guest that this one is a variant of, by its name; empty: it is none."""
    append: str = ""
    """More kernel parameters."""


class Change(msgspec.Struct, frozen=True):
    """How a boot differs from the guest's own launch."""

    cpus: int = 0
    memory: int = 0
    """MiB; 0: the launch's."""
    append: str = ""
    counted: bool = False
    """One CPU, and its clock counts its instructions: one a nanosecond. While the CPU waits, the clock jumps to its
    next timer."""


class Boot(msgspec.Struct, frozen=True):
    """What one boot wrote, and when; seconds since QEMU's start."""

    console: Pieces
    report: Pieces
    debug: Pieces
    """OVMF's debug port: empty for a build that does not use it."""
    wall: float
    cpu: float
    """CPU seconds of QEMU, user and system."""
    status: int | None
    """QEMU's exit status; None: it was ended."""
    said: str
    """By QEMU itself."""


def ours(bundle: Path, name: str = "") -> Guest:
    """A bundle as it is; UserError if it is not whole, or has no run-guest."""
    manifest = manifests.load(bundle)
    if paths.RUN_GUEST not in manifest.files:
        raise UserError(f"{bundle}: has no {paths.RUN_GUEST}, so it cannot be started as it ships", "doit build")
    launch = manifest.guest.launch
    own = name or f"{manifest.guest.name}-{manifest.kernel.series}"
    return Guest(own, bundle.resolve(), bundle.resolve() / "bzImage", bundle.resolve(), launch.cpus, launch.max_cpus)


def quiet(guest: Guest) -> Guest:
    """The same guest with a quiet console; what comes last on a command line wins."""
    return msgspec.structs.replace(guest, name=f"{guest.name}+quiet", like=guest.name, append=" ".join(arguments.QUIET))


def debians_ovmf(say: Callable[[str], None]) -> Path:
    """A folder with Debian's OVMF, which peers are started with: fetched, verified, unpacked."""
    source = settings.sources(ROOT / "configs/sources.toml").firmware["ovmf"]
    target = ROOT / "out/bench/ovmf"
    firmware.unpack(fetch.fetch(source, f"OVMF {source.version}", settings.cache_folder(), say), source, target)
    return target


def peer(like: Guest, name: str, kernel: Path, firmware: Path) -> Guest:
    """Another kernel in the same launch with the same initrd; UserError for a file that is missing."""
    for path in (kernel, firmware / "OVMF_CODE.fd", firmware / "OVMF_VARS.fd"):
        if not path.is_file():
            raise UserError(f"{path}: no such file, for the peer {name}", "--peer NAME=BZIMAGE, --firmware FOLDER")
    return msgspec.structs.replace(like, name=name, kernel=kernel.resolve(), firmware=firmware.resolve(), peer=True)


def command(shown: Sequence[str], guest: Guest, change: Change) -> list[str]:
    """QEMU's command for this boot, from what run-guest shows: ports as pipes, another kernel and firmware, fewer CPUs.
    UserError if it is not a command of run-guest."""
    if tuple(shown[-len(arguments.ATTENDED) :]) != arguments.ATTENDED:
        raise UserError(f"{guest.bundle}/{paths.RUN_GUEST}: shows another command than minguest's", "doit build")
    argv = list(shown[: -len(arguments.ATTENDED)])
    replaced = {
        "-kernel": {argv[argv.index("-kernel") + 1]: str(guest.kernel)},
        "-drive": {
            f"{CODE}{arguments.LINK}/OVMF_CODE.fd": f"{CODE}{comma(str(guest.firmware / 'OVMF_CODE.fd'))}",
        },
    }
    if change.memory:
        replaced["-m"] = {argv[argv.index("-m") + 1]: f"{change.memory}M"}
    if change.cpus:
        now = argv[argv.index("-smp") + 1]
        replaced["-smp"] = {now: f"{change.cpus},maxcpus={max(change.cpus, guest.most)}"}
    argv = [replaced.get(before, {}).get(each, each) for before, each in zip(("", *argv), argv, strict=False)]
    argv += ["-chardev", "file,id=console,path=console", "-global", "isa-debugcon.iobase=0x402"]
    argv += ["-chardev", "file,id=debug,path=debug", "-device", "isa-debugcon,chardev=debug"]
    if change.counted:
        argv += ["-icount", "shift=0,sleep=off"]
    return [{"file,id=report,path=report.jsonl": "file,id=report,path=report"}.get(each, each) for each in argv]


def boot(guest: Guest, change: Change, deadline: float) -> Boot:
    """Start the guest and read its ports until QEMU ends; one that does not power off, or misses the deadline in
    seconds, is ended. UserError or ToolError if there is no QEMU, or no such bundle."""
    change = msgspec.structs.replace(change, cpus=1) if change.counted else change
    with tempfile.TemporaryDirectory(prefix="minguest-bench-") as name:
        folder = Path(name)
        (folder / arguments.LINK).symlink_to(guest.bundle)
        append = " ".join(filter(None, (guest.append, change.append)))
        script = [f"{arguments.LINK}/{paths.RUN_GUEST}", "--accel", "tcg", "--append", append, "--show"]
        _, shown = run(["sh", *script], cwd=folder, deadline=SHOW, merge=False)
        files.copy(guest.firmware / "OVMF_VARS.fd", folder / "OVMF_VARS.fd")
        (folder / "OVMF_VARS.fd").chmod(0o600)
        argv = command(shown.split("\n"), guest, change)
        return _watch([require(argv[0]), *argv[1:]], folder, deadline)


def _watch(argv: Sequence[str], folder: Path, deadline: float) -> Boot:
    got: dict[str, list[tuple[float, bytes]]] = {name: [] for name in PORTS}
    with contextlib.ExitStack() as stack, (folder / "said").open("w+b") as said:
        ready = stack.enter_context(selectors.DefaultSelector())
        for name in PORTS:
            os.mkfifo(folder / name)
            port = os.open(folder / name, os.O_RDONLY | os.O_NONBLOCK)
            stack.callback(os.close, port)
            fcntl.fcntl(port, fcntl.F_SETPIPE_SZ, PIPE)
            ready.register(port, selectors.EVENT_READ, name)
        start = time.monotonic()
        process = subprocess.Popen(
            bound(argv), cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
        )
        try:
            alive = os.pidfd_open(process.pid)
            stack.callback(os.close, alive)
            ready.register(alive, selectors.EVENT_READ, "")
            ended = _read(ready, got, start, deadline)
        finally:
            end_group(process)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - start
        said.seek(0)
        text = said.read().decode(errors="replace").strip()
    cpu = used.ru_utime + used.ru_stime
    return Boot(got["console"], got["report"], got["debug"], wall, cpu, process.returncode if ended else None, text)


def _read(
    ready: selectors.BaseSelector, got: dict[str, list[tuple[float, bytes]]], start: float, deadline: float
) -> bool:
    """Read until QEMU has ended (True), or has to be ended."""
    until = start + deadline
    reported = False
    while (left := until - time.monotonic()) > 0:
        for key, _ in ready.select(left):
            now = time.monotonic() - start
            if not key.data:
                # What is in the pipes still: QEMU wrote it before.
                for other in [each for each in ready.get_map().values() if each.data]:
                    with contextlib.suppress(BlockingIOError):
                        while piece := os.read(other.fd, PIPE):
                            got[other.data].append((now, piece))
                return True
            if piece := os.read(key.fd, PIPE):
                got[key.data].append((now, piece))
            else:
                ready.unregister(key.fileobj)
        if not reported and (reported := consoles.line(got["report"], report.END) is not None):
            until = min(until, time.monotonic() + POWER_OFF)
    return False


def problem(seen: Boot, cpus: int, deadline: float) -> str:
    """What was wrong with a boot; empty: the guest reported all its CPUs and powered off."""
    found = report.parse(consoles.whole(seen.report))
    lines = console.tail(console.lines(consoles.whole(seen.console)), TAIL)
    debug = consoles.whole(seen.debug).decode(errors="replace").strip().splitlines()
    last = f"; the console ends: {' / '.join(line.text[:100] for line in lines)}" if lines else "; an empty console"
    if debug and not lines:
        last += f"; OVMF's debug port ends: {' / '.join(line[:100] for line in debug[-TAIL:] if line)}"
    if not found.complete and seen.status:
        return f"QEMU ended with status {seen.status}: {seen.said[-300:] or 'no message'}"
    if not found.complete:
        ended = f"ended at its deadline of {deadline:g} s" if seen.status is None else "the guest ended"
        return f"no whole report: {ended}{last}"
    online = report.cpu_count(found.record("cpus").get("online") or "")
    wrong = [f"{online} of {cpus} CPUs"] if online != cpus else []
    wrong += [f"it did not power off within {POWER_OFF:g} s of its report"] if seen.status is None else []
    return "; ".join(wrong)
