# SPDX-License-Identifier: Apache-2.0
"""A quiet console: what matters at once is on it, and all that the kernel logged comes after the report."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from minguest import paths
from minguest.boottest import verdict
from minguest.model import Launch
from minguest.vm import launch, qemu, report
from tests import guests
from tests.integration.conftest import SERIES, Doit

# A program that writes to the kernel's log: more than its buffer holds by itself.
TOLD = 5000
TALK = """
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
int main(void)
{
    int i, kmsg = open("/dev/kmsg", O_WRONLY);
    for (i = 1; i <= TOLD; i++)
        dprintf(kmsg, "<6>talk ........................................ %d\\n", i);
}
"""

Boot = Callable[..., tuple[launch.Spec, qemu.Run]]


@pytest.fixture(scope="module")
def initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quiet")
    (folder / "overlay/bin").mkdir(parents=True)
    (folder / "talk.c").write_text(TALK.replace("TOLD", str(TOLD)))
    subprocess.run(["musl-gcc", "-static", "-o", folder / "overlay/bin/talk", folder / "talk.c"], check=True)
    guests.make_initrd(folder / "initrd.img", folder / "overlay")
    return folder / "initrd.img"


@pytest.fixture
def boot(series: str, bundle: Path, initrd: Path, tmp_path: Path) -> Boot:
    """Boots a quiet guest with these parameters."""

    def boot(*cmdline: str) -> tuple[launch.Spec, qemu.Run]:
        wanted = Launch(cpus=2, max_cpus=4, memory="256M", gpus=(), console="quiet", cmdline=cmdline)
        spec, argv = guests.command(bundle, wanted, initrd, tmp_path, series)
        return spec, qemu.boot(argv, tmp_path, 150)

    return boot


def test_a_quiet_guest_passes_and_its_log_is_kept(built: paths.Layout, doit: Doit) -> None:
    def lines(name: str) -> set[str]:
        text = (built.boot_test / name).read_text(errors="replace")
        return {line.partition("] ")[2].rstrip() for line in text.splitlines() if line.startswith("[")}

    assert doit("boot-test", f"kernel={SERIES}").returncode == 0
    assert not (built.boot_test / "kernel.log").exists()
    full = lines("console.log")
    result = doit("boot-test", "--console", "quiet", f"kernel={SERIES}")
    assert result.returncode == 0, result.stdout
    found = json.loads((built.boot_test / "verdict.json").read_bytes())
    (row,) = [check for check in found["verdict"]["checks"] if check["name"] == "kernel's log"]
    assert row["ok"] and row["guest"].endswith(" messages")
    logged, console = lines("kernel.log"), lines("console.log")
    assert (built.boot_test / "kernel.log").read_bytes().startswith(b"[    0.000000] Linux version ")
    # Numbers differ from boot to boot, the TSC is measured or not, and the last lines come when initd is done.
    number = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8,}|\d+")
    missing = {number.sub("", line) for line in full} - {number.sub("", line) for line in logged}
    assert len(missing) < len(full) / 20, missing
    assert len(console) < len(full) / 10 and not any("Linux version" in line for line in console)
    assert len(console - logged) < 3, console - logged
    assert b"EFI stub: " in (built.boot_test / "console.log").read_bytes()


def test_the_log_is_of_the_whole_boot(boot: Boot) -> None:
    _, run = boot()
    found = report.parse(run.report)
    assert found.complete and [part.left_out for part in found.log] == [0] * len(found.log)
    text = report.kernel_log(found.log)
    assert (
        text.startswith(b"[    0.000000] Linux version ") and b"Run /init as init process" in text
    ) or b"4.12" in text
    assert b"Linux version" not in run.console and b"initd: " in run.console
    assert run.report.index(report.END) < run.report.index(b'{"record":"log"') < run.report.index(b'"shutdown"')


def test_a_panic_is_on_a_quiet_console_and_the_verdict_says_what_was_not_seen(boot: Boot) -> None:
    spec, run = boot("rdinit=/none", "root=/dev/none")
    assert b"Kernel panic - not syncing" in run.console and b"Call Trace:" in run.console
    judged = verdict.judge(spec, run, report.parse(run.report))
    assert judged.result == "lost" and "the kernel panicked (console line" in judged.reason
    assert "its console was quiet" in judged.reason


def test_of_a_long_log_the_middle_is_left_out(boot: Boot) -> None:
    """initd sends 32 KiB of the beginning and of the end of what came since its last record; the rest is said."""
    _, run = boot("initd.then=/bin/talk", "printk.devkmsg=on", "log_buf_len=1M")
    found = report.parse(run.report)
    gaps = [n for n, part in enumerate(found.log) if part.left_out]
    assert found.complete and len(gaps) == 1
    text = report.kernel_log(found.log)
    before, _, after = text.partition(b"messages left out --\n")
    assert before.startswith(b"[    0.000000] Linux version ")
    told = [int(line.rpartition(b" ")[2]) for line in text.splitlines() if b"] talk " in line]
    assert told[0] == 1 and told[-1] == TOLD
    # The kernel may have said something between.
    assert 0 <= len(told) + found.log[gaps[0]].left_out - TOLD < 20
    # Each has a header of its own in /dev/kmsg, which counts.
    assert 20 << 10 < len(after) < 36 << 10 and sum(b"talk" in line for line in before.splitlines()) > 100


def test_what_the_kernel_has_overwritten_is_left_out_too(boot: Boot) -> None:
    _, run = boot("initd.then=/bin/talk", "printk.devkmsg=on")
    found = report.parse(run.report)
    told = [line for part in found.log for line in part.lines if "] talk " in line]
    assert found.complete and told[-1].endswith(f" {TOLD}")
    assert not any(line.endswith(" talk 1") for line in told)
    assert 0 <= len(told) + sum(part.left_out for part in found.log) - TOLD < 20
