# SPDX-License-Identifier: Apache-2.0
"""A boot is read as it comes, bounded in time, and what is wrong with it is said. QEMU is a script here."""

import os
import time
from pathlib import Path

import msgspec
import pytest

from minguest.model import Launch
from minguest.util.errors import UserError
from minguest.vm import arguments, launch
from minguest.vm.launch import Options
from tests.bench import boot, guests
from tests.bench.guests import Change, Guest

REPORT = (
    '{"record":"begin","protocol":1,"uptime":0.5}\n{"record":"cpus","online":"0-3"}\n'
    '{"record":"times","start":0.5,"report":0.6,"tsc":1500000000}\n{"record":"end","status":"ok","records":3}\n'
)
# What a QEMU does that starts a good guest. Its ports are pipes in its folder.
GOOD = """\
exec 3>console 4>report 5>debug
printf 'EFI stub: Loaded initrd\\r\\n' >&3; sleep 0.2; printf '[    0.000000] Linux version 6.12\\r\\n' >&3; sleep 0.1
cat "$REPORT" >&4
"""


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guest:
    """A bundle whose run-guest shows the command that minguest has, for a QEMU that is `qemu` in its folder."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    spec = launch.settle(Launch(), Options(accel="tcg"), 64, ("secondary-vga",), Path("/sys"), "6.12")
    shown = "\n".join([str(tmp_path / "qemu"), *arguments.argv(spec, watched=False)[1:]])
    (bundle / "shown").write_text(shown)
    (bundle / "run-guest").write_text(
        '[ "$1 $2 $3 $5" = "--accel tcg --append --show" ] && printf %s "$(cat bundle/shown)"'
    )
    (bundle / "OVMF_VARS.fd").write_text("")
    (tmp_path / "report.jsonl").write_text(REPORT)
    monkeypatch.setenv("REPORT", str(tmp_path / "report.jsonl"))
    monkeypatch.setattr(guests, "POWER_OFF", 0.5)
    return Guest("it", bundle, bundle / "bzImage", bundle, 4, 64)


def qemu(guest: Guest, does: str) -> None:
    place = guest.bundle.parent / "qemu"
    place.write_text(f"#!/bin/sh\n{does}")
    place.chmod(0o755)


def test_a_good_boot_has_its_times(guest: Guest) -> None:
    qemu(guest, GOOD)
    seen = guests.boot(guest, Change(), 20)
    assert guests.problem(seen, 4, 20) == ""
    assert seen.status == 0
    values = boot.phases(seen)
    assert values["stub"].median == pytest.approx(0.2, abs=0.15)
    assert values["initd"].median == pytest.approx(0.1)
    phases = sum(values[name].median for name in boot.PHASES)
    assert phases == pytest.approx(values["report"].median, abs=0.001)
    assert 0 < values["CPU"].median < 5
    counted = {name: value.median for name, value in boot.instructions(seen).items()}
    assert counted == pytest.approx(
        {"instructions": 1600, "before the kernel": 1000, "kernel's": 500, "initd's": 100}, abs=0.01
    )


def test_cpu_seconds_are_of_qemu(guest: Guest) -> None:
    qemu(guest, GOOD + "n=0; while [ $n -lt 200000 ]; do n=$((n + 1)); done\n")
    busy = guests.boot(guest, Change(), 60)
    qemu(guest, GOOD + "sleep 0.3\n")
    assert busy.cpu > guests.boot(guest, Change(), 20).cpu


def test_a_guest_that_hangs_ends_at_its_deadline(guest: Guest) -> None:
    qemu(guest, "exec 3>console 4>report 5>debug; printf 'Linux version 6.12\\nSMP disabled\\n' >&3; exec sleep 60\n")
    start = time.monotonic()
    seen = guests.boot(guest, Change(), 1.0)
    assert time.monotonic() - start < 20
    assert seen.status is None
    why = guests.problem(seen, 4, 1.0)
    assert why == "no whole report: ended at its deadline of 1 s; the console ends: Linux version 6.12 / SMP disabled"


def test_a_firmware_that_hangs_shows_its_debug_port(guest: Guest) -> None:
    qemu(
        guest,
        "exec 3>console 4>report 5>debug; printf 'SecCore\\r\\nASSERT BdsPlatform.c(412)\\r\\n' >&5; exec sleep 60\n",
    )
    why = guests.problem(guests.boot(guest, Change(), 1.0), 4, 1.0)
    assert why.endswith("; an empty console; OVMF's debug port ends: SecCore / ASSERT BdsPlatform.c(412)")


def test_a_guest_that_does_not_power_off_is_ended(guest: Guest, tmp_path: Path) -> None:
    qemu(guest, GOOD + "sleep 60 & echo $! > ${REPORT%/*}/pid; wait\n")
    seen = guests.boot(guest, Change(), 30)
    assert guests.problem(seen, 4, 30) == "it did not power off within 0.5 s of its report"
    assert seen.wall < 20
    child = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    until = time.monotonic() + 20  # SIGKILL was sent; it may not have ended yet
    while child.exists() and child.read_text().split()[2] != "Z":
        assert time.monotonic() < until
        time.sleep(0.05)


def test_too_few_cpus_are_said(guest: Guest) -> None:
    qemu(guest, GOOD)
    Path(os.environ["REPORT"]).write_text(REPORT.replace("0-3", "0"))
    assert guests.problem(guests.boot(guest, Change(), 20), 4, 20) == "1 of 4 CPUs"


def test_qemus_own_error_is_shown(guest: Guest) -> None:
    qemu(guest, "echo 'no such device' >&2; exit 1\n")
    assert guests.problem(guests.boot(guest, Change(), 20), 4, 20) == "QEMU ended with status 1: no such device"


def test_a_peer_is_started_as_ours_is(guest: Guest) -> None:
    shown = (guest.bundle / "shown").read_text().split("\n")
    mine = guests.command(shown, guest, Change())
    other = msgspec.structs.replace(guest, kernel=Path("/peer/vmlinuz"), firmware=Path("/a,b"), peer=True)
    theirs = guests.command(shown, other, Change())
    different = [(a, b) for a, b in zip(mine, theirs, strict=True) if a != b]
    assert different == [
        (f"{guests.CODE}{guest.bundle}/OVMF_CODE.fd", f"{guests.CODE}/a,,b/OVMF_CODE.fd"),
        (str(guest.kernel), "/peer/vmlinuz"),
    ]


def test_what_a_boot_changes(guest: Guest) -> None:
    shown = (guest.bundle / "shown").read_text().split("\n")
    changed = guests.command(shown, guest, Change(cpus=1, memory=96, counted=True))
    assert changed[changed.index("-smp") + 1] == "1,maxcpus=64"
    assert changed[changed.index("-m") + 1] == "96M"
    assert changed[-2:] == ["-icount", "shift=0,sleep=off"]
    more = guests.command(shown, guest, Change(cpus=128))
    assert more[more.index("-smp") + 1] == "128,maxcpus=128"


def test_another_run_guest_is_refused(guest: Guest) -> None:
    with pytest.raises(UserError, match="shows another command than minguest's"):
        guests.command(["qemu-system-x86_64", "-kernel", "x"], guest, Change())


def test_a_peer_that_is_missing_is_named(guest: Guest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="/none: no such file, for the peer cloud"):
        guests.peer(guest, "cloud", tmp_path / "none", guest.bundle)


def test_a_quiet_variant_is_the_same_guest_with_more_parameters(guest: Guest) -> None:
    variant = guests.quiet(guest)
    assert (variant.name, variant.like, variant.append) == ("it+quiet", "it", "loglevel=5 initd.report-log=kernel")
    (guest.bundle / "run-guest").write_text('printf %s "$4" >asked; printf %s "$(cat bundle/shown)"; cp asked "$ASKED"')
    place = guest.bundle.parent / "asked"
    os.environ["ASKED"] = str(place)
    try:
        qemu(guest, GOOD)
        guests.boot(variant, Change(append="initcall_debug"), 20)
    finally:
        del os.environ["ASKED"]
    assert place.read_text() == "loglevel=5 initd.report-log=kernel initcall_debug"
