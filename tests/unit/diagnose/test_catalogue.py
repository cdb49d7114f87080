# SPDX-License-Identifier: Apache-2.0
"""The files of configs/pits/ are read strictly."""

from pathlib import Path

import pytest

from minguest.diagnose import catalogue
from minguest.util.errors import UserError
from tests import ROOT


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('title = "a"\nlayer = "config"\nsymptom = []', "no \\[\\[symptom\\]\\]"),
        ('title = "a"\nlayer = "config"\n[[symptom]]\nconsole = ["x"]', "cause or fix is missing"),
        ('title = "a"\nlayer = "effect"\n[[symptom]]', "an empty"),
        ('title = "a"\nlayer = "effect"\n[[symptom]]\nmissing = ["x"]', "an empty"),
        ('title = "a"\nlayer = "effect"\n[[symptom]]\nunless = ["bars.dead == 0"]', "an empty"),
        ('title = "a"\nlayer = "effect"\n[[symptom]]\nconsole = [".*"]', "would always match"),
        ('title = "a"\nlayer = "effect"\n[[symptom]]\nfacts = ["bars.dead"]', "is not NAME"),
        ('title = "a"\nlayer = "effect"\nleads_to = ["a"]\n[[symptom]]\nconsole = ["x"]', "comes back to itself"),
        (
            'title = "a"\nlayer = "config"\ncause = "b"\nfix = "c"\n[[symptom]]\nconsole = ["x"]',
            "no \\[\\[inject\\]\\]",
        ),
        ('title = "a"\nlayer = "effect"\n[[symptom]]\nconsole = ["("]', r"pattern '\('"),
        ('title = "a"\nlayer = "effect"\n[[symptom]]\nconsole = ["(a)\\\\1"]', "patterns have the syntax of RE2"),
        (
            'title = "a"\nlayer = "effect"\nleads_to = ["b"]\n[[symptom]]\nconsole = ["x"]',
            "leads_to = 'b': no such pit",
        ),
        ('title = "a"\nlayer = "moon"\n[[symptom]]\nconsole = ["x"]', "layer"),
        ('title = "a"\nlayer = "config"\nmend = "c"', "unknown key `mend`; it is called `fix` now"),
        ('title = "a"\nlayer = "config"\n[[dig]]', "unknown key `dig`; it is called `inject` now"),
        (
            'title = "a"\nlayer = "config"\n[[inject]]\nsabotage = ["x"]',
            r"unknown key `inject\[0?\.*\]\.sabotage`; it is called `fault` now",
        ),
        ('title = "a"\nlayer = "config"\n[[inject]]\nlines = ["x"]', r"\.lines`; it is called `series` now"),
        ('title = "a"\nlayer = "config"\n[[require]]\noption="X"\nline = "x"', r"\.line`; it is called `series` now"),
        (
            'title = "a"\nlayer = "effect"\n[[symptom]]\nfacts = ["cpus.online < cpus.asked"]',
            "it is called 'cpus.requested' now",
        ),
        ('titel = "a"\nlayer = "effect"\n[[symptom]]\nconsole = ["x"]', "nearest known key: `title`"),
    ],
)
def test_a_wrong_pit_is_named(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(UserError, match=rf"a\.toml: .*(?s:.*){why}"):
        catalogue.load(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("A valid RSDP was not found", ["A valid RSDP was not found"]),
        (r"CPU limit of \d+ reached", ["CPU limit of N reached"]),
        (r"a|b \(c\) d\b|e\|f", ["a", "b (c) d", "e|f"]),
        (r"pci=(.*,)?off(,.*)?", ["pci=off"]),
        (r"pci \S+: BAR [0-5] \[mem 0x[0-9a-f]+.*\]: no", ["pci …: BAR N [mem 0x…]: no"]),
        (r"maxcpus=[1-9]\d*", ["maxcpus=N"]),
        (r"mem=\d+[KMG]?", ["mem=N"]),
        (r"x (?:a|b (c|d)) nodes?\.", ["x a node.", "x b c node.", "x b d node."]),
    ],
)
def test_a_pattern_as_a_person_reads_it(pattern: str, texts: list[str]) -> None:
    assert sorted(catalogue.gists(pattern)) == sorted(texts)


def test_no_pattern_of_the_catalogue_reads_as_one() -> None:
    for pit in catalogue.load(ROOT / "configs/pits").values():
        for symptom in pit.symptom:
            for pattern in (*symptom.console, *symptom.missing, *symptom.cmdline, *symptom.no_cmdline):
                for gist in catalogue.gists(pattern):
                    assert gist and not set(gist) & set("\\*?{}"), pattern
