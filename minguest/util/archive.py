# SPDX-License-Identifier: Apache-2.0
"""Taking archives apart without trusting them, and making gzip that is the same every time."""

import bz2
import contextlib
import difflib
import gzip
import io
import itertools
import lzma
import os
import posixpath
import shutil
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self, cast

from minguest.util import files
from minguest.util.errors import ToolError, UserError

# Bytes read at a time. Measured on Linux 6.12: 1 MiB costs half as much again, since most files are small and
# tarfile cuts each of them from the front of its buffer.
CHUNK = 1 << 16

# Folders in each other. Linux has 12. shutil.rmtree() on Python 3.11 calls itself for each and ends in a RecursionError
# at about 1000, so that a deeper tree could be made and not be removed.
DEEPEST = 100

# Headers that tell of the next one, and the bytes that one may have: a path has 4096 at most.
_ABOUT = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
HEADER_MAX = 8 << 10

# How a compressed file starts; anything else is taken for a plain tar.
_XZ = b"\xfd7zXZ\0"
_LZMA = b"\x5d\0\0"
_GZIP = b"\x1f\x8b"
_BZIP2 = b"BZh"


@contextmanager
def decompressed(path: Path) -> Iterator[IO[bytes]]:
    """Open a file and give its content as a forward stream, whether it is xz, lzma, gzip, bzip2 or plain.

    Raises UserError, naming the file, when it cannot be read, is cut short or is damaged; also when the body of
    the `with` finds that out while it reads.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    with file, _damage(path):
        start = file.read(len(_XZ))
        file.seek(0)
        if start == _XZ or start.startswith(_LZMA):
            with lzma.open(file) as stream:
                yield cast(IO[bytes], stream)
        elif start.startswith(_GZIP):
            with gzip.open(file) as stream:
                yield cast(IO[bytes], stream)
        elif start.startswith(_BZIP2):
            with bz2.open(file) as stream:
                yield cast(IO[bytes], stream)
        else:
            yield file


def extract_tar(tarball: Path, target: Path) -> None:
    """Unpack a tar of any compression into `target`, an empty folder that exists.

    If everything in the archive is below one folder, that folder is left out. Times are kept; owners are not, and
    modes become 755 or 644. Python's own `data` filter is not there on 3.11.2, so the members are checked here.

    Raises UserError for an archive that is damaged or does what no source archive should (absolute names, `..`,
    links out of it, devices), ToolError when the disk is full or not writable. `target` is empty again then.
    """
    if any(target.iterdir()):
        raise UserError(f"{target}: not empty, so nothing is unpacked into it")
    try:
        with files.disk_errors(target), decompressed(tarball) as stream:
            tree = _Tree(tarball, target)
            with tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK, tarinfo=_Member) as tar:
                for member in tar:
                    tree.add(tar, member)
                _check_end(tarball, tar)
            tree.finish()
    except BaseException as error:
        _clear(target)
        if isinstance(error, OSError):
            raise ToolError(f"{tarball}: cannot be unpacked into {target}: {error.strerror}") from error
        raise


def deb_member(deb: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Files out of a Debian package, by the names that were requested (`./usr/share/OVMF/OVMF_CODE_4M.fd`).

    Raises UserError when a name is not in it or the file is no Debian package.
    """
    from debian.debfile import DebError  # noqa: PLC0415 - slow, and few commands open a package

    with _opened_deb(deb) as package:
        held = package.data.tgz().getnames()
        _check_end(deb, package.data.tgz())
        content: dict[str, bytes] = {}
        for name in names:
            try:
                data = package.data.get_content(name)  # follows a link to a file beside it
            except DebError:
                data = None
            if data is None:
                near = difflib.get_close_matches(name, held, n=3)
                raise UserError(
                    f"{deb}: has no file {name}" + (f"; nearest: {', '.join(near)}" if near else ""),
                    "the package is another version than this project was written for; see what it holds with "
                    "dpkg-deb --contents",
                )
            content[name] = data
        return content


def deb_version(deb: Path) -> str:
    """The version that a Debian package's control file gives, such as `2025.02-8+deb13u1`."""
    with _opened_deb(deb) as package:
        version = package.debcontrol().get("Version")
        if not version:
            raise UserError(f"{deb}: its control file gives no version")
        return str(version)


def plain_members(stream: IO[bytes], limit: int) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and contents of the members of a tar that a stranger made: plain files with plain headers, and no more
    than `limit` bytes in all. A content is to be read before the next member is requested.

    Not by tarfile: it takes headers that speak of other headers (pax, GNU's long names), and one of 160,000 digits
    keeps it busy for 20 s; and a sparse member gives as many bytes as it likes out of none. ValueError (of which
    tarfile.TarError is none): such members, a damaged header, no end, too much.
    """
    left = limit
    while True:
        header = stream.read(tarfile.BLOCKSIZE)
        if not header.strip(b"\0") and len(header) == tarfile.BLOCKSIZE:
            break
        try:
            member = tarfile.TarInfo.frombuf(header, "ascii", "strict")
        except (tarfile.TarError, UnicodeDecodeError) as error:
            raise ValueError(f"a member's header: {error}") from error
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise ValueError(f"{member.name!r} is no plain file")
        padded = -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if member.size < 0 or padded > left:
            raise ValueError(f"more than {limit >> 20} MiB")
        left -= padded + tarfile.BLOCKSIZE
        content = _Part(stream, member.size)
        yield member.name, cast(IO[bytes], io.BufferedReader(content, CHUNK))
        content.skip()
        if len(stream.read(padded - member.size)) != padded - member.size:
            raise ValueError("cut short")
    # zeros up to a whole record of 10240 bytes, and nothing else
    while rest := stream.read(CHUNK):
        left -= len(rest)
        if rest.strip(b"\0") or left < 0:
            raise ValueError("goes on after its end")


class _Part(io.RawIOBase):
    """The next bytes of a stream, and no more."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream = stream
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(min(len(buffer), self._left))
        if not data and self._left and len(buffer):
            raise ValueError("cut short")
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)

    def skip(self) -> None:
        """Leave out what was not read."""
        while self._left:
            self.readinto(memoryview(bytearray(min(CHUNK, self._left))))


def gzip_bytes(data: bytes) -> bytes:
    """Gzip (RFC 1952) with no name, no time and a fixed system byte: the same bytes from the same input and zlib."""
    # gzip.compress() writes the system byte that zlib or this Python's version likes. Here: magic, deflate, no flags,
    # time 0, "slowest" (what level 9 must say), system 255 (unknown).
    header = b"\x1f\x8b\x08\x00" + struct.pack("<I", 0) + b"\x02\xff"
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = deflate.compress(data) + deflate.flush()
    return header + body + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


class _Member(tarfile.TarInfo):
    """Refuses a header about a header that is long: tarfile's time for one grows with the square of its digits."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _ABOUT and not 0 <= member.size <= HEADER_MAX:
            raise tarfile.ReadError(f"a header of {member.size} bytes for another header")
        return member


class _Tree:
    """A tree in the making, member by member. Symbolic links come last, so nothing can be written through one."""

    def __init__(self, tarball: Path, target: Path) -> None:
        self.tarball = tarball
        self.target = target
        self.folders: dict[str, int | None] = {"": None}
        """Name in the archive to its time in seconds, if the archive gives one."""
        self.regular: set[str] = set()
        self.symlinks: dict[str, str] = {}

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Make one member; a symbolic link is only noted."""
        name = self._inside(member.name)
        if member.size < 0:  # older tarfiles let it through, and would then go backwards
            raise self._refusal("has a file of a negative size", member.name)
        if member.issparse():
            raise self._refusal("has a sparse file, which may unpack to any size", member.name)
        if member.isdir():
            self._make_folder(name)
            self.folders[name] = _seconds(member)
            return
        self._make_folder(posixpath.dirname(name))
        if not name or name in self.folders or name in self.regular or name in self.symlinks:
            raise self._refusal("has two members of one name", member.name)
        if member.isreg():
            _write(tar, member, self.target / name)
            self.regular.add(name)
        elif member.islnk():
            goal = self._inside(member.linkname)
            if goal not in self.regular:
                raise self._refusal("has a hard link to no file of its own", f"{member.name} -> {member.linkname}")
            os.link(self.target / goal, self.target / name)
            self.regular.add(name)
        elif member.issym():
            self.symlinks[name] = member.linkname
        else:
            raise self._refusal("holds a device, a pipe or another thing that no source has", member.name)

    def finish(self) -> None:
        """Leave out the one folder that all is below, if so; then make the symbolic links, then set folders' times."""
        top = self._top()
        if top:
            _lift(self.target, top)
        strip = len(top) + 1 if top else 0
        for name, goal in self.symlinks.items():
            if goal.startswith("/") or "\0" in goal:
                raise self._refusal("has a link that points outside its folder", f"{name} -> {goal}")
            (self.target / name[strip:]).symlink_to(goal)
        # Only now, with all links in place, does a path through several of them show where it ends: `p -> .` and
        # `q -> p/../..` look harmless one by one.
        root = os.path.realpath(self.target)
        for name, goal in self.symlinks.items():
            end = os.path.realpath(self.target / name[strip:])
            if end != root and not end.startswith(root + "/"):
                raise self._refusal("has a link that points outside its folder", f"{name} -> {goal}")
        # Last, since making a file changes its folder's time.
        for name, seconds in self.folders.items():
            if seconds is not None and name != top:
                os.utime(self.target / name[strip:], (seconds, seconds))

    def _inside(self, name: str) -> str:
        """The name without `.` and doubled slashes; UserError if it leaves the archive's folder."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts:
            raise self._refusal("writes outside its folder", name)
        if "\0" in name:
            raise self._refusal("has a name with a zero byte in it", name)
        if len(parts) > DEEPEST:
            raise self._refusal(f"has folders more than {DEEPEST} deep", f"{name[:100]}…")
        return "/".join(parts)

    def _make_folder(self, name: str) -> None:
        """Make a folder and those above it, where no file and no link may be."""
        missing = []
        while name not in self.folders:
            missing.append(name)
            name = posixpath.dirname(name)
        for folder in reversed(missing):
            if folder in self.symlinks:
                raise self._refusal("writes through a symbolic link", folder)
            if folder in self.regular:
                raise self._refusal("has a file and a folder of one name", folder)
            path = self.target / folder
            path.mkdir()
            path.chmod(0o755)  # whatever the umask is
            self.folders[folder] = None

    def _top(self) -> str:
        """The one folder that everything is below, or an empty string."""
        names = itertools.chain(self.folders, self.regular, self.symlinks)
        tops = {name.split("/", 1)[0] for name in names if name}
        top = tops.pop() if len(tops) == 1 else ""
        return top if top in self.folders else ""

    def _refusal(self, what: str, name: str) -> UserError:
        # repr(), for a name may hold what a terminal obeys.
        return UserError(f"{self.tarball}: the archive {what}: {name!r}; nothing was kept")


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    source = tar.extractfile(member)
    assert source is not None  # it is for what is no regular file
    with source, path.open("xb", buffering=0) as sink:
        while chunk := source.read(CHUNK):
            view = memoryview(chunk)
            while view:  # an unbuffered write may take a part, when the disk is nearly full
                view = view[sink.write(view) :]
        os.fchmod(sink.fileno(), 0o755 if member.mode & 0o100 else 0o644)
        os.utime(sink.fileno(), (_seconds(member), _seconds(member)))


def _seconds(member: tarfile.TarInfo) -> int:
    """The member's time; what no file system could hold (or is not a number) becomes 1970."""
    return int(member.mtime) if 0 <= member.mtime < 1 << 33 else 0


def _check_end(tarball: Path, tar: tarfile.TarFile) -> None:
    """Read on to the stream's end: only zeros may be there, and some must.

    A tar ends with two zero blocks of 512 bytes. tarfile takes a broken header for the end too, and would leave out
    the rest of the files without a word; and a compressed file's check sum is behind its last byte.
    """
    rest = cast(IO[bytes], tar.fileobj)
    found = 0
    while chunk := rest.read(CHUNK):
        if chunk.strip(b"\0"):
            raise UserError(f"{tarball}: damaged: a member's header is no header")
        found += len(chunk)
    if not found:
        raise UserError(f"{tarball}: cut short: the archive has no end")


def _lift(target: Path, top: str) -> None:
    """Move what is in `target/top` to `target`; the folder gets another name before, as it may hold its namesake."""
    aside = Path(tempfile.mkdtemp(dir=target))
    (target / top).rename(aside)
    for path in list(aside.iterdir()):
        path.rename(target / path.name)
    aside.rmdir()


def _clear(folder: Path) -> None:
    """Empty a folder as far as that can be done: it is called on the way out of an error, which must not be hidden."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


@contextmanager
def _opened_deb(deb: Path) -> Iterator[Any]:
    from debian.arfile import ArError  # noqa: PLC0415 - as above
    from debian.debfile import DebFile  # noqa: PLC0415

    try:
        file = deb.open("rb")
    except OSError as error:
        raise UserError(f"{deb}: cannot be read: {error.strerror}") from error
    with file, _damage(deb):
        try:
            yield DebFile(fileobj=file)
        except (ArError, ValueError) as error:
            raise UserError(f"{deb}: not a Debian package: {error}") from error


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn the many ways in which Python says that a file's content is not right into one that names the file."""
    remedy = "take it from where it came once more, and compare its SHA-256"
    try:
        yield
    except EOFError as error:
        raise UserError(f"{path}: cut short: the file ends before its content does", remedy) from error
    except (lzma.LZMAError, zlib.error, tarfile.TarError) as error:
        raise UserError(f"{path}: damaged, or not what it should be: {error}", remedy) from error
    except OSError as error:
        # gzip and bz2 raise it with words alone; one with a number is the system's, about something else.
        if error.errno is not None:
            raise
        raise UserError(f"{path}: damaged, or not what it should be: {error}", remedy) from error
