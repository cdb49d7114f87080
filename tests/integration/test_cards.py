# SPDX-License-Identifier: Apache-2.0
"""Cards with large BARs, many of them, near NUMA nodes; CPUs and memory plugged in: what boot-test says about each."""

import json
from pathlib import Path

import msgspec
import pytest

from minguest import paths
from minguest.boottest import runner
from minguest.model import Launch, Node
from minguest.util.errors import GuestFailed
from minguest.vm.launch import Options
from tests.integration.conftest import SERIES, Doit

EIGHT = ",".join(["bar:128G"] * 8)


def checks(folder: Path) -> dict[str, dict[str, object]]:
    found = json.loads((folder / "verdict.json").read_bytes())
    return {check["name"]: check for check in found["verdict"]["checks"]}


@pytest.mark.parametrize(
    ("gpu", "count"),
    [
        (EIGHT, 8),
        ("bar:16M", 1),
        # X-PciMmio64Mb sets the window, in which the small card's port takes 2 GiB.
        ("bar:256G,bar:16M", 2),
    ],
)
def test_large_bars_are_placed_where_they_were_planned(built: paths.Layout, doit: Doit, gpu: str, count: int) -> None:
    result = doit("boot-test", "--gpu", gpu, f"kernel={SERIES}")
    assert result.returncode == 0, result.stdout
    rows = checks(built.boot_test)
    assert (rows["BAR window"]["guest"], rows["BAR window"]["ok"]) == (f"{count} of {count} BARs", True)
    assert [rows[f"GPU gpu{n}"]["ok"] for n in range(count)] == [True] * count


def test_cpus_and_memory_are_plugged_in(built: paths.Layout, doit: Doit) -> None:
    options = ["--cpus", "2", "--plug-cpus", "8", "--memory", "1G", "--plug-memory", "3G"]
    result = doit("boot-test", *options, f"kernel={SERIES}")
    assert result.returncode == 0, result.stdout
    rows = checks(built.boot_test)
    assert [rows["CPUs"][view] for view in ("requested", "qemu", "guest")] == ["2 → 8", "8", "8"]
    assert [rows["memory"][view] for view in ("requested", "qemu")] == ["1024 MiB → 3072 MiB", "3072 MiB"]


def test_cpus_are_unplugged_again(built: paths.Layout, doit: Doit) -> None:
    options = ["--cpus", "2", "--plug-cpus", "4", "--unplug-cpus", "3"]
    result = doit("boot-test", *options, f"kernel={SERIES}")
    assert result.returncode == 0, result.stdout
    assert [checks(built.boot_test)["CPUs"][view] for view in ("requested", "qemu", "guest")] == ["2 → 4 → 3", "3", "3"]


def test_more_is_plugged_in_than_there_is_room_for_is_refused(built: paths.Layout, doit: Doit) -> None:
    result = doit("boot-test", "--plug-cpus", "65", f"kernel={SERIES}")
    assert result.returncode != 0
    assert "--plug-cpus 65: the guest starts with 4 CPUs and can have 64" in result.stdout


@pytest.fixture
def bench(built: paths.Layout, tmp_path: Path) -> runner.Bench:
    return runner.Bench("it", built.bundle, tmp_path / "boot-test", tmp_path / "kvm.json", built.pits)


def boot(bench: runner.Bench, wanted: Launch) -> None:
    runner.run(bench, Options(accel="tcg"), wanted, lambda _: None)


def test_a_window_that_is_forced_small_is_its_pit(bench: runner.Bench) -> None:
    wanted = Launch(gpus=tuple(EIGHT.split(",")), cpu="max,phys-bits=43", window="64G")
    with pytest.raises(GuestFailed, match=r"BAR 2 \(128 GiB\) has no address"):
        boot(bench, wanted)
    outcome = msgspec.json.decode((bench.folder / "verdict.json").read_bytes(), type=runner.Outcome)
    assert outcome.pits == ("bar-no-room",)


def test_cards_are_near_their_nodes(bench: runner.Bench) -> None:
    nodes = (Node("512M", "0-1", (10, 21), gpus=(1,)), Node("512M", "2-3", (21, 10), gpus=(0,)))
    boot(bench, Launch(numa=nodes, gpus=("bar:16G", "secondary-vga", "bochs-display")))
    rows = checks(bench.folder)
    assert rows["NUMA nodes"]["guest"] == "CPUs 0-1; CPUs 2-3"
    assert [str(rows[f"GPU gpu{n}"]["guest"]).rpartition(", ")[2] for n in (0, 1)] == ["node 1", "node 0"]
    assert str(rows["GPU gpu2"]["guest"]).endswith("placed")
