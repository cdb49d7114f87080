# SPDX-License-Identifier: Apache-2.0
"""From a bundle's own launch to the files that start it: run-guest for QEMU, domain.xml for libvirt. Pure.

What is in both is launch.Spec's; how QEMU is told of it is arguments.groups' alone, and run-guest prints just that.
The domain's words: https://libvirt.org/formatdomain.html
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from minguest import model
from minguest.model import Accel, Launch
from minguest.paths import DOMAIN, RUN_GUEST
from minguest.util import pci, templates
from minguest.util.errors import UserError
from minguest.vm import arguments, disks, emulator, launch

# What stands in domain.xml for the bundle's folder, of which libvirt wants the whole path.
FOLDER = "/path/to/bundle"
# Slots of q35's root bus that are given out: 0 is the host bridge, 31 the chipset.
SLOTS = range(0x02, 0x1F)
# What no XML 1.0 can have (its Char), and what ends a line of a script for one reader or another.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")


class About(msgspec.Struct, frozen=True):
    """What a bundle's launch files are headed with."""

    name: str
    """`guest-line`: the domain's name too."""
    kernel: str
    firmware: str


def render(
    folder: Path, about: About, wanted: Launch, specs: Mapping[Accel, launch.Spec], absent: Sequence[str] = ()
) -> dict[str, str]:
    """Both files by name, from the templates in `folder`; `specs` are launch.shipped's, `absent` are the cards that
    could not be looked at.

    UserError for a launch that cannot be written down: a disk by half a path, a control character.
    """
    _check(about, wanted, specs)
    facts = {"about": about, "absent": absent}
    script = templates.render(folder / "run-guest.j2", **facts, **_script(specs))
    # As run-guest starts it where KVM can be used.
    accel: Accel = "tcg" if wanted.accel == "tcg" else "kvm"
    domain = templates.render(folder / "domain.xml.j2", **facts, **_domain(about.name, specs[accel]))
    return {RUN_GUEST: script, DOMAIN: domain}


def _check(about: About, wanted: Launch, specs: Mapping[Accel, launch.Spec]) -> None:
    for what, text in msgspec.structs.asdict(about).items():
        if CONTROL.search(text):
            raise UserError(f"{what} {text!r} has a control character, which would end a line of run-guest")
    for word in (word for spec in specs.values() for group in arguments.groups(spec) for word in group.words):
        if CONTROL.search(word):
            raise UserError(
                f"launch: {word!r} has a control character, which no line of a script and no XML can have",
                "look for it in cmdline, cpu, disks and gpus",
            )
    for number, disk in enumerate(wanted.disks):
        for key in ("file", "conf", "key_file"):
            path = getattr(disk, key)
            if path and not path.startswith("/"):
                raise UserError(
                    f"launch.disks[{number}].{key} = {path!r}: is not a whole path, and run-guest and domain.xml are "
                    "started from anywhere",
                    "write the path from / on",
                )


# ── run-guest ──


def _script(specs: Mapping[Accel, launch.Spec]) -> dict[str, Any]:
    """Each group's rows: alike for every accelerator, or by accelerator."""
    made = {accel: arguments.groups(specs[accel]) for accel in launch.ACCELS}
    groups = []
    for alike in zip(*made.values(), strict=True):
        rows = {accel: _rows(group.words) for accel, group in zip(made, alike, strict=True)}
        if any(rows.values()):
            same = len({group.words for group in alike}) == 1
            groups.append({"why": alike[0].why, "rows": {"": rows[launch.ACCELS[0]]} if same else rows})
    machine = specs["kvm"].machine
    return {
        "qemu": emulator.QEMU,
        "link": arguments.LINK,
        "folder": FOLDER,
        "groups": groups,
        "ending": _rows(arguments.ATTENDED),
        "probe": f"{shlex.quote(f'{machine},accel=kvm')} -cpu {shlex.quote(launch.cpu(specs['kvm']))}",
    }


def _rows(words: Sequence[str]) -> list[str]:
    """The rows of arguments.rows; the user's own words for the kernel come last and win."""
    append = '"${append:+ $append}"'
    return [row + append if row.startswith("-append ") else row for row in arguments.rows(words)]


# ── domain.xml ──


def _domain(name: str, spec: launch.Spec) -> dict[str, Any]:
    """What the template is told beside the spec: places on the bus, and QEMU's words for what libvirt has none for."""
    q35 = spec.machine == "q35"
    slots = iter(SLOTS)
    disks = [_disk(name, disk, n, _slot(slots) if q35 else None) for n, disk in enumerate(spec.disks)]
    bridges = [
        {"index": index, "node": node, "bus_nr": bus, "slot": _slot(slots)}
        for index, (node, bus) in enumerate(arguments.node_buses(spec).items(), 1)
    ]
    by_node = {bridge["node"]: bridge["index"] for bridge in bridges}
    ports: list[dict[str, Any]] = []
    hosts, words = [], []
    for number, gpu in enumerate(spec.gpus):
        bus, parent = 0, by_node.get(gpu.node, 0)
        if q35 and (parent or not gpu.model):
            bus = len(bridges) + len(ports) + 1
            beside = sum(port["bus"] == parent for port in ports)
            ports.append({"index": bus, "bus": parent, "slot": f"{beside:#04x}" if parent else _slot(slots)})
        # libvirt calls the bus of its controller N pci.N. A device with no bus takes the first that fits, a node's too.
        at = f",bus=pci.{bus}" if bus else ",bus=pcie.0" if bridges else ""
        if gpu.host:
            functions = [pci.parts(each) for each in (gpu.host, *gpu.functions)]
            # As in arguments._gpu_argv: functions of one card share a slot. A lone one libvirt places itself on a pc.
            slot = "0x00" if q35 else f"{0x1F - number:#04x}"
            hosts.append({"functions": functions, "bus": bus, "slot": slot if q35 or gpu.functions else None})
        elif gpu.bar:
            words += ["-device", f"pci-testdev,membar={gpu.bar // 2**20}M,id={gpu.id}{at}"]
        else:
            words += ["-device", f"{gpu.model},id={gpu.id}{at}"]
    cpu, flags = _cpu(spec)
    if spec.window:
        # libvirt keeps what begins with opt/ovmf/ out of its <sysinfo type="fwcfg">.
        words += ["-fw_cfg", f"name=opt/ovmf/X-PciMmio64Mb,string={spec.window}"]
    return {
        "folder": FOLDER,
        "spec": spec,
        "cmdline": " ".join(arguments.cmdline(spec)),
        "cpu": cpu,
        "cells": _cells(spec),
        "disks": disks,
        "keyed": [disk for disk in disks if disk["secret"]],
        "bridges": bridges,
        "ports": ports,
        "hosts": hosts,
        "words": [*flags, *words],
        "report_index": arguments.REPORT_INDEX,
    }


def _slot(slots: Iterator[int]) -> str:
    slot = next(slots, None)
    if slot is None:
        raise UserError(
            f"launch: more than {len(SLOTS)} disks and cards, and q35's root bus has no place for more",
            "put several images into one disk, or take fewer",
        )
    return f"{slot:#04x}"


def _cpu(spec: launch.Spec) -> tuple[dict[str, str], list[str]]:
    """The CPU in libvirt's words, and in QEMU's the flags that it need not know."""
    name, *flags = spec.cpu.split(",")
    found = {"mode": "custom", "model": name, "phys_bits": ""}
    if spec.accel == "kvm" and name in ("max", "host"):
        found |= {"mode": "host-passthrough", "model": ""}
    elif name == "max":
        found |= {"mode": "maximum", "model": ""}
    words = []
    for flag in flags:
        key, equals, value = flag.partition("=")
        if key == "phys-bits" and value.isdecimal():
            found["phys_bits"] = value
        elif flag[:1] in "+-":
            words += ["-global", f"x86_64-cpu.{flag[1:]}={'on' if flag[0] == '+' else 'off'}"]
        else:
            words += ["-global", f"x86_64-cpu.{key}={value if equals else 'on'}"]
    return found, words


def _cells(spec: launch.Spec) -> list[dict[str, Any]]:
    """NUMA nodes. libvirt wants one at least where memory can be plugged in."""
    if not spec.numa and spec.max_memory:
        return [{"cpus": f"0-{spec.max_cpus - 1}", "memory": spec.memory, "distances": ()}]
    return [
        {"cpus": ",".join(map(str, node.cpus)), "memory": node.memory, "distances": node.distances}
        for node in spec.numa
    ]


def _disk(name: str, disk: model.Disk, number: int, slot: str | None) -> dict[str, Any]:
    kind = "network" if disk.rbd else "block" if disks.is_device(disk.file) else "file"
    first, last = divmod(number, 26)
    letters = (chr(ord("a") + first - 1) if first else "") + chr(ord("a") + last)
    secret = f"{name}-disk{number}" if disk.key_file else ""
    return {
        "it": disk,
        "kind": kind,
        "target": f"vd{letters}",
        "slot": slot,
        "monitors": [{"host": host, "port": port} for host, port in map(disks.monitor, disk.monitors)],
        "secret": secret,
        "key_file": shlex.quote(disk.key_file),
    }
