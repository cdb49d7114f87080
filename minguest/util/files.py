# SPDX-License-Identifier: Apache-2.0
"""Writes files so that a killed run leaves nothing that a later run takes for complete."""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from minguest.util.errors import ToolError

# Up to this many files are flushed to the disk one by one.
FEW = 200


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a quota into an error that names the place."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path if path.exists() else path.parent).free
        raise ToolError(
            f"{path}: {os.strerror(error.errno)} ({free / 1e6:.0f} MB free)",
            "free some space there and run the same command again; what is already complete is kept",
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; on success sync it and rename it there, else remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with disk_errors(path):
            yield temporary
            executable = temporary.stat().st_mode & 0o100
            temporary.chmod((0o777 if executable else 0o666) & ~_umask())
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, content: bytes | str) -> None:
    """Write a whole file, or leave what was there."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def copy(source: Path, target: Path) -> None:
    """Copy one file's content, whole or not at all."""
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


@contextmanager
def lock(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Hold `path` as a lock file against other processes; `waiting` is called once if another one has it.

    Gives the file's descriptor: a child that keeps a copy of it holds the lock as long as it lives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


@contextmanager
def replacing_tree(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path`; on success it takes the place of `path`, else it is removed.

    All that was written there is flushed to the disk first. Leftovers of a killed run beside `path` are removed; a
    second run waits for the first.
    """
    with lock(path.with_name(f".{path.name}.lock")):
        new, old = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")
        if old.exists() and not path.exists():
            old.rename(path)  # a run was killed between the two renames of _exchange
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        new.mkdir()
        try:
            with disk_errors(path):
                yield new
                sync_tree(new)
                if path.exists():
                    _exchange(new, path, old)
                else:
                    new.rename(path)
                sync(path.parent)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _exchange(new: Path, path: Path, aside: Path) -> None:
    """Let two folders exchange their names, in one step where the file system can (renameat2(2)).

    Elsewhere it takes two renames. If it is interrupted between them, `path` is restored, at once or by the next run.
    """
    failed = _renameat2(new, path)
    if failed == 0:
        return
    if failed not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(failed, os.strerror(failed), str(path))
    path.rename(aside)
    try:
        new.rename(path)
    except BaseException:
        if not path.exists():
            aside.rename(path)
        raise
    aside.rename(new)


def _renameat2(one: Path, two: Path) -> int:
    """Exchange two names: 0, or the errno."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    library = ctypes.CDLL(None, use_errno=True)
    done: int = library.renameat2(here, os.fsencode(one), here, os.fsencode(two), exchange)
    return 0 if done == 0 else ctypes.get_errno()


def sync_tree(path: Path) -> None:
    """Flush a folder and everything below it to the disk: file by file up to FEW, else with syncfs(2).

    syncfs(2) also waits for what others write to that file system.
    """
    below = [path, *path.rglob("*")]
    if len(below) <= FEW:
        for each in below:
            if not each.is_symlink():
                sync(each)
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(handle) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    finally:
        os.close(handle)


@contextmanager
def if_free(path: Path) -> Iterator[bool]:
    """Whether the lock file `path` is free; if so it is held, as in `lock`."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextmanager
def first_free(paths: Sequence[Path], waiting: Callable[[], None] = lambda: None) -> Iterator[tuple[Path, int]]:
    """Hold the first free one of several lock files, with its descriptor; if none is free, wait until one is."""
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    told = False
    while True:
        for path in paths:
            with path.open("a") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield path, file.fileno()
                return
        if not told:
            waiting()
            told = True
        time.sleep(0.2)


def used(path: Path) -> None:
    """Note that a file or a folder was used now, so that a prune keeps it; a read-only one stays as it is."""
    with contextlib.suppress(OSError):
        os.utime(path)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
