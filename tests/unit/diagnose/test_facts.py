# SPDX-License-Identifier: Apache-2.0
"""Conditions on a boot's facts: they are read strictly, and a fact that is not known is neither true nor false."""

import re

import pytest

from minguest.diagnose import facts
from minguest.diagnose.facts import condition
from minguest.util.errors import UserError
from minguest.vm import report


@pytest.mark.parametrize(
    ("text", "known", "holds"),
    [
        ("cpus.online < cpus.requested", {"cpus.online": 1, "cpus.requested": 4}, True),
        ("cpus.online < cpus.requested", {"cpus.online": 4, "cpus.requested": 4}, False),
        ("cpus.online < cpus.requested", {"cpus.online": 1}, None),
        ("cpus.online < cpus.requested", {"cpus.requested": 4}, None),
        ("memory.requested < 96M", {"memory.requested": (96 << 20) - 1}, True),
        ("memory.requested < 96M", {"memory.requested": 96 << 20}, False),
        ("bars.dead > 0", {"bars.dead": 0}, False),
        ("bars.dead >= 1", {"bars.dead": 1}, True),
        ("bars.dead <= 1", {"bars.dead": 2}, False),
        ("firmware.vendor == SeaBIOS", {"firmware.vendor": "SeaBIOS"}, True),
        ("firmware.vendor != SeaBIOS", {"firmware.vendor": "SeaBIOS"}, False),
        ("report == whole", {}, None),
    ],
)
def test_a_condition(text: str, known: dict[str, facts.Fact], holds: bool | None) -> None:
    assert condition(text).holds(known) is holds


def test_a_condition_describes_the_facts() -> None:
    each = condition("cpus.online < cpus.requested")
    assert each.describe({"cpus.online": 1, "cpus.requested": 4}) == "cpus.online is 1, cpus.requested is 4"
    assert condition("bars.dead > 0").describe({}) == "bars.dead is not known"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("cpus.online", "is not NAME"),
        ("cpus.online =< 4", "is not NAME"),
        ("cpu.online < 4", r"no fact 'cpu.online'\n.*cpus.online"),
        ("firmware.vendor < SeaBIOS", "text has no order"),
        ("cpus.online < cpus.wanted", "is not a number"),
        ("cpus.online == two", "is not a number"),
        ("memory.requested == 64MB", "is not a number"),
        ("report == hole", r"report is never 'hole'\n.*whole"),
        ("firmware.vendor < cpus.online", "text has no order"),
        ("cpus.online < firmware.kind", "is not a number"),
    ],
)
def test_a_wrong_condition_is_named(text: str, why: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)condition .{re.escape(text)}.*{why}"):
        condition(text)


def test_the_facts_of_a_report() -> None:
    lines = b"""\
{"record":"begin","protocol":1}
{"record":"cpus","present":"0-3","online":"0,2"}
{"record":"node","id":0}
{"record":"node","id":1}
{"record":"memory","ram_bytes":100,"blocks_present":8,"blocks_online":7}
{"record":"firmware","kind":"bios","vendor":"SeaBIOS"}
{"record":"interrupts","controllers":["IO-APIC","PCI-MSI"]}
{"record":"pci","address":"0000:00:02.0","vendor":"1","device":"2","class":"030000","gpu":true,"bars":[
"""
    lines = lines.rstrip().rstrip(b"[") + (
        b'[{"index":0,"start":"0x1","size":4,"kind":"mem32","assigned":true},'
        b'{"index":2,"start":null,"size":null,"kind":"mem64","assigned":false},'
        b'{"index":6,"start":null,"size":null,"kind":"rom","assigned":false}]}\n{"record":"end","records":8}\n'
    )
    assert facts.of_report(report.parse(lines)) == {
        "report": "whole", "cpus.present": 4, "cpus.online": 2, "memory.ram": 100, "memory.blocks": 8,
        "memory.blocks_online": 7, "nodes": 2, "firmware.kind": "bios", "firmware.vendor": "SeaBIOS", "gpus.seen": 1,
        "pci.devices": 1, "bars.dead": 1, "interrupts.controllers": "IO-APIC,PCI-MSI",
    }  # fmt: skip
    assert facts.of_report(report.parse(lines[:-30])) == {"report": "damaged"}
    assert facts.of_report(report.parse(b"")) == {"report": "none"}
