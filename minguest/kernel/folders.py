# SPDX-License-Identifier: Apache-2.0
"""The O= folders that kernels are built in."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from minguest.kernel import source
from minguest.paths import Store
from minguest.util import files

# How many kernels can be built at once: each has a folder with a fixed name, because ccache sees it in some commands.
SLOTS = 16


@contextmanager
def slot(store: Store, say: Callable[[str], None]) -> Iterator[tuple[Path, int]]:
    """An empty O= folder that is removed afterwards, and the descriptor of its lock, which make keeps a copy of.

    If this process is killed, no other run uses the folder until make and its children are gone too.
    """
    locks = [store.making / f".{number}.lock" for number in range(SLOTS)]
    with files.first_free(locks, lambda: say(f"waiting: {SLOTS} kernels are being built")) as (path, held):
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
    """One O= folder in which a run builds kernels that differ little: make compiles what a changed option reaches.

    It is emptied for another tree, and after a build that failed; it is removed when the run ends or is killed. The
    kernel is the same as from scratch (tests/slow/test_objects.py).
    """

    def __init__(self, store: Store, say: Callable[[str], None]) -> None:
        self._store, self._say = store, say
        self._ends = ExitStack()
        self._slot: tuple[Path, int] | None = None
        self._identity: bytes | None = None
        """Of the tree whose objects are in the folder, all of them complete."""

    def __enter__(self) -> "Objects":
        return self

    def __exit__(self, *raised: object) -> None:
        self._slot = None
        self._ends.close()

    @contextmanager
    def of(self, tree: source.Prepared) -> Iterator[tuple[Path, int]]:
        """What `slot` gives, with the objects of the last kernel."""
        if self._slot is None:
            self._slot = self._ends.enter_context(slot(self._store, self._say))
        work, held = self._slot
        if self._identity != tree.tree.identity:
            _empty(work)
        self._identity = None
        with files.disk_errors(work):
            yield work, held
        self._identity = tree.tree.identity
