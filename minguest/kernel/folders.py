# SPDX-License-Identifier: Apache-2.0
"""The O= folders that kernels are built in."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from minguest.kernel import source
from minguest.paths import Store
from minguest.util import files, run

# How many kernels can be built at once: each has a folder with a fixed name, because ccache sees it in some commands.
SLOTS = 16
# Objects keep theirs, so they have their own: else a few would leave none to configure a kernel in.
KEPT_SLOTS = 1024


@contextmanager
def slot(store: Store, say: Callable[[str], None], *, kept: bool = False) -> Iterator[tuple[Path, int]]:
    """An empty O= folder that is removed afterwards, and the descriptor of its lock, which make keeps a copy of.

    If this process is killed, no other run uses the folder until make and its children are gone too. `kept`: for as
    long as a run.
    """
    prefix, count = ("kept-", KEPT_SLOTS) if kept else ("", SLOTS)
    locks = [store.making / f".{prefix}{number}.lock" for number in range(count)]
    with files.first_free(locks, lambda: say(f"waiting: {count} kernels are being built")) as (path, held):
        work = path.with_name(path.name.strip(".").removesuffix(".lock"))
        _empty(work)
        try:
            with files.disk_errors(work):
                yield work, held
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


class Objects:
    """O= folders for kernels that differ little from one: each begins with a copy of that one's objects, and make
    compiles what the options that differ reach.

    make always works in the same folder. Both are removed when the run ends or is killed. A kernel is the same as from
    scratch (tests/slow/test_objects.py).
    """

    def __init__(self, store: Store, say: Callable[[str], None]) -> None:
        self._store, self._say = store, say
        self._ends = ExitStack()
        self._slots: tuple[tuple[Path, int], Path] | None = None
        """make's folder, with its lock, and the one with the first kernel's objects."""
        self._first: tuple[bytes, str] | None = None
        """The tree and the config of the first kernel, whose objects are complete."""

    def __enter__(self) -> "Objects":
        return self

    def __exit__(self, *raised: object) -> None:
        self._slots = self._first = None
        self._ends.close()

    @contextmanager
    def of(self, tree: source.Prepared, text: str, first: Callable[[Path, int], None]) -> Iterator[tuple[Path, int]]:
        """What `slot` gives, with the objects of the kernel from `tree` and the config `text`. `first` builds that one
        in a folder, with its lock's descriptor, if it is not there yet."""
        if self._slots is None:
            mine = self._ends.enter_context(slot(self._store, self._say, kept=True))
            self._slots = mine, self._ends.enter_context(slot(self._store, self._say, kept=True))[0]
        (work, held), kept = self._slots
        with files.disk_errors(work):
            if self._first == (tree.tree.identity, text):
                _copy(kept, work)
            else:
                self._first = None
                _empty(work)
                first(work, held)
                _copy(work, kept)
                self._first = tree.tree.identity, text
            yield work, held


def _copy(folder: Path, to: Path) -> None:
    """Copy a folder with all times: make goes by them."""
    shutil.rmtree(to, ignore_errors=True)
    run.run(["cp", "-a", "--reflink=auto", folder, to], bare=True)
