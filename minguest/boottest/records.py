# SPDX-License-Identifier: Apache-2.0
"""The records of what was run beside single boot tests: the matrix and the rehearsal. Evidence reads them."""

from typing import Literal

import msgspec

from minguest.boottest import runner
from minguest.bundle.manifests import File

MATRIX_SCHEMA = 1
REHEARSAL_SCHEMA = 1
Result = Literal["right", "wrong", "NOT RUN"]
HEALTHY = "healthy"


class Cell(msgspec.Struct, frozen=True):
    """One injection on one series: what was done, what must follow, what came of it."""

    pit: str
    """Its id; HEALTHY for a control."""
    name: str
    """Tells the injections of a pit apart."""
    title: str
    done: str
    wanted: str
    got: str
    result: Result
    why: str = ""
    diagnosis: str = ""
    seconds: float = 0.0
    qemu: str = ""

    @property
    def id(self) -> str:
        """The name of its folder in runs/."""
        return f"{self.pit}.{self.name}" if self.name else self.pit


class Matrix(msgspec.Struct, frozen=True):
    """matrix.json: the cells of one line."""

    schema: int
    series: str
    version: str
    """Of the kernel."""
    bundle: dict[str, File]
    key: str
    """Of all that a cell hangs on: bundle, launch, how pits are recognised and injected, and this program's code."""
    whole: bool
    """Whether every pit has all of its cells, and every control."""
    cells: tuple[Cell, ...]


class Options(msgspec.Struct, frozen=True):
    """What the user typed after rehearse."""

    gpu: str = "secondary-vga"
    cpus: str = "2"
    memory: str = "512M"
    timeout: str = "300"


class Check(msgspec.Struct, frozen=True):
    """A row of the rehearsal's verdict."""

    name: str
    found: str
    why: str = ""
    """What is wrong; empty: nothing."""


class Rehearsal(msgspec.Struct, frozen=True):
    """rehearsal.json."""

    schema: int
    bundle: dict[str, File]
    host: dict[str, File]
    words: Options
    qemu: str
    result: Literal["pass", "failed", "lost"]
    checks: tuple[Check, ...]
    outcome: runner.Outcome | None
    """Of the boot test in the host; None: it came to no verdict."""
    seconds: float
    before: tuple[str, ...] = ()
    """Why each try before this one was lost; empty: this is the first."""
