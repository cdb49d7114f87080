# SPDX-License-Identifier: Apache-2.0
"""PID 1 when things go wrong: programs that fork without end or eat all memory, a console that takes nothing, options
that are nonsense, a /run that is full, a root that vanishes, signals at bad times. Each guest ends in time."""

import json
import os
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minguest.model import Launch
from minguest.util.run import require
from minguest.vm import qemu, report
from tests import ROOT, guests
from tests.integration.conftest import SERIES
from tests.integration.test_wait import said

# The phases of the shutdown, in seconds; test_shutdown.py has the real ones.
SHORT = ("-DGRACE_S=1", "-DSYNC_S=2", "-DUNMOUNT_S=2", "-DEND_S=5")

Boot = Callable[..., qemu.Run]

# What no series does differently is tried on one.
ONLY = pytest.mark.parametrize("series", [SERIES], indirect=True)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """initd with short phases, the program, and an initrd of both."""
    folder = tmp_path_factory.mktemp("pid1")
    (folder / "overlay/bin").mkdir(parents=True)
    source = ROOT / "tests/integration/work.c"
    subprocess.run(["musl-gcc", "-static", "-o", folder / "overlay/bin/work", source], check=True)
    guests.compile_initd(folder / "initd", SHORT)
    guests.make_initrd(folder / "initrd.img", folder / "overlay", initd=folder / "initd")
    return folder


@pytest.fixture
def boot(series: str, bundle: Path, parts: Path, tmp_path: Path) -> Boot:
    """Boots a guest until it ends; `when` is a text on its console, and then what QMP is to do."""

    def boot(
        *cmdline: str, work: str | None = None, when: tuple[bytes, *tuple[Any, ...]] | None = None,
        more: tuple[str, ...] = (), image: Path = parts / "initrd.img", memory: str = "256M",
        no_initrd: bool = False,
    ) -> qemu.Run:  # fmt: skip
        options = (*(("initd.then=/bin/work", f"work={work}") if work else ()), *cmdline)
        wanted = Launch(cpus=2, max_cpus=4, memory=memory, gpus=(), cmdline=options)
        _, argv = guests.command(bundle, wanted, image, tmp_path, series)
        argv += ["-qmp", "unix:second.sock,server=on,wait=off", *more]
        if no_initrd:
            del argv[argv.index("-initrd") : argv.index("-initrd") + 2]
        look = host(tmp_path, *when) if when else None
        return qemu.boot(argv, tmp_path, 150, linger=120, look=look)

    return boot


def host(folder: Path, text: bytes, *commands: dict[str, Any]) -> Callable[[], None]:
    """Once the text is on the console or in the report: these commands, by a second QMP connection."""
    waiting = list(commands)

    def look() -> None:
        if not waiting or not any(text in (folder / each).read_bytes() for each in ("console.log", "report.jsonl")):
            return
        with socket.socket(socket.AF_UNIX) as handle:
            at = os.open(folder, os.O_PATH)
            handle.connect(f"/proc/self/fd/{at}/second.sock")  # a name of less than 108 bytes
            os.close(at)
            handle.settimeout(20)
            stream = handle.makefile("rw")
            stream.readline()
            for command in ({"execute": "qmp_capabilities"}, *waiting):
                stream.write(json.dumps(command))
                stream.flush()
                answer = next(each for line in stream if "event" not in (each := json.loads(line)))
                assert "return" in answer, answer
        waiting.clear()

    return look


BUTTON = {"execute": "system_powerdown"}


def ended(run: qemu.Run) -> report.Shutdown:
    """initd's last record."""
    went = report.parse(run.report).shutdown
    assert went is not None, run.console.decode(errors="replace")[-3000:]
    return went


def test_a_fork_storm_ends_by_the_power_button(boot: Boot) -> None:
    run = boot(work="storm", when=(b"work: no more programs", BUTTON))
    went = ended(run)
    assert (run.ending, went.why, went.left, went.synced) == ("power-off", "power-button", 0, True)
    # What ended was reaped; the others are counted, and the first ones are named.
    assert b"work: 0 zombies" in run.console
    named = re.findall(r"^storm\? \(\d+\) did not end in time and is killed$", said(run), re.MULTILINE)
    more = re.findall(r"^(?:at least )?(\d+) more: did not end in time and is killed$", said(run), re.MULTILINE)
    assert len(named) == 10
    assert went.killed == 10 + int(more[0]) > 500


def test_a_console_that_takes_nothing_stops_nobody(boot: Boot) -> None:
    run = boot(work="deaf-console")
    went = ended(run)
    assert (run.ending, went.why, went.killed, went.console_lost) == ("power-off", "SIGUSR2", 1, 1)
    assert "the console lost 1 messages" in said(run).splitlines()
    assert "SIGUSR2: power-off" not in said(run)
    assert re.search(r"^work \(\d+\) did not end in time and is killed$", said(run), re.MULTILINE)


@ONLY
def test_a_console_that_was_hung_up_still_takes_messages(boot: Boot) -> None:
    run = boot(work="hung-up-console")
    went = ended(run)
    assert (run.ending, went.why, went.console_lost) == ("power-off", "SIGUSR2", 0)
    assert "SIGUSR2: power-off" in said(run).splitlines()


@ONLY
def test_a_program_that_eats_all_memory_ends_by_the_power_button(boot: Boot) -> None:
    run = boot(work="eat", memory="128M", when=(b"Out of memory: Kill", BUTTON))
    went = ended(run)
    assert (run.ending, went.why, went.left, went.synced) == ("power-off", "power-button", 0, True)
    assert re.search(rb"Killed? process \d+ \(eater\)", run.console)
    assert not re.search(rb"Killed? process \d+ \((init|work)\)", run.console)


def test_file_systems_in_memory_may_be_full(boot: Boot) -> None:
    run = boot(work="fill", memory="128M")
    went = ended(run)
    assert (run.ending, went.why, went.synced, went.busy) == ("power-off", "exit", True, 0)
    # The port has the record that the file has no room for.
    assert b'"program":"/bin/work","status":3' in run.report
    assert "/run/initd/report.jsonl: No space left on device; it ends here" in said(run).splitlines()


NUMBER = "not a number from 1 to"


@ONLY
def test_wrong_options_are_named_and_the_default_is_used(boot: Boot) -> None:
    wrong = {
        "initd.report=ttyS3": "not a path",
        "initd.then=sleep": "not known; known: init, wait, shell, poweroff, reboot, halt, /PROGRAM; using wait",
        "initd.init=sbin/init": "not a path of 1 to 255 bytes; using /sbin/init",
        "initd.onfail=init": "not known; known: poweroff, shell, reboot, halt, wait; using poweroff",
        "initd.report-after=boot": "not known; known: root; ignored",
        "initd.root-seconds=-1": NUMBER,
        "initd.wait-cpus=two": NUMBER,
        "initd.wait-cpus-left=1.5": NUMBER,
        "initd.wait-memory=99999999999999999999": NUMBER,
        "initd.wait-seconds=0x10": NUMBER,
        "initd.modules-seconds=0": NUMBER,
        "initd.unknown=1": "not known; ignored",
        "initd.then": "not known; ignored",
        "initd.": "not known; ignored",
    }
    run = boot(*wrong, when=(report.END, BUTTON))
    lines = said(run).splitlines()
    for option, why in wrong.items():
        assert [each for each in lines if each.startswith(f"{option}: {why}")], option
    assert len([each for each in lines if each.startswith("known: ")]) == 1
    # It waited for nothing but the button.
    assert (run.ending, ended(run).why) == ("power-off", "power-button")
    assert not re.search("after .* s", said(run))


@ONLY
def test_empty_options_are_named_and_a_root_without_a_name_is_absent(boot: Boot) -> None:
    names = "report then init onfail report-after root-seconds wait-cpus wait-cpus-left wait-memory wait-seconds"
    empty = [f"initd.{each}=" for each in (*names.split(), "modules-seconds", "root", "share", "modules")]
    run = boot(*empty)
    lines = said(run).splitlines()
    for option in empty[:-3]:
        assert [each for each in lines if each.startswith(f"{option}: not ")], option
    found = report.parse(run.report).root
    assert found is not None and (found.requested, found.result) == ("", "absent")
    assert (run.ending, ended(run).why) == ("power-off", "initd.onfail")


@ONLY
def test_long_and_repeated_options_and_bytes_that_are_no_text(boot: Boot) -> None:
    options = [
        "initd.onfail=reboot", "initd.onfail=poweroff",
        "initd.root-seconds=600", "initd.root-seconds=1", "initd.root-seconds=many",
        f"initd.init=/{'i' * 255}",
        f"initd.\u00ff\u00fe{'u' * 300}",
        f"initd.root=LABEL={'r' * 1000}",
    ]  # fmt: skip
    run = boot(*options)
    lines = said(run).splitlines()
    assert f"initd.init=/{'i' * 79}: not a path of 1 to 255 bytes; using /sbin/init" in lines
    assert [each for each in lines if re.fullmatch(r"initd\.[^ -~]{2,8}u{60,80}: not known; ignored", each)]
    assert [each for each in lines if re.fullmatch("no root: LABEL=r{74}: not found in 1 s", each)]
    found = report.parse(run.report).root
    assert found is not None and (found.requested, found.init) == (f"LABEL={'r' * 1000}", "/sbin/init")
    assert (run.ending, ended(run).why) == ("power-off", "initd.onfail")


@ONLY
def test_a_disk_is_no_port_for_the_report(boot: Boot, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    run = boot("initd.report=/dev/vda", "initd.then=poweroff", more=drive(disk))
    assert "report port /dev/vda: not a character device" in said(run).splitlines()
    assert run.ending == "power-off"
    assert disk.read_bytes() == bytes(1 << 20)


def drive(disk: Path) -> tuple[str, ...]:
    """A disk `disk` that can be unplugged."""
    return (
        "-device", "pcie-root-port,id=bus40,bus=pcie.0,chassis=40",
        "-blockdev", f"driver=file,node-name=file,filename={disk}",
        "-device", "virtio-blk-pci,id=disk,drive=file,bus=bus40",
    )  # fmt: skip


@pytest.fixture
def root(parts: Path, tmp_path: Path) -> Path:
    """A disk with the program as /bin/work and /sbin/init, and initd."""
    tree, disk = tmp_path / "tree", tmp_path / "disk"
    for folder in ("bin", "sbin", "dev", "proc", "sys", "run"):
        (tree / folder).mkdir(parents=True)
    for name in ("bin/work", "sbin/init"):
        (tree / name).write_bytes((parts / "overlay/bin/work").read_bytes())
        (tree / name).chmod(0o755)
    (tree / "initd").write_bytes((parts / "initd").read_bytes())
    (tree / "initd").chmod(0o755)
    with disk.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run([require("mke2fs"), "-q", "-t", "ext4", "-d", tree, disk], check=True)
    return disk


@ONLY
def test_without_run_the_report_still_goes_to_the_port(boot: Boot, root: Path) -> None:
    # initd is the init of a root that is read-only, so it cannot even make the folder.
    subprocess.run([require("debugfs"), "-w", "-R", "rmdir /run", root], check=True, capture_output=True)
    run = boot("root=/dev/vda", "ro", "init=/initd", "initd.then=poweroff", more=drive(root), no_initrd=True)
    assert report.parse(run.report).complete
    lines = said(run).splitlines()
    assert "mount tmpfs on /run: No such file or directory (going on without)" in lines
    assert "/run/initd/report.jsonl: No such file or directory; it ends here" in lines
    assert (run.ending, ended(run).busy) == ("power-off", 0)


IN_ROOT = ("initd.root=/dev/vda",)


@ONLY
def test_a_root_that_is_unplugged_while_a_program_writes_to_it(boot: Boot, root: Path) -> None:
    unplug = {"execute": "device_del", "arguments": {"id": "disk"}}
    run = boot(*IN_ROOT, work="write", more=drive(root), when=(b"work: writing", unplug, BUTTON))
    went = ended(run)
    assert b"work: I/O error" in run.console
    assert (run.ending, went.why, went.killed, went.left) == ("power-off", "power-button", 1, 0)


def test_a_root_that_does_not_answer_any_more(boot: Boot, root: Path) -> None:
    device = "/machine/peripheral/disk/virtio-backend"
    limits = dict.fromkeys(("bps", "bps_rd", "iops", "iops_rd", "iops_wr"), 0)
    stop = {"execute": "block_set_io_throttle", "arguments": {"id": device, "bps_wr": 1, **limits}}
    run = boot(*IN_ROOT, work="write", more=drive(root), when=(b"work: writing", stop, BUTTON))
    # The program hangs in its write, and so do sync and unmount.
    assert ended(run) == report.Shutdown("power-button", "power-off", 1, 1, False, None)
    assert re.search(r"^work \(\d+\) cannot be killed$", said(run), re.MULTILINE)
    assert run.ending == "power-off"


@ONLY
def test_the_power_button_ends_the_wait_for_cpus(boot: Boot) -> None:
    run = boot("initd.wait-cpus=4", "initd.wait-seconds=60", when=(report.READY, BUTTON), work="nothing")
    found = report.parse(run.report)
    times = found.record("times")
    assert times["report"] - times["start"] < 20
    assert "of 4 CPUs" in said(run)
    assert (run.ending, ended(run).why, ended(run).killed) == ("power-off", "power-button", 0)
    assert b'"exit"' not in run.report


@ONLY
def test_the_power_button_ends_the_search_for_the_root(boot: Boot) -> None:
    run = boot("initd.root=LABEL=none", "initd.root-seconds=60", "initd.onfail=reboot", when=(report.END, BUTTON))
    found = report.parse(run.report)
    assert found.root is not None and found.root.error == "the guest is to end before it was found"
    # It is the button that counts, and not onfail.
    assert (run.ending, ended(run).why) == ("power-off", "power-button")


@ONLY
def test_the_power_button_counts_until_the_roots_init_runs(boot: Boot, root: Path, parts: Path, tmp_path: Path) -> None:
    # An initrd whose memory takes a while to be freed.
    (tmp_path / "large/many").mkdir(parents=True)
    for number in range(8000):
        (tmp_path / f"large/many/{number}").touch()
    image = guests.make_initrd(tmp_path / "initrd.img", tmp_path / "large", initd=parts / "initd")
    run = boot(*IN_ROOT, "initd.then=init", image=image, more=drive(root), when=(b'"record":"root"', BUTTON))
    found = report.parse(run.report)
    assert found.root is not None and found.root.result == "found"
    assert b"work: the root's init" not in run.console and b'"handover"' not in run.report
    went = ended(run)
    assert (run.ending, went.why, went.synced, went.busy) == ("power-off", "power-button", True, 0)
