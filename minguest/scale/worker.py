# SPDX-License-Identifier: Apache-2.0
"""A worker's side: what it says about itself, and how it runs one cell. Dask calls these by name.

Every answer is data, errors too: a worker raises nothing that the submitter would have to unpickle.
"""

import fcntl
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from minguest import settings as environment
from minguest.kernel import folders, source
from minguest.paths import Store as Local
from minguest.scale import cells, records, settings, store
from minguest.scale.kernels import Kernels
from minguest.scale.orders import Done, Facts, Made, Order, Setting, code
from minguest.util import files
from minguest.util.errors import MinguestError, ToolError
from minguest.vm import emulator, kvm

# Dask's topic for a cell's beginning.
TOPIC = "minguest"
# What a worker says is missing that needs the kernel's source, and has none: it came when the others had theirs.
TREE = "tree"
MEMINFO = Path("/proc/meminfo")


class Bench:
    """What a worker process keeps between cells: it is an attribute of Dask's worker."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        """A worker with several threads runs one cell at a time all the same."""
        self.local = Local(environment.store_folder())
        self.objects = folders.Objects(self.local, cells.quiet)
        self.settings: dict[str, tuple[Setting, Path]] = {}
        self.stores: dict[str, store.Store] = {}
        self.trees: dict[bytes, source.Prepared] = {}
        self.made = made()

    def store(self, place: str) -> store.Store:
        if place not in self.stores:
            self.stores[place] = store.opened(place)
        return self.stores[place]


def made() -> Made:
    """What makes results here; `none` for a program that is missing."""
    try:
        compiler = source.compiler(source.compiler_tools())
    except ToolError:
        compiler = "no compiler"
    try:
        return Made(compiler, emulator.version())
    except ToolError:
        return Made(compiler, "none")


def probe(*, hushed: bool = False) -> bytes:
    """This worker's Facts, as JSON. `hushed`: it is of a local cluster, and must not draw on the submitter's terminal
    how far its builds are."""
    if hushed:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    bench = _bench()
    local, bench.made = bench.local, made()
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="utf-8").splitlines())
    trees = tuple(
        path.name for path in sorted(local.trees.glob("linux-*")) if source.stamp(path) and source.intact(path)
    )
    facts = Facts(
        _dask().address, socket.gethostname(), os.getpid(), code(), bench.made,
        int(lines["MemAvailable"].split()[0]) << 10, kvm.closed(), trees,
    )  # fmt: skip
    return msgspec.json.encode(facts)


def _dask() -> Any:
    from distributed import get_worker  # noqa: PLC0415 - most users have no Dask

    return get_worker()


def _bench() -> Bench:
    worker = _dask()
    if not hasattr(worker, "minguest"):
        worker.minguest = Bench()
    found: Bench = worker.minguest
    return found


def tidy() -> None:
    """Remove the folder that kernels were built in, if no cell is running."""
    bench = _bench()
    if bench.lock.acquire(blocking=False):
        try:
            bench.objects.__exit__()
        finally:
            bench.lock.release()


def cell(message: bytes, place: str, run_id: str) -> bytes:
    """Run an Order of JSON with the store at `place`; a Done as JSON. `run_id`: its engine's, for the event."""
    order = msgspec.json.decode(message, type=Order)
    bench = _bench()
    worker = _dask()
    with bench.lock, _in_use(bench.local):
        name = f"{socket.gethostname()} ({worker.address.rpartition('/')[2]})"
        worker.log_event(TOPIC, {"run": run_id, "order": order.id, "worker": worker.address, "name": name})
        done = run(order, bench.store(place), bench, name)
    return msgspec.json.encode(done)


def run(order: Order, shared: store.Store, bench: Bench, name: str) -> Done:
    """Run one cell."""
    work = bench.local.desks / "work" / f"{os.getpid()}-{threading.get_ident()}"
    try:
        work.mkdir(parents=True, exist_ok=True)
        setting, inputs = _setting(order.setting, shared, bench)
    except (store.Poisoned, store.Missing) as error:
        poisoned = error.name if isinstance(error, store.Poisoned) else f"settings/{order.setting}"
        return Done(order.id, name, problems=(str(error),), poisoned=(poisoned,))
    except (MinguestError, OSError) as error:
        return Done(order.id, name, error=str(error))
    shared_kernels = Kernels(shared, name, str(bench.made))
    own = isinstance(shared.place, store.Folder) and shared.place.root == bench.local.cells
    desk = cells.Desk(
        setting, inputs, work, shared, bench.local, bench.made, bench.objects, shared_kernels, bench.trees, own
    )
    start = time.monotonic()
    try:
        if order.builds:
            desk.tree()  # what is wrong with the store is not the cell's result
        produced = cells.KINDS[order.kind](desk, order)
    except store.Poisoned as error:
        return Done(order.id, name, problems=(str(error),), poisoned=(error.name,))
    except store.Missing as error:
        return Done(order.id, name, problems=(str(error),), poisoned=(TREE,))
    except (MinguestError, OSError) as error:
        return Done(order.id, name, error=str(error), problems=tuple(shared_kernels.problems))
    seconds = time.monotonic() - start
    done = _delivered(order, produced, desk, name, seconds)
    shutil.rmtree(work, ignore_errors=True)
    return done


def _delivered(order: Order, produced: cells.Produced, desk: cells.Desk, name: str, seconds: float) -> Done:
    """The result with its files in the store, or in the message if the store does not take them."""
    problems = list(desk.kernels.problems)
    kept: dict[str, str] = {}
    inline: dict[str, bytes] = {}
    for each, path in produced.files.items():
        try:
            if not inline:  # a store that is full stays so
                kept[each] = desk.store.put(path)
                continue
        except (MinguestError, OSError) as error:
            problems.append(_refused(desk.store, error))
        inline[each] = path.read_bytes()
    if produced.outcome and not inline:
        try:
            problems += records.keep(
                desk.store, order, desk.setting, desk.made, desk.accel, produced.outcome, name, seconds, kept
            )  # fmt: skip
        except (MinguestError, OSError) as error:
            problems.append(_refused(desk.store, error))
    problems += [f"{desk.store}: {each} was poisoned, and was replaced" for each in desk.store.replaced]
    desk.store.replaced.clear()
    result = msgspec.Raw(msgspec.json.encode(produced.result))
    return Done(order.id, name, result, kept, inline, problems=tuple(problems), seconds=seconds)


def _refused(place: store.Store, error: Exception) -> str:
    """Why a store takes no files, in the same words for each file, so that it is said once."""
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    why = (cause.strerror if isinstance(cause, OSError) else "") or str(getattr(error, "message", error))
    return f"{place}: the store takes no files: {why}; results come without it, and are kept where the run was started"


def _setting(key: str, shared: store.Store, bench: Bench) -> tuple[Setting, Path]:
    """A setting and the folder with its files, verified once by each process."""
    if key not in bench.settings or not bench.settings[key][1].is_dir():
        setting = shared.record(f"settings/{key}", Setting)
        if setting is None:
            raise store.Missing(f"{shared}: has no settings/{key}.json", "run the same command again")
        if setting.key != key:
            raise store.Poisoned(str(shared), f"settings/{key}.json", "it is another setting")
        bench.settings[key] = (setting, settings.make(setting, shared, bench.local))
    return bench.settings[key]


@contextmanager
def _in_use(local: Local) -> Iterator[None]:
    """Keep `minguest cache --prune` off the desks and the local store; several workers can hold this."""
    local.desks.mkdir(parents=True, exist_ok=True)
    with local.desks.with_name(".desks.busy").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield
        files.used(local.desks)
        files.used(local.cells)
