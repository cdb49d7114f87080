# SPDX-License-Identifier: Apache-2.0
"""initd.wait-cpus= and initd.wait-memory=: guests that get CPUs and memory while they run, and some that do not."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from minguest.model import Launch
from minguest.vm import qemu, report
from tests import guests

GIB = 1 << 30
NO_DEEDS = qemu.Deeds()

Boot = Callable[..., qemu.Run]


@pytest.fixture(scope="module")
def other_initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default guest's initrd with initd as its sources are now, for a series that was not built again."""
    return guests.make_initrd(tmp_path_factory.mktemp("initrd") / "initrd.img")


@pytest.fixture
def boot(series: str, bundle: Path, other_initrd: Path, tmp_path: Path) -> Boot:
    """Boots 2 CPUs and 1 GiB with room for 8 CPUs and 4 GiB, and does the deeds."""

    def boot(*cmdline: str, deeds: qemu.Deeds = NO_DEEDS) -> qemu.Run:
        # With no lpj= Linux measures each CPU that is added, and with a slow TCG that takes seconds.
        parameters = ("lpj=2000000", *cmdline)
        wanted = Launch(cpus=2, max_cpus=8, memory="1G", max_memory="4G", slots=4, gpus=(), cmdline=parameters)
        _, argv = guests.command(bundle, wanted, other_initrd, tmp_path, series)
        return qemu.boot(argv, tmp_path, 60, deeds)

    return boot


def ready(run: qemu.Run) -> list[dict[str, object]]:
    """The records `ready`, each a line of its own before `begin`."""
    before = run.report[: run.report.index(report.BEGIN)]
    return [json.loads(line) for line in before.splitlines() if line.startswith(b"{")]


def said(run: qemu.Run) -> str:
    """initd's messages on the console."""
    return "\n".join(re.findall(r"initd: (.*?)\r?\n", run.console.decode(errors="replace")))


def test_what_is_plugged_in_is_in_the_report(boot: Boot) -> None:
    deeds = qemu.Deeds(cpus=8, dimms=(1 * GIB, 1 * GIB))
    run = boot("initd.wait-cpus=8", f"initd.wait-memory={3 * GIB}", "initd.wait-seconds=30", deeds=deeds)
    assert ready(run) == [{"record": "ready", "cpus": 2, "memory_bytes": 1 * GIB}]
    found = report.parse(run.report)
    assert found.complete
    assert report.cpu_count(found.record("cpus")["online"]) == 8
    memory = found.record("memory")
    assert memory["blocks_online"] * memory["block_bytes"] == 3 * GIB
    assert re.search(r"^8 CPUs and 3072 MiB after \d+\.\d s$", said(run), re.MULTILINE)
    # It is in the report, so there is no event.
    assert b'"event"' not in run.report
    assert run.ending == "power-off"


def test_the_wait_for_what_is_never_plugged_in_ends(boot: Boot) -> None:
    run = boot("initd.wait-cpus=8", f"initd.wait-memory={3 * GIB}", "initd.wait-seconds=2")
    found = report.parse(run.report)
    assert found.complete
    assert report.cpu_count(found.record("cpus")["online"]) == 2
    times = found.record("times")
    assert 2 <= times["report"] - times["start"] < 6
    assert "gave up after 2 s: 2 of 8 CPUs, 1024 of 3072 MiB" in said(run).splitlines()
    assert run.ending == "power-off"


def test_half_of_it_is_reported(boot: Boot) -> None:
    run = boot("initd.wait-cpus=5", "initd.wait-seconds=4", deeds=qemu.Deeds(cpus=3))
    assert report.cpu_count(report.parse(run.report).record("cpus")["online"]) == 3
    assert "gave up after 4 s: 3 of 5 CPUs" in said(run).splitlines()


def test_what_is_there_already_is_not_waited_for(boot: Boot) -> None:
    run = boot("initd.wait-memory=1")
    assert len(ready(run)) == 1
    assert report.parse(run.report).complete
    assert "1024 MiB after 0.0 s" in said(run).splitlines()


def test_options_that_are_not_numbers_are_named_and_ignored(boot: Boot) -> None:
    options = ["wait-cpus=", "wait-cpus=0", "wait-memory=3G", "wait-memory=+1", "wait-seconds=601"]
    run = boot(*(f"initd.{each}" for each in options))
    named = re.findall(r"^initd\.(\S+): not a number from 1 to \d+; ignored$", said(run), re.MULTILINE)
    assert named == options
    assert ready(run) == []
    assert report.parse(run.report).complete
    assert "after" not in said(run)
