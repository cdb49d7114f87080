# SPDX-License-Identifier: Apache-2.0
"""Fragments, their merge, and what became of each request: every mistake is named with its place and its fix."""

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minguest.kernel import kconfig
from minguest.kernel.kconfig import Option
from minguest.util.errors import UserError
from tests import ROOT

TREE = ROOT / "tests" / "data" / "kconfig" / "tree"

GOOD = """\
# SPDX-License-Identifier: Apache-2.0
# UEFI, and what it needs.
# Two lines of concern.

# The system table is where the RSDP is;
# off, one CPU.
CONFIG_EFI=y
CONFIG_EFI_STUB=y
# Nobody mounts it.
# CONFIG_EFIVAR_FS is not set

# A heading that is nobody's reason.

# So many.
CONFIG_NR_CPUS=64
# Where it lies.
CONFIG_PHYSICAL_START=0x1000000
# A name with "quotes".
CONFIG_LOCALVERSION="-a \\"b\\""
"""


def option(name: str, value: str, fragment: str = "20-efi.config", line: int = 1) -> Option:
    return Option(name, value, fragment, line, "because")


def requests(*options: Option) -> dict[str, Option]:
    return {each.name: each for each in options}


# Fragments


def test_a_fragment() -> None:
    fragment = kconfig.parse_fragment(GOOD, "20-efi.config")
    assert fragment.concern == "UEFI, and what it needs.\nTwo lines of concern."
    assert [(each.name, each.value, each.line, each.reason) for each in fragment.options] == [
        ("EFI", "y", 7, "The system table is where the RSDP is;\noff, one CPU."),
        ("EFI_STUB", "y", 8, "The system table is where the RSDP is;\noff, one CPU."),
        ("EFIVAR_FS", "n", 10, "Nobody mounts it."),
        ("NR_CPUS", "64", 15, "So many."),
        ("PHYSICAL_START", "0x1000000", 17, "Where it lies."),
        ("LOCALVERSION", '"-a \\"b\\""', 19, 'A name with "quotes".'),
    ]
    assert fragment.options[0].place == "20-efi.config:7"


def test_a_comment_right_above_the_first_option_is_its_reason_and_no_concern() -> None:
    fragment = kconfig.parse_fragment("# SPDX-License-Identifier: X\n# Why.\nCONFIG_A=m\n\n# b\n\n", "a")
    assert (fragment.concern, fragment.options[0].reason) == ("", "Why.")


@pytest.mark.parametrize(
    ("line", "what", "remedy"),
    [
        ("EFI=y", "'EFI=y' does not set an option", "write exactly: CONFIG_EFI=y"),
        ("CONFIG_EFI = y", "'CONFIG_EFI = y' does not set an option", "write exactly: CONFIG_EFI=y"),
        ("CONFIG_EFI=yes", "'yes' is not a value of an option", "write y, m, n, a number"),
        ("CONFIG_EFI=y # why", "'y # why' is not a value of an option", "and nothing after it"),
        ('CONFIG_S="a', "'\"a' is not a value of an option", "in double quotes"),
        ("CONFIG_EFI", "'CONFIG_EFI' is neither an option nor a comment", "write CONFIG_X=value"),
        ("#CONFIG_EFI is not set", "is a comment for Kconfig", "write exactly: # CONFIG_EFI is not set"),
        ("# CONFIG_EFI is not set.", "is a comment for Kconfig", "write exactly: # CONFIG_EFI is not set"),
        ("# Config_EFI Is Not Set", "is a comment for Kconfig", "write exactly: # CONFIG_EFI is not set"),
    ],
)
def test_a_wrong_line_is_named(line: str, what: str, remedy: str) -> None:
    with pytest.raises(UserError) as caught:
        kconfig.parse_fragment(f"# Why.\n{line}\n", "configs/kernel/20-efi.config")
    assert caught.value.message.startswith("configs/kernel/20-efi.config:2: ")
    assert what in caught.value.message
    assert remedy in caught.value.remedy


def test_an_option_twice_in_a_file() -> None:
    with pytest.raises(UserError, match=r"f:3: CONFIG_A=n: set twice, first in line 2 to y\n  remedy: remove one"):
        kconfig.parse_fragment("# Why.\nCONFIG_A=y\n# CONFIG_A is not set\n", "f")


@pytest.mark.parametrize(
    "text", ["CONFIG_A=y\n", "# Concern.\n\nCONFIG_A=y\n", "# Why.\n\nCONFIG_A=y\n", "#\n#\nCONFIG_A=y\n"]
)
def test_an_option_without_a_reason(text: str) -> None:
    with pytest.raises(UserError, match=r"f:\d: CONFIG_A=y has no reason\n  remedy: write a comment directly above it"):
        kconfig.parse_fragment(text, "f")


def test_all_problems_of_all_files_are_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.config").write_text("CONFIG_A=y\nCONFIG_B=maybe\n")
    (tmp_path / "b.config").write_bytes(b"\xff")
    with pytest.raises(UserError) as caught:
        kconfig.read([tmp_path / "a.config", tmp_path / "b.config", tmp_path / "c.config"], tmp_path)
    text = str(caught.value)
    assert text.startswith("4 things to fix in the kernel's options:")
    for part in ("a.config:1: CONFIG_A=y has no reason", "a.config:2: ", "b.config: cannot be", "c.config: cannot be"):
        assert part in text
    assert text.count("remedy: ") == 4


# Merge


def fragment(name: str, text: str) -> kconfig.Fragment:
    return kconfig.parse_fragment(f"# Why.\n{text}\n", name)


def test_duplicates_and_conflicts_are_reported_at_once_with_both_places() -> None:
    with pytest.raises(UserError) as caught:
        kconfig.merge([fragment("a", "CONFIG_A=y\nCONFIG_B=y"), fragment("b", "CONFIG_A=y\n# CONFIG_B is not set")])
    text = str(caught.value)
    assert "b:2: CONFIG_A=y is a duplicate of a:2" in text
    assert "b:3: CONFIG_B=n is a conflict: a:3 requests y" in text


@pytest.mark.parametrize(
    ("value", "spelled"),
    [(True, "y"), (False, "n"), (64, "64"), ("m", "m"), ("0xFF", "0xFF"), ("-x", '"-x"'), ('a"\\', '"a\\"\\\\"')],
)
def test_an_override_wins_and_says_so(value: str | int | bool, spelled: str) -> None:
    merged = kconfig.merge([fragment("a", "CONFIG_A=y")], {"A": value, "B": 1}, "configs/guest.toml")
    assert merged["A"] == Option("A", spelled, "configs/guest.toml", 0, "overrides a:2")
    assert merged["A"].place == "configs/guest.toml"
    assert merged["B"].reason == "override"


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("CONFIG_A", True, "write it without CONFIG_"),
        ("A B", True, "not the name of an option"),
        ("A", "x\nCONFIG_B=y", "a value with a line break"),
    ],
)
def test_a_wrong_override(name: str, value: str | bool, what: str) -> None:
    with pytest.raises(UserError, match=f"g.toml: options.{name}: ") as caught:
        kconfig.merge([], {name: value}, "g.toml")
    assert what in str(caught.value)


# Which fragments


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "configs" / "kernel"
    found.mkdir(parents=True)
    for name in ("100-late", "20-efi", "60-hotplug", "60-hotplug.4.12", "70-new.6.12"):
        (found / f"{name}.config").touch()
    (tmp_path / "mine").mkdir()
    for name in ("extra", "5-own.6.12", "20-efi"):
        (tmp_path / "mine" / f"{name}.config").touch()
    return found


@pytest.mark.parametrize(
    ("globs", "line", "names"),
    [
        (["*"], "4.12", ["20-efi", "60-hotplug", "60-hotplug.4.12", "100-late"]),
        (["*"], "6.12", ["20-efi", "60-hotplug", "70-new.6.12", "100-late"]),
        (["hotplug", "20-efi"], "6.12", ["20-efi", "60-hotplug"]),
        (["[26]0-*", "efi"], "6.12", ["20-efi", "60-hotplug"]),
        (["new"], "4.12", []),
        (["mine/extra.config", "efi", "mine/extra.config"], "4.12", ["20-efi", "extra"]),
        (["mine/5-own.6.12.config", "efi"], "4.12", ["20-efi"]),
        (["mine/5-own.6.12.config", "efi"], "6.12", ["20-efi", "5-own.6.12"]),
        (["efi", "configs/kernel/20-efi.config"], "4.12", ["20-efi"]),
    ],
)
def test_select(folder: Path, globs: list[str], line: str, names: list[str]) -> None:
    found = kconfig.select(folder, globs, line, folder.parents[1])
    assert [path.name.removesuffix(".config") for path in found] == names


def test_globs_that_match_nothing_are_reported_with_the_nearest(folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        kconfig.select(folder, ["hotplg", "mine/extr.config", "zzz"], "4.12", folder.parents[1])
    text = str(caught.value)
    assert "'hotplg' matches no fragment\n    remedy: nearest: hotplug" in text
    assert "'mine/extr.config' matches no fragment\n    remedy: nearest: mine/extra.config" in text
    assert "'zzz' matches no fragment\n    remedy: there are: 100-late, 20-efi" in text


@pytest.mark.parametrize("name", ["efi.config", "60-hotplug.412.config", "60-hot plug.config"])
def test_a_file_that_no_line_would_ever_take(folder: Path, name: str) -> None:
    (folder / name).touch()
    with pytest.raises(UserError, match=r"not a fragment's name\n  remedy: name it NN-name.config"):
        kconfig.select(folder, ["*"], "4.12", folder.parents[1])


# The final config


def test_parse_config() -> None:
    text = '#\n# Linux/x86\n#\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C="a # \\" b"\nCONFIG_D=0x10\nCONFIG_E=-3\n'
    assert kconfig.parse_config(text) == {"A": "y", "B": "n", "C": '"a # \\" b"', "D": "0x10", "E": "-3"}


@pytest.mark.parametrize(
    ("wanted", "config", "found"),
    [
        ("y", "", "n"),
        ("y", "# CONFIG_A is not set", "n"),
        ("y", "CONFIG_A=m", "m"),
        ("m", "CONFIG_A=y", "y"),
        ("n", "CONFIG_A=y", "y"),
        ("n", "CONFIG_A=m", "m"),
        ("64", "CONFIG_A=8", "8"),
        ("64", 'CONFIG_A="64"', '"64"'),
        ("16", "CONFIG_A=0x10", "0x10"),
        ("0x10", "CONFIG_A=0x11", "0x11"),
        ('"a"', 'CONFIG_A="A"', '"A"'),
        ('""', "", "n"),
    ],
)
def test_unmet(wanted: str, config: str, found: str) -> None:
    requested = option("A", wanted)
    assert kconfig.unmet(requests(requested), kconfig.parse_config(config)) == [kconfig.Unmet(requested, found)]


@pytest.mark.parametrize(
    ("wanted", "config"),
    [
        ("n", ""),
        ("n", "# CONFIG_A is not set"),
        ("y", "CONFIG_A=y"),
        ("0x0Ff", "CONFIG_A=0xFF"),
        ("064", "CONFIG_A=64"),
        ('"a b"', 'CONFIG_A="a b"'),
    ],
)
def test_met(wanted: str, config: str) -> None:
    assert kconfig.unmet(requests(option("A", wanted)), kconfig.parse_config(config)) == []


def test_describe() -> None:
    dropped = [kconfig.Unmet(Option("STUB", "y", "20-efi.config", 9, "Two\nlines."), "n")]
    assert kconfig.describe(dropped) == "CONFIG_STUB: requested y, got n (20-efi.config:9: Two lines.)"
    assert kconfig.describe(dropped, {"STUB": "STUB needs EFI=y (is n)\n  EFI can be set"}).splitlines()[1:] == [
        "  STUB needs EFI=y (is n)",
        "    EFI can be set",
    ]


names = st.text(string.ascii_uppercase + string.digits + "_", min_size=1)
values = st.one_of(
    st.sampled_from("ymn"),
    st.integers().map(str),
    st.integers(0).map(hex),
    # What a guest's file may hold, with what only Unicode takes for the end of a line.
    st.text(string.ascii_letters + string.punctuation + " \tä€\x0b\x85\u2028").map(kconfig.spell),
)


@given(st.dictionaries(names, values))
def test_what_is_rendered_is_read_back(config: dict[str, str]) -> None:
    requested = requests(*(Option(name, value, "f", n, "r") for n, (name, value) in enumerate(config.items())))
    text = kconfig.render(requested)
    assert kconfig.parse_config(text) == config
    assert kconfig.unmet(requested, kconfig.parse_config(text)) == []
    # It is a fragment too: each option's reason is the place that it comes from.
    again = kconfig.parse_fragment(text, "merged")
    assert {each.name: (each.value, each.reason) for each in again.options} == {
        each.name: (each.value, each.place) for each in requested.values()
    }


def test_render() -> None:
    requested = requests(option("A", "n", "a", 3), option("B", "64", "guest.toml", 0))
    assert kconfig.render(requested) == "# a:3\n# CONFIG_A is not set\n\n# guest.toml\nCONFIG_B=64\n\n"


# What a tree knows


def test_known_symbols_are_those_of_an_x86_build() -> None:
    found = kconfig.known_symbols(TREE)
    assert {"MODULES", "X86", "DRIVERS", "CARD", "PACK_B"} <= found
    assert "FIRMWIRE" not in found  # arch/arm
    assert "files" not in found  # "config files tell more" in a help text
    assert len(found) == 24


@pytest.mark.parametrize(
    "spelling", ['"arch/$SRCARCH/Kconfig"', "arch/$(SRCARCH)/Kconfig", "'arch/$(SRCARCH)/Kconfig'"]
)
def test_spellings_of_source(tmp_path: Path, spelling: str) -> None:
    (tmp_path / "arch" / "x86").mkdir(parents=True)
    (tmp_path / "arch" / "x86" / "Kconfig").write_text("config A\n  bool\n")
    (tmp_path / "Kconfig").write_text(f"source {spelling}\nsource nowhere\nsource arch\n")
    assert kconfig.known_symbols(tmp_path) == {"A"}


def test_no_kernel_tree(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a kernel tree: it has no Kconfig"):
        kconfig.known_symbols(tmp_path)


def test_unknown_options() -> None:
    requested = requests(
        option("EFI", "y"),
        option("EFII", "y", "configs/kernel/20-efi.config", 5),
        option("MEMCG_V9", "n", "configs/kernel/60-mem.config", 7),
        option("SLUB", "y", "guest.toml", 0),
        option("QQQQQQQQ", "y", "a", 1),
    )
    found = kconfig.unknown(requested, "4.12", frozenset({"EFI", "EXT4"}), {"6.12": frozenset({"MEMCG_V9", "SLUB"})})
    assert [(each.what, each.remedy) for each in found] == [
        ("configs/kernel/20-efi.config:5: linux 4.12 has no CONFIG_EFII", "nearest: CONFIG_EFI"),
        (
            "configs/kernel/60-mem.config:7: linux 4.12 has no CONFIG_MEMCG_V9",
            "only linux 6.12 has it: move it to configs/kernel/60-mem.6.12.config",
        ),
        (
            "guest.toml: linux 4.12 has no CONFIG_SLUB",
            "only linux 6.12 has it: remove it from guest.toml for other series",
        ),
        ("a:1: linux 4.12 has no CONFIG_QQQQQQQQ", "remove it: no option has a similar name"),
    ]
    with pytest.raises(UserError, match="4 things to fix"):
        kconfig.refuse(found)
    kconfig.refuse([])


# The project's own


@pytest.mark.parametrize("line", ["4.12", "6.12"])
def test_the_projects_fragments_merge(line: str) -> None:
    paths = kconfig.select(ROOT / "configs" / "kernel", ["*"], line, ROOT)
    fragments = kconfig.read(paths, ROOT)
    assert all(each.concern for each in fragments)
    assert kconfig.merge(fragments)["EFI"].value == "y"


def test_blanks_around_a_line_do_not_matter() -> None:
    text = ' CONFIG_A=y\t\n\t# CONFIG_B is not set \r\nCONFIG_C="a \\" b"  \n  # CONFIG_D=y\nCONFIG_E=y x\n'
    assert kconfig.parse_config(text) == {"A": "y", "B": "n", "C": '"a \\" b"'}
    # A string ends in its line.
    assert kconfig.parse_config('CONFIG_A="\nCONFIG_B="\n') == {}


def test_the_built_in_command_line() -> None:
    config = kconfig.parse_config('CONFIG_CMDLINE_BOOL=y\nCONFIG_CMDLINE="a  b=\\"c d\\""\nCONFIG_CMDLINE_OVERRIDE=y\n')
    assert kconfig.command_line(config) == kconfig.CommandLine('a b="c d"', True)
    assert kconfig.command_line({"CMDLINE": '"a"'}) == kconfig.CommandLine("", False)
    assert kconfig.command_line({"CMDLINE_BOOL": "y"}) == kconfig.CommandLine("", False)


def test_a_fragment_by_its_path_brings_the_one_of_its_series(tmp_path: Path) -> None:
    names = ["10-base.config", "more/own.config", "more/own.6.12.config", "more/own.4.12.config"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("CONFIG_A=y\n")
    for series in ("6.12", "4.12", "5.10"):
        found = kconfig.select(tmp_path, ["*", "more/own.config"], series, tmp_path)
        own = [f"more/own.{series}.config"] * (series != "5.10")
        assert [str(path.relative_to(tmp_path)) for path in found] == ["10-base.config", "more/own.config", *own]
    both = kconfig.select(tmp_path, ["more/own.config", "more/own.6.12.config"], "6.12", tmp_path)
    assert [path.name for path in both] == ["own.config", "own.6.12.config"]
