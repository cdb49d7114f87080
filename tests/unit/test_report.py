# SPDX-License-Identifier: Apache-2.0
"""A report is whole or lost; cut anywhere, it is never taken for whole."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minguest import report

DEVICE = {
    "record": "pci", "address": "0000:00:02.0", "vendor": "1234", "device": "1111", "class": "038000", "gpu": True,
    "bars": [{"index": 0, "start": "0x80000000", "size": 16777216, "kind": "mem32", "assigned": True}],
}  # fmt: skip
RECORDS = [
    {"record": "begin", "protocol": 1, "uptime": 0.5},
    {"record": "cpus", "possible": "0-3", "online": "0-3"},
    DEVICE,
    {"record": "end", "status": "ok", "records": 3},
]
# initd writes without blanks, as docs/report.md says.
WHOLE = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in RECORDS).encode()


def test_a_whole_report() -> None:
    found = report.parse(WHOLE)
    assert found.complete
    assert found.damage is None
    assert found.record("cpus")["online"] == "0-3"
    assert found.pci[0].pci_class == "038000"
    assert found.pci[0].bars[0].size == 1 << 24


@given(st.integers(0, len(WHOLE) - 2))
def test_a_report_cut_anywhere_is_not_complete(length: int) -> None:
    assert not report.parse(WHOLE[:length]).complete


@given(st.binary())
def test_noise_is_never_a_report(noise: bytes) -> None:
    assert not report.parse(noise).complete


def test_a_lost_line_shows() -> None:
    lines = WHOLE.splitlines(keepends=True)
    found = report.parse(b"".join(lines[:1] + lines[2:]))
    assert not found.complete
    assert found.damage == "3 records were sent, 2 came"


def test_what_the_firmware_wrote_before_is_skipped() -> None:
    assert report.parse(b"\x1b[2J\x1b[01;01HBdsDxe: \xff\r\n" + WHOLE).complete
    assert report.parse(b"\x1b[2J" + WHOLE).complete


def test_events_after_the_end_are_not_the_reports() -> None:
    assert report.parse(WHOLE + b'{"record":"event"}\n{"rec').complete


@pytest.mark.parametrize(
    ("line", "damage"),
    [
        (b'{"record":"begin","protocol":2}', "protocol 2, this reader knows 1"),
        (b"[1]", "no record"),
        (b'{"record":"pci","address":"x"}', "missing required field"),
        (b"\xff\xfe", "line 1: "),
    ],
)
def test_damage_is_named(line: bytes, damage: str) -> None:
    found = report.parse(line + b"\n")
    assert not found.complete
    assert damage in (found.damage or "")


@pytest.mark.parametrize(("text", "count"), [("", 0), ("0", 1), ("0-3", 4), ("0-3,8,10-11\n", 7)])
def test_cpu_lists(text: str, count: int) -> None:
    assert report.cpu_count(text) == count


@pytest.mark.parametrize(
    "record",
    [
        '{"record":"cpus","present":3}',
        '{"record":"cpus","online":"a-b"}',
        '{"record":"cpus","possible":"0-99999999999"}',
        '{"record":"cpus","possible":"' + "0-60000," * 40 + '"}',
        '{"record":"node","cpus":"x"}',
        '{"record":"node","distances":[null]}',
        '{"record":"memory","ram_bytes":"much"}',
        '{"record":"firmware","vendor":7}',
        '{"record":"interrupts","controllers":[7]}',
        '{"record":"begin","protocol":1,"cmdline":7}',
        '{"record":"begin","protocol":1,"uptime":"late"}',
        "[" * 100_000,
    ],
)
def test_a_guest_that_lies_about_types_has_no_report(record: str) -> None:
    found = report.parse(f'{{"record":"begin","protocol":1}}\n{record}\n{{"record":"end","records":2}}\n'.encode())
    assert not found.complete
    assert (found.damage or "").startswith("line 2: ")
