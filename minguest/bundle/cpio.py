# SPDX-License-Identifier: Apache-2.0
"""A cpio archive in the newc format, from a list in the format of the kernel's own gen_init_cpio.

Sources of the format: cpio(5), Documentation/driver-api/early-userspace/buffer-format.rst and usr/gen_init_cpio.c
of the Linux tree. Our own code, because it must make device nodes without root, and every byte must follow from the
input alone: owner 0:0, time 0, inodes counted from 1.
"""

import re
import shlex
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from minguest.util.errors import UserError

# Linux' initramfs unpacker refuses names of PATH_MAX and more.
NAME_MAX = 4095
TRAILER = "TRAILER!!!"
# A member's header: the magic and 13 fields of 8 hex digits.
HEAD = 6 + 13 * 8


@dataclass(frozen=True)
class Entry:
    """One member. `mode` has the type bits; `data` is a file's content or a symlink's target; `device` for nodes."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Member:
    """One member with every header field. `mtime` in seconds since 1970; `on` and `device` are (major, minor).

    `data` is a file's content or a symlink's target; among hard links GNU cpio gives it to the last one only.
    """

    name: str
    data: bytes
    ino: int
    mode: int
    uid: int
    gid: int
    nlink: int
    mtime: int
    on: tuple[int, int]
    """The device of the file system that it was on."""
    device: tuple[int, int]
    """For nodes: the device."""
    check: int
    """The sum of the data's bytes in the format with check sums (070702), else 0."""


def parse_list(text: str, where: str) -> list[Entry]:
    """Read gen_init_cpio's grammar; owners must be 0:0. UserError names `where` and the line.

    dir NAME MODE UID GID · file NAME LOCATION MODE UID GID · slink NAME TARGET MODE UID GID ·
    nod NAME MODE UID GID b|c MAJOR MINOR. Fields with blanks are quoted as in a shell.
    """
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            fields = shlex.split(line, comments=True)
            if fields:
                entries.append(_entry(fields))
        except ValueError as error:
            raise UserError(f"{where}:{number}: {line.strip()!r}: {error}") from None
    return entries


def _entry(fields: list[str]) -> Entry:
    match fields:
        case ["dir", name, mode, "0", "0"]:
            return Entry(_name(name), stat.S_IFDIR | _mode(mode))
        case ["file", name, location, mode, "0", "0"]:
            try:
                content = Path(location).read_bytes()
            except OSError as error:
                raise ValueError(f"cannot be read: {error.strerror}") from None
            return Entry(_name(name), stat.S_IFREG | _mode(mode), content)
        case ["slink", name, target, mode, "0", "0"]:
            return Entry(_name(name), stat.S_IFLNK | _mode(mode), target.encode())
        case ["nod", name, mode, "0", "0", ("b" | "c") as kind, major, minor]:
            return Entry(
                _name(name),
                (stat.S_IFBLK if kind == "b" else stat.S_IFCHR) | _mode(mode),
                device=(int(major), int(minor)),
            )
    raise ValueError("not one of: dir NAME MODE 0 0, file NAME LOCATION MODE 0 0, slink …, nod … b|c MAJOR MINOR")


def _name(text: str) -> str:
    parts = PurePosixPath(text).parts
    if not text.startswith("/") or ".." in parts or len(text.encode()) > NAME_MAX:
        raise ValueError(f"{text}: a name in the initrd is an absolute path without '..'")
    return "/".join(parts[1:])


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        raise ValueError(f"mode {text!r} is not octal") from None
    if mode > 0o7777:
        raise ValueError(f"mode {text!r} is more than 7777")
    return mode


def tree(folder: Path) -> list[Entry]:
    """A folder's content as entries. Modes do not depend on the umask: 755 if the owner may execute it, else 644."""
    entries = []
    for path in folder.rglob("*"):
        name = _name("/" + path.relative_to(folder).as_posix())
        kind = path.lstat().st_mode
        if stat.S_ISLNK(kind):
            entries.append(Entry(name, stat.S_IFLNK | 0o777, str(path.readlink()).encode()))
        elif stat.S_ISDIR(kind):
            entries.append(Entry(name, stat.S_IFDIR | 0o755))
        elif stat.S_ISREG(kind):
            mode = 0o755 if kind & stat.S_IXUSR else 0o644
            entries.append(Entry(name, stat.S_IFREG | mode, path.read_bytes()))
        else:
            raise UserError(f"{path}: an overlay has files, folders and symbolic links; list device nodes instead")
    return entries


def merge(*layers: Iterable[Entry]) -> list[Entry]:
    """Lay entries over each other (a later one wins), add missing parents, sort by name."""
    merged = {entry.name: entry for layer in layers for entry in layer}
    for name in list(merged):
        for parent in PurePosixPath(name).parents:
            if str(parent) != ".":
                found = merged.setdefault(str(parent), Entry(str(parent), stat.S_IFDIR | 0o755))
                if not stat.S_ISDIR(found.mode):
                    raise UserError(f"initrd: /{name} cannot lie below /{parent}, which is not a folder")
    # A folder's name is a prefix of the names in it, so it comes first, as the unpacker needs it.
    return [merged[name] for name in sorted(merged)]


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive's bytes, padded to 512 as cpio does."""
    out = bytearray()
    for inode, entry in enumerate(entries, 1):
        out += _record(inode, entry)
    out += _record(0, Entry(TRAILER, 0))
    return bytes(out.ljust(-len(out) % 512 + len(out), b"\0"))


def parse(data: bytes) -> tuple[list[Member], bytes]:
    """Read one newc archive: its members in their order, without the trailer, and what follows the trailer.

    Usually padding follows, or another archive, which the kernel would unpack too. Also reads the format with check
    sums (070702), and does not check them. UserError if it is damaged, cut short or not a newc archive.
    """
    members: list[Member] = []
    at = 0
    while True:
        head = data[at : at + HEAD]
        if not re.fullmatch(rb"07070[12][0-9A-Fa-f]{104}", head):
            raise UserError(f"cpio: no newc header at byte {at}" + (", the archive is cut short" if members else ""))
        fields = [int(head[start : start + 8], 16) for start in range(6, HEAD, 8)]
        ino, mode, uid, gid, nlink, mtime, size, *devices, name_size, check = fields
        # Name and data begin at multiples of 4 from the archive's beginning; the name's size includes its zero byte.
        name_end = at + HEAD + name_size
        start = _aligned(name_end)
        end = start + size
        raw = data[at + HEAD : name_end]
        if end > len(data) or not raw.endswith(b"\0"):
            raise UserError(f"cpio: the member at byte {at} is damaged or cut short")
        # A file's name may be any bytes; what is not UTF-8 is kept, so that two names stay different.
        name = raw[:-1].decode(errors="surrogateescape")
        at = _aligned(end)
        if name == TRAILER:
            return members, data[at:]
        on, device = (devices[0], devices[1]), (devices[2], devices[3])
        members.append(Member(name, data[start:end], ino, mode, uid, gid, nlink, mtime, on, device, check))


def _record(inode: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _align(head + name) + _align(entry.data)


def _align(data: bytes) -> bytes:
    return data + b"\0" * (_aligned(len(data)) - len(data))


def _aligned(size: int) -> int:
    return size + -size % 4
