# SPDX-License-Identifier: Apache-2.0
"""Whether BARs fit: figures from real boots, and arithmetic by hand of the PCI specification and edk2's rules.

The boots: OVMF 2025.02-8+deb13u1, QEMU 7.2.22, q35, TCG, linux 6.12.94, 1 GiB of memory, 22 November 2026. In place of
an H100: three pci-testdev (128 GiB, 32 MiB, 16 MiB) as functions of one slot behind one root port.
"""

import time
from pathlib import Path

import msgspec
import pytest

from minguest.model import Accel
from minguest.util.errors import UserError
from minguest.vm import bar_window, bar_window_text, cards
from minguest.vm.bar_window import Memory, opened
from minguest.vm.bar_window_text import warnings
from minguest.vm.cards import Bar, Card
from tests import ROOT

FOLDER = ROOT / "configs/cards"
M, G, T = 2**20, 2**30, 2**40
H100 = cards.described("nvidia-h100", FOLDER)
AMD, INTEL = "AuthenticAMD", "GenuineIntel"


def bar(size: int) -> Card:
    return cards.one_bar(f"bar:{size // M}M")


def bases(plan: bar_window.Plan) -> list[int | None]:
    return [port.base for port in plan.ports]


def test_the_h100_is_as_a_real_guest_reported_it() -> None:
    assert (H100.vendor, H100.device, H100.pci_class) == ("10de", "2330", "030200")
    assert [(bar.index, bar.size) for bar in H100.bars] == [(0, 16 * M), (2, 128 * G), (4, 32 * M)]
    assert all(bar.bits == 64 and bar.prefetchable for bar in H100.bars)


# Each row was booted: the addresses are those in the guest's report, None for a BAR without one.
BOOTED: list[tuple[list[Card], int, bar_window.Vendor, str, list[int | None]]] = [
    # An eighth of 1 TiB is 128 GiB, moved from 896 GiB to 768 GiB by HyperTransport's range; filled to the last byte.
    ([bar(128 * G)], 40, "AuthenticAMD", "", [0xC0_0000_0000]),
    # 48 MiB more do not fit; 129 GiB, aligned to 128 GiB, do.
    ([H100], 40, "AuthenticAMD", "132096", [0x20_0000_0000]),
    ([H100], 39, "AuthenticAMD", "132096", [0x20_0000_0000]),
    # An eighth of 64 TiB begins at 56 TiB. The second port begins at the next multiple of 128 GiB.
    ([H100, H100], 46, "AuthenticAMD", "", [0x3800_0000_0000, 0x3840_0000_0000]),
    # 256 GiB + 128 GiB + 48 MiB + room, in GiB: 385; booted with 385 GiB: aligned to 256 GiB.
    ([H100, H100], 40, "AuthenticAMD", "394240", [0x40_0000_0000, 0x80_0000_0000]),
    # 1921 GiB, aligned to 1 TiB; at 44 bits an eighth is 2 TiB at 14 TiB.
    ([H100] * 8, 44, "AuthenticAMD", "", [(14 * 1024 + 256 * n) * G for n in range(8)]),
    ([H100] * 8, 46, "AuthenticAMD", "", [(56 * 1024 + 256 * n) * G for n in range(8)]),
    ([H100] * 8, 42, "AuthenticAMD", "1967104", [(1024 + 256 * n) * G for n in range(8)]),
    # Order matters: 128 GiB first leaves no gap (128 GiB 48 MiB after it), 128 GiB last does.
    ([bar(128 * G), H100], 46, "AuthenticAMD", "", [0x3800_0000_0000, 0x3820_0000_0000]),
    ([H100, bar(128 * G)], 46, "AuthenticAMD", "", [0x3800_0000_0000, 0x3840_0000_0000]),
    # Of different alignment the larger is first, whatever its port: 64 GiB, and 8 GiB behind them.
    ([bar(8 * G), bar(64 * G)], 46, "AuthenticAMD", "", [0x3810_0000_0000, 0x3800_0000_0000]),
    # Set to be just as large as needed.
    ([bar(64 * G)], 37, "AuthenticAMD", "65536", [0x10_0000_0000]),
    ([bar(256 * G)], 39, "GenuineIntel", "262144", [0x40_0000_0000]),
    # 40 bits of an Intel are not trusted: 32 GiB at 32 GiB. 39 bits are: 64 GiB at 448 GiB.
    ([bar(32 * G)], 40, "GenuineIntel", "", [0x8_0000_0000]),
    ([bar(64 * G)], 39, "GenuineIntel", "", [0x70_0000_0000]),
    # More than 46 bits are not used.
    ([bar(64 * G)], 48, "AuthenticAMD", "", [0x3800_0000_0000]),
    ([bar(64 * G)], 52, "AuthenticAMD", "", [0x3800_0000_0000]),
    # Beside a large one a small card's port takes its share: of 259 GiB 2 GiB, of 131 GiB 1 GiB each.
    ([bar(256 * G), bar(16 * M)], 40, "AuthenticAMD", "265216", [0x40_0000_0000, 0x80_0000_0000]),
    (
        [bar(128 * G), bar(16 * M), bar(16 * M)],
        40,
        "AuthenticAMD",
        "134144",
        [
            0x20_0000_0000,
            0x40_0000_0000,
            0x40_4000_0000,
        ],
    ),
    # From the table of measured facts.
    ([bar(64 * G)], 40, "AuthenticAMD", "", [0xC0_0000_0000]),
    ([bar(256 * G)], 46, "AuthenticAMD", "", [0x3800_0000_0000]),
    ([bar(T)], 46, "AuthenticAMD", "", [0x3800_0000_0000]),
]


@pytest.mark.parametrize(("requested", "bits", "vendor", "fw_cfg", "where"), BOOTED)
def test_the_plan_is_what_real_boots_showed(
    requested: list[Card], bits: int, vendor: bar_window.Vendor, fw_cfg: str, where: list[int | None]
) -> None:
    made = bar_window.plan(requested, G, bits, vendor=vendor)
    assert made.fits
    assert made.fw_cfg == (("-fw_cfg", f"name=opt/ovmf/X-PciMmio64Mb,string={fw_cfg}") if fw_cfg else ())
    assert bases(made) == where


# Booted too: without X-PciMmio64Mb the guest found no address for the BAR.
@pytest.mark.parametrize(
    ("card", "bits", "vendor"),
    [
        (H100, 40, "AuthenticAMD"),
        (bar(64 * G), 40, "GenuineIntel"),
        (bar(64 * G), 39, "AuthenticAMD"),
        (bar(256 * G), 40, "AuthenticAMD"),
    ],
)
def test_where_ovmf_alone_was_seen_to_fail_its_window_is_set(card: Card, bits: int, vendor: bar_window.Vendor) -> None:
    made = bar_window.plan([card], G, bits, vendor=vendor)
    assert made.fits and made.fw_cfg
    assert made.alone.size < made.need <= made.window.size


def test_at_36_bits_64_gib_do_not_fit_at_all() -> None:
    # The only place for 64 GiB below 64 GiB is memory's. With X-PciMmio64Mb the guest hung (Intel, trusted), or Linux
    # said "ignored, not CPU addressable" (AMD).
    for vendor, what in (("GenuineIntel", "OVMF would hang silently"), ("AuthenticAMD", "Linux would not use it")):
        made = bar_window.plan([bar(64 * G)], G, 36, vendor=vendor)  # type: ignore[arg-type]
        assert not made.fits and not made.fw_cfg and bases(made) == [None]
        assert what in warnings(made)[0]
        # 64 GiB at 64 GiB end at 128 GiB: 37 bits, with nothing to spare.
        assert made.phys_bits == 37 and "phys-bits=37 with X-PciMmio64Mb=65536" in warnings(made)[0]
    # With 65 GiB, aligned to 64 GiB, they end at 129 GiB: 38 bits.
    assert bar_window.plan([bar(64 * G)], G, 38).fw_cfg[1].endswith("string=66560")
    (warning,) = warnings(bar_window.plan([bar(64 * G)], G, 37))
    assert "0 bytes left" in warning


# Booted with one card of 16 MiB: the port's window in MiB, with X-PciMmio64Mb or without.
@pytest.mark.parametrize(
    ("window", "share"),
    [(8 * G, 16), (32 * G, 16), (33 * G, 256), (48 * G, 256), (64 * G, 256), (100 * G, 512), (128 * G, 512),
     (256 * G, 1024), (300 * G, 2048), (T, 4096), (8 * T, 32768)],
)  # fmt: skip
def test_a_hot_plug_port_gets_its_share_of_a_large_window(window: int, share: int) -> None:
    (port,) = bar_window._padded([bar_window.root_port(bar(16 * M), False)], window)
    assert (port.high, port.alignment) == (share * M, share * M)
    assert bar_window._padded([bar_window.root_port(bar(16 * M), True)], window)[0].high == 16 * M  # it has a reserve


def test_more_ports_than_their_shares_leave_room_for_never_fit() -> None:
    assert not bar_window.plan([bar(64 * G)] + [bar(16 * M)] * 300, G, 46).fits


# First address after memory, bits, vendor, X-PciMmio64Mb; base and size by hand.
WINDOWS: list[tuple[int, int, bar_window.Vendor, int, int, int]] = [
    (4 * G, 36, "GenuineIntel", 0, 32 * G, 32 * G),  # an eighth, 8 GiB, is less than 32 GiB
    (4 * G, 37, "AuthenticAMD", 0, 32 * G, 32 * G),
    (4 * G, 41, "GenuineIntel", 0, 2048 * G - 256 * G, 256 * G),
    (4 * G, 41, "AuthenticAMD", 0, 2048 * G - 256 * G, 256 * G),
    # Booted: -m 1G,slots=4,maxmem=40G, which ends at 47 GiB.
    (47 * G, 40, "GenuineIntel", 0, 64 * G, 32 * G),
    # Booted: 64 GiB by X-PciMmio64Mb win over an eighth of 128 GiB.
    (4 * G, 40, "AuthenticAMD", 64 * G, 64 * G, 64 * G),
    # Booted: 1 TiB by X-PciMmio64Mb at 40 bits is a hang; the window ends at 2 TiB.
    (4 * G, 40, "AuthenticAMD", T, T, T),
    # 512 GiB by X-PciMmio64Mb begin at 512 GiB; 513 GiB are aligned like 512 GiB.
    (4 * G, 46, "AuthenticAMD", 512 * G, 512 * G, 512 * G),
    (600 * G, 46, "AuthenticAMD", 513 * G, 1024 * G, 513 * G),
    # Whole GiB; the largest power of two in 101 GiB is 64 GiB.
    (4 * G, 46, "AuthenticAMD", 100 * G + 1, 64 * G, 101 * G),
    # The eighth would reach down to the window above memory: 928 + 128 > 1024.
    (900 * G, 40, "AuthenticAMD", 0, 928 * G, 32 * G),
]


@pytest.mark.parametrize(("first", "bits", "vendor", "fw_cfg", "base", "size"), WINDOWS)
def test_windows_of_ovmf(first: int, bits: int, vendor: bar_window.Vendor, fw_cfg: int, base: int, size: int) -> None:
    window = opened(Memory(G, first), bits, vendor, fw_cfg)
    assert (window.base, window.size) == (base, size)


@pytest.mark.parametrize(
    ("memory", "most", "slots", "vendor", "low", "end"),
    [
        (G, 0, 0, AMD, G, 4 * G),
        (2815 * M, 0, 0, AMD, 2815 * M, 4 * G),
        (2816 * M, 0, 0, AMD, 2 * G, 4 * G + 768 * M),
        (16 * G, 0, 0, AMD, 2 * G, 18 * G),
        (G, 40 * G, 4, AMD, G, (4 + 39 + 4) * G),  # booted: the window's base says so
        (2816 * M, 3 * G, 2, AMD, 2 * G, 5 * G + 256 * M + 2 * G),
        # 4 + 1022 + 32 GiB reach into 1012 GiB and up: with AMD's, all that is above 4 GiB goes above 1 TiB.
        (T, 0, 0, AMD, 2 * G, T + 1022 * G),
        (T, 0, 0, INTEL, 2 * G, 4 * G + 1022 * G),
    ],
)
def test_memory_of_a_q35(memory: int, most: int, slots: int, vendor: bar_window.Vendor, low: int, end: int) -> None:
    assert bar_window.layout(memory, most, slots, vendor) == Memory(low, end)


def test_how_many_bits_are_needed() -> None:
    # 129 GiB at 128 GiB end at 257 GiB: 39 bits. Alone: an eighth of 2^41 is 256 GiB, of 2^40 128 GiB.
    made = bar_window.plan([H100], G, 46)
    assert (made.need, made.window_mib, made.phys_bits, made.alone_bits) == (128 * G + 48 * M, 129 * 1024, 39, 41)
    # 1921 GiB at 1 TiB end at 2945 GiB: 42 bits. An eighth of 2^44 is 2 TiB.
    eight = bar_window.plan([H100] * 8, G, 46)
    assert (eight.need, eight.window_mib) == ((7 * 256 + 128) * G + 48 * M, 1921 * 1024)
    assert (eight.phys_bits, eight.alone_bits) == (42, 44)
    # Memory pushes the window up: 300 GiB, then a multiple of 128 GiB: 384 + 129 GiB end above 512 GiB.
    assert bar_window.plan([H100], 300 * G, 46).phys_bits == 40
    # What can be plugged in counts like what is there.
    assert bar_window.plan([H100], G, 46, max_memory=300 * G, slots=4).phys_bits == 40
    # An eighth of 64 TiB is 8 TiB, and X-PciMmio64Mb is 16 TiB at most: 16 TiB at 16 TiB end at 32 TiB.
    assert bar_window.plan([bar(8 * T)], G, 46).alone_bits == 46
    assert bar_window.plan([bar(16 * T)], G, 46).phys_bits == 45
    assert bar_window.plan([bar(32 * T)], G, 46).phys_bits is None


def test_hypertransports_range_is_kept_clear() -> None:
    # 601 GiB at 512 GiB lie on 1012 GiB; as 1 TiB they begin above it, and end at 2 TiB. The first was booted.
    six = [bar(512 * G), bar(64 * G), bar(16 * G), bar(8 * G)]
    amd, intel = (bar_window.plan(six, G, 41, vendor=vendor) for vendor in ("AuthenticAMD", "GenuineIntel"))
    assert (amd.window.base, amd.window.size) == (T, T)
    assert bases(amd) == [0x100_0000_0000, 0x180_0000_0000, 0x190_0000_0000, 0x194_0000_0000]
    assert (intel.window.base, intel.window.size) == (512 * G, 601 * G)


def test_a_full_window_is_warned_of() -> None:
    # Booted: beside virtio-gpu-pci (a 64-bit BAR of 16 KiB) the card of 128 GiB had no address.
    (warning,) = warnings(bar_window.plan([bar(128 * G)], G, 40))
    assert "0 bytes left" in warning and "X-PciMmio64Mb,string=132096" in warning
    assert warnings(bar_window.plan([bar(64 * G)], G, 40)) == ()


def test_a_port_for_later_keeps_a_power_of_two() -> None:
    # Booted: pref64-reserve=129G at 46 bits opened 256 GiB at 56 TiB; two of 256 GiB at 41 bits, X-PciMmio64Mb 1 TiB,
    # opened 0x10000000000 and 0x14000000000.
    made = bar_window.plan([H100, H100], G, 46, hotplug=True)
    assert [(port.pref64_reserve, port.mem_reserve) for port in made.ports] == [(256 * G, 0)] * 2
    assert bases(made) == [56 * T, 56 * T + 256 * G]
    assert made.need == 512 * G
    text = bar_window_text.describe(made)
    assert "pref64-reserve=262144M" in text and "OVMF sees no card" in text
    assert "no pref64-reserve" in bar_window_text.describe(bar_window.plan([H100], G, 46))


def test_what_must_lie_below_4_gib() -> None:
    low = Card("low", "10de", "1", "030000", (Bar(0, 16 * M, 32, False), Bar(1, G, 64, False), Bar(6, M, 32, False)))
    made = bar_window.plan([low], G, 46)
    # 1 GiB + 16 MiB + 1 MiB; the aperture is 2 GiB to 3.5 GiB with 1 GiB of memory.
    assert made.ports[0].low == G + 17 * M
    assert (made.need, made.fw_cfg, made.ports[0].base) == (0, (), None)
    assert ["is 64-bit but not prefetchable" in warning for warning in warnings(made)] == [True]
    # 3 GiB to 3.5 GiB with 2.5 GiB of it; booted: the first 32-bit BAR was at 0xc0000000.
    assert any("512 MiB are free" in warning for warning in warnings(bar_window.plan([low], 5 * G // 2, 46)))
    # Small ones share the 2 MiB that OVMF gives every hot-plug port; booted.
    assert bar_window.plan([bar(G)], G, 46).ports[0].low == 2 * M
    assert bar_window.plan([low], G, 46, hotplug=True).ports[0].mem_reserve == 2 * G


def test_memory_that_qemu_refuses_at_these_bits() -> None:
    made = bar_window.plan([bar(G)], 40 * G, 36)
    assert not made.fits and "QEMU needs 32 GiB more" in warnings(made)[0]
    assert made.phys_bits == 37
    # Both booted: "Address space limit 0xfffffffff < 0x13bfffffff phys-bits too low (36)": 79 GiB are 47 and 32.
    assert "QEMU needs 32 GiB more" in warnings(bar_window.plan([bar(G)], G, 36, max_memory=40 * G, slots=4))[0]
    # "0x7ffffffff < 0x8ffffffff phys-bits too low (35)": 36 GiB are 4 and 32.
    assert "QEMU needs 32 GiB more" in warnings(bar_window.plan([bar(G)], G, 35))[0]


def test_bits_that_qemu_does_not_accept() -> None:
    for bits in (31, 53):
        with pytest.raises(UserError, match=rf"phys-bits = {bits}: QEMU accepts 32 to 52"):
            bar_window.plan([H100], G, bits)


def test_no_card_is_no_window() -> None:
    made = bar_window.plan([], G, 40)
    assert (made.need, made.window_mib, made.fw_cfg, made.ports, made.fits) == (0, 0, (), (), True)
    assert "no window above 4 GiB is needed" in bar_window_text.describe(made)


@pytest.mark.parametrize(
    ("option", "accel", "expected"),
    [
        ("max", "tcg", (40, AMD)),
        ("max", "auto", (40, AMD)),
        ("max,phys-bits=46", "tcg", (46, AMD)),
        ("max,phys-bits=39,vendor=GenuineIntel", "tcg", (39, INTEL)),
        ("SapphireRapids", "tcg", (40, INTEL)),
        ("EPYC-Milan", "tcg", (40, AMD)),
        # As QEMU 7.2's query-cpu-model-expansion answers for each of these.
        ("qemu64", "tcg", (40, AMD)),
        ("Opteron_G5-v1", "tcg", (40, AMD)),
        ("athlon", "tcg", (40, AMD)),
        ("kvm64", "tcg", (40, INTEL)),
        ("kvm32", "tcg", (40, INTEL)),
        ("qemu32", "tcg", (40, INTEL)),
        ("Dhyana-v1", "tcg", (40, "other")),
        ("base", "tcg", (40, "other")),
        # From the host QEMU takes nothing but its vendor and, for host and max, its width.
        ("host", "auto", (46, INTEL)),
        ("max", "kvm", (46, INTEL)),
        ("host,kvm=off", "kvm", (46, INTEL)),
        ("host,phys-bits=42", "kvm", (46, INTEL)),
        ("max,phys-bits=42,host-phys-bits=off", "kvm", (42, INTEL)),
        ("host,host-phys-bits-limit=44", "kvm", (44, INTEL)),
        ("host,host-phys-bits-limit=48", "kvm", (46, INTEL)),
        ("host,host-phys-bits-limit=0", "kvm", (46, INTEL)),
        ("EPYC", "kvm", (40, INTEL)),
        ("EPYC,phys-bits=44", "kvm", (44, INTEL)),
        ("EPYC,vendor=AuthenticAMD,+host-phys-bits", "kvm", (46, AMD)),
        ("kvm64,host-phys-bits", "kvm", (46, INTEL)),
    ],
)
def test_bits_and_vendor_of_a_cpu(option: str, accel: Accel, expected: tuple[int, str]) -> None:
    cpuinfo = "vendor_id\t: GenuineIntel\naddress sizes\t: 46 bits physical, 57 bits virtual\n"
    assert bar_window.cpu(option, accel, cpuinfo) == expected


def test_under_kvm_the_vendor_is_the_hosts() -> None:
    for host, vendor in ((AMD, AMD), ("HygonGenuine", "other"), (INTEL, INTEL)):
        cpuinfo = f"vendor_id\t: {host}\naddress sizes\t: 48 bits physical, 48 bits virtual\n"
        assert bar_window.cpu("kvm64", "kvm", cpuinfo) == (40, vendor)
        assert bar_window.cpu("max", "kvm", cpuinfo) == (48, vendor)
    # For an unknown host: what OVMF trusts least.
    assert bar_window.cpu("max,phys-bits=46", "kvm") == bar_window.cpu("EPYC", "kvm") == (40, INTEL)
    assert not any(bar_window.trusted(bits, "other") for bits in (36, 39, 40)) and bar_window.trusted(41, "other")


def test_the_arithmetic_is_printed() -> None:
    text = bar_window_text.describe(
        bar_window.plan([H100] * 8, G, 40), lambda bits: bar_window.plan([H100] * 8, G, bits)
    )
    for line in (
        "  a root port each: 128 GiB + 32 MiB + 16 MiB, in whole MiB 128 GiB 48 MiB, aligned to 128 GiB; "
        "below 4 GiB 2 MiB",
        "window: 7 x 256 GiB (the next is aligned to 128 GiB) + 128 GiB 48 MiB = 1920 GiB 48 MiB",
        "OVMF by itself: an eighth of the address space, 128 GiB at 0xc000000000 (768 GiB): too small",
        "  39: does not fit",
        "  42: X-PciMmio64Mb=1967104",
        "  44: OVMF needs no option",
        "  what would make it fit: -cpu …,phys-bits=42 with X-PciMmio64Mb=1967104; or "
        "-cpu …,phys-bits=44, and OVMF needs no option",
    ):
        assert line in text.splitlines()
    assert bar_window_text.describe(bar_window.plan([H100], G, 40)).endswith(
        "fits at 40 bits: with X-PciMmio64Mb=132096"
    )
    assert bar_window_text.describe(bar_window.plan([H100], G, 46)).endswith("fits at 46 bits: OVMF needs no option")


def test_a_plan_is_quick() -> None:
    begun = time.perf_counter()
    bar_window.plan([H100] * 16, 512 * G, 46)
    assert time.perf_counter() - begun < 0.5


# ── cards ──

CARD = 'name = "x"\nvendor = "10de"\ndevice = "2330"\npci_class = "030200"\n'


def described_bars(*bars: tuple[int, str, int]) -> str:
    return CARD + "".join(
        f'[[bar]]\nindex = {index}\nsize = "{size}"\nbits = {bits}\nprefetchable = true\n' for index, size, bits in bars
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (described_bars((0, "16M", 64), (0, "16M", 64)), r"BAR 0 is there twice"),
        (described_bars((0, "16M", 64), (1, "16M", 32)), r"(?s)BAR 0 is 64-bit and takes index 1 too.*remedy"),
        (described_bars((3, "16M", 32), (2, "16M", 64)), r"BAR 2 is 64-bit and takes index 3 too, which BAR 3 has"),
        (described_bars((5, "16M", 64)), r"BAR 5: a 64-bit BAR needs the next index too"),
        (described_bars((7, "16M", 32)), r"BAR 7: a device has the indices 0 to 5"),
        (described_bars((-1, "16M", 32)), r"BAR -1: a device has"),
        (described_bars((0, "3G", 64)), r"BAR 0: size 3221225472 bytes: a BAR's size is a power of two"),
        (described_bars((0, "8", 32)), r"16 bytes at least"),
        (described_bars((0, "4G", 32)), r"more than a 32-bit BAR can have"),
        (described_bars((0, "4096T", 64)), r"more than a 64-bit BAR can have"),
        (described_bars((0, "much", 64)), r"BAR 0: size = 'much' is not a size"),
        (described_bars((0, "16M", 48)), r"Invalid enum value 48"),
        (
            described_bars((0, "16M", 64)) + "color = 1",
            r"unknown key `bar\[\.\.\.\]\.color`|unknown key `bar\[0\]\.color`",
        ),
        ("nmae = 1\n" + described_bars((0, "16M", 64)), r"unknown key `nmae`; nearest known key: `name`"),
        (CARD + "bar = []", r"no memory BAR"),
        (CARD, r"missing required field `bar`"),
        (described_bars((0, "1M", 32)).replace("10de", "10DE"), r"vendor = '10DE': not 4 lower-case hex digits"),
        (described_bars((0, "1M", 32)).replace("030200", "0302"), r"pci_class = '0302': not 6"),
        (described_bars((0, "1M", 32)).replace("030200", "060400"), r"is a bridge \(class 060400\)"),
    ],
)
def test_a_wrong_description_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "card.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        cards.described(str(path), FOLDER)
    assert str(caught.value).startswith(str(path))


def test_a_card_is_found_by_name_or_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "own.toml"
    path.write_text(described_bars((4, "16K", 64), (0, "1M", 32), (6, "512K", 32)))
    assert [bar.size for bar in cards.described(str(path), FOLDER).bars] == [16384, M, 512 * 1024]
    assert cards.described("own", tmp_path).name == "x"
    monkeypatch.chdir(tmp_path)
    assert cards.described("own.toml", FOLDER).name == "x"
    with pytest.raises(UserError, match=r"--card nvidia-h10: no card of that name(?s:.)*known name: nvidia-h100"):
        cards.described("nvidia-h10", FOLDER)


# Linux, include/linux/ioport.h: 0x14220c is what the H100's guest reported.
RESOURCE = """0x0000380042000000 0x0000380042ffffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000380000000000 0x0000381fffffffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000380040000000 0x0000380041ffffff 0x000000000014220c
0x0000000000001000 0x000000000000107f 0x0000000000040101
0x00000000fb000000 0x00000000fb07ffff 0x0000000000046200
0x0000384000000000 0x000038401fffffff 0x000000000014220c
"""


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """A host with a card at 01:00.0 and its bridge at 00:01.0."""
    for bdf, code, resource in (("0000:01:00.0", "0x030200", RESOURCE), ("0000:00:01.0", "0x060400", "")):
        device = tmp_path / "bus/pci/devices" / bdf
        device.mkdir(parents=True)
        for name, value in (("class", code), ("vendor", "0x10de"), ("device", "0x2330"), ("resource", resource)):
            (device / name).write_text(value + "\n" * (name != "resource"))
    return tmp_path


def test_a_card_of_this_host(sysfs: Path) -> None:
    card = cards.on_host("01:00.0", sysfs)
    # Port I/O and the virtual functions' BARs are not the window's; the ROM is.
    assert card == msgspec.structs.replace(H100, name="0000:01:00.0", bars=(*H100.bars, Bar(6, 512 * 1024, 32, True)))
    assert cards.on_host("0000:01:00.0", sysfs) == card
    assert bar_window.plan([card], G, 46).need == bar_window.plan([H100], G, 46).need


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("01:00", r"--gpu 01:00: not a PCI address"),
        ("0000:01:00.8", r"not a PCI address"),
        ("../../..", r"not a PCI address"),
        ("02:00.0", r"--gpu 0000:02:00\.0: .*/0000:02:00\.0 does not exist: this host has no such PCI device"),
        ("00:01.0", r"is a bridge \(class 060400\)"),
    ],
)
def test_what_is_not_a_card_is_refused(sysfs: Path, address: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        cards.on_host(address, sysfs)
    assert caught.value.remedy


def test_a_wrong_resource_file_is_refused(sysfs: Path) -> None:
    resource = sysfs / "bus/pci/devices/0000:01:00.0/resource"
    resource.write_text("0x0 0x1\n")
    with pytest.raises(UserError, match=r"resource: line 1, '0x0 0x1', is not START END FLAGS"):
        cards.on_host("01:00.0", sysfs)
    resource.write_text("0x0 0x2fffff 0x200\n")
    with pytest.raises(UserError, match="size 3145728 bytes: a BAR's size is a power of two"):
        cards.on_host("01:00.0", sysfs)
    resource.unlink()
    with pytest.raises(UserError, match="resource: cannot be read"):
        cards.on_host("01:00.0", sysfs)


def test_cards_by_name(sysfs: Path) -> None:
    assert [card.name for card in cards.named(["01:00.0", "bar:64G", "bar:64G"], sysfs)] == [
        "0000:01:00.0", "bar:64G", "bar:64G",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"0000:01:00\.0 is named twice"):
        cards.named(["01:00.0", "0000:01:00.0"], sysfs)
    with pytest.raises(UserError, match="power of two"):
        cards.one_bar("bar:3G")
