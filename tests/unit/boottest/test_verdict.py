# SPDX-License-Identifier: Apache-2.0
"""Three views, one verdict: each disagreement is found, and silence is never a pass."""

import copy
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from minguest.boottest import facts, verdict
from minguest.diagnose.facts import NAMES
from minguest.model import Disk, Root
from minguest.vm import bar_window, cards, report
from minguest.vm.cards import Gpu
from minguest.vm.launch import Node, Spec
from minguest.vm.qemu import Ending, Run

SPEC = Spec("q35", "tcg", "max", 4, 8, 1 << 30, (Gpu("gpu0", "secondary-vga", model="secondary-vga"),), (), 60)
GPU_AT = "0000:00:02.0"


def region(bar: int, address: int, size: int) -> dict[str, Any]:
    return {"bar": bar, "address": address, "size": size, "type": "memory"}


def function(slot: int, qdev_id: str = "", regions: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {"bus": 0, "slot": slot, "function": 0, "qdev_id": qdev_id, "regions": list(regions)}


# query-pci also lists the devices behind a bridge; docs/interop/qemu-qmp-ref, PciBusInfo.
BEHIND = {"bus": 1, "slot": 0, "function": 0, "qdev_id": "nic", "regions": []}
BRIDGE = {**function(3), "pci_bridge": {"devices": [BEHIND]}}
VIEWS: dict[str, Any] = {
    "cpus": [{}] * 4,
    "hotpluggable_cpus": [{}] * 8,
    "memory": {"base-memory": 1 << 30, "plugged-memory": 0},
    "pci": [{"bus": 0, "devices": [
        function(0),
        function(2, "gpu0", (region(0, 0xC0000000, 1 << 24), region(2, 0xC1000000, 4096), region(6, -1, 1 << 16))),
        BRIDGE,
    ]}],
}  # fmt: skip


def bar(index: int, start: int, size: int) -> dict[str, Any]:
    return {"index": index, "start": hex(start), "size": size, "kind": "mem32", "assigned": True}


def pci(address: str, **more: Any) -> dict[str, Any]:
    return {
        "record": "pci", "address": address, "vendor": "1234", "device": "1111", "class": "060000", "gpu": False,
        "bars": [], **more,
    }  # fmt: skip


RECORDS: list[dict[str, Any]] = [
    {
        "record": "begin",
        "protocol": 1,
        "uptime": 0.75,
        "kernel": {"release": "6.12.94", "version": "#1 SMP", "machine": "x86_64"},
    },
    {"record": "cpus", "possible": "0-7", "present": "0-3", "online": "0-3"},
    {"record": "memory", "ram_bytes": (1 << 30) - (3 << 20)},
    {"record": "firmware", "kind": "uefi", "version": "2025.02"},
    pci("0000:00:00.0"),
    pci(GPU_AT, **{"class": "038000"}, gpu=True, bars=[bar(0, 0xC0000000, 1 << 24), bar(2, 0xC1000000, 4096)]),
    pci("0000:00:03.0"),
    pci("0000:01:00.0"),
]


def judge(
    records: list[dict[str, Any]] = RECORDS,
    views: dict[str, Any] = VIEWS,
    ending: Ending = "power-off",
    console: bytes = b"[    0.0] Linux version 6.12\n",
    spec: Spec = SPEC,
    end: bool = True,
    problems: tuple[str, ...] = (),
    shipped: verdict.Shipped | None = None,
) -> verdict.Verdict:
    lines = [*records, {"record": "end", "status": "ok", "records": len(records)}] if end else records
    text = "".join(json.dumps(each, separators=(",", ":")) + "\n" for each in lines).encode()
    run = Run((), ending, "a detail", console, text, views, 2.0, 2.1 if end else None, 3.0)
    return verdict.judge(spec, run, report.parse(text), problems, shipped=shipped)


def test_three_views_that_agree_are_a_pass() -> None:
    found = judge()
    assert (found.result, found.reason) == ("pass", "three views agree")
    assert [check.name for check in found.checks] == [
        "CPUs", "CPUs at most", "memory", "firmware", "PCI devices", "BARs", "GPU gpu0", "power-off",
    ]  # fmt: skip
    phases = found.phases
    assert (phases.firmware, phases.kernel, phases.wall) == (1.25, 0.75, 3.0)
    assert phases.initd == pytest.approx(0.1)


SHIPPED = verdict.Shipped("6.12.94", "2025.02")


def test_no_cell_shows_what_was_not_checked() -> None:
    rows = {check.name: check for check in judge(shipped=SHIPPED).checks}
    firmware, kernel, off = rows["firmware"], rows["kernel"], rows["power-off"]
    assert (firmware.requested, firmware.qemu, firmware.guest, firmware.ok) == (
        "UEFI 2025.02",
        "",
        "uefi 2025.02",
        True,
    )
    assert (kernel.requested, kernel.qemu, kernel.guest, kernel.ok) == ("6.12.94", "", "6.12.94", True)
    assert (off.requested, off.qemu, off.guest, off.ok) == ("yes", "power-off", "", True)
    # For a guest of an unknown bundle: what it reports, compared with nothing.
    rows = {check.name: check for check in judge().checks}
    assert (rows["firmware"].requested, rows["firmware"].guest) == ("UEFI", "uefi 2025.02") and "kernel" not in rows


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        (lambda: changed("firmware", version="2022.11"), "firmware: the guest reports 2022.11, the bundle has 2025.02"),
        (
            lambda: changed("firmware", version="2025.02-1"),
            "firmware: the guest reports 2025.02-1, the bundle has 2025.02",
        ),
        (lambda: changed("firmware", version=None), "firmware: the guest reports no version, the bundle has 2025.02"),
        (lambda: changed("firmware", kind="bios"), "firmware: the guest reports bios, not UEFI"),
        (lambda: changed("begin", kernel={"release": "6.12.9"}), "kernel: it is 6.12.9, the bundle has 6.12.94"),
        (lambda: changed("begin", kernel={"release": "6.12.94+"}), "kernel: it is 6.12.94+, the bundle has 6.12.94"),
        (lambda: changed("begin", kernel=None), "kernel: it is not reported, the bundle has 6.12.94"),
    ],
)
def test_another_kernel_or_firmware_than_the_bundles_fails(
    records: Callable[[], list[dict[str, Any]]], reason: str
) -> None:
    found = judge(records(), shipped=SHIPPED)
    assert (found.result, found.reason) == ("failed", reason)


def changed(record: str, **fields: Any) -> list[dict[str, Any]]:
    return [{**each, **fields} if each["record"] == record else each for each in RECORDS]


def gpu_changed(**fields: Any) -> list[dict[str, Any]]:
    return [{**each, **fields} if each.get("address") == GPU_AT else each for each in RECORDS]


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        (changed("cpus", online="0"), "CPUs: 1 of 4"),
        (changed("cpus", online="0-4"), "CPUs: 5 of 4"),
        (changed("cpus", online=None), "CPUs: 0 of 4"),
        (changed("cpus", possible="0-3"), "CPUs at most: 4 of 8"),
        (changed("memory", ram_bytes=(1 << 30) - (33 << 20)), "memory: 991 MiB of 1024 MiB"),
        (changed("memory", ram_bytes=2 << 30), "memory: 2048 MiB of 1024 MiB"),
        (changed("memory", ram_bytes=None), "memory: 0 bytes of 1024 MiB"),
        (changed("firmware", kind="bios"), "firmware: the guest reports bios, not UEFI"),
        (RECORDS[:-1], "PCI devices: the guest does not report 0000:01:00.0"),
        ([*RECORDS, pci("0000:09:00.0")], "PCI devices: QEMU does not have 0000:09:00.0"),
        (gpu_changed(gpu=False), "GPU gpu0: class 038000 is not a display controller's"),
        (gpu_changed(bars=[bar(0, 0xC0000000, 1 << 24)]), "GPU gpu0: BAR 2 (4 KiB) has no address"),
        (
            gpu_changed(bars=[bar(0, 0xC0000000, 1 << 24), {**bar(2, 0, 4096), "assigned": False}]),
            "BARs: no address: 0000:00:02.0 BAR 2; GPU gpu0: BAR 2 (4 KiB) has no address",
        ),
        (
            gpu_changed(bars=[bar(0, 0xD0000000, 1 << 24), bar(2, 0xC1000000, 4096)]),
            "GPU gpu0: BAR 0: guest 0xd0000000, QEMU 0xc0000000",
        ),
        (
            [each for each in RECORDS if each.get("address") != GPU_AT],
            "PCI devices: the guest does not report 0000:00:02.0; GPU gpu0: the guest reports nothing at 0000:00:02.0",
        ),
    ],
)
def test_another_view_of_the_guest_fails(records: list[dict[str, Any]], reason: str) -> None:
    found = judge(records)
    assert (found.result, found.reason) == ("failed", reason)


@pytest.mark.parametrize(
    ("view", "value", "reason"),
    [
        ("cpus", [{}] * 2, "CPUs: "),
        ("hotpluggable_cpus", [{}] * 4, "CPUs at most: "),
        ("memory", {"base-memory": 1 << 29}, "memory: "),
        ("pci", [{"bus": 0, "devices": []}], "PCI devices: "),
    ],
)
def test_another_view_of_qemu_fails(view: str, value: object, reason: str) -> None:
    found = judge(views={**VIEWS, view: value})
    assert found.result == "failed"
    assert found.reason.startswith(reason)


@pytest.mark.parametrize("view", ["cpus", "hotpluggable_cpus", "memory", "pci"])
def test_a_view_that_is_missing_is_not_a_pass(view: str) -> None:
    assert judge(views={name: each for name, each in VIEWS.items() if name != view}).result == "failed"


def test_no_devices_at_all_do_not_agree() -> None:
    found = judge(
        [each for each in RECORDS if each["record"] != "pci"],
        {name: each for name, each in VIEWS.items() if name != "pci"},
        spec=msgspec.structs.replace(SPEC, gpus=()),
    )
    assert (found.result, found.reason) == ("failed", "PCI devices: QMP did not answer")


def test_a_bar_that_qemu_sees_unmapped_fails() -> None:
    views = copy.deepcopy(VIEWS)
    views["pci"][0]["devices"][1]["regions"][0]["address"] = -1
    assert judge(views=views).reason == (
        "GPU gpu0: BAR 0 (16 MiB): guest 0xc0000000, and the device does not decode (command None)"
    )


def test_a_dead_bar_of_any_device_fails() -> None:
    dead = {**bar(2, 0, 1 << 38), "start": None, "size": None, "assigned": False}
    records = [{**each, "bars": [dead]} if each.get("address") == "0000:01:00.0" else each for each in RECORDS]
    assert judge(records).reason == "BARs: no address: 0000:01:00.0 BAR 2"


def test_one_dead_bar_is_named_and_not_those_that_suffer_from_it() -> None:
    views = copy.deepcopy(VIEWS)
    for region_ in views["pci"][0]["devices"][1]["regions"]:
        region_["address"] = -1
    views["pci"][0]["devices"][1]["regions"][0]["size"] = 256 << 30
    records = gpu_changed(bars=[{**bar(0, 0, 0), "assigned": False}, bar(2, 0xC1000000, 4096)], command="0000")
    assert judge(records, views).reason == (
        "BARs: no address: 0000:00:02.0 BAR 0; GPU gpu0: BAR 0 (256 GiB) has no address"
    )


def test_a_gpu_that_qemu_does_not_have_fails() -> None:
    spec = msgspec.structs.replace(SPEC, gpus=(*SPEC.gpus, Gpu("gpu1", "x", model="x")))
    assert judge(spec=spec).reason == "GPU gpu1: QEMU has no such device"


@pytest.mark.parametrize("ending", ["qemu died", "no answer"])
def test_a_whole_report_that_cannot_be_compared_is_lost(ending: Ending) -> None:
    found = judge(ending=ending)
    assert (found.result, found.checks) == ("lost", ())
    assert found.reason.endswith("(a detail)")


@pytest.mark.parametrize("ending", ["no power-off", "reset", "deadline", "panic", "internal error"])
def test_only_a_power_off_ends_well(ending: Ending) -> None:
    found = judge(ending=ending)
    assert (found.result, found.reason) == ("failed", "power-off: a detail")


@pytest.mark.parametrize(
    ("ending", "console", "records", "reason"),
    [
        ("deadline", b"", [], "it hung: no whole report, a detail; it never spoke, neither on the console nor on"),
        ("deadline", b"[ 0.0] Linux\n", [], "it hung: no whole report, a detail; initd never spoke"),
        ("reset", b"x\n[ 1.0] Kernel panic - not syncing: VFS\n", [], "the kernel panicked (console line 2)"),
        ("reset", b"BdsDxe\n", [], "it reset (a detail)"),
        ("power-off", b"x", RECORDS, "it powered off before its report was whole"),
        ("qemu died", b"x", RECORDS, "QEMU died (a detail)"),
        ("internal error", b"x", [], "a detail"),
        ("console flood", b"x", [], "a detail"),
    ],
)
def test_a_report_without_its_end_is_lost(
    ending: Ending, console: bytes, records: list[dict[str, Any]], reason: str
) -> None:
    found = judge(records, ending=ending, console=console, end=False)
    assert found.result == "lost"
    assert found.reason.startswith(reason)
    assert not found.checks


def test_a_qemu_that_still_opens_its_disks_is_no_guest_that_hangs() -> None:
    waiting = Run((), "deadline", "20 s are over", b"", b"", {}, None, None, 20.0, ready=False)
    found = verdict.judge(SPEC, waiting, report.parse(b""))
    assert found.result == "lost"
    assert found.reason == "QEMU did not start the guest, 20 s are over: it still opens its disks or other devices"
    spoken = msgspec.structs.replace(waiting, console=b"[ 0.0] Linux\n")
    assert verdict.judge(SPEC, spoken, report.parse(b"")).reason.startswith("it hung: ")


def test_a_failure_quotes_the_lines_that_name_trouble_and_what_was_known() -> None:
    found = judge(
        changed("cpus", online="0"), console=b"fine\n[    0.1] smpboot: SMP disabled\n", problems=("CONFIG_EFI is off",)
    )
    assert [line.number for line in found.telling] == [2]
    assert "CONFIG_EFI is off" in found.reason
    shown = verdict.table(found)
    assert "WRONG: 1 of 4" in shown
    assert "2 | [    0.1] smpboot: SMP disabled" in shown


def test_the_table_of_a_pass_has_a_row_a_check_and_the_times() -> None:
    shown = verdict.table(judge()).splitlines()
    assert len(shown) == 1 + 8 + 1
    assert shown[-1] == "  times: firmware 1.25 s · kernel 0.75 s · initd 0.10 s · whole 3.00 s"


def test_what_qemu_has_is_shown_beside_what_was_requested() -> None:
    assert judge(views={**VIEWS, "cpus": [{}] * 6}).reason == "CPUs: QEMU has 6, 4 were requested"
    more = {"base-memory": 1 << 30, "plugged-memory": 256 << 20}
    assert judge(views={**VIEWS, "memory": more}).reason == "memory: QEMU has 1280 MiB"


def test_a_panic_after_the_report_is_reported() -> None:
    screen = b"[ 1.0] Linux version 6.12\n[ 2.0] Kernel panic - not syncing: NMI: Not continuing\n"
    assert (
        judge(console=screen, ending="reset").reason
        == "power-off: the kernel panicked after its report (console line 2)"
    )


@pytest.mark.parametrize(
    ("screen", "reason"),
    [
        (b"BdsDxe: failed to load Boot0001\nUEFI Interactive Shell v2.2\nShell> ", "it waits in the UEFI shell"),
        (b"initd: 0.1.0: 14 records, 3634 bytes, to no port\n", "initd could not write its report (console line 1)"),
    ],
)
def test_a_guest_that_is_lost_elsewhere_is_found(screen: bytes, reason: str) -> None:
    found = judge([], console=screen, ending="deadline", end=False)
    assert found.result == "lost"
    assert reason in found.reason


def test_a_guest_in_a_pit_does_not_pass() -> None:
    passed = verdict.with_pits(judge(), {})
    assert (passed.result, passed.reason) == ("pass", "three views agree")
    assert passed.checks[-1] == verdict.Check("pits", "none", "", "none known", True)
    found = verdict.with_pits(judge(), {"msi-off": "no MSI"})
    assert (found.result, found.reason) == ("failed", "three views agree, but msi-off: no MSI")
    assert [check for check in found.checks if not check.ok] == [
        verdict.Check("pits", "none", "", "msi-off", False, "msi-off: no MSI")
    ]
    # If another row is wrong, that is the failure, and the pit only names it.
    failed = judge(changed("firmware", kind="bios"))
    assert verdict.with_pits(failed, {"seabios": "SeaBIOS"}) == failed
    lost = judge([], ending="deadline", end=False)
    assert verdict.with_pits(lost, {"efi-off": "no EFI"}) == lost


PLUGGED = msgspec.structs.replace(SPEC, cpus=2, plug_cpus=4, memory=512 << 20, plug_memory=1 << 30)


def test_what_was_plugged_in_counts_as_requested() -> None:
    found = judge(spec=PLUGGED)
    assert found.result == "pass"
    shown = {check.name: check.requested for check in found.checks}
    assert (shown["CPUs"], shown["memory"]) == ("2 → 4", "512 MiB → 1024 MiB")
    few = judge(changed("cpus", online="0-1"), spec=PLUGGED)
    assert few.reason == "CPUs: 2 of 4"
    little = judge(changed("memory", ram_bytes=512 << 20), spec=PLUGGED)
    assert little.reason == "memory: 512 MiB of 1024 MiB"


NUMA = msgspec.structs.replace(SPEC, numa=(Node((0, 1), 512 << 20, (10, 20)), Node((2, 3), 512 << 20, (20, 10))))


def nodes(**second: Any) -> list[dict[str, Any]]:
    first = {"record": "node", "id": 0, "cpus": "0-1", "memory_bytes": 480 << 20, "distances": [10, 20]}
    other = {**first, "id": 1, "cpus": "2-3", "distances": [20, 10], **second}
    return [*RECORDS, first, other]


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        (RECORDS, "NUMA nodes: 0 of 2"),
        (nodes()[:-1], "NUMA nodes: 1 of 2"),
        (nodes(cpus="3"), "NUMA nodes: node 1 has CPUs 3"),
        (nodes(distances=[30, 10]), "NUMA nodes: node 1's distances are [30, 10]"),
        (nodes(memory_bytes=300 << 20), "NUMA nodes: node 1 has 300 MiB of 512 MiB"),
        (nodes(memory_bytes=None), "NUMA nodes: node 1 has 0 bytes of 512 MiB"),
    ],
)
def test_nodes_are_as_launched(records: list[dict[str, Any]], reason: str) -> None:
    assert judge(nodes(), spec=NUMA).result == "pass"
    assert judge(records, spec=NUMA).reason == reason


def test_a_dimm_is_the_first_nodes() -> None:
    # QEMU's pc-dimm has node=0 by default (hw/mem/pc-dimm.c).
    spec = msgspec.structs.replace(NUMA, plug_memory=2 << 30)
    views = {**VIEWS, "memory": {"base-memory": 1 << 30, "plugged-memory": 1 << 30}}

    def seen(*sizes: int) -> str:
        records = [
            {**each, "memory_bytes": size << 20} for each, size in zip(nodes()[-2:], sizes, strict=True)
        ]  # fmt: skip
        memory = {"record": "memory", "ram_bytes": (2 << 30) - (3 << 20)}
        return judge(
            [*(memory if each["record"] == "memory" else each for each in RECORDS), *records], views, spec=spec
        ).reason

    assert seen(1500, 480) == "three views agree"
    assert seen(480, 480) == "NUMA nodes: node 0 has 480 MiB of 1536 MiB"
    # A guest with memory above 4 GiB keeps 64 MiB for bounce buffers; QEMU 7.2 and linux 6.12: 413 MiB of 512.
    assert judge(nodes(memory_bytes=413 << 20), spec=NUMA).result == "failed"
    spec = msgspec.structs.replace(spec, max_memory=2 << 30)
    assert seen(1520, 413) == "three views agree"
    assert seen(1520, 360) == "NUMA nodes: node 1 has 360 MiB of 512 MiB"
    assert seen(480, 1500) == ("NUMA nodes: node 0 has 480 MiB of 1536 MiB; node 1 has 1500 MiB of 512 MiB")


def test_a_card_that_is_one_bar_needs_no_class() -> None:
    bar_only = msgspec.structs.replace(SPEC, gpus=(Gpu("gpu0", "bar:16M", bar=1 << 24),))
    assert judge(gpu_changed(gpu=False), spec=bar_only).result == "pass"


HOST_CARD = cards.Card(
    "0000:65:00.0", "1234", "1111", "00ff00", (cards.Bar(0, 1 << 24, 64, True), cards.Bar(2, 4096, 32, False))
)


def of_host(card: cards.Card) -> Spec:
    return msgspec.structs.replace(SPEC, gpus=(Gpu("gpu0", "65:00.0", host="0000:65:00.0", card=card),))


def test_what_was_unplugged_again_is_gone() -> None:
    spec = msgspec.structs.replace(SPEC, cpus=2, plug_cpus=6, unplug_cpus=4)
    judged = judge(spec=spec)
    assert judged.result == "pass"
    assert judged.checks[0].requested == "2 → 6 → 4"
    kept = judge(spec=msgspec.structs.replace(spec, unplug_cpus=3))
    assert kept.reason == "CPUs: 4 of 3"


BUTTON = msgspec.structs.replace(SPEC, power_button=True)
DOWN = report.Shutdown("power-button", "power-off", 0, 0, True, 0)


def pressed(spec: Spec = BUTTON, ending: Ending = "power-off", **changes: Any) -> verdict.Verdict:
    """The verdict on a guest that shut down, with these `changes` to the right way."""
    text = "".join(json.dumps(each, separators=(",", ":")) + "\n" for each in END_TOO).encode()
    seen = msgspec.structs.replace(report.parse(text), shutdown=msgspec.structs.replace(DOWN, **changes))
    return verdict.judge(spec, Run((), ending, "a detail", b"", text, VIEWS, 2.0, 2.1, 3.0), seen)


END_TOO = [*RECORDS, {"record": "end", "status": "ok", "records": len(RECORDS)}]


def test_a_power_button_ends_the_guest_in_order() -> None:
    judged = pressed()
    assert judged.result == "pass"
    row = next(check for check in judged.checks if check.name == "power button")
    assert (row.requested, row.qemu, row.guest) == ("shut down in order", "", "power-button, power-off")
    off = judged.checks[-1]
    assert (off.name, off.qemu, off.guest, off.ok) == ("power-off", "power-off", "power-off", True)
    assert pressed(SPEC, how="reboot").checks[-1].guest == "reboot"
    assert "power button" not in [check.name for check in pressed(SPEC).checks]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"why": "initd.then"}, "it ended because of initd.then"),
        ({"how": "reboot"}, "it ended with reboot"),
        ({"killed": 2, "left": 1}, "2 programs had to be killed, 1 are left"),
        ({"synced": False}, "not all data was written to the disks"),
        ({"busy": 1}, "1 file systems stayed writable"),
        ({"busy": None}, "some file systems stayed writable"),
    ],
)
def test_a_shutdown_that_was_not_in_order_fails(changes: dict[str, Any], reason: str) -> None:
    judged = pressed(**changes)
    assert (judged.result, judged.reason) == ("failed", f"power button: {reason}")


def test_a_power_button_without_effect_fails() -> None:
    judged = judge(spec=BUTTON, ending="no power-off")
    assert judged.result == "failed"
    assert "power button: the guest did not shut down when the button was pressed; power-off: a detail" in judged.reason


def test_a_hosts_card_is_the_same_in_the_guest() -> None:
    # Its class is the host's business.
    seen = gpu_changed(gpu=False, **{"class": "00ff00"})
    assert judge(seen, spec=of_host(HOST_CARD)).result == "pass"
    other = msgspec.structs.replace(HOST_CARD, device="2330")
    assert judge(seen, spec=of_host(other)).reason == (
        "GPU gpu0: 1234:1111 class 00ff00, on the host 1234:2330 class 00ff00"
    )
    larger = msgspec.structs.replace(HOST_CARD, bars=(cards.Bar(0, 1 << 25, 64, True), HOST_CARD.bars[1]))
    assert judge(seen, spec=of_host(larger)).reason == "GPU gpu0: BAR 0 has 16 MiB, on the host 32 MiB"


def test_large_bars_are_where_they_were_planned() -> None:
    # BAR 0 is at 0xc0000000, 16 MiB; the other one cannot lie high.
    def row(window: bar_window.Window, records: list[dict[str, Any]] | None = None) -> verdict.Check | None:
        lines = [*(records or gpu_changed(gpu=False, **{"class": "00ff00"}))]
        lines.append({"record": "end", "status": "ok", "records": len(lines)})
        seen = report.parse("".join(json.dumps(each, separators=(",", ":")) + "\n" for each in lines).encode())
        run = Run((), "power-off", "", b"", b"", VIEWS, 2.0, 2.1, 3.0)
        checks = verdict.judge(of_host(HOST_CARD), run, seen, window=window).checks
        return next((check for check in checks if check.name == "BAR window"), None)

    inside = row(bar_window.Window(0xC0000000, 1 << 24, "set by X-PciMmio64Mb"))
    assert inside is not None and inside.ok and inside.guest == "1 of 1 BARs"
    for wrong in (
        bar_window.Window(0xC0000000, 1 << 23, "set by X-PciMmio64Mb"),
        bar_window.Window(0xD0000000, 1 << 30, "set by X-PciMmio64Mb"),
    ):
        outside = row(wrong)
        assert outside is not None and not outside.ok and "gpu0 BAR 0 at 0xc0000000" in outside.why
    # A BAR that the guest does not have is not where it was planned.
    gone = row(
        bar_window.Window(0, 1 << 40, "set by X-PciMmio64Mb"), gpu_changed(gpu=False, bars=[bar(2, 0xC1000000, 4096)])
    )
    assert gone is not None and not gone.ok and gone.guest == "0 of 1 BARs"


def test_a_window_has_its_ends() -> None:
    card = msgspec.structs.replace(HOST_CARD, bars=(cards.Bar(0, 1 << 24, 64, True),))
    lines = [*gpu_changed(gpu=False, **{"class": "00ff00"})]
    lines.append({"record": "end", "status": "ok", "records": len(lines)})
    seen = report.parse("".join(json.dumps(each, separators=(",", ":")) + "\n" for each in lines).encode())
    run = Run((), "power-off", "", b"", b"", VIEWS, 2.0, 2.1, 3.0)
    for base, size, ok in (
        (0xC0000000, 1 << 24, True), (0xBF000000, 1 << 25, True), (0xC0000001, 1 << 24, False),
        (0xC0000000, (1 << 24) - 1, False), (0xBF000000, (1 << 25) - 1, False), (0xC1000000, 1 << 24, False),
    ):  # fmt: skip
        window = bar_window.Window(base, size, "set by X-PciMmio64Mb")
        judged = verdict.judge(of_host(card), run, seen, window=window)
        row = next(check for check in judged.checks if check.name == "BAR window")
        assert row.ok is ok and row.requested == f"{base:#x} to {base + size:#x}"
        assert row.why == ("" if ok else f"not where it was planned, {row.requested}: gpu0 BAR 0 at 0xc0000000")
    # A card that is one large BAR is planned too; an emulated one has none that lies high.
    large = msgspec.structs.replace(SPEC, gpus=(Gpu("gpu0", "bar:16M", bar=1 << 24), SPEC.gpus[0]))
    window = bar_window.Window(0, 1, "set by X-PciMmio64Mb")
    row = next(each for each in verdict.judge(large, run, seen, window=window).checks if each.name == "BAR window")
    assert row.guest == "0 of 1 BARs"
    assert "BAR window" not in [each.name for each in verdict.judge(SPEC, run, seen, window=window).checks]


def test_every_cell_shows_its_view() -> None:
    rows = {check.name: check for check in judge().checks}
    cells = {name: (row.requested, row.qemu, row.guest) for name, row in rows.items()}
    assert cells == {
        "CPUs": ("4", "4", "4"), "CPUs at most": ("8", "8", "8"),
        "memory": ("1024 MiB", "1024 MiB", "1021 MiB RAM"), "firmware": ("UEFI", "", "uefi 2025.02"),
        "PCI devices": ("all", "4", "4"), "BARs": ("all placed", "", "2 of 2"),
        "GPU gpu0": ("secondary-vga", "0000:00:02.0, 2 BARs", "1234:1111, 2 of 2 BARs placed"),
        "power-off": ("yes", "power-off", ""),
    }  # fmt: skip
    assert all(row.ok and not row.why for row in rows.values())
    near = msgspec.structs.replace(NUMA, gpus=(msgspec.structs.replace(SPEC.gpus[0], node=1),))
    records = [{**each, "numa_node": 1} if each.get("address") == GPU_AT else each for each in nodes()]
    rows = {check.name: check for check in judge(records, spec=near).checks}
    assert (rows["NUMA nodes"].requested, rows["NUMA nodes"].guest) == ("2", "CPUs 0-1; CPUs 2-3")
    assert rows["GPU gpu0"].guest == "1234:1111, 2 of 2 BARs placed, node 1"
    # Without an answer no view is invented.
    rows = {check.name: check for check in judge(views={}).checks}
    assert [rows[name].qemu for name in ("CPUs", "CPUs at most", "memory")] == ["not answered"] * 3
    assert (rows["GPU gpu0"].qemu, rows["GPU gpu0"].guest) == ("not there", "")
    rows = {check.name: check for check in judge(nodes()[: len(RECORDS)], spec=NUMA).checks}
    assert rows["NUMA nodes"].guest == "none"


def test_memory_is_right_up_to_what_the_firmware_keeps() -> None:
    least = (1 << 30) - verdict.RESERVED_MAX
    assert verdict.RESERVED_MAX == 32 << 20
    for ram, result in ((least, "pass"), (least - 1, "failed"), (1 << 30, "pass"), ((1 << 30) + 1, "failed")):
        assert judge(changed("memory", ram_bytes=ram)).result == result
    bare = {"base-memory": 1 << 30}
    assert judge(views={**VIEWS, "memory": bare}).result == "pass"


def test_a_nodes_memory_has_its_limits() -> None:
    requested, kept = 512 << 20, 32 << 20
    for there, result in (
        (int(requested * 0.9) - kept + 1, "pass"), (int(requested * 0.9) - kept - 1, "failed"),
        (int(requested * 1.01) + kept, "pass"), (int(requested * 1.01) + kept + 1, "failed"),
    ):  # fmt: skip
        assert judge(nodes(memory_bytes=there), spec=NUMA).result == result
    # Only where memory may lie above 4 GiB does Linux keep buffers below it.
    assert verdict.BOUNCE == 64 << 20
    for memory, result in ((bar_window.LOW_MAX - 1, "failed"), (bar_window.LOW_MAX, "pass")):
        spec = msgspec.structs.replace(NUMA, memory=memory)
        judged = judge(nodes(memory_bytes=400 << 20), spec=spec)
        row = next(check for check in judged.checks if check.name == "NUMA nodes")
        assert row.ok is (result == "pass")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"), (1023, "1023 bytes"), (1024, "1 KiB"), ((1 << 20) - 1024, "1023 KiB"), (1 << 20, "1 MiB"),
        (1 << 30, "1024 MiB"), (7 << 30, "7168 MiB"), (8 << 30, "8 GiB"), ((8 << 30) + (1 << 20), "8193 MiB"),
    ],
)  # fmt: skip
def test_a_size_is_shown_in_whole_units(count: int, text: str) -> None:
    dead = [{**bar(0, 0, 0), "assigned": False}, bar(2, 0xC1000000, 4096)]
    views = copy.deepcopy(VIEWS)
    views["pci"][0]["devices"][1]["regions"][0]["size"] = count
    assert judge(gpu_changed(bars=dead), views).reason.endswith(f"GPU gpu0: BAR 0 ({text}) has no address")


def test_times_are_shown_if_they_are_known() -> None:
    def phases(begin: float | None, end: float | None, uptime: object) -> verdict.Phases:
        lines = [{**RECORDS[0], "uptime": uptime}]
        text = json.dumps(lines[0], separators=(",", ":")).encode() + b"\n"
        run = Run((), "deadline", "late", b"", text, {}, begin, end, 9.0)
        return verdict.judge(SPEC, run, report.parse(text)).phases

    assert phases(2.0, 2.5, 0.75) == verdict.Phases(1.25, 0.75, 0.5, 9.0)
    assert phases(2.0, None, 0.75) == verdict.Phases(1.25, 0.75, None, 9.0)
    # The guest's clock may be ahead of what the host measured.
    assert phases(2.0, 2.5, 3.0) == verdict.Phases(0.0, 3.0, 0.5, 9.0)
    for unknown in (phases(None, None, 0.75), phases(2.0, 2.5, None)):
        assert unknown == verdict.Phases(None, None, None, 9.0)


def test_a_lost_guest_leaves_its_last_lines() -> None:
    screen = b"".join(b"line %d\n" % n for n in range(1, 31))
    found = judge([], console=screen, ending="deadline", end=False)
    assert [line.number for line in found.tail] == list(range(19, 31))
    shown = verdict.table(found).splitlines()
    assert shown[:2] == ["  times: whole 3.00 s", "  the console's last lines:"] and shown[-1] == "     30 | line 30"
    assert not judge().tail and not judge(changed("cpus", online="0")).tail


def test_a_card_without_bars_is_not_right() -> None:
    views = copy.deepcopy(VIEWS)
    views["pci"][0]["devices"][1]["regions"] = []
    assert judge(gpu_changed(bars=[]), views).reason == "GPU gpu0: QEMU reports no BARs"


def test_an_expansion_rom_is_not_a_bar() -> None:
    rom = {**bar(6, 0, 0), "start": None, "size": None, "assigned": False}
    seen = gpu_changed(bars=[bar(0, 0xC0000000, 1 << 24), bar(2, 0xC1000000, 4096), rom])
    assert judge(seen).result == "pass"
    placed = gpu_changed(bars=[bar(0, 0xC0000000, 1 << 24), bar(2, 0xC1000000, 4096), bar(6, 0xC2000000, 1 << 16)])
    rows = {check.name: check.guest for check in judge(placed).checks}
    assert (rows["GPU gpu0"], rows["BARs"]) == ("1234:1111, 2 of 2 BARs placed", "2 of 2")
    with_rom = msgspec.structs.replace(HOST_CARD, bars=(*HOST_CARD.bars, cards.Bar(6, 1 << 17, 32, False)))
    assert judge(gpu_changed(gpu=False, **{"class": "00ff00"}), spec=of_host(with_rom)).result == "pass"


def test_a_bar_of_another_size_than_qemus_fails() -> None:
    other = gpu_changed(bars=[bar(0, 0xC0000000, 1 << 23), bar(2, 0xC1000000, 4096)])
    assert judge(other).reason == "GPU gpu0: BAR 0: guest 8 MiB, QEMU 16 MiB"


def test_a_card_is_near_its_node() -> None:
    near = msgspec.structs.replace(SPEC, gpus=(msgspec.structs.replace(SPEC.gpus[0], node=1),))
    assert judge(gpu_changed(numa_node=1), spec=near).result == "pass"
    assert judge(gpu_changed(numa_node=0), spec=near).reason == "GPU gpu0: near node 0, not 1"
    assert judge(spec=near).reason == "GPU gpu0: near node None, not 1"


def test_facts_are_of_all_three_views() -> None:
    text = "".join(json.dumps(each) + "\n" for each in [*RECORDS, {"record": "end", "records": len(RECORDS)}]).encode()
    text = text.replace(b'{"record": "', b'{"record":"')
    run = Run((), "power-off", "", b"a\n\nb\n", text, VIEWS, 2.0, 2.1, 3.0)
    found = facts.of_boot(PLUGGED, run, report.parse(text))
    wanted: dict[str, Any] = {
        "cpus.requested": 4, "cpus.plugged": 2, "cpus.max_requested": 8, "cpus.made": 4, "cpus.online": 4,
        "memory.requested": 1 << 30, "memory.made": 1 << 30,
        "memory.plugged": 512 << 20, "memory.missing": 3 << 20, "nodes.requested": 1, "nodes": 0,
        "gpus.requested": 1, "gpus.made": 1, "gpus.seen": 1, "ending": "power-off", "console.lines": 2,
        "report": "whole", "disks.ceph": 0, "qemu.ready": "yes",
    }  # fmt: skip
    assert {name: found.get(name) for name in wanted} == wanted
    assert set(found) <= set(NAMES)
    silent = facts.of_boot(SPEC, Run((), "deadline", "", b"", b"", {}, None, None, 3.0), report.parse(b""))
    assert "cpus.made" not in silent and "gpus.made" not in silent and silent["report"] == "none"
    assert silent["kernel.speaks"] == "no"
    spoken = Run((), "deadline", "", b"[    0.0] Linux version 6.12\n", b"", {}, None, None, 3.0)
    assert facts.of_boot(SPEC, spoken, report.parse(b""))["kernel.speaks"] == "yes"
    on_ceph = msgspec.structs.replace(SPEC, disks=(Disk(rbd="a/b"), Disk(file="/f"), Disk(file="/g")))
    waiting = facts.of_boot(on_ceph, msgspec.structs.replace(spoken, ready=False), report.parse(b""))
    assert (waiting["disks.ceph"], waiting["qemu.ready"]) == (1, "no")
    left_out = copy.deepcopy(VIEWS)
    left_out["pci"][0]["devices"].pop(1)
    run = Run((), "power-off", "", b"", text, left_out, 2.0, 2.1, 3.0)
    assert facts.of_boot(SPEC, run, report.parse(text))["gpus.made"] == 0
    more = {**VIEWS, "memory": {"base-memory": 1 << 29, "plugged-memory": 1 << 29}}
    found = facts.of_boot(SPEC, Run((), "power-off", "", b"", text, more, 2.0, 2.1, 3.0), report.parse(text))
    assert (found["memory.made"], found["memory.missing"], found["memory.plugged"]) == (1 << 30, 3 << 20, 0)
    assert (found["cpus.plugged"], found["cpus.requested"], found["nodes.requested"]) == (0, 4, 1)
    bare = Run((), "power-off", "", b"", text, {"memory": {"base-memory": 1 << 30}}, 2.0, 2.1, 3.0)
    assert facts.of_boot(SPEC, bare, report.parse(text))["memory.made"] == 1 << 30
    unseen = facts.of_boot(SPEC, bare, report.parse(b""))
    assert "memory.missing" not in unseen and facts.of_boot(NUMA, bare, report.parse(b""))["nodes.requested"] == 2


ROOTED = msgspec.structs.replace(SPEC, root=Root(disk="LABEL=root"))
ROOT_RECORD: dict[str, Any] = {
    "record": "root", "requested": "LABEL=root", "result": "found", "error": None, "device": "/dev/vda1",
    "type": "ext4", "read_only": False, "init": "/sbin/init", "waited": 0.1, "mounting": 0.2, "there": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"type": "xfs"}, "it is xfs, not ext4"),
        ({"read_only": True}, "it is read-only"),
        ({"result": "absent", "error": "not found in 30 s", "device": None}, "not found in 30 s"),
        ({"result": "no-init", "error": "/sbin/init: No such file"}, "/sbin/init: No such file"),
        ({"result": "no-filesystem"}, "no-filesystem"),
        (None, "the guest did not report what became of its root"),
    ],
)
def test_a_root_is_judged(change: dict[str, Any] | None, why: str) -> None:
    records = RECORDS if change is None else [*RECORDS, {**ROOT_RECORD, **change}]
    found = judge(records, spec=ROOTED)
    row = next(check for check in found.checks if check.name == "root")
    assert (row.ok, row.why) == (not why, why)
    assert found.result == ("failed" if why else "pass")


RO = {"read_only": True}
WRONG = "it is read-only"


@pytest.mark.parametrize(
    ("wanted", "change", "shown", "why"),
    [
        (Root(disk="LABEL=root"), {}, "/dev/vda1, ext4, /sbin/init", ""),
        (Root(read_only=True), RO, "/dev/vda1, ext4, read-only, /sbin/init", ""),
        # Only what can be written to may be read-only without a request.
        (Root(filesystem="xfs"), {**RO, "type": "xfs"}, "/dev/vda1, xfs, read-only, /sbin/init", WRONG),
        (Root(filesystem="btrfs"), {**RO, "type": "btrfs"}, "/dev/vda1, btrfs, read-only, /sbin/init", WRONG),
        (Root(filesystem="squashfs"), {**RO, "type": "squashfs"}, "/dev/vda1, squashfs, read-only, /sbin/init", ""),
        (Root(filesystem="erofs"), {**RO, "type": "erofs"}, "/dev/vda1, erofs, read-only, /sbin/init", ""),
        # A share has no device, and its type is not the requested file system.
        (Root(disk="9p:tag"), {"requested": "9p:tag", "device": None, "type": "9p"}, "9p:tag, 9p, /sbin/init", ""),
        (
            Root(disk="virtiofs:tag"), {"requested": "virtiofs:tag", "device": None, "type": "virtiofs"},
            "virtiofs:tag, virtiofs, /sbin/init", "",
        ),
    ],
)  # fmt: skip
def test_what_a_root_is_shown_as(wanted: Root, change: dict[str, Any], shown: str, why: str) -> None:
    found = judge([*RECORDS, {**ROOT_RECORD, **change}], spec=msgspec.structs.replace(SPEC, root=wanted))
    row = next(check for check in found.checks if check.name == "root")
    assert (row.requested, row.guest, row.why) == (f"{wanted.disk}, {wanted.filesystem}", shown, why)


def test_a_root_that_was_not_requested_has_no_row() -> None:
    assert "root" not in [check.name for check in judge([*RECORDS, ROOT_RECORD]).checks]


QUIET = msgspec.structs.replace(SPEC, console="quiet")


def logged(*records: dict[str, Any], ending: Ending = "power-off", whole: bool = True) -> verdict.Verdict:
    """The verdict of a quiet guest that wrote these records after its report."""
    lines = [*END_TOO, *records] if whole else RECORDS
    text = "".join(json.dumps(each, separators=(",", ":")) + "\n" for each in lines).encode()
    run = Run((), ending, "a detail", b"EFI stub: x\n", text, VIEWS, 2.0, 2.1, 3.0)
    return verdict.judge(QUIET, run, report.parse(text))


def test_a_quiet_guest_passes_only_with_its_kernels_log() -> None:
    sent = {"record": "log", "left_out": 3, "lines": ["[    0.1] Linux version", "[    0.2] no space for 1"]}
    found = logged(sent)
    (row,) = [check for check in found.checks if check.name == "kernel's log"]
    assert (found.result, row.guest, row.ok) == ("pass", "2 messages, 3 left out", True)
    without = logged()
    assert without.result == "failed"
    assert without.reason == "kernel's log: it did not come after the report, and the console was quiet"
    assert "kernel's log" not in [check.name for check in judge().checks]


def test_a_quiet_guest_that_is_lost_says_that_nobody_saw_its_kernel() -> None:
    found = logged(whole=False, ending="deadline")
    assert found.result == "lost"
    assert "its console was quiet" in found.reason and "boot-test --console full" in found.reason
    assert "quiet" not in judge(ending="deadline", end=False).reason
    # It ended in another way, but its log came.
    sent = {"record": "log", "left_out": 0, "lines": ["[    0.1] Linux version", "[    0.2] no space for 1"]}
    late = logged(sent, ending="no answer")
    assert late.result == "lost" and "quiet" not in late.reason
    assert [line.text for line in late.logged] == ["[    0.2] no space for 1"]
    assert "      2 | [    0.2] no space for 1" in verdict.table(late)


def test_a_quiet_kernel_that_was_not_seen_is_not_silent() -> None:
    run = Run((), "deadline", "", b"", b"", {}, None, None, 3.0)
    none, came = report.parse(b""), report.Report(False, (), (), log=(report.LogPart(0, ("[ 0.1] Linux version 6",)),))
    assert facts.of_boot(QUIET, run, none)["kernel.speaks"] == "unseen"
    assert facts.of_boot(SPEC, run, none)["kernel.speaks"] == "no"
    assert facts.of_boot(QUIET, run, came)["kernel.speaks"] == "yes"
