# SPDX-License-Identifier: Apache-2.0
"""The endings of a diagnosis: a pit, trouble without one, what is seen to be well; never "no known pit" alone."""

import textwrap
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
    found, seen = matching.diagnose_logs(PITS, read)
    return answer.answer(found, seen, SUBSYSTEMS)


@pytest.mark.parametrize("path", HEALTHY, ids=lambda path: path.stem)
def test_a_healthy_console_has_no_trouble_and_shows_what_it_proves(path: Path) -> None:
    found = say(path.read_bytes())
    assert (found.ending, found.trouble) == ("nothing wrong seen", ())
    # Of a guest of one CPU it is not known how many it was given.
    assert [hit.id for hit in found.diagnosis.questions] == (["one-cpu"] if path.stem.endswith("pc-1") else [])
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
    assert two.card == "" and "host-check --gpu ADDRESS" in answer.describe(two)
    # A guest's addresses are its own.
    guest = say("[    9.000000] NVRM: GPU 0000:0a:00.0: some new thing failed\n")
    assert guest.card == "" and "0000:01:00.0" not in answer.describe(guest)


def test_the_card_and_the_group_of_the_pits_own_line_win() -> None:
    other = "qemu-system-x86_64: vfio 0000:0b:00.0: hello\n"
    found = say(f"{other}qemu-system-x86_64: vfio 0000:0a:00.0: group 27 is not viable\n")
    assert (found.card, found.group) == ("0000:0a:00.0", "27")


def test_a_pit_does_not_hide_an_oops() -> None:
    oops = "[    9.000000] BUG: kernel NULL pointer dereference, address: 0000000000000038\n"
    said = answer.describe(say(f"qemu-system-x86_64: vfio 0000:0a:00.0: group 27 is not viable\n{oops}"))
    assert said.startswith("group-not-viable: ") and "\nalso: an oops: " in said


def test_a_complaint_that_passed_is_no_trouble() -> None:
    line = "[    9.000000] i915 0000:00:02.0: [drm] *ERROR* some thing failed\n"
    assert say(line).ending == "trouble"
    assert say(f"{line}[    9.100000] [drm] Initialized i915 1.6.0 for 0000:00:02.0 on minor 0\n").trouble == ()


@pytest.mark.parametrize("between", ["", " "])
def test_lines_that_were_wrapped_are_read_as_one(between: str) -> None:
    """By a terminal in the midst of a word, by a mail program at a blank."""
    line = (
        "qemu-system-x86_64: -device vfio-pci,host=0000:0a:00.0: vfio 0000:0a:00.0: failed to setup container "
        "for group 12: memory listener initialization failed: Region pc.ram: vfio_dma_map(0x55d000000000, 0x0, "
        "0x80000000, 0x7f0000000000) = -12 (Cannot allocate memory)"
    )
    for width in (78, 100):
        if between:
            wrapped = "\n".join(textwrap.wrap(line, width, break_on_hyphens=False))
        else:
            wrapped = "\n".join(line[at : at + width] for at in range(0, len(line), width))
        found = say(wrapped)
        assert [hit.id for hit in found.diagnosis.roots] == ["memlock"]
        assert {quote.number for hit in found.diagnosis.roots for quote in hit.lines} == {1}


@pytest.mark.parametrize(
    "text",
    [
        "error: internal error: Unknown PCI header type \u2018127\u2019 for device \u20180000:0a:00.0\u2019",
        "error: internal error: Unknown PCI header type &#39;127&#39; for device &#39;0000:0a:00.0&#39;",
    ],
)
def test_quotes_of_forums_and_browsers_are_quotes(text: str) -> None:
    assert [hit.id for hit in say(text).diagnosis.roots] == ["card-lost"]


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
