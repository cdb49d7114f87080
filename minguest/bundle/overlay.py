# SPDX-License-Identifier: Apache-2.0
"""Overlays: what a folder, its overlay.toml and Debian packages lay over the initrd's root, and whether several of them
agree. No overlay wins over another, so their order means nothing."""

import difflib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

from minguest import settings
from minguest.bundle import cpio
from minguest.model import DeviceNode, Links, Overlay, OwnFile, OwnFolder, Package, PackageFile
from minguest.util import archive
from minguest.util.errors import UserError

T = TypeVar("T")

# In an overlay's folder; not in the initrd.
SETTINGS = "overlay.toml"
# include/linux/kdev_t.h, new_encode_dev(): what the unpacker keeps of a device's numbers.
MAJOR_MAX, MINOR_MAX = (1 << 12) - 1, (1 << 20) - 1
# The highest number means "no owner" to chown(2).
OWNER_MAX = (1 << 32) - 2
# initd mounts other file systems over them (initd/mounts.c): what an overlay has there would be there and not be seen.
HIDDEN = ("proc", "sys", "run", "tmp")
# devtmpfs is mounted over it too; initd makes the nodes and links below it again (initd/nodes.c).
DEVICES = "dev"


@dataclass(frozen=True)
class Layer:
    """Entries from one place. `where` is for messages."""

    where: str
    entries: tuple[cpio.Entry, ...]
    plain: frozenset[str] = field(default=frozenset())
    """Names of folders that are just there: nothing states their mode and owner."""


def read(folder: Path) -> Overlay:
    """An overlay's settings, checked; without a file, none. UserError names file, key and value."""
    path = folder / SETTINGS
    if not os.path.lexists(path):
        return Overlay()
    found = settings.decode(path, Overlay)
    for _ in _stated(found, str(path)):
        pass
    for number, package in enumerate(found.package):
        for file in package.file:
            _of_package(str(path), number, file, b"")
    return found


def packages(folders: Iterable[Path], known: Mapping[str, Package]) -> dict[str, Package]:
    """The Debian packages that these overlays take files from, by their names in sources.toml."""
    found = {}
    for folder in folders:
        for number, package in enumerate(read(folder).package):
            if package.source not in known:
                raise UserError(
                    f"{folder / SETTINGS}: package[{number}].source = {package.source!r}: configs/sources.toml has "
                    f"no [package.{package.source}]",
                    f"known: {', '.join(known) or 'none'}",
                )
            found[package.source] = known[package.source]
    return dict(sorted(found.items()))


def layers(folder: Path, debs: Mapping[str, Path]) -> list[Layer]:
    """What an overlay lays: its folder's content, with modes and owners, and what its settings add.

    `debs` has the file of each package by its name in sources.toml. UserError for settings that are wrong, or do not
    fit the folder or a package.
    """
    where = str(folder / SETTINGS)
    stated = read(folder)
    content = {entry.name: entry for entry in cpio.tree(folder) if entry.name != SETTINGS}
    for number, file in enumerate(stated.file):
        entry = _restated(where, number, file, content)
        content[entry.name] = entry
    plain = frozenset(name for name, entry in content.items() if stat.S_ISDIR(entry.mode))
    found = [Layer(str(folder), tuple(content.values()), plain), Layer(where, tuple(_stated(stated, where)))]
    for number, package in enumerate(stated.package):
        members = archive.deb_member(debs[package.source], [f".{file.name}" for file in package.file])
        entries = [_of_package(where, number, file, members[f".{file.name}"]) for file in package.file]
        found.append(Layer(f"{where} ({package.source})", tuple(entries)))
    return found


def combine(base: Layer, others: Sequence[Layer]) -> list[cpio.Entry]:
    """All entries of initd's own list and of overlays, as `cpio.archive` takes them.

    The same claim may come from several; UserError, which names both, where two claim a path differently, where one
    puts something below another's file, or where initd's mounts would hide what an overlay has.
    """
    claims: dict[str, tuple[cpio.Entry, Layer]] = {}
    for layer in (base, *others):
        names = set()
        for entry in layer.entries:
            if entry.name in names:
                raise UserError(f"{layer.where}: has /{entry.name} twice", "remove one of them")
            names.add(entry.name)
            if layer is not base:
                _check_seen(entry, layer)
            before = claims.get(entry.name)
            if before is None or (_is_plain(*before) and stat.S_ISDIR(entry.mode)):
                claims[entry.name] = entry, layer
            elif entry != before[0] and not (_is_plain(entry, layer) and stat.S_ISDIR(before[0].mode)):
                raise _conflict(base, before, (entry, layer))
    for name, (_, layer) in claims.items():
        for parent in PurePosixPath(name).parents:
            above = claims.get(str(parent))
            if above and not stat.S_ISDIR(above[0].mode):
                what = f"{_kind(above[0])} in {above[1].where}"
                raise UserError(
                    f"{layer.where}: /{name} cannot lie below /{parent}, which is {what}",
                    "let one of them have another path",
                )
    return cpio.merge(entry for entry, _ in claims.values())


def _is_plain(entry: cpio.Entry, layer: Layer) -> bool:
    return entry.name in layer.plain


def _check_seen(entry: cpio.Entry, layer: Layer) -> None:
    top, _, below = entry.name.partition("/")
    if below and top in HIDDEN:
        raise UserError(
            f"{layer.where}: /{entry.name}: initd mounts another file system over /{top}, so no program would see it",
            "give it another path",
        )
    if below and top == DEVICES and stat.S_ISREG(entry.mode):
        raise UserError(
            f"{layer.where}: /{entry.name}: initd mounts devtmpfs over /dev, and makes only nodes and links again",
            "give the file another path",
        )


def _conflict(base: Layer, first: tuple[cpio.Entry, Layer], second: tuple[cpio.Entry, Layer]) -> UserError:
    name, why = second[0].name, _difference(first[0], second[0])
    if first[1] is base:
        return UserError(
            f"{second[1].where}: /{name} would replace initd's own, of {base.where}: {why}", "give it another path"
        )
    return UserError(
        f"/{name}: {first[1].where} and {second[1].where} differ: {why}",
        "no overlay wins over another: remove it from one of them, or make both the same",
    )


def _difference(first: cpio.Entry, second: cpio.Entry) -> str:
    """What differs most between two entries of one name, in words."""
    if stat.S_IFMT(first.mode) != stat.S_IFMT(second.mode):
        return f"{_kind(first)}, {_kind(second)}"
    if first.mode != second.mode:
        return f"mode {stat.S_IMODE(first.mode):04o}, mode {stat.S_IMODE(second.mode):04o}"
    if first.owner != second.owner:
        return "owner {}:{}, owner {}:{}".format(*first.owner, *second.owner)
    if first.device != second.device:
        return "device {}:{}, device {}:{}".format(*first.device, *second.device)
    if stat.S_ISLNK(first.mode):
        return f"a link to {os.fsdecode(first.data)}, a link to {os.fsdecode(second.data)}"
    return f"files of {len(first.data)} and {len(second.data)} bytes, with another content"


def _kind(entry: cpio.Entry) -> str:
    return {
        stat.S_IFDIR: "a folder", stat.S_IFREG: "a file", stat.S_IFLNK: "a link",
        stat.S_IFCHR: "a character device", stat.S_IFBLK: "a block device",
    }[stat.S_IFMT(entry.mode)]  # fmt: skip


def _stated(overlay: Overlay, where: str) -> Iterator[cpio.Entry]:
    """Folders, nodes and links of an overlay's settings; and the values of its files are checked."""
    for number, file in enumerate(overlay.file):
        _own(where, f"file[{number}]", file)
    for number, folder in enumerate(overlay.folder):
        name, bits, owner = _own(where, f"folder[{number}]", folder)
        yield cpio.Entry(name, stat.S_IFDIR | bits, owner=owner)
    for number, node in enumerate(overlay.node):
        table = f"node[{number}]"
        name, bits, owner = _own(where, table, node)
        device = (
            _number(where, f"{table}.major", node.major, MAJOR_MAX),
            _number(where, f"{table}.minor", node.minor, MINOR_MAX),
        )
        kind = stat.S_IFCHR if node.type == "char" else stat.S_IFBLK
        yield cpio.Entry(name, kind | bits, device=device, owner=owner)
    for number, links in enumerate(overlay.link):
        yield from _links(where, f"link[{number}]", links)


def _links(where: str, table: str, links: Links) -> Iterator[cpio.Entry]:
    target = links.target.encode()
    if not target or b"\0" in target or len(target) > cpio.NAME_MAX:
        raise UserError(
            f"{where}: {table}.target = {links.target[:40]!r}: a link's target has 1 to {cpio.NAME_MAX} bytes, none 0"
        )
    if not links.names:
        raise UserError(f"{where}: {table}.names = [] names no link", 'for example names = ["sh"]')
    for name in links.names:
        if not name or name.startswith("/"):
            raise UserError(
                f"{where}: {table}.names: {name!r} is not below the folder", f"names are relative to {links.folder}"
            )
        within = _checked(where, f"{table}.names", cpio.name, f"{links.folder}/{name}")
        yield cpio.Entry(within, stat.S_IFLNK | 0o777, target)


def _of_package(where: str, number: int, file: PackageFile, content: bytes) -> cpio.Entry:
    table = f"package[{number}].file"
    _checked(where, f"{table}.name", cpio.name, file.name)
    name, bits, owner = _own(where, table, file)
    return cpio.Entry(name, stat.S_IFREG | bits, content, owner=owner)


def _restated(where: str, number: int, file: OwnFile, content: Mapping[str, cpio.Entry]) -> cpio.Entry:
    """An entry of the overlay's folder with the mode and the owner that its settings state."""
    table = f"file[{number}]"
    name, bits, owner = _own(where, table, file)
    entry = content.get(name)
    if entry is None:
        near = difflib.get_close_matches(name, content, 1)
        raise UserError(
            f"{where}: {table}.path = {file.path!r}: the overlay's folder has no such file",
            f"nearest: /{near[0]}" if near else f"put it into {Path(where).parent}, or remove the table",
        )
    if stat.S_ISDIR(entry.mode):
        raise UserError(f"{where}: {table}.path = {file.path!r}: is a folder", "write [[folder]] for it")
    if file.mode and stat.S_ISLNK(entry.mode):
        raise UserError(f"{where}: {table}.mode = {file.mode!r}: {file.path} is a link, which has none", "remove mode")
    return replace(entry, mode=stat.S_IFMT(entry.mode) | bits if file.mode else entry.mode, owner=owner)


def _own(
    where: str, table: str, row: OwnFile | OwnFolder | DeviceNode | PackageFile
) -> tuple[str, int, tuple[int, int]]:
    """A row's name in the initrd, its permission bits and its owner; UserError names the key."""
    name = _checked(where, f"{table}.path", cpio.name, row.path)
    unstated = isinstance(row, OwnFile) and not row.mode
    bits = 0 if unstated else _checked(where, f"{table}.mode", cpio.mode, row.mode)
    numbers = re.fullmatch(r"(\d{1,10}):(\d{1,10})", row.owner, re.ASCII)
    if not numbers or not all(int(number) <= OWNER_MAX for number in numbers.groups()):
        raise UserError(
            f"{where}: {table}.owner = {row.owner!r}: not UID:GID, two numbers up to {OWNER_MAX}",
            'for example owner = "0:6"; names of users are the guest\'s own, and not known here',
        )
    return name, bits, (int(numbers[1]), int(numbers[2]))


def _checked(where: str, key: str, check: Callable[[str], T], value: str) -> T:
    try:
        return check(value)
    except ValueError as error:
        remedy = 'write it like mode = "0644"' if check is cpio.mode else "write it like /etc/motd"
        raise UserError(f"{where}: {key}: {error}", remedy) from None


def _number(where: str, key: str, value: int, most: int) -> int:
    if not 0 <= value <= most:
        raise UserError(f"{where}: {key} = {value}: not from 0 to {most}", "ls -l shows the numbers of a device node")
    return value
