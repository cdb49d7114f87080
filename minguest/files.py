# SPDX-License-Identifier: Apache-2.0
"""Writing files so that a killed run leaves nothing that a later run takes for whole."""

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from minguest.errors import ToolError


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
            "free some space there and run the same command again; what is already whole is kept",
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

    What a killed run left beside `path` is removed first; a second run waits for the first.
    """
    with lock(path.with_name(f".{path.name}.lock")):
        new, old = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        new.mkdir()
        try:
            with disk_errors(path):
                yield new
                if path.exists():
                    # Two renames cannot be one: killed between them, there is no tree, and it is made again.
                    path.rename(old)
                new.rename(path)
        finally:
            shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's names, to the disk."""
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
