# SPDX-License-Identifier: Apache-2.0
"""What the rehearsal's host is and does, and when it is tried again."""

import subprocess
from pathlib import Path

import msgspec
import pytest

from minguest.boottest import rehearse, runner
from minguest.boottest.records import Options, Rehearsal
from minguest.model import Disk, Drivers, Launch, Node
from minguest.util.errors import UserError
from minguest.vm import cards
from minguest.vm.qemu import Ending
from tests import ROOT
from tests.unit.boottest.test_steps import outcome

CARDS = (cards.Gpu("card0", "secondary-vga", model="secondary-vga"), cards.Gpu("card1", "bar:64G", bar=64 << 30))


def test_the_host_has_an_iommu_and_each_card_its_own_port(tmp_path: Path) -> None:
    site = rehearse.Site("g", ROOT, tmp_path, Path("/b"), tmp_path, tmp_path, tmp_path)
    spec = rehearse.host_spec(CARDS, 512 << 20, 100)
    command = rehearse.argv(site.host, spec, CARDS)
    assert spec.memory == 1536 << 20
    # 64 GiB behind OVMF's window of an eighth: 2**40 / 8 is enough.
    assert spec.cpu == "max,+svm,+npt,-erms,-fsrm,phys-bits=40"
    # An eighth of 2**41 is 256 GiB, and the second function's BAR wants room beside that.
    assert rehearse.host_spec([cards.Gpu("card0", "bar:256G", bar=256 << 30)], 1 << 30, 9).cpu.endswith("=42")
    assert command[command.index("-accel") + 1] == "tcg,thread=single"
    devices = [command[at + 1] for at, each in enumerate(command) if each == "-device"]
    assert devices[-6:] == [
        "pcie-root-port,id=port0,bus=pcie.0,chassis=1,slot=1",
        "secondary-vga,id=card0,bus=port0,addr=0.0,multifunction=on",
        "virtio-rng-pci,bus=port0,addr=0.1,iommu_platform=on,disable-legacy=on",
        "pcie-root-port,id=port1,bus=pcie.0,chassis=2,slot=2",
        "pci-testdev,membar=65536M,id=card1,bus=port1,addr=0.0,multifunction=on",
        "virtio-rng-pci,bus=port1,addr=0.1,iommu_platform=on,disable-legacy=on",
    ]
    assert "path=/,security_model=none,readonly=on" in " ".join(command)


def test_the_hosts_time_is_counted_in_instructions(tmp_path: Path) -> None:
    """With the machine's clock QEMU 7.2 can lose the host's tick, and on a loaded machine the host hangs."""
    site = rehearse.Site("g", ROOT, tmp_path, Path("/b"), tmp_path, tmp_path, tmp_path)
    command = rehearse.argv(site.host, rehearse.host_spec(CARDS, 512 << 20, 100), CARDS)
    assert "-icount" in command
    assert command[command.index("-icount") + 1] == "shift=3,sleep=on"


def late(ending: Ending = "deadline", of: runner.Outcome | None = None, load: float = 3.5) -> str:
    return rehearse.out_of_time(ending, of, 300, 80, load, 2)


def test_a_host_or_a_guest_without_time_is_tried_again_and_the_load_is_named() -> None:
    loaded = "this machine is too loaded, or it hangs (in 300 s QEMU had 80 s of a CPU; load 3.5 on 2 CPUs)"
    assert late() == f"the host was not done in its time: {loaded}"
    of = outcome("lost")
    of = msgspec.structs.replace(of, verdict=msgspec.structs.replace(of.verdict, ending="deadline"))
    assert late("power-off", of) == f"the guest was not done in its time: {loaded}"
    assert "loaded" not in late(load=1.0)
    assert "it hangs, or it is slow" in late(load=1.0)


def test_what_is_wrong_for_another_reason_is_not_tried_again() -> None:
    for ending in ("power-off", "panic", "reset", "qemu died", "internal error", "dead end"):
        assert late(ending) == ""
    assert late("power-off", outcome("failed")) == ""
    assert late("power-off", outcome("lost")) == ""


def record(result: str, before: tuple[str, ...]) -> Rehearsal:
    return Rehearsal(1, {}, {}, Options(), "7.2", result, (), None, 1.0, before)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("whys", "results", "result", "before"),
    [
        (("",), ("pass",), "pass", ()),
        (("",), ("failed",), "failed", ()),
        (("loaded", ""), ("lost", "pass"), "pass", ("loaded",)),
        (("loaded", ""), ("lost", "failed"), "failed", ("loaded",)),
        (("loaded", "again", ""), ("lost", "lost", "pass"), "pass", ("loaded", "again")),
        (("loaded", "again", "still"), ("lost", "lost", "lost"), "lost", ("loaded", "again")),
    ],
)
def test_a_rehearsal_without_time_is_tried_again_and_no_other(
    whys: tuple[str, ...], results: tuple[str, ...], result: str, before: tuple[str, ...]
) -> None:
    runs = list(zip(results, whys, strict=True))
    said: list[str] = []

    def attempt(earlier: tuple[str, ...]) -> tuple[Rehearsal, str]:
        kind, why = runs.pop(0)
        return record(kind, earlier), why

    last = rehearse.tried(attempt, said.append)
    assert (last.result, last.before, runs) == (result, before, [])
    assert said == [f"{why}; trying once more, with more time" for why in before] + [
        why for why in whys[len(before) :] if why
    ]


def test_sh_accepts_the_script_wherever_the_project_is(tmp_path: Path) -> None:
    place = tmp_path / "it's a place"
    text = rehearse.script(ROOT / "configs/templates/rehearse.j2", place, ["0000:01:00.0", "0000:02:00.0"])
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    given = "0000:01:00.0,0000:02:00.0 0000:01:00.0 0000:01:00.1 0000:02:00.0 0000:02:00.1"
    assert f"-m minguest.emulated_host /run/share {given} >" in text


def test_the_guest_is_its_own_without_what_the_host_does_not_have() -> None:
    disk = Disk(file="/disk.img")
    own = Launch(cmdline=("a=b",), disks=(disk,), numa=(Node("1G"),), max_cpus=8, max_memory="4G", window="1G")
    guest = rehearse.guest_launch(own, Options(memory="768M"), ["0000:01:00.0"], 100)
    assert (guest.cpus, guest.max_cpus, guest.memory, guest.gpus) == (1, 8, "768M", ("0000:01:00.0",))
    assert (guest.accel, guest.timeout, guest.cmdline, guest.window) == ("kvm", 80, ("a=b",), "1G")
    assert (guest.disks, guest.numa, guest.max_memory, guest.hugepages) == ((), (), "", "")
    with pytest.raises(UserError, match="at least one CPU"):
        rehearse.guest_launch(own, Options(cpus="0"), [], 100)


@pytest.mark.parametrize(
    ("own", "options", "driver"),
    [
        (Launch(), Options(), ""),
        (Launch(driver="a"), Options(), "a"),
        (Launch(driver="a", gpus=("secondary-vga", "bar:1G")), Options(gpu="bar:1G,bar:1G"), "a"),
        (Launch(driver="a"), Options(gpu="secondary-vga,bar:1G"), ""),
        (Launch(driver="a", gpus=("0000:41:00.0",)), Options(), ""),
        (Launch(driver="a", gpus=("0000:41:00.0",)), Options(driver="b"), "b"),
        (Launch(driver="a"), Options(driver="b"), "b"),
        (Launch(driver="a", drivers=Drivers(("any",))), Options(), ""),
    ],
)
def test_a_driver_is_for_the_cards_that_the_guest_itself_has(own: Launch, options: Options, driver: str) -> None:
    assert rehearse.guest_launch(own, options, ["0000:01:00.0"], 100).driver == driver


def test_a_driver_on_a_disk_that_is_left_out_is_refused() -> None:
    own = Launch(drivers=Drivers(("any",)))
    with pytest.raises(UserError, match="--driver a: this guest has its drivers on a disk, which a rehearsal leaves"):
        rehearse.guest_launch(own, Options(driver="a"), ["0000:01:00.0"], 100)


@pytest.mark.parametrize("gpu", ["0000:01:00.0", "", "secondary-vga,01:00.0"])
def test_a_real_card_is_refused(gpu: str) -> None:
    with pytest.raises(UserError, match=r"(?s)a rehearsal uses emulated cards.*boot-test --gpu 0000:01:00\.0"):
        rehearse.requested_cards(Options(gpu=gpu))


def test_an_unknown_emulated_card_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean secondary-vga"):
        rehearse.requested_cards(Options(gpu="secondary-vgaa"))
