# SPDX-License-Identifier: Apache-2.0
"""The bundle: what ships, and the manifest that says what it was made of (docs/manifest.md)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from minguest import VERSION, files
from minguest.errors import UserError

SCHEMA = 1


class File(msgspec.Struct, frozen=True):
    """A file by content; `size` in bytes."""

    sha256: str
    size: int


class Manifest(msgspec.Struct, frozen=True):
    """manifest.json. Every input by hash; no path, time or name of the machine that built it."""

    schema: int
    minguest: str
    guest: dict[str, Any]
    """The guest as its file says, launch included."""
    kernel: dict[str, Any]
    """wanted and taken line, version, reason, origin, signature, patches, and what inspection found."""
    config: dict[str, Any]
    """Fragments by hash, how many options were asked for, problems that contract=ignore let pass."""
    initrd: dict[str, Any]
    firmware: dict[str, Any]
    tools: dict[str, str]
    files: dict[str, File]
    """What lies beside the manifest."""


def describe(path: Path) -> File:
    """A file's hash and size."""
    return File(files.sha256(path), path.stat().st_size)


def write(target: Path, parts: Mapping[str, Path], facts: Mapping[str, Any]) -> Manifest:
    """Copy the parts and the manifest to `target`, all of them or none."""
    with files.replacing_tree(target) as folder:
        for name, path in parts.items():
            files.copy(path, folder / name)
        manifest = Manifest(
            schema=SCHEMA, minguest=VERSION, files={name: describe(folder / name) for name in sorted(parts)}, **facts
        )
        (folder / "manifest.json").write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    return manifest


def load(folder: Path) -> Manifest:
    """Read a bundle's manifest and check that each file is what it says; UserError names what is not."""
    path = folder / "manifest.json"
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise UserError(f"{path}: no bundle: {error}", "doit build makes it") from error
    if manifest.schema != SCHEMA:
        raise UserError(f"{path}: schema {manifest.schema}, this minguest knows {SCHEMA}", "get a newer minguest")
    for name, wanted in manifest.files.items():
        if name in ("", ".", "..") or "/" in name:
            raise UserError(f"{path}: names {name!r}, which is not a file beside it", "get the bundle again")
        if not (folder / name).is_file() or describe(folder / name) != wanted:
            raise UserError(f"{folder / name}: is not the file that the manifest names", "doit build makes it again")
    return manifest
