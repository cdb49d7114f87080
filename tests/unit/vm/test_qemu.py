# SPDX-License-Identifier: Apache-2.0
"""A run of QEMU ends, bounded in time and bytes, and says how, whatever QEMU does. Here a fake is in its place."""

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from minguest.util.errors import ToolError
from minguest.vm import arguments, emulator, qemu, qmp, report
from tests import fake_qmp
from tests.fake_qmp import POWER_OFF, REPORT, WELL

CONNECTED = ["heard", "qmp_capabilities"]
BEGIN = REPORT.splitlines(keepends=True)[0]
MIB = 1 << 20


class Rig:
    """Runs the fake in QEMU's place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "run"
        self.folder.mkdir()
        self.bin = folder / "bin"

    def boot(
        self, *steps: Sequence[Any], timeout: float = 20, deeds: qemu.Deeds = qemu.NOTHING, **more: Any
    ) -> qemu.Run:
        settings = {name: more.pop(name) for name in ("linger", "look") if name in more}
        program = fake_qmp.install(self.bin, steps=steps, **more)
        return qemu.boot([str(program), "-option"], self.folder, timeout, deeds, **settings)

    def heard(self, *commands: str) -> list[dict[str, Any]]:
        """The commands that were sent; only these, if any are named."""
        every = fake_qmp.heard(self.folder)
        return [each.get("arguments", {}) for each in every if each["execute"] in commands] if commands else every


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that a test need not wait for."""
    monkeypatch.setattr(qmp, "ANSWER", 0.5)
    monkeypatch.setattr(qemu, "GRACE", 0.3)
    monkeypatch.setattr(qemu, "DEAD_END", 0.3)


def test_a_guest_that_powers_off(rig: Rig) -> None:
    run = rig.boot(*WELL)
    assert (run.ending, run.detail, run.status) == ("power-off", "", None)
    assert run.console == b"Linux version 6.12\n" == (rig.folder / "console.log").read_bytes()
    assert run.report == REPORT.encode() == (rig.folder / "report.jsonl").read_bytes()
    assert run.argv == (str(rig.bin / "qemu-system-x86_64"), "-option")
    assert run.views.keys() == qmp.QUERIES.keys()
    assert run.views["memory"] == {"base-memory": 1 << 30, "plugged-memory": 0}
    assert run.begin is not None
    assert run.end is not None
    assert 0 < run.begin <= run.end <= run.wall < 20
    assert os.access(rig.folder / "qemu.sh", os.X_OK)
    # What is not requested is not done.
    assert not rig.heard("device_add", "device_del", "object-add", "inject-nmi", "system_powerdown", "query-status")


def test_what_an_earlier_run_left_is_gone(rig: Rig) -> None:
    (rig.folder / "qmp.sock").write_text("")
    (rig.folder / "report.jsonl").write_text(REPORT)
    run = rig.boot(CONNECTED, *POWER_OFF)
    assert (run.ending, run.report, run.end) == ("power-off", b"", None)


@pytest.mark.parametrize(
    ("reason", "ending"),
    [
        ("guest-shutdown", ("power-off", "")),
        ("guest-panic", ("panic", "guest-panic")),
        ("guest-reset", ("reset", "guest-reset")),
        (None, ("reset", "unknown")),
    ],
)
def test_how_the_guest_went(rig: Rig, reason: str | None, ending: tuple[str, str]) -> None:
    run = rig.boot(CONNECTED, ["event", "SHUTDOWN", {"reason": reason} if reason else {}])
    assert (run.ending, run.detail) == ending


def test_a_guest_that_stays_after_its_report_is_ended(rig: Rig) -> None:
    run = rig.boot(CONNECTED, ["report", REPORT], linger=0.3)
    assert (run.ending, run.detail) == ("no power-off", "it still ran 0.3 s after its report")
    assert run.end is not None
    assert run.end + 0.3 < run.wall < run.end + 5
    assert run.views.keys() == qmp.QUERIES.keys()


@pytest.mark.parametrize(
    "text", [BEGIN, REPORT.removesuffix("\n"), '{"record":"end","status":"ok","records":0}\n' + BEGIN]
)
def test_half_a_report_is_not_its_end(rig: Rig, text: str) -> None:
    run = rig.boot(CONNECTED, ["report", text], timeout=0.6, linger=0.1)
    assert (run.ending, run.detail, run.end) == ("deadline", "0.6 s are over", None)
    assert run.begin is not None
    assert run.wall < 5


def test_a_report_that_comes_in_pieces(rig: Rig) -> None:
    pieces = [["report", REPORT[n : n + 20]] for n in range(0, len(REPORT), 20)]
    steps = [step for piece in pieces for step in (piece, ["wait", 0.03])]
    run = rig.boot(CONNECTED, *steps, *POWER_OFF)
    assert run.report == REPORT.encode()
    assert run.begin is not None
    assert run.end is not None
    assert run.begin < run.end


@pytest.mark.parametrize("shown", list(qemu.DEAD_ENDS))
def test_where_a_guest_waits_for_good(rig: Rig, short: None, shown: bytes) -> None:
    text = shown.decode()
    # Cut by a look, among others.
    run = rig.boot(["console", "BdsDxe\n" + text[:9]], ["wait", 0.2], ["console", text[9:] + "\nmore\n"])
    assert (run.ending, run.detail) == ("dead end", qemu.DEAD_ENDS[shown])
    assert run.console.endswith(b"more\n")  # it had the time to print the rest
    assert run.wall > 0.5


def test_looks_are_made_meanwhile(rig: Rig) -> None:
    looks: list[float] = []
    rig.boot(CONNECTED, ["wait", 0.3], *POWER_OFF, look=lambda: looks.append(time.monotonic()))
    assert len(looks) > 5


def test_what_a_look_raises_ends_qemu(rig: Rig) -> None:
    def look() -> None:
        if (rig.folder / "qmp.sock").exists():
            raise KeyError("a fault")

    with pytest.raises(KeyError):
        rig.boot(look=look)
    assert _nobody_listens(rig.folder)


def _nobody_listens(folder: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as handle, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return handle.connect_ex("qmp.sock") != 0


# ── QEMU that ends ──


def test_qemu_that_ends_before_the_guest_ran_is_named(rig: Rig) -> None:
    text = "".join(f"line {number}\n" for number in range(30)) + "x" * 5000 + "\n"
    with pytest.raises(ToolError, match="QEMU ended before the guest ran: exit status 3") as caught:
        rig.boot(["stderr", text], ["exit", 3])
    lines = caught.value.message.splitlines()
    assert lines[1:-1] == [f"line {number}" for number in range(21, 30)]
    assert lines[-1] == "x" * qemu.LINE_MAX + " …"
    assert caught.value.remedy == f"the command is {rig.folder / 'qemu.sh'}"


@pytest.mark.parametrize("said", [["console", "Linux"], ["report", "{"]])
def test_qemu_that_dies_later_is_a_run(rig: Rig, said: list[str]) -> None:
    run = rig.boot(CONNECTED, said, ["kill", 6])
    assert (run.ending, run.detail, run.status) == ("qemu died", "killed by signal 6 (Aborted)", -6)
    assert run.views == {}


@pytest.mark.parametrize("event", ["STOP", "SHUTDOWN"])
def test_qemu_that_dies_before_it_answered_died(rig: Rig, event: str) -> None:
    dies = {"query-status": "die", "query-version": "die"}
    run = rig.boot(CONNECTED, ["report", REPORT], ["event", event, {"reason": "guest-shutdown"}], answers=dies)
    assert run.ending in ("qemu died", "no answer")
    assert run.views == {}


def test_qemu_that_hangs_up_first_and_then_dies_died(rig: Rig) -> None:
    run = rig.boot(CONNECTED, ["report", REPORT], ["wait", 0.2], ["close"], ["wait", 0.3], ["exit", 4])
    assert (run.ending, run.detail, run.status) == ("qemu died", "exit status 4", 4)


# ── QEMU that does not answer ──


def test_after_a_power_off_query_status_does_not_matter(rig: Rig) -> None:
    assert rig.boot(*WELL, answers={"query-status": {"error": "no"}}).ending == "power-off"


def test_kvm_that_fails(rig: Rig) -> None:
    run = rig.boot(CONNECTED, ["event", "STOP", {}], answers={"query-status": {"status": "internal-error"}})
    assert (run.ending, run.detail) == ("internal error", "QEMU stopped the guest with an internal error")


def test_a_stop_without_an_error_ends_nothing(rig: Rig) -> None:
    paused = {"query-status": {"status": "paused"}}
    run = rig.boot(CONNECTED, ["event", "STOP", {}], ["wait", 0.2], *POWER_OFF, answers=paused)
    assert run.ending == "power-off"


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        ({"error": "not now"}, "query-status: not now"),
        ("hang", "query-status: no answer in 0.5 s"),
        ("close", "query-status: Disconnected"),
        ([1], "query-status: Expected `object`, got `array`"),
        ({"running": True}, "query-status: Object missing required field `status`"),
        ({"raw": '{"id": ID, "return": ' + DEEP + "}"}, "query-status: Disconnected"),
        ({"raw": '{"id": ID, "return": "\udcff"}'}, "query-status: Disconnected"),
        ({"raw": '{"id": ID}'}, "query-status: "),
        ({"raw": '{"id": [], "return": 1}'}, "query-status: Disconnected"),
        ({"raw": "no JSON"}, "query-status: Disconnected"),
        ({"raw": '{"id": ID, "error": 7}'}, "query-status: "),
    ],
)
def test_a_stop_that_qemu_does_not_explain(
    rig: Rig, short: None, capfd: pytest.CaptureFixture[str], answer: Any, detail: str
) -> None:
    run = rig.boot(CONNECTED, ["event", "STOP", {}], answers={"query-status": answer})
    assert run.ending == "no answer"
    assert run.detail.startswith(detail)
    assert run.wall < 5
    # QMP's library would print what it does not understand.
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("data", [7, None, {"reason": 7}, [[[]]]])
def test_a_shutdown_that_says_nothing(rig: Rig, short: None, data: Any) -> None:
    run = rig.boot(CONNECTED, ["event", "SHUTDOWN", data])
    assert run.ending == "no answer"
    assert run.detail.startswith("event SHUTDOWN: Expected `")


@pytest.mark.parametrize(
    "line", [DEEP, '{"event": []}', "[]", '{"event": "STOP"}', '{"event": "SHUTDOWN"}', '{"error": {}}', "\udcff"]
)
def test_a_line_of_nonsense_is_no_traceback(rig: Rig, short: None, line: str) -> None:
    stopped = line == '{"event": "STOP"}'
    run = rig.boot(CONNECTED, ["wait", 0.1], ["raw", line], timeout=2 if stopped else 30)
    assert run.ending == ("deadline" if stopped else "no answer")


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("query-cpus-fast", 7),
        ("query-cpus-fast", {"a": 1}),
        ("query-cpus-fast", [7]),
        ("query-hotpluggable-cpus", [{"type": "x"}]),
        ("query-hotpluggable-cpus", [{"type": "x", "props": {"core-id": "0"}}]),
        ("query-memory-size-summary", {"plugged-memory": 1}),
        ("query-memory-size-summary", {"base-memory": "1G"}),
        ("query-memory-size-summary", {"base-memory": -1}),
        ("query-memory-size-summary", {"base-memory": 10**400}),
        ("query-pci", [{"bus": 0}]),
        ("query-pci", [{"devices": [{"bus": 0, "slot": "0", "function": 0, "qdev_id": "", "regions": []}]}]),
        ("query-pci", [{"devices": [{"bus": 0, "slot": 0, "function": 0, "qdev_id": "", "regions": [{"bar": 0}]}]}]),
        ("query-pci", [{"devices": [{**fake_qmp.PORT, "pci_bridge": {"devices": [7]}}]}]),
        ("query-version", {"error": "no such command"}),
    ],
)
def test_answers_of_other_types_are_refused(rig: Rig, command: str, answer: Any) -> None:
    run = rig.boot(*WELL, answers={command: answer})
    assert run.ending == "no answer"
    assert run.detail.startswith(f"{command}: ")
    requested = list(qmp.QUERIES)
    before = requested[: requested.index(next(name for name, query in qmp.QUERIES.items() if query == command))]
    assert list(run.views) == before


def test_without_a_report_a_power_off_stays_one(rig: Rig) -> None:
    run = rig.boot(CONNECTED, *POWER_OFF, answers={"query-version": {"error": "no"}})
    assert (run.ending, run.views) == ("power-off", {})


def test_qemu_that_hangs_up_is_not_waited_for(rig: Rig, short: None) -> None:
    run = rig.boot(["heard", "query-status"], answers={"query-status": "close"}, timeout=2)
    assert run.ending == "deadline"  # it was never sent
    run = rig.boot(CONNECTED, ["wait", 0.2], ["report", REPORT], ["close"])
    assert (run.ending, run.detail) == ("no answer", "it closed the QMP connection")
    assert run.wall < 5


def test_the_last_event_is_heard_when_qemu_hung_up(rig: Rig) -> None:
    run = rig.boot(CONNECTED, ["wait", 0.2], ["event", "SHUTDOWN", {"reason": "guest-shutdown"}], ["close"])
    assert run.ending == "power-off"


def test_without_qmp_the_guest_is_still_watched(rig: Rig) -> None:
    run = rig.boot(["report", REPORT], greeting=None, linger=0.3)
    assert (run.ending, run.detail) == ("no answer", "QMP could not be reached")
    run = rig.boot(["console", "x"], greeting=None, timeout=0.5)
    assert (run.ending, run.views, run.ready) == ("deadline", {}, False)
    assert rig.boot(["console", "x"], timeout=0.5).ready


@pytest.mark.parametrize("greeting", ["{}", "7", DEEP, "\udcff", '{"QMP": 7}'])
def test_a_greeting_of_nonsense_is_no_qmp(rig: Rig, greeting: str) -> None:
    assert rig.boot(greeting=greeting, timeout=0.6).ending == "deadline"


def test_a_qmp_that_says_nothing_does_not_hold_up_the_rest(rig: Rig) -> None:
    # 10 s are an answer's time.
    run = rig.boot(["report", REPORT], answers={"qmp_capabilities": "hang"}, linger=0.3)
    assert run.end is not None
    assert run.end < 3
    assert run.wall < 5
    assert run.ending == "no answer"


def test_a_connection_that_cannot_be_cancelled_holds_up_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(_: qmp.Connection) -> bool:
        # As asyncio.wait_for did when QEMU died during the connect.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return False

    monkeypatch.setattr(qmp.Connection, "connect", connect)
    run = rig.boot(timeout=0.5)
    assert run.ending == "deadline"
    assert run.wall < 5


def test_a_socket_with_a_long_name_is_reached(tmp_path: Path) -> None:
    deep = tmp_path / ("long" * 30)
    deep.mkdir()
    assert Rig(deep).boot(*WELL).ending == "power-off"


# ── floods ──


def test_the_consoles_flood_is_cut(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "CONSOLE_MAX", 4 * MIB)
    run = rig.boot(["flood", "console", 2048 * MIB, "boom\n"])
    assert (run.ending, run.detail) == ("console flood", "more than 4 MiB on the console")
    assert 4 * MIB < len(run.console) <= 4 * MIB + (1 << 16)
    assert (rig.folder / "console.log").read_bytes() == run.console
    assert run.wall < 15


def test_the_reports_flood_is_cut(rig: Rig) -> None:
    run = rig.boot(["flood", "report", 4096 * MIB, '{"record":"x"}\n'])
    assert (run.ending, run.detail) == ("report flood", "more than 8 MiB on the report's port")
    assert len(run.report) == qemu.REPORT_MAX + 1
    assert (rig.folder / "report.jsonl").stat().st_size == qemu.REPORT_MAX
    assert run.wall < 15


def test_qemus_own_output_is_cut_in_the_middle(rig: Rig) -> None:
    last = "qemu: Assertion `x' failed.\n"
    run = rig.boot(CONNECTED, ["stderr", "first\n"], ["flood", "stderr", 300 * MIB, "boom\n"], ["stderr", last], *WELL)
    text = (rig.folder / "qemu.log").read_text()
    assert run.ending == "power-off"
    assert text.startswith("first\nboom\n")
    assert text.endswith("boom\n" + last)
    whole = 300 * (MIB // 5 * 5) + len("first\n" + last)
    left_out = whole - qemu.LOG_FIRST_MAX - qemu.LOG_LAST_MAX
    assert f"\n[{left_out} bytes left out]\n" in text
    assert len(text) == qemu.LOG_FIRST_MAX + qemu.LOG_LAST_MAX + len(f"\n[{left_out} bytes left out]\n")


def test_a_little_output_of_qemu_is_kept_as_it_is(rig: Rig) -> None:
    rig.boot(["stderr", "qemu: warning: a\n"], *WELL)
    assert (rig.folder / "qemu.log").read_text() == "qemu: warning: a\n"


@pytest.mark.parametrize("output", ["stderr", "console"])
def test_a_flood_does_not_outlast_the_deadline(rig: Rig, output: str) -> None:
    run = rig.boot(["flood", output, 64 << 30, "boom\n"], timeout=1)
    assert run.ending in ("deadline", "console flood")
    assert run.wall < 10


def test_another_process_with_qemus_output_is_not_waited_for(rig: Rig, tmp_path: Path) -> None:
    program = tmp_path / "forks"
    program.write_text(f"#!/bin/sh\nsetsid sleep 30 & echo $! >{tmp_path}/pid\necho Linux\nexit 1\n")
    program.chmod(0o755)
    start = time.monotonic()
    run = qemu.boot([str(program)], rig.folder, 10)
    os.kill(int((tmp_path / "pid").read_text()), 9)
    assert (run.ending, run.console) == ("qemu died", b"Linux\n")
    assert time.monotonic() - start < 8


@pytest.mark.parametrize("name", ["console.log", "qemu.log"])
def test_a_full_disk_is_named(rig: Rig, name: str) -> None:
    (rig.folder / name).symlink_to("/dev/full")
    with pytest.raises(ToolError, match="No space left on device"):
        rig.boot(CONNECTED, ["console", "x"], ["stderr", "x"], ["wait", 5], *POWER_OFF)


# ── deeds ──

READY = '{"record":"ready","cpus":1,"memory_bytes":0}\n'
IN_USE = '{"record":"in-use","cpus":3,"memory_bytes":0}\n'
SLOTS = [
    {"type": "max-x86_64-cpu", "props": {"core-id": 3}},
    {"type": "max-x86_64-cpu", "props": {"core-id": 1}},
    {"type": "max-x86_64-cpu", "props": {"core-id": 0}, "qom-path": "/cpu0"},
    {"type": "max-x86_64-cpu", "props": {"core-id": 2}},
]
ANSWERS = {"query-hotpluggable-cpus": SLOTS}


def test_cpus_are_plugged_in_in_their_order_and_the_last_go_first(rig: Rig) -> None:
    steps: list[list[Any]] = [["report", READY], ["heard", "object-add"], ["wait", 0.1], ["report", IN_USE]]
    steps += [["heard", "device_del"], ["wait", 0.1], ["report", REPORT], *POWER_OFF]
    run = rig.boot(CONNECTED, *steps, answers=ANSWERS, deeds=qemu.Deeds(cpus=3, left=1, dimms=(128 * MIB, 256 * MIB)))
    assert run.ending == "power-off"
    assert rig.heard("device_add", "object-add") == [
        {"driver": "max-x86_64-cpu", "id": "plugged-cpu0", "core-id": 1},
        {"driver": "max-x86_64-cpu", "id": "plugged-cpu1", "core-id": 2},
        {"qom-type": "memory-backend-ram", "id": "dimm0-memory", "size": 128 * MIB},
        {"driver": "pc-dimm", "id": "dimm0", "memdev": "dimm0-memory"},
        {"qom-type": "memory-backend-ram", "id": "dimm1-memory", "size": 256 * MIB},
        {"driver": "pc-dimm", "id": "dimm1", "memdev": "dimm1-memory"},
    ]
    assert rig.heard("device_del") == [{"id": "plugged-cpu1"}, {"id": "plugged-cpu0"}]


def test_only_as_many_cpus_are_unplugged_as_requested(rig: Rig) -> None:
    steps: list[list[Any]] = [["report", READY], ["heard", "device_add"], ["wait", 0.2], ["report", IN_USE]]
    steps += [["heard", "device_del"], ["wait", 0.1], ["report", REPORT], *POWER_OFF]
    rig.boot(CONNECTED, *steps, answers=ANSWERS, deeds=qemu.Deeds(cpus=3, left=2))
    assert rig.heard("device_del") == [{"id": "plugged-cpu1"}]
    assert not rig.heard("object-add")


def test_nothing_is_plugged_in_before_initd_is_ready(rig: Rig) -> None:
    deeds = qemu.Deeds(cpus=2, left=1, dimms=(128 * MIB,), nmi=True, button=True)
    rig.boot(CONNECTED, ["wait", 0.3], *POWER_OFF, answers=ANSWERS, deeds=deeds)
    assert not rig.heard("device_add", "object-add", "device_del", "inject-nmi", "system_powerdown")


def test_an_nmi_comes_once_after_the_report(rig: Rig) -> None:
    steps: list[list[Any]] = [["report", REPORT], ["heard", "inject-nmi"], ["wait", 0.2], *POWER_OFF]
    rig.boot(CONNECTED, *steps, deeds=qemu.Deeds(nmi=True))
    assert rig.heard("inject-nmi") == [{}]


def test_the_power_button_is_pressed_once_after_the_report(rig: Rig) -> None:
    steps: list[list[Any]] = [["report", REPORT], ["heard", "system_powerdown"], ["wait", 0.2], *POWER_OFF]
    rig.boot(CONNECTED, *steps, deeds=qemu.Deeds(button=True))
    assert rig.heard("system_powerdown") == [{}]


@pytest.mark.parametrize("answer", [{"error": "no such slot"}, "hang", "close"])
def test_a_deed_that_qemu_refuses_is_named(rig: Rig, short: None, answer: Any) -> None:
    with pytest.raises(ToolError, match="QEMU did not do what was requested: device_add: "):
        rig.boot(CONNECTED, ["report", READY], answers={**ANSWERS, "device_add": answer}, deeds=qemu.Deeds(cpus=2))


def test_qemu_that_dies_of_a_deed_died(rig: Rig) -> None:
    run = rig.boot(CONNECTED, ["report", READY], answers={**ANSWERS, "device_add": "die"}, deeds=qemu.Deeds(cpus=2))
    assert (run.ending, run.status) == ("qemu died", -9)


# ── the rest ──


def test_the_script_has_the_same_arguments(tmp_path: Path) -> None:
    show = tmp_path / "show it"
    show.write_text("#!/usr/bin/env python3\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    show.chmod(0o755)
    argv = [str(show), "-cpu", "-x;touch y", "-append", "a=\"b c\" 'd' $(touch y) \\", "-S", "--", ""]
    (tmp_path / "qemu.sh").write_text(arguments.script(argv))
    text = os.popen(f"sh '{tmp_path / 'qemu.sh'}'").read()
    assert json.loads(text) == argv[1:]
    assert not (tmp_path / "y").exists()
    assert "\\\n  -append " in arguments.script(argv)


def test_every_function_has_its_address() -> None:
    found = qmp.functions(fake_qmp.ANSWERS["query-pci"])
    assert {address: each["qdev_id"] for address, each in found.items()} == {
        "0000:00:00.0": "", "0000:00:01.0": "port0", "0000:01:00.0": "gpu0",
    }  # fmt: skip
    odd = {"bus": 0xAB, "slot": 0x1F, "function": 7}
    assert list(qmp.functions([{"devices": [odd]}])) == ["0000:ab:1f.7"]


@pytest.fixture
def in_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    def install(**scene: Any) -> Path:
        monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:{os.environ['PATH']}")
        return fake_qmp.install(tmp_path / "path", **scene)

    return install


def test_the_version_is_qemus_own(in_path: Callable[..., Path]) -> None:
    program = in_path()
    assert emulator.version() == "7.2.22 (fake)"
    program.write_text("#!/bin/sh\n")
    assert emulator.version() == ""


def test_the_fakes_report_is_complete() -> None:
    assert report.parse(REPORT.encode()).complete
