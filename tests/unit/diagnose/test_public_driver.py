# SPDX-License-Identifier: Apache-2.0
"""What tests/data/public must have: enough kinds of drivers' logs, and of healthy machines."""

from minguest.diagnose import cases, catalogue
from tests import ROOT

PUBLIC = cases.load(ROOT / "tests/data/public")
CASES = [case for each in PUBLIC.values() for case in each.case]


def test_healthy_machines_of_many_kinds_name_nothing() -> None:
    healthy = [case for case in CASES if case.name.startswith("healthy.")]
    assert len(healthy) >= 12
    assert not [case.name for case in healthy if case.roots or case.unexplained]


def test_every_pit_of_a_driver_has_a_case() -> None:
    known = catalogue.load(ROOT / "configs/pits")
    named = {root for case in CASES for root in case.roots}
    assert {name for name, pit in known.items() if pit.layer == "driver"} <= named
