# SPDX-License-Identifier: Apache-2.0
"""Recorded consoles of guests each with one pit injected, and of healthy ones, on three kernels.

Recorded under QEMU 7.2, software emulation: 4.12.10 and 6.12.94 as this project builds them, and Debian 12's cloud
kernel (6.1), which it does not. The name of a file is its series and what was done to the guest.
"""

import re
import time
import tomllib
from pathlib import Path

import msgspec
import pytest

from minguest.diagnose import answer, catalogue, logs, matching
from minguest.util.errors import UserError
from minguest.vm import report
from tests import ROOT
from tests.damage import Damage, each_way

CONSOLES = ROOT / "tests/data/consoles"
# What was done, and the pit that it is.
INJECTED = {
    "efi-off": "efi-off",
    "acpi-off": "acpi-off-cmdline",
    "acpi-not-built": "acpi-off",
    "smp-off": "smp-off",
    "few-ports": "few-ports",
    "no-proc": "filesystems-off",
    "root-missing": "root-missing",
    "root-not-found": "root-not-found",
    "disk-damaged": "root-not-mounted",
    "disk-no-init": "root-without-init",
    "kaslr-overlap": "kaslr-overlap",
    "kernel-flip-early": "kernel-damaged",
    "nosmp": "smp-off-cmdline",
    "nr_cpus-1": "cpu-limit-cmdline",
    "hotcpu-nr_cpus-4": "cpu-limit-cmdline",
    "cpus-max-128": "cpu-limit",
    "maxcpus-1-plain-init": "maxcpus-cmdline",
    "noapic": "ioapic-off-cmdline",
    "nolapic": "lapic-off-cmdline",
    "pci-nomsi": "msi-off-cmdline",
    "pci-nommconf": "mmconfig-off-cmdline",
    "pci-off": "pci-off-cmdline",
    "bar-256G-default": "bar-no-room",
    "bar-256G": "bar-no-room",
    "bar-256G-nocrs": "bar-nocrs-cmdline",
    "phys-bits-32": "address-width",
    "initrd-none": "initrd-missing",
    "initrd-no-init": "init-missing",
    "initrd-xz": "initrd-compression",
    "initrd-zstd": "initrd-damaged",  # 4.12 does not know zstd, and calls it junk
    "initrd-random": "initrd-damaged",
    "initrd-truncated": "initrd-damaged",
    "initrd-not-exec": "init-not-executable",
    "initrd-arm": "init-wrong-format",
    "initrd-dyn": "init-no-interpreter",
    "initrd-segv": "init-segfault",
    "initrd-exit": "init-ended",
    "initrd-eat": "out-of-memory",
    "mem-512M": "memory-capped-cmdline",
    "kernel-flip": "kernel-damaged",
    "kernel-none": "nothing-to-boot",
    "kernel-i386": "kernel-not-startable",
    "kernel-none-started-minimal": "kernel-not-startable",  # with ovmf-minimal, which has no shell
    "secboot-ms": "secure-boot",
    "vars-junk": "firmware-crashed",
    "memory-34M": "memory-too-little",
    "report-nowhere": "report-nowhere",
    "numa-off": "",  # this console does not show whether there was a second node
    "timer-stutter": "",  # the kernel found another way, and booted
    "panic-nmi": "nmi-panic",
    "module-oops": "module-crashed",
    "module-hang": "module-hangs",
    "module-firmware": "card-firmware-missing",
    "module-absent": "module-missing",
    "module-vermagic": "module-other-kernel",
    "module-symbol": "module-unknown-symbol",
}
# With 64 MiB 6.12 says why it does not start, and 4.12 does not.
BY_STEM = {"6.12-memory-64M": "memory-too-little", "4.12-memory-64M": "kernel-not-startable"}
FILES = sorted(CONSOLES.glob("*.log"))
PUBLIC = sorted((ROOT / "tests/data/public").glob("*.toml"))


@pytest.fixture(scope="module")
def known() -> dict[str, catalogue.Pit]:
    return catalogue.load(ROOT / "configs/pits")


def roots(known: dict[str, catalogue.Pit], raw: bytes) -> list[str]:
    return [hit.id for hit in matching.diagnose(known, matching.see(raw)).roots]


def test_every_console_is_one_of_a_pit_or_healthy() -> None:
    assert len(FILES) >= 61
    for path in FILES:
        case = path.stem.split("-", 2 if path.stem.startswith("debian") else 1)[-1]
        assert case in INJECTED or path.stem in BY_STEM or case.startswith("healthy"), path.stem


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_console_names_its_pit_and_no_other(known: dict[str, catalogue.Pit], path: Path) -> None:
    case = path.stem.split("-", 2 if path.stem.startswith("debian") else 1)[-1]
    wanted = [name for name in [BY_STEM.get(path.stem) or INJECTED.get(case)] if name]
    raw = path.read_bytes()
    assert roots(known, raw) == wanted
    # As logs from elsewhere are: without times, with carriage returns, with a collector's prefix, cut at the end.
    bare = re.sub(rb"(?m)^\[ *\d+\.\d+\] ", b"", raw)
    for spoiled in (bare, bare.replace(b"\r", b"").replace(b"\n", b"\r\n"), raw + b"\n[    9.0"):
        assert roots(known, spoiled) == wanted
    prefixed = b"\n".join(b"Nov 22 12:00:00 host kernel: " + line for line in raw.splitlines())
    assert roots(known, prefixed) == wanted


def test_a_symptom_has_been_seen_of_every_pit_that_a_console_can_show(known: dict[str, catalogue.Pit]) -> None:
    seen = set()
    # What no recorded console has was seen in QEMU's own output, or on other hosts: their wording is public.
    public = [case["log"] for path in PUBLIC for case in tomllib.loads(path.read_text())["case"]]
    for raw in (*(path.read_bytes() for path in FILES), *map(str.encode, public)):
        found = matching.diagnose(known, matching.see(raw))
        seen |= {hit.id for hit in (*found.roots, *found.follows, *found.unexplained, *found.questions)}
    shown = {name for name, pit in known.items() if any(each.console and not each.facts for each in pit.symptom)}
    assert not shown - seen


@pytest.mark.parametrize(
    ("said", "pit"),
    [
        ("kvm/kvm.c:3183: kvm_buf_set_msrs: Assertion `ret == cpu->kvm_msr_buf->nmsrs' failed.", "kvm-unusable"),
        ("Invalid SMP CPUs 300. The max CPUs supported by machine 'pc-q35-7.2' is 288", "too-many-cpus"),
        ("qemu: system firmware block device pflash0 has invalid size 3653120", "flash-size"),
        ("vfio /sys/bus/pci/devices/0000:01:00.0: no such host device: No such file or directory", "vfio-missing"),
        ("vfio 0000:01:00.0: failed to setup container: No interrupt remapping support", "vfio-no-remapping"),
    ],
)
def test_messages_of_qemu_itself(known: dict[str, catalogue.Pit], said: str, pit: str) -> None:
    assert roots(known, said.encode()) == [pit]


HEALTHY = (CONSOLES / "6.12-healthy-q35-4.log").read_bytes()
OLD = (CONSOLES / "4.12-healthy-q35-4.log").read_bytes()


@pytest.mark.parametrize(
    "said",
    [
        "[    0.9] pci 0000:00:02.0: BAR 6: no space for [mem size 0x00080000 pref]",
        "[    0.9] pci 0000:00:02.0: BAR 15: no space for [mem size 0x00080000 64bit pref]",
        "[    0.9] pci 0000:00:02.0: VF BAR 0 [mem size 0x00080000]: can't assign; no space",
        "[    0.9] ..MP-BIOS bug: 8254 timer not connected to IO-APIC",
    ],
)
def test_trouble_that_passed_is_no_pit(known: dict[str, catalogue.Pit], said: str) -> None:
    for console in (HEALTHY, OLD):
        assert roots(known, console + said.encode() + b"\n") == []


@pytest.mark.parametrize(
    "options",
    ["maxcpus=8", "-- noapic nosmp pci=nomsi", "numa=off", "pci=off acpi=off virtio_mmio.device=4K@0xd0000000:5"],
)
def test_options_that_change_nothing_are_no_pit(known: dict[str, catalogue.Pit], options: str) -> None:
    assert roots(known, HEALTHY.replace(b"initd.then=poweroff", f"initd.then=poweroff {options}".encode())) == []


def test_options_that_cost_one_cpu_nothing_are_no_pit(known: dict[str, catalogue.Pit]) -> None:
    console = b"[ 0.0] Linux version 6.12.1 (a@b) #1 SMP\n[ 0.0] Kernel command line: nosmp maxcpus=1\n"
    facts = {"cpus.requested": 1, "cpus.online": 1, "cpus.present": 1}
    assert not matching.diagnose(known, matching.see(console, facts=facts)).roots
    assert matching.diagnose(known, matching.see(console, facts={**facts, "cpus.requested": 2})).roots


def test_a_qemu_that_waits_in_silence_waits_for_ceph_if_a_disk_is_there(known: dict[str, catalogue.Pit]) -> None:
    facts: dict[str, int | str] = {"qemu.ready": "no", "ending": "deadline", "console.lines": 0, "report": "none"}

    def found(disks: int, ready: str = "no") -> list[str]:
        seen = matching.see(b"", facts={**facts, "disks.ceph": disks, "qemu.ready": ready})
        return [hit.id for hit in matching.diagnose(known, seen).roots]

    assert found(1) == ["ceph-not-reached"]
    assert found(0) == []
    assert found(1, "yes") == []


@pytest.mark.parametrize("case", ["6.12-initrd-no-init", "6.12-initrd-xz", "6.12-initrd-random", "4.12-nr_cpus-1"])
@pytest.mark.parametrize("lines", [1, 20, 40])
def test_the_end_of_a_console_names_nothing_else(known: dict[str, catalogue.Pit], case: str, lines: int) -> None:
    whole = (CONSOLES / f"{case}.log").read_bytes()
    end = b"\n".join(whole.rstrip().split(b"\n")[-lines:])
    assert set(roots(known, end)) <= set(roots(known, whole))


def test_the_last_of_several_boots_counts(known: dict[str, catalogue.Pit]) -> None:
    off = (CONSOLES / "6.12-acpi-off.log").read_bytes()
    assert roots(known, HEALTHY + off) == ["acpi-off-cmdline"]
    assert roots(known, off + HEALTHY) == []
    found = matching.diagnose(known, matching.see(HEALTHY + (CONSOLES / "6.12-efi-off.log").read_bytes()))
    assert found.roots[0].lines[0].number > HEALTHY.count(b"\n")


def test_without_its_command_line_a_console_has_none(known: dict[str, catalogue.Pit]) -> None:
    for path in CONSOLES.glob("*-acpi-off.log"):
        bare = b"\n".join(line for line in path.read_bytes().split(b"\n") if b"ommand line" not in line)
        assert "lapic-off-cmdline" not in roots(known, bare)


def test_no_rsdp_on_a_machine_without_one_is_not_efi(known: dict[str, catalogue.Pit]) -> None:
    boot = "[ 0.0] Linux version 5.10.1 (a@b) #1 SMP\n{}\n[ 0.1] ACPI BIOS Error (bug): A valid RSDP was not found\n"
    boot += "[ 1.0] Run /init as init process\n"
    assert roots(known, boot.format("[ 0.0] found SMP MP-table\n[ 0.0] MPTABLE: OEM ID: FC").encode()) == []
    assert roots(known, boot.format("[ 0.0] efi: EFI v2.70 by EDK II").encode()) == []
    assert roots(known, boot.format("").encode()) == ["efi-off"]


@pytest.mark.parametrize(
    ("said", "pit"),
    [
        ("Initramfs unpacking failed: uncompression error", "initrd-damaged"),
        ("Initramfs unpacking failed: no cpio magic", "initrd-damaged"),
        ("Initramfs unpacking failed: junk within compressed archive", "initrd-damaged"),
        ("Initramfs unpacking failed: ZSTD-compressed data is truncated", "initrd-damaged"),
        ("traps: init[1] trap invalid opcode ip:401000 sp:7ffe error:0 in init", "init-segfault"),
        ("Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000004", "init-segfault"),
        ("Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000300", "init-ended"),
        ("vfio 0000:01:00.0: failed to set iommu for container: Operation not permitted", "vfio-no-remapping"),
    ],
)
def test_other_messages_of_the_same_pit(known: dict[str, catalogue.Pit], said: str, pit: str) -> None:
    assert roots(known, said.encode()) == [pit]


def test_a_decompressor_that_halts_is_not_always_damage(known: dict[str, catalogue.Pit]) -> None:
    found = matching.diagnose(known, matching.see(b"Destination address too large\n\n -- System halted\n"))
    assert not found.roots
    assert [hit.id for hit in found.unexplained] == ["decompressor-halted"]
    assert "no known pit causes it: the kernel's decompressor gave up" in answer.findings(found)


def test_the_root_comes_first_and_what_follows_is_shown_as_such(known: dict[str, catalogue.Pit]) -> None:
    found = matching.diagnose(known, matching.see((CONSOLES / "6.12-efi-off.log").read_bytes()))
    assert [hit.id for hit in found.roots] == ["efi-off"]
    assert {hit.id for hit in found.follows} == {"no-rsdp", "no-madt", "one-cpu", "no-power-off"}
    assert "acpi-off-cmdline" in dict(found.ruled_out)
    ruled_out = dict(found.ruled_out)
    assert ruled_out["acpi-off-cmdline"] == "the command line has no acpi=off"
    assert ruled_out["smp-off-cmdline"] == "the command line has no nosmp or maxcpus=0"
    assert ruled_out["cpu-limit"] == 'the console has no line like "CPU topo: CPU limit of N reached"'
    assert ruled_out["acpi-off"].startswith('the console has the line "ACPI: Early table')
    text = answer.findings(found)
    assert text.startswith("efi-off: the kernel was built without CONFIG_EFI\n")
    assert "A valid RSDP was not found" in text and "fix:   CONFIG_EFI=y" in text
    assert text.index("efi-off") < text.index("follows from efi-off")
    number, line = next(
        (number, text) for number, text in enumerate((CONSOLES / "6.12-efi-off.log").read_text().split("\n"), 1)
        if "A valid RSDP" in text
    )  # fmt: skip
    assert f"  | console:{number}: {line.partition('] ')[2]}" in text


def test_the_report_decides_where_the_console_is_silent(known: dict[str, catalogue.Pit]) -> None:
    record = '{"record":"begin","protocol":1,"uptime":1.0,"cmdline":"quiet pci=nomsi"}\n{"record":"end","records":1}\n'
    found = matching.diagnose(known, matching.see(b"", report.parse(record.encode())))
    assert [hit.id for hit in found.roots] == ["msi-off-cmdline"]


@pytest.mark.parametrize("raw", [b"", b"\0" * 1000, b"hello\n", bytes(range(256)) * 50])
def test_nothing_is_guessed(known: dict[str, catalogue.Pit], raw: bytes) -> None:
    found = matching.diagnose(known, matching.see(raw))
    assert not found.roots
    assert answer.findings(found) == "no known pit"


def test_no_pattern_takes_longer_than_the_text_is_long(tmp_path: Path) -> None:
    # What backtracks without end in other engines.
    (tmp_path / "a.toml").write_text('title = "a"\nlayer = "effect"\n[[symptom]]\nconsole = ["(a*)*b$"]')
    start = time.monotonic()
    assert not matching.diagnose(catalogue.load(tmp_path), matching.see(b"a" * 50_000)).roots
    assert time.monotonic() - start < 60  # against hanging, not a measure


def test_reports_of_both_kinds_are_read(tmp_path: Path) -> None:
    lines = b'{"record":"begin","protocol":1}\n{"record":"end","records":1}\n'
    (tmp_path / "a").write_bytes(lines)
    (tmp_path / "b").write_bytes(msgspec.json.encode(report.parse(lines)))
    assert matching.read_report(tmp_path / "a").complete
    assert matching.read_report(tmp_path / "b").complete


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "no such file"),
        (b"", "no record in it: empty"),
        (b"root:x:0:0\n", "no record in it: line 1"),
        (b'{"record":"begin","protocol":2}\n', "no record in it: .*protocol 2"),
        (b'{"complete":' + b"[" * 100_000, "c: "),
    ],
)
def test_what_is_no_report_is_named(tmp_path: Path, content: bytes | None, why: str) -> None:
    if content is not None:
        (tmp_path / "c").write_bytes(content)
    with pytest.raises(UserError, match=rf"report {tmp_path / 'c'}: .*{why}|report {tmp_path}/{why}"):
        matching.read_report(tmp_path / "c")
    with pytest.raises(UserError, match="not a regular file"):
        matching.read_report(tmp_path)


@each_way
def test_a_damaged_report_is_named(damage: Damage, tmp_path: Path) -> None:
    place = tmp_path / "report.json"
    card = report.PciDevice("0000:01:00.0", "10de", "2330", "030200", True, ())
    place.write_bytes(msgspec.json.encode(report.Report(True, ({"record": "begin"},), (card,))))
    damage(place)
    with pytest.raises(UserError, match=f"report {place}: "):
        matching.read_report(place)


SECOND_TRY = catalogue.Symptom(
    console=(r"pci (?P<it>\S+: BAR \d) \[mem size \S+\]: can't assign",),
    resolved=(r"pci {it} \[mem \S+\]: assigned",),
)
FAILED = b"pci 0000:0%d:00.0: BAR 1 [mem size 0x10]: can't assign; no space\n"
PLACED = b"pci 0000:0%d:00.0: BAR 1 [mem 0x20-0x2f]: assigned\n"


@pytest.mark.parametrize(
    ("log", "line"),
    [
        (FAILED % 1, 1),
        (FAILED % 1 + PLACED % 1, 0),
        (PLACED % 1 + FAILED % 1, 2),
        (FAILED % 1 + FAILED % 2 + PLACED % 1, 2),
        (FAILED % 1 + PLACED % 1 + FAILED % 1, 1),
        (b"".join(FAILED % 1 for _ in range(1000)) + PLACED % 1, 0),
    ],
)
def test_trouble_of_one_device_passes_only_for_that_device(log: bytes, line: int) -> None:
    pit = catalogue.Pit("t", "launch", (SECOND_TRY,), cause="c", fix="f")
    found = matching.diagnose({"x": pit}, matching.see(log)).roots
    assert [each.number for hit in found for each in hit.lines] == ([line] if line else [])


def test_absent_needs_no_whole_log() -> None:
    symptom = catalogue.Symptom(console=("this",), absent=("that",))
    pit = catalogue.Pit("t", "launch", (symptom,), cause="c", fix="f")
    assert matching.diagnose({"x": pit}, matching.see(b"this\n")).roots
    assert not matching.diagnose({"x": pit}, matching.see(b"this\nthat\n")).roots


@pytest.mark.parametrize(
    "prefix",
    [
        "[    {n}.000000][    T0] ", "[    {n}.000000][ C1] ", "[Thu Nov 26 10:00:0{n} 2026] ",
        "2026-11-26T10:00:0{n},123456+00:00 ", "Nov 26 10:00:0{n} host kernel: ", "",
    ],
)  # fmt: skip
def test_every_way_to_print_a_kernels_time_is_left_out(known: dict[str, catalogue.Pit], prefix: str) -> None:
    lines = ["Linux version 6.12.1 (a@b) #1 SMP", "x", "ACPI BIOS Error (bug): A valid RSDP was not found", "ASSERT y"]
    seen = matching.see("\n".join(prefix.format(n=n) + line for n, line in enumerate(lines)).encode())
    assert seen.screen.decode().split("\n") == lines


@pytest.mark.parametrize(("count", "named"), [(1, False), (2, True), (3, True)])
def test_a_symptom_can_ask_for_several_lines(count: int, named: bool) -> None:
    pit = catalogue.Pit("t", "host", (catalogue.Symptom(("this",), times=2),), cause="c", fix="f")
    found = matching.diagnose({"x": pit}, matching.see(b"this\n" * count))
    assert bool(found.roots) == named


def quiet(raw: bytes, left_out: int = 0) -> tuple[bytes, report.Report]:
    """A full console as a quiet one, and the report that has the kernel's log. The last line with a time is on both."""
    stamped = re.compile(rb"\[ *\d+\.\d{6}\] ")
    lines = [line.rstrip(b"\r") for line in raw.split(b"\n")]
    kernel = [line for line in lines if stamped.match(line)]
    console = [line for line in lines if not stamped.match(line) or line == kernel[-1]]
    part = report.LogPart(left_out, tuple(line.decode("latin-1") for line in kernel))
    return b"\r\n".join(console), report.Report(False, (), (), log=(part,))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_quiet_console_and_the_log_show_what_a_full_console_does(known: dict[str, catalogue.Pit], path: Path) -> None:
    raw = path.read_bytes()
    if not re.search(rb"(?m)^\[ *\d+\.\d{6}\] Linux version", raw):
        return
    found = matching.diagnose(known, matching.see(raw, facts={}))
    console, sent = quiet(raw)
    joined = matching.diagnose(known, matching.see(logs.Log("console.log", console), sent, facts={}))
    assert {hit.id for hit in joined.roots} == {hit.id for hit in found.roots}
    for quoted in (line for hit in joined.roots for line in hit.lines):
        of = report.kernel_log(sent.log) if quoted.log == "kernel.log" else console
        assert quoted.text.split()[-1].encode() in of.split(b"\n")[quoted.number - 1]


def test_what_a_quiet_kernel_did_not_print_is_not_missing(known: dict[str, catalogue.Pit]) -> None:
    """efi-off is seen by a line that is missing: that says something only of a whole log."""
    raw = (CONSOLES / "6.12-efi-off.log").read_bytes()
    shorter = b"\n".join(line for line in raw.split(b"\n") if b"MADT" not in line and b"SMP motherb" not in line)
    shorter = shorter.replace(b"Command line: ", b"Command line: loglevel=5 ")
    for left_out, names in ((0, ["efi-off"]), (5, [])):
        console, sent = quiet(shorter, left_out)
        found = matching.diagnose(known, matching.see(logs.Log("console.log", console), sent))
        assert [hit.id for hit in found.roots] == names
    console, _ = quiet(shorter)
    whole = {"report": "whole"}
    silent = matching.see(logs.Log("c", console + b"\nCommand line: loglevel=5\n"), facts=whole)
    assert not silent.booted and matching.see(b"Command line: a=b\n", facts=whole).booted


def test_a_report_is_known_by_how_it_begins(tmp_path: Path) -> None:
    lines = b'\x1b[2J\n{"record":"begin","protocol":1}\n{"record":"end","records":1}\n'
    for name, raw, is_one in (
        ("a", lines, True),
        ("b", msgspec.json.format(msgspec.json.encode(report.parse(lines))), True),
        ("c", msgspec.json.encode(report.parse(lines)), True),
        ("d", HEALTHY, False),
        ("e", b"", False),
    ):
        (tmp_path / name).write_bytes(raw)
        assert matching.is_report(str(tmp_path / name)) is is_one, name
    assert not matching.is_report("-") and not matching.is_report(str(tmp_path))
