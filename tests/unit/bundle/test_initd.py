# SPDX-License-Identifier: Apache-2.0
"""initd as an ordinary program: the same report of the machine that the tests run on."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from minguest.bundle import initrd
from minguest.kernel import binary
from minguest.util.errors import ToolError
from minguest.vm import report
from tests import ROOT


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("initd")
    initrd.compile_initd(ROOT / "initd", folder / "initd", folder / "log", strict=True)
    return folder / "initd"


def test_it_is_small_and_static(program: Path) -> None:
    assert program.stat().st_size < 102_000
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


def test_its_counter_runs_with_its_clock(program: Path) -> None:
    """At the frequency of some x86 processor."""
    times = []
    for pause in (0.5, 0):
        output = subprocess.run([program, "--report"], capture_output=True, check=True).stdout
        times.append(report.parse(output).record("times"))
        time.sleep(pause)
    seconds = times[1]["start"] - times[0]["start"]
    assert 0.5 < seconds < 60
    assert 0.3e9 < (times[1]["tsc"] - times[0]["tsc"]) / seconds < 10e9


def test_two_builds_are_the_same(program: Path, tmp_path: Path) -> None:
    initrd.compile_initd(ROOT / "initd", tmp_path / "initd", tmp_path / "log", strict=True)
    assert (tmp_path / "initd").read_bytes() == program.read_bytes()


def test_its_help_names_every_option_of_the_docs(program: Path) -> None:
    usage = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    parameters = re.findall(r"^\| `(initd\.[a-z-]+=)", (ROOT / "docs/report.md").read_text(), re.MULTILINE)
    assert len(parameters) == 16
    assert [each for each in parameters if each not in usage] == []


@pytest.mark.parametrize("arguments", [["--no-such-option"], []])
def test_it_does_nothing_outside_pid_1_without_an_option(program: Path, arguments: list[str]) -> None:
    result = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "usage" in result.stderr.lower()


def test_a_program_that_is_not_static_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "musl-gcc"
    other.write_text('#!/bin/sh\nfor w; do shift; [ "$w" = -static ] || set -- "$@" "$w"; done; exec gcc "$@"\n')
    other.chmod(0o755)
    (tmp_path / "x.c").write_text("int main(void) { return 0; }\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ToolError, match="must be a static x86-64 program"):
        initrd.compile_initd(tmp_path, tmp_path / "initd", tmp_path / "log")
    assert not (tmp_path / "initd").exists()


def test_code_that_does_not_compile_is_shown(tmp_path: Path) -> None:
    (tmp_path / "x.c").write_text("int main(void) { return nothing; }\n")
    with pytest.raises(ToolError, match=r"(?s)musl-gcc: exit status 1.*nothing"):
        initrd.compile_initd(tmp_path, tmp_path / "initd", tmp_path / "log")
    assert not (tmp_path / "initd").exists()


def test_a_newer_compiler_that_warns_builds_it_for_a_user_and_not_for_the_tests(tmp_path: Path) -> None:
    (tmp_path / "x.c").write_text("int main(void) { int unused; return 0; }\n")
    initrd.compile_initd(tmp_path, tmp_path / "initd", tmp_path / "log")
    assert "unused variable" in (tmp_path / "log").read_text()
    with pytest.raises(ToolError, match="unused variable"):
        initrd.compile_initd(tmp_path, tmp_path / "initd", tmp_path / "log", strict=True)


def test_the_kernel_sends_the_power_buttons_signal() -> None:
    fragment = (ROOT / "configs/kernel/30-acpi.6.12.config").read_text()
    sent = re.findall(r"^CONFIG_ACPI_TINY_POWER_BUTTON_SIGNAL=(\d+)$", fragment, re.MULTILINE)
    taken = re.findall(r"^#define POWER_BUTTON\t(\d+)$", (ROOT / "initd/orders.c").read_text(), re.MULTILINE)
    assert sent == taken and len(sent) == 1


def test_each_file_uses_only_what_is_declared_above_it(tmp_path: Path) -> None:
    sources = sorted((ROOT / "initd").glob("*.c"))
    order = re.findall(r"^/\* (\w+)\.c\b", (ROOT / "initd/initd.h").read_text(), re.MULTILINE)
    order.append("initd")
    assert sorted(order) == [path.stem for path in sources]
    subprocess.run(["musl-gcc", "-std=gnu11", "-c", *sources], check=True, cwd=tmp_path)
    symbols = {}
    for name in order:
        listed = subprocess.run(["nm", "-P", tmp_path / f"{name}.o"], capture_output=True, text=True, check=True).stdout
        symbols[name] = [line.split()[:2] for line in listed.splitlines()]
    home = {symbol: name for name, found in symbols.items() for symbol, kind in found if kind == "T"}
    used = {(name, home[symbol]) for name, found in symbols.items() for symbol, kind in found if symbol in home}
    assert ("json", "say") in used
    assert [(name, other) for name, other in used if order.index(other) > order.index(name)] == []


INCLUDES = """
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include "initd.h"
"""

Parts = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    """Runs a main() in C, linked with all of initd except its main()."""

    def run(main: str) -> subprocess.CompletedProcess[str]:
        source, program = tmp_path / "main.c", tmp_path / "program"
        source.write_text(INCLUDES + main)
        # The linker uses the first main().
        command = initrd.compiler_argv([source, *sorted((ROOT / "initd").glob("*.c"))], program)
        options = ["-I", str(ROOT / "initd"), "-Wl,--allow-multiple-definition"]
        subprocess.run([*command, *options], check=True)
        return subprocess.run([program], capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path)

    return run


def test_a_child_that_fails_leaves_its_parents_buffers_alone(parts: Parts) -> None:
    """After fork() the child has the parent's buffers and handlers too: exit() would use them a second time."""
    result = parts("""
        static void at_exit(void) { say("ran at exit"); }
        int main(void)
        {
            int status;

            atexit(at_exit);
            printf("buffered;");
            if (!fork()) {
                errno = ENODEV;
                die("mount");
            }
            wait(&status);
            fflush(stdout);
            printf("status %d", WEXITSTATUS(status));
            fflush(stdout);
            _exit(0);
        }""")
    assert result.stdout == "buffered;status 1"
    assert result.stderr == "initd: mount: No such device\n"


def test_cpus_that_cannot_be_counted_are_not_done(parts: Parts) -> None:
    result = parts("""
        int main(void)
        {
            struct wait wait = { .cpus = 1, .cpus_left = 1, .seconds = 1 };
            struct rlimit none = { 0, 0 };
            struct port port = CLOSED_PORT;

            setrlimit(RLIMIT_NOFILE, &none);
            await_plugged(&wait, &port, -1);
            await_unplugged(&wait, &port, -1);
            return 0;
        }""")
    assert result.stderr.splitlines() == [
        "initd: gave up after 1 s: unknown of 1 CPUs",
        "initd: gave up after 1.0 s: unknown CPUs, 1 are to be left",
    ]


@pytest.mark.parametrize(
    ("length", "end", "read"),
    [
        (4093, "1", True),
        # The kernel cuts a file of sysfs to a page less a NUL, perhaps in the middle of a number.
        (4095, "", False),
        (4094, "\n", True),
        (6000, "\n", True),
        (8000, "\n", False),
    ],
)
def test_a_text_is_read_whole_or_not_at_all(parts: Parts, tmp_path: Path, length: int, end: str, read: bool) -> None:
    (tmp_path / "file").write_text(("1," * length)[:length] + end)
    result = parts("""
        int main(void)
        {
            char text[8000], *found = read_text(AT_FDCWD, "file", text, sizeof(text));

            if (found)
                printf("%zu", strlen(found));
            else
                puts(strerror(errno));
            return 0;
        }""")
    assert result.stdout == (str(length + len(end.strip())) if read else "File too large\n")


def test_a_child_is_ended_by_the_signal_that_came_while_it_was_held(parts: Parts) -> None:
    result = parts("""
        static void ignore(int number) { (void)number; }
        int main(void)
        {
            sigset_t all;
            int status;

            signal(SIGTERM, ignore);
            sigfillset(&all);
            sigprocmask(SIG_SETMASK, &all, NULL);
            if (!fork()) {
                raise(SIGTERM);
                free_signals();
                _exit(0);
            }
            wait(&status);
            printf("signal %d", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
            return 0;
        }""")
    assert result.stdout == f"signal {signal.SIGTERM}"
