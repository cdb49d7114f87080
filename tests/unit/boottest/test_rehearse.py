# SPDX-License-Identifier: Apache-2.0
"""What the rehearsal's host is and does; whatever goes wrong in it is not a pass."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from minguest.boottest import rehearse, runner, verdict
from minguest.boottest.records import Options, Rehearsal
from minguest.model import Disk, Launch, Node
from minguest.util.errors import UserError
from minguest.vm import cards, launch, report
from minguest.vm.qemu import Ending, Run
from tests import ROOT
from tests.damage import Damage, each_way

CARDS = (cards.Gpu("card0", "secondary-vga", model="secondary-vga"), cards.Gpu("card1", "bar:64G", bar=64 << 30))
SPEC = launch.Spec(
    "q35", "kvm", "max", 2, 64, 512 << 20, (cards.Gpu("gpu0", "0000:01:00.0", host="0000:01:00.0"),), (), 240
)
OWNERS = {
    "before": "0000:01:00.0  (null)\n0000:01:00.1 virtio-pci (null)\n",
    "during": "0000:01:00.0 vfio-pci vfio-pci\n0000:01:00.1 vfio-pci vfio-pci\n",
    "after": "0000:01:00.0  (null)\n0000:01:00.1 virtio-pci (null)\n",
}
STEPS = "host 0 1.01\nhost-bind 0 2.50\nhost-check 0 6.00\nboot-test 0 25.10\nhost-unbind 0 26.00\n"


def outcome(result: str = "pass", spec: launch.Spec = SPEC) -> runner.Outcome:
    judged = verdict.Verdict(result, "", (), verdict.Phases(None, None, None, 1.0), "power-off")  # type: ignore[arg-type]
    return runner.Outcome({}, Launch(), spec, "7.2", "kvm as requested", (), judged, run_guest=True)


def seen(messages: int | None = 2, device: str = "1044") -> report.Report:
    second = report.PciDevice("0000:01:00.1", "1af4", device, "00ff00", False, (), messages=messages)
    return report.Report(True, (), (second,))


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """What a host leaves after a rehearsal that went well."""
    for name, text in {**OWNERS, "steps": STEPS}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def judged(
    share: Path,
    ending: Ending = "power-off",
    of: runner.Outcome | None = None,
    guest: report.Report | None = None,
) -> dict[str, str]:
    """What is wrong, by the name of the row."""
    run = Run((), ending, "a detail", b"[ 1.0] the last line\n", b"", {}, None, None, 30.0)
    rows = rehearse.judge(share, run, CARDS[:1], of or outcome(), guest or seen())
    return {row.name: row.why for row in rows if row.why}


def test_a_card_that_went_there_and_back_is_a_pass(share: Path) -> None:
    assert judged(share) == {}


def written(name: str, text: str) -> Callable[[Path], object]:
    return lambda share: (share / name).write_text(text)


@pytest.mark.parametrize(
    ("change", "row", "why"),
    [
        (written("steps", ""), "host", "power-off a detail; its last lines: [ 1.0] the last line"),
        (written("steps", STEPS.replace("host-bind 0", "host-bind 1")), "host-bind", "status 1"),
        (written("steps", STEPS.replace("host-check 0", "host-check 1")), "host-check", "status 1"),
        (written("steps", STEPS.replace("host-unbind 0 26.00\n", "host-unbind 0 26.")), "host-unbind", "not done"),
        (written("during", OWNERS["before"]), "host-bind", "vfio-pci does not have all of them"),
        (written("during", ""), "host-bind", "vfio-pci does not have all of them"),
        (written("after", OWNERS["during"]), "host-unbind", "0000:01:00.1 virtio-pci before"),
        (written("after", OWNERS["after"].replace("(null)", "vfio-pci")), "host-unbind", "before"),
    ],
)
def test_a_step_that_went_wrong_is_named(share: Path, change: Callable[[Path], object], row: str, why: str) -> None:
    change(share)
    assert why in judged(share)[row]


def test_the_log_of_a_step_says_why(share: Path) -> None:
    (share / "steps").write_text("host 0 1.0\nhost-bind 1 2.0\nhost-unbind 0 3.0\n")
    (share / "host-bind.log").write_text("first\nno such group\n")
    wrong = judged(share)
    assert wrong["host-bind"] == "status 1 / first / no such group"
    assert wrong["host-check"] == "not done"


def test_only_a_guest_under_kvm_that_passed_with_all_cards_counts(share: Path) -> None:
    def without(**changes: object) -> runner.Outcome:
        return outcome(spec=msgspec.structs.replace(SPEC, **changes))

    assert "boot-test" in judged(share, of=outcome("failed"))
    assert "boot-test" in judged(share, of=msgspec.structs.replace(outcome(), run_guest=False))
    assert "boot-test" in judged(share, of=without(accel="tcg"))
    assert "boot-test" in judged(share, of=without(gpus=()))
    assert "boot-test" in judged(share, of=without(gpus=(cards.Gpu("gpu0", "bochs-display", model="bochs-display"),)))


def test_a_second_function_that_never_answered_is_no_pass(share: Path) -> None:
    for guest in (seen(0), seen(None), seen(device="1000")):
        assert "did not answer its driver" in judged(share, guest=guest)["interrupts"]


def test_a_boot_test_that_left_no_verdict_is_no_pass(share: Path) -> None:
    run = Run((), "power-off", "", b"", b"", {}, None, None, 30.0)
    rows = {row.name: row.why for row in rehearse.judge(share, run, CARDS[:1], None, None)}
    assert rows["boot-test"] == "it left no verdict"


def test_a_host_that_did_not_end_is_no_pass(share: Path) -> None:
    assert judged(share, "deadline") == {"host's end": "a detail"}


def test_the_host_has_an_iommu_and_each_card_its_own_port(tmp_path: Path) -> None:
    site = rehearse.Site("g", ROOT, tmp_path, Path("/b"), tmp_path, tmp_path, tmp_path)
    spec = rehearse.host_spec(CARDS, 512 << 20, 100)
    command = rehearse.argv(site.host, spec, CARDS)
    assert spec.memory == 1536 << 20
    # 64 GiB behind OVMF's window of an eighth: 2**40 / 8 is enough.
    assert spec.cpu == "max,+svm,+npt,phys-bits=40"
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
    assert "for device in 0000:01:00.0 0000:01:00.1 0000:02:00.0 0000:02:00.1; do" in text
    assert "--gpu 0000:01:00.0,0000:02:00.0 --yes" in text


def test_the_guest_is_its_own_without_what_the_host_does_not_have() -> None:
    disk = Disk(file="/disk.img")
    own = Launch(cmdline=("a=b",), disks=(disk,), numa=(Node("1G"),), max_cpus=8, max_memory="4G", window="1G")
    guest = rehearse.guest_launch(own, Options(memory="768M"), ["0000:01:00.0"], 100)
    assert (guest.cpus, guest.max_cpus, guest.memory, guest.gpus) == (2, 8, "768M", ("0000:01:00.0",))
    assert (guest.accel, guest.timeout, guest.cmdline, guest.window) == ("kvm", 80, ("a=b",), "1G")
    assert (guest.disks, guest.numa, guest.max_memory, guest.hugepages) == ((), (), "", "")
    with pytest.raises(UserError, match="at least one CPU"):
        rehearse.guest_launch(own, Options(cpus="0"), [], 100)


@pytest.mark.parametrize("gpu", ["0000:01:00.0", "", "secondary-vga,01:00.0"])
def test_a_real_card_is_refused(gpu: str) -> None:
    with pytest.raises(UserError, match=r"(?s)a rehearsal uses emulated cards.*boot-test --gpu 0000:01:00\.0"):
        rehearse.requested_cards(Options(gpu=gpu))


def test_an_unknown_emulated_card_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean secondary-vga"):
        rehearse.requested_cards(Options(gpu="secondary-vgaa"))


@each_way
@pytest.mark.parametrize("name", ["verdict.json", "report.json"])
def test_a_damaged_verdict_of_the_host_is_none(damage: Damage, name: str, share: Path) -> None:
    (share / "verdict.json").write_bytes(msgspec.json.encode(outcome()))
    (share / "report.json").write_bytes(msgspec.json.encode(seen()))
    assert rehearse._left(share) == (outcome(), seen())
    damage(share / name)
    assert rehearse._left(share) == (None, None)
