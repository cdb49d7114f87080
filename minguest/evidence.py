# SPDX-License-Identifier: Apache-2.0
"""Evidence: for every check that the project has, what came of it on exactly these bytes, or that it was NOT RUN."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from minguest.errors import printable

# The type of the predicate: docs/release.md.
KIND = "urn:minguest:attestation:evidence:v1"
SCHEMA = 1
# Of matrix.json, which dig writes and gather reads.
MATRIX_SCHEMA = 1
# Of rehearsal.json, which rehearse writes and gather reads.
REHEARSAL_SCHEMA = 1
Result = Literal["PASS", "FAIL", "NOT RUN"]


class Seconds(msgspec.Struct, frozen=True):
    """Where a boot's time went; None where it never came so far."""

    firmware: float | None
    kernel: float | None
    initd: float | None
    whole: float


class Check(msgspec.Struct, frozen=True):
    """One check and its result."""

    name: str
    title: str
    result: Result
    reason: str
    files: dict[str, str] = {}
    """SHA-256 of what proves it, by path in evidence.tar.gz."""
    qemu: str = ""
    accel: str = ""
    seconds: Seconds | None = None


class Predicate(msgspec.Struct, frozen=True):
    """What the evidence attestation says."""

    schema: int
    minguest: str
    checks: tuple[Check, ...]


def table(checks: Sequence[Check]) -> str:
    """The checks for a person, a row each."""
    rows = [(check.result, check.name, check.title if check.result == "PASS" else check.reason) for check in checks]
    width = max((len(name) for _, name, _ in rows), default=0)
    return "\n".join(printable(f"    {result:<7}  {name:<{width}}  {told}") for result, name, told in rows)
