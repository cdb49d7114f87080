# SPDX-License-Identifier: Apache-2.0
"""A dropped option is explained down to its roots, and nothing is left behind by asking."""

import os
from pathlib import Path

import pytest

from minguest.kernel import explain
from minguest.util.errors import ToolError
from tests import ROOT

TREE = ROOT / "tests/data" / "kconfig" / "tree"
BROKEN = TREE.with_name("broken")

BARE = """\
CONFIG_X86=y
CONFIG_HAVE_BUS=y
CONFIG_CPUS=8
CONFIG_PACK_A=y
# CONFIG_PACK_B is not set
CONFIG_DRIVERS=y
CONFIG_SCREEN=y
"""
RICH = """\
CONFIG_MODULES=y
CONFIG_X86=y
CONFIG_HAVE_BUS=y
CONFIG_BUS=y
CONFIG_BIG=y
CONFIG_HAVE_MORE=y
CONFIG_TABLES=y
CONFIG_TINY=y
CONFIG_CPUS=8
CONFIG_PACK_A=y
CONFIG_DRIVERS=m
CONFIG_CARD=m
CONFIG_HELPER=m
"""

# Option, and what the whole explanation must be.
BARE_ANSWERS = {
    "STUB": [
        "STUB needs FIRMWARE=y (is n)",
        "  FIRMWARE needs TABLES=y (is n)",
        "    TABLES needs BUS=y (is n)",
        "      BUS can be set: its dependencies are met",
    ],
    # OTHER_ARCH_BUS is not named: this tree does not define it.
    "CARD": [
        "CARD needs one of BUS=y (is n), (TABLES=y (is n) and BIG=y (is n))",
        "  BUS can be set: its dependencies are met",
        "  TABLES needs BUS=y (is n)",
        "  BIG needs BUS=y (is n)",
    ],
    "FAR": [
        "FAR needs HAVE_MORE=y (is n) and CPUS > 16 (CPUS is 8)",
        "  HAVE_MORE cannot be set (it has no prompt): it is selected by BIG (is n)",
    ],
    "MAGIC": [
        "MAGIC needs CC_HAS_MAGIC=y (is n)",
        "  CC_HAS_MAGIC cannot be set (it has no prompt): its default sets it with a test of the compiler or another "
        "tool, which failed here (or the tree sets a plain n)",
    ],
    "SCREEN": ["SCREEN is y by default, and can only be set with EXPERT=y (is n)"],
    "X86": ["X86 cannot be set (it has no prompt): y is its default"],
    "HAVE_BUS": ["HAVE_BUS is y: selected by X86 (is y)"],
    "PACK_B": ["PACK_B is one of a choice, and PACK_A is selected: unset that"],
    "CPUS": ["CPUS is 8; allowed here: 1 to 64"],
    "DRIVERS": ["DRIVERS is y, not m: m needs MODULES=y (is n)"],
    "TINY": ["TINY can be set: its dependencies are met"],
    "NOPE": ["NOPE is not in this tree"],
    # Named in an expression, but never defined.
    "OTHER_ARCH_BUS": ["OTHER_ARCH_BUS is not in this tree"],
    # Another architecture's.
    "FIRMWIRE": ["FIRMWIRE is not in this tree"],
}
RICH_ANSWERS = {
    "STUB": ["STUB needs FIRMWARE=y (is n)", "  FIRMWARE needs TINY=n (is y)"],
    "CARD": ["CARD is held at m by DRIVERS=y (is m)"],
    "LONELY": ["LONELY needs TINY=n (is y) and BIG=n (is y)"],
    "PAIR": ["PAIR needs one of TINY=n (is y), BIG=n (is y)"],
    "SCREEN": [
        "SCREEN can only be set with EXPERT=y (is n); its default is used until then",
        "  EXPERT can be set: its dependencies are met",
    ],
    "CPUS": ["CPUS can only be set with BIG=n (is y); its default is used until then"],
    "TINY": ["TINY is y by default or by another request; nothing selects it, so it can be unset"],
}


@pytest.fixture(scope="module")
def bare() -> dict[str, str]:
    return explain.explain_all(TREE, BARE, BARE_ANSWERS)


@pytest.fixture(scope="module")
def rich() -> dict[str, str]:
    return explain.explain_all(TREE, RICH, RICH_ANSWERS)


@pytest.mark.parametrize("option", BARE_ANSWERS)
def test_of_a_bare_config(bare: dict[str, str], option: str) -> None:
    assert bare[option].splitlines() == BARE_ANSWERS[option]


@pytest.mark.parametrize("option", RICH_ANSWERS)
def test_of_a_rich_config(rich: dict[str, str], option: str) -> None:
    assert rich[option].splitlines() == RICH_ANSWERS[option]


def test_values_come_from_the_config_and_not_from_kconfiglib() -> None:
    # Kconfig itself would make X86 y and so HAVE_BUS too; the config given says otherwise and is believed.
    assert explain.explain(TREE, "", "BUS").splitlines()[0] == "BUS needs HAVE_BUS=y (is n)"


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = (dict(os.environ), sorted(TREE.rglob("*")))
    explain.explain(TREE, BARE, "STUB")  # the tree's top file runs `touch left-behind`
    assert list(tmp_path.iterdir()) == []
    assert (dict(os.environ), sorted(TREE.rglob("*"))) == before


def test_a_relative_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TREE.parent)
    assert explain.explain(Path("tree"), BARE, "NOPE") == "NOPE is not in this tree"


def test_a_tree_that_cannot_be_read_is_no_exception() -> None:
    answer = explain.explain(BROKEN, BARE, "A")
    assert answer.startswith(f"not explained: kconfiglib cannot read {BROKEN}: ")
    assert "gibberish" in answer
    assert explain.explain(TREE / "nowhere", "", "A").startswith("not explained: ")


def test_a_tree_that_takes_too_long_is_no_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "DEADLINE", 0.01)
    assert "not done after 0.01 s" in explain.explain(TREE, BARE, "STUB")


def test_nothing_requested_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "run", None)
    assert explain.explain_all(TREE, BARE, []) == {}


def test_a_long_explanation_is_cut(tmp_path: Path) -> None:
    links = (
        f'config A{n}\n\tbool "a"\n\tdepends on A{n + 1} && B{n} && C{n}\n'
        f'config B{n}\n\tbool "b"\nconfig C{n}\n\tbool "c"\n'
        for n in range(40)
    )
    (tmp_path / "Kconfig").write_text("".join(links) + 'config A40\n\tbool "last"\n')
    lines = explain.explain(tmp_path, "", "A0").splitlines()
    assert lines[0] == "A0 needs A1=y (is n) and B0=y (is n) and C0=y (is n)"
    assert len(lines) == explain.LINES
    assert lines[-1] == "… and 7 more"


def test_what_else_has_to_change_so_that_an_option_can_be_on() -> None:
    found = explain.needed(TREE, BARE, ["STUB", "CARD", "TINY", "NOPE"])
    assert found == {
        "STUB": {"FIRMWARE": "y", "TABLES": "y", "BUS": "y"},
        "CARD": {"BUS": "y"},  # the shortest of the ways
        "TINY": {},
        "NOPE": {},
    }
    # An option that is in the way has to go.
    assert explain.needed(TREE, RICH, ["LONELY"])["LONELY"] == {"TINY": "n", "BIG": "n"}
    assert explain.needed(TREE, RICH, []) == {}


def test_a_tree_that_cannot_be_read_gives_no_needs() -> None:
    with pytest.raises(ToolError, match="kconfiglib cannot read"):
        explain.needed(BROKEN, BARE, ["A"])
