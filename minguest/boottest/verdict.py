# SPDX-License-Identifier: Apache-2.0
"""Compares three views of one guest: what was requested, what QEMU has, what the guest reports. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from minguest.boottest import drivers, lost
from minguest.model import Root
from minguest.util import units
from minguest.vm import bar_window, cards, console
from minguest.vm.cards import Gpu
from minguest.vm.launch import Spec
from minguest.vm.qemu import Run
from minguest.vm.qmp import functions
from minguest.vm.report import (
    ROM,
    FoundRoot,
    LogPart,
    Module,
    PciDevice,
    Report,
    Shutdown,
    cpu_count,
    cpu_list,
    kernel_log,
)

# A guest never has all of its memory as RAM: OVMF keeps its runtime data and ACPI's tables, the first MiB has holes.
# Measured with OVMF 2025.02: 1.5 to 4 MiB on both series.
RESERVED_MAX = 32 << 20
# If memory may lie above 4 GiB, Linux keeps buffers below it for devices that reach no further, all of them from one
# node (swiotlb: IO_TLB_DEFAULT_SIZE).
BOUNCE = 64 << 20
# QEMU's address of a BAR that has none: PCI_BAR_UNMAPPED, include/hw/pci/pci.h
UNMAPPED = -1
# File systems that can be written to: the others are always mounted read-only.
WRITABLE = ("ext4", "xfs", "btrfs")


class Check(msgspec.Struct, frozen=True):
    """One row: the same fact in three views."""

    name: str
    requested: str
    qemu: str
    guest: str
    ok: bool
    why: str = ""


class Shipped(msgspec.Struct, frozen=True):
    """The kernel and firmware that a bundle's manifest names."""

    kernel: str
    """Its release, as in uname(2)."""
    firmware: str
    """OVMF's version, as in SMBIOS."""


class Phases(msgspec.Struct, frozen=True):
    """Seconds. `firmware`: from QEMU's start to the start of the kernel's clock, which includes unpacking the image;
    `kernel`: from there to initd's start, by the guest's clock; `initd`: the report, first to last line."""

    firmware: float | None
    kernel: float | None
    initd: float | None
    wall: float


class Verdict(msgspec.Struct, frozen=True):
    """The result of one boot."""

    result: Literal["pass", "failed", "lost"]
    reason: str
    checks: tuple[Check, ...]
    phases: Phases
    ending: str
    telling: tuple[console.Line, ...] = ()
    """Console lines that name trouble, for anything but a pass."""
    logged: tuple[console.Line, ...] = ()
    """Lines of the kernel's log that do, of a quiet console."""
    tail: tuple[console.Line, ...] = ()
    """The last lines of the console, for a lost guest."""


def judge(
    spec: Spec,
    run: Run,
    report: Report,
    problems: Sequence[str] = (),
    window: bar_window.Window | None = None,
    shipped: Shipped | None = None,
) -> Verdict:
    """The verdict of one boot. `problems` are those of the bundle's config that contract=ignore accepted; `window` is
    where the plan has the cards' large BARs; `shipped` is what the guest's kernel and firmware must be."""
    screen = console.lines(run.console)
    phases = _phases(run, report)
    logged = tuple(console.trouble(console.lines(kernel_log(report.log))))
    # Without QEMU's answers there is nothing to compare the report with.
    if not report.complete or run.ending in ("qemu died", "no answer"):
        return Verdict(
            result="lost",
            reason=lost.reason(spec, run, report, screen),
            checks=(),
            phases=phases,
            ending=run.ending,
            telling=tuple(console.trouble(screen)),
            logged=logged,
            tail=tuple(console.tail(screen, 12)),
        )
    checks = tuple(_checks(spec, run, report, window, shipped))
    wrong = [check for check in checks if not check.ok]
    if not wrong:
        return Verdict("pass", "three views agree", checks, phases, run.ending)
    causes = [f"this kernel was built although its config was known to be wrong:\n{each}" for each in problems]
    return Verdict(
        result="failed",
        reason="\n".join(["; ".join(f"{check.name}: {check.why}" for check in wrong), *causes]),
        checks=checks,
        phases=phases,
        ending=run.ending,
        telling=tuple(console.trouble(screen)),
        logged=logged,
    )


def with_pits(judged: Verdict, roots: Mapping[str, str]) -> Verdict:
    """The verdict with the pits that were recognized, by id with their titles. With a pit a guest does not pass."""
    if judged.result == "lost" or (judged.result == "failed" and roots):
        return judged
    why = "; ".join(f"{name}: {title}" for name, title in roots.items())
    row = Check("pits", "none", "", ", ".join(roots) or "none known", not roots, why)
    judged = msgspec.structs.replace(judged, checks=(*judged.checks, row))
    if roots:
        return msgspec.structs.replace(judged, result="failed", reason=f"three views agree, but {why}")
    return judged


def _phases(run: Run, report: Report) -> Phases:
    booted = report.record("begin").get("uptime")
    if run.begin is None or not isinstance(booted, (int, float)):
        return Phases(None, None, None, run.wall)
    return Phases(
        firmware=max(0.0, run.begin - booted),
        kernel=float(booted),
        initd=run.end - run.begin if run.end is not None else None,
        wall=run.wall,
    )


def _checks(
    spec: Spec, run: Run, report: Report, window: bar_window.Window | None, shipped: Shipped | None
) -> Iterator[Check]:
    views = run.views
    cpus = report.record("cpus")
    online = cpu_count(cpus.get("online") or "")
    in_qemu = len(views["cpus"]) if "cpus" in views else None
    before = "".join(f"{count} → " for count in (spec.cpus, spec.plug_cpus) if spec.plug_cpus and count)
    before = before if spec.unplug_cpus else before.removesuffix(f"{spec.plug_cpus} → ")
    yield _equal("CPUs", spec.last_cpus, in_qemu, online, before)
    slots = len(views["hotpluggable_cpus"]) if "hotpluggable_cpus" in views else None
    yield _equal("CPUs at most", spec.max_cpus, slots, cpu_count(cpus.get("possible") or ""))
    yield _memory(spec, views, report)
    if spec.numa:
        yield _nodes(spec, report)
    yield _firmware(report, shipped)
    if shipped is not None:
        yield _kernel(report, shipped)
    devices = {device.address: device for device in report.pci}
    qemu_devices = functions(views.get("pci", ()))
    yield _all_devices(qemu_devices, devices)
    yield _bars(report.pci)
    for gpu in spec.gpus:
        yield _gpu(gpu, qemu_devices, devices)
        if spec.driver:
            yield _driver(gpu, spec.driver, qemu_devices, devices, report.modules)
    if spec.drivers and (load := spec.drivers.load):
        found, why = drivers.of_disk(load, report.modules, passed=any(gpu.host for gpu in spec.gpus))
        yield Check("drivers", ", ".join(load), "", found, not why, why)
    if window is not None and (high := _high(spec.gpus)):
        yield _window(window, high, qemu_devices, devices)
    if spec.root is not None:
        yield _root(spec.root, report.root)
    if spec.power_button:
        yield _button(report.shutdown)
    if spec.console == "quiet":
        yield _log(report.log)
    off = run.ending == "power-off"
    panic = lost.panic(console.lines(run.console))
    why = f"the kernel panicked after its report (console line {panic.number})" if panic else run.detail or run.ending
    last = report.shutdown.how if report.shutdown else ""
    yield Check("power-off", "yes", run.ending, last, off, "" if off else why)


def _firmware(report: Report, shipped: Shipped | None) -> Check:
    record = report.record("firmware")
    kind, version = record.get("kind"), record.get("version") or ""
    why = "" if kind == "uefi" else f"the guest reports {kind}, not UEFI"
    if not why and shipped is not None and version != shipped.firmware:
        why = f"the guest reports {version or 'no version'}, the bundle has {shipped.firmware}"
    requested = f"UEFI {shipped.firmware}" if shipped is not None else "UEFI"
    return Check("firmware", requested, "", f"{kind} {version}".strip(), not why, why)


def _kernel(report: Report, shipped: Shipped) -> Check:
    release = (report.record("begin").get("kernel") or {}).get("release") or "not reported"
    ok = release == shipped.kernel
    return Check(
        "kernel", shipped.kernel, "", release, ok, "" if ok else f"it is {release}, the bundle has {shipped.kernel}"
    )


def _equal(name: str, requested: int, qemu: int | None, guest: int, before: str = "") -> Check:
    ok = requested == qemu == guest
    why = f"{guest} of {requested}" if guest != requested else f"QEMU has {_shown(qemu)}, {requested} were requested"
    return Check(name, f"{before}{requested}", _shown(qemu), str(guest), ok, "" if ok else why)


def _shown(value: int | None) -> str:
    return "not answered" if value is None else str(value)


def _memory(spec: Spec, views: dict[str, Any], report: Report) -> Check:
    facts = views.get("memory", {})
    size = facts["base-memory"] + facts.get("plugged-memory", 0) if facts else None
    ram = report.record("memory").get("ram_bytes") or 0
    requested = max(spec.memory, spec.plug_memory)
    enough = requested - RESERVED_MAX <= ram <= requested
    ok = size == requested and enough
    in_qemu = "not answered" if size is None else units.rounded(size)
    why = f"{units.rounded(ram)} of {units.rounded(requested)}" if not enough else f"QEMU has {in_qemu}"
    return Check(
        "memory",
        f"{units.rounded(spec.memory)} → {units.rounded(requested)}" if spec.plug_memory else units.rounded(requested),
        in_qemu,
        f"{units.rounded(ram)} RAM",
        ok,
        "" if ok else why,
    )


def _nodes(spec: Spec, report: Report) -> Check:
    """Every node's CPUs and distances; its memory, less what the kernel keeps, to a tenth.

    Memory that is plugged in goes to the first node: QEMU's pc-dimm has node=0 by default.
    """
    seen = report.all("node")
    plugged = max(0, spec.plug_memory - spec.memory)
    kept = RESERVED_MAX + (BOUNCE if spec.max_memory or spec.memory >= bar_window.LOW_MAX else 0)
    wrong = [] if len(seen) == len(spec.numa) else [f"{len(seen)} of {len(spec.numa)}"]
    for number, (node, view) in enumerate(zip(spec.numa, seen, strict=False)):
        if {cpu for cpu in node.cpus if cpu < spec.last_cpus} != set(cpu_list(view.get("cpus") or "")):
            wrong.append(f"node {number} has CPUs {view.get('cpus')}")
        if tuple(view.get("distances") or ()) != node.distances:
            wrong.append(f"node {number}'s distances are {view.get('distances')}")
        requested, there = node.memory + (0 if number else plugged), view.get("memory_bytes") or 0
        if not requested * 0.9 - kept <= there <= requested * 1.01 + RESERVED_MAX:
            wrong.append(f"node {number} has {units.rounded(there)} of {units.rounded(requested)}")
    guest = "; ".join(f"CPUs {view.get('cpus')}" for view in seen) or "none"
    return Check("NUMA nodes", str(len(spec.numa)), "", guest, not wrong, "; ".join(wrong))


def _all_devices(in_qemu: dict[str, dict[str, Any]], seen: dict[str, PciDevice]) -> Check:
    missing, extra = sorted(in_qemu.keys() - seen.keys()), sorted(seen.keys() - in_qemu.keys())
    why = "; ".join(
        [f"the guest does not report {', '.join(missing)}"] * bool(missing)
        + [f"QEMU does not have {', '.join(extra)}"] * bool(extra)
    )
    ok = bool(in_qemu) and not why
    why = why or ("" if ok else "QMP did not answer")
    return Check("PCI devices", "all", str(len(in_qemu)), str(len(seen)), ok, why)


def _bars(devices: Sequence[PciDevice]) -> Check:
    """Every BAR of every device has an address: one without may leave others behind the same bridge without one too."""
    bars = [(device.address, bar) for device in devices for bar in device.bars if bar.index != ROM]
    dead = [f"{address} BAR {bar.index}" for address, bar in bars if not bar.assigned]
    why = f"no address: {', '.join(dead)}" if dead else ""
    return Check("BARs", "all placed", "", f"{len(bars) - len(dead)} of {len(bars)}", not dead, why)


def _gpu(gpu: Gpu, devices: dict[str, dict[str, Any]], seen: dict[str, PciDevice]) -> Check:
    name = f"GPU {gpu.id}"
    found = next(((address, each) for address, each in devices.items() if each.get("qdev_id") == gpu.id), None)
    if found is None:
        return Check(name, str(gpu), "not there", "", False, "QEMU has no such device")
    address, device = found
    regions = {each["bar"]: each for each in device["regions"] if each["bar"] != ROM}
    in_qemu = f"{address}, {len(regions)} BARs"
    view = seen.get(address)
    if view is None:
        return Check(name, str(gpu), in_qemu, "not there", False, f"the guest reports nothing at {address}")
    bars = {bar.index: bar for bar in view.bars if bar.index != ROM}
    wrong = _identity(gpu, view, {index: region["size"] for index, region in regions.items()})
    if gpu.node is not None and view.numa_node != gpu.node:
        wrong.append(f"near node {view.numa_node}, not {gpu.node}")
    dead = [index for index in sorted(regions) if index not in bars or not bars[index].assigned]
    wrong += [f"BAR {index} ({units.rounded(regions[index]['size'])}) has no address" for index in dead]
    for index, region in sorted(regions.items()):
        if dead:
            break  # Linux does not enable such a device, so QEMU has no address for any of its BARs
        bar = bars[index]
        if region["address"] == UNMAPPED:
            off = f"the device does not decode (command {view.command})"
            wrong.append(f"BAR {index} ({units.rounded(region['size'])}): guest {bar.start}, and {off}")
        elif int(bar.start or "0", 16) != region["address"]:
            wrong.append(f"BAR {index}: guest {bar.start}, QEMU {region['address']:#x}")
        elif bar.size != region["size"]:
            wrong.append(f"BAR {index}: guest {units.rounded(bar.size or 0)}, QEMU {units.rounded(region['size'])}")
    if not regions:
        wrong.append("QEMU reports no BARs")
    placed = sum(bar.assigned for bar in bars.values())
    guest = f"{view.vendor}:{view.device}, {placed} of {len(regions)} BARs placed"
    guest += f", node {view.numa_node}" * (gpu.node is not None)
    return Check(name, str(gpu), in_qemu, guest, not wrong, "; ".join(wrong))


def _driver(
    gpu: Gpu, wanted: str, devices: dict[str, Any], seen: dict[str, PciDevice], modules: Sequence[Module]
) -> Check:
    view = next((seen.get(address) for address, each in devices.items() if each.get("qdev_id") == gpu.id), None)
    bound = view.driver if view else None
    why = drivers.why_not(wanted, bound, modules)
    return Check(f"driver of {gpu.id}", wanted, "", bound or "none", not why, why)


def _button(shutdown: Shutdown | None) -> Check:
    """Whether the guest shut down because of its power button, and in order."""
    name, requested = "power button", "shut down in order"
    if shutdown is None:
        return Check(name, requested, "", "nothing", False, "the guest did not shut down when the button was pressed")
    wrong = [f"it ended because of {shutdown.why}"] * (shutdown.why != "power-button")
    wrong += [f"it ended with {shutdown.how}"] * (shutdown.how != "power-off")
    wrong += [f"{shutdown.killed} programs had to be killed, {shutdown.left} are left"] * bool(shutdown.killed)
    wrong += ["not all data was written to the disks"] * (not shutdown.synced)
    if shutdown.busy != 0:
        wrong.append(f"{'some' if shutdown.busy is None else shutdown.busy} file systems stayed writable")
    return Check(name, requested, "", f"{shutdown.why}, {shutdown.how}", not wrong, "; ".join(wrong))


def _log(log: Sequence[LogPart]) -> Check:
    """Whether the kernel's log came: without it nobody knows what a quiet kernel complained about."""
    lines, left_out = sum(len(part.lines) for part in log), sum(part.left_out for part in log)
    guest = f"{lines} messages" + f", {left_out} left out" * bool(left_out)
    why = "" if log else "it did not come after the report, and the console was quiet"
    return Check("kernel's log", "after the report", "", guest, bool(log), why)


def _root(wanted: Root, found: FoundRoot | None) -> Check:
    """Whether the guest has mounted its root, and its init can start."""
    requested = f"{wanted.disk}, {wanted.filesystem}"
    if found is None:
        return Check("root", requested, "", "not reported", False, "the guest did not report what became of its root")
    if found.result != "found":
        return Check("root", requested, "", found.result, False, found.error or found.result)
    guest = f"{found.device or found.requested}, {found.type}{', read-only' * found.read_only}, {found.init}"
    share = wanted.disk.startswith(("9p:", "virtiofs:"))
    wrong = [f"it is {found.type}, not {wanted.filesystem}"] * (not share and found.type != wanted.filesystem)
    wrong += ["it is read-only"] * (found.read_only and not wanted.read_only and wanted.filesystem in WRITABLE)
    return Check("root", requested, "", guest, not wrong, "; ".join(wrong))


def _high(gpus: Sequence[Gpu]) -> list[tuple[str, int]]:
    """The BARs that lie above 4 GiB behind a root port, each by its card's id and its index."""
    found = [(gpu.id, gpu.card or (cards.one_bar(gpu.name) if gpu.bar else None)) for gpu in gpus]
    return [(name, bar.index) for name, card in found if card is not None for bar in card.bars if bar.high]


def _window(
    window: bar_window.Window,
    high: Sequence[tuple[str, int]],
    devices: dict[str, dict[str, Any]],
    seen: dict[str, PciDevice],
) -> Check:
    """Whether the guest has all of these BARs where the plan has them."""
    addresses = {each.get("qdev_id"): address for address, each in devices.items()}
    outside = []
    for name, index in high:
        view = seen.get(addresses.get(name, ""))
        bar = next((bar for bar in view.bars if bar.index == index), None) if view else None
        start = int(bar.start or "0", 16) if bar else 0
        if not bar or not window.base <= start <= start + (bar.size or 0) <= window.end:
            outside.append(f"{name} BAR {index} at {start:#x}" if start else f"{name} BAR {index}")
    requested = f"{window.base:#x} to {window.end:#x}"
    why = f"not where it was planned, {requested}: {', '.join(outside)}" if outside else ""
    return Check("BAR window", requested, "", f"{len(high) - len(outside)} of {len(high)} BARs", not outside, why)


def _identity(gpu: Gpu, view: PciDevice, sizes: Mapping[int, int]) -> list[str]:
    """Whether the device is the card, and if not why; `sizes` of its BARs in bytes as QEMU has them."""
    if gpu.card is None:
        return [] if view.gpu or gpu.bar else [f"class {view.pci_class} is not a display controller's"]
    # The host's card must look the same in the guest.
    host = gpu.card
    there = f"{host.vendor}:{host.device} class {host.pci_class}"
    here = f"{view.vendor}:{view.device} class {view.pci_class}"
    wrong = [] if here == there else [f"{here}, on the host {there}"]
    own = {bar.index: bar.size for bar in host.bars if bar.index != ROM}
    wrong += [
        f"BAR {index} has {units.rounded(sizes.get(index, 0))}, on the host {units.rounded(size)}"
        for index, size in own.items()
        if sizes.get(index) != size
    ]
    return wrong


def table(verdict: Verdict) -> str:
    """The verdict for a person: a row a check, the times, the result last."""
    rows = [("", "requested", "QEMU", "guest", "")]
    rows += [(c.name, c.requested, c.qemu, c.guest, "ok" if c.ok else f"WRONG: {c.why}") for c in verdict.checks]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    text = [
        "  " + "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip()
        for row in rows
        if verdict.checks
    ]
    p = verdict.phases
    times = [f"{name} {value:.2f} s" for name, value in
             (("firmware", p.firmware), ("kernel", p.kernel), ("initd", p.initd)) if value is not None]  # fmt: skip
    text.append("  times: " + " · ".join([*times, f"whole {p.wall:.2f} s"]))
    if verdict.telling:
        text += [
            "  console lines that name trouble:",
            *(f"  {line.number:5} | {line.text}" for line in verdict.telling),
        ]
    if verdict.logged:
        text += [
            "  lines of the kernel's log that name trouble:",
            *(f"  {line.number:5} | {line.text}" for line in verdict.logged),
        ]
    if verdict.tail:
        text += ["  the console's last lines:", *(f"  {line.number:5} | {line.text}" for line in verdict.tail)]
    return "\n".join(text)
