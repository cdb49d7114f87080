# SPDX-License-Identifier: Apache-2.0
"""Which boot tests a release lists, and which of them the bundle's own run-guest starts."""

import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from minguest import cli
from minguest.boottest import command, runner, verdict
from minguest.bundle import manifests
from minguest.diagnose import catalogue, matching
from minguest.kernel import contract
from minguest.model import Accel, Disk, Launch, Node, Root
from minguest.paths import Layout
from minguest.release import evidence
from minguest.util import files
from minguest.util.errors import GuestFailed, GuestLost, ToolError, UserError
from minguest.vm import arguments, cards, emulator, kvm, launch, report
from tests import ROOT, fake_qmp, launches, workshop
from tests.damage import Damage, each_way
from tests.fake_qmp import WELL

LAUNCH = Launch(cmdline=("a=b",))
OWN = launch.Spec(
    "q35", "tcg", "max", 4, 64, 1 << 30, (cards.Gpu("gpu0", "secondary-vga", model="secondary-vga"),), ("a=b",), 60
)


def names(launch: Launch) -> list[str]:
    return [test.name for test in runner.tests(launch)]


def test_the_tests_are_both_machines_the_guests_own_and_the_extra() -> None:
    cells = [f"boot-test-{machine}-{cpus}" for machine in ("q35", "pc") for cpus in (1, 4, 8)]
    assert names(LAUNCH) == [*cells, "hotplug", "power-button", "large-bars"]
    own = Launch(machine="pc", cpus=6)
    assert names(own)[-5:-3] == ["boot-test-pc-6", "boot-test-pc-8"]
    assert runner.own_test(own) == "boot-test-pc-6"


def counts_as(spec: launch.Spec, wanted: Launch = LAUNCH) -> list[str]:
    return [test.name for test in runner.tests(wanted) if runner.is_of(spec, wanted, test)]


HOT = {"cpus": 2, "plug_cpus": 8, "plug_memory": 3 << 30, "max_memory": 3 << 30}
BARS = tuple(cards.Gpu(f"gpu{n}", "bar:128G", bar=128 << 30) for n in range(8))


@pytest.mark.parametrize(
    ("changes", "as_"),
    [
        ({}, ["boot-test-q35-4"]),
        ({"machine": "pc", "cpus": 8}, ["boot-test-pc-8"]),
        ({"accel": "kvm", "timeout": 5}, ["boot-test-q35-4"]),
        ({"cpus": 64, "max_cpus": 64}, []),
        ({"cpus": 3}, []),
        ({"memory": 2 << 30}, []),
        ({"gpus": ()}, []),
        ({"cmdline": ()}, []),
        ({"cpu": "host"}, []),
        ({"max_cpus": 8}, []),
        ({"disks": (Disk(file="/x"),)}, []),
        ({"gpus": (cards.Gpu("gpu0", "SECONDARY-VGA", model="secondary-vga"),)}, ["boot-test-q35-4"]),
        ({"cpu": "max,phys-bits=43"}, ["boot-test-q35-4"]),
        ({"plug_cpus": 8}, []),
        (HOT, ["hotplug"]),
        ({**HOT, "unplug_cpus": 4}, []),
        ({**HOT, "plug_cpus": 7}, []),
        ({**HOT, "plug_memory": 0}, []),
        ({"power_button": True}, ["power-button"]),
        ({"gpus": BARS, "cpu": "max,phys-bits=43"}, ["large-bars"]),
        ({"gpus": BARS, "machine": "pc"}, []),
        ({"gpus": BARS[1:]}, []),
    ],
)
def test_a_run_counts_only_with_the_launch_of_a_test(changes: dict[str, object], as_: list[str]) -> None:
    assert counts_as(msgspec.structs.replace(OWN, **changes)) == as_


@pytest.mark.parametrize("name", ["bar:16G", "0000:01:00.0", "01:00.0"])
def test_every_kind_of_card_counts(name: str) -> None:
    card = cards.Gpu("gpu0", name, bar=1 << 34) if "bar" in name else cards.Gpu("gpu0", name, host="0000:01:00.0")
    spec = msgspec.structs.replace(OWN, gpus=(card,))
    assert counts_as(spec, msgspec.structs.replace(LAUNCH, gpus=(name,))) == ["boot-test-q35-4"]
    assert counts_as(spec) == []


def test_what_a_guest_cannot_be_tested_with_is_said() -> None:
    hot = next(test for test in runner.tests(LAUNCH) if test.name == "hotplug")
    assert runner.cannot(hot, LAUNCH, 64) == ""
    assert "built for fewer" in runner.cannot(hot, LAUNCH, 4)
    assert "no room for more CPUs" in runner.cannot(hot, Launch(max_cpus=4), 64)
    assert "in nodes" in runner.cannot(hot, Launch(numa=(Node("1G"),)), 64)


MEMINFO = "MemTotal:        4194304 kB\nMemFree:          100000 kB\nMemAvailable:    2097152 kB\n"


def test_more_memory_than_the_host_has_is_refused() -> None:
    runner.check_memory(msgspec.structs.replace(OWN, memory=4 << 30), MEMINFO)
    with pytest.raises(UserError, match="memory 5 GiB: 4096 MiB are all that this host has"):
        runner.check_memory(msgspec.structs.replace(OWN, memory=5 << 30), MEMINFO)
    with pytest.raises(UserError, match="memory 5 GiB"):
        runner.check_memory(msgspec.structs.replace(OWN, plug_memory=5 << 30), MEMINFO)
    # With a host's card all of it is locked from the start.
    passed = msgspec.structs.replace(OWN, memory=3 << 30, gpus=(cards.Gpu("gpu0", "01:00.0", host="0000:01:00.0"),))
    with pytest.raises(UserError, match=r"memory 3 GiB: 2048 MiB are available, and all .* is locked"):
        runner.check_memory(passed, MEMINFO)


# ── by run-guest ──


SYSFS = Path("/sys")


def requested(options: launch.Options, wanted: Launch = workshop.LAUNCH, accel: Accel = "tcg") -> launch.Spec:
    spec = launch.settle(wanted, options, 64, ["secondary-vga", "virtio-vga"], SYSFS, "4.12")
    return msgspec.structs.replace(spec, accel=accel)


@pytest.fixture
def at(tmp_path: Path) -> Layout:
    return workshop.build(tmp_path / "project")


@pytest.mark.parametrize(
    ("options", "by_it"),
    [
        ({}, True),
        ({"cpus": "4", "memory": "1024M", "gpu": "secondary-vga", "machine": "q35"}, True),
        ({"timeout": "5"}, True),
        ({"cpus": "8"}, False),
        ({"memory": "2G"}, False),
        ({"gpu": "none"}, False),
        ({"gpu": "virtio-vga"}, False),
        ({"machine": "pc"}, False),
        ({"plug_cpus": "8"}, False),
        ({"plug_memory": "2G"}, False),
        ({"power_button": True}, False),
    ],
)
@pytest.mark.parametrize("accel", launch.ACCELS)
def test_the_guests_own_launch_is_started_by_its_script(
    at: Layout, options: dict[str, Any], by_it: bool, accel: Accel
) -> None:
    spec = requested(launch.Options(**options), accel=accel)
    assert command.scripted(manifests.load(at.bundle), workshop.LAUNCH, spec, SYSFS, "") == (spec if by_it else None)


def test_a_launch_that_was_edited_since_is_not_the_scripts(at: Layout) -> None:
    manifest = manifests.load(at.bundle)
    for edited in (Launch(cmdline=("a",)), Launch(window="1G"), Launch(cpu="host")):
        assert command.scripted(manifest, edited, requested(launch.Options(), edited), SYSFS, "") is None


def test_an_old_bundle_has_no_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workshop, "launch_files", lambda *_: {})
    manifest = manifests.load(workshop.build(tmp_path / "project").bundle)
    assert command.scripted(manifest, workshop.LAUNCH, requested(launch.Options()), SYSFS, "") is None


@pytest.mark.parametrize("accel", launch.ACCELS)
def test_the_script_and_the_launch_give_the_same_command(at: Layout, accel: Accel) -> None:
    folder = at.work / "boot test"
    folder.mkdir()
    (at.bundle / "run-guest").chmod(0o644)  # as a copy over other file systems
    spec = requested(launch.Options(), accel=accel)
    argv = command.argv(at.bundle, spec, folder)
    assert command.script_argv(folder, spec) == argv
    assert (folder / "bundle").readlink() == Path("../bundle")
    assert (folder / "bundle/bzImage").read_bytes() == (at.bundle / "bzImage").read_bytes()
    assert (folder / "OVMF_VARS.fd").read_bytes() == (at.bundle / "OVMF_VARS.fd").read_bytes()
    assert command.argv(at.bundle, spec, folder) == argv  # once more in the same folder


def test_a_boot_test_of_a_guest_with_a_root_ends_after_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooted = msgspec.structs.replace(workshop.LAUNCH, root=Root())
    monkeypatch.setattr(workshop, "LAUNCH", rooted)
    at = workshop.build(tmp_path / "project")
    folder = at.work / "boot test"
    folder.mkdir()
    for button, last in ((False, "initd.then=poweroff"), (True, "initd.then=wait")):
        spec = requested(launch.Options(power_button=button), rooted)
        argv = command.argv(at.bundle, spec, folder)
        options = argv[argv.index("-append") + 1].split()
        assert [each for each in options if each.startswith("initd.then=")] == ["initd.then=init", last]
        assert command.script_argv(folder, spec) == argv


def test_a_script_that_does_not_show_its_command_is_named(at: Layout) -> None:
    at.boot_test.mkdir()
    spec = requested(launch.Options())
    command.argv(at.bundle, spec, at.boot_test)
    (at.bundle / "run-guest").write_text("echo something else\n")
    with pytest.raises(UserError, match="run-guest --show ends with 'something else'"):
        command.script_argv(at.boot_test, spec)
    (at.bundle / "run-guest").write_text("echo broken >&2; exit 7\n")
    with pytest.raises(ToolError, match="exit status 7"):
        command.script_argv(at.boot_test, spec)


@pytest.mark.parametrize("made_here", [True, False])
def test_a_script_for_other_cards_is_not_used(made_here: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sys = launches.sysfs(tmp_path / "sys")
    for bdf in launches.CARDS:
        (tmp_path / "vfio-pci").mkdir(exist_ok=True)
        (sys / "bus/pci/devices" / bdf / "driver").symlink_to(tmp_path / "vfio-pci")
    (tmp_path / "cpuinfo").write_text("")
    (tmp_path / "meminfo").write_text("MemAvailable: 8388608 kB\n")
    monkeypatch.setattr(runner, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(runner, "SYSFS", sys)
    monkeypatch.setattr(runner, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(workshop, "LAUNCH", Launch(gpus=("41:00.0",), accel="tcg"))
    make, builder = workshop.launch_files, sys if made_here else tmp_path / "elsewhere"
    monkeypatch.setattr(workshop, "launch_files", lambda at, facts: make(at, facts, builder))
    at = workshop.build(tmp_path / "project")
    started: list[list[str]] = []

    def attempt(spec: launch.Spec, command: list[str], *_: object, **__: object) -> runner.Trial:
        started.append(command)
        nothing = matching.diagnose({}, matching.see(b""))
        return runner.Trial(None, report.Report(False, (), ()), nothing, nothing, (), "not started")

    monkeypatch.setattr(runner, "attempt", attempt)
    said: list[str] = []
    with pytest.raises(ToolError, match="not started"):
        runner.run(runner.Bench("it", at.bundle, at.boot_test, at.kvm), launch.Options(), workshop.LAUNCH, said.append)
    # Its sound goes with it in any case, as this machine has it.
    assert any("host=0000:41:00.1" in each for each in started[0])
    assert (
        "run-guest: was not made for these cards as this machine has them, so it is not used" in said
    ) is not made_here


# ── without room ──

NARROW = "vendor_id : GenuineIntel\naddress sizes : 39 bits physical, 48 bits virtual\n"


def large_bars(at: Layout, monkeypatch: pytest.MonkeyPatch, cpuinfo: str) -> tuple[runner.Bench, runner.Test]:
    """The test of large BARs on a machine whose KVM runs this firmware."""
    (at.root / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(runner, "CPUINFO", at.root / "cpuinfo")
    monkeypatch.setattr(runner, "accelerator", lambda *_: ("kvm", "kvm (as a test)"))
    monkeypatch.setattr(emulator, "version", lambda: "7.2")
    bench = runner.Bench("it", at.bundle, at.boot_test, at.kvm, evidence=at.evidence)
    return bench, next(test for test in runner.tests(workshop.LAUNCH) if test.name == "large-bars")


def recorded(at: Layout, test: runner.Test) -> evidence.Check:
    return evidence.of_boot(at.evidence, test, manifests.load(at.bundle), 64)


def test_bars_that_have_no_room_on_this_machine_are_not_run(at: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, test = large_bars(at, monkeypatch, NARROW)
    why = runner.without_room(bench, test, workshop.LAUNCH)
    assert "under kvm" in why and "1 TiB are needed" in why and "39 bits end at 512 GiB" in why
    assert "; what would make it fit: " in why and "\n" not in why
    found = recorded(at, test)
    assert (found.result, found.reason, found.files) == ("NOT RUN", why, {})
    # The next machine may have the room, so it is still missing.
    assert test in evidence.missing([found], workshop.LAUNCH, 64)
    # It holds for these bytes alone.
    (at.bundle / "manifest.json").unlink()
    workshop.build(at.root, "CONFIG_SMP=y\nCONFIG_NR_CPUS=65\n")
    assert recorded(at, test).reason == "nobody ran it"


def test_bars_that_have_room_are_run(at: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, test = large_bars(at, monkeypatch, NARROW.replace("39", "46"))
    assert runner.without_room(bench, test, workshop.LAUNCH) == ""
    assert not at.evidence.exists() and recorded(at, test).reason == "nobody ran it"
    # A guest is built for its own cards: without room it fails, and does not ship.
    bench, _ = large_bars(at, monkeypatch, NARROW)
    own = next(test for test in runner.tests(workshop.LAUNCH) if test.name == "boot-test-q35-4")
    assert runner.without_room(bench, own, Launch(gpus=("bar:128G",) * 8)) == ""


@pytest.mark.parametrize(("cpuinfo", "kept"), [(NARROW, False), (NARROW.replace("39", "46"), True)])
def test_a_run_without_room_is_no_evidence(
    at: Layout, monkeypatch: pytest.MonkeyPatch, cpuinfo: str, kept: bool
) -> None:
    """A run of the same cards by hand fails too, and the bundle is not the reason."""
    bench, test = large_bars(at, monkeypatch, cpuinfo)
    silent = report.Report(False, (), ())
    lost = verdict.Verdict("lost", "it hung", (), verdict.Phases(None, None, None, 1.0), "deadline")

    def attempt(_: launch.Spec, command: list[str], folder: Path, *__: object, **___: object) -> runner.Trial:
        for name in ("console.log", "report.json"):
            (folder / name).write_bytes(msgspec.json.encode(silent))
        nothing = matching.diagnose({}, matching.see(b""))
        return runner.Trial(lost, silent, nothing, nothing, tuple(command))

    monkeypatch.setattr(runner, "attempt", attempt)
    with pytest.raises(GuestLost, match="it hung"):
        runner.run(bench, test.options, workshop.LAUNCH, lambda _: None)
    assert (recorded(at, test).result, recorded(at, test).reason) == (
        ("FAIL", "it hung") if kept else ("NOT RUN", "nobody ran it")
    )


# ── its folder ──


def test_a_folder_with_other_files_is_left_alone(
    at: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the command, whose --work DIR once deleted DIR/boot-test, whatever was in it."""
    for name in ("notes.txt", "console.log"):
        mine = tmp_path / "work" / name / "boot-test" / name
        mine.parent.mkdir(parents=True)
        mine.write_text("precious")
        argv = [
            "boot-test",
            str(at.bundle),
            "--work",
            str(tmp_path / "work" / name),
            "--accel",
            "tcg",
            "--memory",
            "64M",
        ]
        assert cli.main(argv) == 1
        assert mine.read_text() == "precious"
        said = capsys.readouterr().err
        assert f"boot-test: has {name}, which no boot test wrote" in said and "--work" in said


def test_the_files_of_an_earlier_boot_test_are_removed(tmp_path: Path) -> None:
    folder, of = tmp_path / "boot-test", tmp_path / "bundle"
    of.mkdir()
    (of / "kept").write_text("")
    for _ in range(2):
        runner.make_empty(folder, of)
        assert [path.name for path in folder.iterdir()] == [arguments.LINK]
        for name in runner.OUTPUT:
            if name != arguments.LINK:
                (folder / name).write_text("old")
        (folder / ".report.json.abcd_123").write_text("half")
    (folder / "console.log.bak").write_text("mine")
    with pytest.raises(UserError, match=r"has console\.log\.bak, which"):
        runner.make_empty(folder, of)
    assert (folder / "console.log").read_text() == "old" and (of / "kept").exists()
    (folder / "console.log.bak").unlink()
    (folder / "qemu.log").unlink()
    (folder / "qemu.log").mkdir()
    with pytest.raises(UserError, match=r"has qemu\.log, which"):
        runner.make_empty(folder, of)
    (folder / "qemu.log").rmdir()
    other = tmp_path / "other"
    other.mkdir()
    runner.make_empty(folder, other)
    assert (folder / arguments.LINK).resolve() == other


def test_every_option_is_explained() -> None:
    explained = runner.OPTIONS | runner.FLAGS
    assert [name.replace("-", "_") for name in explained] == list(launch.Options.__struct_fields__)
    assert all(explained.values())


def test_huge_pages_are_counted_elsewhere() -> None:
    runner.check_memory(msgspec.structs.replace(OWN, memory=5 << 30, hugepages="2M"), MEMINFO)
    with pytest.raises(UserError, match="memory 3 GiB: 2048 MiB are available"):
        runner.check_memory(msgspec.structs.replace(OWN, memory=3 << 30, lock_memory=True), MEMINFO)


def test_a_test_needs_no_more_than_it_says() -> None:
    hot, pc = (next(test for test in runner.EXTRA + runner.tests(LAUNCH) if test.name == name)
               for name in ("hotplug", "boot-test-pc-8"))  # fmt: skip
    assert runner.cannot(hot, Launch(max_cpus=8), 8) == ""
    assert "built for fewer" in runner.cannot(hot, Launch(max_cpus=8), 7)
    assert runner.cannot(pc, Launch(numa=(Node("1G"),)), 8) == ""
    assert "cards near nodes" in runner.cannot(pc, Launch(numa=(Node("1G", gpus=(0,)),)), 8)
    assert runner.cannot(runner.EXTRA[1], Launch(numa=(Node("1G", gpus=(0,)),)), 1) == ""


def test_breaches_are_of_what_is_launched(tmp_path: Path) -> None:
    known = catalogue.load(ROOT / "configs/pits")
    (tmp_path / "kernel.config").write_text(sound(ACPI_HOTPLUG_MEMORY="n", NUMA="n", NR_CPUS="8"))

    def broken(**changes: Any) -> set[str]:
        spec = msgspec.structs.replace(OWN, **{"max_cpus": 8, **changes})
        found = runner.breaches_of(known, tmp_path / "kernel.config", LAUNCH, spec, "4.12")
        return {each.option for each in found}

    assert broken() == set()
    assert broken(max_cpus=9) == {"NR_CPUS"}
    assert "ACPI_HOTPLUG_MEMORY" in broken(max_memory=4 << 30)
    nodes = (launch.Node((0,), 1 << 29, (10, 20)), launch.Node((1,), 1 << 29, (20, 10)))
    assert "NUMA" in broken(numa=nodes)


# ── which accelerator ──

KEPT_NO = "/dev/kvm opens, but OVMF or the kernel does not run under it: killed by signal 6 (Aborted)"


class Host:
    """A machine with a fake in QEMU's place, and a bundle."""

    def __init__(self, at: Layout, path: Path) -> None:
        self.at = at
        self.path = path
        self.bench = runner.Bench("it", at.bundle, at.work / "boot-test", at.kvm, at.pits, at.evidence)
        self.said: list[str] = []

    def qemu(self, *steps: Sequence[Any], **more: Any) -> None:
        fake_qmp.install(self.path, steps=steps, **more)

    def accelerator(self, version: str = "7.2", **changes: Any) -> tuple[str, str]:
        spec = msgspec.structs.replace(OWN, **{"accel": "auto", **changes})
        return runner.accelerator(self.bench, spec, version, manifests.load(self.at.bundle))

    def run(self, wanted: Launch = workshop.LAUNCH, **options: Any) -> runner.Outcome:
        (self.bench.folder / "heard.jsonl").unlink(missing_ok=True)  # the fake's own
        runner.run(self.bench, launch.Options(**{"accel": "tcg", **options}), wanted, self.said.append)
        return self.outcome()

    def outcome(self) -> runner.Outcome:
        return msgspec.json.decode((self.bench.folder / "verdict.json").read_bytes(), type=runner.Outcome)


def sound(**changes: str) -> str:
    """A kernel's config that keeps the contract, memory hotplug's too, but for the changes."""
    wanted = msgspec.structs.replace(workshop.LAUNCH, max_memory="4G")
    rules = catalogue.rules(catalogue.load(ROOT / "configs/pits"))
    meant: dict[str, str] = {"NR_CPUS": "64"}
    while broken := contract.check(rules, meant, wanted, "4.12"):
        meant |= {each.option: each.wanted.removeprefix("at least ") for each in broken}
    return "".join(f"CONFIG_{name}={value}\n" for name, value in {**meant, **changes}.items() if value != "n")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:{os.environ['PATH']}")
    monkeypatch.setattr(kvm, "DEVICE", tmp_path / "device")
    (tmp_path / "device").write_text("")
    return Host(workshop.build(tmp_path / "project", sound()), tmp_path / "path")


@pytest.mark.parametrize("accel", launch.ACCELS)
def test_a_requested_accelerator_is_not_tried(host: Host, accel: str) -> None:
    host.qemu(["exit", 1])
    assert host.accelerator(accel=accel) == (accel, f"{accel} as requested")
    assert not host.at.kvm.exists()


def test_kvm_is_tried_once(host: Host) -> None:
    host.qemu(*WELL)
    works = ("kvm", "kvm (OVMF and the kernel ran under it)")
    assert host.accelerator() == works
    host.qemu(["kill", 6])
    assert host.accelerator() == works
    # The result may differ with another QEMU, CPU or kernel.
    assert host.accelerator(version="8.0") == ("tcg", f"software emulation ({KEPT_NO})")


def test_that_kvm_does_not_work_is_kept(host: Host) -> None:
    host.qemu(["kill", 6])
    assert host.accelerator() == ("tcg", f"software emulation ({KEPT_NO})")
    host.qemu(*WELL)
    assert host.accelerator() == ("tcg", f"software emulation ({KEPT_NO})")
    assert host.accelerator(cpu="EPYC")[0] == "kvm"
    assert host.accelerator(cpu="EPYC", hide_kvm=False)[0] == "kvm"


@pytest.mark.parametrize("changed", ["bzImage", "OVMF_CODE.fd"])
def test_another_bundle_is_tried_anew(host: Host, changed: str, tmp_path: Path) -> None:
    host.qemu(["kill", 6])
    assert host.accelerator()[0] == "tcg"
    host.qemu(*WELL)
    workshop.build(tmp_path / "project", sound(), extra={changed: b"other"})
    assert host.accelerator()[0] == "kvm"


@pytest.mark.parametrize("steps", [[["wait", 60]], [["exit", 1]], [["kill", 9]]])
def test_an_unsure_result_is_not_kept(host: Host, steps: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "TIME", 1.0)
    host.qemu(*steps)
    accel, why = host.accelerator()
    assert accel == "tcg"
    assert why.startswith("software emulation (it is not known whether KVM works")
    assert not host.at.kvm.exists()
    monkeypatch.setattr(kvm, "TIME", 20.0)
    host.qemu(*WELL)
    assert host.accelerator()[0] == "kvm"


def test_that_the_device_does_not_open_is_not_kept(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.qemu(*WELL)
    device = kvm.DEVICE
    monkeypatch.setattr(kvm, "DEVICE", device / "none")
    assert host.accelerator() == ("tcg", f"software emulation ({device}/none cannot be opened: Not a directory)")
    assert not host.at.kvm.exists()
    monkeypatch.setattr(kvm, "DEVICE", device)
    assert host.accelerator()[0] == "kvm"
    # And a proof does not help a user who may not open it.
    monkeypatch.setattr(kvm, "DEVICE", device / "none")
    assert host.accelerator()[0] == "tcg"


@pytest.mark.parametrize("kept", [b"", b"[", b"[1, 2]", b'["", true, ""]', b"\xff"])
def test_a_damaged_result_does_not_count(host: Host, kept: bytes) -> None:
    host.at.kvm.parent.mkdir(exist_ok=True)
    host.at.kvm.write_bytes(kept)
    host.qemu(["kill", 6])
    assert host.accelerator()[0] == "tcg"


def test_a_first_run_that_plugs_in_does_not_spoil_the_trial(host: Host) -> None:
    host.qemu(*WELL)
    numa = (launch.Node((0,), 1 << 30, (10,)),)
    plugged: dict[str, Any] = {"cpus": 2, "plug_cpus": 8, "plug_memory": 3 << 30, "max_memory": 3 << 30, "slots": 4}
    assert host.accelerator(**plugged, hugepages="1G", numa=numa, cmdline=("initd.then=wait",))[0] == "kvm"
    tried = (host.at.work / "kvm-proof/qemu.sh").read_text()
    for each in ("wait-", "maxmem", "hugetlb", "-numa", "initd.then=wait", "secondary-vga"):
        assert each not in tried
    for each in ("accel=kvm", "-cpu host,kvm=off", "-smp 1,maxcpus=1", "-m 1024M", "OVMF_CODE.fd", "bzImage"):
        assert each in tried


# ── a whole run ──


def records(online: str = "0-3", ram: int = (1 << 30) - (4 << 20)) -> str:
    bar = {"index": 0, "start": "0x80000000", "size": 1 << 24, "kind": "mem32", "assigned": True}
    ids = {"vendor": "1234", "device": "1111", "class": "038000", "gpu": True, "bars": []}
    said: list[dict[str, Any]] = [
        {"record": "begin", "protocol": 1, "uptime": 0.5, "kernel": {"release": "4.12.14"}, "cmdline": ""},
        {"record": "cpus", "possible": "0-63", "present": online, "online": online},
        {"record": "memory", "ram_bytes": ram},
        {"record": "firmware", "kind": "uefi", "version": "2025.02-8+deb13u1"},
        {"record": "pci", "address": "0000:00:00.0", **ids, "class": "060000", "gpu": False},
        {"record": "pci", "address": "0000:00:01.0", **ids, "class": "060400", "gpu": False},
        {"record": "pci", "address": "0000:01:00.0", **ids, "bars": [bar]},
    ]
    said.append({"record": "end", "status": "ok", "records": len(said)})
    return "".join(json.dumps(each, separators=(",", ":")) + "\n" for each in said)


def in_qemu(cpus: int = 4) -> dict[str, Any]:
    slots = [{"type": "x", "props": {"core-id": n}, "qom-path": "/x"} for n in range(cpus)]
    slots += [{"type": "x", "props": {"core-id": n}} for n in range(cpus, 64)]
    return {"query-cpus-fast": [{"cpu-index": n} for n in range(cpus)], "query-hotpluggable-cpus": slots}


def steps(report: str, *after: list[Any]) -> list[list[Any]]:
    start: list[list[Any]] = [["heard", "qmp_capabilities"], ["console", "Linux version 4.12.14\n"]]
    return [*start, ["report", report], *(after or fake_qmp.POWER_OFF)]


def test_a_guest_that_is_as_requested_passes(host: Host) -> None:
    host.qemu(*steps(records()), answers=in_qemu())
    runner.make_empty(host.bench.folder, host.bench.bundle)
    (host.bench.folder / "qemu.log").write_text("of an earlier run")
    outcome = host.run()
    assert outcome.verdict.result == "pass", outcome.verdict.reason
    assert outcome.verdict.checks[-1].name == "pits"
    assert (outcome.run_guest, outcome.qemu, outcome.accel) == (True, "7.2.22 (fake)", "tcg as requested")
    assert (outcome.wanted, outcome.pits) == (workshop.LAUNCH, ())
    assert outcome.bundle == manifests.load(host.at.bundle).files
    assert outcome.argv[0].endswith("qemu-system-x86_64")
    assert outcome.spec.accel == "tcg"
    assert host.said[0] == "it: linux 4.12.14, OVMF 2025.02-8+deb13u1, q35, tcg as requested"
    assert host.said[-1] == "PASS: three views agree"
    assert "CPUs at most" in host.said[-2]
    assert "of an earlier run" not in (host.bench.folder / "qemu.log").read_text()
    assert msgspec.json.decode((host.bench.folder / "report.json").read_bytes(), type=report.Report).complete
    kept = host.at.evidence / "boot-test-q35-4"
    assert sorted(path.name for path in kept.iterdir()) == ["console.log", "report.json", "verdict.json"]
    assert (kept / "console.log").read_text() == "Linux version 4.12.14\n"


def test_a_run_that_is_not_a_test_is_not_kept(host: Host) -> None:
    host.qemu(*steps(records("0-2")), answers=in_qemu(3))
    outcome = host.run(cpus="3")
    assert (outcome.verdict.result, outcome.run_guest) == ("pass", False)
    assert not host.at.evidence.exists()


def test_without_a_place_for_evidence_none_is_kept(host: Host) -> None:
    host.qemu(*steps(records()), answers=in_qemu())
    host.bench = msgspec.structs.replace(host.bench, evidence=None, pits=None)
    outcome = host.run()
    assert [check.name for check in outcome.verdict.checks][-1] == "power-off"
    assert not host.at.evidence.exists()


def test_a_guest_with_fewer_cpus_failed(host: Host) -> None:
    host.qemu(*steps(records("0")), answers=in_qemu())
    with pytest.raises(GuestFailed, match=r"FAIL, failed: CPUs: 1 of 4") as caught:
        host.run()
    assert caught.value.remedy == f"read {host.bench.folder / 'console.log'}"
    assert host.outcome().verdict.result == "failed"
    assert (host.at.evidence / "boot-test-q35-4/verdict.json").exists()
    assert len(host.said) == 3  # what was started, the table, the diagnosis


def test_a_guest_that_says_nothing_is_lost(host: Host) -> None:
    host.qemu(*steps(""))
    with pytest.raises(GuestLost, match="FAIL, lost: it powered off before its report was whole; initd never spoke"):
        host.run()
    assert host.outcome().verdict.ending == "power-off"


def test_a_report_that_cannot_be_compared_is_lost(host: Host) -> None:
    host.qemu(*steps(records()), answers={**in_qemu(), "query-pci": {"raw": '{"id": ID, "return": ' + "[" * 9999}})
    with pytest.raises(GuestLost, match="QEMU did not answer what it has"):
        host.run()
    host.qemu(*steps(records(), ["wait", 0.2], ["event", "STOP", {}]), answers={**in_qemu(), "query-status": "die"})
    with pytest.raises(GuestLost, match=r"QEMU died \(killed by signal 9"):
        host.run()


def test_qemu_that_refuses_is_named_with_its_pit(host: Host) -> None:
    host.qemu(["stderr", "qemu: kvm_buf_set_msrs: Assertion `x' failed.\n"], ["kill", 6])
    with pytest.raises(ToolError, match=r"(?s)QEMU ended before the guest ran.*Assertion `x'") as caught:
        host.run(accel="kvm")
    assert "kvm-unusable" in caught.value.remedy
    assert not (host.bench.folder / "verdict.json").exists()
    assert not host.at.evidence.exists()
    host.qemu(["stderr", "something new\n"], ["exit", 1])
    with pytest.raises(ToolError, match="something new") as caught:
        host.run()
    assert caught.value.remedy == ""


def test_what_is_requested_is_plugged_in(host: Host) -> None:
    ready = '{"record":"ready","cpus":4,"memory_bytes":0}\n'
    answers = {**in_qemu(), "query-memory-size-summary": {"base-memory": 1 << 30, "plugged-memory": 2 << 30}}
    after: list[list[Any]] = [["heard", "object-add"], ["wait", 0.2], ["report", records("0-4", 3 << 30)]]
    host.qemu(*steps(ready, *after, *fake_qmp.POWER_OFF), answers={**answers, "query-cpus-fast": [{}] * 5})
    outcome = host.run(plug_cpus="5", plug_memory="3G")
    heard = [each for each in fake_qmp.heard(host.bench.folder) if "add" in each["execute"]]
    assert [each["arguments"].get("core-id", each["arguments"].get("size")) for each in heard] == [4, 2 << 30, None]
    assert outcome.verdict.result == "pass", outcome.verdict.reason
    assert "initd.wait-cpus=5" in (host.bench.folder / "qemu.sh").read_text()


def test_a_kernel_with_a_known_fault_is_booted_as_it_was_meant(host: Host, tmp_path: Path) -> None:
    host.at = workshop.build(tmp_path / "project", sound(NR_CPUS="8", EFI="n"))
    host.qemu(*steps(records()), answers=in_qemu())
    with pytest.raises(UserError, match="built for at most 8 CPUs"):
        host.run(cpus="9")
    facts = workshop.facts()
    facts["config"]["problems"] = ["CONFIG_EFI: the contract wants y"]
    parts = {path.name: path for path in (tmp_path / "project/parts").iterdir()}
    manifests.write(host.at.bundle, parts, facts, workshop.launch_files(host.at, facts))
    with pytest.raises(GuestFailed, match=r"CPUs: 4 of 9\nthis kernel was built although .*\nCONFIG_EFI: the contract"):
        host.run(cpus="9")
    assert set(host.outcome().pits) == {"efi-off", "cpu-limit"}
    assert host.outcome().spec.cpus == 9


def test_the_last_cpus_are_the_kernels(tmp_path: Path) -> None:
    for text, count in (("CONFIG_SMP=y\nCONFIG_NR_CPUS=16\n", 16), ("CONFIG_NR_CPUS=16\n", 1), ("CONFIG_SMP=y\n", 1)):
        (tmp_path / "kernel.config").write_text(text)
        assert runner.nr_cpus_of(tmp_path) == count


def test_a_second_run_waits_for_the_first(host: Host) -> None:
    host.qemu(*steps(records()), answers=in_qemu())
    lock = host.bench.folder.with_name(".boot-test.run")
    with files.lock(lock):
        thread = threading.Thread(target=host.run)
        thread.start()
        deadline = time.monotonic() + 10
        while not host.said and time.monotonic() < deadline:
            time.sleep(0.01)
        assert host.said == ["waiting for another boot test of it"]
        assert not host.bench.folder.exists()
    thread.join()
    assert host.said[-1].startswith("PASS")


def test_the_guest_is_compared_with_its_own_manifest(at: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    expected: list[object] = []

    def attempt(*_: object, shipped: verdict.Shipped, **__: object) -> runner.Trial:
        expected.append(shipped)
        nothing = matching.diagnose({}, matching.see(b""))
        return runner.Trial(None, report.Report(False, (), ()), nothing, nothing, (), "not started")

    monkeypatch.setattr(runner, "attempt", attempt)
    with pytest.raises(ToolError, match="not started"):
        bench = runner.Bench("it", at.bundle, at.boot_test, at.kvm)
        runner.run(bench, launch.Options(accel="tcg"), workshop.LAUNCH, lambda _: None)
    assert expected == [verdict.Shipped("4.12.14", "2025.02-8+deb13u1")]


def test_room_for_large_bars_is_shown_and_checked(host: Host) -> None:
    regions = [{"bar": 2, "type": "memory", "size": 1 << 36, "address": 1 << 32}]
    card = {"bus": 1, "slot": 0, "function": 0, "qdev_id": "gpu0", "regions": regions}
    answers = {**in_qemu(), "query-pci": [{"bus": 0, "devices": [card]}]}
    bar = {"index": 2, "start": hex(1 << 32), "size": 1 << 36, "kind": "mem64", "assigned": True}
    text = records().replace('"gpu":true', '"gpu":false')
    lines = [json.loads(line) for line in text.splitlines() if '"0000:00:0' not in line]
    lines[-2]["bars"], lines[-1]["records"] = [bar], len(lines) - 1
    text = "".join(json.dumps(each, separators=(",", ":")) + "\n" for each in lines)
    host.qemu(*steps(text), answers=answers)
    with pytest.raises(GuestFailed, match="BAR window: not where it was planned"):
        host.run(gpu="bar:64G")
    assert host.said[1].startswith("64-bit window: ")
    # A window that the launch itself sets is not the plan's.
    wanted = msgspec.structs.replace(workshop.LAUNCH, window="256G")
    assert host.run(wanted, gpu="bar:64G").verdict.result == "pass"


def test_more_memory_than_there_is_is_refused_before_anything_starts(host: Host) -> None:
    host.qemu(["exit", 1])
    with pytest.raises(UserError, match="are all that this host has"):
        host.run(memory="512T")
    assert not host.bench.folder.exists()


def test_an_attempt_does_what_is_requested(host: Host, tmp_path: Path) -> None:
    host.qemu(["heard", "qmp_capabilities"], ["report", records()], ["heard", "inject-nmi"], *fake_qmp.POWER_OFF)
    known = catalogue.load(host.at.pits)
    breach = contract.Breach("EFI", "y", "n", "20-efi", "one CPU", "efi-off")
    command = [str(host.path / "qemu-system-x86_64")]
    trial = runner.attempt(OWN, command, tmp_path, known, [breach], ["a problem"], nmi=True)
    assert trial.verdict is not None
    assert "a problem" in trial.verdict.reason
    assert trial.roots == ("efi-off",)
    assert not trial.blind.roots
    assert trial.argv == (*command,)
    assert len([each for each in fake_qmp.heard(tmp_path) if each["execute"] == "inject-nmi"]) == 1


def test_qemus_own_output_is_read_too(host: Host, tmp_path: Path) -> None:
    host.qemu(["stderr", "KVM internal error. Suberror: 1\n"], *steps(""))
    command = [str(host.path / "qemu-system-x86_64")]
    trial = runner.attempt(OWN, command, tmp_path, catalogue.load(host.at.pits), [])
    assert "kvm-unusable" in trial.roots


@each_way
def test_a_damaged_record_of_kvm_is_not_believed(host: Host, damage: Damage) -> None:
    host.qemu(*WELL)
    assert host.accelerator()[0] == "kvm"
    host.qemu(["kill", 9])  # an unsure result, which is not kept
    assert host.accelerator()[0] == "kvm"
    damage(host.at.kvm)
    assert host.accelerator()[0] == "tcg"
