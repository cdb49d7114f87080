# SPDX-License-Identifier: Apache-2.0
"""The host's side, on fake hosts alone: see tests/fake_sysfs.py for what they simulate."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from minguest import cli
from minguest.host import checks, survey, vfio
from minguest.host.checks import Row, Wish
from minguest.host.vfio import Before, Write
from minguest.model import Launch
from minguest.util import files
from minguest.util.errors import ToolError, UserError
from minguest.vm import emulator
from tests import ROOT, workshop
from tests.damage import Damage, each_way
from tests.fake_sysfs import FakeHost

VGA, THREE_D, AUDIO, PCI_BRIDGE, HOST_BRIDGE, ISA_BRIDGE = 0x030000, 0x030200, 0x040300, 0x060400, 0x060000, 0x060100
NVME, ETHERNET = 0x010802, 0x020000
PORT, GPU, SOUND = "0000:00:01.0", "0000:01:00.0", "0000:01:00.1"
GIB = 1 << 30


@pytest.fixture
def fake(tmp_path: Path) -> FakeHost:
    """A graphics card with sound behind a root port, all in group 1."""
    host = FakeHost(tmp_path / "host")
    host.device(PORT, PCI_BRIDGE, "1", "pcieport", ids="8086:1901")
    host.device(GPU, VGA, "1", "nouveau", behind=PORT)
    host.device(SOUND, AUDIO, "1", "snd_hda_intel", behind=PORT, ids="10de:22ba")
    return host


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "run/host-bind.json"


def nothing(_: str) -> None:
    pass


def facts(fake: FakeHost, *cards: str, busy: Callable[[Path], bool] = lambda _: False) -> survey.Facts:
    return survey.read(fake.root, cards, busy)


def planned(fake: FakeHost, *cards: str) -> list[str]:
    return [str(write) for write in vfio.plan(facts(fake, *cards), cards)]


def refused(fake: FakeHost, *cards: str) -> str:
    with pytest.raises(UserError) as error:
        vfio.plan(facts(fake, *cards), cards)
    return str(error.value)


# ── what is written, and back ──


def test_a_card_goes_with_its_group_and_without_its_bridge(fake: FakeHost) -> None:
    assert planned(fake, GPU) == [
        f"echo vfio-pci > /sys/bus/pci/devices/{GPU}/driver_override",
        f"echo {GPU} > /sys/bus/pci/drivers/nouveau/unbind",
        f"echo {GPU} > /sys/bus/pci/drivers_probe",
        f"echo vfio-pci > /sys/bus/pci/devices/{SOUND}/driver_override",
        f"echo {SOUND} > /sys/bus/pci/drivers/snd_hda_intel/unbind",
        f"echo {SOUND} > /sys/bus/pci/drivers_probe",
    ]
    # Two functions of one group are bound once.
    assert planned(fake, GPU, SOUND) == planned(fake, GPU)


def test_without_yes_nothing_is_written(fake: FakeHost, state: Path) -> None:
    said: list[str] = []
    vfio.bind(fake.host(state, user=1000), [GPU], act=False, say=said.append)
    assert said[-7:-1] == planned(fake, GPU)
    assert "dry run, nothing was written" in said[-1]
    assert any(PORT in line and "stays" in line for line in said)
    assert not fake.writes
    assert not state.parent.exists()


@pytest.mark.parametrize("address", ["0000:01:00.0", "01:00.0", "0000:0B:00.0", "00000000:0b:00.0", "0b:00.0"])
def test_a_card_is_named_in_any_spelling(address: str, fake: FakeHost, state: Path) -> None:
    fake.device("0000:0b:00.0", THREE_D, "2", "nouveau")
    before = fake.state()
    vfio.bind(fake.host(state), [address], act=True, say=nothing)
    name = "0000:0b:00.0" if "b" in address.lower() else GPU
    assert fake.state()[name] == ("vfio-pci", "vfio-pci")
    vfio.unbind(fake.host(state), [address], act=True, say=nothing)
    assert fake.state() == before


@pytest.mark.parametrize(
    "address", ["", "gpu0", "1:0.0", "0000:01:00.8", "0000:01:00", "0000:01:20.0", "../01:00.0", "\u0661\u0661:00.0"]
)
def test_what_is_not_an_address_is_refused(address: str, fake: FakeHost, state: Path) -> None:
    with pytest.raises(UserError, match="not a PCI address"):
        vfio.bind(fake.host(state), [address], act=True, say=nothing)
    assert not fake.writes


def test_bound_and_back_is_as_it_was(fake: FakeHost, state: Path) -> None:
    before = fake.state()
    vfio.bind(fake.host(state), [GPU], act=True, say=nothing)
    assert fake.state() == {**before, GPU: ("vfio-pci", "vfio-pci"), SOUND: ("vfio-pci", "vfio-pci")}
    said: list[str] = []
    vfio.unbind(fake.host(state), [], act=False, say=said.append)
    assert fake.state() != before
    vfio.unbind(fake.host(state), [SOUND], act=True, say=said.append)
    assert fake.state() == before
    assert not state.exists()
    assert f"{GPU}: nouveau again" in said[-1]


def test_bound_twice_is_bound_already_and_still_comes_back(fake: FakeHost, state: Path) -> None:
    before = fake.state()
    vfio.bind(fake.host(state), [GPU], act=True, say=nothing)
    kept, count, said = state.read_text(), len(fake.writes), list[str]()
    vfio.bind(fake.host(state), [SOUND], act=True, say=said.append)
    assert "bound to vfio-pci already" in said[-1]
    assert (state.read_text(), len(fake.writes)) == (kept, count)
    vfio.unbind(fake.host(state), [GPU], act=True, say=nothing)
    assert fake.state() == before


def test_two_groups_come_back_one_by_one(fake: FakeHost, state: Path) -> None:
    fake.device("0000:02:00.0", THREE_D, "2", "nvidia")
    before = fake.state()
    vfio.bind(fake.host(state), [GPU], act=True, say=nothing)
    vfio.bind(fake.host(state), ["02:00.0"], act=True, say=nothing)
    vfio.unbind(fake.host(state), [GPU], act=True, say=nothing)
    assert fake.state() == {**before, "0000:02:00.0": ("vfio-pci", "vfio-pci")}
    vfio.unbind(fake.host(state), [], act=True, say=nothing)
    assert fake.state() == before


def test_a_device_without_a_driver_gets_none_back(fake: FakeHost, state: Path) -> None:
    """Though one that matches is there: a probe would bind it."""
    fake.device("0000:01:00.2", 0x0C0330, "1", None, behind=PORT)
    fake.driver("xhci_hcd")
    fake.matches["xhci_hcd"] = {"0000:01:00.2"}
    before = fake.state()
    assert not any("unbind" in each for each in planned(fake, GPU) if "01:00.2" in each)
    vfio.bind(fake.host(state), [GPU], act=True, say=nothing)
    assert fake.state()["0000:01:00.2"] == ("vfio-pci", "vfio-pci")
    vfio.unbind(fake.host(state), [GPU], act=True, say=nothing)
    assert fake.state() == before


@pytest.mark.parametrize(
    ("driver", "override"),
    [
        ("nouveau", "nouveau"),
        ("nouveau", "vfio-pci"),
        ("nouveau", "pci-stub"),
        (None, "none"),
        ("pci-stub", "pci-stub"),
    ],
)
def test_somebody_elses_override_comes_back(driver: str | None, override: str, tmp_path: Path, state: Path) -> None:
    fake = FakeHost(tmp_path / "host")
    fake.device(GPU, VGA, "1", driver, override=override)
    before = fake.state()
    vfio.bind(fake.host(state), [GPU], act=True, say=nothing)
    assert fake.state()[GPU] == ("vfio-pci", "vfio-pci")
    vfio.unbind(fake.host(state), [GPU], act=True, say=nothing)
    assert fake.state() == before


def test_what_somebody_else_bound_is_not_taken_back(fake: FakeHost, state: Path) -> None:
    fake.device("0000:02:00.0", VGA, "2", "vfio-pci", override="vfio-pci")
    vfio.bind(fake.host(state), ["02:00.0"], act=True, say=nothing)
    assert not state.exists()
    with pytest.raises(UserError, match=r"0000:02:00\.0: not bound by host-bind"):
        vfio.unbind(fake.host(state), ["02:00.0"], act=True, say=nothing)
    assert not fake.writes


def test_the_state_of_another_boot_is_none(fake: FakeHost, state: Path) -> None:
    vfio.bind(fake.host(state), [GPU], act=True, say=nothing)
    fake.file("proc/sys/kernel/random/boot_id", "77aa\n")
    said: list[str] = []
    assert vfio.unbind(fake.host(state), [], act=True, say=said.append) == []
    assert said == ["nothing to put back: host-bind has bound nothing since this boot"]


@pytest.mark.parametrize("change", [{"driver": "../../../../tmp"}, {"bdf": "01:00.0"}, {"override": "a\nb"}])
def test_a_state_that_host_bind_did_not_write_is_refused(change: dict[str, str], fake: FakeHost, state: Path) -> None:
    vfio.bind(fake.host(state), [GPU], act=True, say=nothing)
    found = json.loads(state.read_text())
    found["devices"][0].update(change)
    state.write_text(json.dumps(found))
    count = len(fake.writes)
    with pytest.raises(UserError):
        vfio.unbind(fake.host(state), [], act=True, say=nothing)
    state.write_text("{")
    with pytest.raises(UserError, match="not what host-bind writes"):
        vfio.unbind(fake.host(state), [], act=True, say=nothing)
    assert len(fake.writes) == count


def test_only_root_acts(fake: FakeHost, state: Path) -> None:
    for does in (vfio.bind, vfio.unbind):
        with pytest.raises(UserError, match="only root"):
            does(fake.host(state, user=1000), [GPU], act=True, say=nothing)
    assert not fake.writes


def test_the_command_for_root_works_without_the_users_path(fake: FakeHost, state: Path, tmp_path: Path) -> None:
    """sudo does not find programs of a venv: this tries its secure_path, and the home of another user."""
    program = tmp_path / "a venv/bin/minguest"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom minguest.cli import main\nsys.exit(main())\n")
    program.chmod(0o755)
    here = os.environ | {"PYTHONPATH": str(ROOT)}
    bare = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": here["PYTHONPATH"]}
    options = ["--gpu", GPU, "--root", str(fake.root), "--state", str(state)]
    for argv, verb in (
        ([str(program), "host-bind"], f"'{program}' host-bind"),
        ([sys.executable, "-m", "minguest.host.vfio", "bind"], f"{sys.executable} -m minguest.host.vfio bind"),
    ):
        dry = subprocess.run([*argv, *options], env=here, capture_output=True, text=True, check=True).stdout
        command = dry.splitlines()[-1].partition("this does it: ")[2]
        assert command == f"{verb} --gpu {GPU} --state {state} --root {fake.root} --yes" or os.geteuid() != 0
        done = subprocess.run(
            command.removeprefix("sudo "), shell=True, env=bare, capture_output=True, text=True, check=False
        )
        # As root, with files that are not a driver's: it was found, it wrote, and it saw that nothing changed.
        assert "every write succeeded, but" in done.stderr or os.geteuid() != 0, done.stderr


def test_who_is_not_root_is_given_the_command(
    fake: FakeHost, state: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "minguest"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for name, begins in (
        (str(program), f"sudo {program} host-unbind"),
        ("/usr/bin/doit", f"sudo {sys.executable} -m minguest.host.vfio unbind"),
    ):
        monkeypatch.setattr(sys, "argv", [name])
        with pytest.raises(UserError) as refused:
            vfio.unbind(fake.host(state, user=1000), [GPU], act=True, say=nothing)
        assert refused.value.remedy.startswith(f"{begins} --gpu {GPU} --state ")
        assert "--yes" in refused.value.remedy


def test_no_card_is_no_wish_for_all(fake: FakeHost, state: Path) -> None:
    with pytest.raises(UserError, match="no card"):
        vfio.bind(fake.host(state), [], act=True, say=nothing)


# ── never partly ──


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("why", [OSError(5, "Input/output error"), KeyboardInterrupt(), SystemExit(143)])
def test_a_write_that_fails_leaves_nothing_partly_done(
    number: int, why: BaseException, fake: FakeHost, state: Path
) -> None:
    before = fake.state()
    fake.fail_at[number] = why
    with pytest.raises(ToolError if isinstance(why, OSError) else type(why)):
        vfio.bind(fake.host(state), [GPU], act=True, say=nothing)
    assert fake.state() == before
    assert not state.exists()


@pytest.mark.parametrize("name", [GPU, SOUND])
def test_a_probe_that_fails_silently_is_seen(name: str, fake: FakeHost, state: Path) -> None:
    before = fake.state()
    fake.refuses.add(("vfio-pci", name))
    with pytest.raises(ToolError, match=f"{name}: every write succeeded, but it has no driver"):
        vfio.bind(fake.host(state), [GPU], act=True, say=nothing)
    assert fake.state() == before


def test_a_file_that_is_not_there_stops_before_the_first_write(fake: FakeHost, state: Path) -> None:
    """Some drivers have no unbind (suppress_bind_attrs)."""
    (fake.sys / "bus/pci/drivers/snd_hda_intel/unbind").unlink()
    with pytest.raises(ToolError, match="snd_hda_intel/unbind: does not exist"):
        vfio.bind(fake.host(state), [GPU], act=True, say=nothing)
    assert not fake.writes
    assert not state.exists()


def test_what_cannot_be_put_back_is_recorded_and_reported(fake: FakeHost, state: Path) -> None:
    before = fake.state()
    fake.fail_at[4] = OSError(5, "Input/output error")
    fake.refuses.add(("nouveau", GPU))
    with pytest.raises(ToolError, match=f"NOT put back: {GPU};") as error:
        vfio.bind(fake.host(state), [GPU], act=True, say=nothing)
    assert "nouveau/bind" in str(error.value)
    assert [each["bdf"] for each in json.loads(state.read_text())["devices"]] == [GPU]
    assert fake.state() == {**before, GPU: (None, None)}
    fake.refuses.clear()
    vfio.unbind(fake.host(state), [GPU], act=True, say=nothing)
    assert fake.state() == before
    assert not state.exists()


@pytest.mark.parametrize("number", range(6))
def test_a_killed_run_is_undone_and_done_later(number: int, tmp_path: Path) -> None:
    """SIGKILL, or a machine that the write hung: nobody rolls back, the state file alone is left."""
    for then in ("unbind", "bind"):
        fake = FakeHost(tmp_path / then)
        fake.device(GPU, VGA, "1", "nouveau")
        fake.device(SOUND, AUDIO, "1", "snd_hda_intel")
        state = tmp_path / f"{then}.json"
        before = fake.state()
        found = facts(fake, GPU)
        records = [Before(name, found.devices[name].ids, "1", *before[name]) for name in (GPU, SOUND)]
        fake.host(state).keep(found.boot, records)
        fake.host(state).apply(vfio.plan(found, [GPU])[:number])
        if then == "bind":
            vfio.bind(fake.host(state), [GPU], act=True, say=nothing)
            assert fake.state() == {GPU: ("vfio-pci", "vfio-pci"), SOUND: ("vfio-pci", "vfio-pci")}
        vfio.unbind(fake.host(state), [GPU], act=True, say=nothing)
        assert fake.state() == before


def test_what_changed_hands_since_is_remembered_as_it_is(fake: FakeHost, state: Path) -> None:
    """Somebody took the card back by hand and gave it to another driver: that is what was before the second bind."""
    vfio.bind(fake.host(state), [GPU], act=True, say=nothing)
    fake.driver("nvidia")
    for write in (
        Write(f"/sys/bus/pci/devices/{GPU}/driver_override", "nvidia"),
        Write("/sys/bus/pci/drivers/vfio-pci/unbind", GPU),
        Write("/sys/bus/pci/drivers/nvidia/bind", GPU),
    ):
        fake.host(state).apply([write])
    vfio.bind(fake.host(state), [GPU], act=True, say=nothing)
    vfio.unbind(fake.host(state), [GPU], act=True, say=nothing)
    assert fake.state()[GPU] == ("nvidia", "nvidia")
    assert fake.state()[SOUND] == ("snd_hda_intel", None)


def test_an_unbind_that_fails_can_be_said_again(fake: FakeHost, state: Path) -> None:
    before = fake.state()
    vfio.bind(fake.host(state), [GPU], act=True, say=nothing)
    fake.fail_at[len(fake.writes)] = OSError(16, "Device or resource busy")
    with pytest.raises(ToolError, match=f"NOT put back: {SOUND}\n"):
        vfio.unbind(fake.host(state), [GPU], act=True, say=nothing)
    assert [each["bdf"] for each in json.loads(state.read_text())["devices"]] == [SOUND]
    vfio.unbind(fake.host(state), [SOUND], act=True, say=nothing)
    assert fake.state() == before


def test_a_driver_that_is_gone_stops_the_way_back_before_the_first_write(fake: FakeHost, state: Path) -> None:
    vfio.bind(fake.host(state), [GPU], act=True, say=nothing)
    for path in (fake.sys / "bus/pci/drivers/nouveau").iterdir():
        path.unlink()
    (fake.sys / "bus/pci/drivers/nouveau").rmdir()
    count = len(fake.writes)
    with pytest.raises(UserError, match="its driver nouveau is not loaded"):
        vfio.unbind(fake.host(state), [GPU], act=True, say=nothing)
    assert len(fake.writes) == count
    assert state.exists()


def test_a_card_that_was_pulled_needs_nothing_back(fake: FakeHost, state: Path) -> None:
    vfio.bind(fake.host(state), [GPU], act=True, say=nothing)
    (fake.sys / "bus/pci/devices" / GPU).unlink()
    (fake.sys / "kernel/iommu_groups/1/devices" / GPU).unlink()
    vfio.unbind(fake.host(state), [], act=True, say=nothing)
    assert fake.state()[SOUND] == ("snd_hda_intel", None)
    assert not state.exists()


def test_a_read_only_file_is_an_error_that_names_it(fake: FakeHost, tmp_path: Path) -> None:
    """The writer that writes in earnest: it makes no file, and a directory in the way is its EISDIR, root or not."""
    with pytest.raises(FileNotFoundError):
        vfio.sysfs_write(tmp_path / "none", "x\n")
    assert not (tmp_path / "none").exists()
    probe = fake.sys / "bus/pci/drivers_probe"
    vfio.sysfs_write(probe, "x\n")
    assert probe.read_text() == "x\n"
    probe.unlink()
    probe.mkdir()
    host = vfio.Host(fake.root, tmp_path / "state")
    with pytest.raises(ToolError, match=r"echo 1 > /sys/bus/pci/drivers_probe: Is a directory"):
        host.apply([Write("/sys/bus/pci/drivers_probe", "1")])


# ── what is refused ──


def test_a_missing_card_a_bridge_or_a_card_without_a_group_is_refused(fake: FakeHost) -> None:
    fake.device("0000:05:00.0", VGA, None, "nouveau")
    said = refused(fake, "0000:09:00.0", PORT, "0000:05:00.0")
    assert "0000:09:00.0: this host has no such PCI device" in said
    assert f"{PORT} PCI bridge [0604] 8086:1901, driver pcieport: a bridge" in said
    assert "0000:05:00.0: it is in no IOMMU group" in said


def test_vfio_pci_must_be_there(fake: FakeHost) -> None:
    for name in ("bind", "unbind", ""):
        path = fake.sys / "bus/pci/drivers/vfio-pci" / name
        path.unlink() if name else path.rmdir()
    assert "modprobe vfio-pci" in refused(fake, GPU)


def test_the_display_that_the_host_started_on_is_refused(fake: FakeHost) -> None:
    (fake.place(GPU) / "boot_vga").write_text("1\n")
    assert f"{GPU} is the display" in refused(fake, SOUND)
    (fake.place(GPU) / "boot_vga").write_text("0\n")
    assert planned(fake, GPU)


def test_a_connected_display_is_refused(fake: FakeHost) -> None:
    for name, status in (("card1-DP-1", "disconnected"), ("card1-HDMI-A-1", "connected")):
        assert planned(fake, GPU)
        place = fake.place(GPU) / "drm/card1" / name
        fake.file(f"{place.relative_to(fake.root)}/status", f"{status}\n")
        fake.link(f"sys/class/drm/{name}", place)
    assert "has a display connected (card1-HDMI-A-1)" in refused(fake, GPU)


def test_a_text_console_on_the_cards_framebuffer_is_refused(fake: FakeHost) -> None:
    place = fake.place(GPU) / "graphics/fb0"
    place.mkdir(parents=True)
    fake.link("sys/class/graphics/fb0", place)
    fake.file("sys/class/vtconsole/vtcon0/name", "(S) dummy device\n")
    fake.file("sys/class/vtconsole/vtcon0/bind", "1\n")
    fake.file("sys/class/vtconsole/vtcon1/name", "(M) frame buffer device\n")
    bound = fake.file("sys/class/vtconsole/vtcon1/bind", "0\n")
    assert planned(fake, GPU)
    bound.write_text("1\n")
    assert "text console on it (fb0)" in refused(fake, GPU)


def nvme(fake: FakeHost, *, multipath: bool = False) -> None:
    """An NVMe disk with a partition in the card's group, as sysfs shows it."""
    controller = fake.device("0000:02:00.0", NVME, "1", "nvme") / "nvme/nvme0"
    disk = controller / "nvme0n1"
    if multipath:
        disk = fake.sys / "devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1"
        controller.mkdir(parents=True)
        disk.mkdir(parents=True)
        fake.link("sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0", controller)
        fake.link("sys/class/nvme-subsystem/nvme-subsys0", disk.parent)
    fake.file(f"{disk.relative_to(fake.root)}/nvme0n1p2/partition", "2\n")
    for name, place in (("nvme0n1", disk), ("nvme0n1p2", disk / "nvme0n1p2")):
        fake.link(f"sys/class/block/{name}", place)
        fake.file(f"dev/{name}")
    fake.link("sys/block/nvme0n1", disk)
    fake.link("sys/dev/block/259:2", disk / "nvme0n1p2")


def mount(fake: FakeHost, device: str, place: str, source: str) -> None:
    fake.file("proc/self/mountinfo", f"30 1 {device} / {place} rw,noatime shared:1 master:2 - ext4 {source} rw\n")


@pytest.mark.parametrize("multipath", [False, True])
def test_a_mounted_disk_in_the_group_is_refused(multipath: bool, fake: FakeHost) -> None:
    nvme(fake, multipath=multipath)
    mount(fake, "0:21", "/proc", "proc")
    assert planned(fake, GPU)
    mount(fake, "259:2", r"/mnt/my\040disk", "/dev/nvme0n1p2")
    said = refused(fake, GPU)
    assert "0000:02:00.0 has a disk in use behind it: /mnt/my disk is mounted" in said
    # The same for a service in another mount namespace than that of PID 1.
    (fake.root / "proc/1").mkdir()
    (fake.root / "proc/self/mountinfo").rename(fake.root / "proc/1/mountinfo")
    assert refused(fake, GPU) == said


def test_a_root_disk_below_device_mapper_is_refused(fake: FakeHost) -> None:
    """Root on LVM on LUKS: two layers, and the mount names neither the disk nor its partition."""
    nvme(fake)
    upper, lower = fake.sys / "devices/virtual/block/dm-1", fake.sys / "devices/virtual/block/dm-0"
    upper.mkdir(parents=True)
    fake.link("sys/devices/virtual/block/dm-1/slaves/dm-0", lower)
    fake.link(
        "sys/devices/virtual/block/dm-0/slaves/nvme0n1p2", fake.place("0000:02:00.0") / "nvme/nvme0/nvme0n1/nvme0n1p2"
    )
    fake.link("sys/dev/block/253:1", upper)
    mount(fake, "253:1", "/", "/dev/mapper/vg-root")
    assert "/ is mounted" in refused(fake, GPU)


def test_btrfs_and_swap_and_what_the_kernel_claims_are_uses(fake: FakeHost) -> None:
    nvme(fake)
    partition = fake.place("0000:02:00.0") / "nvme/nvme0/nvme0n1/nvme0n1p2"
    swaps = fake.file(
        "proc/swaps", "Filename Type Size Used Priority\n/swapfile file 1 0 -2\n/dev/zram0 partition 1 0 1\n"
    )
    assert planned(fake, GPU)
    swaps.write_text("Filename Type Size Used Priority\n/dev/nvme0n1p2 partition 1 0 -2\n")
    assert "swap on nvme0n1p2" in refused(fake, GPU)
    swaps.unlink()
    # btrfs has a device number of its own; its second disk is in no mount at all.
    link = fake.link("sys/fs/btrfs/1234/devices/nvme0n1p2", partition)
    assert "btrfs is mounted" in refused(fake, GPU)
    link.unlink()
    mount(fake, "0:40", "/srv", "/dev/nvme0n1p2")
    assert "/srv is mounted" in refused(fake, GPU)
    mount(fake, "0:40", "/srv", "rpool/srv")
    assert planned(fake, GPU)
    # ZFS shows nothing; but the kernel refuses exclusive use of the disk.
    found = facts(fake, GPU, busy=lambda node: node == fake.root / "dev/nvme0n1p2")
    with pytest.raises(UserError, match="nvme0n1p2 is claimed"):
        vfio.plan(found, [GPU])
    # md and bcache show holders.
    fake.link(f"{partition.relative_to(fake.root)}/holders/md0", fake.sys)
    assert "nvme0n1p2 is claimed" in refused(fake, GPU)


def test_a_disk_elsewhere_is_nobodys_business(fake: FakeHost) -> None:
    nvme(fake)
    fake.device("0000:03:00.0", THREE_D, "3", "nouveau")
    mount(fake, "259:2", "/", "/dev/nvme0n1p2")
    assert planned(fake, "0000:03:00.0")


def test_a_network_that_is_up_or_carries_the_default_route_is_refused(fake: FakeHost) -> None:
    place = fake.device("0000:02:00.0", ETHERNET, "1", "virtio-pci") / "virtio0/net/eth0"
    flags = fake.file(f"{place.relative_to(fake.root)}/flags", "0x1002\n")
    fake.link("sys/class/net/eth0", place)
    fake.file(
        "proc/net/route", "Iface Destination Gateway Flags RefCnt Use Metric Mask\neth0 0002000A 0 1 0 0 0 00FFFFFF\n"
    )
    assert planned(fake, GPU)
    flags.write_text("0x1003\n")
    assert "network interface that is up (eth0)" in refused(fake, GPU)
    flags.write_text("0x1002\n")
    fake.file(
        "proc/net/route", "Iface Destination Gateway Flags RefCnt Use Metric Mask\neth0 00000000 0 3 0 0 0 00000000\n"
    )
    assert "default route (eth0)" in refused(fake, GPU)
    fake.file("proc/net/route", "Iface\n")
    zero = "0" * 32
    fake.file("proc/net/ipv6_route", f"{zero} 00 {zero} 00 {'f' * 32} 00000400 00000001 00000000 00000003 eth0\n")
    assert "default route (eth0)" in refused(fake, GPU)


def test_a_device_file_that_is_open_is_a_use(fake: FakeHost, state: Path) -> None:
    place = fake.place(SOUND) / "sound/card1/controlC1"
    fake.file(f"{place.relative_to(fake.root)}/uevent", "MAJOR=116\nMINOR=2\nDEVNAME=snd/controlC1\n")
    fake.file("proc/4711/comm", "wireplumber\n")
    handle = fake.root / "proc/4711/fd/9"
    handle.parent.mkdir()
    handle.symlink_to("/dev/snd/controlC0")
    assert planned(fake, GPU)
    handle.unlink()
    handle.symlink_to("/dev/snd/controlC1")
    assert f"{SOUND} is open: /dev/snd/controlC1, by process 4711 (wireplumber)" in refused(fake, GPU)
    handle.unlink()
    # NVIDIA's own driver shows nothing in sysfs.
    handle.symlink_to("/dev/nvidia0")
    fake.file(f"proc/driver/nvidia/gpus/{GPU}/information", "Model: \t\t NVIDIA H100\nDevice Minor: \t 0\n")
    assert "/dev/nvidia0" in refused(fake, GPU)
    handle.unlink()
    # A guest has the group open: the way back would wait for its end, inside of the kernel.
    vfio.bind(fake.host(state), [GPU], act=True, say=nothing)
    handle.symlink_to("/dev/vfio/1")
    count = len(fake.writes)
    with pytest.raises(UserError, match=r"is open: /dev/vfio/1, by process 4711"):
        vfio.unbind(fake.host(state), [GPU], act=True, say=nothing)
    assert len(fake.writes) == count


def test_what_the_host_uses_again_is_not_taken_by_the_way_back(fake: FakeHost, state: Path) -> None:
    """The card went to another driver by hand, and shows the host's screen now."""
    vfio.bind(fake.host(state), [GPU], act=True, say=nothing)
    fake.driver("nvidia")
    (fake.place(GPU) / "driver").unlink()
    fake.link(str((fake.place(GPU) / "driver").relative_to(fake.root)), fake.sys / "bus/pci/drivers/nvidia")
    fake.file(f"{fake.place(GPU).relative_to(fake.root)}/drm/card1-DP-1/status", "connected\n")
    fake.link("sys/class/drm/card1-DP-1", fake.place(GPU) / "drm/card1-DP-1")
    with pytest.raises(UserError, match="display connected"):
        vfio.unbind(fake.host(state), [GPU], act=True, say=nothing)


def test_bridges_that_look_like_endpoints(fake: FakeHost) -> None:
    """AMD's dummy host bridge has no driver and stays; an ISA bridge with one keeps the group from being whole."""
    fake.device("0000:00:02.0", HOST_BRIDGE, "1", None)
    assert not any("00:02.0" in each for each in planned(fake, GPU))
    fake.device("0000:00:1f.0", ISA_BRIDGE, "1", "lpc_ich")
    assert "0000:00:1f.0 ISA bridge [0601] 10de:2330, driver lpc_ich: vfio-pci cannot take it" in refused(fake, GPU)


def test_a_bridge_is_known_by_its_class_where_its_header_cannot_be_read(fake: FakeHost) -> None:
    (fake.place(PORT) / "config").write_bytes(b"")
    assert facts(fake).devices[PORT].header == 1
    assert planned(fake, GPU)


def test_a_group_member_that_is_not_a_pci_device_is_refused(fake: FakeHost) -> None:
    (fake.sys / "devices/platform/smmu").mkdir(parents=True)
    fake.link("sys/kernel/iommu_groups/1/devices/smmu", fake.sys / "devices/platform/smmu")
    assert "smmu is in the group but is not a PCI device" in refused(fake, GPU)


def test_virtual_functions(fake: FakeHost, state: Path) -> None:
    """A virtual function is a card of its own; its physical function must stay."""
    physical = fake.device("0000:03:00.0", THREE_D, "3", "xe")
    virtual = fake.device("0000:03:00.1", THREE_D, "4", "xe")
    fake.link(f"{virtual.relative_to(fake.root)}/physfn", physical)
    (physical / "sriov_numvfs").write_text("1\n")
    assert "has 1 virtual functions" in refused(fake, "0000:03:00.0")
    vfio.bind(fake.host(state), ["03:00.1"], act=True, say=nothing)
    assert fake.state()["0000:03:00.1"] == ("vfio-pci", "vfio-pci")
    assert fake.state()["0000:03:00.0"] == ("xe", None)
    assert "virtual function of 0000:03:00.0" in str(facts(fake).devices["0000:03:00.1"])


def test_one_refusal_stops_every_card(fake: FakeHost, state: Path) -> None:
    fake.device("0000:02:00.0", VGA, "2", "nouveau")
    (fake.place(GPU) / "boot_vga").write_text("1\n")
    with pytest.raises(UserError):
        vfio.bind(fake.host(state), ["02:00.0", GPU], act=True, say=nothing)
    assert not fake.writes


# ── what is checked ──


def ready(fake: FakeHost) -> FakeHost:
    """A host that has all but the card's driver."""
    fake.file("sys/class/iommu/dmar0/intel-iommu/ecap", "f020df\n")
    fake.file("proc/interrupts", "      CPU0\n  2:  0  IR-IO-APIC  2-edge timer\n")
    for name in survey.MODULES:
        fake.file(f"sys/module/{name}/version", "0.3\n")
    fake.file("proc/self/limits", "Max locked memory         8589934592           8589934592           bytes\n")
    fake.file("proc/self/status", "CapEff:\t0000000000000000\n")
    fake.file("proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable:    8388608 kB\nHugePages_Total:       0\n")
    fake.file("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "4\n")
    fake.file("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "3\n")
    fake.file("dev/kvm")
    return fake


def wish(*cards: str, **fields: object) -> Wish:
    merged: dict[str, object] = {
        "memory": GIB, "most": GIB, "kvm": False, "qemu": "7.2", "ovmf": "2025.02", "proof": (True, "ran"), **fields
    }  # fmt: skip
    return Wish(cards, **merged)  # type: ignore[arg-type]


def row(fake: FakeHost, name: str, wanted: Wish | None = None) -> Row:
    wanted = wanted or wish(GPU)
    rows = checks.checks(facts(fake, *wanted.cards), wanted)
    return next(each for each in rows if each.name == name)


def test_a_host_that_is_ready(fake: FakeHost, state: Path) -> None:
    ready(fake)
    rows = checks.checks(facts(fake, GPU), wish(GPU))
    assert checks.missing(rows) == [f"driver of {GPU}"]
    vfio.bind(fake.host(state), [GPU], act=True, say=nothing)
    assert "there is no /dev/vfio/1" in row(fake, f"driver of {GPU}").found
    fake.file("dev/vfio/1")
    rows = checks.checks(facts(fake, GPU), wish(GPU))
    assert {each.state for each in rows} == {"ok"}, checks.table(rows)
    assert "3 of 4 free of 2 MiB" in checks.table(rows)


def test_nothing_is_known_of_an_empty_tree(tmp_path: Path) -> None:
    rows = checks.checks(survey.read(tmp_path), wish(qemu="", ovmf="", proof=None))
    assert {each.name for each in rows if each.state == "ok"} == set()
    assert checks.missing(rows) == ["card", "QEMU"]


def test_no_iommu(fake: FakeHost) -> None:
    ready(fake)
    fake.file("proc/cmdline", "quiet intel_iommu=off\n")
    for path in (fake.sys / "kernel/iommu_groups/1/devices").iterdir():
        path.unlink()
    (fake.sys / "kernel/iommu_groups/1/devices").rmdir()
    # What VFIO makes without an IOMMU counts for nothing.
    fake.file("sys/kernel/iommu_groups/1/name", "vfio-noiommu\n")
    found = row(fake, "IOMMU")
    assert (found.state, "intel_iommu=off" in found.found) == ("WRONG", True)
    assert row(fake, f"group of {GPU}").state == "WRONG"


@pytest.mark.parametrize(
    ("interrupts", "unsafe", "state", "text"),
    [
        ("0: 1 IR-IO-APIC 2-edge timer", "N", "ok", "IR-"),
        ("24: 1 0 IR-PCI-MSIX-0000:00:03.0 0-edge x", "N", "ok", "IR-"),
        ("0: 1 IO-APIC 2-edge timer\n24: 9 DMAR-MSI 0-edge dmar0", "N", "WRONG", "ecap bit 3"),
        ("24: 9 DMAR-MSI 0-edge dmar0", "N", "not known", "no chip"),
        ("0: 1 IO-APIC 2-edge timer", "Y", "ok", "allow_unsafe_interrupts"),
        ("NMI: 0 Non-maskable interrupts", "N", "not known", "no chip"),
    ],
)
def test_interrupt_remapping(interrupts: str, unsafe: str, state: str, text: str, fake: FakeHost) -> None:
    ready(fake)
    fake.file("proc/interrupts", f"      CPU0\n  {interrupts}\n")
    fake.file("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", f"{unsafe}\n")
    found = row(fake, "interrupt remapping")
    assert found.state == state
    assert text in found.found


def test_vfio_modules(fake: FakeHost) -> None:
    fake.file("sys/module/kernel/x")
    fake.file("proc/sys/kernel/osrelease", "6.12.94\n")
    assert row(fake, "VFIO").state == "WRONG"
    assert "vfio_pci not loaded," in row(fake, "VFIO").found
    fake.file(
        "lib/modules/6.12.94/modules.dep", "kernel/drivers/vfio/pci/vfio-pci.ko.xz: a\nkernel/drivers/vfio/vfio.ko:\n"
    )
    assert "vfio_pci not loaded, but on the disk" in row(fake, "VFIO").found
    assert "vfio_iommu_type1 not in this kernel" in row(fake, "VFIO").found
    names = ("vfio", "pci/vfio-pci", "vfio_iommu_type1")
    fake.file("lib/modules/6.12.94/modules.builtin", "".join(f"kernel/drivers/vfio/{each}.ko\n" for each in names))
    assert row(fake, "VFIO").state == "ok"
    # vfio-pci-core is another module.
    fake.file("lib/modules/6.12.94/modules.builtin", "kernel/drivers/vfio/pci/vfio-pci-core.ko\n")
    assert facts(fake).modules["vfio_pci"] == "on disk"


@pytest.mark.parametrize(
    ("limit", "capabilities", "state"),
    [
        ("8388608", "0", "WRONG"),
        (str(GIB), "0", "not known"),
        (str(2 * GIB), "0", "ok"),
        ("unlimited", "0", "ok"),
        ("8388608", "1ffffffffff", "ok"),
        ("8388608", "3fff", "WRONG"),
    ],
)
def test_locked_memory(limit: str, capabilities: str, state: str, fake: FakeHost) -> None:
    ready(fake)
    fake.file(
        "proc/self/limits",
        f"Limit   Soft Limit   Hard Limit   Units\nMax locked memory         {limit}  {limit}  bytes\n",
    )
    fake.file("proc/self/status", f"CapEff:\t{capabilities}\n")
    assert row(fake, "locked memory").state == state


def test_memory_that_can_be_plugged_in_is_locked_too(fake: FakeHost) -> None:
    ready(fake)
    assert row(fake, "locked memory", wish(GPU, most=16 * GIB)).state == "WRONG"
    assert row(fake, "free memory", wish(GPU, most=16 * GIB)).state == "ok"
    assert row(fake, "free memory", wish(GPU, memory=9 * GIB)).state == "WRONG"


def test_what_is_not_a_card(fake: FakeHost) -> None:
    ready(fake)
    fake.device("0000:04:00.0", 0x120000, "4", "amdgpu", ids="1002:74a1")
    assert row(fake, "card 0000:04:00.0", wish("0000:04:00.0")).state == "ok"
    assert "a bridge" in row(fake, f"card {PORT}", wish(PORT)).found
    # It may be an accelerator of another class; the rows of its group and driver are there.
    assert row(fake, f"card {SOUND}", wish(SOUND)).state == "not known"
    assert row(fake, f"group of {SOUND}", wish(SOUND)).state == "ok"
    assert row(fake, "card 0000:09:00.0", wish("0000:09:00.0")).state == "WRONG"
    unnamed = row(fake, "card", wish())
    assert unnamed.state == "not known"
    assert GPU in unnamed.found and SOUND not in unnamed.found


def test_the_group_says_who_goes_along_and_who_cannot(fake: FakeHost) -> None:
    ready(fake)
    found = row(fake, f"group of {GPU}")
    assert found.state == "ok"
    assert f"with it must go {SOUND} audio device" in found.found
    assert f"bridges stay: {PORT}" in found.found
    (fake.place(GPU) / "boot_vga").write_text("1\n")
    assert row(fake, f"group of {GPU}").state == "WRONG"


def test_kvm_is_believed_in_only_when_it_ran(fake: FakeHost, tmp_path: Path) -> None:
    ready(fake)
    assert row(fake, "KVM", wish(GPU, proof=None)).state == "not known"
    failed = row(fake, "KVM", wish(GPU, proof=(False, "emulation failure")))
    assert (failed.state, failed.needed) == ("WRONG", False)
    assert row(fake, "KVM", wish(GPU, proof=(False, "x"), kvm=True)).needed
    (fake.root / "dev/kvm").unlink()
    assert row(fake, "KVM").found == "no /dev/kvm"
    place = tmp_path / "kvm.json"
    key = json.dumps(["7.2", "6.1", {"sha256": "0", "size": 1}, {"sha256": "0", "size": 1}])
    place.write_text(json.dumps([key, True, "it ran"]))
    assert checks.proven([place], "7.2", "6.1") == (True, "it ran")
    assert checks.proven([place], "7.2", "6.2") is None
    assert checks.proven([place], "8.0", "6.1") is None
    place.write_text('["[", true, "x"]')
    assert checks.proven([place], "7.2", "6.1") is None
    assert checks.proven([tmp_path / "none"], "7.2", "6.1") is None


def test_a_launch_becomes_a_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulator, "version", lambda: "7.2")
    wish = checks.wish(Launch(memory="2G", max_memory="4G", accel="kvm"), ["01:00.0", GPU], [], "x", "6.1")
    assert (wish.cards, wish.memory, wish.most, wish.kvm) == ((GPU,), 2 * GIB, 4 * GIB, True)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("out/default-4.12/bundle.boot-test/kvm.json", []),
        ("out/kvm.json", []),
        ("elsewhere/kvm.json", ["--work", "{root}/elsewhere"]),
    ],
)
def test_host_check_finds_what_a_boot_test_recorded(
    name: str, options: list[str], fake: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """That of `minguest boot-test`, of `doit boot-test`, and of `minguest boot-test --work`."""
    ready(fake)
    at = workshop.build(tmp_path / "project")
    key = json.dumps(["7.2", facts(fake).release, "bytes of the kernel", "and of OVMF"])
    monkeypatch.setattr(emulator, "version", lambda: "7.2")
    real = survey.read
    monkeypatch.setattr(survey, "read", lambda cards=(): real(fake.root, cards))
    files.write(at.root / name, json.dumps([key, True, "it ran"]))
    (at.root / "link").symlink_to(at.bundle)
    for folder in (at.bundle, at.bundle / ".." / "bundle", at.root / "link"):
        cli.main(["host-check", str(folder), "--json", *(each.format(root=at.root) for each in options)])
        found = {each["name"]: each["found"] for each in json.loads(capsys.readouterr().out)["rows"]}
        assert found["KVM"] == "boot-test: it ran", folder


def test_the_last_boot_test_counts(tmp_path: Path) -> None:
    older, newer, other = (tmp_path / name for name in ("older", "newer", "other"))
    for number, (place, release) in enumerate([(older, "6.1"), (newer, "6.1"), (other, "5.10")]):
        place.write_text(json.dumps([json.dumps(["7.2", release]), True, place.name]))
        os.utime(place, (number, number))
    assert checks.proven([older, newer, other, tmp_path / "none"], "7.2", "6.1") == (True, "newer")


# ── the commands ──


def test_the_command_shows_and_does_not_write(fake: FakeHost, capsys: pytest.CaptureFixture[str], state: Path) -> None:
    options = ["--gpu", "01:00.0", "--root", str(fake.root), "--state", str(state)]
    before = fake.state()
    assert cli.main(["host-bind", *options]) == 0
    said = capsys.readouterr().out
    assert "\n".join(planned(fake, GPU)) in said
    assert fake.state() == before
    assert vfio.main(["bind", *options]) == 0
    assert capsys.readouterr().out == said
    assert cli.main(["host-unbind", *options]) == 1
    assert "not bound by host-bind" in capsys.readouterr().err
    assert not state.exists()


def test_host_check_names_what_is_wrong(
    fake: FakeHost, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ready(fake)
    monkeypatch.setattr(emulator, "version", lambda: "7.2")
    real = survey.read
    monkeypatch.setattr(survey, "read", lambda cards=(): real(fake.root, cards))
    assert cli.main(["host-check", "--gpu", GPU]) == 1
    assert f"yet: driver of {GPU}\n" in capsys.readouterr().err
    # None named: nothing that is needed is wrong.
    assert cli.main(["host-check", "--memory", "2G"]) == 0
    assert cli.main(["host-check", "--gpu", "gpu0"]) == 1
    assert "--gpu gpu0: not a PCI address" in capsys.readouterr().err
    assert cli.main(["host-check", "--memory", "foo"]) == 1
    assert capsys.readouterr().err.startswith("minguest: --memory = 'foo' is not a size")


@pytest.mark.parametrize("command", ["host-bind", "host-unbind"])
def test_what_an_address_looks_like_is_said(
    command: str, fake: FakeHost, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, "--gpu", "foo", "--root", str(fake.root), "--state", str(state)]) == 1
    assert capsys.readouterr().err == (
        "minguest: --gpu foo: not a PCI address\n  remedy: write it as lspci -D prints it, for example 0000:01:00.0\n"
    )


@pytest.mark.parametrize("yes", [[], ["--yes"]])
def test_where_nothing_is_bound_nothing_is_to_be_put_back(
    yes: list[str], fake: FakeHost, state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    argv = ["host-unbind", "--root", str(fake.root), "--state", str(state), *yes]
    assert cli.main(argv) == 0
    assert capsys.readouterr().out == "nothing to put back: host-bind has bound nothing since this boot\n"
    assert cli.main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["writes"] == []
    # A card that is named is another matter: it may have been bound by something else.
    assert cli.main([*argv, "--gpu", GPU]) == 1
    assert f"{GPU}: not bound by host-bind since this boot" in capsys.readouterr().err


def test_binding_needs_nothing_but_python(fake: FakeHost) -> None:
    found = subprocess.run(
        [sys.executable, "-S", "-m", "minguest.host.vfio", "bind", "--gpu", GPU, "--root", str(fake.root)],
        cwd=ROOT,
        env={"PATH": os.defpath},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert "dry run" in found.stdout


@each_way
def test_a_damaged_record_of_kvm_proves_nothing(damage: Damage, tmp_path: Path) -> None:
    place, other = tmp_path / "kvm.json", tmp_path / "other.json"
    for each in (place, other):
        each.write_text(json.dumps([json.dumps(["7.2", "6.1"]), True, each.name]))
    os.utime(other, (0, 0))
    assert checks.proven([place], "7.2", "6.1") == (True, "kvm.json")
    damage(place)
    assert checks.proven([place], "7.2", "6.1") is None
    assert checks.proven([place, other], "7.2", "6.1") == (True, "other.json")
