# SPDX-License-Identifier: Apache-2.0
"""Kernels that differ from the guest's in some options: built beside it from its tree and objects, kept by content."""

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from minguest import files, kconfig, kernel, source
from minguest.errors import ToolError
from minguest.model import Launch

# What of a built kernel is kept; its objects take a hundred times the room.
KEPT = ("bzImage", "kernel.config")


class Workshop(msgspec.Struct, frozen=True):
    """Where the variants of one line are made."""

    tree: Path
    line: str
    version: str
    fragments: tuple[Path, ...]
    options: Mapping[str, str | int | bool]
    """The guest's own; a variant's win over them."""
    built: Path
    """The O= folder of the guest's own kernel, which a variant starts from."""
    folder: Path
    """For configs/, kernels/ and log/."""
    root: Path


def kernel_with(shop: Workshop, options: Mapping[str, str | int | bool], say: Callable[[str], None]) -> Path:
    """The folder of a kernel with `options`: bzImage and kernel.config. Built only where no config has led to it yet.

    ToolError where the tree cannot be configured or built so.
    """
    with files.lock(shop.folder / ".lock", lambda: say("waiting for another build of such a kernel")):
        config = _config(shop, options) / "kernel.config"
        target = shop.folder / "kernels" / _hash(config.read_bytes(), _stamp(shop), _tools())
        if not all((target / name).is_file() for name in KEPT):
            say(f"kernel with {shown(options)}")
            try:
                _build(shop, config, target, say)
            except ToolError:
                # The config too may be what failed: Kconfig takes a compiler that is short of memory for an older one.
                shutil.rmtree(config.parent)
                raise
    return target


def _build(shop: Workshop, config: Path, target: Path, say: Callable[[str], None]) -> None:
    work = shop.folder / "work"
    # The guest's objects: make compiles again only what these options reach.
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(shop.built, work, symlinks=True)
    _moved(shop.built, work)
    kernel.build(shop.tree, config, work, version=shop.version, log=shop.folder / "log" / f"{target.name}.log", say=say)
    with files.replacing_tree(target) as new:
        shutil.copyfile(kernel.image(work), new / "bzImage")
        shutil.copyfile(config, new / "kernel.config")
    shutil.rmtree(work, ignore_errors=True)


def shown(options: Mapping[str, str | int | bool]) -> str:
    """Options as a .config spells them, without CONFIG_."""
    return ", ".join(f"{name}={kconfig.spell(value)}" for name, value in options.items())


def _config(shop: Workshop, options: Mapping[str, str | int | bool]) -> Path:
    texts = [path.name.encode() + b"\0" + path.read_bytes() for path in shop.fragments]
    wanted = {**shop.options, **options}
    name = _hash(*texts, msgspec.json.encode(sorted(wanted.items())), _stamp(shop), _tools())
    folder = shop.folder / "configs" / name
    if not (folder / "kernel.config").is_file():
        kernel.configure(
            shop.tree,
            shop.line,
            shop.fragments,
            wanted,
            (),
            Launch(),
            folder,
            root=shop.root,
            guest_file="[dig] of a pit",
            others={},
            ignore=True,
            log=shop.folder / "log" / f"config-{name}.log",
            say=lambda _: None,
        )
        shutil.rmtree(folder / "work", ignore_errors=True)
    return folder


def _moved(old: Path, new: Path) -> None:
    """Let make see a copied O= folder as built where it is now: objtool's commands name their folder in full.

    Else objtool is built again, and after it every object that it looks at, which is all of them.
    """
    for path in (new / "tools").rglob(".*"):
        if path.suffix in (".cmd", ".d") and path.is_file() and not path.is_symlink():
            text, times = path.read_bytes(), path.stat()
            path.write_bytes(text.replace(bytes(old), bytes(new)))
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _stamp(shop: Workshop) -> bytes:
    stamp = source.stamp(shop.tree)
    if stamp is None:
        raise ToolError(f"{shop.tree}: no whole tree", "doit build makes it")
    return msgspec.json.encode(stamp)


def _tools() -> bytes:
    return msgspec.json.encode(source.compiler_tools())


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]
