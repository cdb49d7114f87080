# SPDX-License-Identifier: Apache-2.0
"""Evidence: the result of every check of this project on exactly these bytes, or NOT RUN. It runs nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar, get_args

import msgspec

from minguest.boottest import certify, inject, runner
from minguest.boottest.records import (
    CERTIFICATE_SCHEMA,
    MATRIX_SCHEMA,
    REHEARSAL_SCHEMA,
    Certificate,
    Kind,
    Matrix,
    Rehearsal,
)
from minguest.bundle import manifests
from minguest.bundle.reproduction import Reproduction
from minguest.diagnose import catalogue
from minguest.model import Launch
from minguest.paths import Layout
from minguest.util import strictjson
from minguest.util.errors import printable
from minguest.vm.report import Report

T = TypeVar("T")

# The type of the predicate: docs/release.md.
KIND = "urn:minguest:attestation:evidence:v1"
SCHEMA = 1
Result = Literal["PASS", "FAIL", "NOT RUN"]

# The name in the packed evidence of a reproduction's record,
REPRODUCED = "reproduce.json"
# of the fault matrix,
MATRIX = "pits.json"
# of a rehearsal,
REHEARSED = "rehearsal.json"
# and of the certificate that each option is needed.
NECESSITY = "necessity.json"
RECORDS = (REPRODUCED, MATRIX, REHEARSED, NECESSITY)


class Seconds(msgspec.Struct, frozen=True):
    """The phases of a boot; None for a phase that was not reached."""

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
    """SHA-256 of the files that prove it, by path in evidence.tar.gz."""
    qemu: str = ""
    accel: str = ""
    seconds: Seconds | None = None


class Predicate(msgspec.Struct, frozen=True):
    """The content of the evidence attestation."""

    schema: int
    minguest: str
    checks: tuple[Check, ...]


def sources(at: Layout) -> dict[str, Path]:
    """The paths of all records except those of boot tests, by their names in the packed evidence."""
    return {
        REPRODUCED: at.reproduced,
        MATRIX: at.matrix / "matrix.json",
        REHEARSED: at.rehearsed,
        NECESSITY: at.certified / "certificate.json",
    }


def checks(at: Layout, manifest: manifests.Manifest, nr_cpus: int, known: Mapping[str, catalogue.Pit]) -> list[Check]:
    """Every check's result for the bundle of `manifest`.

    `nr_cpus` is the kernel's NR_CPUS; `known`: the pits that a matrix and a certificate must be judged by.
    """
    key = inject.key_of(manifest, manifest.guest.launch, known)
    found = [of_boot(at.evidence, test, manifest, nr_cpus) for test in runner.tests(manifest.guest.launch)]
    places = sources(at)
    found.append(of_reproduction(places[REPRODUCED], manifest))
    found.append(of_matrix(places[MATRIX], manifest, key))
    found.append(of_rehearsal(places[REHEARSED], manifest))
    judge = certify.judge_of(manifest.guest.launch, known)
    found.append(of_certificate(places[NECESSITY], manifest, judge))
    return [*found, Check("real-card", "a card of the host, passed through", "NOT RUN", "no such card was available")]


def missing(found: Sequence[Check], launch: Launch, nr_cpus: int) -> list[runner.Test]:
    """Boot tests that have not passed and can be run."""
    done = {check.name for check in found if check.result == "PASS"}
    tests = runner.tests(launch)
    return [test for test in tests if test.name not in done and not runner.cannot(test, launch, nr_cpus)]


def _load(path: Path, kind: type[T]) -> T:
    """A record; OSError or ValueError if it is missing, or has a duplicate name: evidence has one meaning."""
    return strictjson.decode(strictjson.read(path), kind)


def of_boot(folder: Path, test: runner.Test, manifest: manifests.Manifest, nr_cpus: int) -> Check:
    """The result of the evidence in `folder`/NAME for the bundle of `manifest`."""
    launch = manifest.guest.launch
    name, title = test.name, test.title
    if why := runner.cannot(test, launch, nr_cpus):
        return Check(name, title, "NOT RUN", why)
    try:
        outcome = _load(folder / name / "verdict.json", runner.Outcome)
        files = {
            f"{name}/{kept}": manifests.describe(folder / name / kept).sha256 for kept in runner.kept_of(outcome.spec)
        }
        _load(folder / name / "report.json", Report)
    except (OSError, ValueError):
        return Check(name, title, "NOT RUN", _no_room(folder / name, manifest) or "nobody ran it")
    spec, found = outcome.spec, outcome.verdict
    if outcome.bundle != manifest.files or outcome.wanted != launch:
        return Check(name, title, "NOT RUN", "its last run used other bytes or another launch")
    if not runner.is_of(spec, launch, test):
        return Check(name, title, "NOT RUN", "its record is of another test")
    passed = found.result == "pass" and found.checks and all(check.ok for check in found.checks)
    phases = found.phases
    return Check(
        name,
        title,
        "PASS" if passed else "FAIL",
        found.reason,
        files,
        outcome.qemu,
        spec.accel,
        Seconds(phases.firmware, phases.kernel, phases.initd, phases.wall),
    )


def _no_room(folder: Path, manifest: manifests.Manifest) -> str:
    """Why the machine had no room for a test of the bundle of `manifest`; empty if that was not found."""
    try:
        found = _load(folder / runner.NO_ROOM, runner.NoRoom)
    except (OSError, ValueError):
        return ""
    return found.why if (found.bundle, found.wanted) == (manifest.files, manifest.guest.launch) else ""


def of_reproduction(place: Path, manifest: manifests.Manifest) -> Check:
    """The result of reproduce.json for the bundle of `manifest`."""
    name, title = "reproduce", "built twice in different surroundings, compared byte by byte"
    try:
        record = _load(place, Reproduction)
    except (OSError, ValueError):
        return Check(name, title, "NOT RUN", "nobody ran it")
    files = {REPRODUCED: manifests.describe(place).sha256}
    if record.result == "different":
        return Check(name, title, "FAIL", f"{len(record.differences)} differences", files)
    if record.files != manifest.files:
        return Check(name, title, "NOT RUN", "its last run used other bytes")
    return Check(name, title, "PASS", f"varied: {', '.join(sorted(record.varied))}", files)


def of_matrix(place: Path, manifest: manifests.Manifest, key: str | None = None) -> Check:
    """The result of matrix.json for the bundle of `manifest`; `key` is inject.key_of, or None if it is unknown."""
    name, title = "pits", "every known way to fail, brought about: its first boot names it, and nothing else"
    try:
        matrix = _load(place, Matrix)
    except (OSError, ValueError):
        return Check(name, title, "NOT RUN", "nobody ran it")
    if matrix.bundle != manifest.files or matrix.schema != MATRIX_SCHEMA:
        return Check(name, title, "NOT RUN", "its last run used other bytes")
    if key is not None and matrix.key != key:
        return Check(name, title, "NOT RUN", "its last run used other pits, another launch or another minguest")
    results = [cell.result for cell in matrix.cells]
    reason = ", ".join(f"{results.count(each)} {each}" for each in ("right", "wrong", "NOT RUN") if each in results)
    files = {MATRIX: manifests.describe(place).sha256}
    versions = ", ".join(sorted({cell.qemu for cell in matrix.cells if cell.qemu}))
    if "wrong" in results:
        return Check(name, title, "FAIL", reason, files, versions)
    if not matrix.whole or "right" not in results:
        return Check(name, title, "NOT RUN", f"not every pit was brought about: {reason or 'none'}")
    return Check(name, title, "PASS", reason, files, versions)


def of_certificate(place: Path, manifest: manifests.Manifest, judge: str | None = None) -> Check:
    """The result of certificate.json for the bundle of `manifest`; `judge` is certify.judge_of, or None if it is
    unknown."""
    name, title = "necessity", "each option of the kernel left out: what is missing then was seen, or is stated"
    try:
        certificate = _load(place, Certificate)
    except (OSError, ValueError):
        return Check(name, title, "NOT RUN", "nobody ran it")
    if certificate.bundle != manifest.files or certificate.schema != CERTIFICATE_SCHEMA:
        return Check(name, title, "NOT RUN", "its last run used other bytes")
    if certificate.fragments != manifest.config.fragments:
        return Check(
            name, title, "NOT RUN", "its last run used other fragments: doit certify reads their comments again"
        )
    if judge is not None and certificate.judge != judge:
        return Check(name, title, "NOT RUN", "its last run used other pits, another launch or another minguest")
    kinds = [row.kind for row in certificate.rows]
    reason = ", ".join(f"{kinds.count(each)} {each}" for each in get_args(Kind) if each in kinds)
    files = {NECESSITY: manifests.describe(place).sha256}
    if "unseen" in kinds:
        return Check(name, title, "FAIL", reason, files, certificate.qemu)
    if not certificate.whole or "NOT RUN" in kinds:
        return Check(name, title, "NOT RUN", f"not every option was left out: {reason or 'none'}")
    return Check(name, title, "PASS", reason, files, certificate.qemu)


def of_rehearsal(place: Path, manifest: manifests.Manifest) -> Check:
    """The result of rehearsal.json for the bundle of `manifest`."""
    name, title = "rehearsal", "a real VFIO passthrough of an emulated card, there and back"
    try:
        record = _load(place, Rehearsal)
    except (OSError, ValueError):
        return Check(name, title, "NOT RUN", "nobody ran it")
    outcome = record.outcome
    if record.bundle != manifest.files or record.schema != REHEARSAL_SCHEMA:
        return Check(name, title, "NOT RUN", "its last run used other bytes")
    files = {REHEARSED: manifests.describe(place).sha256}
    passed = record.result == "pass" and record.checks and not any(check.why for check in record.checks)
    # Its parts are the same; its launch has the rehearsal's cards.
    same = outcome is not None and all(outcome.bundle.get(part) == manifest.files[part] for part in manifests.PARTS)
    if not passed or not same or outcome is None or outcome.verdict.result != "pass":
        return Check(name, title, "FAIL", f"the rehearsal {record.result}", files, record.qemu)
    accel = outcome.spec.accel
    return Check(
        name, title, "PASS", f"{', '.join(map(str, outcome.spec.gpus))} under {accel}", files, record.qemu, accel
    )


def table(checks: Sequence[Check]) -> str:
    """The checks for a reader, a row each."""
    rows = [(check.result, check.name, check.title if check.result == "PASS" else check.reason) for check in checks]
    width = max((len(name) for _, name, _ in rows), default=0)
    return "\n".join(printable(f"    {result:<7}  {name:<{width}}  {text}") for result, name, text in rows)
