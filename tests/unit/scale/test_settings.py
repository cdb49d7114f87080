# SPDX-License-Identifier: Apache-2.0
"""A setting goes from one machine to another: the same files, the same tree, the same kernels."""

import os
import shutil
from pathlib import Path

import msgspec
import pytest

from minguest.kernel import folders, kbuild, source, variants
from minguest.model import Launch
from minguest.paths import Store as Local
from minguest.scale import settings
from minguest.scale.kernels import Kernels
from minguest.scale.orders import Setting
from minguest.scale.settings import Inputs
from minguest.scale.store import Folder, Missing, Poisoned, Store
from tests import ROOT


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Folder(tmp_path / "store"))


def quiet(_: str) -> None:
    """Takes what would be said."""


def given(tmp_path: Path) -> Inputs:
    """A setting of three files."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "plain").write_text("plain\n")
    (here / "program").write_text("#!/bin/sh\n")
    (here / "program").chmod(0o755)
    (here / "link").symlink_to("plain")
    entries, found = settings.gather({f"root/a/{path.name}": path for path in sorted(here.iterdir())})
    return Inputs(Setting("toy-6.12", Launch(), entries), found)


def there(folder: Path) -> dict[str, tuple[str, bool]]:
    return {
        path.relative_to(folder).as_posix(): (
            os.fspath(path.readlink()) if path.is_symlink() else path.read_text(),
            os.access(path, os.X_OK),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def test_a_setting_is_the_same_on_another_machine(tmp_path: Path, store: Store) -> None:
    inputs, local = given(tmp_path), Local(tmp_path / "local")
    settings.put(inputs, store, with_tree=False, say=quiet)
    setting = store.record(f"settings/{inputs.setting.key}", Setting)
    assert setting == inputs.setting and setting is not None and setting.key == inputs.setting.key
    folder = settings.make(setting, store, local)
    wanted = {
        "root/a/plain": ("plain\n", False),
        "root/a/program": ("#!/bin/sh\n", True),
        "root/a/link": ("plain", False),
    }
    assert there(folder) == wanted
    # Made once; what was changed on the desk is made again, from the store or from what is right.
    before = (folder / "root/a/plain").stat().st_ino
    assert settings.make(setting, store, local) == folder
    assert (folder / "root/a/plain").stat().st_ino == before
    (folder / "root/a/plain").write_text("other\n")
    settings.make(setting, store, local)
    assert there(folder) == wanted


def test_a_poisoned_input_is_named_and_leaves_no_folder(tmp_path: Path, store: Store) -> None:
    inputs, local = given(tmp_path), Local(tmp_path / "local")
    settings.put(inputs, store, with_tree=False, say=quiet)
    digest = inputs.setting.files["root/a/plain"].sha256
    place = tmp_path / "store/blobs" / digest[:2] / digest
    place.write_text("Plain\n")
    with pytest.raises(Poisoned, match=f"blobs/{digest[:2]}/{digest} is poisoned"):
        settings.make(inputs.setting, store, local)
    assert not (local.desks / "settings" / inputs.setting.key).exists()
    settings.put(inputs, store, with_tree=False, say=quiet)
    assert store.replaced == [f"blobs/{digest[:2]}/{digest}"]
    assert settings.make(inputs.setting, store, local).is_dir()


def toy(tmp_path: Path) -> source.Prepared:
    tree = source.Tree("6.12", "6.12.1", f"own:{source.content(ROOT / 'tests/data/fakelinux')}", "not verified", ())
    place = tmp_path / "tree"
    if not place.exists():
        shutil.copytree(ROOT / "tests/data/fakelinux", place)
        (place / "link").symlink_to("Makefile")
        (place / source.STAMP).write_bytes(msgspec.json.encode(tree))
    return source.Prepared(str(place), tree)


def test_a_tree_is_packed_once_and_is_the_same_elsewhere(tmp_path: Path, store: Store) -> None:
    prepared, local, said = toy(tmp_path), Local(tmp_path / "local"), list[str]()
    with pytest.raises(Missing, match=r"has no source of linux 6\.12\.1"):
        settings.get_tree(prepared.tree, store, local)
    for _ in range(2):
        settings.put_tree(prepared, store, said.append)
    assert said == ["packing linux 6.12.1 for the store"]
    made = settings.get_tree(prepared.tree, store, local)
    assert source.content(Path(made.path)) == source.content(Path(prepared.path))
    assert source.stamp(Path(made.path)) == prepared.tree and settings.tree_there(prepared.tree, local)
    (Path(made.path) / "Makefile").write_text("changed")
    assert not settings.tree_there(prepared.tree, local)
    settings.get_tree(prepared.tree, store, local)
    assert source.content(Path(made.path)) == source.content(Path(prepared.path))
    # One that a bucket says is right, and that a worker found damaged, is packed again.
    (record,) = store.records("trees/")
    digest = store.record(record, str) or ""
    store.distrusted.add(f"blobs/{digest[:2]}/{digest}")
    settings.put_tree(prepared, store, said.append)
    assert len(said) == 2 and store.distrusted == set()


class Machine:
    """A worker's machine with its own store, and the shared one."""

    def __init__(self, tmp_path: Path, store: Store, name: str) -> None:
        fragment = tmp_path / "20-net.config"
        fragment.write_text("# Packets.\n# One socket.\nCONFIG_PACKET=y\n")
        self.local, self.said = Local(tmp_path / name), list[str]()
        self.kernels = Kernels(store, name, "gcc 12")
        self.shop = variants.Workshop(
            toy(tmp_path), (fragment,), {"NUMBER": 1}, self.local, tmp_path, tmp_path / "log", shared=self.kernels
        )

    def kernel(self) -> Path:
        return variants.kernel_with(self.shop, {"PACKET": False}, self.said.append)


def test_a_kernel_is_built_on_one_machine_alone(tmp_path: Path, store: Store) -> None:
    one, two = Machine(tmp_path, store, "one"), Machine(tmp_path, store, "two")
    first, second = one.kernel(), two.kernel()
    assert first.name == second.name and first != second and kbuild.whole(second)
    assert (one.said, two.said) == (["kernel with PACKET=n"], [])
    assert one.kernels.problems == two.kernels.problems == []


def test_one_that_was_built_from_scratch_serves_those_who_build_in_one_folder(tmp_path: Path, store: Store) -> None:
    one, two = Machine(tmp_path, store, "one"), Machine(tmp_path, store, "two")
    assert variants.there(one.shop, {"PACKET": False}) is None
    first = one.kernel()
    assert variants.there(one.shop, {"PACKET": False}) == first
    assert variants.there(one.shop) is variants.there(one.shop, but="PACKET") is None
    with folders.Objects(two.local, quiet) as objects:
        two.shop = msgspec.structs.replace(two.shop, objects=objects)
        assert two.kernel().name == first.name
    assert two.said == []


def test_a_poisoned_kernel_is_named_and_built_again_and_replaced(tmp_path: Path, store: Store) -> None:
    one = Machine(tmp_path, store, "one")
    folder = one.kernel()
    record = store.record(f"kernels/{folder.name}", dict)
    assert record is not None
    digest = record["files"]["bzImage"]
    place = tmp_path / "store/blobs" / digest[:2] / digest
    place.write_bytes(place.read_bytes()[:-1])
    two = Machine(tmp_path, store, "two")
    assert kbuild.whole(two.kernel()) and two.said == ["kernel with PACKET=n"]
    (problem,) = two.kernels.problems
    assert f"blobs/{digest[:2]}/{digest} is poisoned" in problem and f"kernel {folder.name} is built again" in problem
    three = Machine(tmp_path, store, "three")
    three.kernel()
    assert (three.said, three.kernels.problems) == ([], [])


def test_a_worker_with_other_bytes_for_one_key_is_named(tmp_path: Path, store: Store) -> None:
    one, two = Machine(tmp_path, store, "one"), Machine(tmp_path, store, "two")
    folder = two.kernel()
    (folder / "System.map").write_text("another map\n")
    Kernels(store, "three", "gcc 12").keep(folder)
    other = Kernels(store, "three", "gcc 12")
    other.keep(folder)
    assert other.problems == [f"kernel {folder.name}: three has other bytes than two for the same inputs: System.map"]
    assert one.kernel() and one.kernels.problems == []


def test_a_store_that_takes_no_kernel_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    machine = Machine(tmp_path, Store(Folder(tmp_path / "file/store")), "one")
    assert kbuild.whole(machine.kernel())
    (problem,) = machine.kernels.problems
    assert "the store cannot be written: Not a directory" in problem
