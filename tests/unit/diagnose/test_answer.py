# SPDX-License-Identifier: Apache-2.0
"""The endings of a diagnosis: a pit, trouble without one, what is seen to be well; never "no known pit" alone."""

from pathlib import Path

import pytest

from minguest.diagnose import answer, cases, catalogue, logs, matching
from minguest.util.errors import UserError
from tests import ROOT

CONSOLES = ROOT / "tests/data/consoles"
PITS = catalogue.load(ROOT / "configs/pits")
SUBSYSTEMS = answer.load(ROOT / "configs/diagnose/subsystems.toml")
HEALTHY = sorted(CONSOLES.glob("*healthy*.log"))
BOOT = """\
[    0.000000] Linux version 6.1.1 (a@b) (gcc 12, GNU ld 2.40) #1 SMP
[    0.000000] Command line: console=ttyS0
[    0.000000] Hypervisor detected: KVM
[    0.350000] smp: Brought up 1 node, {} CPUs
[    0.900000] Run /init as init process
"""


def say(*texts: str | bytes) -> answer.Answer:
    read = [
        logs.unwrapped(f"{n}.log", text.encode() if isinstance(text, str) else text) for n, text in enumerate(texts)
    ]
    seen = matching.boot(read)
    return answer.answer(matching.diagnose(PITS, *seen), seen, SUBSYSTEMS)


@pytest.mark.parametrize("path", HEALTHY, ids=lambda path: path.stem)
def test_a_healthy_console_has_no_trouble_and_shows_what_it_proves(path: Path) -> None:
    found = say(path.read_bytes())
    assert (found.ending, found.trouble, found.diagnosis.questions) == ("nothing wrong seen", (), ())
    assert any("CPU" in each for each in found.well) and any("PID 1" in each for each in found.well)


def test_every_subsystem_knows_a_line_and_no_healthy_console_has_one() -> None:
    for subsystem in SUBSYSTEMS.subsystem:
        for pattern in subsystem.line:
            form = catalogue.compiled(pattern)
            assert not [path.stem for path in HEALTHY if form.search(matching.see(path.read_bytes()).screen)], pattern


@pytest.mark.parametrize(
    ("line", "subsystem"),
    [
        ("[   12.000000] NVRM: GPU 0000:01:00.0: some new thing failed", "NVIDIA's driver"),
        ("qemu-system-x86_64: -device zork: 'zork' is not a valid device model name", "QEMU"),
        ("[   12.000000] vfio-pci 0000:0a:00.0: some new error", "VFIO"),
        ("[   12.000000] DMAR: [DMA Read NO_PASID] Request device [0a:00.0] fault addr 0x0", "IOMMU"),
        ("[   12.000000] Kernel panic - not syncing: a new reason", "panic"),
        ("error: internal error: a new reason", "libvirt"),
        ("[   12.000000] amdgpu 0000:01:00.0: amdgpu: a new thing failed", "a graphics driver"),
        ("KVM: a new thing failed", "KVM"),
    ],
)
def test_trouble_without_a_pit_is_quoted_with_what_to_do(line: str, subsystem: str) -> None:
    found = say(f"{BOOT.format(4)}{line}\n")
    assert found.ending == "trouble"
    assert [each.subsystem for each in found.trouble] == [subsystem]
    said = answer.describe(found)
    assert said.startswith("no known pit, but this looks like trouble:\n") and "  next: " in said
    assert f"0.log:6: {line.partition('] ')[2] or line}" in said


def test_what_is_not_shown_is_said() -> None:
    found = say("\n".join(BOOT.format(4).splitlines()[:3]))
    said = answer.describe(found)
    assert said.startswith("nothing wrong is seen") and "not shown: how many CPUs came up" in said
    assert "not shown: the end of the kernel's boot" in said


def test_a_text_about_no_boot_is_not_called_well() -> None:
    found = say("to whom it may concern\n")
    assert found.ending == "nothing recognized"
    assert "nothing wrong" not in answer.describe(found)


def test_the_advice_is_for_the_card_of_the_log() -> None:
    found = say("qemu-system-x86_64: -device vfio-pci,host=0a:00.0: vfio 0000:0a:00.0: some new error\n")
    assert found.card == "0000:0a:00.0" and "host-check --gpu 0000:0a:00.0" in answer.describe(found)
    two = say("vfio 0000:0a:00.0: some new error\nvfio 0000:0b:00.0: some new error\n")
    assert two.card == "" and "host-check --gpu 0000:01:00.0" in answer.describe(two)


def test_logs_of_one_boot_are_judged_together_and_quoted_each() -> None:
    off = (CONSOLES / "6.12-efi-off.log").read_bytes()
    found = say("qemu-system-x86_64: warning: something\n", off)
    assert [hit.id for hit in found.diagnosis.roots] == ["efi-off"]
    assert {line.log for hit in found.diagnosis.roots for line in hit.lines} == {"1.log"}
    assert not found.notes


def test_two_boots_that_contradict_each_other_are_named() -> None:
    assert not say(BOOT.format(4)).notes
    (note,) = say(BOOT.format(4), BOOT.format(2)).notes
    assert "0.log and 1.log contradict each other" in note
    (note,) = say(BOOT.format(4), BOOT.format(4).replace("6.1.1", "5.4.1")).notes
    assert "different boots: 0.log (Linux 6.1.1), 1.log (Linux 5.4.1)" in note


def test_what_was_ruled_out_is_shown_only_when_it_is_wanted() -> None:
    found = say((CONSOLES / "6.12-efi-off.log").read_bytes())
    assert "\nnot " not in answer.describe(found)
    assert "\nnot acpi-off-cmdline: the command line has no acpi=off" in answer.describe(found, verbose=True)


def test_the_number_of_cpus_that_qemu_was_given_is_read_from_its_command() -> None:
    libvirt = (
        "2026-01-01 00:00:00.000+0000: starting up libvirt version: 9.0.0\n-smp 1,sockets=1,cores=1,threads=1 \\\n"
    )
    read = [logs.unwrapped("a", libvirt.encode()), logs.unwrapped("b", BOOT.format(1).encode())]
    assert [each.facts["cpus.requested"] for each in matching.boot(read)] == [1, 1]


@pytest.mark.parametrize("stack", ["libvirt", "proxmox", "minguest"])
def test_a_reader_gets_the_fix_of_his_own_tool(stack: catalogue.Stack) -> None:
    lines = {
        "libvirt": "2026-01-01 00:00:00.000+0000: starting up libvirt version: 9.0.0\n",
        "proxmox": "kvm: -device x: y\nTASK ERROR: start failed: QEMU exited with code 1\n",
        "minguest": "initd: 0.001 hello\n",
    }
    pit = catalogue.Pit("t", "launch", (catalogue.Symptom(("it broke",)),), cause="c", fix="f", stack={
        "libvirt": "in XML", "proxmox": "qm set", "minguest": "launch.x",
    })  # fmt: skip
    for other, line in lines.items():
        seen = matching.boot([logs.unwrapped("a", f"{line}it broke\n".encode())])
        said = answer.describe(answer.answer(matching.diagnose({"x": pit}, *seen), seen, SUBSYSTEMS))
        assert (f"fix with {catalogue.NAMES[stack]}: {pit.stack[stack]}" in said) == (other == stack)


@pytest.mark.parametrize("broken", ["line = ['(']", "line = 1", "lines = ['x']"])
def test_a_broken_file_of_subsystems_is_named(broken: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(f'[[subsystem]]\nname = "a"\nmeans = "b"\nnext = "c"\n{broken}\n')
    with pytest.raises(UserError, match=r"s\.toml"):
        answer.load(tmp_path / "s.toml")


@pytest.mark.parametrize("text", ["x" * 3_000_000, "vfio 0000:0a:00.0: error " * 100_000, "\x1b[31m" * 9999 + "x"])
def test_a_log_of_one_line_is_answered_in_short(text: str) -> None:
    assert len(answer.describe(say(text))) < 3000


PUBLIC = [case for each in cases.load(ROOT / "tests/data/public").values() for case in each.case]


@pytest.mark.parametrize(
    "case", [case for case in PUBLIC if not case.roots and not case.unexplained], ids=lambda case: case.name
)
def test_a_healthy_machine_is_no_trouble(case: cases.Case) -> None:
    found = say(case.log)
    assert found.ending in ("nothing wrong seen", "nothing recognized"), answer.describe(found)


def test_a_guest_of_one_cpu_is_a_question() -> None:
    one = BOOT.format(1).replace("1 CPUs", "1 CPU").replace("smp: Br", "smpboot: SMP disabled\n[    0.36] smp: Br")
    said = answer.describe(say(one))
    assert said.startswith("nothing wrong is seen") and "\nto ask: how many CPUs was the guest given" in said
