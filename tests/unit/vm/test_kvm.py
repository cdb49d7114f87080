# SPDX-License-Identifier: Apache-2.0
"""KVM is used when a guest ran under it, and given up only when KVM itself failed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from minguest.model import Disk
from minguest.vm import arguments, cards, kvm, launch
from tests import fake_qmp
from tests.fake_qmp import REPORT, WELL

SPEC = launch.Spec("q35", "auto", "EPYC,+x2apic", 2, 64, 4 << 30, (), ("a=b",), 300, series_options=("nokaslr",))
STOP = [["heard", "qmp_capabilities"], ["event", "STOP", {}]]
INTERNAL = {"query-status": {"status": "internal-error"}}
SURE = "/dev/kvm opens, but OVMF or the kernel does not run under it: "
NOT_KNOWN = "it is not known whether KVM works, the trial failed: "


def test_a_device_that_does_not_open_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "DEVICE", tmp_path / "kvm")
    assert kvm.closed() == f"{tmp_path}/kvm cannot be opened: No such file or directory"
    (tmp_path / "kvm").write_text("")
    assert kvm.closed() == ""
    # The mode does not decide it; nobody can open this one.
    monkeypatch.setattr(kvm, "DEVICE", tmp_path)
    assert kvm.closed() == f"{tmp_path} cannot be opened: Is a directory"


def test_the_probe_is_a_launch_of_its_own() -> None:
    of = msgspec.structs.replace(
        SPEC,
        plug_cpus=8,
        unplug_cpus=4,
        plug_memory=8 << 30,
        max_memory=8 << 30,
        slots=4,
        numa=(launch.Node((0, 1), 4 << 30, (10,)),),
        hugepages="1G",
        lock_memory=True,
        disks=(Disk(file="/nowhere"),),
        gpus=(cards.Gpu("gpu0", "0000:01:00.0", host="0000:01:00.0"),),
        window=1024,
        hide_kvm=False,
    )
    probe = kvm.probe(of, Path("/sys"), "4.12")
    assert probe == launch.Spec(
        "q35", "kvm", "EPYC,+x2apic", 1, 1, 1 << 30, (), (), kvm.TIME, series_options=("nokaslr",), hide_kvm=False
    )
    assert kvm.probe(SPEC, Path("/sys")).hide_kvm
    assert not [each for each in arguments.argv(probe) if "wait-" in each or "numa" in each or "disk" in each]


@pytest.fixture
def prove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., kvm.Proof]:
    monkeypatch.setattr(kvm, "TIME", 3.0)

    def prove(*steps: list[Any], **more: Any) -> kvm.Proof:
        (tmp_path / "kvm-proof").mkdir()
        return kvm.prove([str(fake_qmp.install(tmp_path, steps=steps, **more))], tmp_path / "kvm-proof")

    return prove


def test_a_guest_that_ran_is_the_proof(prove: Callable[..., kvm.Proof]) -> None:
    assert prove(*WELL) == kvm.Proof(True, "OVMF and the kernel ran under it", True)


def test_kvm_that_gives_up_is_a_sure_no(prove: Callable[..., kvm.Proof]) -> None:
    why = "QEMU stopped the guest with an internal error"
    assert prove(*STOP, ["stderr", "noise\n"], answers=INTERNAL) == kvm.Proof(False, SURE + why, True)


def test_kvm_that_gives_up_after_the_report_is_one_too(prove: Callable[..., kvm.Proof]) -> None:
    assert not prove(STOP[0], ["report", REPORT], ["wait", 0.2], STOP[1], answers=INTERNAL).works


def test_qemu_that_aborts_is_a_sure_no(prove: Callable[..., kvm.Proof]) -> None:
    said = "qemu: kvm_buf_set_msrs: Assertion `ret' failed."
    found = prove(["stderr", f"qemu: warning: x\n{said}\n"], ["kill", 6])
    assert found == kvm.Proof(False, f"{SURE}killed by signal 6 (Aborted): {said}", True)


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ([["wait", 60]], "deadline: 3 s are over"),
        # Another program has the CPU's virtualization, or memory is short.
        (
            [["stderr", "ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy\n"], ["exit", 1]],
            "qemu died: exit status 1: ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy",
        ),
        # The kernel's OOM killer.
        ([["console", "x"], ["kill", 9]], "qemu died: killed by signal 9 (Killed)"),
        ([STOP[0], ["event", "SHUTDOWN", {"reason": "guest-shutdown"}]], "power-off"),
        ([STOP[0], ["event", "SHUTDOWN", {"reason": "guest-reset"}]], "reset: guest-reset"),
        ([STOP[0], ["report", REPORT], ["wait", 0.2], ["kill", 9]], "qemu died: killed by signal 9 (Killed)"),
    ],
)
def test_everything_else_proves_nothing(prove: Callable[..., kvm.Proof], steps: list[Any], why: str) -> None:
    assert prove(*steps) == kvm.Proof(False, NOT_KNOWN + why, False)
