# SPDX-License-Identifier: Apache-2.0
"""Launches become QEMU's argv; what cannot be is refused before QEMU starts."""

from pathlib import Path

import msgspec
import pytest

from minguest import launch
from minguest.errors import UserError
from minguest.launch import Words, settle
from minguest.model import Launch, Node

SERIAL = "isa-serial,chardev=report,index=3"
MODELS = ["bochs-display", "secondary-vga", "virtio-gpu-pci"]


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """A host with a free card on vfio-pci at 01:00.0 and one in use at 02:00.0."""
    for bdf, driver in (("0000:01:00.0", "vfio-pci"), ("0000:02:00.0", "nouveau")):
        device = tmp_path / "bus/pci/devices" / bdf
        device.mkdir(parents=True)
        (tmp_path / "drivers" / driver).mkdir(parents=True)
        (device / "driver").symlink_to(tmp_path / "drivers" / driver)
    (tmp_path / "bus/pci/devices/0000:03:00.0").mkdir()
    return tmp_path


def argv(spec: launch.Spec) -> list[str]:
    return launch.argv(spec, code="c", variables="v", kernel="k", initrd="i")


def value(command: list[str], option: str) -> list[str]:
    return [command[at + 1] for at, word in enumerate(command) if word == option]


def test_words_win_over_the_launch(sysfs: Path) -> None:
    words = Words(cpus="8", memory="2G", gpu="virtio-gpu-pci", machine="pc", accel="tcg", timeout="9")
    spec = settle(Launch(), words, 64, MODELS, sysfs)
    assert (spec.cpus, spec.max_cpus, spec.memory, spec.machine, spec.timeout) == (8, 64, 2 << 30, "pc", 9)
    command = argv(spec)
    assert value(command, "-smp") == ["8,maxcpus=64"]
    assert value(command, "-m") == ["2048M"]
    assert value(command, "-machine") == ["pc,accel=tcg"]
    assert value(command, "-device") == [SERIAL, "virtio-gpu-pci,id=gpu0"]


def test_the_launch_stands_without_words(sysfs: Path) -> None:
    spec = settle(Launch(cmdline=("a=b",)), Words(), 64, MODELS, sysfs)
    assert (spec.cpus, spec.max_cpus, spec.machine) == (4, 64, "q35")
    (append,) = value(argv(msgspec.structs.replace(spec, accel="tcg")), "-append")
    assert append == "no_timer_check console=ttyS0 panic=-1 initd.report=/dev/ttyS3 initd.then=poweroff a=b"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (Words(cpus="0"), r"--cpus = 0: a guest has at least one CPU"),
        (Words(cpus="-2"), r"--cpus = -2"),
        (Words(cpus="four"), r"--cpus = 'four' is not a whole number"),
        (Words(cpus="65"), r"--cpus 65: .* at most 64 CPUs \(CONFIG_NR_CPUS\)"),
        (Words(memory="lots"), r"--memory = 'lots' is not a size"),
        (Words(machine="q36"), r"(?s)--machine q36: not known.*one of q35, pc"),
        (Words(accel="hvf"), r"(?s)--accel hvf: not known.*auto, kvm, tcg"),
        (Words(timeout="0"), r"--timeout 0: must be a positive"),
        (Words(gpu="secondary-vgaa"), r"(?s)no PCI display device of that name.*did you mean secondary-vga"),
        (Words(gpu="isa-vga:3"), r"(?s)not a PCI address.*0000:01:00\.0"),
        (Words(gpu="0000:09:00.0"), r"--gpu 0000:09:00.0: this host has no such PCI device"),
        (Words(gpu="02:00.0"), r"(?s)0000:02:00.0: is bound to nouveau.*driverctl"),
        (Words(gpu="0000:03:00.0"), r"is bound to no driver"),
    ],
)
def test_what_cannot_be_is_refused(sysfs: Path, words: Words, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settle(Launch(), words, 64, MODELS, sysfs)


def test_a_real_card_sits_behind_a_root_port_on_q35(sysfs: Path) -> None:
    spec = settle(Launch(), Words(gpu="01:00.0,secondary-vga"), 64, MODELS, sysfs)
    assert value(argv(spec), "-device") == [
        SERIAL,
        "pcie-root-port,id=port0,bus=pcie.0,chassis=1,slot=1",
        "vfio-pci,host=0000:01:00.0,id=gpu0,bus=port0",
        "secondary-vga,id=gpu1",
    ]
    spec = settle(Launch(), Words(gpu="01:00.0", machine="pc"), 64, MODELS, sysfs)
    assert value(argv(spec), "-device") == [SERIAL, "vfio-pci,host=0000:01:00.0,id=gpu0"]


def test_no_gpu_when_asked(sysfs: Path) -> None:
    assert settle(Launch(), Words(gpu="none"), 64, MODELS, sysfs).gpus == ()


def test_this_qemu_knows_its_display_models() -> None:
    models = launch.display_models()
    assert {"secondary-vga", "bochs-display"} <= set(models)
    assert "e1000" not in models


def test_a_comma_in_a_path_is_doubled() -> None:
    assert launch.comma("/a,b/c") == "/a,,b/c"


def test_nodes_become_memory_backends_and_distances(sysfs: Path) -> None:
    numa = (Node("512M", "0-1"), Node("512M", "3", (21, 10)))
    spec = settle(Launch(numa=numa), Words(accel="tcg"), 64, MODELS, sysfs)
    assert [node.cpus for node in spec.numa] == [(0, 1, 2), (3,)]
    command = argv(spec)
    assert value(command, "-object") == [
        "memory-backend-ram,id=node0-memory,size=512M", "memory-backend-ram,id=node1-memory,size=512M",
    ]  # fmt: skip
    assert value(command, "-numa") == [
        "node,nodeid=0,memdev=node0-memory,cpus=0,cpus=1,cpus=2", "node,nodeid=1,memdev=node1-memory,cpus=3",
        "dist,src=0,dst=1,val=20", "dist,src=1,dst=0,val=21",
    ]  # fmt: skip
    assert not value(argv(settle(Launch(), Words(accel="tcg"), 64, MODELS, sysfs)), "-numa")


@pytest.mark.parametrize(
    ("numa", "message"),
    [
        ((Node("512M"),), "the nodes have 512 MiB, the launch has 1 GiB"),
        ((Node("512M", "0-1"), Node("512M", "1-2")), "CPU 1 is in two nodes"),
        ((Node("512M", "0-1"), Node("512M", "4")), "CPU 4 is .* none of the 4"),
        ((Node("512M", "0-x"), Node("512M")), "is no list of CPUs"),
        ((Node("512M", "", (10,)), Node("512M")), "one a node is wanted"),
        ((Node("512M", "", (11, 20)), Node("512M")), "10 to itself"),
        ((Node("512M", "", (10, 255)), Node("512M")), "10 to 254 to others"),
        ((Node("much"), Node("512M")), r"launch.numa\[0\].memory = 'much' is not a size"),
    ],
)
def test_nodes_that_do_not_add_up_are_refused(sysfs: Path, numa: tuple[Node, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settle(Launch(numa=numa), Words(), 64, MODELS, sysfs)


def test_what_is_plugged_in_gets_room_and_is_waited_for(sysfs: Path) -> None:
    words = Words(plug_cpus="8", plug_memory="3G", accel="tcg")
    spec = settle(Launch(), words, 64, MODELS, sysfs)
    assert (spec.plug_cpus, spec.plug_memory, spec.max_memory) == (8, 3 << 30, 3 << 30)
    command = argv(spec)
    assert value(command, "-m") == ["1024M,slots=4,maxmem=3072M"]
    (append,) = value(command, "-append")
    assert "initd.wait-cpus=8 initd.wait-memory=3221225472 initd.wait-seconds=" in append and "lpj=" in append
    room = argv(settle(Launch(max_memory="8G", slots=2), Words(accel="tcg"), 64, MODELS, sysfs))
    assert value(room, "-m") == ["1024M,slots=2,maxmem=8192M"]
    assert "initd.wait" not in " ".join(room)


@pytest.mark.parametrize(
    ("launched", "words", "message"),
    [
        (Launch(), Words(plug_cpus="4"), "starts with 4 CPUs and can have 64"),
        (Launch(), Words(plug_cpus="65"), "starts with 4 CPUs and can have 64"),
        (Launch(), Words(plug_cpus="many"), "is not a whole number"),
        (Launch(), Words(plug_memory="1G"), "nothing can be plugged in"),
        (Launch(max_memory="512M"), Words(), "memory 1 GiB, at most 512 MiB: nothing can be plugged in"),
        (Launch(), Words(plug_memory="1100M"), "76 MiB is no multiple of 128 MiB"),
    ],
)
def test_what_cannot_be_plugged_in_is_refused(sysfs: Path, launched: Launch, words: Words, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settle(launched, words, 64, MODELS, sysfs)


def test_a_card_that_is_one_large_bar(sysfs: Path) -> None:
    spec = settle(Launch(), Words(gpu="bar:64G", accel="tcg"), 64, MODELS, sysfs)
    assert str(spec.gpus[0]) == "BAR 64 GiB"
    assert value(argv(spec), "-device")[1:] == [
        "pcie-root-port,id=port0,bus=pcie.0,chassis=1,slot=1", "pci-testdev,membar=65536M,id=gpu0,bus=port0",
    ]  # fmt: skip
    on_pc = settle(Launch(machine="pc"), Words(gpu="bar:16M", accel="tcg"), 64, MODELS, sysfs)
    assert value(argv(on_pc), "-device")[1:] == ["pci-testdev,membar=16M,id=gpu0"]
    for word, why in (("bar:3G", "a power of two"), ("bar:", "is not a size"), ("bar:much", "is not a size")):
        with pytest.raises(UserError, match=why):
            settle(Launch(), Words(gpu=word), 64, MODELS, sysfs)


def test_a_launch_that_is_only_planned_needs_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "display_models", lambda: MODELS)
    spec = launch.planned(Launch(gpus=("secondary-vga", "0000:41:00.0")))
    assert [str(gpu) for gpu in spec.gpus] == ["secondary-vga", "vfio-pci 0000:41:00.0"]
    with pytest.raises(UserError, match="did you mean secondary-vga"):
        launch.planned(Launch(gpus=("secondary-vgaa",)))


def test_4_12_is_kept_from_unpacking_itself_over_the_memory_map(sysfs: Path) -> None:
    for line, there in (("4.12", True), ("6.12", False), ("", False)):
        spec = settle(Launch(cmdline=("a=b",)), Words(accel="tcg"), 64, MODELS, sysfs, line)
        (append,) = value(argv(spec), "-append")
        assert append.endswith(" nokaslr a=b" if there else "initd.then=poweroff a=b")
