# SPDX-License-Identifier: Apache-2.0
"""Which boot tests a release tells of."""

import msgspec
import pytest

from minguest import boottest, launch
from minguest.errors import UserError
from minguest.model import Launch, Node

LAUNCH = Launch(cmdline=("a=b",))
OWN = launch.Spec(
    "q35", "tcg", "max", 4, 64, 1 << 30, (launch.Gpu("gpu0", "secondary-vga", model="secondary-vga"),), ("a=b",), 60
)


def names(launch: Launch) -> list[str]:
    return [test.name for test in boottest.tests(launch)]


def test_the_tests_are_both_machines_the_guests_own_and_the_extra() -> None:
    cells = [f"boot-test-{machine}-{cpus}" for machine in ("q35", "pc") for cpus in (1, 4, 8)]
    assert names(LAUNCH) == [*cells, "hotplug", "large-bars"]
    own = Launch(machine="pc", cpus=6)
    assert names(own)[-4:-2] == ["boot-test-pc-6", "boot-test-pc-8"]
    assert boottest.own_test(own) == "boot-test-pc-6"


def counts_as(spec: launch.Spec, wanted: Launch = LAUNCH) -> list[str]:
    return [test.name for test in boottest.tests(wanted) if boottest.is_of(spec, wanted, test)]


HOT = {"cpus": 2, "plug_cpus": 8, "plug_memory": 3 << 30, "max_memory": 3 << 30}
BARS = tuple(launch.Gpu(f"gpu{n}", "bar:128G", bar=128 << 30) for n in range(8))


@pytest.mark.parametrize(
    ("changes", "as_"),
    [
        ({}, ["boot-test-q35-4"]),
        ({"machine": "pc", "cpus": 8}, ["boot-test-pc-8"]),
        ({"accel": "kvm", "timeout": 5}, ["boot-test-q35-4"]),
        ({"cpus": 64, "max_cpus": 64}, []),
        ({"cpus": 3}, []),
        ({"memory": 2 << 30}, []),
        ({"gpus": ()}, []),
        ({"cmdline": ()}, []),
        ({"cpu": "host"}, []),
        ({"max_cpus": 8}, []),
        (HOT, ["hotplug"]),
        ({**HOT, "plug_cpus": 7}, []),
        ({**HOT, "plug_memory": 0}, []),
        ({"gpus": BARS, "cpu": "max,phys-bits=43"}, ["large-bars"]),
        ({"gpus": BARS, "machine": "pc"}, []),
        ({"gpus": BARS[1:]}, []),
    ],
)
def test_a_run_counts_only_with_the_launch_of_a_test(changes: dict[str, object], as_: list[str]) -> None:
    assert counts_as(msgspec.structs.replace(OWN, **changes)) == as_


@pytest.mark.parametrize("word", ["bar:16G", "0000:01:00.0", "01:00.0"])
def test_every_kind_of_card_counts(word: str) -> None:
    card = launch.Gpu("gpu0", word, bar=1 << 34) if "bar" in word else launch.Gpu("gpu0", word, host="0000:01:00.0")
    spec = msgspec.structs.replace(OWN, gpus=(card,))
    assert counts_as(spec, msgspec.structs.replace(LAUNCH, gpus=(word,))) == ["boot-test-q35-4"]
    assert counts_as(spec) == []


def test_what_a_guest_cannot_be_tested_with_is_said() -> None:
    hot = next(test for test in boottest.tests(LAUNCH) if test.name == "hotplug")
    assert boottest.cannot(hot, LAUNCH, 64) == ""
    assert "built for fewer" in boottest.cannot(hot, LAUNCH, 4)
    assert "no room for more CPUs" in boottest.cannot(hot, Launch(max_cpus=4), 64)
    assert "in nodes" in boottest.cannot(hot, Launch(numa=(Node("1G"),)), 64)


MEMINFO = "MemTotal:        4194304 kB\nMemFree:          100000 kB\nMemAvailable:    2097152 kB\n"


def test_more_memory_than_the_host_has_is_refused() -> None:
    boottest.check_memory(msgspec.structs.replace(OWN, memory=4 << 30), MEMINFO)
    with pytest.raises(UserError, match="memory 5 GiB: 4096 MiB are all that this host has"):
        boottest.check_memory(msgspec.structs.replace(OWN, memory=5 << 30), MEMINFO)
    with pytest.raises(UserError, match="memory 5 GiB"):
        boottest.check_memory(msgspec.structs.replace(OWN, plug_memory=5 << 30), MEMINFO)
    # A card of the host's locks all of it from the start.
    passed = msgspec.structs.replace(OWN, memory=3 << 30, gpus=(launch.Gpu("gpu0", "01:00.0", host="0000:01:00.0"),))
    with pytest.raises(UserError, match=r"memory 3 GiB: 2048 MiB are available, and all .* is locked"):
        boottest.check_memory(passed, MEMINFO)
