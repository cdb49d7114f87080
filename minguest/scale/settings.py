# SPDX-License-Identifier: Apache-2.0
"""A setting: put into the store by the submitter, made into a folder by each machine's workers."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from minguest.kernel import source
from minguest.paths import Store as Local
from minguest.scale.orders import Entry, Setting
from minguest.scale.store import Missing, Poisoned, Store
from minguest.util import files, run

# Of every file in a packed tree: make takes a file of 1970's first second for one that is not there.
TIME = 1_000_000_000


class Inputs(msgspec.Struct):
    """A setting on the submitter, and where its files are."""

    setting: Setting
    paths: Mapping[str, Path]
    """By SHA-256."""
    tree: source.Prepared | None = None


def gather(wanted: Mapping[str, Path]) -> tuple[dict[str, Entry], dict[str, Path]]:
    """The entries of some files by their names in a setting, and the files by their hashes."""
    entries, found = {}, {}
    for name, path in wanted.items():
        if path.is_symlink():
            entries[name] = Entry(link=str(path.readlink()))
            continue
        digest = files.sha256(path)
        entries[name] = Entry(digest, bool(path.stat().st_mode & 0o100))
        found[digest] = path
    return entries, found


def below(folder: Path, name: str, pattern: str = "*") -> dict[str, Path]:
    """The files in a folder, for `gather`."""
    return {f"{name}/{path.name}": path for path in sorted(folder.glob(pattern)) if path.is_file()}


def put(inputs: Inputs, store: Store, *, with_tree: bool, say: Callable[[str], None]) -> None:
    """Put what the store lacks. `with_tree`: the kernel's source too, as some worker does not have it."""
    for path in inputs.paths.values():
        store.put(path)
    if inputs.tree is not None and with_tree:
        put_tree(inputs.tree, store, say)
    store.put_record(f"settings/{inputs.setting.key}", inputs.setting)


def put_tree(tree: source.Prepared, store: Store, say: Callable[[str], None]) -> None:
    """Put the kernel's source, packed, unless it is there."""
    name = _tree_record(tree.tree)
    try:
        digest = store.record(name, str)
        if digest is not None and store.has(digest):
            return
    except Poisoned:
        pass  # written again
    say(f"packing linux {tree.tree.version} for the store")
    with tempfile.TemporaryDirectory(prefix="minguest-tree-") as folder:
        packed = Path(folder) / "tree.tar.zst"
        run.run(
            ["tar", "--sort=name", f"--mtime=@{TIME}", "--owner=0", "--group=0", "--numeric-owner",
             f"--exclude=./{source.STAMP}", "-C", tree.path, "-I", "zstd -q -3 -T0", "-cf", packed, "."],
            bare=True,
        )  # fmt: skip
        store.put_record(name, store.put(packed))


def tree_place(tree: source.Tree, local: Local) -> Path:
    """Where a machine has a tree, as source.prepare calls it."""
    return local.trees / f"linux-{tree.version}-{hashlib.sha256(tree.identity).hexdigest()[:16]}"


def tree_there(tree: source.Tree, local: Local) -> bool:
    """Whether a machine has a tree, unchanged."""
    place = tree_place(tree, local)
    kept = source.stamp(place)
    return kept is not None and kept.identity == tree.identity and source.intact(place)


def get_tree(tree: source.Tree, store: Store, local: Local) -> source.Prepared:
    """A tree on this machine; it is unpacked from the store if it is not there."""
    place = tree_place(tree, local)
    with files.lock(local.trees / f".{place.name}.busy"):
        if not tree_there(tree, local):
            digest = store.record(_tree_record(tree), str)
            if digest is None:
                raise Missing(f"{store}: has no source of linux {tree.version}", "run the same command again")
            with tempfile.TemporaryDirectory(prefix="minguest-tree-") as folder:
                packed = Path(folder) / "tree.tar.zst"
                store.get(digest, packed)
                with files.replacing_tree(place) as new:
                    run.run(["tar", "-C", new, "--no-same-owner", "-I", "zstd -q", "-xf", packed], bare=True)
                    (new / source.STAMP).write_bytes(msgspec.json.encode(tree))
            files.write(source.made(place), source.fingerprint(place))
        files.used(source.made(place))
    return source.Prepared(str(place), tree)


def _tree_record(tree: source.Tree) -> str:
    return f"trees/{hashlib.sha256(tree.identity).hexdigest()}"


def make(setting: Setting, store: Store, local: Local) -> Path:
    """The folder of a setting's files on this machine; what is missing or differs comes from the store."""
    folder = local.desks / "settings" / setting.key
    with files.lock(folder.with_name(f".{setting.key}.busy")):
        if not _whole(folder, setting):
            with files.replacing_tree(folder) as new:
                for name, entry in setting.files.items():
                    path = new / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    if entry.link:
                        path.symlink_to(entry.link)
                        continue
                    if (folder / name).is_file() and files.sha256(folder / name) == entry.sha256:
                        shutil.copyfile(folder / name, path)
                    else:
                        store.get(entry.sha256, path)
                    path.chmod(0o755 if entry.executable else 0o644)
        files.used(local.desks)
    return folder


def _whole(folder: Path, setting: Setting) -> bool:
    def same(name: str, entry: Entry) -> bool:
        path = folder / name
        if entry.link:
            return path.is_symlink() and os.fspath(path.readlink()) == entry.link
        return path.is_file() and not path.is_symlink() and files.sha256(path) == entry.sha256

    return folder.is_dir() and all(same(name, entry) for name, entry in setting.files.items())
