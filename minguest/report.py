# SPDX-License-Identifier: Apache-2.0
"""Reads what initd saw: JSON lines, protocol 1 (docs/report.md)."""

import json
from typing import Any

import msgspec

PROTOCOL = 1
BEGIN = b'{"record":"begin"'
END = b'{"record":"end"'


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


class Report(msgspec.Struct, frozen=True):
    """What initd said, as far as it came. Without `complete` the rest was lost."""

    complete: bool
    records: tuple[dict[str, Any], ...]
    pci: tuple[PciDevice, ...]
    damage: str | None = None
    """Why reading stopped early, if it did."""

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
        except ValueError as error:  # msgspec's and json's errors are ValueErrors
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


def cpu_count(cpulist: str) -> int:
    """How many CPUs a kernel list such as `0-3,8` names."""
    count = 0
    for part in filter(None, cpulist.strip().split(",")):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count
