# SPDX-License-Identifier: Apache-2.0
"""The gate to subprocesses: logs, deadlines, missing tools, no child left."""

import os
import time
from pathlib import Path

import pytest

from minguest.errors import ToolError
from minguest.run import run


def test_output_goes_to_the_log_and_to_the_caller(tmp_path: Path) -> None:
    seen: list[str] = []
    status, text = run(["sh", "-c", "echo a; echo b >&2"], log=tmp_path / "x.log", on_line=seen.append)
    assert (status, text, seen) == (0, "a\nb", ["a", "b"])
    assert (tmp_path / "x.log").read_text() == "$ sh -c 'echo a; echo b >&2'\na\nb\n"


def test_a_failure_shows_its_last_lines_and_its_log(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"(?s)sh: exit status 3.*\| line 40.*whole log: .*x\.log") as caught:
        run(["sh", "-c", "for i in $(seq 40); do echo line $i; done; exit 3"], log=tmp_path / "x.log")
    assert "line 10\n" not in str(caught.value)


def test_a_signal_is_named() -> None:
    with pytest.raises(ToolError, match="ended by SIGSEGV"):
        run(["sh", "-c", "kill -SEGV $$"])


def test_a_missing_tool_says_what_to_do() -> None:
    with pytest.raises(ToolError, match=r"(?s)no-such-tool: no such program.*doit.sh"):
        run(["no-such-tool"])


def test_the_deadline_ends_the_whole_group(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"not done after 0\.3 s"):
        run(["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; wait"], deadline=0.3)
    child = int((tmp_path / "pid").read_text())
    for _ in range(100):  # a killed child of a killed shell is gone once init has reaped it
        if not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text():
            return
        time.sleep(0.02)
    raise AssertionError("the child lives on")


def test_a_bare_environment_hides_what_the_shell_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KCFLAGS", "-O0")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    _, text = run(["env"], bare=True)
    names = dict(line.split("=", 1) for line in text.splitlines())
    assert "KCFLAGS" not in names
    assert names["LC_ALL"] == "C"
    assert names["PATH"] == os.environ["PATH"]
