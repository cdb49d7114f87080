# SPDX-License-Identifier: Apache-2.0
"""One line that moves on a terminal, and now and then a plain line elsewhere."""

import sys
import time
from typing import TextIO

# Seconds between plain lines where there is no terminal.
QUIET = 30.0
# Seconds between redraws on a terminal.
REDRAW = 0.2


class Progress:
    """Counts steps of unknown number. Use as a context manager; the line is cleared at the end."""

    def __init__(self, label: str, stream: TextIO | None = None) -> None:
        self.label = label
        self.stream = stream or sys.stderr
        self.count = 0
        self.start = self.last = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.stream.isatty() and self.count:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def step(self, text: str) -> None:
        """One more is done; `text` says what."""
        self.count += 1
        now = time.monotonic()
        terminal = self.stream.isatty()
        if now - self.last < (REDRAW if terminal else QUIET):
            return
        self.last = now
        line = f"{self.label}: {self.count} steps, {now - self.start:.0f} s"
        self.stream.write(f"\r\x1b[K{line}  {text:.60}" if terminal else f"{line}\n")
        self.stream.flush()
