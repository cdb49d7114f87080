# SPDX-License-Identifier: Apache-2.0
"""Gathers the evidence for a bundle: what every check came to on exactly these bytes. Reads; runs nothing."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from minguest import boottest, bundle, reproduce
from minguest.evidence import PLANNED, Check, Seconds, launch_of
from minguest.model import Launch, Machine

TOO_MANY = "the kernel was built for fewer CPUs"


def checks(folder: Path, reproduced: Path, manifest: bundle.Manifest, nr_cpus: int) -> list[Check]:
    """Every check's result for the bundle of `manifest`. Reads; runs nothing.

    `folder` has a folder a boot test, `reproduced` is reproduce.json, `nr_cpus` is what the kernel was built for.
    """
    launch = launch_of(manifest)
    found = [_boot(folder, cell, manifest, launch, nr_cpus) for cell in boottest.cells(launch)]
    found.append(_reproduced(reproduced, manifest))
    found += [
        Check(name, title, "NOT RUN", "this version of minguest has no such check") for name, title in PLANNED.items()
    ]
    return found


def missing(found: Sequence[Check], launch: Launch) -> list[tuple[Machine, int]]:
    """Boot tests that did not pass yet and can be run."""
    done = {check.name for check in found if check.result == "PASS" or check.reason == TOO_MANY}
    return [cell for cell in boottest.cells(launch) if boottest.cell_name(*cell) not in done]


def _boot(folder: Path, cell: tuple[Machine, int], manifest: bundle.Manifest, launch: Launch, nr_cpus: int) -> Check:
    machine, cpus = cell
    name = boottest.cell_name(machine, cpus)
    own = ", the guest's own launch" if cell == boottest.own_cell(launch) else ""
    title = f"boot test: {machine}, {cpus} CPU{'s' * (cpus > 1)}{own}"
    if cpus > nr_cpus:
        return Check(name, title, "NOT RUN", TOO_MANY)
    try:
        outcome = msgspec.json.decode((folder / name / "verdict.json").read_bytes(), type=boottest.Outcome)
    except (OSError, msgspec.DecodeError):
        return Check(name, title, "NOT RUN", "nobody ran it")
    if outcome.bundle != manifest.files or outcome.wanted != launch:
        return Check(name, title, "NOT RUN", "its last run was of other bytes or another launch")
    found, phases = outcome.verdict, outcome.verdict.phases
    return Check(
        name,
        title,
        "PASS" if found.result == "pass" else "FAIL",
        found.reason,
        {f"{name}/{kept}": bundle.describe(folder / name / kept).sha256 for kept in boottest.KEPT},
        outcome.qemu,
        outcome.spec.accel,
        Seconds(phases.firmware, phases.kernel, phases.initd, phases.wall),
    )


def _reproduced(place: Path, manifest: bundle.Manifest) -> Check:
    name, title = "reproduce", "built twice in different surroundings, compared byte by byte"
    try:
        record = msgspec.json.decode(place.read_bytes(), type=reproduce.Record)
    except (OSError, msgspec.DecodeError):
        return Check(name, title, "NOT RUN", "nobody ran it")
    if record.result == "different":
        return Check(name, title, "FAIL", f"{len(record.differences)} differences")
    if record.files != manifest.files:
        return Check(name, title, "NOT RUN", "its last run was of other bytes")
    return Check(
        name,
        title,
        "PASS",
        f"varied: {', '.join(sorted(record.varied))}",
        {"reproduce.json": bundle.describe(place).sha256},
    )
