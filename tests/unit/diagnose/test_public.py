# SPDX-License-Identifier: Apache-2.0
"""What people posted, reworded and anonymous, each with the right answer: tests/data/public/*.toml."""

import json

import msgspec
import pytest

from minguest.diagnose import catalogue, matching
from minguest.diagnose.catalogue import Pit
from tests import ROOT


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    roots: tuple[str, ...]
    """Exactly the roots that must be named, in any order."""
    source: str
    """Where the wording comes from."""
    log: str
    unexplained: tuple[str, ...] | None = None
    """Exactly the effects without a root; None: any."""


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    case: tuple[Case, ...]


FILES = sorted((ROOT / "tests/data/public").glob("*.toml"))
CASES = [case for path in FILES for case in msgspec.toml.decode(path.read_bytes(), type=File).case]
HEALTHY = sorted((ROOT / "tests/data/consoles").glob("*healthy*.log"))


@pytest.fixture(scope="module")
def known() -> dict[str, Pit]:
    return catalogue.load(ROOT / "configs/pits")


def diagnosed(known: dict[str, Pit], raw: bytes) -> matching.Diagnosis:
    return matching.diagnose(known, matching.see(raw))


def roots(known: dict[str, Pit], raw: bytes) -> list[str]:
    return sorted(hit.id for hit in diagnosed(known, raw).roots)


def test_the_cases_are_many_and_each_has_its_own_name() -> None:
    names = [case.name for case in CASES]
    assert len(names) >= 60
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_public_log_names_its_roots_and_no_other(known: dict[str, Pit], case: Case) -> None:
    assert case.source
    found = diagnosed(known, case.log.encode())
    assert sorted(hit.id for hit in found.roots) == sorted(case.roots)
    if case.unexplained is not None:
        assert sorted(hit.id for hit in found.unexplained) == sorted(case.unexplained)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_wraps_a_public_log_changes_nothing(known: dict[str, Pit], case: Case) -> None:
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
