# SPDX-License-Identifier: Apache-2.0
"""Unpacks untrusted archives, and writes reproducible gzip."""

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self, cast

from minguest.util import files, run, scratch
from minguest.util.errors import ToolError, UserError

# Bytes read at a time. Measured on Linux 6.12: with 1 MiB, unpacking takes half as long again, because most files are
# small and tarfile cuts each of them from the front of its buffer.
CHUNK = 1 << 16

# Levels of nested folders. Linux has 12. shutil.rmtree() on Python 3.11 recurses, and raises RecursionError at about
# 1000 levels: a deeper tree could be made, but not removed.
DEEPEST = 100

# Headers that describe the next header, and how many bytes such a header may have: a path has at most 4096.
_ABOUT = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
HEADER_MAX = 8 << 10

# The first bytes of a compressed file; anything else is read as a plain tar.
_XZ = b"\xfd7zXZ\0"
_LZMA = b"\x5d\0\0"
_GZIP = b"\x1f\x8b"
_BZIP2 = b"BZh"
_ZSTD = b"\x28\xb5\x2f\xfd"
# Most bytes that the program zstd may unpack into: a kernel's source has under 2 GB.
ZSTD_MAX = 4 << 30


@contextmanager
def decompressed(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that is xz, lzma, gzip, bzip2, zstd or plain, and give its content as a forward stream.

    Raises UserError, which names the file, when the file is unreadable, cut short or damaged. The body of the `with`
    gets the same error if its reading finds the damage.
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
        elif start.startswith(_ZSTD):
            with _by_zstd(path) as stream:
                yield stream
        else:
            yield file


@contextmanager
def _by_zstd(path: Path) -> Iterator[IO[bytes]]:
    """What the program makes of a file, in a temporary file: the standard library cannot unpack zstd."""
    run.require("zstd")
    with scratch.folder("zstd") as folder:
        content = folder / "content"
        limits = ["prlimit", "--core=0", f"--fsize={ZSTD_MAX}"]
        argv = [*limits, "zstd", "-d", "-q", "-o", str(content), str(path.absolute())]
        status, said = run.run(argv, check=False, bare=True)
        if "No space" in said:
            raise ToolError(f"{folder}: no room to unpack {path}", "make room in $TMPDIR, or set it to another folder")
        if status != 0:
            raise UserError(
                f"{path}: damaged, or more than {ZSTD_MAX >> 30} GiB: {said.strip().splitlines()[-1:] or status}",
                "copy or download it again, and compare its SHA-256",
            )
        with content.open("rb") as stream:
            yield stream


def extract_tar(tarball: Path, target: Path, wanted: Callable[[str], bool] = lambda _: True) -> None:
    """Unpack a tar of any compression into `target`, an empty folder that exists; of it the `wanted` members, by name.

    If everything in the archive is below one folder, that folder is left out. Times are kept. Owners are not kept, and
    modes become 755 or 644. Python 3.11.2 lacks the `data` filter, so the members are checked here.

    Raises UserError for an archive that is damaged or does what no source archive should (absolute names, `..`,
    links out of it, devices), ToolError when the disk is full or not writable. `target` is then empty again.
    """
    if any(target.iterdir()):
        raise UserError(f"{target}: not empty, so nothing was unpacked into it")
    try:
        with files.disk_errors(target), decompressed(tarball) as stream:
            tree = _Tree(tarball, target)
            with tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK, tarinfo=_Member) as tar:
                for member in filter(lambda each: wanted(each.name), tar):
                    tree.add(tar, member)
                _check_end(tarball, tar)
            tree.finish()
    except BaseException as error:
        _clear(target)
        if isinstance(error, OSError):
            raise ToolError(f"{tarball}: cannot be unpacked into {target}: {error.strerror}") from error
        raise


def deb_member(deb: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Files from a Debian package, by the requested names (`./usr/share/OVMF/OVMF_CODE_4M.fd`).

    Raises UserError when the package lacks a name, or when the file is not a Debian package.
    """
    from debian.debfile import DebError  # noqa: PLC0415 - slow, and few commands open a package

    with _opened_deb(deb) as package:
        members = package.data.tgz().getnames()
        _check_end(deb, package.data.tgz())
        content: dict[str, bytes] = {}
        for name in names:
            try:
                data = package.data.get_content(name)  # follows a link to a file beside it
            except DebError:
                data = None
            if data is None:
                near = difflib.get_close_matches(name, members, n=3)
                raise UserError(
                    f"{deb}: has no file {name}" + (f"; nearest: {', '.join(near)}" if near else ""),
                    "list its files with dpkg-deb --contents: this project was written for another version of the "
                    "package",
                )
            content[name] = data
        return content


def extract_deb(deb: Path, target: Path) -> None:
    """Unpack the files of a Debian package into `target`, an empty folder, as `extract_tar` does."""
    with _opened_deb(deb) as package, scratch.folder("deb") as folder:
        (name,) = [each for each in package.getnames() if each.startswith("data.tar")]
        data = folder / name
        with data.open("wb") as file:
            shutil.copyfileobj(package.getmember(name), file, CHUNK)
        extract_tar(data, target)


def deb_version(deb: Path) -> str:
    """The version in a Debian package's control file, such as `2025.02-8+deb13u1`."""
    with _opened_deb(deb) as package:
        version = package.debcontrol().get("Version")
        if not version:
            raise UserError(f"{deb}: its control file gives no version")
        return str(version)


def plain_members(stream: IO[bytes], limit: int) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and contents of the members of an untrusted tar: plain files with plain headers, and at most `limit` bytes
    in all. Read a content before you request the next member.

    tarfile does not do: it accepts headers that describe other headers (pax, GNU's long names), and one of 160,000
    digits keeps it busy for 20 s; and a sparse member of no bytes gives any number of bytes. Raises ValueError (which
    tarfile.TarError is not) for such members, a damaged header, a missing end, too many bytes.
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
            raise ValueError(f"{member.name!r} is not a plain file")
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
    """The next `size` bytes of a stream, and no more."""

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
        """Skip the bytes that were not read."""
        while self._left:
            self.readinto(memoryview(bytearray(min(CHUNK, self._left))))


def gzip_bytes(data: bytes) -> bytes:
    """Gzip (RFC 1952) without name and time, with a fixed system byte: the same input and zlib give the same bytes."""
    # The system byte of gzip.compress() depends on zlib and on the version of Python. Here: magic, deflate, no flags,
    # time 0, "slowest" (required for level 9), system 255 (unknown).
    header = b"\x1f\x8b\x08\x00" + struct.pack("<I", 0) + b"\x02\xff"
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = deflate.compress(data) + deflate.flush()
    return header + body + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


class _Member(tarfile.TarInfo):
    """Refuses a long header about a header: tarfile's time for one grows with the square of its digits."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _ABOUT and not 0 <= member.size <= HEADER_MAX:
            raise tarfile.ReadError(f"a header of {member.size} bytes for another header")
        return member


class _Tree:
    """A tree that grows member by member. Symbolic links are made last, so nothing can be written through one."""

    def __init__(self, tarball: Path, target: Path) -> None:
        self.tarball = tarball
        self.target = target
        self.folders: dict[str, int | None] = {"": None}
        """From the name in the archive to its time in seconds, None if the archive has no time."""
        self.regular: set[str] = set()
        self.symlinks: dict[str, str] = {}

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Make one member; a symbolic link is only noted."""
        name = self._inside(member.name)
        if member.size < 0:  # older versions of tarfile accept it, and then seek backwards
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
                raise self._refusal("has a hard link to a file it does not hold", f"{member.name} -> {member.linkname}")
            os.link(self.target / goal, self.target / name)
            self.regular.add(name)
        elif member.issym():
            self.symlinks[name] = member.linkname
        else:
            raise self._refusal("holds a device, a pipe or another thing that no source archive has", member.name)

    def finish(self) -> None:
        """Drop the one folder that holds everything, if there is one; then make symbolic links, set folders' times."""
        top = self._top()
        if top:
            _lift(self.target, top)
        strip = len(top) + 1 if top else 0
        for name, goal in self.symlinks.items():
            if goal.startswith("/") or "\0" in goal:
                raise self._refusal("has a link that points outside its folder", f"{name} -> {goal}")
            (self.target / name[strip:]).symlink_to(goal)
        # Only with all links in place can a path through several of them be resolved: `p -> .` and `q -> p/../..` look
        # harmless one by one.
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
        """Make a folder and its parents; UserError where a file or a link has one of their names."""
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
        """The one folder that holds everything, or an empty string."""
        names = itertools.chain(self.folders, self.regular, self.symlinks)
        tops = {name.split("/", 1)[0] for name in names if name}
        top = tops.pop() if len(tops) == 1 else ""
        return top if top in self.folders else ""

    def _refusal(self, what: str, name: str) -> UserError:
        # repr(), because a name may hold control characters of a terminal.
        return UserError(f"{self.tarball}: the archive {what}: {name!r}; nothing was kept")


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    source = tar.extractfile(member)
    assert source is not None  # it is None only for what is not a regular file
    with source, path.open("xb", buffering=0) as sink:
        while chunk := source.read(CHUNK):
            view = memoryview(chunk)
            while view:  # an unbuffered write may take a part, when the disk is nearly full
                view = view[sink.write(view) :]
        os.fchmod(sink.fileno(), 0o755 if member.mode & 0o100 else 0o644)
        os.utime(sink.fileno(), (_seconds(member), _seconds(member)))


def _seconds(member: tarfile.TarInfo) -> int:
    """The member's time; 1970 for a time that no file system can hold (or that is not a number)."""
    return int(member.mtime) if 0 <= member.mtime < 1 << 33 else 0


def _check_end(tarball: Path, tar: tarfile.TarFile) -> None:
    """Read on to the stream's end: it must consist of zeros, of at least one.

    A tar ends with two zero blocks of 512 bytes. tarfile also takes a broken header for the end, and would silently
    leave out the remaining files; and a compressed file's checksum follows its last byte.
    """
    rest = cast(IO[bytes], tar.fileobj)
    found = 0
    while chunk := rest.read(CHUNK):
        if chunk.strip(b"\0"):
            raise UserError(f"{tarball}: damaged: a member's header is invalid")
        found += len(chunk)
    if not found:
        raise UserError(f"{tarball}: cut short: the archive has no end")


def _lift(target: Path, top: str) -> None:
    """Move what is in `target/top` to `target`; the folder is renamed first, because it may hold its namesake."""
    aside = Path(tempfile.mkdtemp(dir=target))
    (target / top).rename(aside)
    for path in list(aside.iterdir()):
        path.rename(target / path.name)
    aside.rmdir()


def _clear(folder: Path) -> None:
    """Empty a folder as far as possible. It runs while an error is raised, so it must not raise another one."""
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
    """Turn Python's many exceptions for a file with wrong content into one that names the file."""
    remedy = "copy or download it again, and compare its SHA-256"
    try:
        yield
    except EOFError as error:
        raise UserError(f"{path}: cut short: the file ends before its content does", remedy) from error
    except (lzma.LZMAError, zlib.error, tarfile.TarError) as error:
        raise UserError(f"{path}: damaged, or not the format that was expected: {error}", remedy) from error
    except OSError as error:
        # gzip and bz2 raise it without an errno; one with an errno is the system's, about something else.
        if error.errno is not None:
            raise
        raise UserError(f"{path}: damaged, or not the format that was expected: {error}", remedy) from error
