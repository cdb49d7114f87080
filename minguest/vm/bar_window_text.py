# SPDX-License-Identifier: Apache-2.0
"""Shows the plan of a BAR window to a person. Pure."""

from collections.abc import Callable

from minguest.util.units import MIB, exact
from minguest.vm import bar_window
from minguest.vm.bar_window import BITS_USED, FW_CFG_MAX, PORT_LOW, PORT_SHARE, ROOM, Plan, Port, trusted
from minguest.vm.cards import ROM


def describe(plan: Plan, again: Callable[[int], Plan] | None = None) -> str:
    """For a person, with the arithmetic. `again` plans for other phys-bits, for the table of them."""
    text = []
    for name in dict.fromkeys(port.card.name for port in plan.ports):
        several = [port for port in plan.ports if port.card.name == name]
        text += _card_lines(several[0], len(several))
    memory, window = plan.memory, plan.window
    stacked = _stacking(plan)
    if plan.need:
        text += [
            f"window: {stacked}" + (f" = {exact(plan.need)}" if stacked != exact(plan.need) else ""),
            f"  with room for other devices, in whole GiB: {exact(plan.window_mib * MIB)}",
        ]
    else:
        text.append("window: no 64-bit prefetchable BAR, so no window above 4 GiB is needed")
    text += [
        f"memory, with what can be plugged in: addresses are free from {place(memory.end)} on",
        f"CPU: {plan.given_bits} physical address bits ({plan.vendor}), that is {exact(1 << plan.given_bits)}; "
        + ("OVMF trusts that" if trusted(plan.given_bits, plan.vendor) else "OVMF does not trust that"),
        f"OVMF by itself: {plan.alone.rule}, {exact(plan.alone.size)} at {place(plan.alone.base)}: "
        + ("enough" if plan.fits and not plan.fw_cfg else "too small" if plan.alone.size < plan.need else "no use"),
    ]
    if plan.fw_cfg:
        text += [
            f"OVMF with this option: {exact(window.size)} at {place(window.base)}, ends at {place(window.end)}",
            f"  {' '.join(plan.fw_cfg)}",
        ]
    if plan.fits and plan.need:
        placed = [f"{number}: {port.base:#x}" for number, port in enumerate(plan.ports) if port.base is not None]
        text.append("ports: " + ", ".join(placed))
    text += _reserve_lines(plan)
    text += _table(plan, again)
    text += [f"warning: {warning}" for warning in warnings(plan)]
    if not plan.fits:
        return "\n".join(text)
    how = f"with X-PciMmio64Mb={window.size // MIB}" if plan.fw_cfg else "OVMF needs no option"
    return "\n".join([*text, f"fits at {plan.given_bits} bits: {how}"])


def warnings(plan: Plan) -> tuple[str, ...]:
    """What is wrong with a plan and what would help; what is nearly wrong."""
    said = []
    if not plan.fits:
        said.append(f"does NOT fit: {_why_not(plan)}\n  what would make it fit: {_remedy(plan)}")
    elif plan.need and plan.window.size - plan.need < ROOM:
        left = plan.window.size - plan.need
        said.append(
            f"the window has {exact(left)} left: one more 64-bit BAR (a virtio device's is 16 KiB) may push a card "
            f"out; -fw_cfg name=opt/ovmf/X-PciMmio64Mb,string={plan.window_mib} makes room, if phys-bits allow it"
        )
    if plan.given_bits > BITS_USED:
        said.append(
            f"OVMF uses {BITS_USED} of {plan.given_bits} physical address bits (with 4-level paging): this plan uses "
            f"nothing above {exact(1 << BITS_USED)}"
        )
    low, aperture = sum(port.low for port in plan.ports), bar_window.low_aperture(plan.memory)
    for port in plan.ports:
        large = [bar for bar in port.card.bars if bar.bits == 64 and not bar.prefetchable and bar.size > PORT_LOW]
        said += [
            f"{port.card.name}: BAR {bar.index} ({exact(bar.size)}) is 64-bit but not prefetchable: behind a root "
            "port it must lie below 4 GiB"
            for bar in large
        ]
    if low > aperture:
        said.append(
            f"below 4 GiB the ports need {exact(low)}, and {exact(aperture)} are free with "
            f"{exact(plan.memory.low)} of low memory: take fewer cards, or put the large ones on other bridges"
        )
    return tuple(dict.fromkeys(said))


def _why_not(plan: Plan) -> str:
    limit = 1 << min(plan.given_bits, BITS_USED)
    bits = f"{min(plan.given_bits, BITS_USED)} bits"
    if not bar_window.qemu_starts(plan.memory, plan.given_bits):
        return f"memory ends at {exact(plan.memory.end)}, and QEMU needs 32 GiB more below {exact(limit)} ({bits})"
    larger = bar_window.opened(plan.memory, plan.given_bits, plan.vendor, plan.window_mib * MIB)
    text = f"{exact(plan.need)} are needed, OVMF opens {exact(plan.alone.size)}"
    if plan.window_mib * MIB > FW_CFG_MAX:
        return f"{text}, and accepts 16 TiB at most"
    if larger.end > limit:
        hang = "OVMF would hang silently" if trusted(plan.given_bits, plan.vendor) else "Linux would not use it"
        return f"{text}; a larger window would end at {exact(larger.end)}, {bits} end at {exact(limit)}: {hang}"
    return f"{text}, and a larger window would lie on memory or on HyperTransport's addresses"


def _remedy(plan: Plan) -> str:
    if plan.phys_bits is None:
        return "nothing, up to the 46 bits that OVMF uses: give a guest fewer cards, or less memory"
    ways = []
    if plan.phys_bits != plan.alone_bits:
        window = bar_window.best_window(
            plan.memory,
            plan.phys_bits,
            plan.vendor,
            [bar_window.root_port(port.card, bool(port.pref64_reserve)) for port in plan.ports],
        )[1]
        ways.append(f"-cpu …,phys-bits={plan.phys_bits} with X-PciMmio64Mb={window.size // MIB}")
    if plan.alone_bits is not None:
        ways.append(f"-cpu …,phys-bits={plan.alone_bits}, and OVMF needs no option")
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
        lines.append(f"  OVMF gives a hot-plug port at least 1/{PORT_SHARE} of the window: {exact(port.share)}")
    return lines


def _stacking(plan: Plan) -> str:
    """The arithmetic of the packing, port by port if they differ."""
    highs = [port for port in plan.ports if port.high]
    if len(highs) < 2:
        return exact(plan.need)
    one = highs[0]
    step = bar_window.rounded_up(one.high, one.alignment)
    if all((port.high, port.alignment) == (one.high, one.alignment) for port in highs):
        return f"{len(highs) - 1} x {exact(step)} (the next is aligned to {exact(one.alignment)}) + {exact(one.high)}"
    return " and ".join(f"{exact(port.high)} aligned to {exact(port.alignment)}" for port in highs)


def _reserve_lines(plan: Plan) -> list[str]:
    if not plan.need:
        return []
    if not any(port.pref64_reserve or port.mem_reserve for port in plan.ports):
        empty = [bar_window.root_port(port.card, True) for port in plan.ports]
        options = ", ".join(dict.fromkeys(_reserve(port) for port in empty))
        whole = exact(bar_window.packed(empty)[0])
        return [
            "root ports: no pref64-reserve: the cards are there when OVMF looks, and it sizes each port by its card",
            f"  to plug the cards in later instead: {options} each, {whole} in all",
        ]
    options = ", ".join(dict.fromkeys(_reserve(port) for port in plan.ports))
    return [f"root ports: {options}, since OVMF sees no card behind them"]


def _reserve(port: Port) -> str:
    reserves = [f"pref64-reserve={port.pref64_reserve // MIB}M"] * bool(port.pref64_reserve)
    reserves += [f"mem-reserve={port.mem_reserve // MIB}M"] * bool(port.mem_reserve)
    return "pcie-root-port," + ",".join(reserves) if reserves else "pcie-root-port without a reserve"


def _table(plan: Plan, again: Callable[[int], Plan] | None) -> list[str]:
    if again is None or not plan.need:
        return []
    lines = ["at other phys-bits (with KVM, -cpu host and max have the host's):"]
    for bits in (36, 39, 40, 42, 44, BITS_USED):
        if bits != plan.given_bits:
            other = again(bits)
            how = f"X-PciMmio64Mb={other.window.size // MIB}" if other.fw_cfg else "OVMF needs no option"
            lines.append(f"  {bits}: {how if other.fits else 'does not fit'}")
    return lines


def place(address: int) -> str:
    """An address for a person: in hex, and as an amount."""
    return f"{address:#x} ({exact(address)})"
