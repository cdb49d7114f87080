# SPDX-License-Identifier: Apache-2.0
"""Whatever goes wrong in the rehearsal's host is not a pass."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from minguest.boottest import runner, steps, verdict
from minguest.model import Launch
from minguest.vm import cards, launch, report
from minguest.vm.qemu import Ending, Run
from tests.damage import Damage, each_way

CARDS = (cards.Gpu("card0", "secondary-vga", model="secondary-vga"),)
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
    driver: str = "",
) -> dict[str, str]:
    """What is wrong, by the name of the row."""
    run = Run((), ending, "a detail", b"[ 1.0] the last line\n", b"", {}, None, None, 30.0)
    rows = steps.judge(share, run, CARDS, driver, of or outcome(), guest or seen())
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


def test_a_card_without_the_driver_that_it_must_have_is_no_pass(share: Path) -> None:
    def with_row(bound: str, why: str, wanted: str = "a-card") -> runner.Outcome:
        row = verdict.Check("driver of gpu0", wanted, "", bound, not why, why)
        of = outcome("failed" if why else "pass")
        return msgspec.structs.replace(of, verdict=msgspec.structs.replace(of.verdict, checks=(row,)))

    run = Run((), "power-off", "", b"", b"", {}, None, None, 30.0)
    rows = {row.name: row for row in steps.judge(share, run, CARDS, "a-card", with_row("a-card", ""), seen())}
    assert (rows["driver of gpu0"].found, rows["driver of gpu0"].why) == ("a-card", "")
    assert judged(share, of=with_row("a-card", ""), driver="a-card") == {}
    assert judged(share, of=with_row("none", "no driver is bound"), driver="a-card") == {
        "boot-test": "no pass by run-guest under KVM with all cards", "driver of gpu0": "no driver is bound",
    }  # fmt: skip
    assert judged(share, driver="a-card") == {"driver of gpu0": "boot-test did not come as far"}
    assert judged(share, of=with_row("other", "", "other"), driver="a-card") == {
        "driver of gpu0": "boot-test checked for other, not a-card"
    }
    # Two cards: each has its row.
    two = steps.judge(share, run, CARDS * 2, "a-card", with_row("a-card", ""), seen())
    assert {row.name: row.why for row in two}["driver of gpu1"] == "boot-test did not come as far"


def test_a_boot_test_that_left_no_verdict_is_no_pass(share: Path) -> None:
    run = Run((), "power-off", "", b"", b"", {}, None, None, 30.0)
    rows = {row.name: row.why for row in steps.judge(share, run, CARDS, "", None, None)}
    assert rows["boot-test"] == "it left no verdict"


def test_a_host_that_did_not_end_is_no_pass(share: Path) -> None:
    assert judged(share, "deadline") == {"host's end": "a detail"}


@each_way
@pytest.mark.parametrize("name", ["verdict.json", "report.json"])
def test_a_damaged_verdict_of_the_host_is_none(damage: Damage, name: str, share: Path) -> None:
    (share / "verdict.json").write_bytes(msgspec.json.encode(outcome()))
    (share / "report.json").write_bytes(msgspec.json.encode(seen()))
    assert steps.left(share) == (outcome(), seen())
    damage(share / name)
    assert steps.left(share) == (None, None)
