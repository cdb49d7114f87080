# SPDX-License-Identifier: Apache-2.0
"""Cells on Dask's workers, two in this process: what is chosen, what is done again, and what is said."""

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import distributed
import msgspec
import pytest

from minguest.model import Launch
from minguest.scale import cells, choice, orders, runs, scheduler, worker
from minguest.scale.orders import Done, Facts, Made, Order, Setting
from minguest.scale.scheduler import Engine
from minguest.scale.settings import Inputs
from minguest.scale.store import Folder, Store
from minguest.tasks import scaled
from minguest.util.errors import ToolError, UserError
from tests.unit.scale.test_settings import toy

MADE, OTHER = Made("gcc 12.2.0", "7.2.22"), Made("gcc 13.1.0", "7.2.22")
GIB = 1 << 30


def facts(name: str, made: Made = MADE, code: str = "c", memory: int = 8 * GIB, host: str = "") -> Facts:
    return Facts(f"tcp://10.0.0.1:{name}", host or f"host-{name}", 1, code, made, memory, "", ())


# ── which workers ──


def test_the_largest_group_gets_the_work_and_the_others_a_line() -> None:
    chosen = choice.choose([facts("1", OTHER), facts("2"), facts("3"), facts("4", code="d" * 64)], "c", GIB)
    assert (chosen.made, [each[-1] for each in chosen.workers]) == (MADE, ["2", "3"])
    assert [line.partition(": ")[0] for line in chosen.refused] == ["host-4 (10.0.0.1:4)", "host-1 (10.0.0.1:1)"]
    assert "has another minguest (dddddddddddd, not c)" in chosen.refused[0]
    assert "makes with QEMU 7.2.22, gcc 13.1.0, most with QEMU 7.2.22, gcc 12.2.0" in chosen.refused[1]


def test_a_worker_that_comes_later_must_be_of_the_group() -> None:
    late = [facts("1", OTHER), facts("2", OTHER), facts("3")]
    assert [each[-1] for each in choice.choose(late, "c", GIB, MADE).workers] == ["3"]


def test_where_kernels_are_built_the_compiler_is_the_bundles() -> None:
    some = [facts("1", OTHER), facts("2", OTHER), facts("3"), facts("4", Made("no compiler", "7.2.22"))]
    chosen = choice.choose(some, "c", GIB, compiler=MADE.compiler)
    assert [each[-1] for each in chosen.workers] == ["3"]
    assert "has gcc 13.1.0, the bundle is of gcc 12.2.0: it gets no cell" in chosen.refused[0]
    with pytest.raises(UserError, match=r"has no compiler, the bundle is of gcc 12\.2\.0"):
        choice.choose(some[-1:], "c", GIB, compiler=MADE.compiler)


def test_memory_is_for_all_workers_of_a_machine() -> None:
    two = [facts(name, memory=2 * GIB, host="one") for name in ("1", "2")]
    assert len(choice.choose(two[:1], "c", GIB).workers) == 1
    with pytest.raises(UserError, match=r"no worker can be used\n.*2 GiB of memory are available, for 2 workers 3 GiB"):
        choice.choose(two, "c", GIB)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ([], "the scheduler has no worker that answers"),
        ([facts("1", code="x")], "has another minguest"),
        ([facts("1", Made("gcc 12", "none"))], "has no QEMU"),
    ],
)
def test_no_worker_is_an_error_with_its_remedy(found: list[Facts], why: str) -> None:
    with pytest.raises(UserError, match=f"{why}(.|\n)*remedy: start workers"):
        choice.choose(found, "c", GIB)


# ── the variables ──


@pytest.mark.parametrize(
    ("tasks", "given", "why"),
    [
        (
            {"build"},
            {"scheduler": "local:2"},
            "scheduler=: of no task that was named\n.*pits, certify, evidence, reproduce",
        ),
        ({"pits"}, {"store": "x"}, "store=x: without scheduler=, nothing uses a store"),
        ({"pits"}, {"scheduler": "tcp://h:1"}, "its workers need a store that all of them see"),
        ({"pits"}, {"scheduler": "tcp://h:99999", "store": "x"}, "not a scheduler\n.*scheduler=tcp://HOST:PORT"),
        ({"pits"}, {"scheduler": "local:0"}, "from 1 to 512"),
        ({"pits"}, {"scheduler": "10.0.0.1:8786"}, "not a scheduler"),
        ({"pits"}, {"scheduler": "local:2", "store": "https://x"}, "not a store"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_built(tasks: set[str], given: dict[str, str], why: str) -> None:
    with pytest.raises(UserError, match=why):
        scaled.check(tasks, {"scheduler": None, "store": None, **given})


def test_what_can_be_is_not_refused() -> None:
    for tasks, scheduler_, store in [
        ({"pits", "build"}, "local:2", None), ({"certify"}, "tls://[::1]:8786", "s3://bucket/x"),
        (set(), "local:1", None), ({"build"}, None, None),
    ]:  # fmt: skip
        scaled.check(tasks, {"scheduler": scheduler_, "store": store})


def test_no_scheduler_is_a_line_within_ten_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scheduler.ANSWER < 9
    monkeypatch.setattr(scheduler, "ANSWER", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        name = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    start = time.monotonic()
    with (
        pytest.raises(
            ToolError, match=rf"scheduler={name}: no scheduler answers(.|\n)*remedy: start one: dask scheduler"
        ),
        scheduler.engine(name, Store(Folder(tmp_path)), GIB, print),
    ):
        pass
    assert time.monotonic() - start < 1.5


# ── the cells ──


class Rig:
    """Two workers in this process, a store, and a setting of one file; `does` is what a cell does."""

    def __init__(self, tmp_path: Path, client: Any) -> None:
        self.client, self.said = client, list[str]()
        self.store = Store(Folder(tmp_path / "shared"))
        source = tmp_path / "input"
        source.write_text("an input")
        digest = self.store.put(source)
        entry = {"bundle/input": orders.Entry(digest)}
        self.given = Inputs(Setting("toy-6.12", Launch(), entry, facts={"guest": "toy"}), {digest: source})
        self.ran: list[str] = []
        self.does: Callable[[str], str] = lambda _: "right"
        self.blob = tmp_path / f"shared/blobs/{digest[:2]}/{digest}"

    def cell(self, desk: cells.Desk, order: Order) -> cells.Produced:
        self.ran.append(order.id)
        assert (desk.inputs / "bundle/input").read_text() == "an input"
        console = desk.work / "console.log"
        console.write_text(f"console of {order.id}\n")
        return cells.Produced(order.id, self.does(order.id), {"console.log": console})

    def engine(self) -> Engine:
        made = Engine(self.client, self.store, 1 << 20, self.said.append)
        runs.prepare(made, self.given, self.said.append, building=True)
        return made

    def order(self, name: str) -> Order:
        return runs.order(name, "pits", self.given, None)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    scheduler._silence()
    with (
        distributed.LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as made,  # type: ignore[no-untyped-call]
    ):
        yield made


@pytest.fixture
def rig(tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setenv("MINGUEST_STORE", str(tmp_path / "local"))
    made = Rig(tmp_path, client)
    monkeypatch.setattr(cells, "KINDS", dict.fromkeys(cells.KINDS, made.cell))
    yield made
    for each in client.cluster.workers.values():
        if hasattr(each, "minguest"):
            del each.minguest


def test_each_cell_is_run_once_and_its_files_come_back(rig: Rig, tmp_path: Path) -> None:
    engine = rig.engine()
    after = {"a": [rig.order("a1"), rig.order("a2")]}
    done = list(engine.run([rig.order("a"), rig.order("b")], lambda each: after.get(each.order, [])))
    assert sorted(rig.ran) == sorted(each.order for each in done) == ["a", "a1", "a2", "b"]
    assert all(json.loads(bytes(each.result)) == each.order and not each.error for each in done)
    runs.fetch(engine, done[0], tmp_path / "run")
    assert (tmp_path / "run/console.log").read_text() == f"console of {done[0].order}\n"
    assert engine.problems == [] and len(rig.store.records("cells/")) == 4
    engine.tidy()
    assert rig.said[0].startswith("2 workers, QEMU ") and rig.said[-1].startswith("4 cells; the engine's own cost 0.")
    assert list((tmp_path / "local/desks/work").iterdir()) == []


def test_a_worker_of_another_minguest_is_refused_by_name(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    real = orders.code
    first = sorted(rig.client.nthreads())[0]
    monkeypatch.setattr(worker, "code", lambda: "0" * 64 if worker._dask().address == first else real())
    done = list(rig.engine().run([rig.order(name) for name in "abcd"]))
    assert len(done) == 4 and not any(first.rpartition("/")[2] in each.worker for each in done)
    assert [line for line in rig.said if "has another minguest (000000000000, not " in line]


def test_a_poisoned_input_is_put_again_and_the_cell_is_run(rig: Rig, tmp_path: Path) -> None:
    engine = rig.engine()
    rig.blob.write_text("poison")
    (done,) = engine.run([rig.order("a")])
    assert (done.error, rig.ran) == ("", ["a"])
    assert rig.blob.read_text() == "an input"
    assert engine.problems[0].partition(" is poisoned")[0].endswith(rig.blob.name)
    assert engine.problems[-1].endswith("put there again")


def test_a_source_that_is_not_there_is_put_there_and_not_a_result(rig: Rig, tmp_path: Path) -> None:
    rig.given.tree = toy(tmp_path)
    rig.given.setting = msgspec.structs.replace(rig.given.setting, tree=rig.given.tree.tree)
    engine = rig.engine()
    assert [line for line in rig.said if "packing" in line] == ["packing linux 6.12.1 for the store"]
    (record,) = rig.store.records("trees/")
    packed = rig.store.record(record, str) or ""
    place = tmp_path / f"shared/blobs/{packed[:2]}/{packed}"
    place.write_bytes(b"poison")
    (done,) = engine.run([runs.order("a", "pits", rig.given, None, builds=True)])
    assert (done.error, rig.ran) == ("", ["a"])
    assert any(f"{packed} is poisoned" in line for line in engine.problems)
    assert [path.name for path in (tmp_path / "local/trees").glob("linux-*")]


def test_one_that_cannot_be_put_again_is_the_cells_error(rig: Rig) -> None:
    engine = rig.engine()
    engine.repair = lambda _: False
    rig.blob.write_text("poison")
    (done,) = engine.run([rig.order("a")])
    assert "is poisoned" in done.error and rig.ran == [] and engine.problems


def test_a_cell_that_hangs_ends_and_the_rest_goes_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(orders.DEADLINES, "pits", 0.3)
    free = threading.Event()
    rig.does = lambda name: str(free.wait(30)) if name == "a" else "right"
    engine = rig.engine()
    done = {each.order: each for each in engine.run([rig.order(name) for name in "abc"])}
    free.set()
    assert done["a"].hung and done["a"].error.startswith("hangs: not done after 0.3 s on ")
    assert not done["b"].error and not done["c"].error
    assert [line for line in engine.problems if line.startswith("a: hangs")]


def test_two_results_of_the_same_inputs_are_a_problem(rig: Rig) -> None:
    list(rig.engine().run([rig.order("a")]))
    rig.does = lambda _: "wrong"
    engine = rig.engine()
    list(engine.run([rig.order("a")]))
    (line,) = engine.problems
    assert line.startswith("a: ") and " has wrong, but " in line and " had right for the same inputs" in line


@pytest.mark.parametrize(
    ("refusal", "why"),
    [
        (ToolError("the store is full"), "the store is full"),
        (UserError("s3://bucket: 403", "other keys"), "s3://bucket: 403"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), "Input/output error"),
    ],
)
def test_a_store_that_takes_nothing_loses_nothing(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Exception, why: str
) -> None:
    engine = rig.engine()

    def full(*_: Any) -> None:
        raise refusal

    monkeypatch.setattr(Folder, "put", full)
    done = list(engine.run([rig.order("a"), rig.order("b")]))
    for each in done:
        assert (each.files, each.inline, each.error) == ({}, {"console.log": f"console of {each.order}\n".encode()}, "")
        runs.fetch(engine, each, tmp_path / each.order)
        assert (tmp_path / each.order / "console.log").is_file()
    ends = "results come without it, and are kept where the run was started"
    assert engine.problems == [f"{rig.store}: the store takes no files: {why}; {ends}"]


def test_another_runs_cells_are_not_this_ones(rig: Rig) -> None:
    engine = rig.engine()
    started, free = threading.Event(), threading.Event()

    def cell(_: str) -> str:
        started.set()
        return str(free.wait(30))

    rig.does = cell

    def foreign() -> None:
        started.wait(30)
        rig.client.log_event(worker.TOPIC, {"run": "another", "order": "a", "worker": "tcp://x:1", "name": "x"})
        time.sleep(1.5)
        free.set()

    thread = threading.Thread(target=foreign)
    thread.start()
    (done,) = engine.run([rig.order("a")])
    thread.join()
    assert not done.error and not [line for line in rig.said if "its worker is gone" in line]


def test_workers_that_are_busy_are_not_called_away(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "PROBE", 0.3)
    busy = [rig.client.submit(time.sleep, 1.5, pure=False, workers=[each]) for each in rig.client.nthreads()]
    with pytest.raises(UserError, match=r"2 workers are there, and none says in 0.3 s what it is\n.*busy"):
        rig.engine()
    for each in busy:
        each.result(timeout=30)


def test_a_cell_on_a_busy_worker_is_not_run_twice_after_a_silence(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = rig.engine()
    monkeypatch.setattr(scheduler, "LOOK", 0.1)
    silences, real, free = [OSError("gone")], rig.client.nthreads, threading.Event()

    def nthreads() -> Any:
        if silences and rig.ran:
            raise silences.pop()
        return real()

    def cell(_: str) -> str:
        threading.Timer(2, free.set).start()
        return str(free.wait(30))

    rig.does = cell
    monkeypatch.setattr(rig.client, "nthreads", nthreads)
    (done,) = engine.run([rig.order("a")])
    assert (done.error, rig.ran, silences) == ("", ["a"], [])
    assert len(engine.facts) == 1 and "the scheduler does not answer: OSError: gone" in rig.said


def test_a_mistake_in_a_cell_is_its_error(rig: Rig) -> None:
    def wrong(_: str) -> str:
        raise UserError("it cannot be", "let it")

    rig.does = wrong
    (done,) = rig.engine().run([rig.order("a")])
    assert done.error == "it cannot be\n  remedy: let it"
    rig.does = lambda _: str(1 // 0)
    (done,) = rig.engine().run([rig.order("b")])
    assert done.error == "ZeroDivisionError: integer division or modulo by zero"


def test_without_any_worker_the_rest_is_not_run(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = rig.engine()
    monkeypatch.setattr(scheduler, "PATIENCE", 0.2)
    monkeypatch.setattr(scheduler, "LOOK", 0.1)
    monkeypatch.setattr(rig.client, "nthreads", lambda: (_ for _ in ()).throw(OSError("gone")))
    engine._looked = 0.0
    after = {"a": [rig.order("a1")]}  # a kernel's cells
    done = list(engine.run([rig.order("a"), rig.order("b")], lambda each: after.get(each.order, [])))
    assert {each.order: each.error for each in done} == dict.fromkeys(("a", "b", "a1"), "no worker for 0.2 s")
    assert "the scheduler does not answer: OSError: gone" in rig.said
    assert engine.problems == [
        "no worker for 0.2 s: what is left is not run; start workers, and run the same command again"
    ]
    assert isinstance(done[0], Done) and msgspec.json.encode(done[0])
