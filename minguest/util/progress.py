# SPDX-License-Identifier: Apache-2.0
"""How far a long work is: one line that moves on a terminal, and now and then a plain line elsewhere."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from minguest.util.errors import shown_url

# Seconds between plain lines of counted work where there is no terminal.
QUIET = 30.0
# Seconds between their redraws on a terminal.
REDRAW = 0.2
# A line of a download where there is no terminal: not more often than this, and then when so much more is there or so
# long nothing was said.
LINE_S = 10
LINE_SHARE = 0.1
LINE_LATEST_S = 60


class Counted:
    """Shows how far a work is whose steps are counted, against about how many are `expected`, if that is known.

    Use as a context manager; the line is cleared at the end. `unit` is what is counted, such as "objects".
    """

    def __init__(self, label: str, unit: str, expected: int | None, stream: TextIO | None = None) -> None:
        self.label = label
        self.unit = unit
        self.expected = expected
        self.stream = stream or sys.stderr
        self.count = 0
        self.start = self.last = time.monotonic()

    def __enter__(self) -> "Counted":
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
        line = f"{self.label}: {self.so_far()}, {now - self.start:.0f} s"
        room = shutil.get_terminal_size().columns - 1
        self.stream.write(f"\r\x1b[K{f'{line}  {text}'[:room]}" if terminal else f"{line}\n")
        self.stream.flush()

    def so_far(self) -> str:
        """`512 of about 1330 objects (38 %)`; never more than what was expected, which is an estimate."""
        if self.expected is None or self.count > self.expected:
            return f"{self.count} {self.unit}" + ("" if self.expected is None else ", almost done")
        return f"{self.count} of about {self.expected} {self.unit} ({100 * self.count // self.expected} %)"


class Download:
    """Shows how far a download is: a bar on a terminal, else a line now and then."""

    def __init__(self, name: str, total: int | None, say: Callable[[str], None]) -> None:
        self._name = name
        self._total = total
        self._say = say
        self._said_at = 0.0
        self._said = 0

    @contextmanager
    def over(self, start: int, url: str) -> Iterator[Callable[[int], None]]:
        """Announce one request, which goes on at byte `start`. Call the yielded function with each new position."""
        size = f"{self._total / 1e6:.1f} MB" if self._total is not None else "a file of unknown size"
        self._say(
            f"{self._name}: {size} from {shown_url(url)}" + (f", going on at {start / 1e6:.1f} MB" if start else "")
        )
        if sys.stderr.isatty():
            from tqdm import tqdm  # noqa: PLC0415 - slow, and most commands download nothing

            with tqdm(total=self._total, initial=start, desc=self._name, unit="B", unit_scale=True, leave=False) as bar:

                def move(position: int) -> None:
                    bar.update(position - bar.n)

                yield move
        else:
            self._said_at, self._said = time.monotonic(), start
            yield self._line

    def done(self, length: int, seconds: float) -> None:
        """Announce the end: how many bytes came in how many seconds."""
        speed = length / 1e6 / max(seconds, 1e-3)
        self._say(f"{self._name}: {length / 1e6:.1f} MB in {seconds:.1f} s ({speed:.1f} MB/s)")

    def _line(self, position: int) -> None:
        silent = time.monotonic() - self._said_at
        little = self._total is not None and position - self._said < LINE_SHARE * self._total
        if silent < LINE_S or (little and silent < LINE_LATEST_S):
            return
        of = f" of {self._total / 1e6:.1f} MB ({100 * position // self._total} %)" if self._total else " MB"
        self._say(f"{self._name}: {position / 1e6:.1f}{of}")
        self._said_at, self._said = time.monotonic(), position
