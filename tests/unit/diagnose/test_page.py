# SPDX-License-Identifier: Apache-2.0
"""docs/pits.md is what the files of configs/pits/ say."""

import re

import msgspec
import pytest

from minguest.diagnose import cases, catalogue, page
from minguest.kernel import contract
from minguest.model import Launch
from tests import ROOT

KNOWN = catalogue.load(ROOT / "configs/pits")
TEXT = page.page(KNOWN, cases.summary(ROOT / "tests/data/public", KNOWN))


def entry(name: str) -> list[str]:
    """The lines of one entry; each item is a line, or a line with indented ones below it."""
    return re.split(r"\n#+ ", TEXT)[[part.split("\n")[0] for part in re.split(r"\n#+ ", TEXT)].index(name)].split("\n")


def test_the_page_is_what_the_files_say() -> None:
    """docs/pits.md is up to date: doit pits-page makes it."""
    assert (ROOT / "docs/pits.md").read_text() == TEXT
    first_screen = "\n".join(TEXT.splitlines()[:30])
    assert "A pit is a known way to fail" in first_screen
    assert "one CPU under OVMF" in first_screen and "CONFIG_EFI" in first_screen
    for line in ("group N is not viable", "can't reserve", "BAR0 is 0M", "RmInitAdapter failed"):
        assert line in first_screen
    for name, pit in KNOWN.items():
        assert pit.layer == "effect" or f"### {name}\n" in TEXT
    # Every link leads somewhere.
    headings = {name.lower().replace(" ", "-") for name in re.findall(r"^##+ (.+)$", TEXT, re.MULTILINE)}
    assert set(re.findall(r"\(#([\w-]+)\)", TEXT)) <= headings


def test_everything_of_a_pit_is_on_the_page() -> None:
    plain = TEXT.replace("`", "")
    for name, pit in KNOWN.items():
        if pit.layer == "effect":
            assert pit.title in TEXT
            continue
        lines = "\n".join(entry(name)).replace("`", "")
        for text in (
            pit.cause,
            pit.fix,
            *pit.stack.values(),
            *pit.printed_by,
            *pit.links,
            *(rule.without for rule in pit.require),
        ):
            assert text.replace("`", "") in lines, name
        for symptom in pit.symptom:
            for pattern in (*symptom.console, *symptom.missing, *symptom.cmdline, *symptom.no_cmdline):
                assert pattern in lines, name
            assert all(text in lines for text in (*symptom.facts, *symptom.unless))
            assert all(gist in plain for pattern in symptom.console for gist in catalogue.gists(pattern))
        for injection in pit.inject:
            changes = (*injection.options, *injection.cmdline, *injection.launch, *injection.plug, *injection.fault)
            assert all(each in lines for each in (*changes, injection.cannot)), name
        assert all(other in lines or KNOWN[other].title in lines for other in pit.leads_to), name


def test_an_entry_comes_in_the_order_in_which_it_is_read() -> None:
    tools = [f"Fix with {name}" for name in catalogue.NAMES.values()]
    order = [
        "What you see",
        "Cause",
        "Fix",
        *tools,
        "Leads to",
        "Links",
        "Printed by",
        "Reproduced by",
        "Not reproduced",
    ]
    for name, pit in KNOWN.items():
        if pit.layer != "effect":
            items = [match[1] for match in map(re.compile(r"- \*\*(.+?):\*\*").match, entry(name)) if match]
            assert items[-1] == ("Patterns" if pit.symptom else "Recognized by")
            assert [each for each in items[:-1] if each not in tools] == [
                each for each in order if each in items and each not in tools
            ]
            assert not set(items[:-1]) - set(order)
            assert {"Cause", "Fix"} <= set(items)
    # Patterns stand nowhere else.
    for line in TEXT.splitlines():
        if not re.search(
            r"\*\*Patterns|^  - (console|not on the console|not in the log|not followed|command line|boot test|config)",
            line,
        ):
            assert not re.search(r"\\[dSwb]|[^*]\.\*[^*]|\.\+|\[0-9", line), line


@pytest.mark.parametrize(
    ("title", "cmdline", "wanted"),
    [
        ("the kernel was built without CONFIG_EFI", "", "The kernel was built without CONFIG_EFI"),
        ("no GPU is attached", "", "No GPU is attached"),
        ("a BAR has no address", "pci=nocrs", "A BAR has no address"),
        ("acpi=off is on the command line", "acpi=off", "acpi=off is on the command line"),
        ("root= names a file system that is not there", "", "root= names a file system that is not there"),
        ("nr_cpus= is on the command line", r"nr_cpus=\d+", "nr_cpus= is on the command line"),
        ("noapic is on the command line", "noapic", "noapic is on the command line"),
        ("nolapic or disableapic is there", "nolapic|disableapic", "nolapic or disableapic is there"),
        ("/init cannot be run", "", "/init cannot be run"),
        ("-smp is missing", "", "-smp is missing"),
        ("domain.xml is missing", "", "domain.xml is missing"),
        ("run-guest is missing", "", "run-guest is missing"),
    ],
)
def test_a_title_that_begins_with_a_name_keeps_its_letters(title: str, cmdline: str, wanted: str) -> None:
    symptom = catalogue.Symptom(cmdline=(cmdline,) if cmdline else ())
    assert page.sentence(catalogue.Pit(title, "cmdline", (symptom,))) == wanted


def test_no_parameter_of_the_catalogue_gets_a_capital() -> None:
    wrong = re.findall(r"^\*\*`?(?:Acpi|Pci|Noapic|Nolapic|Nosmp|Maxcpus|Nr_cpus|Mem|Numa|Root)=?\b.*", TEXT, re.M)
    assert not wrong


def test_a_row_of_the_contract_says_for_which_launch_it_is() -> None:
    assert page.WHEN.keys() == contract.needs(Launch()).keys()
    assert "and the launch has more than one CPU" in "".join(entry("smp-off"))
    rule = contract.Rule("X", "base", "y", when="gpu", at_least=4, given="Z", series="6.12")
    pit = msgspec.structs.replace(KNOWN["smp-off"], symptom=(), require=(rule,))
    line = page.page({**KNOWN, "smp-off": pit})
    assert "`CONFIG_X` is below 4, and `CONFIG_Z` is on, and the launch has a GPU, in series 6.12\n" in line


def test_what_only_doctor_knows_is_said_to_be_its() -> None:
    for condition, known_to in (("cmdline.mem < memory.requested", "doctor"), ("cpus.online == 1", "boot test")):
        pit = msgspec.structs.replace(KNOWN["smp-off"], symptom=(catalogue.Symptom(facts=(condition,)),), require=())
        assert f"{known_to} `{condition}`" in page.page({**KNOWN, "smp-off": pit})
