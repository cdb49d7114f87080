# SPDX-License-Identifier: Apache-2.0
"""A report is whole or lost; one that was cut never counts as whole."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minguest.vm import report
from tests import ROOT

BAR = {"index": 0, "start": "0x80000000", "size": 16777216, "kind": "mem32", "assigned": True}
DEVICE = {
    "record": "pci", "address": "0000:00:02.0", "vendor": "1234", "device": "1111", "class": "038000", "gpu": True,
    "bars": [BAR],
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


LAST = b'{"record":"shutdown","uptime":3.5,"why":"power-button","how":"power-off","killed":0,"left":0,'
LAST += b'"synced":true,"busy":null}\n'


def test_how_the_guest_shut_down_comes_after_the_end() -> None:
    event = b'{"record":"event","uptime":3.0,"action":"add","subsystem":"cpu","device":"cpu4","online":true}\n'
    shutdown = report.Shutdown("power-button", "power-off", 0, 0, True, None)
    assert report.parse(WHOLE + event + LAST).shutdown == shutdown
    assert report.parse(WHOLE).shutdown is None


@pytest.mark.parametrize(
    ("text", "damage"),
    [
        # Before the report, and cut: it is not there.
        (LAST + WHOLE, None),
        (WHOLE + LAST[:-1], None),
        (WHOLE[:-20] + LAST, "line 4: "),
        (WHOLE + LAST.replace(b"0,", b"-1,"), "line 5: "),
        (WHOLE + LAST.replace(b'"synced":true,', b""), "line 5: "),
        (WHOLE + LAST + LAST, "line 6: shutdown after the shutdown"),
        (WHOLE + LAST + b'{"record":"event"}\n', "line 6: event after the shutdown"),
    ],
)
def test_a_shutdown_that_is_not_whole_or_not_in_its_place_does_not_count(text: bytes, damage: str | None) -> None:
    found = report.parse(text)
    assert (found.shutdown, found.complete) == (None, damage is None)
    assert (found.damage or "").startswith(damage or "")


def test_events_after_the_end_are_not_the_reports() -> None:
    found = report.parse(WHOLE + b'{"record":"event"}\n{"record":"exit","status":0}\n{"rec')
    assert (found.complete, found.damage, len(found.records)) == (True, None, 4)
    # Lost lines are still noticed.
    assert not report.parse(WHOLE.replace(b'"records":3', b'"records":4') + b'{"record":"event"}\n').complete


@pytest.mark.parametrize(
    ("after", "damage"),
    [
        (WHOLE, "line 5: begin after the end"),
        (b'{"record":"event"}\n' + WHOLE, "line 6: begin after the end"),
        (json.dumps(DEVICE).encode() + b"\n", "line 5: pci after the end"),
        (b'{"record":"end","records":3}\n', "line 5: end after the end"),
        (b'{"record":"ready"}\n', "line 5: ready after the end"),
        (b"a foreign text\n", "line 5: "),
        (b"\n", "line 5: "),
        (b"7\n", "line 5: not a record"),
    ],
)
def test_what_initd_never_writes_after_the_end_is_refused(after: bytes, damage: str) -> None:
    found = report.parse(WHOLE + after)
    assert not found.complete
    assert (found.damage or "").startswith(damage)
    assert len(found.pci) == 1


MODULE = {
    "record": "module", "name": "card", "file": "/lib/modules/6.12/card.ko", "version": None, "result": "failed",
    "errno": "ENOEXEC", "signal": None, "seconds": 0.25, "messages": ["card: version magic"],
}  # fmt: skip
LATER = {**MODULE, "name": "later", "result": "loaded", "errno": None, "version": "1.2", "messages": []}


def test_modules_are_read_also_after_the_end() -> None:
    lines = WHOLE.replace(b'"records":3', b'"records":4').splitlines(keepends=True)
    text = b"".join([*lines[:3], json.dumps(MODULE).encode() + b"\n", lines[3], json.dumps(LATER).encode() + b"\n"])
    found = report.parse(text)
    assert found.complete
    assert [each.name for each in found.modules] == ["card", "later"]
    assert found.modules[0] == report.Module(
        "card", "/lib/modules/6.12/card.ko", None, "failed", "ENOEXEC", None, 0.25, ("card: version magic",)
    )
    # Only those before the end are its records.
    assert len(found.records) == 5


def test_a_later_module_that_lies_is_damage() -> None:
    found = report.parse(WHOLE + json.dumps({**LATER, "result": "perhaps"}).encode() + b"\n")
    assert (found.complete, found.modules) == (False, ())
    assert (found.damage or "").startswith("line 5: ")


def test_a_report_has_one_begin_and_it_is_first() -> None:
    lines = WHOLE.splitlines(keepends=True)
    end = b'{"record":"end","records":1}\n'
    assert report.parse(lines[1] + end).damage == "line 1: no begin before it"
    assert report.parse(lines[0] + lines[0] + end).damage == "line 2: a second begin"


def test_ready_and_noise_may_come_before() -> None:
    assert report.parse(b'{"record":"ready","cpus":2}\n{"record":"in-use","cpus":8}\n' + WHOLE).complete


@pytest.mark.parametrize(
    ("line", "damage"),
    [
        (b'{"record":"begin","protocol":2}', "protocol 2, this reader knows 1"),
        (b"[1]", "not a record"),
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
        '{"record":"driver","address":"0000:01:00.0","name":null,"nodes":[]}',
        '{"record":"driver","address":"0000:01:00.0","name":"nvidia","nodes":"/dev/nvidia0"}',
        '{"record":"driver","address":"0000:01:00.0","name":"nvidia","nodes":[],"firmware":580}',
        '{"record":"begin","protocol":1,"cmdline":7}',
        '{"record":"begin","protocol":1,"kernel":"6.12"}',
        '{"record":"begin","protocol":1,"kernel":{"release":6.12}}',
        '{"record":"begin","protocol":1,"uptime":"late"}',
        '{"record":"begin","protocol":1,"uptime":1' + "0" * 400 + "}",
        '{"record":"begin","protocol":1,"uptime":-1}',
        '{"record":"memory","ram_bytes":1' + "0" * 30 + "}",
        '{"record":"memory","blocks_online":-1}',
        '{"record":"node","memory_bytes":1e300}',
        '{"record":"times","start":NaN}',
        '{"record":"times","start":"late"}',
        '{"record":"times","tsc":-1}',
        '{"record":"times","tsc":1.5}',
        '{"record":"acpi","tables":["\\ud800"]}',
        '{"record":"acpi","tables":' + "[" * 16 + "]" * 16 + "}",
        json.dumps({**DEVICE, "bars": [{**BAR, "start": "somewhere"}]}),
        json.dumps({**DEVICE, "bars": [{**BAR, "start": "0x" + "f" * 17}]}),
        json.dumps({**DEVICE, "bars": [{**BAR, "size": -1}]}),
        json.dumps({**DEVICE, "bars": [{**BAR, "index": 7}]}),
        json.dumps({**DEVICE, "messages": -1}),
        json.dumps({**MODULE, "name": 7}),
        json.dumps({**MODULE, "name": "n" * 64}),
        json.dumps({**MODULE, "file": "/" + "f" * 4096}),
        json.dumps({**MODULE, "version": "1" * 64}),
        json.dumps({**MODULE, "result": "perhaps"}),
        json.dumps({**MODULE, "errno": "no such file"}),
        json.dumps({**MODULE, "errno": 2}),
        json.dumps({**MODULE, "signal": 0}),
        json.dumps({**MODULE, "signal": 65}),
        json.dumps({**MODULE, "seconds": -1}),
        json.dumps({**MODULE, "seconds": "long"}),
        json.dumps({**MODULE, "messages": None}),
        json.dumps({**MODULE, "messages": ["m"] * 11}),
        json.dumps({**MODULE, "messages": ["m" * 201]}),
        json.dumps({**MODULE, "messages": [7]}),
        json.dumps({key: value for key, value in MODULE.items() if key != "messages"}),
        "[" * 100_000,
    ],
)
def test_a_guest_that_lies_about_types_has_no_report(record: str) -> None:
    found = report.parse(f'{{"record":"begin","protocol":1}}\n{record}\n{{"record":"end","records":2}}\n'.encode())
    assert not found.complete
    assert (found.damage or "").startswith("line 2: ")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_what_was_read_can_be_written(value: object) -> None:
    found = report.parse(b'{"record":"begin","protocol":1,"other":' + json.dumps(value).encode() + b"}\n")
    assert msgspec.json.decode(msgspec.json.encode(found), type=report.Report) == found


def test_a_real_card_with_its_driver() -> None:
    """Recorded in a passthrough guest; nvidia-smi and ls named the same versions and nodes there."""
    found = report.parse((ROOT / "tests/data/reports/nvidia-h100.jsonl").read_bytes())
    assert found.complete, found.damage
    (card,) = [device for device in found.pci if device.gpu]
    assert (card.vendor, card.device, card.driver) == ("10de", "2330", "nvidia")
    assert [bar.size for bar in card.bars if bar.assigned] == [16 << 20, 128 << 30, 32 << 20]
    (driver,) = found.all("driver")
    assert driver["address"] == card.address
    assert (driver["name"], driver["version"], driver["firmware"]) == ("nvidia", "580.159.04", "580.159.04")
    assert driver["nodes"] == ["/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm"]


LOG = {"record": "log", "left_out": 0, "lines": ["[    0.000000] Linux version 6.12", "[    0.100000] caf\\xc3\\xa9"]}
MORE = {"record": "log", "left_out": 7, "lines": ["[    1.000000] two\\x0alines, and \\x5cx41"]}


def test_the_kernels_log_comes_after_the_report_and_becomes_text() -> None:
    after = "".join(json.dumps(each) + "\n" for each in (LOG, {"record": "event"}, MORE)).encode()
    found = report.parse(WHOLE + after)
    assert found.complete and [part.left_out for part in found.log] == [0, 7]
    assert report.kernel_log(found.log).decode() == (
        "[    0.000000] Linux version 6.12\n[    0.100000] café\n-- 7 messages left out --\n"
        "[    1.000000] two\n[    1.000000] lines, and \\x41\n"
    )
    # A part that QEMU's end cut does not count; the parts before it do.
    assert len(report.parse(WHOLE + after[:-5]).log) == 1
    assert report.parse(WHOLE).log == () and report.kernel_log(()) == b""
    assert report.parse(WHOLE + json.dumps({**LOG, "lines": [1]}).encode() + b"\n").damage


def test_the_report_of_a_boot_test_keeps_the_log() -> None:
    found = report.parse(WHOLE + json.dumps(MORE).encode() + b"\n")
    assert msgspec.json.decode(msgspec.json.encode(found), type=report.Report).log == found.log
