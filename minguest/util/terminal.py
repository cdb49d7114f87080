# SPDX-License-Identifier: Apache-2.0
"""What a command owes to whoever started it: streams that fail without ending its work, and signals that end it.

Standard library alone: host.vfio needs it where nothing but python3 is.
"""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import TextIO

# As a shell says it of a program that SIGINT ended.
INTERRUPTED = 128 + signal.SIGINT


class Output(io.TextIOBase):
    """A text stream that never raises: what could not be written is lost, and `lost` says why.

    A full disk or a reader that went away is no reason to stop in the middle of a boot test. What the stream's encoding
    does not know is written as an escape.
    """

    def __init__(self, stream: TextIO | None) -> None:
        """`stream`: None for one that was closed before Python started."""
        self.lost = ""
        self._stream = stream
        # A guest's words, or a terminal that knows no umlaut: a verdict shall still be seen.
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
        self.lost = self.lost or getattr(error, "strerror", None) or str(error)
        # What is left in its buffer would fail again when Python ends.
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
        self._stream = None


@contextlib.contextmanager
def streams() -> Iterator[Output]:
    """Make sys.stdout and sys.stderr streams that never raise, for a while; gives the first."""
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
    """See to it that descriptors 0 to 2 are open: else the next file would be what a child takes for its output."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def complaint(lost: str) -> str:
    """What to say on stderr of a standard output that was lost."""
    return f"standard output: {lost}: not all could be written there; what was to be done is done all the same"


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP raise SystemExit with the status that a shell gives, so that what was begun is cleared
    away. What is ignored stays so: nohup(1) starts a program with SIGHUP ignored."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda caught, _: sys.exit(128 + caught))


def end_on_interrupt() -> None:
    """Let an interrupt that nobody caught end this process with one line, and with the status of a shell.

    For a main program that is not ours, such as doit's: its status would be SIGINT's, after a traceback.
    """
    sys.excepthook = _uncaught


def _uncaught(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, where)
        return
    print("interrupted: what is whole is kept, and the same command goes on from there", file=sys.stderr)
    raise SystemExit(INTERRUPTED)  # Python takes it from a hook too: pythonrun.c, _PyErr_PrintEx
