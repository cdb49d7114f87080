# SPDX-License-Identifier: Apache-2.0
"""What people posted, reworded and anonymous, each with the right answer: tests/data/public/*.toml."""

import json

import pytest

from minguest.diagnose import cases, catalogue, logs, matching
from minguest.diagnose.catalogue import Pit
from tests import ROOT

PUBLIC = cases.load(ROOT / "tests/data/public")
CASES = [case for each in PUBLIC.values() for case in each.case]
HEALTHY = sorted((ROOT / "tests/data/consoles").glob("*healthy*.log"))


@pytest.fixture(scope="module")
def known() -> dict[str, Pit]:
    return catalogue.load(ROOT / "configs/pits")


def diagnosed(known: dict[str, Pit], raw: bytes) -> matching.Diagnosis:
    return matching.diagnose_logs(known, [logs.unwrapped("log", raw)])[0]


def roots(known: dict[str, Pit], raw: bytes) -> list[str]:
    return sorted(hit.id for hit in diagnosed(known, raw).roots)


def test_the_cases_are_many_and_each_has_its_own_name() -> None:
    names = [case.name for case in CASES]
    assert len(names) >= 60
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_public_log_names_its_roots_and_no_other(known: dict[str, Pit], case: cases.Case) -> None:
    assert case.source
    found = diagnosed(known, case.log.encode())
    assert sorted(hit.id for hit in found.roots) == sorted(case.roots)
    if case.unexplained is not None:
        assert sorted(hit.id for hit in found.unexplained) == sorted(case.unexplained)
    assert {hit.id for hit in found.questions} >= set(case.questions)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_wraps_a_public_log_changes_nothing(known: dict[str, Pit], case: cases.Case) -> None:
    wanted = sorted(case.roots)
    lines = case.log.strip("\n").split("\n")
    assert roots(known, case.log.replace("\n", "\r\n").encode()) == wanted
    if "Linux version" in case.log:
        return  # a console, which tests/data/consoles has in all its wrappings
    journal = "\n".join(f"Nov 22 12:00:00 host QEMU[4242]: {line}" for line in lines)
    assert roots(known, journal.encode()) == wanted
    message = json.dumps({"level": "error", "msg": case.log.strip("\n"), "subcomponent": "qemu"})
    if len(lines) == 1:
        assert roots(known, message.encode()) == wanted


@pytest.mark.parametrize("path", HEALTHY, ids=lambda path: path.stem)
def test_nothing_of_the_host_is_seen_on_a_healthy_console(known: dict[str, Pit], path: object) -> None:
    assert len(HEALTHY) >= 6
    found = diagnosed(known, (ROOT / "tests/data/consoles" / str(path)).read_bytes())
    hits = (*found.roots, *found.follows, *found.unexplained)
    assert not [hit.id for hit in hits if hit.pit.layer == "host" or hit.id in ("qemu-ended", "container-refused")]


def test_the_figures_are_on_the_page(known: dict[str, Pit], capsys: pytest.CaptureFixture[str]) -> None:
    made = cases.summary(ROOT / "tests/data/public", known)
    with capsys.disabled():
        print(f"\n{made}")
    assert made in (ROOT / "docs/pits.md").read_text(), "doit pits-page"


def case(roots: tuple[str, ...], unexplained: tuple[str, ...] | None = None) -> cases.Case:
    return cases.Case("x", roots, "log", unexplained)


def found(roots: tuple[str, ...], unexplained: tuple[str, ...] = ()) -> matching.Diagnosis:
    pit = Pit("t", "host")
    several = [tuple(matching.Found(name, pit, ()) for name in names) for names in (roots, unexplained)]
    return matching.Diagnosis(several[0], (), several[1], (), ())


@pytest.mark.parametrize(
    ("wanted", "got", "result"),
    [
        (case(("a",)), found(("a",)), "right"),
        (case(("a",)), found(("a",), ("e",)), "right"),
        (case(("a",), ()), found(("a",), ("e",)), "wrong"),
        (case(("a", "b")), found(("a",)), "incomplete"),
        (case(("a",), ("e",)), found((), ("e",)), "incomplete"),
        (case(("a",)), found(()), "silent"),
        (case(("a",)), found(("b",)), "wrong"),
        (case(("a",)), found(("a", "b")), "wrong"),
        (case(()), found(()), "right"),
        (case(()), found(("a",)), "false alarm"),
        (case(()), found((), ("e",)), "false alarm"),
        (case((), ("e",)), found((), ("e",)), "right"),
        (case((), ("e",)), found(()), "silent"),
    ],
)
def test_how_an_answer_is_scored(wanted: cases.Case, got: matching.Diagnosis, result: str) -> None:
    assert cases.judge(wanted, got) == result


def test_a_pattern_that_a_healthy_log_has_is_refused(known: dict[str, Pit]) -> None:
    healthy = {path.name: path.read_bytes() for path in HEALTHY}
    assert cases.loud(known, healthy) == []
    noisy = catalogue.Pit("t", "driver", (catalogue.Symptom(("smp: Brought up",)),), cause="c", fix="f")
    assert cases.loud({"noisy": noisy}, {HEALTHY[-1].name: HEALTHY[-1].read_bytes()}) == [
        f"configs/pits/noisy.toml: the healthy log {HEALTHY[-1].name} shows it"
    ]


@pytest.mark.parametrize("stem", ["6.12-efi-off", "4.12-nosmp", "6.12-pci-nomsi"])
def test_a_console_that_two_ports_wrote_names_the_same(known: dict[str, Pit], stem: str) -> None:
    """OVMF draws on two ports; a log of both has its lines twice, or another writer's in between."""
    raw = (ROOT / f"tests/data/consoles/{stem}.log").read_bytes()
    wanted = roots(known, raw)
    twice = b"\n".join(line for line in raw.split(b"\n") for _ in range(2))
    # A banner that comes twice begins a boot, as it does in a log of two boots.
    assert wanted and roots(known, twice) == wanted
    between = b"\n".join(line + b'\n{"record":"cpus"}' for line in raw.split(b"\n"))
    assert roots(known, between) == wanted
