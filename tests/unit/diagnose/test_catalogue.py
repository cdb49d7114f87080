# SPDX-License-Identifier: Apache-2.0
"""The files of configs/pits/ are read strictly."""

from pathlib import Path

import pytest

from minguest.diagnose import catalogue
from minguest.util.errors import UserError


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('title = "a"\nlayer = "config"\nsymptom = []', "no \\[\\[symptom\\]\\]"),
        ('title = "a"\nlayer = "config"\n[[symptom]]\nconsole = ["x"]', "cause or fix is missing"),
        ('title = "a"\nlayer = "effect"\n[[symptom]]', "an empty"),
        ('title = "a"\nlayer = "effect"\n[[symptom]]\nmissing = ["x"]', "an empty"),
        ('title = "a"\nlayer = "effect"\n[[symptom]]\nunless = ["bars.dead == 0"]', "an empty"),
        ('title = "a"\nlayer = "effect"\n[[symptom]]\nconsole = [".*"]', "would always be there"),
        ('title = "a"\nlayer = "effect"\n[[symptom]]\nfacts = ["bars.dead"]', "is not NAME"),
        ('title = "a"\nlayer = "effect"\nleads_to = ["a"]\n[[symptom]]\nconsole = ["x"]', "comes back to itself"),
        (
            'title = "a"\nlayer = "config"\ncause = "b"\nfix = "c"\n[[symptom]]\nconsole = ["x"]',
            "no \\[\\[inject\\]\\]",
        ),
        ('title = "a"\nlayer = "effect"\n[[symptom]]\nconsole = ["("]', r"pattern '\('"),
        ('title = "a"\nlayer = "effect"\n[[symptom]]\nconsole = ["(a)\\\\1"]', "patterns are RE2's"),
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
