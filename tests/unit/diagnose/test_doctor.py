# SPDX-License-Identifier: Apache-2.0
"""What is known of a kernel before its first boot, and how sure that is."""

import msgspec
import pytest

from minguest.diagnose import catalogue, doctor
from minguest.kernel import kconfig
from minguest.kernel.image import Image
from minguest.model import Launch
from tests import ROOT

PITS = catalogue.load(ROOT / "configs/pits")
WHOLE = frozenset(doctor.look_for())


def image(**fields: object) -> Image:
    made = Image(
        kind="vmlinux", path="vmlinux", size=1, wrapped_in="", version="6.1.0 (a@b) #1 SMP", bzimage=None,
        compression=None, opened=True, closed_because="", config=None, symbols=None, strings=WHOLE,
    )  # fmt: skip
    return msgspec.structs.replace(made, **fields)


def options(found: list[doctor.Finding], sure: str) -> list[str]:
    return [each.option for each in found if each.sure == sure]


def test_a_config_decides() -> None:
    config = kconfig.parse_config("CONFIG_64BIT=y\nCONFIG_SMP=y\nCONFIG_NR_CPUS=8\n# CONFIG_EFI is not set\n")
    found = doctor.examine(image(config=config), None, PITS, Launch(cpus=8, max_cpus=8))
    assert "EFI" in options(found, "certain")
    assert "NR_CPUS" not in options(found, "certain")
    assert not options(found, "likely") and not options(found, "not known")
    assert "NR_CPUS" in options(doctor.examine(image(config=config), None, PITS, Launch(max_cpus=9)), "certain")
    # A config that is passed takes precedence over the image's own.
    given = {**config, "EFI": "y"}
    assert "EFI" not in options(doctor.examine(image(config=config), given, PITS, Launch()), "certain")


@pytest.mark.parametrize("option", sorted(doctor.STRINGS))
def test_without_a_config_the_messages_decide(option: str) -> None:
    found = doctor.examine(image(strings=WHOLE - set(doctor.STRINGS[option])), None, PITS, Launch())
    assert options(found, "likely") == [option]
    assert options(found, "certain") == []
    for message in doctor.STRINGS[option]:
        one = WHOLE - set(doctor.STRINGS[option]) | {message}
        assert options(doctor.examine(image(strings=one), None, PITS, Launch()), "likely") == []


def test_what_is_not_known_is_not_guessed() -> None:
    found = doctor.examine(image(), None, PITS, Launch())
    assert {each.sure for each in found} == {"not known"}
    assert "NR_CPUS" in options(found, "not known")
    text = doctor.describe(image(), found)
    assert "nothing wrong was found in what is known" in text and "--config FILE" in text
    closed = image(opened=False, closed_because="lz4: the program lz4 is not installed", strings=frozenset())
    found = doctor.examine(closed, None, PITS, Launch())
    assert not options(found, "likely")
    assert "lz4 is not installed" in doctor.describe(closed, found)


def test_what_is_wrong_comes_with_what_happens_at_boot() -> None:
    config = {rule.option: rule.value or "y" for rule in catalogue.rules(PITS)} | {
        "NR_CPUS": "64",
        "SERIAL_8250_RUNTIME_UARTS": "4",
    }
    assert doctor.describe(image(), doctor.examine(image(), config, PITS, Launch())).endswith("nothing wrong was found")
    found = doctor.examine(image(), {**config, "EFI": "n"}, PITS, Launch())
    text = doctor.describe(image(), found)
    assert "certain: efi-off: CONFIG_EFI is n, wanted y" in text and "A valid RSDP was not found" in text


def test_a_fault_of_the_launch_is_found_too() -> None:
    found = doctor.examine(image(), {}, PITS, Launch(), {"memory.requested": 64 << 20})
    assert [each.why for each in found if each.pit == "memory-too-little"] == ["memory.requested is 67108864"]
    found = doctor.examine(image(), {}, PITS, Launch(), {"memory.requested": 128 << 20})
    assert "memory-too-little" not in [each.pit for each in found]
