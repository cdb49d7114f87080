# SPDX-License-Identifier: Apache-2.0
"""Lists the user's cache and store, and removes what was not used for a long time."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from minguest.paths import PULLED, Store
from minguest.util import files

DAY_S = 86400
# Days after which pulled files are removed automatically: a server must not fill the disk.
PULLED_DAYS = 30
# The description of each kind in the table.
KINDS = {
    "download": "downloads of kernels and OVMF, by SHA-256",
    "pulled": "files of releases, by SHA-256",
    "tree": "kernel sources, unpacked and patched",
    "config": "results of Kconfig from fragments",
    "kernel": "built kernels",
    "firmware": "built firmware",
    "object": "ccache's objects",
    "cell": "kernels, inputs and records of cells that were run with scheduler=local:N",
    "desk": "inputs of cells, where workers ran them",
    "leftover": "left by killed builds and downloads",
}


class Entry(msgspec.Struct, frozen=True):
    """One thing that can be removed separately."""

    kind: str
    path: Path
    size: int
    """Bytes, including everything below it."""
    used: float
    """The time of its last use, in seconds since 1970."""
    lock: Path | None = None
    """A process that holds this lock file is using it."""
    beside: tuple[Path, ...] = ()
    """Paths that are removed with it."""


def entries(cache: Path, store: Store) -> list[Entry]:
    """Everything in both, the least recently used first."""
    return sorted(_entries(cache, store), key=lambda each: each.used)


def _fetched(cache: Path) -> Iterator[Entry]:
    for kind, folder in (("download", cache), ("pulled", cache / PULLED)):
        for path in _listed(folder / "sha256"):
            if path.suffix != ".lock":
                lock = path.with_name(f"{path.name.split('.')[0]}.lock")
                yield _entry("leftover" if path.suffix == ".part" else kind, path, lock=lock)


def _entries(cache: Path, store: Store) -> Iterator[Entry]:
    yield from _fetched(cache)
    yield from (_entry("config", path) for path in _listed(store.configs))
    for kind, folder in (("tree", store.trees), ("kernel", store.kernels), ("firmware", store.firmware)):
        for path in filter(Path.is_dir, _listed(folder)):
            if not path.name.startswith("."):
                made = path.with_name(f".{path.name}.made")
                yield _entry(kind, path, made, lock=path.with_name(f".{path.name}.busy"), beside=(made,))
            elif path.suffix in (".new", ".old"):
                # From a killed files.replacing_tree; a live one holds NAME.lock.
                yield _entry("leftover", path, lock=path.with_suffix(".lock"))
    for path in filter(Path.is_dir, _listed(store.making)):
        yield _entry("leftover", path, lock=path.with_name(f".{path.name}.lock"))
    for kind, folder in (("leftover", store.reproduce), ("object", store.objects)):
        if folder.is_dir():
            yield _entry(kind, folder)
    for kind, folder in (("cell", store.cells), ("desk", store.desks)):
        if folder.is_dir():
            yield _entry(kind, folder, lock=store.desks.with_name(".desks.busy"))


def forget_pulled(cache: Path, now: float) -> None:
    """Remove pulled files that were not used for PULLED_DAYS, except those that another process is using."""
    prune([each for each in _fetched(cache) if each.kind == "pulled"], Store(cache), PULLED_DAYS, now, lambda _: None)


def table(found: Sequence[Entry], now: float) -> str:
    """One line per kind: the count, the size, and the days since the oldest was used."""
    lines = []
    for kind, text in KINDS.items():
        of_kind = [each for each in found if each.kind == kind]
        if of_kind:
            days = (now - min(each.used for each in of_kind)) / DAY_S
            size = sum(each.size for each in of_kind)
            lines.append(
                f"  {kind:9} {len(of_kind):5} {size / 1e6:10,.1f} MB  {text}; unused for up to {days:.0f} days"
            )
    whole = sum(each.size for each in found)
    return "\n".join([*lines, f"  {'total':9} {len(found):5} {whole / 1e6:10,.1f} MB"])


def prune(found: Sequence[Entry], store: Store, days: float, now: float, say: Callable[[str], None]) -> list[Entry]:
    """Remove leftovers and what was not used for `days`; keep and name what another process is using.

    While a kernel is being built, no tree and no object is removed.
    """
    removed = []
    with ExitStack() as held:
        slots = {path: held.enter_context(files.if_free(path)) for path in sorted(store.making.glob(".*.lock"))}
        building = not all(slots.values())
        for each in found:
            if each.kind != "leftover" and now - each.used < days * DAY_S:
                continue
            used = building and each.kind in ("tree", "object")
            with _own(each, slots) as free:
                if used or not free:
                    say(f"{each.path}: in use, kept")
                    continue
                _remove(each)
            removed.append(each)
    return removed


@contextmanager
def _own(each: Entry, slots: Mapping[Path, bool]) -> Iterator[bool]:
    """Whether no process uses it; none can start to use it meanwhile."""
    if each.lock is None:
        yield True
    elif each.lock in slots:
        yield slots[each.lock]
    else:
        with files.if_free(each.lock) as free:
            yield free


def _remove(each: Entry) -> None:
    for path in (*each.beside, each.path):  # the mark of its completeness goes first
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _entry(
    kind: str, path: Path, stamp: Path | None = None, *, lock: Path | None = None, beside: tuple[Path, ...] = ()
) -> Entry:
    used = stamp if stamp and stamp.exists() else path
    return Entry(kind, path, _size(path), used.stat().st_mtime, lock, beside)


def _listed(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _size(path: Path) -> int:
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    return sum(each.lstat().st_size for each in path.rglob("*") if each.is_symlink() or each.is_file())
