# SPDX-License-Identifier: Apache-2.0
"""Kernels that differ: one build a config, none that is believed and wrong. Compiling needs a kernel's tree."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from minguest import kernel, source, variants
from minguest.errors import ToolError


class Made:
    """Stands in for make: counts, and writes what make would."""

    def __init__(self) -> None:
        self.configured: list[Mapping[str, Any]] = []
        self.built: list[str] = []
        self.fails = False

    def configure(self, tree: Path, line: str, fragments: Any, options: Any, *more: Any, **words: Any) -> None:
        self.configured.append(dict(options))
        target: Path = more[2]
        (target / "work").mkdir(parents=True)
        (target / "kernel.config").write_text("".join(f"CONFIG_{k}={v}\n" for k, v in options.items() if v))

    def build(self, tree: Path, config: Path, out: Path, **words: Any) -> None:
        self.built.append(config.read_text())
        assert (out / "vmlinux.o").read_text() == "the guest's own object"
        if self.fails:
            raise ToolError("make: exit status 2")
        kernel.image(out).parent.mkdir(parents=True)
        kernel.image(out).write_text(f"image of {config.read_text()}")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    found = Made()
    monkeypatch.setattr(kernel, "configure", found.configure)
    monkeypatch.setattr(kernel, "build", found.build)
    monkeypatch.setattr(source, "compiler_tools", lambda: {"gcc": "12"})
    return found


@pytest.fixture
def shop(tmp_path: Path) -> variants.Workshop:
    tree, built = tmp_path / "tree", tmp_path / "built"
    for folder in (tree, built):
        folder.mkdir()
    (tree / source.STAMP).write_bytes(msgspec.json.encode(source.Tree("6.12", "6.12.94", "sha256:a", "not", ())))
    (built / "vmlinux.o").write_text("the guest's own object")
    fragment = tmp_path / "20-efi.config"
    fragment.write_text("CONFIG_EFI=y\n")
    return variants.Workshop(tree, "6.12", "6.12.94", (fragment,), {"A": 1}, built, tmp_path / "pits", tmp_path)


def quiet(_: str) -> None:
    pass


def test_a_kernel_is_built_once(shop: variants.Workshop, made: Made) -> None:
    first = variants.kernel_with(shop, {"EFI": False}, quiet)
    assert first == variants.kernel_with(shop, {"EFI": False}, quiet)
    assert (made.configured, len(made.built)) == ([{"A": 1, "EFI": False}], 1)
    assert (first / "bzImage").read_text() == "image of CONFIG_A=1\n"
    assert (first / "kernel.config").read_text() == "CONFIG_A=1\n"
    assert not (shop.folder / "work").exists()


def test_options_that_come_to_one_config_share_a_kernel(shop: variants.Workshop, made: Made) -> None:
    one, two = variants.kernel_with(shop, {"EFI": False}, quiet), variants.kernel_with(shop, {"ACPI": False}, quiet)
    assert one == two
    assert (len(made.configured), len(made.built)) == (2, 1)
    assert variants.kernel_with(shop, {"B": 2}, quiet) != one


def test_what_a_kernel_hangs_on_makes_another(
    shop: variants.Workshop, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {variants.kernel_with(shop, {}, quiet)}
    shop.fragments[0].write_text("CONFIG_EFI=n\n")
    variants.kernel_with(shop, {}, quiet)
    assert len(made.configured) == 2
    (shop.tree / source.STAMP).write_bytes(msgspec.json.encode(source.Tree("6.12", "6.12.95", "sha256:b", "not", ())))
    seen.add(variants.kernel_with(shop, {}, quiet))
    monkeypatch.setattr(source, "compiler_tools", lambda: {"gcc": "13"})
    seen.add(variants.kernel_with(shop, {}, quiet))
    assert (len(seen), len(made.built)) == (3, 3)


def test_a_build_that_fails_leaves_nothing_that_is_believed(shop: variants.Workshop, made: Made) -> None:
    made.fails = True
    with pytest.raises(ToolError):
        variants.kernel_with(shop, {"EFI": False}, quiet)
    assert not list((shop.folder / "configs").iterdir())
    made.fails = False
    assert (variants.kernel_with(shop, {"EFI": False}, quiet) / "bzImage").is_file()
    assert len(made.configured) == 2


def test_a_folder_that_moved_is_not_built_again(tmp_path: Path) -> None:
    """objtool's commands name their folder; make compares them, and the times."""
    new = tmp_path / "new"
    command = new / "tools/objtool/.check.o.cmd"
    command.parent.mkdir(parents=True)
    command.write_text("cmd_/old/place/check.o := gcc -o /old/place/check.o\n")
    other = new / "tools/objtool/check.o"
    other.write_text("/old/place")
    os.utime(command, ns=(1, 2))
    variants._moved(Path("/old/place"), new)
    assert command.read_text() == f"cmd_{new}/check.o := gcc -o {new}/check.o\n"
    assert command.stat().st_mtime_ns == 2
    assert other.read_text() == "/old/place"


def test_without_a_tree_nothing_is_built(shop: variants.Workshop, made: Made) -> None:
    (shop.tree / source.STAMP).unlink()
    with pytest.raises(ToolError, match="no whole tree"):
        variants.kernel_with(shop, {}, quiet)
