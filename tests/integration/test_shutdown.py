# SPDX-License-Identifier: Apache-2.0
"""How a guest shuts down: by its power button and by itself, with a disk, and programs that end or do not."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from minguest import paths
from minguest.boottest import runner
from minguest.model import Disk, Launch
from minguest.util.run import require
from minguest.vm import launch, qemu, report
from tests import ROOT, guests
from tests.debian import clean
from tests.integration.test_cards import checks

# The first program of a guest: it mounts the disk on PLACE and ends, or has the guest end, by THEN. Its children write
# to the disk; one of them, which is only there if STUBBORN, ignores SIGTERM. SIGTERM waits while it mounts: a mount
# that a fatal signal ends, in kthread_create(), leaves ext4's "needs recovery" behind, and that is not initd's doing.
PROGRAM = r"""
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

static void note(const char *name)
{
	int fd;

	if (chdir(PLACE))
		_exit(9);
	fd = open(name, O_WRONLY | O_CREAT, 0644);
	if (fd < 0 || write(fd, "whole\n", 6) != 6)
		_exit(9);
}

static void on_term(int number)
{
	(void)number;
	note("ended");
	_exit(0);
}

int main(void)
{
	sigset_t term;

	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	sigprocmask(SIG_BLOCK, &term, NULL);
	mkdir(PLACE, 0755);
	if (mount("/dev/vda", PLACE, "ext4", 0, NULL) && !ROOT)
		return 9;
	sigprocmask(SIG_UNBLOCK, &term, NULL);
	if (!fork()) {
		setsid();		/* else the first program's end is its own */
		signal(SIGTERM, on_term);
		for (;;)
			pause();
	}
	if (STUBBORN && !fork()) {
		prctl(PR_SET_NAME, "stubborn");
		signal(SIGTERM, SIG_IGN);
		signal(SIGHUP, SIG_IGN);
		note("held");
		for (;;)
			pause();
	}
	note("started");
	sleep(1);
	THEN;
	for (;;)
		pause();
}
"""
Went = tuple[qemu.Run, report.Shutdown, Path]


@pytest.fixture
def leave(series: str, bundle: Path, tmp_path: Path) -> Callable[..., Went]:
    """Boots a guest with a disk and PROGRAM until it ends; returns the run, initd's last record and the disk."""

    def leave(then: str, *, stubborn: bool = False, root: bool = False, button: bool = False) -> Went:
        overlay, disk = tmp_path / "overlay", tmp_path / "disk"
        (overlay / "bin").mkdir(parents=True)
        (tmp_path / "program.c").write_text(PROGRAM)
        place = "/" if root else "/mnt"
        options = [f'-DPLACE="{place}"', f"-DROOT={int(root)}", f"-DSTUBBORN={int(stubborn)}", f"-DTHEN={then}"]
        command: list[str | Path] = ["musl-gcc", "-static", *options]
        command += ["-o", overlay / "bin/work", tmp_path / "program.c"]
        subprocess.run(command, check=True)
        image = guests.make_initrd(tmp_path / "initrd.img", overlay)
        with disk.open("wb") as file:
            file.truncate(64 << 20)
        for name in ("init",) if root else ():
            (overlay / name).write_bytes((tmp_path / "initd").read_bytes())
            (overlay / name).chmod(0o755)
        for name in ("dev", "proc", "sys", "run", "tmp") if root else ():
            (overlay / name).mkdir()
        command = [require("mke2fs"), "-q", "-t", "ext4", disk]
        command[-1:-1] = ["-d", overlay] if root else []
        subprocess.run(command, check=True)
        root_options = ["root=/dev/vda", "rw", "init=/init"] if root else []
        wanted = Launch(
            cpus=2, max_cpus=2, gpus=(), disks=(Disk(file=str(disk)),), cmdline=("initd.then=/bin/work", *root_options)
        )
        _, argv = guests.command(bundle, wanted, image, tmp_path, series)
        if root:
            del argv[argv.index("-initrd") : argv.index("-initrd") + 2]
        run = qemu.boot(argv, tmp_path, 60, qemu.Deeds(button=button), linger=30)
        went = report.parse(run.report).shutdown
        assert went is not None, run.console.decode(errors="replace")[-2000:]
        return run, went, disk

    return leave


def held(disk: Path) -> dict[str, str]:
    """The files that the program wrote, as they are on the disk; the disk must not need its journal any more."""
    assert clean(disk)
    found = {}
    for name in ("started", "ended", "held"):
        command = [require("debugfs"), "-R", f"cat /{name}", str(disk)]
        found[name] = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return found


WHOLE = {"started": "whole\n", "ended": "whole\n", "held": ""}


def test_a_program_ends_and_what_it_wrote_is_on_the_disk(leave: Callable[..., Went]) -> None:
    run, went, disk = leave("return 0")
    assert run.ending == "power-off"
    assert went == report.Shutdown("exit", "power-off", 0, 0, True, 0)
    assert held(disk) == WHOLE


def test_the_power_button_ends_a_guest_with_programs(leave: Callable[..., Went]) -> None:
    run, went, disk = leave("(void)0", button=True)
    assert run.ending == "power-off"
    assert went == report.Shutdown("power-button", "power-off", 0, 0, True, 0)
    # It is pressed at the report's end; the program may not have written all yet.
    assert set(held(disk).values()) <= {"whole\n", ""}


def test_a_program_that_does_not_end_is_killed_after_a_while(leave: Callable[..., Went]) -> None:
    run, went, disk = leave("kill(1, SIGUSR2)", stubborn=True)
    assert run.ending == "power-off"
    assert went == report.Shutdown("SIGUSR2", "power-off", 1, 0, True, 0)
    assert held(disk) == {**WHOLE, "held": "whole\n"}
    assert re.search(rb"initd: stubborn \(\d+\) did not end in time and is killed", run.console)


def test_a_disk_that_cannot_be_unmounted_becomes_read_only(leave: Callable[..., Went]) -> None:
    # It is the root, from which initd itself runs.
    run, went, disk = leave("kill(1, SIGTERM)", root=True)
    assert (run.ending, run.detail) == ("reset", "guest-reset")
    assert went == report.Shutdown("SIGTERM", "reboot", 0, 0, True, 0)
    assert held(disk) == WHOLE


def test_boot_test_presses_the_power_button(series: str, tmp_path: Path) -> None:
    at = paths.Layout(ROOT, "default", series)
    bench = runner.Bench("it", at.bundle, tmp_path / "boot-test", tmp_path / "kvm.json", at.pits)
    runner.run(bench, launch.Options(accel="tcg", power_button=True), Launch(), lambda _: None)
    row = checks(bench.folder)["power button"]
    assert (row["guest"], row["ok"]) == ("power-button, power-off", True)
    outcome = json.loads((bench.folder / "verdict.json").read_bytes())
    assert "initd.then=wait" in outcome["argv"][outcome["argv"].index("-append") + 1]
