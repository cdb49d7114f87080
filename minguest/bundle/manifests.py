# SPDX-License-Identifier: Apache-2.0
"""The bundle: what ships, and the manifest that names its inputs (docs/manifest.md)."""

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from minguest import VERSION
from minguest.bundle.kmodule import Set
from minguest.model import Devel, Guest
from minguest.paths import RUN_GUEST
from minguest.util import files, strictjson
from minguest.util.errors import UserError

SCHEMA = 2
NAME = "manifest.json"
# What every bundle has beside its manifest; today's have launch files too (vm/scripts.py).
PARTS = ("bzImage", "initrd.img", "OVMF_CODE.fd", "OVMF_VARS.fd", "kernel.config", "System.map")
AGAIN = "doit build makes a bundle; pull a release again"


class File(msgspec.Struct, frozen=True):
    """A file by content; `size` in bytes."""

    sha256: str
    size: int


class Patch(msgspec.Struct, frozen=True):
    """A patch of this project that was applied."""

    file: str
    sha256: str
    reason: str


class Kernel(msgspec.Struct, frozen=True):
    """The kernel, from its choice to what inspection found."""

    wanted: tuple[str, ...]
    series: str
    version: str
    reason: str
    urls: tuple[str, ...]
    licence: str | None
    origin: str
    signature: str
    patches: tuple[Patch, ...]
    inspected: dict[str, Any]
    devel: Devel | None = None
    """What kernel-devel.tar.zst belongs to; None for a kernel without modules, and in older manifests."""

    @property
    def release(self) -> str:
        """As uname(2) reports it in the guest: from the image, else the version of its source."""
        image = self.inspected.get("bzimage")
        own = image.get("version") if isinstance(image, dict) else None
        return next(iter(own.split()), self.version) if isinstance(own, str) else self.version


class Config(msgspec.Struct, frozen=True):
    """How the kernel's config was made and checked."""

    fragments: dict[str, str]
    requested: int
    problems: tuple[str, ...]
    """Breaches that contract=ignore accepted."""


class Part(msgspec.Struct, frozen=True):
    """A file of a package's source."""

    urls: tuple[str, ...]
    sha256: str


class Package(msgspec.Struct, frozen=True):
    """A Debian package that has files in the initrd, and the source that it was built from."""

    version: str
    sha256: str
    urls: tuple[str, ...]
    licence: str
    source: tuple[Part, ...]
    deb: str = ""
    """Debian's name of it; empty: the name that it has here."""
    restricted: bool = False
    """Its licence sets conditions for passing it on."""


PACKAGE = Package.__struct_fields__


class Initrd(msgspec.Struct, frozen=True):
    """The initrd's inputs; hashes of the template and of each file of the overlays."""

    initd: File
    template: str
    overlays: dict[str, str]
    packages: dict[str, Package] = {}
    """By name in sources.toml. Missing in older manifests."""
    modules: tuple[Set, ...] = ()
    """Modules out of the tree. Missing in older manifests."""


class Drivers(msgspec.Struct, frozen=True):
    """The inputs of the disk of drivers, as those of the initrd."""

    overlays: dict[str, str]
    packages: dict[str, Package]
    modules: tuple[Set, ...]


class Built(msgspec.Struct, frozen=True):
    """What a firmware was built from, in addition to edk2's tarball."""

    debian: Part
    """Debian's changes to edk2, with its patches."""
    patches: tuple[Patch, ...]
    """In the order in which they were applied; Debian's have `debian/` before their names."""
    platform: dict[str, str]
    """SHA-256 of each file that describes the platform, by name in configs/firmware."""
    tools: dict[str, str]


BUILT = ("patches", "platform", "tools")


class Firmware(msgspec.Struct, frozen=True):
    """The OVMF package; or edk2's source, if it was built."""

    version: str
    sha256: str
    urls: tuple[str, ...]
    licence: str
    built: Built | None = None
    """None for Debian's package, and in older manifests."""


class Manifest(msgspec.Struct, frozen=True):
    """manifest.json. Every input by hash; no path, time or name of the machine that built it."""

    schema: int
    minguest: str
    guest: Guest
    """The guest as in its file, launch included."""
    kernel: Kernel
    config: Config
    initrd: Initrd
    firmware: Firmware
    tools: dict[str, str]
    files: dict[str, File]
    """What lies beside the manifest."""
    drivers: Drivers | None = None
    """None for a guest without such a disk, and in older manifests."""

    @property
    def packages(self) -> dict[str, Package]:
        """The Debian packages that have files in the bundle, by name in sources.toml."""
        return {**self.initrd.packages, **(self.drivers.packages if self.drivers else {})}


def describe(path: Path) -> File:
    """A file's hash and size."""
    return File(files.sha256(path), path.stat().st_size)


def write(
    target: Path, parts: Mapping[str, Path], facts: Mapping[str, Any], launch_files: Mapping[str, str]
) -> Manifest:
    """Copy the parts, the launch files and the manifest to `target`, all of them or none."""
    with files.replacing_tree(target) as folder:
        for name, path in parts.items():
            files.copy(path, folder / name)
        for name, text in launch_files.items():
            files.write(folder / name, text)
            (folder / name).chmod(0o755 if name == RUN_GUEST else 0o644)
        written = {name: describe(folder / name) for name in sorted([*parts, *launch_files])}
        manifest = msgspec.convert({"schema": SCHEMA, "minguest": VERSION, "files": written, **facts}, Manifest)
        (folder / NAME).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    return manifest


def load(folder: Path) -> Manifest:
    """Read a bundle's manifest and check each file against it; UserError names the file that differs."""
    manifest = read(folder)
    for name, wanted in manifest.files.items():
        if describe(folder / name) != wanted:
            raise _differs(folder / name)
    return manifest


def read(folder: Path) -> Manifest:
    """Read a bundle's manifest, and of each file only whether it is there and has its size; UserError as for `load`."""
    path = folder / NAME
    try:
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "missing, or not a plain file", str(path))
        content = strictjson.read(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: not a bundle's manifest: {why}", AGAIN) from error
    manifest = parse(content, path)
    # The sizes come first: hashing a sparse file of 1 TB takes an hour.
    for name, wanted in manifest.files.items():
        place = folder / name
        if not place.is_file() or place.stat().st_size != wanted.size:
            raise _differs(place)
    return manifest


def _differs(place: Path) -> UserError:
    return UserError(f"{place}: is not the file that the manifest names", AGAIN)


def parse(content: bytes, path: Path) -> Manifest:
    """A manifest that was read from `path`; UserError if it is not valid. Only the names of its files are checked."""
    try:
        manifest = strictjson.decode(content, Manifest, SCHEMA)
    except ValueError as error:
        raise UserError(f"{path}: not a bundle's manifest: {error}", AGAIN) from error
    if missing := [name for name in PARTS if name not in manifest.files]:
        raise UserError(f"{path}: does not name {', '.join(missing)}", AGAIN)
    for name in manifest.files:
        if name in ("", ".", "..") or "/" in name:
            raise UserError(f"{path}: names {name!r}, which is not a file beside it", AGAIN)
    return manifest
