# SPDX-License-Identifier: Apache-2.0
"""docs/pits.md is what the files of configs/pits/ say."""

import re

from minguest.diagnose import catalogue, page
from tests import ROOT


def test_the_page_is_what_the_files_say() -> None:
    """docs/pits.md is up to date: doit pits-page makes it."""
    known = catalogue.load(ROOT / "configs/pits")
    text = page.page(known)
    assert (ROOT / "docs/pits.md").read_text() == text
    first_screen = "\n".join(text.splitlines()[:12])
    assert "one CPU under OVMF" in first_screen and "CONFIG_EFI" in first_screen
    for name, pit in known.items():
        assert pit.layer == "effect" or f"### {name}\n" in text
    # Every link leads somewhere.
    assert set(re.findall(r"\(#([\w-]+)\)", text)) <= set(re.findall(r"^### ([\w-]+)$", text, re.MULTILINE))
