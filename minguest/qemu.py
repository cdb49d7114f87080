# SPDX-License-Identifier: Apache-2.0
"""Starts QEMU, listens to it until the guest is done or the time is over, asks it what it made, and ends it.

Every wait is bounded. QEMU runs in a process group of its own that is gone when `boot` returns.
"""

import asyncio
import contextlib
import os
import shlex
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
from qemu.qmp import EventListener, Message, QMPClient, QMPError

from minguest import files, run
from minguest.errors import ToolError
from minguest.report import BEGIN, END, IN_USE, READY

# Seconds between two looks at the report file and at QEMU.
LOOK = 0.02
# Seconds that a guest has to power off after its report ended. Without ACPI it cannot, and halts.
POWER_OFF = 10.0
# Seconds for one QMP answer.
ANSWER = 10.0
# Bytes of console after which the guest counts as lost: it repeats itself.
CONSOLE_MAX = 64 << 20

# Where a guest stands for ever, by its words on the console: it is given DEAD_END seconds to say the rest.
DEAD_ENDS = {
    b"UEFI Interactive Shell": "it stands in the UEFI shell: the firmware could not start the kernel",
    b"!!!! X64 Exception Type": "the firmware crashed",
    b"-- System halted": "the kernel's decompressor halted",
}
DEAD_END = 2.0

Ending = Literal[
    "power-off",
    "no power-off",
    "reset",
    "dead end",
    "deadline",
    "panic",
    "internal error",
    "qemu died",
    "console flood",
]
QUERIES = {
    "version": "query-version",
    "kvm": "query-kvm",
    "cpus": "query-cpus-fast",
    "hotpluggable_cpus": "query-hotpluggable-cpus",
    "memory": "query-memory-size-summary",
    "pci": "query-pci",
}


class Deeds(msgspec.Struct, frozen=True):
    """What is done to a guest while it runs."""

    cpus: int = 0
    """CPUs are plugged in until there are so many, once initd says that it is ready."""
    left: int = 0
    """And taken out again until so many are left, once it has them; 0: none is."""
    dimms: tuple[int, ...] = ()
    """Bytes of DIMMs that are plugged in then."""
    nmi: bool = False
    """A non-maskable interrupt after the report."""


NOTHING = Deeds()


class Run(msgspec.Struct, frozen=True):
    """What came of one start of QEMU. Times are seconds since it was started."""

    argv: tuple[str, ...]
    ending: Ending
    detail: str
    console: bytes
    report: bytes
    views: dict[str, Any]
    """Answers of QMP by the names in QUERIES; empty when QEMU could not be asked."""
    begin: float | None
    """When the report's first line came."""
    end: float | None
    """When the report's last line came."""
    wall: float


def boot(
    argv: Sequence[str],
    folder: Path,
    timeout: float,
    deeds: Deeds = NOTHING,
    linger: float = POWER_OFF,
    look: Callable[[], None] | None = None,
) -> Run:
    """Run QEMU in `folder`, which gets console.log, report.jsonl, qemu.sh and qemu.log.

    `linger`: seconds that the guest may run on after its report. `look` is called many times a second meanwhile.

    ToolError if QEMU is missing, ends before the guest has run, or refuses one of the deeds.
    """
    program = run.require(argv[0])
    for name in ("report.jsonl", "qmp.sock"):
        (folder / name).unlink(missing_ok=True)
    (folder / "report.jsonl").touch()
    files.write(folder / "qemu.sh", script(argv))
    (folder / "qemu.sh").chmod(0o755)
    return asyncio.run(_boot(program, list(argv), folder, timeout, deeds, linger, look))


def kvm_works(argv: Sequence[str], folder: Path, timeout: float) -> tuple[bool, str]:
    """Whether this guest, firmware and all, runs under KVM here, and why not. `argv` has accel=kvm.

    That /dev/kvm opens proves nothing: there are hosts where KVM runs a kernel and cannot run OVMF.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False, "/dev/kvm cannot be opened"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        result = boot(argv, folder, timeout)
    except ToolError:
        return False, f"/dev/kvm opens, but QEMU ended at once with it, see {folder.name}/qemu.log"
    if END in result.report:
        return True, "OVMF and the kernel ran under it"
    return False, f"/dev/kvm opens, but OVMF or the kernel did not run under it: {result.detail}"


def version() -> str:
    """QEMU's own version, such as `7.2.22 (Debian …)`."""
    _, text = run.run(["qemu-system-x86_64", "--version"])
    return text.splitlines()[0].removeprefix("QEMU emulator version ")


def functions(buses: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every PCI function that query-pci tells, by address, bridges' too."""
    found = {}
    pending = [device for bus in buses for device in bus["devices"]]
    while pending:
        device = pending.pop(0)
        found[f"0000:{device['bus']:02x}:{device['slot']:02x}.{device['function']}"] = device
        pending += device.get("pci_bridge", {}).get("devices", [])
    return found


def script(argv: Sequence[str]) -> str:
    """The command as a script, an option and its value a line, that runs the same guest again."""
    lines = [shlex.quote(argv[0])]
    for word in argv[1:]:
        if word.startswith("-"):
            lines.append(shlex.quote(word))  # it may be a value that the user wrote
        else:
            lines[-1] += f" {shlex.quote(word)}"
    command = " \\\n  ".join(lines)
    return f"""#!/bin/sh
# Console on this terminal, report in report.jsonl, QMP on qmp.sock.
cd "$(dirname "$0")" || exit
exec {command}
"""


async def _boot(
    program: str,
    argv: list[str],
    folder: Path,
    timeout: float,
    deeds: Deeds,
    linger: float,
    look: Callable[[], None] | None,
) -> Run:
    start = time.monotonic()
    with (folder / "qemu.log").open("wb") as errors, (folder / "console.log").open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *run.bound([program, *argv[1:]]),
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        console = bytearray()
        reader = asyncio.create_task(_tee(process, console, sink))
        watch = _Watch(process, folder, start, timeout, console, deeds, linger, look)
        try:
            ending, detail, views = await watch.until_done()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            await process.wait()
            await reader
    if ending == "qemu died" and not console and not watch.report:
        message = (folder / "qemu.log").read_text(errors="replace").strip()
        raise ToolError(f"QEMU ended before the guest ran: {detail}\n{message}", f"the command is {folder / 'qemu.sh'}")
    return Run(
        argv=tuple(argv),
        ending=ending,
        detail=detail,
        console=bytes(console),
        report=bytes(watch.report),
        views=views,
        begin=watch.begin,
        end=watch.end,
        wall=time.monotonic() - start,
    )


async def _tee(process: asyncio.subprocess.Process, console: bytearray, sink: Any) -> None:
    assert process.stdout is not None
    while chunk := await process.stdout.read(1 << 16):
        if len(console) <= CONSOLE_MAX:
            console += chunk
            sink.write(chunk)
            sink.flush()


class _Watch:
    """Looks at QEMU and at the report until one of them says that the guest is done."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        folder: Path,
        start: float,
        timeout: float,
        console: bytearray,
        deeds: Deeds,
        linger: float,
        look: Callable[[], None] | None,
    ) -> None:
        self.process = process
        self.folder = folder
        self.start = start
        self.timeout = timeout
        self.console = console
        self.report = bytearray()
        self.begin: float | None = None
        self.end: float | None = None
        self.shutdown: dict[str, Any] | None = None
        self.broken = False
        self.looked_at = 0
        self.stands: tuple[float, str] | None = None
        self.plugged: list[str] = []
        self.plug = bool(deeds.cpus or deeds.dimms)
        self.unplug = bool(deeds.left)
        self.nmi = deeds.nmi
        self.deeds = deeds
        self.linger = linger
        self.look = look

    async def until_done(self) -> tuple[Ending, str, dict[str, Any]]:
        client = QMPClient("minguest")
        listener = EventListener(names=("SHUTDOWN", "STOP"))
        client.register_listener(listener)
        connected = False
        try:
            while True:
                if not connected:
                    connected = await self._connect(client)
                while not listener.empty():
                    await self._hear(client, await listener.get())
                self._read_report()
                if self.look is not None:
                    self.look()
                if connected and self.process.returncode is None:
                    await self._act(client)
                if (done := self._done()) is not None:
                    break
                await asyncio.sleep(LOOK)
            ending, detail = done
            views = await self._ask(client) if connected and ending != "qemu died" else {}
            return ending, detail, views
        finally:
            with contextlib.suppress(QMPError, EOFError, OSError, asyncio.TimeoutError):
                await asyncio.wait_for(client.disconnect(), ANSWER)

    async def _act(self, client: QMPClient) -> None:
        """Do what is to be done and whose time has come; each once."""
        try:
            if self.plug and READY in self.report:
                self.plug = False
                await self._plug(client)
            if self.unplug and IN_USE in self.report:
                self.unplug = False
                for name in reversed(self.plugged[self.deeds.left - self.deeds.cpus :]):  # what came last goes first
                    await asyncio.wait_for(client.execute("device_del", {"id": name}), ANSWER)
            if self.nmi and self.end is not None:
                self.nmi = False
                await asyncio.wait_for(client.execute("inject-nmi"), ANSWER)
        except (TimeoutError, QMPError, EOFError) as error:
            if self.process.returncode is None:
                raise ToolError(f"QEMU did not do what it was told to: {error}") from error

    async def _plug(self, client: QMPClient) -> None:
        async def told(command: str, **arguments: Any) -> Any:
            return await asyncio.wait_for(client.execute(command, arguments), ANSWER)

        # In order: 4.12 hung when a CPU came whose APIC id is not its number.
        slots = cast("list[dict[str, Any]]", await told("query-hotpluggable-cpus"))
        free = sorted(
            (slot for slot in slots if "qom-path" not in slot), key=lambda slot: sorted(slot["props"].items())
        )
        for number, slot in enumerate(free[: max(0, self.deeds.cpus - (len(slots) - len(free)))]):
            await told("device_add", driver=slot["type"], id=f"plugged-cpu{number}", **slot["props"])
            self.plugged.append(f"plugged-cpu{number}")
        for number, size in enumerate(self.deeds.dimms):
            await told("object-add", **{"qom-type": "memory-backend-ram", "id": f"dimm{number}-memory", "size": size})
            await told("device_add", driver="pc-dimm", id=f"dimm{number}", memdev=f"dimm{number}-memory")

    async def _hear(self, client: QMPClient, event: Message) -> None:
        if event["event"] == "SHUTDOWN":
            self.shutdown = cast("dict[str, Any]", event["data"])
        else:
            # KVM stops a guest whose code it cannot run, says so only here, and would wait for ever.
            status = cast("dict[str, Any]", await asyncio.wait_for(client.execute("query-status"), ANSWER))
            self.broken = status["status"] == "internal-error"

    def _done(self) -> tuple[Ending, str] | None:
        """The first of the ways to end that has come true."""
        now = time.monotonic() - self.start
        if self.process.returncode is not None:
            return "qemu died", f"exit status {self.process.returncode}"
        if self.shutdown is not None:
            reason = self.shutdown.get("reason", "unknown")
            if reason == "guest-shutdown":
                return "power-off", ""
            return ("panic", reason) if reason == "guest-panic" else ("reset", reason)
        if self.broken:
            return "internal error", "QEMU stopped the guest with an internal error"
        if self.end is not None and now > self.end + self.linger:
            return "no power-off", f"{self.linger:g} s after its report it still ran"
        if (why := self._dead_end(now)) is not None:
            return "dead end", why
        if now > self.timeout:
            return "deadline", f"{self.timeout:g} s are over"
        if len(self.console) > CONSOLE_MAX:
            return "console flood", f"more than {CONSOLE_MAX >> 20} MiB on the console"
        return None

    def _dead_end(self, now: float) -> str | None:
        if len(self.console) != self.looked_at:
            self.looked_at = len(self.console)
            for words, why in DEAD_ENDS.items():
                if self.stands is None and words in self.console:
                    self.stands = now, why
        return self.stands[1] if self.stands and now > self.stands[0] + DEAD_END else None

    def _read_report(self) -> None:
        size = (self.folder / "report.jsonl").stat().st_size
        if size <= len(self.report):
            return
        now = time.monotonic() - self.start
        with (self.folder / "report.jsonl").open("rb") as file:
            file.seek(len(self.report))
            self.report += file.read(CONSOLE_MAX)
        if self.begin is None and BEGIN in self.report:
            self.begin = now
        if self.end is None and (at := self.report.find(END)) >= 0 and b"\n" in self.report[at:]:
            self.end = now

    async def _connect(self, client: QMPClient) -> bool:
        """Try to reach the socket once; QEMU makes it soon after its start."""
        handle = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        folder = os.open(self.folder, os.O_PATH)
        try:
            # The name of a UNIX socket has at most 107 bytes; this one is short wherever the project is.
            handle.connect(f"/proc/self/fd/{folder}/qmp.sock")
            handle.setblocking(False)
            await asyncio.wait_for(client.connect(handle), ANSWER)
        except (TimeoutError, OSError, QMPError, EOFError):
            handle.close()
            return False
        finally:
            os.close(folder)
        return True

    async def _ask(self, client: QMPClient) -> dict[str, Any]:
        views: dict[str, Any] = {}
        try:
            for name, query in QUERIES.items():
                views[name] = await asyncio.wait_for(client.execute(query), ANSWER)
        except (TimeoutError, QMPError, EOFError, OSError):
            pass  # QEMU went away in between: what it said so far is what there is
        return views
