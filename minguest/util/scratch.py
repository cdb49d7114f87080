# SPDX-License-Identifier: Apache-2.0
"""Temporary folders: what a killed run leaves behind, the next run removes."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "minguest-tmp-"


@contextlib.contextmanager
def folder(purpose: str, parent: Path | None = None) -> Iterator[Path]:
    """An empty folder that is removed at the end; leftovers of killed runs beside it are removed first.

    It is below $TMPDIR, or below `parent`, with a dot before its name: from there a result can be renamed into place.

    A live run holds a lock on its folder, flock(2), which ends with the process.
    """
    home, prefix = (parent, f".{PREFIX}") if parent else (Path(tempfile.gettempdir()), PREFIX)
    sweep(home, prefix)
    with contextlib.ExitStack() as held:
        while True:
            made = Path(held.enter_context(tempfile.TemporaryDirectory(prefix=f"{prefix}{purpose}-", dir=home)))
            if _taken(held, made):
                break
        yield made


def sweep(home: Path, prefix: str = PREFIX) -> None:
    """Remove the user's temporary folders in `home` that no process holds."""
    for path in home.glob(f"{prefix}*"):
        with contextlib.suppress(OSError), _opened(path) as handle:
            if os.fstat(handle).st_uid == os.geteuid():
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)


def _taken(held: contextlib.ExitStack, made: Path) -> bool:
    """Lock a new folder; False if another run removed it before it was locked."""
    try:
        handle = held.enter_context(_opened(made))
    except FileNotFoundError:
        return False
    with contextlib.suppress(OSError):  # a file system without such locks: sweep() removes nothing there either
        fcntl.flock(handle, fcntl.LOCK_EX)
    return made.is_dir()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)
