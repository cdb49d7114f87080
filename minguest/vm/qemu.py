# SPDX-License-Identifier: Apache-2.0
"""Starts QEMU, listens until the guest is done or its time is over, queries QEMU's view of the guest, and ends it.

Every wait is bounded. QEMU runs in a process group of its own, which is gone when `boot` returns.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import msgspec

from minguest.util import files, run
from minguest.util.errors import ToolError
from minguest.vm import arguments, qmp
from minguest.vm.report import BEGIN, END, IN_USE, READY

# Seconds between two looks at the report file and at QEMU.
LOOK = 0.02
# And for the console, and how often 64 KiB are then read: else a guest that floods it would never be judged.
LISTEN, DRAIN = 0.1, 64
# Seconds that a guest has to power off after the end of its report. Without ACPI it cannot, and halts.
POWER_OFF = 10.0
# Bytes of console after which the guest counts as lost: it repeats itself. Judging so much takes some seconds.
CONSOLE_MAX = 8 << 20
# Bytes of report, likewise. A guest with a thousand PCI functions writes about 1 MiB.
REPORT_MAX = 8 << 20
# Bytes of QEMU's own output that qemu.log gets: so many of the first ones, and of the last ones if there are more.
LOG_FIRST_MAX = 1 << 20
LOG_LAST_MAX = 64 << 10
# How many of its last lines an error shows, and how much of each.
LAST_LINES, LINE_MAX = 10, 300
# Seconds between the end of QMP and the end of QEMU, if QEMU itself ends.
GRACE = 1.0

# Text on the console that shows where a guest stays. It gets DEAD_END seconds to print the rest.
DEAD_ENDS = {
    b"UEFI Interactive Shell": "it waits in the UEFI shell: the firmware could not start the kernel",
    b"ovmf-minimal: the kernel could not be started": "the firmware could not start the kernel",
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
    "no answer",
    "console flood",
    "report flood",
]
# Ends after which a guest's report still counts.
QUIET: tuple[Ending, ...] = ("power-off", "no power-off", "reset")


class Deeds(msgspec.Struct, frozen=True):
    """What is done to a guest while it runs."""

    cpus: int = 0
    """CPUs are plugged in until there are so many, once initd says that it is ready."""
    left: int = 0
    """CPUs are unplugged until so many are left, once initd says that it has them; 0: none is unplugged."""
    dimms: tuple[int, ...] = ()
    """Bytes of each DIMM that is plugged in with the CPUs."""
    nmi: bool = False
    """A non-maskable interrupt after the report."""
    button: bool = False
    """The power button is pressed after the report."""


NOTHING = Deeds()


class Run(msgspec.Struct, frozen=True):
    """The result of one start of QEMU. Times are seconds since it was started."""

    argv: tuple[str, ...]
    ending: Ending
    detail: str
    console: bytes
    report: bytes
    views: dict[str, Any]
    """QMP's answers by the names in qmp.QUERIES; after a report all of them, or the end is "qemu died" or
    "no answer"."""
    begin: float | None
    """When the report's first line came."""
    end: float | None
    """When the report's last line came."""
    wall: float
    status: int | None = None
    """QEMU's exit status, if it ended by itself; for a signal its negative number."""
    ready: bool = True
    """Whether QEMU answered on QMP. It does not before it has opened all that the guest is made of."""


def boot(
    argv: Sequence[str],
    folder: Path,
    timeout: float,
    deeds: Deeds = NOTHING,
    linger: float = POWER_OFF,
    look: Callable[[], None] | None = None,
) -> Run:
    """Run QEMU in `folder`, which gets console.log, report.jsonl, qemu.sh and qemu.log.

    `linger`: seconds that the guest may run after its report. `look` is called many times a second meanwhile.

    ToolError if QEMU is missing, ends before the guest has run, or refuses one of the deeds.
    """
    result = start(argv, folder, timeout, deeds, linger, look)
    if result.ending == "qemu died" and not result.console and not result.report:
        why = f"{result.detail}\n{last_output(folder / 'qemu.log')}"
        raise ToolError(f"QEMU ended before the guest ran: {why}", f"the command is {folder / 'qemu.sh'}")
    return result


def last_output(log: Path, lines: int = LAST_LINES) -> str:
    """The last lines of QEMU's own output, cut to what a person reads."""
    text = log.read_text(errors="replace").strip().splitlines()
    return "\n".join(line if len(line) <= LINE_MAX else f"{line[:LINE_MAX]} …" for line in text[-lines:])


def start(
    argv: Sequence[str],
    folder: Path,
    timeout: float,
    deeds: Deeds = NOTHING,
    linger: float = POWER_OFF,
    look: Callable[[], None] | None = None,
) -> Run:
    """The same, but a QEMU that ends before the guest has run also gives a Run."""
    program = run.require(argv[0])
    for name in ("report.jsonl", "qmp.sock"):
        (folder / name).unlink(missing_ok=True)
    (folder / "report.jsonl").touch()
    files.write(folder / "qemu.sh", arguments.script(argv))
    (folder / "qemu.sh").chmod(0o755)
    with files.disk_errors(folder):
        return asyncio.run(_boot(program, list(argv), folder, timeout, deeds, linger, look))


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
    with (
        (folder / "qemu.log").open("wb") as log,
        (folder / "console.log").open("wb") as sink,
        (folder / "report.jsonl").open("rb") as report,
        contextlib.ExitStack() as ends,
    ):
        loop = asyncio.get_running_loop()
        ear, mouth = os.pipe()
        ends.callback(os.close, ear)
        os.set_blocking(ear, False)
        # As asyncio.create_subprocess_exec does it; but the transport must be closed here.
        try:
            transport, protocol = await loop.subprocess_exec(
                lambda: asyncio.subprocess.SubprocessStreamProtocol(1 << 16, loop),
                *run.bound([program, *argv[1:]]),
                cwd=folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=mouth,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        finally:
            os.close(mouth)
        process = asyncio.subprocess.Process(transport, protocol, loop)
        assert process.stderr is not None
        console = bytearray()
        kept = asyncio.create_task(_keep(process.stderr, log))
        readers = [asyncio.create_task(_tee(ear, console, sink)), kept]
        watch = _Watch(process, folder, start, timeout, console, report, readers, deeds, linger, look)
        status = None
        try:
            ending, detail, views = await watch.until_done()
            status = process.returncode
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            await process.wait()
            await watch.qmp.hang_up()
            # Another process may have its outputs open: do not wait for that one.
            await asyncio.wait([kept], timeout=GRACE)
            for reader in readers:
                reader.cancel()
            written = await asyncio.gather(*readers, return_exceptions=True)
            transport.close()
        _drain(ear, console, sink)
        for error in written:
            if isinstance(error, OSError):
                raise error
        if ending == "report flood":
            os.truncate(folder / "report.jsonl", REPORT_MAX)
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
        status=status,
        ready=watch.ready,
    )


async def _tee(ear: int, console: bytearray, sink: IO[bytes]) -> None:
    """Copy the console as it comes. QEMU writes each byte by itself: to wake up for every one of them takes more time
    than all the rest of a boot test."""
    while True:
        await asyncio.sleep(LISTEN)
        _drain(ear, console, sink)


def _drain(ear: int, console: bytearray, sink: IO[bytes]) -> None:
    with contextlib.suppress(BlockingIOError):
        for _ in range(DRAIN):
            chunk = os.read(ear, 1 << 16)
            if len(console) <= CONSOLE_MAX:
                console += chunk
                sink.write(chunk)
                sink.flush()


async def _keep(stream: asyncio.StreamReader, sink: IO[bytes]) -> None:
    """Copy the first bytes as they come and, at the end, the last ones: a program says last why it died."""
    room, dropped, last = LOG_FIRST_MAX, 0, b""
    try:
        while chunk := await stream.read(1 << 16):
            sink.write(chunk[:room])
            sink.flush()
            rest = chunk[room:]
            room -= len(chunk) - len(rest)
            dropped += len(rest)
            last = (last + rest)[-LOG_LAST_MAX:]
    finally:
        if last:
            sink.write(b"\n[%d bytes left out]\n" % (dropped - len(last)) + last)


def _died(status: int) -> str:
    return f"killed by signal {-status} ({signal.strsignal(-status)})" if status < 0 else f"exit status {status}"


class _Watch:
    """Looks at QEMU and at the report until one of them shows that the guest is done.

    QMP has a task of its own, so that a late answer does not hold up the looking.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        folder: Path,
        start: float,
        timeout: float,
        console: bytearray,
        source: IO[bytes],
        readers: Sequence[asyncio.Task[None]],
        deeds: Deeds,
        linger: float,
        look: Callable[[], None] | None,
    ) -> None:
        self.qmp = qmp.Connection(folder)
        self.source = source
        self.readers = readers
        self.process = process
        self.start = start
        self.timeout = timeout
        self.console = console
        self.report = bytearray()
        self.begin: float | None = None
        self.end: float | None = None
        self.shutdown: str | None = None
        self.broken = False
        self.ready = False
        self.over = False
        self.mute: tuple[float, str] | None = None
        self.looked_at = 0
        self.stuck: tuple[float, str] | None = None
        self.plugged: list[str] = []
        self.plug = bool(deeds.cpus or deeds.dimms)
        self.unplug = bool(deeds.left)
        self.nmi = deeds.nmi
        self.button = deeds.button
        self.deeds = deeds
        self.linger = linger
        self.look = look

    async def until_done(self) -> tuple[Ending, str, dict[str, Any]]:
        talk = asyncio.create_task(self._talk())
        try:
            while True:
                for task in (talk, *self.readers):
                    if task.done():
                        task.result()  # raises what it failed with
                self._read_report()
                if self.look is not None:
                    self.look()
                if (done := self._done()) is not None:
                    break
                await asyncio.sleep(LOOK)
        finally:
            # Cancelling is not enough: asyncio.wait_for loses it if what it waits for ends at that moment.
            self.over = True
            talk.cancel()
            await asyncio.wait([talk], timeout=qmp.ANSWER)
            if talk.done() and not talk.cancelled():
                talk.exception()  # else asyncio complains that it was never retrieved
        ending, detail = done
        views, why = await self.qmp.views() if ending != "qemu died" else ({}, "")
        if why and self.end is not None and ending != "no answer":
            # A guest that cannot be compared with QEMU's view neither passes nor fails.
            return "no answer", why, views
        return ending, detail, views

    async def _talk(self) -> None:
        """Read events and act until QMP ends."""
        while not self.over and not await self.qmp.connect():
            await asyncio.sleep(LOOK)
        self.ready = self.qmp.up
        try:
            while self.qmp.up and not self.over:
                await self._hear()
                await self._act()
                await asyncio.sleep(LOOK)
            await self._hear()  # the last events
            raise qmp.NoAnswerError("it closed the QMP connection")
        except qmp.NoAnswerError as error:
            self.mute = time.monotonic() - self.start, str(error)

    async def _act(self) -> None:
        """Do each deed once, when its time has come."""
        try:
            if self.plug and READY in self.report:
                self.plug = False
                await self._plug()
            if self.unplug and IN_USE in self.report:
                self.unplug = False
                for name in reversed(self.plugged[self.deeds.left - self.deeds.cpus :]):  # the last one first
                    await self.qmp.answer("device_del", id=name)
            if self.nmi and self.end is not None:
                self.nmi = False
                await self.qmp.answer("inject-nmi")
            if self.button and self.end is not None:
                self.button = False
                await self.qmp.answer("system_powerdown")
        except qmp.NoAnswerError as error:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), GRACE)
            if self.process.returncode is None:
                raise ToolError(f"QEMU did not do what was requested: {error}") from error

    async def _plug(self) -> None:
        # In order: 4.12 hung when a CPU was added whose APIC ID is not its number.
        slots = await self.qmp.answer("query-hotpluggable-cpus")
        free = sorted(
            (slot for slot in slots if "qom-path" not in slot), key=lambda slot: sorted(slot["props"].items())
        )
        for number, slot in enumerate(free[: max(0, self.deeds.cpus - (len(slots) - len(free)))]):
            await self.qmp.answer("device_add", driver=slot["type"], id=f"plugged-cpu{number}", **slot["props"])
            self.plugged.append(f"plugged-cpu{number}")
        for number, size in enumerate(self.deeds.dimms):
            memory = {"qom-type": "memory-backend-ram", "id": f"dimm{number}-memory", "size": size}
            await self.qmp.answer("object-add", **memory)
            await self.qmp.answer("device_add", driver="pc-dimm", id=f"dimm{number}", memdev=f"dimm{number}-memory")

    async def _hear(self) -> None:
        for event in self.qmp.events():
            if event["event"] == "SHUTDOWN":
                self.shutdown = qmp.reason(event)
            elif self.shutdown is None:
                # KVM stops a guest whose code it cannot run, and says so only here. After SHUTDOWN that is not news.
                status = await self.qmp.answer("query-status")
                self.broken = status["status"] == "internal-error"

    def _done(self) -> tuple[Ending, str] | None:
        """The first of the endings that applies, if one does."""
        now = time.monotonic() - self.start
        if self.process.returncode is not None:
            return "qemu died", _died(self.process.returncode)
        if (reason := self.shutdown) is not None:
            if reason == "guest-shutdown":
                return "power-off", ""
            return ("panic", reason) if reason == "guest-panic" else ("reset", reason)
        if self.broken:
            return "internal error", "QEMU stopped the guest with an internal error"
        if self.mute is not None and now > self.mute[0] + GRACE:
            return "no answer", self.mute[1]
        if self.end is not None and now > self.end + self.linger:
            return "no power-off", f"it still ran {self.linger:g} s after its report"
        if (why := self._dead_end(now)) is not None:
            return "dead end", why
        if now > self.timeout:
            return "deadline", f"{self.timeout:g} s are over"
        if len(self.console) > CONSOLE_MAX:
            return "console flood", f"more than {CONSOLE_MAX >> 20} MiB on the console"
        if len(self.report) > REPORT_MAX:
            return "report flood", f"more than {REPORT_MAX >> 20} MiB on the report's port"
        return None

    def _dead_end(self, now: float) -> str | None:
        if len(self.console) != self.looked_at:
            # Text that was cut at the last look is whole now.
            new = max(0, self.looked_at - max(map(len, DEAD_ENDS)))
            self.looked_at = len(self.console)
            for text, why in DEAD_ENDS.items():
                if self.stuck is None and self.console.find(text, new) >= 0:
                    self.stuck = now, why
        return self.stuck[1] if self.stuck and now > self.stuck[0] + DEAD_END else None

    def _read_report(self) -> None:
        new = self.source.read(REPORT_MAX + 1 - len(self.report))
        if not new:
            return
        now = time.monotonic() - self.start
        self.report += new
        first = self.report.find(BEGIN)
        if self.begin is None and first >= 0:
            self.begin = now
        # An end line before the report does not count.
        if self.end is None and first >= 0 and (at := self.report.find(END, first)) >= 0:
            self.end = now if self.report.find(b"\n", at) >= 0 else None
