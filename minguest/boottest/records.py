# SPDX-License-Identifier: Apache-2.0
"""The records of the fault matrix, of the certificate and of the rehearsal. Evidence reads them."""

from typing import Literal

import msgspec

from minguest.boottest import runner
from minguest.bundle.manifests import File

MATRIX_SCHEMA = 1
REHEARSAL_SCHEMA = 2
CERTIFICATE_SCHEMA = 4
Kind = Literal[
    "not built", "not booted", "row", "pit", "size", "time", "unchanged", "stated", "unseen", "unasked", "NOT RUN"
]
Result = Literal["right", "wrong", "NOT RUN"]
HEALTHY = "healthy"


class Cell(msgspec.Struct, frozen=True):
    """One injection on one series: what was done, what must follow, and the result."""

    pit: str
    """Its id; HEALTHY for a control."""
    name: str
    """Differs between the injections of a pit."""
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
    """matrix.json: the cells of one series."""

    schema: int
    series: str
    version: str
    """The kernel's."""
    bundle: dict[str, File]
    key: str
    """A hash of all that a cell depends on: bundle, launch, how pits are recognized and injected, this program's
    code."""
    whole: bool
    """Whether all cells are there: of every pit, and of every control."""
    cells: tuple[Cell, ...]


class Row(msgspec.Struct, frozen=True):
    """What is missing without one option."""

    option: str
    fragment: str
    """Empty: nobody asks for it."""
    value: str
    reason: str
    kind: Kind
    instead: str = ""
    """Its value then."""
    gone: tuple[str, ...] = ()
    """Other options that are asked for, and that went with it."""
    probe: str = ""
    """The first launch that showed it."""
    seen: str = ""
    bytes: int | None = None
    """How much larger the compressed kernel is without it."""
    instructions: float | None = None
    """In millions, how many more the kernel takes to initd's start without it."""
    once: tuple[str, ...] = ()
    """What only one of two boots showed, with its launch: chance, which does not count."""


class Certificate(msgspec.Struct, frozen=True):
    """certificate.json: the rows of one guest and series."""

    schema: int
    series: str
    version: str
    """The kernel's."""
    bundle: dict[str, File]
    fragments: dict[str, str]
    """The bundle's, by path, with their SHA-256: their comments are the reasons."""
    compiler: str
    qemu: str
    judge: str
    """A hash of what judges a boot: probes, launch, pits, and this program's code."""
    key: str
    """A hash of all that a row depends on but its comment: `judge`, the bundle, the requests, the tools."""
    whole: bool
    """Whether all options are there, those that nobody asks for too."""
    bytes: int
    """Of the compressed kernel with all options."""
    instructions: float | None
    rows: tuple[Row, ...]


class Options(msgspec.Struct, frozen=True):
    """The user's options of rehearse."""

    gpu: str = "secondary-vga"
    driver: str = ""
    """The driver that each card must have in the guest; empty: the guest's own, if these are cards of its launch."""
    cpus: str = "1"
    memory: str = "256M"
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
    options: Options
    qemu: str
    result: Literal["pass", "failed", "lost"]
    checks: tuple[Check, ...]
    outcome: runner.Outcome | None
    """The outcome of the boot test in the host; None: it has no verdict."""
    seconds: float
    before: tuple[str, ...] = ()
    """Why each try before this one was lost; empty: this is the first."""
