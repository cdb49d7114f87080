# SPDX-License-Identifier: Apache-2.0
"""From a bundle's own launch to the files that start it: run-guest for QEMU, domain.xml for libvirt. Pure.

Both are made from launch.Spec. QEMU's options come from arguments.groups alone, and run-guest uses exactly these.
The domain's format: https://libvirt.org/formatdomain.html
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

# Placeholder in domain.xml for the bundle's folder: libvirt needs its absolute path.
FOLDER = "/path/to/bundle"
# Slots of q35's root bus that devices get: 0 is the host bridge, 31 the chipset.
SLOTS = range(0x02, 0x1F)
# Characters that XML 1.0 does not allow (its Char), and those that end a line for some readers of a script.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")


class About(msgspec.Struct, frozen=True):
    """The heading of a bundle's launch files."""

    name: str
    """`GUEST-SERIES`, also the domain's name."""
    kernel: str
    firmware: str


def render(
    folder: Path, about: About, wanted: Launch, specs: Mapping[Accel, launch.Spec], absent: Sequence[str] = ()
) -> dict[str, str]:
    """Both files by name, from the templates in `folder`; `specs` are launch.shipped's, `absent` are the cards that
    could not be read.

    UserError for a launch that the files cannot express: a disk with a relative path, a control character.
    """
    _check(about, wanted, specs)
    facts = {"about": about, "absent": absent, "root": wanted.root.disk if wanted.root else ""}
    script = templates.render(folder / "run-guest.j2", **facts, **_script(specs))
    # As run-guest starts it if KVM works.
    accel: Accel = "tcg" if wanted.accel == "tcg" else "kvm"
    domain = templates.render(folder / "domain.xml.j2", **facts, **_domain(about.name, specs[accel]))
    return {RUN_GUEST: script, DOMAIN: domain}


def _check(about: About, wanted: Launch, specs: Mapping[Accel, launch.Spec]) -> None:
    for what, text in msgspec.structs.asdict(about).items():
        if CONTROL.search(text):
            raise UserError(f"{what} {text!r} has a control character, which would end a line of run-guest")
    for each in (each for spec in specs.values() for group in arguments.groups(spec) for each in group.options):
        if CONTROL.search(each):
            raise UserError(
                f"launch: {each!r} has a control character, which neither a line of a script nor XML can have",
                "look for it in cmdline, cpu, disks and gpus",
            )
    for number, disk in enumerate(wanted.disks):
        for key in ("file", "conf", "key_file"):
            path = getattr(disk, key)
            if path and not path.startswith("/"):
                raise UserError(
                    f"launch.disks[{number}].{key} = {path!r}: is not an absolute path, and run-guest and domain.xml "
                    "are started from any folder",
                    "write the path from / on",
                )


# ── run-guest ──


def _script(specs: Mapping[Accel, launch.Spec]) -> dict[str, Any]:
    """Each group's rows: the same for every accelerator, or by accelerator."""
    by_accel = {accel: arguments.groups(specs[accel]) for accel in launch.ACCELS}
    groups = []
    for alike in zip(*by_accel.values(), strict=True):
        rows = {accel: _rows(group.options) for accel, group in zip(by_accel, alike, strict=True)}
        if any(rows.values()):
            same = len({group.options for group in alike}) == 1
            groups.append({"why": alike[0].why, "rows": {"": rows[launch.ACCELS[0]]} if same else rows})
    machine = specs["kvm"].machine
    return {
        "qemu": emulator.QEMU,
        "link": arguments.LINK,
        "folder": FOLDER,
        "groups": groups,
        "ending": _rows(arguments.ATTENDED),
        "ceph": any(disk.rbd for disk in specs["kvm"].disks),
        "probe": f"{shlex.quote(f'{machine},accel=kvm')} -cpu {shlex.quote(launch.cpu(specs['kvm']))}",
    }


def _rows(options: Sequence[str]) -> list[str]:
    """The rows of arguments.rows; the user's own kernel parameters come last and win."""
    append = '"${append:+ $append}"'
    return [row + append if row.startswith("-append ") else row for row in arguments.rows(options)]


# ── domain.xml ──


def _domain(name: str, spec: launch.Spec) -> dict[str, Any]:
    """What the template needs beside the spec: addresses on the bus, and QEMU's options for what libvirt cannot
    express."""
    q35 = spec.machine == "q35"
    slots = iter(SLOTS)
    disks = [_disk(name, disk, n, _slot(slots) if q35 else None) for n, disk in enumerate(spec.disks)]
    bridges = [
        {"index": index, "node": node, "bus_nr": bus, "slot": _slot(slots)}
        for index, (node, bus) in enumerate(arguments.node_buses(spec).items(), 1)
    ]
    by_node = {bridge["node"]: bridge["index"] for bridge in bridges}
    ports: list[dict[str, Any]] = []
    hosts, options = [], []
    for number, gpu in enumerate(spec.gpus):
        bus, parent = 0, by_node.get(gpu.node, 0)
        if q35 and (parent or not gpu.model):
            bus = len(bridges) + len(ports) + 1
            beside = sum(port["bus"] == parent for port in ports)
            ports.append({"index": bus, "bus": parent, "slot": f"{beside:#04x}" if parent else _slot(slots)})
        # libvirt calls the bus of its controller N pci.N. A device without bus= takes the first that fits, perhaps a
        # node's.
        at = f",bus=pci.{bus}" if bus else ",bus=pcie.0" if bridges else ""
        if gpu.host:
            functions = [pci.parts(each) for each in (gpu.host, *gpu.functions)]
            # As in arguments._gpu_argv: functions of one card share a slot. On a pc libvirt places a single one itself.
            slot = "0x00" if q35 else f"{0x1F - number:#04x}"
            hosts.append({"functions": functions, "bus": bus, "slot": slot if q35 or gpu.functions else None})
        elif gpu.bar:
            options += ["-device", f"pci-testdev,membar={gpu.bar // 2**20}M,id={gpu.id}{at}"]
        else:
            options += ["-device", f"{gpu.model},id={gpu.id}{at}"]
    cpu, flags = _cpu(spec)
    if spec.window:
        # libvirt does not allow names with opt/ovmf/ in its <sysinfo type="fwcfg">.
        options += ["-fw_cfg", f"name=opt/ovmf/X-PciMmio64Mb,string={spec.window}"]
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
        "options": [*flags, *options],
        "report_index": arguments.REPORT_INDEX,
    }


def _slot(slots: Iterator[int]) -> str:
    slot = next(slots, None)
    if slot is None:
        raise UserError(
            f"launch: more than {len(SLOTS)} disks and cards, and q35's root bus has no slot for more",
            "put several images into one disk, or take fewer",
        )
    return f"{slot:#04x}"


def _cpu(spec: launch.Spec) -> tuple[dict[str, str], list[str]]:
    """The CPU in libvirt's terms, and as QEMU's options the flags that libvirt may not know."""
    name, *flags = (spec.cpu if spec.accel == "kvm" else launch.cpu(spec)).split(",")
    found = {"mode": "custom", "model": name, "phys_bits": ""}
    if spec.accel == "kvm" and name in ("max", "host"):
        found |= {"mode": "host-passthrough", "model": ""}
    elif name == "max":
        found |= {"mode": "maximum", "model": ""}
    options = []
    for flag in flags:
        key, equals, value = flag.partition("=")
        if key == "phys-bits" and value.isdecimal():
            found["phys_bits"] = value
        elif flag[:1] in "+-":
            options += ["-global", f"x86_64-cpu.{flag[1:]}={'on' if flag[0] == '+' else 'off'}"]
        else:
            options += ["-global", f"x86_64-cpu.{key}={value if equals else 'on'}"]
    return found, options


def _cells(spec: launch.Spec) -> list[dict[str, Any]]:
    """NUMA nodes. libvirt needs at least one if memory can be plugged in."""
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
        "it": msgspec.structs.replace(disk, file=f"{FOLDER}/{Path(disk.file).name}") if disk == disks.DRIVERS else disk,
        "kind": kind,
        "target": f"vd{letters}",
        "slot": slot,
        "monitors": [{"host": host, "port": port} for host, port in map(disks.monitor, disk.monitors)],
        "secret": secret,
        "key_file": shlex.quote(disk.key_file),
    }
