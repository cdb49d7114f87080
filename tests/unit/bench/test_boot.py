# SPDX-License-Identifier: Apache-2.0
"""Subjects in turns; one that does not boot is said and not tried again; a loaded machine is no measurement."""

from pathlib import Path

import pytest

from minguest.util.errors import UserError
from tests import workshop
from tests.bench import boot, guests, record
from tests.bench.guests import Boot, Change, Guest
from tests.bench.record import Subject, Value

REPORT = (
    b'{"record":"begin","protocol":1,"uptime":0.5}\n{"record":"cpus","online":"0-3"}\n'
    b'{"record":"times","start":0.5,"report":0.6,"tsc":1500000000}\n{"record":"end","status":"ok","records":3}\n'
)
ONE_CPU = REPORT.replace(b"0-3", b"0")
TRACED = b"""\
[    0.010000] calling  one+0x0/0x5 @ 1
[    0.020000] initcall one+0x0/0x5 returned 0 after 9000 usecs
"""


def seen(report: bytes = REPORT, cpu: float = 1.0, console: bytes = b"Linux version 6") -> Boot:
    return Boot([(0.5, console)], [(2.0, report[:-1]), (2.25, report[-1:])], [], 3.0, cpu, 0, "")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return workshop.build(tmp_path / "root").bundle


def file(path: Path) -> Path:
    path.write_bytes(b"a kernel")
    return path


def test_subjects_are_named_and_peers_are_like_the_first(bundle: Path, tmp_path: Path) -> None:
    kernel = file(tmp_path / "vmlinuz")
    found = boot.subjects([str(bundle), f"small={bundle}"], [f"cloud={kernel}"], bundle, "cloud")
    assert [(each.name, each.peer) for each in found] == [("default-4.12", False), ("small", False), ("cloud", True)]
    assert (found[2].kernel, found[2].firmware, found[2].cpus) == (kernel, bundle.resolve(), found[0].cpus)


@pytest.mark.parametrize(
    ("peers", "base", "why"),
    [
        (["cloud"], "", "--peer cloud: not NAME=FILE"),
        (["=x"], "", "--peer =x: not NAME=FILE"),
        (["default-4.12={kernel}"], "", "two subjects are named default-4.12"),
        (["cloud={kernel}"], "clod", "--base clod: no such subject"),
        (["cloud=/none/vmlinuz"], "", "/none/vmlinuz: no such file, for the peer cloud"),
    ],
)
def test_wrong_subjects_are_named(bundle: Path, tmp_path: Path, peers: list[str], base: str, why: str) -> None:
    given = [each.replace("{kernel}", str(file(tmp_path / "vmlinuz"))) for each in peers]
    with pytest.raises(UserError, match=why):
        boot.subjects([str(bundle)], given, bundle, base)


def test_phases_are_by_the_hosts_clock() -> None:
    values = {name: value.median for name, value in boot.phases(seen()).items()}
    assert values == pytest.approx(
        {"first line": 0.5, "report": 2.25, "CPU": 1.0, "firmware": 0.5, "kernel": 1.4, "initd": 0.1,
         "report's port": 0.25}
    )  # fmt: skip
    # A quiet kernel is the kernel's part from the stub on.
    values = {name: value.median for name, value in boot.phases(seen(console=b"EFI stub: x")).items()}
    assert values["firmware"] == 0.5 and values["kernel"] == pytest.approx(1.4)
    assert "first line" not in values and "stub" not in values


def test_an_initd_without_tsc_counts_nothing() -> None:
    assert boot.instructions(seen(REPORT.replace(b',"tsc":1500000000', b""))) == {}


def test_a_loaded_machine_shows_in_cpu_seconds() -> None:
    calm, loaded = Value("s", (1.0, 1.05, 1.1)), Value("s", (1.0, 1.5, 2.0))
    assert boot.noisy({"CPU": calm, "report": calm, "initd": loaded}, 0.1) == ""
    assert "too loaded to measure: times to the report lie 33%" in boot.noisy({"CPU": calm, "report": loaded}, 0.1)
    why = "the machine is too loaded to measure: CPU seconds lie 33% apart (quartiles), 10% is the most"
    assert boot.noisy({"CPU": loaded}, 0.1) == why


def test_a_run(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours boots; one peer comes up with one CPU, one boots on a machine that is loaded."""
    peers = [f"{name}={file(tmp_path / name)}" for name in ("one-cpu", "loaded")]
    asked = boot.subjects([str(bundle)], peers, bundle, "loaded")
    done: list[tuple[str, Change]] = []

    def start(guest: Guest, change: Change, deadline: float) -> Boot:
        done.append((guest.name, change))
        if change.counted:
            return seen(ONE_CPU, console=TRACED if change.append else b"")
        count = len([each for each in done if each == (guest.name, change)])
        return seen(ONE_CPU if guest.name == "one-cpu" else REPORT, cpu=count if guest.name == "loaded" else 1.0)

    monkeypatch.setattr(guests, "boot", start)
    part = boot.run(record.begin("boot", []), boot.Wanted(asked, "loaded", 3), lambda _: None)
    assert [name for name, change in done if not change.counted].count("one-cpu") == 1
    assert sorted(name for name, change in done[:3]) == ["default-4.12", "loaded", "one-cpu"]
    assert [name for name, change in done if change.counted] == ["default-4.12"] * 2 + ["loaded"] * 2
    assert part.faults == [
        "one-cpu: 1 of 4 CPUs",
        "loaded: the machine is too loaded to measure: CPU seconds lie 50% apart (quartiles), 10% is the most",
    ]
    ours = part.subjects["default-4.12"]
    assert len(ours.values["report"].samples) == 3
    assert ours.values["instructions"].median == 1600
    assert ours.inside is not None
    assert ours.inside.longest == (("one", 9.0),)
    tables = boot.tables(part)
    assert tables["The longest initcalls"][1] == ["default-4.12", "one", "9.0"]
    assert [row[0] for row in tables["From QEMU's start to the report"]] == ["", "default-4.12", "loaded"]


def test_symbols_are_beside_a_kernel_or_in_its_build(tmp_path: Path) -> None:
    (tmp_path / "build/arch/x86/boot").mkdir(parents=True)
    (tmp_path / "build/System.map").write_text("of the build")
    (tmp_path / "System.map-6.1.0-cloud").write_text("of Debian")
    assert boot.symbols(tmp_path / "build/arch/x86/boot/bzImage") == "of the build"
    assert boot.symbols(tmp_path / "vmlinuz-6.1.0-cloud") == "of Debian"
    assert boot.symbols(tmp_path / "vmlinuz") == ""


def test_samples_add_up() -> None:
    both = boot.added({"a": Value("s", (1.0,))}, {"a": Value("s", (2.0,)), "b": Value("s", (3.0,))})
    assert both == {"a": Value("s", (1.0, 2.0)), "b": Value("s", (3.0,))}


def test_a_subject_says_what_it_is(bundle: Path) -> None:
    said = boot.about(guests.ours(bundle))
    assert isinstance(said, Subject)
    assert said.about.startswith("as it ships, ") and "OVMF 2025.02-8+deb13u1" in said.about
    assert set(said.files) == {"bzImage", "initrd.img", "OVMF_CODE.fd"}
