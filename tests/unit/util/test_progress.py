# SPDX-License-Identifier: Apache-2.0
"""Progress of what is counted: against what is expected, on a terminal and in a log."""

import io

import pytest

from minguest.util import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("count", "expected", "said"),
    [
        (512, 1330, "512 of about 1330 objects (38 %)"),
        (1330, 1330, "1330 of about 1330 objects (100 %)"),
        (1400, 1330, "1400 objects, almost done"),
        (7, None, "7 objects"),
    ],
)
def test_so_far(count: int, expected: int | None, said: str) -> None:
    counted = progress.Counted("linux 6.12.1", "objects", expected, io.StringIO())
    for _ in range(count):
        counted.step("CC x.o")
    assert counted.so_far() == said


def test_a_line_is_no_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(progress, "REDRAW", 0.0)
    shown = Terminal()
    with progress.Counted("linux 6.12.94", "objects", 1330, shown) as counted:
        counted.step("CC      arch/x86/kernel/a/very/long/name.o")
    assert all(len(line.removeprefix("\x1b[K")) < 40 for line in shown.getvalue().split("\r"))


def test_a_terminal_shows_one_line_and_a_log_one_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    shown, logged = Terminal(), io.StringIO()
    with (
        progress.Counted("linux", "objects", 100, shown) as one,
        progress.Counted("linux", "objects", 100, logged) as other,
    ):
        for second in range(62):
            now[0] = second
            one.step("CC x.o")
            other.step("CC x.o")
    assert shown.getvalue().endswith("62 of about 100 objects (62 %), 61 s  CC x.o\r\x1b[K")
    assert logged.getvalue() == (
        "linux: 31 of about 100 objects (31 %), 30 s\nlinux: 61 of about 100 objects (61 %), 60 s\n"
    )
