# SPDX-License-Identifier: Apache-2.0
"""Kernels that differ in options: one build a config, of the toy tree."""

from pathlib import Path

import pytest

from minguest.kernel import source, variants
from minguest.paths import Store
from minguest.util.errors import UserError
from tests import ROOT

TREE = ROOT / "tests/data/fakelinux"


@pytest.fixture
def shop(tmp_path: Path) -> variants.Workshop:
    fragment = tmp_path / "20-net.config"
    fragment.write_text("# Packets.\n# One socket.\nCONFIG_PACKET=y\n")
    tree = source.Tree("6.12", "6.12.1", f"own:{source.content(TREE)}", "not verified: a test", ())
    return variants.Workshop(
        source.Prepared(str(TREE), tree),
        (fragment,),
        {"NUMBER": 1},
        Store(tmp_path / "store"),
        tmp_path,
        tmp_path / "log",
    )


def test_a_kernel_is_built_once_for_all_who_want_its_config(shop: variants.Workshop) -> None:
    said: list[str] = []
    one = variants.kernel_with(shop, {"PACKET": False}, said.append)
    assert said == ["kernel with PACKET=n"]
    assert "# CONFIG_PACKET is not set" in (one / "kernel.config").read_text()
    assert "CONFIG_NUMBER=1" in (one / "kernel.config").read_text()
    assert (one / "bzImage").is_file()
    assert variants.kernel_with(shop, {"PACKET": False}, said.append) == one
    assert said == ["kernel with PACKET=n"]
    assert variants.kernel_with(shop, {}, said.append) != one
    assert "packet_init" not in (one / "System.map").read_text()


def test_options_win_over_the_guests_own(shop: variants.Workshop) -> None:
    made = variants.kernel_with(shop, {"NUMBER": 2}, lambda _: None)
    assert "CONFIG_NUMBER=2" in (made / "kernel.config").read_text()


def test_a_fragment_that_is_wrong_is_named(shop: variants.Workshop) -> None:
    shop.fragments[0].write_text("CONFIG_PACKET=perhaps\n")
    with pytest.raises(UserError, match=r"20-net\.config"):
        variants.kernel_with(shop, {}, lambda _: None)
