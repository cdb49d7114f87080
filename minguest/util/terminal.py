# SPDX-License-Identifier: Apache-2.0
"""Output streams whose failure does not stop a command's work, and signals that end it.

Uses the standard library alone: host.vfio must run on hosts that have only python3.
"""

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import TextIO

# A shell's status for a program that SIGINT ended, and for one that SIGPIPE ended.
INTERRUPTED, UNREAD = 128 + signal.SIGINT, 128 + signal.SIGPIPE
# Seconds after which a signal that was lost is sent again.
AGAIN = 0.01


class Output(io.TextIOBase):
    """A text stream that never raises: what cannot be written is lost, and `lost` says why.

    A full disk or a closed pipe must not stop a boot test. Characters outside the stream's encoding are escaped.
    """

    def __init__(self, stream: TextIO | None) -> None:
        """`stream`: None for one that was closed before Python started."""
        self.lost = ""
        self.unread = False
        """Whether it was lost because its reader went away, as after `| head`."""
        self._stream = stream
        # A guest's output, or a terminal without umlauts, must not hide a verdict.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        if self._stream is None:
            self.lost = self.lost or "it is closed"
            return len(text)
        try:
            self._stream.write(text)
        except (OSError, ValueError) as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        try:
            if self._stream is not None:
                self._stream.flush()
        except (OSError, ValueError) as error:
            self._lose(error)

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("closed")
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def _lose(self, error: Exception) -> None:
        self.unread = isinstance(error, BrokenPipeError)
        self.lost = self.lost or getattr(error, "strerror", None) or str(error)
        # The rest of its buffer would fail again when Python ends.
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
        self._stream = None


@contextlib.contextmanager
def streams() -> Iterator[Output]:
    """Replace sys.stdout and sys.stderr by streams that never raise; gives the first. Restores them at the end."""
    plug()
    before = sys.stdout, sys.stderr
    out, err = Output(sys.stdout), Output(sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def plug() -> None:
    """Open descriptors 0 to 2 if they are closed: else the next opened file would become a child's output."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def complaint(lost: str) -> str:
    """The message for stderr about a standard output that was lost."""
    return f"standard output: {lost}: some of it was not written; the work itself is complete"


def ending(out: Output, status: int) -> int:
    """The exit status of a command of minguest with this status and this standard output. A lost output fails it, with
    a message; one that nobody reads fails it silently, as SIGPIPE would."""
    out.flush()
    if out.unread:
        return status or UNREAD
    if out.lost:
        print(f"minguest: {complaint(out.lost)}", file=sys.stderr)
    return status or int(bool(out.lost))


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP raise SystemExit with the status that a shell gives, so that cleanup runs. An ignored
    signal stays ignored: nohup(1) starts a program with SIGHUP ignored."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda caught, _: sys.exit(128 + caught))


def end_on_interrupt(
    line: str = "interrupted: what is complete is kept; run the same command again to continue",
) -> None:
    """Let an uncaught interrupt end this process with one line, and with the status that a shell gives.

    For what no `try` surrounds: imports, and a main program that is not ours, such as doit's. Python would print a
    traceback, and SIGINT would be the status.
    """

    def uncaught(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, where)
            return
        print(line, file=sys.stderr)
        raise SystemExit(INTERRUPTED)  # works in a hook too: pythonrun.c, _PyErr_PrintEx

    sys.excepthook = uncaught
    sys.unraisablehook = _send_again


def _send_again(lost: "sys.UnraisableHookArgs") -> None:
    """Python drops an exception of a __del__ or of a weak reference's callback. That of a signal must not be lost."""
    match lost.exc_value:
        case KeyboardInterrupt():
            number = int(signal.SIGINT)
        case SystemExit(code=int(status)) if status > 128:
            number = status - 128
        case _:
            sys.__unraisablehook__(lost)
            return
    # Later: what this function raises is dropped too. A daemon: a process that is just ending has done its work.
    again = threading.Timer(AGAIN, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()
