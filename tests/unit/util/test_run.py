# SPDX-License-Identifier: Apache-2.0
"""The gate to subprocesses: logs, deadlines, missing tools, no child left."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minguest.util.errors import ToolError
from minguest.util.run import run


def gone(pid: str) -> None:
    """A killed child of a killed parent is gone once init has reaped it."""
    for _ in range(250):
        stat = Path(f"/proc/{pid.strip()}/stat")
        if not stat.exists() or " Z " in stat.read_text():
            return
        time.sleep(0.02)
    raise AssertionError("the child lives on")


def test_output_goes_to_the_log_and_to_the_caller(tmp_path: Path) -> None:
    seen: list[str] = []
    status, text = run(["sh", "-c", "echo a; echo b >&2"], log=tmp_path / "x.log", on_line=seen.append)
    assert (status, text, seen) == (0, "a\nb", ["a", "b"])
    assert (tmp_path / "x.log").read_text() == "$ sh -c 'echo a; echo b >&2'\na\nb\n"


def test_a_failure_shows_its_last_lines_and_its_log(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"(?s)sh: exit status 3.*\| line 40.*whole log: .*x\.log") as caught:
        run(["sh", "-c", "for i in $(seq 40); do echo line $i; done; exit 3"], log=tmp_path / "x.log")
    assert "line 10\n" not in str(caught.value)


def test_a_failure_shows_first_the_lines_that_carry_an_error() -> None:
    """With make -j, the compiler's message stands hundreds of lines above the end."""
    script = """
        echo 'CC init/main.o'
        echo 'fs/dcache.c:7:1: error: expected declaration'
        echo 'fs/dcache.c:9:1: fatal error: no.h: No such file'
        echo "ld: vmlinux.o: undefined reference to 'efi_main'"
        echo "ld: vmlinux.o: undefined reference to 'efi_main'"
        echo 'make[2]: *** [fs/dcache.o] Error 1'
        for i in $(seq 900); do echo CC $i.o; done
        echo 'make: *** [vmlinux] Error 2'
        exit 2
    """
    with pytest.raises(ToolError) as caught:
        run(["sh", "-c", script])
    assert str(caught.value).splitlines()[1:] == [
        "  | fs/dcache.c:7:1: error: expected declaration",
        "  | fs/dcache.c:9:1: fatal error: no.h: No such file",
        "  | ld: vmlinux.o: undefined reference to 'efi_main'",
        "  | make[2]: *** [fs/dcache.o] Error 1",
        "  | …",
        *(f"  | CC {number}.o" for number in range(887, 901)),
        "  | make: *** [vmlinux] Error 2",
    ]


def test_a_failure_shows_eight_such_lines_at_most() -> None:
    with pytest.raises(ToolError) as caught:
        run(["sh", "-c", "for i in $(seq 100); do echo f.c:$i: error: x; done; exit 1"])
    shown = str(caught.value).splitlines()
    assert shown[8:10] == ["  | f.c:8: error: x", "  | …"]
    assert len(shown) == 1 + 8 + 1 + 15


def test_a_signal_is_named() -> None:
    with pytest.raises(ToolError, match="ended by SIGSEGV"):
        run(["sh", "-c", "kill -SEGV $$"])


def test_a_missing_tool_says_what_to_do() -> None:
    with pytest.raises(ToolError, match=r"(?s)no-such-tool: no such program.*doit.sh"):
        run(["no-such-tool"])


def test_the_deadline_ends_the_whole_group(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"not done after 0\.3 s"):
        run(["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; wait"], deadline=0.3)
    gone((tmp_path / "pid").read_text())


def test_a_bare_environment_hides_what_the_shell_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KCFLAGS", "-O0")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    _, text = run(["env"], bare=True)
    names = dict(line.split("=", 1) for line in text.splitlines())
    assert "KCFLAGS" not in names
    assert names["LC_ALL"] == "C"
    assert names["PATH"] == os.environ["PATH"]
    assert set(names) == {"PATH", "TMPDIR", "LC_ALL", "TZ"}


def test_a_temporary_folder_that_is_not_there_is_not_passed_on() -> None:
    program = "from minguest.util.run import run; print(run(['sh', '-c', 'echo $TMPDIR'], bare=True)[1])"
    environment = {**os.environ, "TMPDIR": "/nonexistent"}
    text = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    assert Path(text.stdout.strip()).is_dir()


def test_a_program_that_is_interrupted_may_clear_up(tmp_path: Path) -> None:
    """As make does: what it was writing is gone before run() is left."""
    script = f"trap 'sleep 0.2; rm {tmp_path}/half; exit 1' TERM; touch {tmp_path}/half; while :; do sleep 0.05; done"
    with pytest.raises(ToolError, match=r"not done after 0\.5 s"):
        run(["sh", "-c", script], deadline=0.5)
    assert list(tmp_path.iterdir()) == []


def test_one_that_will_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minguest.util.run.GRACE", 0.3)
    start = time.monotonic()
    with pytest.raises(ToolError, match=r"not done after 0\.2 s"):
        run(["sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"], deadline=0.2)
    assert time.monotonic() - start < 30


def test_a_program_ends_with_its_parent(tmp_path: Path) -> None:
    program = f"from minguest.util.run import run; run(['sh', '-c', 'echo $$ >{tmp_path}/pid; exec sleep 60'])"
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            time.sleep(0.02)
        parent.kill()
    gone((tmp_path / "pid").read_text())
