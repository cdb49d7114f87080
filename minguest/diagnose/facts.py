# SPDX-License-Identifier: Apache-2.0
"""The facts of one boot by name, and the conditions on them in the pits. Pure.

A fact that is not known (a guest without a report, a log without its launch) is not in the mapping.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import eq, ge, gt, le, lt, ne

from minguest import settings
from minguest.util.errors import UserError
from minguest.vm.report import ROM, Report, cpu_count

Fact = int | str
# Every name that a condition may use. Sizes in bytes.
NAMES: Mapping[str, str] = {
    "cpus.requested": "CPUs of the launch, plugged ones included",
    "cpus.max_requested": "CPUs that can be plugged in at most",
    "cpus.made": "CPUs that QEMU has",
    "cpus.present": "CPUs that the kernel knows",
    "cpus.online": "CPUs that run",
    "cpus.plugged": "CPUs that were plugged in while the guest ran",
    "memory.requested": "memory of the launch, plugged memory included",
    "memory.made": "memory that QEMU has",
    "memory.ram": "memory that the firmware gave to the kernel",
    "memory.missing": "memory that QEMU has and the kernel did not get",
    "memory.plugged": "memory that was plugged in while the guest ran",
    "memory.blocks": "hotplug blocks that the kernel knows",
    "memory.blocks_online": "hotplug blocks that are in use",
    "nodes.requested": "NUMA nodes of the launch",
    "nodes": "NUMA nodes that the kernel has",
    "firmware.kind": "uefi or bios: what the kernel knows",
    "firmware.vendor": "vendor of the firmware, from DMI",
    "disks.ceph": "disks of the launch that are on Ceph",
    "gpus.requested": "cards of the launch",
    "gpus.passed": "cards of the host that the launch passes through",
    "gpus.made": "cards of the launch that QEMU has",
    "gpus.seen": "display controllers that the kernel sees",
    "pci.devices": "PCI devices that the kernel sees",
    "bars.dead": "BARs without an address",
    "interrupts.controllers": "interrupt controllers as /proc/interrupts names them, separated by commas",
    "cmdline.nr_cpus": "CPUs that nr_cpus= of a command line in the kernel leaves",
    "cmdline.maxcpus": "CPUs that maxcpus= of a command line in the kernel starts",
    "cmdline.mem": "the end of the memory that mem= of a command line in the kernel leaves",
    "report": "whole, damaged or none",
    "ending": "how the run ended: power-off, reset, deadline, …; refused: QEMU did not start it",
    "qemu.ready": "yes or no: QEMU had opened all that the guest is made of, and answered on QMP",
    "console.lines": "console lines that are not empty",
    "kernel.speaks": "yes or no: its version is on the console; unseen: the console is quiet, and no log came",
}
# What the facts that are text can be; the others are numbers. None: any text.
VALUES: Mapping[str, set[str] | None] = {
    "firmware.kind": {"uefi", "bios"},
    "firmware.vendor": None,
    "interrupts.controllers": None,
    "report": {"whole", "damaged", "none"},
    "ending": None,
    "qemu.ready": {"yes", "no"},
    "kernel.speaks": {"yes", "no", "unseen"},
}
OPERATORS = {"==": eq, "!=": ne, "<=": le, ">=": ge, "<": lt, ">": gt}
FORM = re.compile(r"(?P<name>[a-z_.]+) (?P<operator>==|!=|<=|>=|<|>) (?P<other>\S+)")


@dataclass(frozen=True)
class Condition:
    """`NAME OPERATOR VALUE`; the value is another fact's name, a size, a number, or text."""

    name: str
    operator: str
    other: Fact
    named: bool
    """Whether `other` is the name of a fact."""

    def holds(self, facts: Mapping[str, Fact]) -> bool | None:
        """None where a fact is not known."""
        other = facts.get(str(self.other)) if self.named else self.other
        own = facts.get(self.name)
        if own is None or other is None:
            return None
        return bool(OPERATORS[self.operator](own, other))

    def describe(self, facts: Mapping[str, Fact]) -> str:
        """The facts: `cpus.online is 1, cpus.requested is 4`."""
        names = [self.name, *([str(self.other)] if self.named else [])]
        return ", ".join(f"{name} is {facts.get(name, 'not known')}" for name in names)


def condition(text: str) -> Condition:
    """Read one condition; UserError names what is wrong with it."""
    match = FORM.fullmatch(text)
    if not match:
        raise UserError(f"condition {text!r} is not NAME {' | '.join(OPERATORS)} VALUE")
    name, operator, other = match["name"], match["operator"], match["other"]
    for each in (name, other):
        if each not in NAMES and (new := each.replace("asked", "requested")) in NAMES:
            raise UserError(f"condition {text!r}: no fact {each!r}", f"it is called {new!r} now")
    if name not in NAMES:
        raise UserError(f"condition {text!r}: no fact {name!r}", f"known: {', '.join(NAMES)}")
    if name in VALUES:
        known = VALUES[name]
        if operator not in ("==", "!="):
            raise UserError(f"condition {text!r}: text has no order", "use == or !=")
        if known is not None and other not in known:
            raise UserError(f"condition {text!r}: {name} is never {other!r}", f"known: {', '.join(sorted(known))}")
        return Condition(name, operator, other, False)
    if other in NAMES and other not in VALUES:
        return Condition(name, operator, other, True)
    if re.fullmatch(r"\d+", other):
        return Condition(name, operator, int(other), False)
    if re.fullmatch(r"\d+[MGT]", other):
        return Condition(name, operator, settings.size(other, f"condition {text!r}"), False)
    raise UserError(
        f"condition {text!r}: {other!r} is not a number", "use a number, a size such as 96M, or another fact's name"
    )


def of_report(report: Report) -> dict[str, Fact]:
    """What initd saw. A report that is not whole gives only that fact."""
    if not report.complete:
        return {"report": "damaged" if report.records else "none"}
    cpus, memory, firmware = report.record("cpus"), report.record("memory"), report.record("firmware")
    known: dict[str, Fact | None] = {
        "report": "whole",
        "cpus.present": cpu_count(cpus.get("present") or "") or None,
        "cpus.online": cpu_count(cpus.get("online") or "") or None,
        "memory.ram": memory.get("ram_bytes"),
        "memory.blocks": memory.get("blocks_present"),
        "memory.blocks_online": memory.get("blocks_online"),
        "nodes": sum(record["record"] == "node" for record in report.records),
        "firmware.kind": firmware.get("kind"),
        "firmware.vendor": firmware.get("vendor"),
        "gpus.seen": sum(device.gpu for device in report.pci),
        "pci.devices": len(report.pci),
        "bars.dead": sum(not bar.assigned for device in report.pci for bar in device.bars if bar.index != ROM),
        "interrupts.controllers": ",".join(report.record("interrupts").get("controllers") or ()) or None,
    }
    return {name: value for name, value in known.items() if value is not None}


# -smp 4, -smp cpus=4,maxcpus=8: QEMU's command in a log; and libvirt's XML of a domain.
_SMP = re.compile(rb"(?:^|[\s'\"])-smp['\"]?[ \t=]+['\"]?(?:cpus=)?(\d+)\b|<vcpu[^>]*>(\d+)</vcpu>", re.MULTILINE)


def of_command(log: bytes) -> dict[str, Fact]:
    """What QEMU was given, where a log has its command; that of the last start."""
    found = _SMP.findall(log)
    return {"cpus.requested": int("".join(map(bytes.decode, found[-1])))} if found else {}


# kernel/smp.c, and parse_memopt in arch/x86/kernel/e820.c with memparse in lib/cmdline.c.
_LIMIT = re.compile(r"(nr_cpus|maxcpus|mem)=(\d+)([KMGTkmgt]?)")


def of_options(options: Sequence[str]) -> dict[str, Fact]:
    """How a command line limits CPUs and memory. The least nr_cpus= and mem= counts, and the last maxcpus=; 0 is no
    limit of the first two.
    """
    found: dict[str, Fact] = {}
    for name, number, unit in (match.groups() for match in map(_LIMIT.fullmatch, options) if match):
        if name == "mem":
            limit = int(number) << 10 * " KMGT".index(unit.upper() or " ")
        elif not unit:
            limit = int(number)
        else:
            continue
        known = found.get(f"cmdline.{name}")
        if name == "maxcpus" or (limit and (known is None or limit < int(known))):
            found[f"cmdline.{name}"] = limit
    return found
