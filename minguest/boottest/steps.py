# SPDX-License-Identifier: Apache-2.0
"""What the rehearsal's host did, step by step, and whether it is right: from the files that it left in its share."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from minguest.boottest import runner
from minguest.boottest.records import Check
from minguest.host.survey import VFIO
from minguest.vm import cards, console, qemu, report

STEPS = ("host", "host-bind", "host-check", "boot-test", "host-unbind")
# Files that the host leaves in its share.
STEP_FILE = "steps"
OWNERS = ("before", "during", "after")
# Vendor and device of a card's second function (rehearse.SECOND).
SECOND_IDS = ("1af4", "1044")


class Step(msgspec.Struct, frozen=True):
    """A step in the host: its status, and the host's uptime at its end in seconds."""

    name: str
    status: int
    uptime: float


def read(share: Path) -> list[Step]:
    """The steps that are done; a line that is not whole yet does not count."""
    try:
        lines = (share / STEP_FILE).read_text().splitlines(keepends=True)
    except OSError:
        return []
    rows = [line.split() for line in lines if line.endswith("\n")]
    return [Step(name, int(status), float(uptime)) for name, status, uptime in rows]


def left(share: Path) -> tuple[runner.Outcome | None, report.Report | None]:
    """What boot-test left in the host."""
    try:
        outcome = msgspec.json.decode((share / "verdict.json").read_bytes(), type=runner.Outcome)
        return outcome, msgspec.json.decode((share / "report.json").read_bytes(), type=report.Report)
    except (OSError, ValueError):
        return None, None


def judge(
    share: Path,
    result: qemu.Run,
    found: Sequence[cards.Gpu],
    driver: str,
    outcome: runner.Outcome | None,
    seen: report.Report | None,
) -> list[Check]:
    """The rows of the verdict, in the order of the steps. `driver`: what each card must have in the guest, if any."""
    steps = {step.name: step for step in read(share)}
    if "host" not in steps:
        last = [line.text for line in console.tail(console.lines(result.console), 3)]
        return [Check("host", "never came up", f"{result.ending} {result.detail}; its last lines: {' / '.join(last)}")]
    checks = [Check("host", f"up in {steps['host'].uptime:.1f} s")]
    before, during, after = ([row.split(" ") for row in _lines(share / name)] for name in OWNERS)
    functions = 2 * len(found)
    all_bound = len(during) == functions and all(row[1:] == [VFIO, VFIO] for row in during)
    for name in STEPS[1:]:
        step = steps.get(name)
        why = "" if step and step.status == 0 else _why(share, name, step)
        if name == "host-bind":
            why = why or ("" if all_bound else f"{VFIO} does not have all of them: {during}")
            checks.append(Check(name, _owners(during), why))
        elif name == "boot-test" and outcome is not None:
            kvm = outcome.spec.accel == "kvm" and all(gpu.host for gpu in outcome.spec.gpus)
            passed = outcome.verdict.result == "pass" and kvm and len(outcome.spec.gpus) == len(found)
            by = "run-guest" if outcome.run_guest else "not by run-guest"
            why = why or ("" if passed and outcome.run_guest else "no pass by run-guest under KVM with all cards")
            checks.append(Check(name, f"{outcome.verdict.result}, {by}, {outcome.accel}", why))
            checks.append(_messages(seen, len(found)))
            checks += [_driver(outcome, f"driver of gpu{number}", driver) for number in range(len(found)) if driver]
        elif name == "boot-test":
            checks.append(Check(name, "", why or "it left no verdict"))
        elif name == "host-unbind":
            why = why or ("" if len(before) == functions and before == after else f"{_owners(before)} before")
            checks.append(Check(name, _owners(after), why))
        else:
            checks.append(Check(name, "done" if not why else "", why))
    if result.ending != "power-off":
        checks.append(Check("host's end", result.ending, result.detail or result.ending))
    return checks


def _messages(seen: report.Report | None, wanted: int) -> Check:
    """Whether the second functions answered their drivers in the guest: by DMA, and an interrupt through the IOMMU."""
    devices = [] if seen is None else [each for each in seen.pci if (each.vendor, each.device) == SECOND_IDS]
    counts = ", ".join(f"{each.messages or 0} from {each.address}" for each in devices) or "none"
    dead = len(devices) != wanted or not all(each.messages for each in devices)
    return Check(
        "interrupts", counts, "a card's second function did not answer its driver in the guest" if dead else ""
    )


def _driver(outcome: runner.Outcome, name: str, wanted: str) -> Check:
    """Whether a card has its driver in the guest: the row of boot-test, which must have one."""
    row = next((row for row in outcome.verdict.checks if row.name == name), None)
    if row is None:
        return Check(name, "not checked", "boot-test did not come as far")
    other = f"boot-test checked for {row.requested}, not {wanted}" if row.requested != wanted else ""
    return Check(name, row.guest, other or row.why)


def _why(share: Path, name: str, step: Step | None) -> str:
    if step is None:
        return "not done"
    return " / ".join([f"status {step.status}", *_lines(share / f"{name}.log")[-4:]])


def _owners(rows: Sequence[Sequence[str]]) -> str:
    return ", ".join(f"{row[0]} {row[1] or 'no driver'}" for row in rows)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def table(checks: Sequence[Check]) -> str:
    """For a person, a row each."""
    name, found = (max(map(len, column)) for column in zip(*((c.name, c.found) for c in checks), strict=True))
    rows = [f"  {c.name:<{name}}  {c.found:<{found}}  {f'WRONG: {c.why}' if c.why else 'ok'}" for c in checks]
    return "\n".join(rows)
