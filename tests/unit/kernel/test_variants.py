# SPDX-License-Identifier: Apache-2.0
"""Kernels that differ in options: one build a config, of the toy tree."""

import os
import shutil
from pathlib import Path

import msgspec
import pytest

from minguest.kernel import folders, kbuild, source, variants
from minguest.paths import Store
from minguest.util.errors import ToolError, UserError
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


def test_kernels_of_a_run_begin_with_the_objects_of_the_guests_own(shop: variants.Workshop) -> None:
    scratch = variants.kernel_with(shop, {"PACKET": False}, lambda _: None)
    main, packet = (shop.store.making / f"kept-0/{name}.o" for name in ("init/main", "net/packet/af_packet"))
    said: list[str] = []
    with folders.Objects(shop.store, lambda _: None) as objects:
        series = msgspec.structs.replace(shop, objects=objects)
        assert variants.kernel_with(series, {"PACKET": False}, said.append) == scratch
        assert said == [] and not shop.store.making.joinpath("kept-0").exists()  # nothing had to be built
        variants.kernel_with(series, {"NUMBER": 2}, said.append)
        compiled = main.stat().st_mtime_ns
        assert said == ["kernel with NUMBER=2", "linux 6.12.1: the objects that the next kernels begin with"]
        # What the last kernel left does not count.
        packet.write_bytes(b"")
        shutil.rmtree(scratch)
        again = variants.kernel_with(series, {"PACKET": False}, said.append)
        assert main.stat().st_mtime_ns == compiled and packet.stat().st_size
        assert said[2:] == ["kernel with PACKET=n"]
    assert not main.exists() and list(shop.store.making.glob("[0-9k]*")) == []
    # A bundle's kernel is never one of these.
    assert variants.kernel_with(shop, {"PACKET": False}, lambda _: None) == scratch != again
    for name in kbuild.KEPT:
        assert (again / name).read_bytes() == (scratch / name).read_bytes(), name


def test_a_failure_leaves_the_objects_and_another_tree_does_not(shop: variants.Workshop, tmp_path: Path) -> None:
    copy = tmp_path / "tree"
    shutil.copytree(TREE, copy)
    main = shop.store.making / "kept-0/init/main.o"
    with folders.Objects(shop.store, lambda _: None) as objects:
        series = msgspec.structs.replace(shop, objects=objects, tree=source.Prepared(str(copy), shop.tree.tree))
        source_file = copy / "init/main.c"
        good = source_file.read_text()
        source_file.write_text("not C")
        with pytest.raises(ToolError):
            variants.kernel_with(series, {"NUMBER": 2}, lambda _: None)
        source_file.write_text(good)
        variants.kernel_with(series, {"NUMBER": 2}, lambda _: None)
        compiled = main.stat().st_mtime_ns
        source_file.write_text("not C")  # now newer than its object
        with pytest.raises(ToolError):
            variants.kernel_with(series, {"NUMBER": 3}, lambda _: None)
        source_file.write_text(good)
        os.utime(source_file, (0, 0))
        variants.kernel_with(series, {"NUMBER": 3}, lambda _: None)
        assert main.stat().st_mtime_ns == compiled
        other = msgspec.structs.replace(shop.tree.tree, version="6.12.2")
        series = msgspec.structs.replace(series, tree=source.Prepared(str(copy), other))
        variants.kernel_with(series, {}, lambda _: None)
        assert main.stat().st_mtime_ns != compiled


def test_an_object_of_an_earlier_kernel_need_not_be_linked(shop: variants.Workshop, tmp_path: Path) -> None:
    """As in a folder that kbuild does not enter, for an option that stays on."""
    copy = tmp_path / "tree"
    shutil.copytree(TREE, copy)
    with folders.Objects(shop.store, lambda _: None) as objects:
        series = msgspec.structs.replace(shop, objects=objects, tree=source.Prepared(str(copy), shop.tree.tree))
        variants.kernel_with(series, {"NUMBER": 3}, lambda _: None)
        makefile = copy / "Makefile"
        makefile.write_text(makefile.read_text().replace("OBJECTS += $(O)/net/packet/af_packet.o\n", ""))
        later = variants.kernel_with(series, {"NUMBER": 2}, lambda _: None)
    assert "CONFIG_PACKET=y" in (later / "kernel.config").read_text()
    assert "packet_init" not in (later / "System.map").read_text()


def test_what_nobody_asks_for_is_what_can_be_switched_off(
    shop: variants.Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kconfig in miniature: A is on by itself, PACKET selects B, and C is on where A is."""

    def resolve(_: object, requested: str, *rest: object) -> str:
        asked = "CONFIG_PACKET=y\nCONFIG_B=y\n" if "CONFIG_PACKET=y" in requested else ""
        return asked + ("" if "# CONFIG_A is not set" in requested else "CONFIG_A=y\nCONFIG_C=m\n")

    monkeypatch.setattr(kbuild, "resolve", resolve)
    assert variants.unasked(shop, print) == ["A", "C"]


def test_an_option_that_nobody_asks_for_is_switched_off(
    shop: variants.Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def resolve(_: object, requested: str, *rest: object) -> str:
        asked.append(requested)
        return ""

    monkeypatch.setattr(kbuild, "resolve", resolve)
    variants.without(shop, "A", print)
    assert "# CONFIG_A is not set" in asked[0].splitlines() and "CONFIG_PACKET=y" in asked[0].splitlines()


def test_options_win_over_the_guests_own(shop: variants.Workshop) -> None:
    made = variants.kernel_with(shop, {"NUMBER": 2}, lambda _: None)
    assert "CONFIG_NUMBER=2" in (made / "kernel.config").read_text()


def test_a_fragment_that_is_wrong_is_named(shop: variants.Workshop) -> None:
    shop.fragments[0].write_text("CONFIG_PACKET=perhaps\n")
    with pytest.raises(UserError, match=r"20-net\.config"):
        variants.kernel_with(shop, {}, lambda _: None)
