# SPDX-License-Identifier: Apache-2.0
"""Reads what initd saw: JSON lines, protocol 1 (docs/report.md)."""

import json
from typing import Any

import msgspec

PROTOCOL = 1
BEGIN = b'{"record":"begin"'
END = b'{"record":"end"'
# More than any kernel's NR_CPUS.
CPUS_MAX = 1 << 16
# initd waits for CPUs or memory that are to be plugged in now.
READY = b'{"record":"ready"'
# It has them, and waits for CPUs to be taken out again.
IN_USE = b'{"record":"in-use"'
# The index of an expansion ROM among the BARs.
ROM = 6


class Bar(msgspec.Struct, frozen=True):
    """A base address register as the guest's kernel sees it; `start` in hex, `size` in bytes.

    Linux forgets both for a BAR that it could not place.
    """

    index: int
    start: str | None
    size: int | None
    kind: str
    assigned: bool


class PciDevice(msgspec.Struct, frozen=True, rename={"pci_class": "class"}):
    """A PCI function as the guest's kernel sees it."""

    address: str
    vendor: str
    device: str
    pci_class: str
    gpu: bool
    bars: tuple[Bar, ...]
    driver: str | None = None
    command: str | None = None
    """The command register in hex: bit 1 is memory decoding."""
    numa_node: int | None = None
    messages: int | None = None
    """Interrupts that came by MSI or MSI-X; None: it uses neither."""


class _Begin(msgspec.Struct):
    uptime: float | None = None
    cmdline: str | None = None


class _Cpus(msgspec.Struct):
    possible: str | None = None
    present: str | None = None
    online: str | None = None


class _Node(msgspec.Struct):
    cpus: str | None = None
    memory_bytes: int | None = None
    distances: tuple[int, ...] | None = None


class _Memory(msgspec.Struct):
    ram_bytes: int | None = None
    blocks_present: int | None = None
    blocks_online: int | None = None


class _Firmware(msgspec.Struct):
    kind: str | None = None
    vendor: str | None = None
    version: str | None = None


class _Interrupts(msgspec.Struct):
    controllers: tuple[str, ...] | None = None


# What is read of records that stay as they came: a guest that says something else there has no report.
SHAPES = {
    "begin": _Begin,
    "cpus": _Cpus,
    "node": _Node,
    "memory": _Memory,
    "firmware": _Firmware,
    "interrupts": _Interrupts,
}


class Report(msgspec.Struct, frozen=True):
    """What initd said, as far as it came. Without `complete` the rest was lost."""

    complete: bool
    records: tuple[dict[str, Any], ...]
    pci: tuple[PciDevice, ...]
    damage: str | None = None
    """Why reading stopped early, if it did."""

    def all(self, name: str) -> list[dict[str, Any]]:
        """Every record of that name."""
        return [each for each in self.records if each["record"] == name]

    def record(self, name: str) -> dict[str, Any]:
        """The first record of that name; empty where there is none."""
        return next((each for each in self.records if each["record"] == name), {})


def parse(text: bytes) -> Report:
    """Read a report, whole or cut anywhere. A line that is no record ends it; nothing is guessed.

    What comes before `begin` is not the report's: a firmware that takes the port for a console writes there first.
    """
    records: list[dict[str, Any]] = []
    devices: list[PciDevice] = []
    damage = None
    for number, line in enumerate(text[max(text.find(BEGIN), 0) :].splitlines(), 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("record"), str):
                raise ValueError("no record")
            if record["record"] == "begin" and record.get("protocol") != PROTOCOL:
                raise ValueError(f"protocol {record.get('protocol')}, this reader knows {PROTOCOL}")
            if record["record"] == "pci":
                devices.append(msgspec.convert(record, PciDevice))
            elif record["record"] in SHAPES:
                shape = msgspec.convert(record, SHAPES[record["record"]])
                for name in ("possible", "present", "online", "cpus"):
                    cpu_list(getattr(shape, name, None) or "")
        except (ValueError, RecursionError) as error:  # msgspec's and json's errors are ValueErrors
            damage = f"line {number}: {error}"
            break
        records.append(record)
        if record["record"] == "end":
            break
    last = records[-1] if records else {}
    complete = last.get("record") == "end"
    if complete and last.get("records") != len(records) - 1:
        complete, damage = False, f"{last.get('records')} records were sent, {len(records) - 1} came"
    return Report(complete, tuple(records), tuple(devices), damage)


def cpu_list(text: str) -> list[int]:
    """The CPUs that a kernel list such as `0-3,8` names; ValueError where it is none."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        if int(last or first) >= CPUS_MAX:
            raise ValueError(f"CPU {last or first}: no kernel has so many")
        found += range(int(first), int(last or first) + 1)
        if len(found) > CPUS_MAX:
            raise ValueError(f"{len(found)} CPUs: no kernel has so many")
    return found


def cpu_count(cpulist: str) -> int:
    """How many CPUs a kernel list names."""
    return len(cpu_list(cpulist))
