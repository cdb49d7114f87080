# SPDX-License-Identifier: Apache-2.0
"""A cpio archive in the newc format, from a list in the format of the kernel's own gen_init_cpio.

Sources of the format: cpio(5), Documentation/driver-api/early-userspace/buffer-format.rst and usr/gen_init_cpio.c
of the Linux tree. Our own code, because it must make device nodes without root, and every byte must follow from the
input alone: owner 0:0 unless another is stated, time 0, inodes counted from 1.
"""

import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

from minguest.util.errors import UserError

# Linux' initramfs unpacker refuses names of PATH_MAX and more, and leaves out a symlink with such a target.
NAME_MAX = 4095
# A size is a field of 8 hex digits.
SIZE_MAX = 0xFFFFFFFF
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
    owner: tuple[int, int] = (0, 0)
    """UID and GID."""


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
        case ["dir", path, bits, "0", "0"]:
            return Entry(name(path), stat.S_IFDIR | mode(bits))
        case ["file", path, location, bits, "0", "0"]:
            try:
                content = Path(location).read_bytes()
            except OSError as error:
                raise ValueError(f"cannot be read: {error.strerror}") from None
            return Entry(name(path), stat.S_IFREG | mode(bits), content)
        case ["slink", path, target, bits, "0", "0"]:
            return Entry(name(path), stat.S_IFLNK | mode(bits), target.encode())
        case ["nod", path, bits, "0", "0", ("b" | "c") as kind, major, minor]:
            return Entry(
                name(path),
                (stat.S_IFBLK if kind == "b" else stat.S_IFCHR) | mode(bits),
                device=(int(major), int(minor)),
            )
    raise ValueError("not one of: dir NAME MODE 0 0, file NAME LOCATION MODE 0 0, slink …, nod … b|c MAJOR MINOR")


def name(text: str) -> str:
    """The name in the archive of an absolute path; ValueError for a path that cannot be one."""
    parts = PurePosixPath(text).parts
    if not text.startswith("/") or ".." in parts:
        raise ValueError(f"{text!r}: a path in the initrd is absolute, without '..'")
    if len(parts) < 2 or "\0" in text:
        raise ValueError(f"{text!r}: names nothing in the initrd")
    if len(text.encode(errors="surrogateescape")) > NAME_MAX:
        raise ValueError(f"{text[:40]!r}…: a path in the initrd has at most {NAME_MAX} bytes")
    return "/".join(parts[1:])


def mode(text: str) -> int:
    """Permission bits from octal digits; ValueError."""
    if not re.fullmatch(r"[0-7]+", text):
        raise ValueError(f"mode {text!r} is not octal")
    if int(text, 8) > 0o7777:
        raise ValueError(f"mode {text!r} is more than 7777")
    return int(text, 8)


def tree(folder: Path) -> list[Entry]:
    """A folder's content as entries. Modes do not depend on the umask: 755 if the owner may execute it, else 644.

    UserError for what an overlay's folder cannot have; OSError for what cannot be read.
    """
    entries = []
    for path in _walk(folder):
        within = name("/" + path.relative_to(folder).as_posix())
        try:
            within.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{str(path)!r}: its name is not UTF-8", "rename it: the manifest names every file"
            ) from None
        found = path.lstat()
        kind = found.st_mode
        if stat.S_ISLNK(kind):
            entries.append(Entry(within, stat.S_IFLNK | 0o777, os.fsencode(path.readlink())))
        elif stat.S_ISDIR(kind):
            entries.append(Entry(within, stat.S_IFDIR | 0o755))
        elif stat.S_ISREG(kind):
            if found.st_size > SIZE_MAX:
                raise UserError(f"{path}: {found.st_size} bytes, but a file in an initrd has less than 4 GiB")
            bits = 0o755 if kind & stat.S_IXUSR else 0o644
            entries.append(Entry(within, stat.S_IFREG | bits, path.read_bytes()))
        else:
            raise UserError(
                f"{path}: is {_KINDS.get(stat.S_IFMT(kind), 'of an unknown kind')}; an overlay's folder has files, "
                "folders and symbolic links",
                "remove it; a [[node]] in overlay.toml makes a device node"
                if stat.S_IFMT(kind) in _NODES
                else "remove it",
            )
    return entries


_NODES = (stat.S_IFCHR, stat.S_IFBLK)
_KINDS = {
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a named pipe",
}


def _walk(folder: Path) -> Iterator[Path]:
    """All below a folder; OSError for a folder that cannot be read, which rglob() would leave out silently."""

    def unreadable(error: OSError) -> NoReturn:
        raise error

    for top, folders, others in os.walk(folder, onerror=unreadable):
        yield from (Path(top, each) for each in [*folders, *others])


def merge(entries: Iterable[Entry]) -> list[Entry]:
    """Entries of different names with their missing parents, sorted by name."""
    merged = {entry.name: entry for entry in entries}
    for each in list(merged):
        for parent in PurePosixPath(each).parents:
            if str(parent) != ".":
                found = merged.setdefault(str(parent), Entry(str(parent), stat.S_IFDIR | 0o755))
                if not stat.S_ISDIR(found.mode):
                    raise UserError(f"initrd: /{each} cannot lie below /{parent}, which is not a folder")
    # A folder's name is a prefix of the names in it, so it comes first, as the unpacker needs it.
    return [merged[each] for each in sorted(merged)]


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
    fields = (inode, entry.mode, *entry.owner, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _align(head + name) + _align(entry.data)


def _align(data: bytes) -> bytes:
    return data + b"\0" * (_aligned(len(data)) - len(data))


def _aligned(size: int) -> int:
    return size + -size % 4
