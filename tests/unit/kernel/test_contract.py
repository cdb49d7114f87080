# SPDX-License-Identifier: Apache-2.0
"""The contract: each row bites when it should, keeps quiet when it should, and says what would happen."""

from pathlib import Path

import pytest

from minguest.diagnose import catalogue
from minguest.kernel import contract
from minguest.kernel.contract import Breach, Rule
from minguest.model import Launch, Node
from minguest.util.errors import UserError
from tests import ROOT

OWN = catalogue.rules(catalogue.load(ROOT / "configs/pits"))


def write(folder: Path, row: str) -> Path:
    path = folder / "a.toml"
    injected = '[[inject]]\ncannot = "a test"'
    path.write_text(f'title = "a"\nlayer = "config"\ncause = "b"\nfix = "c"\n{injected}\n[[require]]\n{row}\n')
    return path


def rule(option: str = "EFI", **fields: str | int) -> Rule:
    return Rule(option=option, fragment="efi", without="nothing works", **fields)  # type: ignore[arg-type]


def breached(given: Rule, config: dict[str, str], launch: Launch | None = None, series: str = "4.12") -> bool:
    return bool(contract.check([given], config, launch or Launch(), series))


@pytest.mark.parametrize(
    ("given", "config", "expected"),
    [
        (rule(), {"EFI": "y"}, False),
        (rule(), {"EFI": "n"}, True),
        (rule(), {"EFI": "m"}, True),
        (rule(), {}, True),
        (rule(value="n"), {}, False),
        (rule(value="n"), {"EFI": "y"}, True),
        (rule(value='"x"'), {"EFI": '"x"'}, False),
        (rule(at_least=2), {"EFI": "2"}, False),
        (rule(at_least=2), {"EFI": "1"}, True),
        (rule(at_least=2), {"EFI": "y"}, True),
        (rule(at_least=2), {}, True),
        (rule(at_least="max_cpus"), {"EFI": "64"}, False),
        (rule(at_least="max_cpus"), {"EFI": "63"}, True),
        (rule(series="4.12"), {}, True),
        (rule(series="6.12"), {}, False),
        (rule(given="NUMA"), {}, False),
        (rule(given="NUMA"), {"NUMA": "n"}, False),
        (rule(given="NUMA"), {"NUMA": "y"}, True),
    ],
)
def test_a_row(given: Rule, config: dict[str, str], expected: bool) -> None:
    assert breached(given, config) is expected


@pytest.mark.parametrize(
    ("when", "launch", "expected"),
    [
        ("always", Launch(cpus=1, max_cpus=1, gpus=()), True),
        ("smp", Launch(cpus=1, max_cpus=1), False),
        ("smp", Launch(cpus=1, max_cpus=2), True),
        ("cpu-hotplug", Launch(cpus=4, max_cpus=4), False),
        ("cpu-hotplug", Launch(cpus=4, max_cpus=5), True),
        ("x2apic", Launch(max_cpus=255), False),
        ("x2apic", Launch(max_cpus=256), True),
        ("gpu", Launch(gpus=()), False),
        ("gpu", Launch(gpus=("0000:01:00.0",)), True),
        ("q35", Launch(machine="q35"), True),
        ("q35", Launch(machine="pc"), False),
        ("numa", Launch(), False),
        ("numa", Launch(numa=(Node("512M"), Node("512M"))), True),
    ],
)
def test_when(when: str, launch: Launch, expected: bool) -> None:
    assert breached(rule(when=when), {}, launch) is expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('optoin = "EFI"', r"unknown key `require\S*\.optoin`; nearest known key: `option`"),
        ('option = "EFI"\nfragment = "efi"', r"missing required field `without`"),
        ('option = "EFI"\nfragment = "efi"\nwithout = 3', r"Expected `str`, got `int`"),
        (
            'option = "EFI"\nfragment = "efi"\nwithout = ""\nwhen = "gpus"',
            r"EFI: when = 'gpus' is not known\n.*nearest: gpu",
        ),
        ('option = "EFI"\nfragment = "efi"\nwithout = ""\nwhen = "zzz"', r"known: always, smp, cpu-hotplug"),
        (
            'option = "EFI"\nfragment = "efi"\nwithout = ""\nat_least = "max_cpu"',
            r"EFI: at_least = 'max_cpu' is not known\n.*nearest: max_cpus",
        ),
        ('option = "EFI"\nfragment = "efi"\nwithout = ""\nat_least = "memory"', r"at_least = 'memory' is not known"),
        (
            'option = "EFI"\nfragment = "efi"\nwithout = ""\nat_least = 2\nvalue = "y"',
            r"EFI: value and at_least exclude each other",
        ),
        ('option = "CONFIG_EFI"\nfragment = "efi"\nwithout = ""', r"'CONFIG_EFI' begins with CONFIG_\n  remedy: write"),
        (
            'option = "EFI"\nfragment = "efi"\nwithout = ""\ngiven = "CONFIG_A"',
            r"'CONFIG_A' begins with CONFIG_\n  remedy: write it without",
        ),
    ],
)
def test_a_wrong_contract_is_named(tmp_path: Path, row: str, message: str) -> None:
    path = write(tmp_path, row)
    with pytest.raises(UserError, match=message) as caught:
        catalogue.load(tmp_path)
    assert str(caught.value).startswith(str(path))


def test_what_the_user_reads() -> None:
    assert contract.describe([]) == ""
    text = contract.describe(
        [
            Breach("EFI", "y", "n", "efi", "one CPU", "efi-off"),
            Breach("NR_CPUS", "at least 64", "8", "smp", "word " * 40, "cpu-limit"),
        ]
    )
    lines = text.splitlines()
    assert lines[0] == "the kernel's config breaks the contract of this launch in 2 places:"
    assert lines[1] == "  CONFIG_EFI      wanted y            found n  fragment efi, pit efi-off"
    assert lines[2] == "      without it: one CPU"
    assert lines[3] == "  CONFIG_NR_CPUS  wanted at least 64  found 8  fragment smp, pit cpu-limit"
    assert max(map(len, lines)) <= contract.WIDTH
    assert "in 1 place:" in contract.describe([Breach("EFI", "y", "n", "efi", "one CPU", "efi-off")])


# The project's own


def test_the_story_behind_the_project() -> None:
    rules = OWN
    everything = {each.option: "y" for each in rules} | {"NR_CPUS": "64", "SERIAL_8250_RUNTIME_UARTS": "4"}
    assert contract.check(rules, everything, Launch(), "4.12") == []
    (breach,) = contract.check(rules, everything | {"EFI": "n"}, Launch(), "4.12")
    assert (breach.option, breach.wanted, breach.found, breach.fragment) == ("EFI", "y", "n", "efi")
    assert breach.pit == "efi-off"
    assert "SMP disabled" in breach.without
    (breach,) = contract.check(rules, everything | {"NR_CPUS": "8"}, Launch(), "6.12")
    assert breach.wanted == "at least 64"


def test_every_row_names_a_fragment_that_is_there() -> None:
    named = {each.fragment for each in OWN}
    there = {path.name.partition(".")[0].partition("-")[2] for path in (ROOT / "configs" / "kernel").glob("*.config")}
    there |= {f"root/{path.stem}" for path in (ROOT / "configs" / "kernel" / "root").glob("*.config")}
    assert named <= there
