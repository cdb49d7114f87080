# SPDX-License-Identifier: Apache-2.0
"""Which boot tests a release tells of."""

import msgspec
import pytest

from minguest import boottest, launch
from minguest.errors import UserError
from minguest.model import Launch

LAUNCH = Launch(cmdline=("a=b",))
OWN = launch.Spec(
    "q35", "tcg", "max", 4, 64, 1 << 30, (launch.Gpu("gpu0", "secondary-vga", model="secondary-vga"),), ("a=b",), 60
)


def test_the_cells_are_both_machines_and_the_guests_own() -> None:
    assert boottest.cells(LAUNCH) == [("q35", 1), ("q35", 4), ("q35", 8), ("pc", 1), ("pc", 4), ("pc", 8)]
    assert boottest.cells(Launch(machine="pc", cpus=6))[-2:] == [("pc", 6), ("pc", 8)]
    assert boottest.cell_name("q35", 4) == "boot-test-q35-4"


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, True),
        ({"machine": "pc", "cpus": 8}, True),
        ({"accel": "kvm", "timeout": 5}, True),
        ({"cpus": 64, "max_cpus": 64}, False),
        ({"cpus": 3}, False),
        ({"memory": 2 << 30}, False),
        ({"gpus": ()}, False),
        ({"cmdline": ()}, False),
        ({"cpu": "host"}, False),
        ({"max_cpus": 8}, False),
    ],
)
def test_a_run_counts_only_with_the_guests_own_launch(changes: dict[str, object], counts: bool) -> None:
    assert boottest.is_of(msgspec.structs.replace(OWN, **changes), LAUNCH) is counts


@pytest.mark.parametrize("word", ["bar:16G", "0000:01:00.0", "01:00.0"])
def test_every_kind_of_card_counts(word: str) -> None:
    card = launch.Gpu("gpu0", word, bar=1 << 34) if "bar" in word else launch.Gpu("gpu0", word, host="0000:01:00.0")
    spec = msgspec.structs.replace(OWN, gpus=(card,))
    assert boottest.is_of(spec, msgspec.structs.replace(LAUNCH, gpus=(word,)))
    assert not boottest.is_of(spec, LAUNCH)


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
