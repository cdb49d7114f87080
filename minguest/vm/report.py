# SPDX-License-Identifier: Apache-2.0
"""Reads initd's report: JSON lines, protocol 1 (docs/report.md)."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

PROTOCOL = 1
BEGIN = b'{"record":"begin"'
END = b'{"record":"end"'
# More than any kernel's NR_CPUS.
CPUS_MAX = 1 << 16
# initd waits for the host to plug in CPUs or memory.
READY = b'{"record":"ready"'
# initd has them in use, and waits for the host to unplug CPUs again.
IN_USE = b'{"record":"in-use"'
# What initd writes after the end: later hotplug events and their modules, what became of the root, the kernel's log,
# the hand-over to the root's init, how its program ended, and last how the guest shut down.
AFTER_END = ("event", "module", "root", "log", "handover", "exit", "shutdown")
# What the kernel escapes in /dev/kmsg: Documentation/ABI/testing/dev-kmsg.
ESCAPED = re.compile(r"\\x([0-9a-f]{2})")
# The time before a message.
TIME = re.compile(r"\[ *\d+\.\d{6}\] ")
# The index of an expansion ROM among the BARs.
ROM = 6
# How deep a record may be nested: initd's deepest is a list of objects in an object.
DEPTH = 16

_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Hex = Annotated[str, msgspec.Meta(pattern="^(0x)?[0-9a-f]{1,16}$")]


class Bar(msgspec.Struct, frozen=True):
    """A base address register as the guest's kernel sees it; `start` in hex, `size` in bytes.

    Linux drops both for a BAR that it could not place.
    """

    index: Annotated[int, msgspec.Meta(ge=0, le=ROM)]
    start: _Hex | None
    size: _Count | None
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
    messages: _Count | None = None
    """Interrupts that came by MSI or MSI-X; None: the device uses neither."""


class Module(msgspec.Struct, frozen=True):
    """A kernel module that initd loaded or tried to load: docs/report.md has the fields and the bounds."""

    name: Annotated[str, msgspec.Meta(max_length=63)]
    file: Annotated[str, msgspec.Meta(max_length=4096)] | None
    version: Annotated[str, msgspec.Meta(max_length=63)] | None
    result: Literal["loaded", "failed", "timeout", "absent"]
    errno: Annotated[str, msgspec.Meta(pattern="^[A-Z0-9]{1,15}$")] | None
    signal: Annotated[int, msgspec.Meta(ge=1, le=64)] | None
    seconds: Annotated[float, msgspec.Meta(ge=0)] | None
    messages: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=200)], ...], msgspec.Meta(max_length=10)]


class _Uname(msgspec.Struct):
    release: str | None = None


class _Begin(msgspec.Struct):
    uptime: Annotated[float, msgspec.Meta(ge=0)] | None = None
    kernel: _Uname | None = None
    cmdline: str | None = None


class _Cpus(msgspec.Struct):
    possible: str | None = None
    present: str | None = None
    online: str | None = None


class _Node(msgspec.Struct):
    cpus: str | None = None
    memory_bytes: _Count | None = None
    distances: tuple[int, ...] | None = None


class _Memory(msgspec.Struct):
    ram_bytes: _Count | None = None
    blocks_present: _Count | None = None
    blocks_online: _Count | None = None


class _Firmware(msgspec.Struct):
    kind: str | None = None
    vendor: str | None = None
    version: str | None = None


class _Interrupts(msgspec.Struct):
    controllers: tuple[str, ...] | None = None


class _Times(msgspec.Struct):
    start: Annotated[float, msgspec.Meta(ge=0)] | None = None
    report: Annotated[float, msgspec.Meta(ge=0)] | None = None
    tsc: _Count | None = None


class _Driver(msgspec.Struct):
    address: str
    name: str
    nodes: tuple[str, ...]
    module: str | None = None
    version: str | None = None
    firmware: str | None = None


# Types of the fields that are read in records that are kept as they came. A report with another type is damaged.
SHAPES = {
    "begin": _Begin,
    "cpus": _Cpus,
    "node": _Node,
    "memory": _Memory,
    "firmware": _Firmware,
    "interrupts": _Interrupts,
    "driver": _Driver,
    "times": _Times,
}


class Shutdown(msgspec.Struct, frozen=True):
    """How the guest shut down: docs/report.md has the fields."""

    why: str
    how: str
    killed: _Count
    left: _Count
    synced: bool
    busy: _Count | None
    console_lost: _Count = 0


class FoundRoot(msgspec.Struct, frozen=True):
    """What became of the root that the guest looked for: docs/report.md has the fields. Times in seconds."""

    requested: str
    result: str
    """`found`, or why not."""
    error: str | None
    device: str | None
    type: str | None
    read_only: bool
    init: str
    waited: Annotated[float, msgspec.Meta(ge=0)] | None = None
    mounting: Annotated[float, msgspec.Meta(ge=0)] | None = None


class LogPart(msgspec.Struct, frozen=True):
    """Some of the kernel's messages, in their order: docs/report.md has the fields and the bounds."""

    left_out: _Count
    """Messages before these that did not come: the kernel or initd had no room for them."""
    lines: tuple[Annotated[str, msgspec.Meta(max_length=8300)], ...]


class Report(msgspec.Struct, frozen=True):
    """initd's report, as far as it came. Without `complete` the rest was lost."""

    complete: bool
    records: tuple[dict[str, Any], ...]
    pci: tuple[PciDevice, ...]
    damage: str | None = None
    """Why reading stopped early, if it did."""
    shutdown: Shutdown | None = None
    """initd's last record; None: it did not come."""
    root: FoundRoot | None = None
    """None: the guest looked for no root, or has not found out yet."""
    modules: tuple[Module, ...] = ()
    """Also those that were loaded after the end, for devices that were plugged in."""
    log: tuple[LogPart, ...] = ()
    """The kernel's log, if it was requested and came."""

    def all(self, name: str) -> list[dict[str, Any]]:
        """Every record of that name."""
        return [each for each in self.records if each["record"] == name]

    def record(self, name: str) -> dict[str, Any]:
        """The first record of that name; empty if there is none."""
        return next((each for each in self.records if each["record"] == name), {})


def parse(text: bytes) -> Report:
    """Read a report, whole or cut anywhere. A line that is not a record ends it; nothing is guessed.

    Text before `begin` does not belong to the report: a firmware that uses the port as a console writes there first.
    After `end` only AFTER_END's records may come. With anything else, such as a second report, it is not known what
    initd wrote, so the report is damaged. The last line may be cut, as QEMU may be ended while the guest writes.
    """
    records: list[dict[str, Any]] = []
    devices: list[PciDevice] = []
    modules: list[Module] = []
    log: list[LogPart] = []
    damage = None
    shutdown = None
    root = None
    ended = False
    for number, line in enumerate(text[max(text.find(BEGIN), 0) :].splitlines(keepends=True), 1):
        if ended and not line.endswith(b"\n"):
            break
        try:
            record = _record(line)
            if ended and record["record"] not in AFTER_END:
                raise ValueError(f"{record['record']} after the end")
            if shutdown:
                raise ValueError(f"{record['record']} after the shutdown")
            if ended and record["record"] == "shutdown":
                shutdown = msgspec.convert(record, Shutdown)
            if record["record"] == "root":
                root = msgspec.convert(record, FoundRoot)
            if record["record"] == "module":
                modules.append(msgspec.convert(record, Module))
            if record["record"] == "log":
                log.append(msgspec.convert(record, LogPart))
            if not ended and (device := _device(record, number)):
                devices.append(device)
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            damage = f"line {number}: {error}"
            break
        if not ended:
            records.append(record)
            ended = record["record"] == "end"
    if ended and damage is None and (sent := records[-1].get("records")) != len(records) - 1:
        damage = f"{sent} records were sent, {len(records) - 1} came"
    complete = ended and damage is None
    last = shutdown if complete else None
    return Report(complete, tuple(records), tuple(devices), damage, last, root, tuple(modules), tuple(log))


def kernel_log(log: Sequence[LogPart]) -> bytes:
    """The kernel's log as a console has it, a line a message or more; where messages are left out, a line says so."""
    found: list[str] = []
    for part in log:
        if part.left_out:
            found.append(f"-- {part.left_out} messages left out --")
        for line in part.lines:
            time = match[0] if (match := TIME.match(line)) else ""
            # Bytes that are no ASCII, as Latin-1 here: together they may be UTF-8.
            plain = ESCAPED.sub(lambda code: chr(int(code[1], 16)), line[len(time) :])
            found += [time + each for each in plain.split("\n")]
    return "".join(f"{line}\n" for line in found).encode("latin-1", "replace")


def _record(line: bytes) -> dict[str, Any]:
    """One line as a record; ValueError if it is not one."""
    record = msgspec.json.decode(line)
    if not isinstance(record, dict) or not isinstance(record.get("record"), str):
        raise ValueError("not a record")
    _check_depth(record, DEPTH)
    return record


def _device(record: dict[str, Any], number: int) -> PciDevice | None:
    """The device that a record describes, if it is a `pci` record; ValueError if the record is not valid."""
    name = record["record"]
    if name == "begin" and record.get("protocol") != PROTOCOL:
        raise ValueError(f"protocol {record.get('protocol')}, this reader knows {PROTOCOL}")
    device = msgspec.convert(record, PciDevice) if name == "pci" else None
    if name in SHAPES:
        shape = msgspec.convert(record, SHAPES[name])
        for cpus in ("possible", "present", "online", "cpus"):
            cpu_list(getattr(shape, cpus, None) or "")
    if (name == "begin") != (number == 1):
        raise ValueError("a second begin" if name == "begin" else "no begin before it")
    return device


def _check_depth(value: Any, room: int) -> None:
    if room == 0:
        raise ValueError(f"nested more than {DEPTH} deep")
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(each, room - 1)


def cpu_list(text: str) -> list[int]:
    """The CPUs that a kernel list such as `0-3,8` names; ValueError if it is not such a list."""
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
