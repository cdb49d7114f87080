# SPDX-License-Identifier: Apache-2.0
"""What the plan of a BAR window comes to, for a person. Pure."""

from collections.abc import Callable

from minguest.util.units import MIB, exact
from minguest.vm import bar_window
from minguest.vm.bar_window import BITS_USED, PORT_LOW, PORT_SHARE, ROOM, TOLD_MAX, Plan, Port, trusted
from minguest.vm.cards import ROM


def describe(made: Plan, again: Callable[[int], Plan] | None = None) -> str:
    """For a person, with the arithmetic. `again` plans for other phys-bits, for the table of them."""
    text = []
    for name in dict.fromkeys(port.card.name for port in made.ports):
        several = [port for port in made.ports if port.card.name == name]
        text += _card_lines(several[0], len(several))
    memory, window = made.memory, made.window
    stacked = _stacking(made)
    if made.need:
        text += [
            f"window: {stacked}" + (f" = {exact(made.need)}" if stacked != exact(made.need) else ""),
            f"  with room for other devices, in whole GiB: {exact(made.window_mib * MIB)}",
        ]
    else:
        text.append("window: no 64-bit prefetchable BAR, so none is needed above 4 GiB")
    text += [
        f"memory, and what can be plugged in: free addresses from {place(memory.end)} on",
        f"CPU: {made.given_bits} physical address bits ({made.vendor}), that is {exact(1 << made.given_bits)}; "
        + ("OVMF trusts that" if trusted(made.given_bits, made.vendor) else "OVMF does not trust that"),
        f"OVMF alone: {made.alone.rule}, {exact(made.alone.size)} at {place(made.alone.base)}: "
        + ("enough" if made.fits and not made.fw_cfg else "too little" if made.alone.size < made.need else "no use"),
    ]
    if made.fw_cfg:
        text += [
            f"OVMF told: {exact(window.size)} at {place(window.base)}, ends at {place(window.end)}",
            f"  {' '.join(made.fw_cfg)}",
        ]
    if made.fits and made.need:
        placed = [f"{number}: {port.base:#x}" for number, port in enumerate(made.ports) if port.base is not None]
        text.append("ports: " + ", ".join(placed))
    text += _reserve_lines(made)
    text += _table(made, again)
    text += [f"warning: {warning}" for warning in warnings(made)]
    if not made.fits:
        return "\n".join(text)
    how = f"with X-PciMmio64Mb={window.size // MIB}" if made.fw_cfg else "OVMF needs no telling"
    return "\n".join([*text, f"fits at {made.given_bits} bits: {how}"])


def warnings(made: Plan) -> tuple[str, ...]:
    """What is wrong with a plan, what would help, and what is near."""
    said = []
    if not made.fits:
        said.append(f"does NOT fit: {_why_not(made)}\n  what would make it fit: {_remedy(made)}")
    elif made.need and made.window.size - made.need < ROOM:
        left = made.window.size - made.need
        said.append(
            f"the window has {exact(left)} left: one more 64-bit BAR (a virtio device's is 16 KiB) may push a card "
            f"out; -fw_cfg name=opt/ovmf/X-PciMmio64Mb,string={made.window_mib} gives room, if phys-bits are enough"
        )
    if made.given_bits > BITS_USED:
        said.append(
            f"OVMF uses {BITS_USED} of {made.given_bits} physical address bits (with 4-level paging): what is above "
            f"{exact(1 << BITS_USED)} is not planned with"
        )
    low, aperture = sum(port.low for port in made.ports), bar_window.low_aperture(made.memory)
    for port in made.ports:
        large = [bar for bar in port.card.bars if bar.bits == 64 and not bar.prefetchable and bar.size > PORT_LOW]
        said += [
            f"{port.card.name}: BAR {bar.index} ({exact(bar.size)}) is 64-bit but not prefetchable: behind a root "
            "port it must lie below 4 GiB"
            for bar in large
        ]
    if low > aperture:
        said.append(
            f"below 4 GiB the ports want {exact(low)}, and {exact(aperture)} are there with "
            f"{exact(made.memory.low)} of low memory: fewer cards, or put the large ones on other bridges"
        )
    return tuple(dict.fromkeys(said))


def _why_not(made: Plan) -> str:
    limit = 1 << min(made.given_bits, BITS_USED)
    bits = f"{min(made.given_bits, BITS_USED)} bits"
    if not bar_window.qemu_starts(made.memory, made.given_bits):
        return f"memory ends at {exact(made.memory.end)}, and QEMU wants 32 GiB more below {exact(limit)} ({bits})"
    told = bar_window.opened(made.memory, made.given_bits, made.vendor, made.window_mib * MIB)
    text = f"{exact(made.need)} are needed, OVMF opens {exact(made.alone.size)}"
    if made.window_mib * MIB > TOLD_MAX:
        return f"{text}, and takes no word for more than 16 TiB"
    if told.end > limit:
        hang = "would hang without a word" if trusted(made.given_bits, made.vendor) else "would not be used by Linux"
        return (
            f"{text}; a window told to be larger would end at {exact(told.end)}, {bits} end at {exact(limit)}: {hang}"
        )
    return f"{text}, and a window told to be larger would lie on memory or on HyperTransport's addresses"


def _remedy(made: Plan) -> str:
    if made.phys_bits is None:
        return "nothing, up to the 46 bits that OVMF uses: fewer cards a guest, or less memory"
    ways = []
    if made.phys_bits != made.alone_bits:
        told = bar_window.best_window(
            made.memory,
            made.phys_bits,
            made.vendor,
            [bar_window.root_port(port.card, bool(port.pref64_reserve)) for port in made.ports],
        )[1]
        ways.append(f"-cpu …,phys-bits={made.phys_bits} with X-PciMmio64Mb={told.size // MIB}")
    if made.alone_bits is not None:
        ways.append(f"-cpu …,phys-bits={made.alone_bits}, and OVMF needs no telling")
    return "; or ".join(ways)


def _card_lines(port: Port, count: int) -> list[str]:
    card = port.card
    high = sorted((bar.size for bar in card.bars if bar.high), reverse=True)
    bars = [
        f"{'ROM' if bar.index == ROM else f'BAR {bar.index}'} {exact(bar.size)} "
        f"({bar.bits}-bit{', prefetchable' * bar.prefetchable})"
        for bar in card.bars
    ]
    lines = [f"{count} x {card.name} ({card.vendor}:{card.device}, class {card.pci_class}): {', '.join(bars)}"]
    if not high:
        lines.append(f"  a root port each: nothing above 4 GiB, {exact(port.low)} below")
    elif port.pref64_reserve:
        lines.append(
            f"  a root port each, empty at first: {' + '.join(map(exact, high))}, as a power of two "
            f"{exact(port.high)}, aligned to that; below 4 GiB {exact(port.low)}"
        )
    else:
        length, alignment = bar_window.bridge_window(bar for bar in card.bars if bar.high)
        lines.append(
            f"  a root port each: {' + '.join(map(exact, high))}, in whole MiB {exact(length)}, aligned to "
            f"{exact(alignment)}; below 4 GiB {exact(port.low)}"
        )
    if port.share:
        lines.append(f"  OVMF gives a hot-plug port 1/{PORT_SHARE} of the window at least: {exact(port.share)}")
    return lines


def _stacking(made: Plan) -> str:
    """The arithmetic of the packing, port by port where they differ."""
    highs = [port for port in made.ports if port.high]
    if len(highs) < 2:
        return exact(made.need)
    one = highs[0]
    step = bar_window.rounded_up(one.high, one.alignment)
    if all((port.high, port.alignment) == (one.high, one.alignment) for port in highs):
        return f"{len(highs) - 1} x {exact(step)} (the next is aligned to {exact(one.alignment)}) + {exact(one.high)}"
    return " and ".join(f"{exact(port.high)} aligned to {exact(port.alignment)}" for port in highs)


def _reserve_lines(made: Plan) -> list[str]:
    if not made.need:
        return []
    if not any(port.pref64_reserve or port.mem_reserve for port in made.ports):
        empty = [bar_window.root_port(port.card, True) for port in made.ports]
        words = ", ".join(dict.fromkeys(_reserve(port) for port in empty))
        whole = exact(bar_window.packed(empty)[0])
        return [
            "root ports: no pref64-reserve: the cards are there when OVMF looks, and it sizes each port by its card",
            f"  to plug the cards in later instead: {words} each, {whole} in all",
        ]
    words = ", ".join(dict.fromkeys(_reserve(port) for port in made.ports))
    return [f"root ports: {words}, since OVMF sees no card behind them"]


def _reserve(port: Port) -> str:
    words = [f"pref64-reserve={port.pref64_reserve // MIB}M"] * bool(port.pref64_reserve)
    words += [f"mem-reserve={port.mem_reserve // MIB}M"] * bool(port.mem_reserve)
    return "pcie-root-port," + ",".join(words) if words else "pcie-root-port without a reserve"


def _table(made: Plan, again: Callable[[int], Plan] | None) -> list[str]:
    if again is None or not made.need:
        return []
    lines = ["at other phys-bits (with KVM, -cpu host and max have the host's):"]
    for bits in (36, 39, 40, 42, 44, BITS_USED):
        if bits != made.given_bits:
            other = again(bits)
            how = f"X-PciMmio64Mb={other.window.size // MIB}" if other.fw_cfg else "OVMF needs no telling"
            lines.append(f"  {bits}: {how if other.fits else 'does not fit'}")
    return lines


def place(address: int) -> str:
    """An address for a person: in hex, and as an amount."""
    return f"{address:#x} ({exact(address)})"
