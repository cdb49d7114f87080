# SPDX-License-Identifier: Apache-2.0
"""Dask: a scheduler that is there, or one of this machine; its workers, checked; and cells, run on them.

This side keeps as many cells at Dask as there are workers, so that a worker that comes later gets work, and one that is
refused none. Dask gives a cell of a worker that died to another one.
"""

import contextlib
import logging
import queue
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib import util
from typing import Any

import msgspec

from minguest import settings
from minguest.scale import choice, worker
from minguest.scale.orders import DEADLINES, Done, Facts, Made, Order, code
from minguest.scale.store import Store
from minguest.util.errors import ToolError, UserError

# Seconds in which a scheduler must answer, and a worker say what it is.
ANSWER = 8.0
PROBE = 30.0
# Seconds between two looks for workers that came or went.
LOOK = 5.0
# Seconds without any worker after which the cells that are left are not run.
PATIENCE = 60.0
# How often a cell is run again because an entry of the store was poisoned.
AGAIN = 2
# How often a cell's worker may die, with the cell at fault: as Dask's own allowed-failures.
DEATHS = 3
# Kinds that take minutes: a line says where they are done.
SLOW = ("kernel", "base", "reproduce")
DIED = "each worker that ran it died"
ADDRESS = re.compile(r"(tcp|tls)://([^\s/:]+|\[[0-9A-Fa-f:]+\]):([0-9]{1,5})")
LOCAL = re.compile(r"local:([0-9]{1,4})")
NAMES = "scheduler=tcp://HOST:PORT, scheduler=tls://HOST:PORT (with Dask's TLS settings) or scheduler=local:N"
Then = Callable[[Done], Sequence[Order]]
"""What can be run now that a cell is done."""


def check(text: str) -> int:
    """How many workers `local:N` names, 0 for a scheduler's address; UserError for neither."""
    if found := LOCAL.fullmatch(text):
        if not 1 <= int(found[1]) <= 512:
            raise UserError(f"scheduler={text}: from 1 to 512 workers", NAMES)
        return int(found[1])
    if not (found := ADDRESS.fullmatch(text)) or not 0 < int(found[3]) < 65536:
        raise UserError(f"scheduler={text}: not a scheduler", NAMES)
    return 0


class Flight(msgspec.Struct):
    """A cell that Dask has."""

    order: Order
    sent: float
    future: Any
    workers: frozenset[str]
    """The addresses that may run it."""
    began: float | None = None
    worker: str = ""
    """The address of the worker that runs it."""
    deaths: int = 0
    """How often a worker that ran it died."""


class Engine:
    """Workers that were checked, and the cells that they run."""

    def __init__(
        self, client: Any, store: Store, memory: int, say: Callable[[str], None], *, hushed: bool = False,
        compiler: str = "",
    ) -> None:  # fmt: skip
        self._hushed, self._compiler, self._run = hushed, compiler, secrets.token_hex(8)
        self._client, self.store, self._memory, self._say = client, store, memory, say
        self.problems: list[str] = []
        """What went wrong beside the cells' own results: the exit status tells of it."""
        self._said: set[str] = set()
        self._events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._probes: dict[str, tuple[float, Any]] = {}
        self._looked = 0.0
        self._there: set[str] = set()
        """The workers that the scheduler has: one that is busy may not have said yet what it is."""
        self.facts: dict[str, Facts] = {}
        self.repair: Callable[[str], bool] = lambda _: False
        """Puts an entry of the store again, by name; False: it cannot."""
        self.cells, self.own = 0, 0.0
        client.subscribe_topic(worker.TOPIC, lambda event: self._events.put(("began", event[1])))
        self.made = self._first()

    def _first(self) -> Made:
        end = time.monotonic() + PROBE
        self._look()
        while time.monotonic() < end and (self._probes or not self.facts):
            time.sleep(0.05)
            self._look()
        if self._probes and not self.facts:
            raise UserError(
                f"{len(self._probes)} workers are there, and none says in {PROBE:g} s what it is",
                "they are busy with another run's cells: wait for it, or start more workers (docs/scale.md)",
            )
        chosen = choice.choose(list(self.facts.values()), code(), self._memory, compiler=self._compiler)
        self.made = chosen.made
        self._choose()
        with_kvm = sum(not each.kvm for each in self.workers.values())
        self._say(f"{len(self.workers)} workers, {chosen.made}, /dev/kvm opens for {with_kvm}; store {self.store}")
        return chosen.made

    def _choose(self) -> None:
        try:
            chosen = choice.choose(list(self.facts.values()), code(), self._memory, self.made, self._compiler)
        except UserError:
            self.workers: dict[str, Facts] = {}
            return
        self.workers = dict(chosen.workers)
        for line in chosen.refused:
            self._once(line)

    def _once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._say(line)

    def problem(self, line: str) -> None:
        """Say what is wrong, once, and let the exit status tell of it."""
        if line not in self.problems:
            self.problems.append(line)
            self._once(line)

    def _look(self) -> None:
        """Find workers that came or went; one that came is asked what it is."""
        self._looked = time.monotonic()
        there = self._there = set(self._client.nthreads())
        changed = bool(self.facts.keys() - there)
        self.facts = {address: each for address, each in self.facts.items() if address in there}
        for address in there - self.facts.keys() - self._probes.keys():
            future = self._client.submit(
                worker.probe,
                hushed=self._hushed,
                workers=[address],
                allow_other_workers=False,
                pure=False,
                priority=10,
            )
            self._probes[address] = (self._looked, future)
        for address, (since, future) in list(self._probes.items()):
            if address not in there or (not future.done() and self._looked - since > PROBE):
                if address in there:
                    self._once(f"{address}: does not say what it is in {PROBE:g} s: it gets no cell until it does")
                    if not future.done():
                        continue
                del self._probes[address]
            elif future.done():
                del self._probes[address]
                self.facts[address] = self._probed(address, future)
                changed = True
        if changed and hasattr(self, "made"):
            self._choose()

    def _probed(self, address: str, future: Any) -> Facts:
        try:
            return msgspec.json.decode(future.result(timeout=ANSWER), type=Facts)
        except Exception as error:  # whatever an unknown program raised
            why = type(error).__name__
            host = address.partition("://")[2].rpartition(":")[0]
            return Facts(address, host, 0, f"none: {why}", Made("", ""), 0, "", ())

    def run(self, orders: Sequence[Order], then: Then = lambda _: ()) -> Iterator[Done]:
        """Run the orders, and those that `then` gives after each, and give each result as it comes.

        A cell that cannot be run has `error`; nothing is raised for one.
        """
        waiting, flights = deque(orders), dict[str, Flight]()
        tries: dict[str, int] = {}
        nobody: float | None = None
        try:
            while waiting or flights:
                if time.monotonic() - self._looked > LOOK:
                    self._watch(flights)
                while waiting and len(flights) < len(self.workers):
                    order = waiting.popleft()
                    flights[order.id] = self._send(order)
                nobody = None if self.workers else nobody or time.monotonic()
                if nobody is not None and time.monotonic() - nobody > PATIENCE:
                    yield from self._given_up([*(each.order for each in flights.values()), *waiting], then)
                    return
                for done in [*self._late(flights), *self._next(flights)]:
                    if (flight := flights.pop(done.order, None)) is None:
                        continue  # it was late, and came at last
                    order = flight.order
                    if done.poisoned and tries.get(order.id, 0) < AGAIN and all(map(self.repair, done.poisoned)):
                        tries[order.id] = tries.get(order.id, 0) + 1
                        if done.poisoned != (worker.TREE,):
                            self._tell(done)
                            self.problem(f"{self.store}: {', '.join(done.poisoned)}: put there again")
                        waiting.appendleft(order)
                        continue
                    self._tell(done)
                    ended = (
                        msgspec.structs.replace(done, error=done.error or done.problems[-1]) if done.poisoned else done
                    )
                    waiting.extendleft(reversed(then(ended)))
                    yield ended
        finally:
            for each in flights.values():
                with contextlib.suppress(Exception):
                    each.future.cancel()

    def _tell(self, done: Done) -> None:
        for line in done.problems:
            self.problem(line)

    def _send(self, order: Order) -> Flight:
        allowed = frozenset(self.workers)
        # A new name each time: to Dask, a name is one computation.
        future = self._client.submit(
            worker.cell, msgspec.json.encode(order), str(self.store), self._run, workers=sorted(allowed),
            allow_other_workers=False, pure=False, key=f"{order.kind} {order.id} {time.monotonic_ns()}",
        )  # fmt: skip
        future.add_done_callback(lambda _: self._events.put(("done", order.id)))
        return Flight(order, time.monotonic(), future, allowed)

    def _next(self, flights: dict[str, Flight]) -> list[Done]:
        """Wait a moment for something to happen; the cells that are done."""
        try:
            event, what = self._events.get(timeout=0.5)
        except queue.Empty:
            return []
        if event == "began":
            if what["run"] == self._run and (flight := flights.get(what["order"])) is not None:
                if flight.worker or flight.deaths:
                    self._say(f"{flight.order.id}: its worker is gone; {what['name']} runs it again")
                elif flight.order.kind in SLOW:
                    self._say(f"{flight.order.id}: on {what['name']}")
                flight.worker, flight.began = what["worker"], time.monotonic()
            return []
        if event == "died":
            return [Done(what, error=DIED, hung=True)] if what in flights else []
        flight = flights.get(what)
        if flight is None or not flight.future.done():
            return []  # of a cell that was sent again
        return [self._result(flight)]

    def _result(self, flight: Flight) -> Done:
        order, future = flight.order, flight.future
        if future.status == "finished":
            try:
                done = msgspec.json.decode(future.result(timeout=ANSWER), type=Done)
            except Exception as error:
                return Done(order.id, error=f"its result is lost: {type(error).__name__}: {error}")
            self.cells, self.own = self.cells + 1, self.own + time.monotonic() - flight.sent - done.seconds
            return done
        raised = future.exception() if future.status == "error" else None
        if type(raised).__name__ == "KilledWorker":
            return Done(order.id, error=DIED, hung=True)
        return Done(order.id, error=f"{type(raised).__name__}: {raised}" if raised else "the scheduler dropped it")

    def _late(self, flights: dict[str, Flight]) -> list[Done]:
        """The cells that hang: their workers are ended, and start again if a nanny is there."""
        found = []
        for each in flights.values():
            deadline = DEADLINES[each.order.kind]
            if each.began is None or time.monotonic() - each.began < deadline:
                continue
            each.future.cancel(force=True)
            name = self.facts[each.worker].name if each.worker in self.facts else each.worker
            with contextlib.suppress(Exception):
                self._client.restart_workers([each.worker], timeout=ANSWER, raise_for_error=False)
            self.facts.pop(each.worker, None)
            self.workers.pop(each.worker, None)
            why = f"hangs: not done after {deadline:g} s on {name}, which was ended"
            self.problem(f"{each.order.id}: {why}")
            found.append(Done(each.order.id, name, error=why, hung=True))
        return found

    def _watch(self, flights: dict[str, Flight]) -> None:
        """Look for workers; a cell that no worker may run any more is sent to those that are there now."""
        try:
            self._look()
        except Exception as error:  # of the connection
            self.facts, self.workers = {}, {}
            self._looked = time.monotonic()
            self._once(f"the scheduler does not answer: {type(error).__name__}: {error}")
            return
        for name, each in flights.items():
            # One whose worker went is not left to Dask: its next worker may be one that is busy for long.
            held = each.worker in self._there if each.worker else bool(each.workers & self.workers.keys())
            if each.future.done() or not self.workers or held:
                continue
            each.future.cancel(force=True)
            if each.worker and each.deaths == DEATHS:
                self._events.put(("died", name))
                continue
            again = self._send(each.order)
            again.deaths = each.deaths + bool(each.worker)
            flights[name] = again

    def _given_up(self, orders: Sequence[Order], then: Then) -> Iterator[Done]:
        why = f"no worker for {PATIENCE:g} s"
        self.problem(f"{why}: what is left is not run; start workers, and run the same command again")
        left = deque(orders)
        while left:
            done = Done(left.popleft().id, error=why)
            left.extend(then(done))
            yield done

    def tidy(self) -> None:
        """Let the workers remove what they need no more, and say what the engine cost."""
        self._client.unsubscribe_topic(worker.TOPIC)
        futures = [
            self._client.submit(worker.tidy, workers=[each], allow_other_workers=False, pure=False)
            for each in self.workers
        ]
        end = time.monotonic() + ANSWER
        while not all(each.done() for each in futures) and time.monotonic() < end:
            time.sleep(0.02)
        if self.cells:
            self._say(f"{self.cells} cells; the engine's own cost {self.own / self.cells:.2f} s a cell")


@contextlib.contextmanager
def engine(
    scheduler: str, store: Store, memory: int, say: Callable[[str], None], compiler: str = ""
) -> Iterator[Engine]:
    """Connect, check the workers, and end what was started here. `memory`: what a guest has, in bytes. `compiler`: what
    the workers must have, if they build kernels.

    UserError: no Dask, no usable worker. ToolError: the scheduler does not answer.
    """
    count = check(scheduler)
    try:
        import distributed  # noqa: PLC0415 - most users have no Dask
    except ImportError as error:
        raise UserError("scheduler= needs Dask, which is not installed", "pip install 'minguest[scale]'") from error
    _silence()
    with contextlib.ExitStack() as stack:
        if count:
            cluster = stack.enter_context(_cluster(distributed, count))
            address: Any = cluster
            if util.find_spec("bokeh"):
                say(f"Dask's dashboard: {cluster.dashboard_link}")
        else:
            address = scheduler
        try:
            client = stack.enter_context(
                distributed.Client(  # type: ignore[no-untyped-call]
                    address, timeout=ANSWER, set_as_default=False, name="minguest"
                )
            )
        except (OSError, TimeoutError, ValueError, TypeError) as error:  # TypeError: tls:// without Dask's settings
            raise ToolError(
                f"scheduler={scheduler}: no scheduler answers: {error or type(error).__name__}",
                "start one: dask scheduler --port 8786 (docs/scale.md)",
            ) from error
        made = Engine(client, store, memory, say, hushed=bool(count), compiler=compiler)
        yield made
        # Not after an interrupt: the user waits.
        with contextlib.suppress(Exception):
            made.tidy()


def _cluster(distributed: Any, count: int) -> Any:
    """A scheduler and workers of this machine; the CPUs are shared among the workers' builds."""
    return distributed.LocalCluster(
        n_workers=count,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
        silence_logs=logging.CRITICAL,
        env={
            "MINGUEST_JOBS": str(max(1, -(-settings.jobs() // count))),
            "DASK_LOGGING__DISTRIBUTED": "critical",
        },
    )


def _silence() -> None:
    """Dask's log is of connections and heartbeats; what a user must know is said by the engine."""
    for name in ("distributed", "distributed.nanny", "distributed.scheduler", "distributed.worker", "tornado",
                 "asyncio", "bokeh"):  # fmt: skip
        logging.getLogger(name).setLevel(logging.CRITICAL)
