# SPDX-License-Identifier: Apache-2.0
"""Where the time went, from a console: its marks, OVMF's phases, initcalls and gaps."""

import pytest

from tests.bench import consoles

# As 6.12 prints it with initcall_debug, with CPU numbers (CONFIG_PRINTK_CALLER) in one line.
CONSOLE = """\
EFI stub: Loaded initrd from LINUX_EFI_INITRD_MEDIA_GUID device path
[    0.000000] Linux version 6.12.94
[    0.300000] Mountpoint-cache hash table entries: 2048
[    0.310000] calling  init_hw_perf_events+0x0/0x653 @ 1
[    0.311000] initcall init_hw_perf_events+0x0/0x653 returned 0 after 900 usecs
[    0.320000][    T1] calling  net_ns_init+0x0/0xf0 @ 1
[    0.321000] initcall net_ns_init+0x0/0xf0 returned 0 after 50 usecs
[    0.330000] calling  acpi_init+0x0/0x500 @ 1
[    0.360000] ACPI: bus type
[    0.362000] initcall acpi_init+0x0/0x500 returned 0 after 32000 usecs
[    0.363000] calling  init+0x0/0x5 @ 1
[    0.364000] initcall init+0x0/0x5 returned 0 after 1 usecs
[    0.365000] calling  my_card_init+0x0/0x5 [my_card] @ 20
[    0.366000] initcall my_card_init+0x0/0x5 [my_card] returned -19 after 700 usecs
[    0.370000] Run /init as init process
[    0.990000] what comes later does not count
"""
# The names of 6.12 and of 4.12; `init` is early by one of its two functions.
SYMBOLS = """\
ffffffff819ac8a0 d __initcall__kmod_core__399_2203_init_hw_perf_eventsearly
ffffffff819ac8a0 D __initcall_start
ffffffff819ac8b0 d __initcall__kmod_net__12_1_net_ns_init0
ffffffff819ac8c0 d __initcall_acpi_init4
ffffffff819ac8d0 d __initcall_populate_rootfsrootfs
ffffffff819ac8e0 d __initcall__kmod_x__1_2_thermal_init_4s
ffffffff819ac8f0 d __initcall__kmod_two__1_2_initearly
"""


def test_a_mark_may_come_in_two_pieces() -> None:
    pieces = [(1.0, b"EFI st"), (1.5, b"ub: Loaded"), (2.0, b"EFI stub: again")]
    assert consoles.at(pieces, consoles.STUB) == 1.5
    assert consoles.at(pieces, consoles.FIRST) is None


def test_a_line_is_there_when_it_is_whole() -> None:
    pieces = [(1.0, b'{"record":"times"}\n{"record":"e'), (2.0, b'nd","records":3'), (3.0, b"}\n")]
    assert consoles.line(pieces, b'{"record":"end"') == 3.0
    assert consoles.line(pieces[:2], b'{"record":"end"') is None
    assert consoles.line(pieces, b'{"record":"times"') == 1.0


def test_ovmf_says_its_phases_or_not() -> None:
    debug = [
        (0.1, b"SecCoreStartupWithStack(0xFFFCC000, 0x820000)\n"),
        (0.4, b"Loading DXE CORE at 0x0003F6E5000 EntryPoint=0x0003F6E8DCF\n"),
        (0.9, b"[Bds] Entry...\n"),
    ]
    found = consoles.firmware(debug, 1.5)
    assert {name: round(took, 6) for name, took in found.items()} == {"SEC, PEI": 0.4, "DXE": 0.5, "BDS": 0.6}
    assert consoles.firmware(debug[:2], 1.5) == {}
    assert consoles.firmware([], 1.5) == {}


def test_levels_are_those_of_the_symbols() -> None:
    assert consoles.levels(SYMBOLS) == {
        "init_hw_perf_events": "early",
        "net_ns_init": "0",
        "acpi_init": "4",
        "populate_rootfs": "rootfs",
        "thermal_init_": "4",
        "init": "early",
    }


def test_the_kernels_part_is_split_by_level() -> None:
    found = consoles.inside(CONSOLE, consoles.levels(SYMBOLS))
    assert found is not None
    assert found.groups == {
        "before initcalls": 310.0,
        "early, other CPUs": 10.0,
        "pure": 10.0,
        "subsys": 36.0,  # with `init` and the module, which are of no later level
        "to init": 4.0,
    }
    assert sum(found.groups.values()) == pytest.approx(370)
    assert found.longest[:2] == (("acpi_init", 32.0), ("init_hw_perf_events", 0.9))
    assert [(took, before) for took, before, _ in found.gaps] == [
        (300.0, "Linux version 6.12.94"),
        (30.0, "calling  acpi_init+0x0/0x500 @ 1"),
        (10.0, "Mountpoint-cache hash table entries: 2048"),
        (9.0, "initcall init_hw_perf_events+0x0/0x653 returned 0 after 900 usecs"),
        (9.0, "initcall net_ns_init+0x0/0xf0 returned 0 after 50 usecs"),
    ]


def test_without_symbols_initcalls_are_one_group() -> None:
    found = consoles.inside(CONSOLE, {})
    assert found is not None
    assert found.groups == {"before initcalls": 310.0, "initcalls": 56.0, "to init": 4.0}


def test_a_console_without_initcalls_says_nothing() -> None:
    assert consoles.inside("[    0.000000] Linux version 6.12.94\n", {}) is None
