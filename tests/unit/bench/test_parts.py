# SPDX-License-Identifier: Apache-2.0
"""bench growth, build, size and page, without a boot or a build."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from xml.etree import ElementTree

import msgspec
import pytest

from minguest.util.errors import ToolError, UserError
from tests import ROOT, workshop
from tests.bench import __main__ as cli
from tests.bench import boot, build, check, growth, guests, page, record, size, timeline, tools
from tests.bench.guests import Boot, Change, Guest
from tests.bench.record import Inside, Part, Subject, Value
from tests.unit.bench.test_boot import REPORT, seen

PHASES = {
    "report": 3.0, "CPU": 4.0, "firmware": 1.0, "stub": 0.5, "kernel": 1.25, "initd": 0.2, "report's port": 0.05,
}  # fmt: skip
COUNTED = {"instructions": 1000.0, "before the kernel": 600.0, "kernel's": 390.0, "initd's": 10.0}


def booted(problem: str = "", more: Mapping[str, float] = MappingProxyType({})) -> Subject:
    values = {name: Value("s", (value,)) for name, value in {**PHASES, **more}.items()}
    values |= {name: Value("M", (value,)) for name, value in COUNTED.items()}
    into = Inside({"before initcalls": 100.0, "core": 300.0}, (("acpi_init", 32.0),), ((9.0, "a|b", "c"),))
    return Subject("ours", "as it ships", {}, values, problem, inside=into)


def part(name: str = "boot", **subjects: Subject) -> Part:
    return Part(name, "it", "today", "a machine", 2, "7.2", 0.5, "", subjects)


# ── growth ──


def test_the_smallest_memory_is_found_with_few_boots() -> None:
    for least in (32, 80, 160, 496, 512):
        tried: list[int] = []
        assert growth.smallest(lambda mib, at=least, to=tried: to.append(mib) or mib >= at) == least  # type: ignore[misc]
        assert len(tried) <= 7 and all(mib % growth.STEP == 0 for mib in tried)
    assert growth.smallest(lambda _: False) is None


def test_growth_says_which_number_of_cpus_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = workshop.build(tmp_path / "root").bundle
    asked = boot.subjects([str(bundle)], [], bundle, "")
    done: list[Change] = []

    def start(guest: Guest, change: Change, deadline: float) -> Boot:
        done.append(change)
        cpus = {1: "0", 2: "0-1", 8: "0-3"}.get(change.cpus, "0-3")
        if change.memory and change.memory < 96:
            return seen(b"")
        return seen(REPORT.replace(b"0-3", cpus.encode()))

    monkeypatch.setattr(guests, "boot", start)
    made = growth.run(record.begin("growth", []), boot.Wanted(asked, "", 2), (1, 2, 8), True, lambda _: None)
    ours = made.subjects["default-4.12"]
    assert ours.problem == "with 8 CPUs: 4 of 8 CPUs"
    assert [change.cpus for change in done].count(8) == 1
    assert [change for change in done if change.counted] == [Change(cpus=1, counted=True)]
    assert ours.values["smallest memory"] == Value("MiB", (96.0,))
    assert len(ours.values["report, 2 CPUs"].samples) == 2
    rows = growth.tables(made)["By number of CPUs; in brackets against the first"]
    assert rows[0] == ["", "measure", "1", "2"]
    assert rows[1] == ["default-4.12", "report, s", "2.25", "2.25 (1.00)"]
    assert rows[3] == ["default-4.12", "instructions, M instructions", "1600", "-"]


def test_growth_on_a_loaded_machine_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = boot.subjects([str(workshop.build(tmp_path / "root").bundle)], [], tmp_path, "")
    cpu = iter((1.0, 2.0, 3.0))
    changes: list[Change] = []

    def start(guest: Guest, change: Change, deadline: float) -> Boot:
        changes.append(change)
        return seen(REPORT.replace(b"0-3", b"0-1"), cpu=next(cpu))

    monkeypatch.setattr(guests, "boot", start)
    made = growth.run(record.begin("growth", []), boot.Wanted(asked, "", 3), (2,), False, lambda _: None)
    (fault,) = made.faults
    assert fault.startswith("default-4.12: the machine is too loaded to measure")
    assert changes == [Change(cpus=2)] * 3  # nothing is counted with two CPUs


# ── build ──


def test_a_variant_of_the_default_guest_has_another_name_and_option() -> None:
    text = (ROOT / "configs/guest.toml").read_text()
    made = msgspec.toml.decode(build.variant(text, "bench-one", "LOG_BUF_SHIFT = 16"))
    plain = msgspec.toml.decode(text)
    assert made == {**plain, "name": "bench-one", "options": {**plain["options"], "LOG_BUF_SHIFT": 16}}
    with pytest.raises(UserError, match=r"not one line `name"):
        build.variant("[options]\n", "bench-one")


def test_builds_that_compile_need_to_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = workshop.build(tmp_path / "root").bundle
    config = tmp_path / "kata.config"
    config.write_text("CONFIG_64BIT=y\n")
    (bundle.parent / "tree.json").write_text('{"path": "/tree"}')
    ran: list[str] = []

    def took(*argv: str, env: dict[str, str] | None = None) -> float:
        ran.append(" ".join(argv[:2]))
        return float(len(ran))

    monkeypatch.setattr(build, "seconds", took)
    monkeypatch.setattr(build, "compiled", lambda tree, config, image=None: 200.0)
    monkeypatch.setattr(build, "ROOT", tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/guest.toml").write_text((ROOT / "configs/guest.toml").read_text())
    given = (str(bundle), [f"kata={config}"], "kata", 2, "LOG_BUF_SHIFT = 16")
    quick = build.run(part("build"), *given, False, False, tmp_path, lambda _: None)
    assert ran == ["doit build"] * 5
    # The first run of "nothing to do" may have had something to do.
    assert quick.subjects["default-4.12"].values == {
        "nothing to do": Value("s", (2.0, 3.0)),
        "a second guest": Value("s", (4.0, 5.0)),
    }
    assert quick.faults == ["kata: not compiled: that needs --cold"]
    # Not its folder, which is this machine's.
    assert quick.subjects["kata"].about == "kata.config"
    cold = build.run(part("build"), *given, True, False, tmp_path, lambda _: None)
    assert set(cold.subjects["default-4.12"].values) == {*build.MEASURES} - {"rehearsal"}
    assert cold.faults == []
    assert build.tables(cold)["Builds"][1][1] == "200.00 (1.00)"
    with pytest.raises(UserError, match="/none: no such file"):
        build.run(part("build"), str(bundle), ["kata=/none"], "", 1, "", False, False, tmp_path, lambda _: None)
    config.write_text("CONFIG_X86_32=y\n# CONFIG_64BIT is not set\n")
    with pytest.raises(UserError, match="CONFIG_64BIT is not on: a 32-bit kernel is no peer"):
        build.run(part("build"), *given, True, False, tmp_path, lambda _: None)


def test_a_guest_for_a_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/guest.toml").write_text((ROOT / "configs/guest.toml").read_text())
    stale = tmp_path / "out/bench-one-6.12/kept"
    stale.mkdir(parents=True)
    monkeypatch.setattr(build, "ROOT", tmp_path)
    with build.guest(tmp_path, "bench-one", "6.12", "A = 1") as variables:
        assert variables == [f"guest={tmp_path / 'bench-one.toml'}", "kernel=6.12"]
        assert msgspec.toml.decode((tmp_path / "bench-one.toml").read_bytes())["options"]["A"] == 1
        assert not stale.parent.exists()
        stale.mkdir(parents=True)
        (tmp_path / "out/choice-bench-one.json").write_text("{}")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_rehearsal_is_timed_when_its_host_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = workshop.build(tmp_path / "root").bundle
    ran: list[tuple[str, ...]] = []

    def took(*argv: str, env: dict[str, str] | None = None) -> float:
        ran.append(argv)
        return float(len(ran))

    monkeypatch.setattr(build, "seconds", took)
    made = build.run(part("build"), str(bundle), [], "", 1, "", False, True, tmp_path, lambda _: None)
    assert ran[-2:] == [("doit", "build", "host", "kernel=4.12"), ("doit", "rehearse", "kernel=4.12")]
    assert made.subjects["default-4.12"].values["rehearsal"] == Value("s", (float(len(ran)),))
    with pytest.raises(UserError, match="--base kata: no such subject"):
        build.run(part("build"), str(bundle), [], "kata", 1, "", False, False, tmp_path, lambda _: None)


def test_a_command_that_fails_is_no_time() -> None:
    with pytest.raises(ToolError, match=r"(?s)sh -c 'echo why; exit 3': exit status 3\nwhy"):
        tools.seconds("sh", "-c", "echo why; exit 3")
    assert 0.2 < tools.seconds("sh", "-c", 'sleep "$PAUSE"', env={"PAUSE": "0.3"}) < 30


def test_memory_is_of_the_command_alone() -> None:
    """Not of the tests' own process, which has much more."""
    wall, memory = tools.peaks(2, "sh", "-c", "sleep 0.2; exit 3")
    assert min(wall.samples) >= 0.2 and max(memory.samples) < 25e6
    _, more = tools.peaks(1, sys.executable, "-c", "x = b'x' * 60_000_000")
    assert more.median > 60e6


# ── size ──


def test_sizes_are_against_all_files_of_a_peer(tmp_path: Path) -> None:
    bundle = workshop.build(tmp_path / "root").bundle
    kernel, initrd = tmp_path / "vmlinuz", tmp_path / "initrd"
    kernel.write_bytes(bytes(1000))
    initrd.write_bytes(bytes(500))
    made = size.run(part("size"), [str(bundle)], [f"cloud={kernel},{initrd}", f"kata={kernel}"], "cloud")
    both = {name: each.values["bzImage + initrd.img"].median for name, each in made.subjects.items()}
    ours = sum((bundle / name).stat().st_size for name in ("bzImage", "initrd.img"))
    assert both == {"default-4.12": ours, "cloud": 1500, "kata": 1000}
    with pytest.raises(UserError, match="/none: no such file, for the peer kata"):
        size.run(part("size"), [str(bundle)], [f"kata={kernel},/none"], "")


# ── page and timeline ──


def test_a_command_on_the_page_has_no_folder_of_a_machine() -> None:
    ran = "python -m tests.bench boot --peer=a=/any/vmlinuz-1,/else/initrd --peer b=/x/bzImage --bundle=out/c --n=2"
    shown = "python -m tests.bench boot --peer=a=vmlinuz-1,initrd --peer b=bzImage --bundle=out/c --n=2"
    assert page.placeless(ran) == shown


def test_the_page_has_every_part_and_says_what_was_not_run() -> None:
    parts = {"boot": part(ours=booted(), kata=booted("1 of 4 CPUs")), "build": None}
    text = page.page(parts, check.held(check.load(), parts), True)
    assert "- `it`\n- today; a machine; load 0.5 before it began" in text
    assert "- **not measured**: kata: 1 of 4 CPUs" in text
    assert "## Build\nNOT RUN: `doit bench build`." in text and "## Growth\nNOT RUN" in text
    assert "(performance.svg)" in text
    assert "a\\|b" in text
    assert "(performance.svg)" not in page.page(parts, [], False)


def test_the_timeline_has_a_bar_a_phase_as_long_as_it_took() -> None:
    drawn = ElementTree.fromstring(
        timeline.svg(part(ours=booted(), bad=booted("hangs"), slow=booted(more={"kernel": 2.5})))
    )
    kind = "{http://www.w3.org/2000/svg}"
    bars = {
        bar.findtext(f"{kind}title") or "": float(bar.attrib["width"])
        for bar in drawn.iter(f"{kind}rect")
        if bar.find(f"{kind}title") is not None
    }
    assert bars["slow: kernel 2.5"] == pytest.approx(2 * bars["ours: kernel 1.25"], abs=0.02)
    assert bars["ours: core 292"] == pytest.approx(3 * bars["ours: before initcalls 97.5"], abs=0.1)
    assert not any(name.startswith("bad") for name in bars)
    assert timeline.svg(part(bad=booted("hangs"))) == ""


def test_ovmfs_own_phases_are_drawn_where_it_says_them() -> None:
    names = [name for name, _, _ in timeline.wall(booted(more={"SEC, PEI": 0.2, "DXE": 0.5, "BDS": 0.3}))]
    assert names == ["SEC, PEI", "DXE", "BDS", "stub", "kernel", "initd", "report's port"]


@pytest.mark.parametrize(("most", "distance"), [(3.0, 0.5), (10.0, 1.0), (1140.0, 200.0), (0.07, 0.01)])
def test_the_grid_has_round_numbers(most: float, distance: float) -> None:
    assert timeline.step(most) == pytest.approx(distance)
    assert most / timeline.step(most) <= 10


# ── the command line ──


def test_a_run_that_is_no_measurement_has_a_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = workshop.build(tmp_path / "root").bundle
    arguments = ["size", "--bundle", str(bundle), "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    assert cli.main([*arguments, "--base", "none"]) == 1
    assert "--base none: no such subject" in capsys.readouterr().err
    broken = part(ours=booted("hangs"))
    assert cli._finish(broken, {}, tmp_path / "out") == 1
    assert "NOT MEASURED: ours: hangs" in capsys.readouterr().out


def test_check_and_page_read_what_was_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert cli.main(["check", *out]) == 2
    assert cli.main(["page", *out, "--to", str(tmp_path / "docs")]) == 1
    assert "has no figures" in capsys.readouterr().err
    four = booted(more={"report": 4.0})
    both = {"default-6.12": booted(), "debian-cloud": four}
    record.save(msgspec.structs.replace(part(), subjects=both), tmp_path / "out")
    assert cli.main(["check", *out]) == 1
    shown = capsys.readouterr().out
    assert [line.split("  ")[0] for line in shown.splitlines() if "missed" in line] == [
        "start to report, 6.12",
        "the kernel's part, 6.12",
    ]
    assert cli.main(["page", *out, "--to", str(tmp_path / "docs")]) == 0
    assert {path.name for path in (tmp_path / "docs").iterdir()} == {"performance.md", "performance.svg"}
