# SPDX-License-Identifier: Apache-2.0
"""initd as an ordinary program: the same report of the machine that the tests run on."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from minguest import binary, initd, report
from minguest.errors import ToolError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("initd")
    initd.build(ROOT / "initd", folder / "initd", folder / "log")
    return folder / "initd"


def test_it_is_small_and_static(program: Path) -> None:
    assert program.stat().st_size < 100_000
    assert binary.elf(program).static


def test_its_report_is_this_machine(program: Path) -> None:
    found = report.parse(subprocess.run([program, "--report"], capture_output=True, check=True).stdout)
    assert found.complete
    assert report.cpu_count(found.record("cpus")["online"]) == os.cpu_count()
    meminfo = Path("/proc/meminfo").read_text().split()
    assert found.record("memory")["total_bytes"] == int(meminfo[meminfo.index("MemTotal:") + 1]) * 1024
    devices = Path("/sys/bus/pci/devices")
    assert sorted(each.address for each in found.pci) == sorted(path.name for path in devices.glob("*"))
    assert found.record("begin")["kernel"]["release"] == os.uname().release


def test_it_is_built_alike_twice(program: Path, tmp_path: Path) -> None:
    initd.build(ROOT / "initd", tmp_path / "initd", tmp_path / "log")
    assert (tmp_path / "initd").read_bytes() == program.read_bytes()


def test_its_help_names_every_word_that_the_docs_name(program: Path) -> None:
    told = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    words = re.findall(r"^\| `(initd\.[a-z-]+=)", (ROOT / "docs/report.md").read_text(), re.MULTILINE)
    assert len(words) == 8
    assert [word for word in words if word not in told] == []


@pytest.mark.parametrize("words", [["--no-such-word"], []])
def test_it_is_no_toy_outside_of_pid_1(program: Path, words: list[str]) -> None:
    result = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "usage" in result.stderr.lower()


def test_a_program_that_is_not_static_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "musl-gcc"
    other.write_text('#!/bin/sh\nfor w; do shift; [ "$w" = -static ] || set -- "$@" "$w"; done; exec gcc "$@"\n')
    other.chmod(0o755)
    (tmp_path / "x.c").write_text("int main(void) { return 0; }\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ToolError, match="must be a static x86-64 program"):
        initd.build(tmp_path, tmp_path / "initd", tmp_path / "log")
    assert not (tmp_path / "initd").exists()


def test_code_that_does_not_compile_is_shown(tmp_path: Path) -> None:
    (tmp_path / "x.c").write_text("int main(void) { return nothing; }\n")
    with pytest.raises(ToolError, match=r"(?s)musl-gcc: exit status 1.*nothing"):
        initd.build(tmp_path, tmp_path / "initd", tmp_path / "log")
    assert not (tmp_path / "initd").exists()
