# SPDX-License-Identifier: Apache-2.0
"""Whether the BARs of cards find room under OVMF on q35, and which options of QEMU make the room. Pure.

A model of three programs, each rule beside its function. QEMU lays out memory; OVMF's PlatformInitLib (MemDetect.c)
opens one window for all 64-bit BARs; edk2's PciBusDxe (PciResourceSupport.c) packs root ports and BARs into it. Linux
keeps these addresses. Real boots of OVMF 2025.02 under QEMU 7.2 agree; tests/unit/vm/test_bar_window.py lists them.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from minguest.model import Accel
from minguest.util.errors import UserError
from minguest.util.units import GIB, MIB, TIB
from minguest.vm.cards import Bar, Card

BASE_4G = 4 * GIB
# From this size on, a q35 has some of its memory above 4 GiB (hw/i386/pc_q35.c: pc_q35_init).
LOW_MAX = 0xB000_0000
Vendor = Literal["AuthenticAMD", "GenuineIntel", "other"]
INTEL = "GenuineIntel"
# QEMU's default without phys-bits= (target/i386/cpu.h: TCG_PHYS_ADDR_BITS), and what -cpu accepts.
BITS_DEFAULT, BITS_MIN, BITS_MAX = 40, 32, 52
# Vendors of QEMU's CPU models under software emulation, by the beginnings of their names; all others are Intel's
# (target/i386/cpu.c: builtin_x86_defs; QEMU 7.2's query-cpu-model-expansion says the same).
MODELS = {"AuthenticAMD": "max|qemu64|EPYC|Opteron|phenom|athlon", "other": "base|Dhyana|YongFeng"}
# OVMF uses no more with 4-level paging, "as some older Linux kernels have problems" (PlatformAddressWidthFromCpuid).
BITS_USED = 46
# The window that OVMF opens where it does not trust the CPU's width (PcdPciMmio64Size in OvmfPkgX64.dsc).
CLASSIC = 32 * GIB
# The largest value that OVMF accepts from X-PciMmio64Mb (PlatformGetFirstNonAddress).
FW_CFG_MAX = 16 * TIB
# q35's own reserve for 64-bit BARs, which QEMU counts when it checks memory against phys-bits (hw/pci-host/q35.c).
HOLE64 = 32 * GIB
# HyperTransport's addresses, which QEMU reserves with an AMD CPU of 40 bits or more (hw/i386/pc.c: AMD_HT_START).
HT = (0xFD_0000_0000, TIB)
# A bridge's windows are aligned to 1 MiB (PciBusDxe: CreateResourceMap). Every hot-plug port gets 2 MiB below 4 GiB
# (OvmfPkg/PciHotPlugInitDxe: GetResourcePadding). If the window above 4 GiB is larger than the classic one, every
# hot-plug port also gets 1/256 of it, as a power of two. Seen in boots with windows of 8 GiB to 8 TiB.
GRAIN, PORT_LOW, PORT_SHARE = MIB, 2 * MIB, 256
# Where the 32-bit aperture ends: q35's ECAM.
ECAM = 0xE000_0000
# Kept free for the machine's own 64-bit BARs: a virtio device has 16 KiB.
ROOM = 64 * MIB


class Window(msgspec.Struct, frozen=True):
    """The 64-bit aperture that OVMF opens; bytes."""

    base: int
    size: int
    rule: Literal["an eighth of the address space", "the classic window", "set by X-PciMmio64Mb"]

    @property
    def end(self) -> int:
        return self.base + self.size


class Port(msgspec.Struct, frozen=True):
    """A root port with its card; bytes."""

    card: Card
    high: int
    """Its 64-bit prefetchable window."""
    alignment: int
    low: int
    """Its 32-bit window."""
    pref64_reserve: int = 0
    """For -device pcie-root-port; 0: none is needed, since OVMF sees the card."""
    mem_reserve: int = 0
    """Likewise, if the 2 MiB that every port gets are too little."""
    share: int = 0
    """`high`, if it is not the card's need but a hot-plug port's share of the window; 0: the card needs more."""
    base: int | None = None
    """Address of `high`; None if `high` is 0 or does not fit."""


class Memory(msgspec.Struct, frozen=True):
    """How QEMU lays out a q35's memory; bytes, addresses exclusive."""

    low: int
    """Below 4 GiB."""
    end: int
    """Of all memory and of what can be plugged in."""


class Plan(msgspec.Struct, frozen=True):
    """What cards need, what OVMF does with it, and which options QEMU needs."""

    need: int
    """Bytes of the window that the packed ports fill."""
    window_mib: int
    """The same, with room for the machine's own devices, in whole GiB as OVMF rounds it."""
    phys_bits: int | None
    """The fewest physical address bits with which it fits, if need be with X-PciMmio64Mb; None: no number does."""
    alone_bits: int | None
    """The fewest with which it fits without X-PciMmio64Mb."""
    given_bits: int
    vendor: Vendor
    memory: Memory
    alone: Window
    """What OVMF opens at `given_bits` by itself."""
    window: Window
    """What it opens with `fw_cfg`."""
    fits: bool
    ports: tuple[Port, ...]
    fw_cfg: tuple[str, ...]
    """Options for QEMU; empty: OVMF needs none, or nothing helps at `given_bits`."""


def plan(
    cards: Sequence[Card],
    memory_bytes: int,
    phys_bits: int,
    *,
    max_memory: int = 0,
    slots: int = 0,
    vendor: Vendor = "AuthenticAMD",
    hotplug: bool = False,
) -> Plan:
    """Plan a q35 guest with `cards`, each behind a root port of its own, in this order.

    `phys_bits` and `vendor` are those of the guest's CPU: QEMU's own `max` is AuthenticAMD under software emulation.
    With `hotplug` all cards are plugged in later. UserError for what QEMU does not accept.
    """
    if not BITS_MIN <= phys_bits <= BITS_MAX:
        raise UserError(f"phys-bits = {phys_bits}: QEMU accepts {BITS_MIN} to {BITS_MAX}", "OVMF uses 46 at most")
    ports = [root_port(card, hotplug) for card in cards]
    memory = layout(memory_bytes, max_memory, slots, vendor)
    requested = _requested(ports, ROOM)
    alone, window, fits = best_window(memory, phys_bits, vendor, ports)
    fitting = {bits: best_window(memory, bits, vendor, ports) for bits in range(BITS_MIN, BITS_USED + 1)}
    if requested:
        ports = _padded(ports, window.size if fits else requested)
    need, offsets = packed(ports)
    fewest = next((bits for bits, found in fitting.items() if found[2]), None)
    by_itself = next((bits for bits, found in fitting.items() if found[2] and found[1] == found[0]), None)
    fw_cfg: tuple[str, ...] = ()
    if fits and window != alone:
        fw_cfg = ("-fw_cfg", f"name=opt/ovmf/X-PciMmio64Mb,string={window.size // MIB}")
    if fits and need:
        ports = [
            msgspec.structs.replace(port, base=window.base + offset if port.high else None)
            for port, offset in zip(ports, offsets, strict=True)
        ]
    return Plan(
        need=need,
        window_mib=requested // MIB,
        phys_bits=fewest,
        alone_bits=by_itself,
        given_bits=phys_bits,
        vendor=vendor,
        memory=memory,
        alone=alone,
        window=window,
        fits=fits,
        ports=tuple(ports),
        fw_cfg=fw_cfg,
    )


def cpu(option: str, accel: Accel, cpuinfo: str = "") -> tuple[int, Vendor]:
    """Physical address bits and vendor of a guest's CPU, by QEMU's -cpu; `cpuinfo` is the host's /proc/cpuinfo, for
    KVM. The default is an Intel of 40 bits, which OVMF trusts least.

    Under KVM every model has the host's vendor; `host` and `max` have its width too, and ignore phys-bits=
    (target/i386/host-cpu.c: host_cpu_instance_init, host_cpu_max_instance_init, host_cpu_adjust_phys_bits).
    """
    name, *flags = option.split(",")
    said = {key.lstrip("+"): value or "on" for key, _, value in (flag.partition("=") for flag in flags)}
    bits, vendor = BITS_DEFAULT, next((vendor for vendor, models in MODELS.items() if re.match(models, name)), INTEL)
    if said.get("phys-bits", "").isdecimal():
        bits = int(said["phys-bits"])
    if accel == "kvm" or name == "host":
        there = dict(re.findall(r"^(vendor_id|address sizes)\s*: (\w+)", cpuinfo, re.MULTILINE))
        vendor = there.get("vendor_id", INTEL)
        if said.get("host-phys-bits", "on" if name in ("host", "max") else "off") == "on":
            bits = int(there.get("address sizes", BITS_DEFAULT))
            if said.get("host-phys-bits-limit", "").isdecimal():
                bits = min(bits, int(said["host-phys-bits-limit"]) or bits)
    vendor = said.get("vendor", vendor)
    return bits, "AuthenticAMD" if vendor == "AuthenticAMD" else "GenuineIntel" if vendor == INTEL else "other"


def layout(memory: int, max_memory: int, slots: int, vendor: Vendor) -> Memory:
    """QEMU's map of a q35 (hw/i386/pc_q35.c: pc_q35_init; hw/i386/pc.c: pc_memory_init, pc_max_used_gpa).

    Less than 2816 MiB all lie below 4 GiB; else 2 GiB do, and the rest lies above. What can be plugged in follows,
    with a GiB a slot for its alignment. With an AMD CPU all that is above 4 GiB moves above 1 TiB if it would touch
    HyperTransport's range.
    """
    low = memory if memory < LOW_MAX else 2 * GIB

    def end(start: int) -> int:
        above = start + memory - low
        if max_memory > memory:
            above = rounded_up(above, GIB) + max_memory - memory + slots * GIB
        return above

    top = end(BASE_4G)
    if vendor == "AuthenticAMD" and rounded_up(top, GIB) + HOLE64 > HT[0]:
        top = end(TIB)
    return Memory(low, top)


def opened(memory: Memory, bits: int, vendor: Vendor, fw_cfg: int = 0) -> Window:
    """The window that OVMF opens; `fw_cfg` is X-PciMmio64Mb in bytes, 0 for none.

    PlatformGetFirstNonAddress: above memory and etc/reserved-memory-end, aligned to the largest power of two that the
    window holds. PlatformDynamicMmioWindow: if the width is trusted, the last eighth of the address space, if it is
    larger than the window so far and does not reach down to it; PlatformReservationConflictCB moves it below
    HyperTransport's range. X-PciMmio64Mb wins even if it is smaller than the eighth: tianocore/edk2 pull request 10856,
    which Debian's 2025.02 has, as a boot showed; before, the larger of the two won. From August 2026 on edk2 has a
    quarter in place of the eighth (pull request 12997): what fits here fits there too, but at other addresses.
    """
    size = rounded_up(fw_cfg, GIB) if fw_cfg else CLASSIC
    base = rounded_up(rounded_up(max(memory.end, BASE_4G), GIB), 1 << (size.bit_length() - 1))
    if fw_cfg:
        return Window(base, size, "set by X-PciMmio64Mb")
    space = 1 << min(bits, BITS_USED)
    eighth = space >> 3
    if trusted(bits, vendor) and size < eighth and base + eighth < space:
        base, size = space - eighth, eighth
        if _crosses(base, base + size, bits, vendor):
            base = (HT[0] - size) & ~(size - 1)
        return Window(base, size, "an eighth of the address space")
    return Window(base, size, "the classic window")


def trusted(bits: int, vendor: Vendor) -> bool:
    """Whether OVMF trusts the CPU's width (PlatformAddressWidthFromCpuid): 40 is QEMU's default, and only AMD's CPUs
    have it."""
    return bits >= 41 or bits in {"GenuineIntel": (36, 39), "AuthenticAMD": (40,), "other": ()}[vendor]


def best_window(memory: Memory, bits: int, vendor: Vendor, ports: Sequence[Port]) -> tuple[Window, Window, bool]:
    """What OVMF opens by itself, what it should open, and whether the ports fit then."""
    requested = _requested(ports, ROOM)

    def fits(window: Window) -> bool:
        need = packed(_padded(ports, window.size))[0]
        end = window.base + need
        return (
            need <= window.size
            and window.base >= memory.end
            # All of the window, not only the part in use: if it ends above what OVMF maps, OVMF hangs silently.
            and window.end <= 1 << min(bits, BITS_USED)
            and not _crosses(window.base, end, bits, vendor)
        )

    alone = opened(memory, bits, vendor)
    starts = qemu_starts(memory, bits)
    if not requested or (starts and fits(alone)):
        return alone, alone, starts
    # First the smallest with room to spare; then a power of two, which begins at a multiple of itself and may so
    # avoid an obstacle; then the smallest with nothing to spare.
    for size in (requested, _power(requested), _requested(ports, 0)):
        window = opened(memory, bits, vendor, size)
        if starts and size <= FW_CFG_MAX and fits(window):
            return alone, window, True
    return alone, alone, False


def _requested(ports: Sequence[Port], spare: int) -> int:
    """The smallest window that the ports fit in with `spare` bytes, in whole GiB; 0 if no card needs one.

    Their share grows with the window: with more than a hundred ports it never ends, so FW_CFG_MAX ends it.
    """
    if not any(port.high for port in ports):
        return 0
    size = 0
    while size <= FW_CFG_MAX:
        wanted = rounded_up(packed(_padded(ports, size))[0] + spare, GIB)
        if wanted <= size:
            break
        size = wanted
    return size


def _padded(ports: Sequence[Port], window: int) -> list[Port]:
    """The ports with their share of a window of so many bytes; a port with a reserve gets its reserve alone."""
    share = _power(window // PORT_SHARE) if window > CLASSIC else 0
    return [
        port
        if port.pref64_reserve or port.high >= share
        else msgspec.structs.replace(port, high=share, alignment=max(port.alignment, share), share=share)
        for port in ports
    ]


def qemu_starts(memory: Memory, bits: int) -> bool:
    """QEMU refuses memory that leaves no room for its own reserve (pc_memory_init: `phys-bits too low`)."""
    return bits <= 32 or rounded_up(memory.end, GIB) + HOLE64 <= 1 << bits


def _crosses(start: int, end: int, bits: int, vendor: Vendor) -> bool:
    return vendor == "AuthenticAMD" and bits >= 40 and start < HT[1] and end > HT[0]


def root_port(card: Card, hotplug: bool) -> Port:
    """A root port's windows (PciBusDxe: CalculateResourceAperture, DegradeResource): the sum of the BARs, each aligned
    to its size, the largest first; rounded up to 1 MiB, and aligned as its largest BAR is.

    A port that a card is plugged into later gets its reserve, as a power of two (GetResourcePadding).
    """
    high, alignment = bridge_window(bar for bar in card.bars if bar.high)
    low, _ = bridge_window(bar for bar in card.bars if not bar.high)
    if not hotplug:
        return Port(card, high, alignment, max(low, PORT_LOW))
    reserve = _power(high) if high else 0
    mem_reserve = _power(low) if low > PORT_LOW else 0
    return Port(card, reserve, max(reserve, 1), mem_reserve or PORT_LOW, reserve, mem_reserve)


def bridge_window(bars: Iterable[Bar]) -> tuple[int, int]:
    """Length and alignment of a bridge's window. Powers of two, the largest first, leave no gap."""
    sizes = [bar.size for bar in bars]
    return rounded_up(sum(sizes), GRAIN), max([GRAIN, *sizes])


def packed(ports: Sequence[Port]) -> tuple[int, list[int]]:
    """How much the ports fill together, and each one's offset.

    PciBusDxe sorts by alignment. Among equals the order depends on which came first (InsertResourceNode). The
    prefetchable windows are sorted once, and again when the root bridge treats them as any other memory
    (DegradeResource, EFI_PCI_HOST_BRIDGE_COMBINE_MEM_PMEM). The gap behind a card like the H100 comes from here: its
    window is a little more than a power of two, and the next one starts at a multiple of that power.
    """
    first: list[int] = []
    for number, port in enumerate(ports):
        if port.high:
            _insert(first, number, ports)
    order: list[int] = []
    for number in first:
        _insert(order, number, ports)
    offsets, end = [0] * len(ports), 0
    for number in order:
        offsets[number] = rounded_up(end, ports[number].alignment)
        end = offsets[number] + ports[number].high
    return end, offsets


def _insert(order: list[int], number: int, ports: Sequence[Port]) -> None:
    """InsertResourceNode: before the first node of a smaller alignment. Among equals by size modulo alignment: before
    the first with no larger rest, or before all of them if its own rest is 0."""
    new = ports[number]
    rest = new.high % new.alignment

    def before(old: Port) -> bool:
        if new.alignment != old.alignment:
            return new.alignment > old.alignment
        return rest == 0 or rest >= old.high % old.alignment

    order.insert(next((at for at, other in enumerate(order) if before(ports[other])), len(order)), number)


def low_aperture(memory: Memory) -> int:
    """Bytes for 32-bit BARs: from the end of low memory by the MTRRs, up to ECAM (PlatformQemuUc32BaseInitialization,
    PlatformMemMapInitialization)."""
    hole = BASE_4G - memory.low
    return ECAM - (BASE_4G - (1 << (hole.bit_length() - 1)))


def rounded_up(count: int, step: int) -> int:
    return -(-count // step) * step


def _power(count: int) -> int:
    """The next power of two; a power of two itself stays."""
    return 1 << (count - 1).bit_length()
