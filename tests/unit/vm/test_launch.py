# SPDX-License-Identifier: Apache-2.0
"""Launches become QEMU's argv; what QEMU could not start is refused before it starts."""

from pathlib import Path

import msgspec
import pytest

from minguest.model import Disk, Drivers, Launch, Node
from minguest.util.errors import UserError
from minguest.vm import arguments, bar_window, disks, emulator, launch
from minguest.vm.launch import Options, settle

SERIAL = "isa-serial,chardev=report,index=3"
# A 64-bit prefetchable BAR of 16 MiB: include/linux/ioport.h.
RESOURCE = "0x0000380042000000 0x0000380042ffffff 0x000000000014220c"
MODELS = ["bochs-display", "secondary-vga", "virtio-gpu-pci"]


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """A host with a free card on vfio-pci at 01:00.0 and one in use at 02:00.0."""
    for bdf, driver in (("0000:01:00.0", "vfio-pci"), ("0000:02:00.0", "nouveau")):
        device = tmp_path / "bus/pci/devices" / bdf
        device.mkdir(parents=True)
        (tmp_path / "drivers" / driver).mkdir(parents=True)
        (device / "driver").symlink_to(tmp_path / "drivers" / driver)
        for name, value in (("vendor", "0x10de"), ("device", "0x2330"), ("class", "0x030200"), ("resource", RESOURCE)):
            (device / name).write_text(f"{value}\n")
    (tmp_path / "bus/pci/devices/0000:03:00.0").mkdir()
    bridge = tmp_path / "bus/pci/devices/0000:00:01.0"
    bridge.mkdir()
    (bridge / "class").write_text("0x060400\n")
    return tmp_path


def argv(spec: launch.Spec) -> list[str]:
    return arguments.argv(spec, code="c", variables="v", kernel="k", initrd="i")


def value(command: list[str], option: str) -> list[str]:
    return [command[at + 1] for at, each in enumerate(command) if each == option]


def test_options_win_over_the_launch(sysfs: Path) -> None:
    options = Options(cpus="8", memory="2G", gpu="virtio-gpu-pci", machine="pc", accel="tcg", timeout="9")
    spec = settle(Launch(), options, 64, MODELS, sysfs)
    assert (spec.cpus, spec.max_cpus, spec.memory, spec.machine, spec.timeout) == (8, 64, 2 << 30, "pc", 9)
    command = argv(spec)
    assert value(command, "-smp") == ["8,maxcpus=64"]
    assert value(command, "-m") == ["2048M"]
    assert value(command, "-machine") == ["pc,accel=tcg"]
    assert value(command, "-device") == [SERIAL, "virtio-gpu-pci,id=gpu0"]


def test_a_console_is_full_or_quiet(sysfs: Path) -> None:
    def console(wanted: str, options: Options) -> str:
        return launch.settle(Launch(console=wanted), options, 64, MODELS, sysfs).console  # type: ignore[arg-type]

    assert console("quiet", Options()) == console("full", Options(console="quiet")) == "quiet"
    assert console("quiet", Options(console="full")) == launch.settle(Launch(), Options(), 64, MODELS, sysfs).console
    with pytest.raises(UserError, match="--console loud: not known"):
        console("full", Options(console="loud"))


def test_the_launch_stays_without_options(sysfs: Path) -> None:
    spec = settle(Launch(cmdline=("a=b",)), Options(), 64, MODELS, sysfs)
    assert (spec.cpus, spec.max_cpus, spec.machine) == (4, 64, "q35")
    (append,) = value(argv(msgspec.structs.replace(spec, accel="tcg")), "-append")
    assert append == (
        "no_timer_check lapic_timer_khz=1000000 console=ttyS0 panic=-1 initd.report=/dev/ttyS3 initd.then=poweroff a=b"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(cpus="0"), r"--cpus = 0: a guest has at least one CPU"),
        (Options(cpus="-2"), r"--cpus = -2"),
        (Options(cpus="four"), r"--cpus = 'four' is not a whole number"),
        (Options(cpus="65"), r"--cpus 65: .* at most 64 CPUs \(CONFIG_NR_CPUS\)"),
        (Options(memory="lots"), r"--memory = 'lots' is not a size"),
        (Options(machine="q36"), r"(?s)--machine q36: not known.*one of q35, pc"),
        (Options(accel="hvf"), r"(?s)--accel hvf: not known.*auto, kvm, tcg"),
        (Options(timeout="0"), r"--timeout 0: must be a positive"),
        (Options(gpu="secondary-vgaa"), r"(?s)no PCI display device of that name.*did you mean secondary-vga"),
        (Options(gpu="isa-vga:3"), r"(?s)not a PCI address.*0000:01:00\.0"),
        (Options(gpu="0000:09:00.0"), r"--gpu 0000:09:00.0: this host has no such PCI device"),
        (Options(gpu="02:00.0"), r"(?s)0000:02:00.0: is bound to nouveau.*host-bind --gpu 0000:02:00.0"),
        (Options(gpu="00:01.0"), r"--gpu 0000:00:01.0: is a bridge \(class 060400\)"),
        (Options(gpu="0000:03:00.0"), r"is bound to no driver"),
    ],
)
def test_wrong_options_are_refused(sysfs: Path, options: Options, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settle(Launch(), options, 64, MODELS, sysfs)


def test_a_real_card_sits_behind_a_root_port_on_q35(sysfs: Path) -> None:
    spec = settle(Launch(), Options(gpu="01:00.0,secondary-vga"), 64, MODELS, sysfs)
    assert value(argv(spec), "-device") == [
        SERIAL,
        "pcie-root-port,id=port0,bus=pcie.0,chassis=1,slot=1",
        "vfio-pci,host=0000:01:00.0,id=gpu0,bus=port0",
        "secondary-vga,id=gpu1",
    ]
    spec = settle(Launch(), Options(gpu="01:00.0", machine="pc"), 64, MODELS, sysfs)
    assert value(argv(spec), "-device") == [SERIAL, "vfio-pci,host=0000:01:00.0,id=gpu0"]


def test_no_gpu_when_requested(sysfs: Path) -> None:
    assert settle(Launch(), Options(gpu="none"), 64, MODELS, sysfs).gpus == ()


def test_this_qemu_knows_its_display_models() -> None:
    models = emulator.display_models()
    assert {"secondary-vga", "bochs-display"} <= set(models)
    assert "e1000" not in models


def test_a_comma_in_a_path_is_doubled() -> None:
    assert disks.comma("/a,b/c") == "/a,,b/c"


def test_nodes_become_memory_backends_and_distances(sysfs: Path) -> None:
    numa = (Node("512M", "0-1"), Node("512M", "3,6-7", (21, 10)))
    spec = settle(Launch(numa=numa, max_cpus=8), Options(accel="tcg"), 64, MODELS, sysfs)
    assert [node.cpus for node in spec.numa] == [(0, 1, 2, 4, 5), (3, 6, 7)]
    command = argv(spec)
    assert value(command, "-object") == [
        "memory-backend-ram,id=node0-memory,size=512M", "memory-backend-ram,id=node1-memory,size=512M",
    ]  # fmt: skip
    assert value(command, "-numa") == [
        "node,nodeid=0,memdev=node0-memory,cpus=0-2,cpus=4-5", "node,nodeid=1,memdev=node1-memory,cpus=3,cpus=6-7",
        "dist,src=0,dst=1,val=20", "dist,src=1,dst=0,val=21",
    ]  # fmt: skip
    assert not value(argv(settle(Launch(), Options(accel="tcg"), 64, MODELS, sysfs)), "-numa")


@pytest.mark.parametrize(
    ("numa", "message"),
    [
        ((Node("512M"),), "the nodes have 512 MiB, the launch has 1 GiB"),
        ((Node("512M", "0-1"), Node("512M", "1-2")), "CPU 1 is in two nodes"),
        ((Node("512M", "0-1"), Node("512M", "64")), "CPU 64 is .* not one of the 64"),
        ((Node("512M", "0-x"), Node("512M")), "is not a list of CPUs"),
        ((Node("512M", "", (10,)), Node("512M")), "give one for each node"),
        ((Node("512M", "", (11, 20)), Node("512M")), "10 to itself"),
        ((Node("512M", "", (10, 255)), Node("512M")), "10 to 254 to others"),
        ((Node("much"), Node("512M")), r"launch.numa\[0\].memory = 'much' is not a size"),
    ],
)
def test_nodes_that_do_not_add_up_are_refused(sysfs: Path, numa: tuple[Node, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settle(Launch(numa=numa), Options(), 64, MODELS, sysfs)


def test_what_is_plugged_in_gets_room_and_initd_waits_for_it(sysfs: Path) -> None:
    options = Options(plug_cpus="8", plug_memory="3G", accel="tcg")
    spec = settle(Launch(), options, 64, MODELS, sysfs)
    assert (spec.plug_cpus, spec.plug_memory, spec.max_memory) == (8, 3 << 30, 3 << 30)
    command = argv(spec)
    assert value(command, "-m") == ["1024M,slots=4,maxmem=3072M"]
    (append,) = value(command, "-append")
    assert "initd.wait-cpus=8 initd.wait-memory=3221225472 initd.wait-seconds=" in append and "lpj=" in append
    room = argv(settle(Launch(max_memory="8G", slots=2), Options(accel="tcg"), 64, MODELS, sysfs))
    assert value(room, "-m") == ["1024M,slots=2,maxmem=8192M"]
    assert "initd.wait" not in " ".join(room)


def test_a_guest_whose_power_button_is_pressed_waits_for_it(sysfs: Path) -> None:
    (append,) = value(argv(settle(Launch(), Options(accel="tcg", power_button=True), 64, MODELS, sysfs)), "-append")
    assert "initd.then=wait" in append and "poweroff" not in append


@pytest.mark.parametrize("slots", [1, 256])
def test_a_machine_has_as_many_slots_as_qemu_allows(slots: int, sysfs: Path) -> None:
    assert settle(Launch(max_memory="4G", slots=slots), Options(), 64, MODELS, sysfs).slots == slots


def test_how_many_cpus_there_are_in_the_end(sysfs: Path) -> None:
    for options, last in (
        (Options(), 4), (Options(plug_cpus="8"), 8), (Options(cpus="2", plug_cpus="8", unplug_cpus="4"), 4),
    ):  # fmt: skip
        assert settle(Launch(), options, 64, MODELS, sysfs).last_cpus == last
    # Up to what the kernel and the launch allow, and down to the CPUs of the start.
    assert settle(Launch(), Options(plug_cpus="64"), 64, MODELS, sysfs).last_cpus == 64
    assert settle(Launch(), Options(plug_cpus="8", unplug_cpus="4"), 64, MODELS, sysfs).last_cpus == 4
    (append,) = value(argv(settle(Launch(), Options(plug_cpus="8", unplug_cpus="4"), 64, MODELS, sysfs)), "-append")
    assert append.endswith(" initd.wait-cpus=8 initd.wait-cpus-left=4 initd.wait-seconds=20")
    plain = settle(Launch(), Options(), 64, MODELS, sysfs)
    assert (plain.slots, plain.max_memory, plain.plug_cpus, plain.unplug_cpus, plain.plug_memory) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("launched", "options", "message"),
    [
        (Launch(), Options(plug_cpus="4"), "starts with 4 CPUs and can have 64"),
        (Launch(), Options(plug_cpus="65"), "starts with 4 CPUs and can have 64"),
        (Launch(), Options(plug_cpus="many"), "is not a whole number"),
        (
            Launch(),
            Options(unplug_cpus="2"),
            "--unplug-cpus 2: only CPUs that were plugged in .* of 4, at least 4 are left",
        ),
        (Launch(), Options(plug_cpus="8", unplug_cpus="3"), "of 8, at least 4 are left"),
        (Launch(), Options(plug_cpus="8", unplug_cpus="8"), "of 8, at least 4 are left"),
        (Launch(), Options(plug_memory="1G"), "nothing is left to plug in"),
        (Launch(max_memory="512M"), Options(), "memory 1 GiB, at most 512 MiB: nothing can be plugged in"),
        (Launch(), Options(plug_memory="1100M"), "76 MiB is not a multiple of 128 MiB"),
        (
            Launch(memory="4G", max_memory="8G"),
            Options(plug_memory="2G"),
            "--plug-memory 2G: the guest starts with 4 GiB",
        ),
        (
            Launch(memory="4G", max_memory="8G"),
            Options(plug_memory="4G"),
            "--plug-memory 4G: the guest starts with 4 GiB",
        ),
        (Launch(memory="4G"), Options(plug_memory="2G"), "--plug-memory 2G: the guest starts with 4 GiB"),
        (Launch(max_memory="4G", slots=0), Options(), "launch.slots = 0: memory is plugged in as DIMMs"),
        (Launch(slots=-1), Options(plug_memory="2G"), "launch.slots = -1"),
        (Launch(max_memory="4G", slots=257), Options(), "launch.slots = 257: .* 1 to 256"),
    ],
)
def test_what_cannot_be_plugged_in_is_refused(sysfs: Path, launched: Launch, options: Options, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settle(launched, options, 64, MODELS, sysfs)


def test_a_card_that_is_one_large_bar(sysfs: Path) -> None:
    spec = settle(Launch(), Options(gpu="bar:64G", accel="tcg"), 64, MODELS, sysfs)
    assert str(spec.gpus[0]) == "BAR 64 GiB"
    assert value(argv(spec), "-device")[1:] == [
        "pcie-root-port,id=port0,bus=pcie.0,chassis=1,slot=1", "pci-testdev,membar=65536M,id=gpu0,bus=port0",
    ]  # fmt: skip
    on_pc = settle(Launch(machine="pc"), Options(gpu="bar:16M", accel="tcg"), 64, MODELS, sysfs)
    assert value(argv(on_pc), "-device")[1:] == ["pci-testdev,membar=16M,id=gpu0"]
    for name, why in (("bar:3G", "a power of two"), ("bar:", "is not a size"), ("bar:much", "is not a size")):
        with pytest.raises(UserError, match=why):
            settle(Launch(), Options(gpu=name), 64, MODELS, sysfs)


def test_a_launch_that_is_only_planned_needs_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulator, "display_models", lambda: MODELS)
    spec = launch.planned(Launch(gpus=("secondary-vga", "0000:41:00.0")))
    assert [str(gpu) for gpu in spec.gpus] == ["secondary-vga", "vfio-pci 0000:41:00.0"]
    with pytest.raises(UserError, match="did you mean secondary-vga"):
        launch.planned(Launch(gpus=("secondary-vgaa",)))


def test_a_launch_that_is_not_started_here_needs_nothing_of_here(sysfs: Path, key: Path) -> None:
    disks = (Disk(file="/nowhere/disk"), Disk(rbd="a/b", key_file="/nowhere/key"))
    wanted = Launch(disks=disks, gpus=("02:00.0", "0000:99:00.0", "bar:16M", "secondary-vga"))
    specs = launch.shipped(wanted, "4.12", sysfs, "")
    for accel, spec in specs.items():
        assert (spec.accel, spec.disks, spec.series_options) == (accel, disks, ("nokaslr",))
        assert [gpu.host for gpu in spec.gpus[:2]] == ["0000:02:00.0", "0000:99:00.0"]
        assert (spec.gpus[2].bar, spec.gpus[3].model) == (16 << 20, "secondary-vga")
        assert launch.absent(spec, sysfs) == ["0000:99:00.0"]
    with pytest.raises(UserError, match="the launch has 1 GiB"):
        launch.shipped(Launch(numa=(Node("512M"),)), "4.12", sysfs, "")


def test_what_is_shipped_is_planned_for_each_accelerator(sysfs: Path) -> None:
    wide = launch.shipped(Launch(gpus=("bar:128G",) * 8), "6.12", sysfs, "")
    assert (wide["tcg"].cpu, wide["kvm"].cpu) == ("max,phys-bits=43", "max")
    # With an emulated card the host's CPU counts as one of 40 bits that OVMF does not trust, whatever builds it.
    both = [launch.shipped(Launch(gpus=("bar:64G",)), "6.12", sysfs, info) for info in ("", "vendor_id : AuthenticAMD")]
    assert both[0] == both[1]
    assert (both[0]["tcg"].window, both[0]["kvm"].window) == (0, 65 << 10)


def test_4_12_is_kept_from_unpacking_itself_over_the_memory_map(sysfs: Path) -> None:
    for line, there in (("4.12", True), ("6.12", False), ("", False)):
        spec = settle(Launch(cmdline=("a=b",)), Options(accel="tcg"), 64, MODELS, sysfs, line)
        (append,) = value(argv(spec), "-append")
        assert append.endswith(" nokaslr a=b" if there else "initd.then=poweroff a=b")


def test_time_and_cpu_are_the_accelerators(sysfs: Path) -> None:
    kvm = argv(settle(Launch(clock="vm"), Options(accel="kvm"), 64, MODELS, sysfs))
    assert value(kvm, "-cpu") == ["host,kvm=off"]
    assert value(kvm, "-rtc") == ["base=utc,clock=vm,driftfix=slew"]
    assert value(kvm, "-global") == ["kvm-pit.lost_tick_policy=delay"]
    tcg = argv(settle(Launch(), Options(accel="tcg"), 64, MODELS, sysfs))
    assert (value(tcg, "-cpu"), value(tcg, "-rtc")) == (["max,-monitor"], ["base=utc,clock=host,driftfix=slew"])
    # What the user says of it wins, and other models are as they are.
    for own in ("max,+monitor", "qemu64"):
        spec = settle(Launch(cpu=own), Options(accel="tcg"), 64, MODELS, sysfs)
        assert value(argv(spec), "-cpu") == [own]
    assert not value(tcg, "-global")
    named = argv(settle(Launch(cpu="EPYC,+x2apic", hide_kvm=False), Options(accel="kvm"), 64, MODELS, sysfs))
    assert value(named, "-cpu") == ["EPYC,+x2apic"]
    wide = argv(settle(Launch(cpu="max,phys-bits=46"), Options(accel="kvm"), 64, MODELS, sysfs))
    assert value(wide, "-cpu") == ["host,phys-bits=46,kvm=off"]


def test_memory_of_large_pages_and_locked(sysfs: Path) -> None:
    one = argv(settle(Launch(hugepages="2M", lock_memory=True), Options(accel="kvm"), 64, MODELS, sysfs))
    assert value(one, "-machine") == ["q35,accel=kvm,memory-backend=memory"]
    huge = "memory-backend-memfd,hugetlb=on,hugetlbsize=2M,prealloc=on"
    assert value(one, "-object") == [f"{huge},id=memory,size=1024M"]
    assert value(one, "-overcommit") == ["mem-lock=on"]
    numa = (Node("512M"), Node("512M"))
    two = argv(settle(Launch(hugepages="1G", numa=numa), Options(accel="kvm"), 64, MODELS, sysfs))
    assert value(two, "-machine") == ["q35,accel=kvm"]
    assert value(two, "-object") == [
        f"{huge.replace('2M', '1G')},id=node{n}-memory,size=512M" for n in (0, 1)
    ]  # fmt: skip
    plain = argv(settle(Launch(), Options(accel="kvm"), 64, MODELS, sysfs))
    assert not value(plain, "-object") and not value(plain, "-overcommit")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("AQBSdFhcGijgFRAAuTtQQMqzU4xNPQEBVKxzPA==\n")
    path.chmod(0o600)
    return path


def test_disks_of_files_and_of_ceph(sysfs: Path, tmp_path: Path, key: Path) -> None:
    file = tmp_path / "a,b.raw"
    file.write_bytes(b"")
    disks = (
        Disk(file=str(file), serial="root"),
        Disk(rbd="pool/image", user="guest", conf="/etc/ceph/ceph.conf", key_file=str(key), read_only=True),
        Disk(rbd="pool/space/image"),
    )
    command = argv(settle(Launch(disks=disks), Options(accel="tcg"), 64, MODELS, sysfs))
    assert value(command, "-blockdev") == [
        f"driver=raw,node-name=disk0,file.driver=file,file.filename={tmp_path}/a,,b.raw",
        "driver=rbd,node-name=disk1,pool=pool,image=image,read-only=on,user=guest,conf=/etc/ceph/ceph.conf,"
        "key-secret=disk1-key",
        "driver=rbd,node-name=disk2,pool=pool,image=image,namespace=space",
    ]
    assert value(command, "-object") == [f"secret,id=disk1-key,format=base64,file={key}"]
    assert "virtio-blk-pci,drive=disk0,id=disk0-device,serial=root" in value(command, "-device")
    # Everyone can read a command line.
    assert key.read_text().strip() not in " ".join(command)


def test_a_ceph_disk_names_its_monitors(sysfs: Path) -> None:
    # As librbd 16 accepts them from QEMU 7.2: the port is required, an IPv6 address has no brackets.
    monitors = ("10.0.0.1", "mon-2.example:3300", "[2001:db8::1]:6790", "[2001:db8::2]")
    command = argv(settle(Launch(disks=(Disk(rbd="a/b", monitors=monitors),)), Options(accel="tcg"), 64, MODELS, sysfs))
    assert value(command, "-blockdev") == [
        "driver=rbd,node-name=disk0,pool=a,image=b,"
        "server.0.host=10.0.0.1,server.0.port=6789,server.1.host=mon-2.example,server.1.port=3300,"
        "server.2.host=2001:db8::1,server.2.port=6790,server.3.host=2001:db8::2,server.3.port=6789"
    ]


@pytest.mark.parametrize(
    "text", ["", ":6789", "a:0", "a:65536", "a:b", "2001:db8::1", "[x]:1", "a,b", "a b", "[::1]6789", "a:1:2", "v2:a:1",
             "a/b", "[::1", "-a"]
)  # fmt: skip
def test_a_wrong_monitor_is_refused(sysfs: Path, text: str) -> None:
    wanted = Launch(disks=(Disk(rbd="a/b", monitors=("ok", text)),))
    with pytest.raises(UserError, match=r"launch.disks\[0\].monitors\[1\] = .*\n.*\[2001:db8::1\]:6789"):
        settle(wanted, Options(), 64, MODELS, sysfs)


@pytest.mark.parametrize(
    ("disk", "message"),
    [
        (Disk(file=__file__, monitors=("a",)), "are for rbd"),
        (Disk(), "give one of file = and rbd ="),
        (Disk(file="/dev/null", rbd="a/b"), "give one of file = and rbd ="),
        (Disk(file="/nowhere/disk"), "no such file or block device"),
        (Disk(file=__file__, user="me"), "are for rbd"),
        (Disk(rbd="image"), r"(?:.|\n)*POOL/IMAGE"),
        (Disk(rbd="a/b", format="qcow2"), "an RBD image is raw"),
        (Disk(rbd="a/b", key_file="/nowhere/key"), "cannot be read"),
    ],
)
def test_a_wrong_disk_is_refused(sysfs: Path, disk: Disk, message: str) -> None:
    with pytest.raises(UserError, match=rf"launch.disks\[0\].*{message}"):
        settle(Launch(disks=(disk,)), Options(), 64, MODELS, sysfs)


def test_a_key_that_others_can_read_is_refused(sysfs: Path, key: Path) -> None:
    launched = Launch(disks=(Disk(rbd="a/b", key_file=str(key)),))
    for mode in (0o640, 0o604, 0o622):
        key.chmod(mode)
        with pytest.raises(UserError, match="others can read it"):
            settle(launched, Options(), 64, MODELS, sysfs)
    key.chmod(0o600)
    key.write_text("[client.guest]\n\tkey = AQBSdFhcGijgFRAAuTtQQMqzU4xNPQEBVKxzPA==\n")
    with pytest.raises(UserError, match="is not a plain key"):
        settle(launched, Options(), 64, MODELS, sysfs)


def test_a_virtual_function_is_a_card_of_its_own(sysfs: Path) -> None:
    devices = sysfs / "bus/pci/devices"
    virtual = devices / "0000:01:00.4"
    virtual.mkdir()
    (virtual / "driver").symlink_to(sysfs / "drivers/vfio-pci")
    (virtual / "physfn").symlink_to(devices / "0000:01:00.0")
    for name in ("vendor", "device", "class", "resource"):
        (virtual / name).write_text((devices / "0000:01:00.0" / name).read_text())
    for name in ("01:00.4", "01:00.0"):
        (gpu,) = settle(Launch(), Options(gpu=name), 64, MODELS, sysfs).gpus
        assert gpu.functions == ()


def test_a_card_is_near_its_node(sysfs: Path) -> None:
    numa = (Node("512M", "0-1", gpus=(1,)), Node("512M", "2-3", gpus=(0, 2)))
    gpus = ("01:00.0", "secondary-vga", "bar:16M", "bochs-display")
    spec = settle(Launch(numa=numa, gpus=gpus), Options(accel="tcg"), 64, MODELS, sysfs)
    assert [gpu.node for gpu in spec.gpus] == [1, 0, 1, None]
    assert value(argv(spec), "-device")[1:] == [
        "bochs-display,id=gpu3",
        "pxb-pcie,id=node0-bus,bus=pcie.0,bus_nr=85,numa_node=0",
        "pcie-root-port,id=port1,bus=node0-bus,chassis=2,slot=2",
        "secondary-vga,id=gpu1,bus=port1",
        "pxb-pcie,id=node1-bus,bus=pcie.0,bus_nr=170,numa_node=1",
        "pcie-root-port,id=port0,bus=node1-bus,chassis=1,slot=1",
        "vfio-pci,host=0000:01:00.0,id=gpu0,bus=port0",
        "pcie-root-port,id=port2,bus=node1-bus,chassis=3,slot=3",
        "pci-testdev,membar=16M,id=gpu2,bus=port2",
    ]


@pytest.mark.parametrize(
    ("gpus", "machine", "message"),
    [
        ((1,), "q35", r"GPU 1 is in two nodes, or is not one of the 1"),
        ((-1,), "q35", r"GPU -1"),
        ((0, 0), "q35", r"GPU 0 is in two nodes"),
        ((0,), "pc", r"machine pc has no bus near a node"),
    ],
)
def test_a_card_near_a_wrong_node_is_refused(sysfs: Path, gpus: tuple[int, ...], machine: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settle(Launch(numa=(Node("1G", gpus=gpus),)), Options(machine=machine), 64, MODELS, sysfs)


def test_a_card_has_what_the_hosts_sysfs_says(sysfs: Path) -> None:
    (gpu,) = settle(Launch(), Options(gpu="01:00.0"), 64, MODELS, sysfs).gpus
    assert gpu.card is not None
    assert (gpu.card.vendor, gpu.card.device, gpu.card.pci_class) == ("10de", "2330", "030200")
    assert [(bar.index, bar.size) for bar in gpu.card.bars] == [(0, 16 << 20)]


def test_a_cards_functions_stay_together(sysfs: Path) -> None:
    audio = sysfs / "bus/pci/devices/0000:01:00.1"
    audio.mkdir()
    (audio / "resource").write_text("")
    for name in ("vendor", "device", "class"):
        (audio / name).write_text("0x0403\n")
    with pytest.raises(UserError, match=r"0000:01:00.1: is bound to no driver"):
        settle(Launch(), Options(gpu="01:00.0"), 64, MODELS, sysfs)
    (audio / "driver").symlink_to(sysfs / "drivers/vfio-pci")
    with pytest.raises(UserError, match=r"(?s)0000:01:00.0 is named twice.*name the first one"):
        settle(Launch(), Options(gpu="01:00.0,0000:01:00.0"), 64, MODELS, sysfs)
    q35 = argv(settle(Launch(), Options(gpu="01:00.0", accel="kvm"), 64, MODELS, sysfs))
    assert value(q35, "-device")[1:] == [
        "pcie-root-port,id=port0,bus=pcie.0,chassis=1,slot=1",
        "vfio-pci,host=0000:01:00.0,id=gpu0,bus=port0,addr=0.0,multifunction=on",
        "vfio-pci,host=0000:01:00.1,id=gpu0-1,bus=port0,addr=0.1",
    ]
    pc = argv(settle(Launch(machine="pc"), Options(gpu="01:00.0", accel="kvm"), 64, MODELS, sysfs))
    assert value(pc, "-device")[1:] == [
        "vfio-pci,host=0000:01:00.0,id=gpu0,addr=1f.0,multifunction=on",
        "vfio-pci,host=0000:01:00.1,id=gpu0-1,addr=1f.1",
    ]


def roomy(sysfs: Path, cpuinfo: str = "", **launched: object) -> tuple[launch.Spec, bar_window.Plan | None]:
    spec = settle(Launch(**launched), Options(accel="tcg"), 64, MODELS, sysfs)  # type: ignore[arg-type]
    return launch.with_room(spec, sysfs, cpuinfo)


def test_x_pcimmio64mb_is_set_only_where_ovmfs_own_window_is_too_small(sysfs: Path) -> None:
    # TCG's `max` has 40 bits, and OVMF opens an eighth of them: 128 GiB. QEMU 7.2 and OVMF 2025.02 boot each of these.
    small, made = roomy(sysfs, gpus=("bar:64G",))
    assert (small.window, small.cpu, made is not None and made.fits) == (0, "max", True)
    large, _ = roomy(sysfs, gpus=("bar:256G",))
    assert large.window >= 256 << 10 and large.cpu == "max"
    assert value(argv(large), "-fw_cfg") == [f"name=opt/ovmf/X-PciMmio64Mb,string={large.window}"]
    assert not value(argv(small), "-fw_cfg")


def test_an_emulated_cpu_is_widened_where_no_window_would_do(sysfs: Path) -> None:
    wide, made = roomy(sysfs, gpus=("bar:128G",) * 8)
    assert made is not None and made.fits
    assert (wide.cpu, wide.window) == ("max,phys-bits=43", 0)  # an eighth of 8 TiB
    # What the launch itself sets stays.
    narrow, made = roomy(sysfs, gpus=("bar:128G",) * 8, cpu="max,phys-bits=36")
    assert made is not None and not made.fits
    assert (narrow.cpu, narrow.window) == ("max,phys-bits=36", 0)
    forced, _ = roomy(sysfs, gpus=("bar:256G",), window="1G")
    assert (forced.cpu, forced.window) == ("max", 1024)


def test_under_kvm_the_hosts_width_stays(sysfs: Path) -> None:
    spec = settle(Launch(gpus=("bar:256G",) * 4), Options(accel="kvm"), 64, MODELS, sysfs)
    info = "vendor_id : GenuineIntel\naddress sizes : 39 bits physical, 48 bits virtual\n"
    narrow, made = launch.with_room(spec, sysfs, info)
    assert (narrow.cpu, narrow.window) == ("max", 0) and made is not None and not made.fits
    assert "does NOT fit" in launch.window_line(narrow, made)
    wide, made = launch.with_room(spec, sysfs, info.replace("39", "46"))
    assert made is not None and made.fits and "OVMF opens enough by itself" in launch.window_line(wide, made)


def test_a_named_model_has_the_hosts_vendor_under_kvm(sysfs: Path) -> None:
    # host_cpu_instance_init in QEMU's target/i386/host-cpu.c. 40 bits of an Intel OVMF does not trust: 32 GiB, too few.
    info = "vendor_id : GenuineIntel\naddress sizes : 46 bits physical, 48 bits virtual\n"
    wanted = Launch(gpus=("bar:64G",), cpu="EPYC")
    kvm, made = launch.with_room(settle(wanted, Options(accel="kvm"), 64, MODELS, sysfs), sysfs, info)
    assert made is not None and (kvm.window, made.vendor, made.given_bits) == (66560, "GenuineIntel", 40)
    assert "X-PciMmio64Mb makes OVMF open 65 GiB (-cpu EPYC,kvm=off)" in launch.window_line(kvm, made)
    tcg, made = launch.with_room(settle(wanted, Options(accel="tcg"), 64, MODELS, sysfs), sysfs, info)
    assert made is not None and (tcg.window, made.vendor) == (0, "AuthenticAMD")
    # Built for unknown hosts: set in any case, which works on an AMD too.
    assert launch.shipped(wanted, "6.12", sysfs, "")["kvm"].window == 66560


def test_where_there_is_nothing_to_plan_nothing_is_changed(sysfs: Path) -> None:
    for launched in (Launch(), Launch(machine="pc", gpus=("bar:16M",))):
        spec = settle(launched, Options(accel="tcg"), 64, MODELS, sysfs)
        assert launch.with_room(spec, sysfs, "") == (spec, None)


def test_a_disk_of_drivers_comes_after_the_guests_own(sysfs: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.img"
    own.write_bytes(b"")
    wanted = Launch(disks=(Disk(file=str(own)),), drivers=Drivers(("any",), load=("a-card", "more")), accel="tcg")
    command = argv(settle(wanted, Options(), 64, MODELS, sysfs))
    assert value(command, "-blockdev")[1] == (
        "driver=raw,node-name=disk1,file.driver=file,file.filename=bundle/drivers.img,read-only=on"
    )
    assert "virtio-blk-pci,drive=disk1,id=disk1-device,serial=drivers" in value(command, "-device")
    (append,) = value(command, "-append")
    assert append.endswith(" initd.drivers=SERIAL=drivers initd.modules=a-card,more")
    without = " ".join(argv(settle(msgspec.structs.replace(wanted, drivers=None), Options(), 64, MODELS, sysfs)))
    assert "drivers.img" not in without and "initd.drivers" not in without and "disk1" not in without
