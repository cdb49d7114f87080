# SPDX-License-Identifier: Apache-2.0
"""Launches of every kind, for the tests of what follows from one."""

from collections.abc import Mapping
from pathlib import Path

from minguest.model import Accel, Disk, Drivers, Launch, Node
from minguest.vm import launch, scripts
from tests import ROOT

ABOUT = scripts.About("default-6.12", "6.12.94", "2025.02-8+deb13u1")
KEY = "AQBSdFhcGijgFRAAuTtQQMqzU4xNPQEBVKxzPA=="
# A card with its sound, and one alone.
CARDS = {"0000:41:00.0": (128 << 30,), "0000:41:00.1": (16 << 10,), "0000:42:00.0": (16 << 20,)}
# START END FLAGS of a prefetchable 64-bit BAR: Linux, include/linux/ioport.h.
FLAGS = 0x14220C
CPUINFO = "vendor_id : GenuineIntel\naddress sizes : 46 bits physical, 48 bits virtual\n"
NODES = (Node("512M", "0-1"), Node("512M", "3", (21, 10)))
# What a shell, QEMU's option=value lists and XML would each stumble over.
AWKWARD = "/srv/a b,c=d\"e'f$(g)`h`\\i<j>&k;*#-.raw"
DISKS = (
    Disk(file=AWKWARD, serial="ro-ot_1"),
    Disk(file="/srv/second.qcow2", format="qcow2", read_only=True),
    Disk(file="/dev/mapper/nowhere-third"),
    Disk(rbd="pool/image", user="guest", conf="/etc/ceph/o'ther.conf", key_file="/srv/a key, and more"),
    Disk(rbd="pool/plain", read_only=True),
    Disk(rbd="pool/third", monitors=("mon-1.example", "[2001:db8::1]:3300"), user="guest"),
)
LAUNCHES: Mapping[str, Launch] = {
    "default": Launch(),
    "pc": Launch(machine="pc", cpus=1, max_cpus=1),
    "tcg": Launch(accel="tcg", gpus=()),
    "cpu": Launch(cpu="EPYC,+x2apic,vendor=GenuineIntel,phys-bits=42", hide_kvm=False, clock="vm"),
    "nodes": Launch(numa=NODES),
    "huge": Launch(hugepages="2M", lock_memory=True),
    "huge-nodes": Launch(hugepages="1G", numa=NODES),
    "plug": Launch(max_memory="8G", slots=2),
    "plug-nodes": Launch(max_memory="8G", numa=NODES),
    "disks": Launch(disks=DISKS),
    "pc-disks": Launch(machine="pc", disks=DISKS),
    "drivers": Launch(disks=DISKS[:1], drivers=Drivers(("any",), load=("a-card",))),
    "bars": Launch(gpus=("bar:64G", "virtio-gpu-pci", "bar:256G")),
    "wide": Launch(gpus=("bar:128G",) * 8),
    "pc-bar": Launch(machine="pc", gpus=("bar:16M", "secondary-vga")),
    "cards": Launch(gpus=("41:00.0", "secondary-vga", "0000:42:00.0"), disks=DISKS[:1]),
    "pc-cards": Launch(machine="pc", gpus=("0000:41:00.0", "42:00.0")),
    "near": Launch(
        numa=(Node("512M", "0-1", (10, 21), gpus=(1, 4)), Node("512M", "2-3", (21, 10), gpus=(0, 2))),
        gpus=("41:00.0", "secondary-vga", "bar:16M", "bochs-display", "bar:1G"),
    ),
    "absent": Launch(gpus=("0000:99:00.0",)),
    "window": Launch(gpus=("0000:99:00.0",), window="256G"),
    "quoting": Launch(cmdline=('a="b c"', "d='e'", "$(touch f)", "`g`", "<h>&i;", "j\\k", "$l", "%s", "é", "--")),
}


def sysfs(folder: Path) -> Path:
    """/sys of a machine with CARDS, whatever their drivers."""
    for bdf, sizes in CARDS.items():
        device = folder / "bus/pci/devices" / bdf
        device.mkdir(parents=True)
        files = {"vendor": "0x10de", "device": "0x2331", "class": "0x030200"}
        ends = "".join(f"{size:#x} {2 * size - 1:#x} {FLAGS:#x}\n0x0 0x0 0x0\n" for size in sizes)
        for name, text in {**files, "resource": ends}.items():
            (device / name).write_text(text)
    return folder


def specs(name: str, sys: Path, line: str = "") -> dict[Accel, launch.Spec]:
    """One of LAUNCHES, as a bundle ships it."""
    return launch.shipped(LAUNCHES[name], line or ("4.12" if name == "quoting" else "6.12"), sys, CPUINFO)


def files(name: str, sys: Path) -> dict[str, str]:
    """The launch files of one of LAUNCHES."""
    made = specs(name, sys)
    return scripts.render(ROOT / "configs/templates", ABOUT, LAUNCHES[name], made, launch.absent(made["kvm"], sys))
