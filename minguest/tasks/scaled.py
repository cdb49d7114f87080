# SPDX-License-Identifier: Apache-2.0
"""`scheduler=` and `store=`: the tasks that many machines can share."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from minguest import settings
from minguest.boottest import certify, inject, listed
from minguest.bundle import manifests
from minguest.bundle.reproduction import Reproduction
from minguest.kernel import source, variants
from minguest.tasks.reporter import say
from minguest.util.errors import ToolError, UserError

if TYPE_CHECKING:
    from minguest.scale.runs import Guest
    from minguest.scale.scheduler import Engine
    from minguest.tasks.project import Project

# minguest.scale is imported only where it is used: see SLOW in build.py.

TASKS = ("pits", "certify", "evidence", "reproduce")


def check(tasks: Collection[str], variables: Mapping[str, str | None]) -> None:
    """UserError where scheduler= or store= is given and cannot be used, before anything is built."""
    scheduler, store = variables["scheduler"], variables["store"]
    if not scheduler and not store:
        return
    from minguest.scale import scheduler as dask  # noqa: PLC0415
    from minguest.scale import store as shared  # noqa: PLC0415

    name = "scheduler=" if scheduler else "store="
    if tasks and not set(TASKS) & set(tasks):
        raise UserError(f"{name}: of no task that was named", f"it is of {', '.join(TASKS)}")
    if not scheduler:
        raise UserError(
            f"store={store}: without scheduler=, nothing uses a store", "scheduler=local:1 store=… for one worker"
        )
    if store:
        shared.check(store)
    if not dask.check(scheduler) and not store:
        raise UserError(
            f"scheduler={scheduler}: its workers need a store that all of them see",
            "store=FOLDER on a shared file system, or store=s3://BUCKET/PREFIX",
        )


@contextmanager
def engine(project: "Project", *, builds: bool) -> Iterator["Engine | None"]:
    """The workers that scheduler= names; None without it. `builds`: they build kernels, with the bundle's compiler."""
    scheduler = project.variables["scheduler"]
    if not scheduler:
        yield None
        return
    from minguest.scale import scheduler as dask  # noqa: PLC0415
    from minguest.scale import store as shared  # noqa: PLC0415

    place = project.variables["store"]
    memory = settings.size(project.guest.launch.memory, "launch.memory")
    store = shared.opened(shared.check(place) if place else str(project.store.cells))
    compiler = source.compiler(manifests.read(project.at.bundle).tools) if builds else ""
    with dask.engine(scheduler, store, memory, say, compiler) as made:
        yield made


def end(engine: "Engine | None") -> None:
    """ToolError for what went wrong beside the results of the cells; all of that was said, and the results are kept."""
    if engine is not None and engine.problems:
        first, *more = engine.problems
        raise ToolError(f"{first}{f'; {len(more) + 1} problems in all' * bool(more)}", "all are above")


def injector(engine: "Engine", project: "Project", site: inject.Site, shop: variants.Workshop) -> inject.Doer:
    """Injects faults on the workers."""
    from minguest.scale import runs  # noqa: PLC0415

    given = runs.inputs(_guest(project, shop, {"ovmf.deb": site.package}))
    runs.prepare(engine, given, say, building=True)
    return runs.pits(engine, given, shop)


def certifier(engine: "Engine", project: "Project", site: certify.Site) -> certify.Doer:
    """Makes a certificate's rows on the workers."""
    from minguest.scale import runs  # noqa: PLC0415

    given = runs.inputs(_guest(project, site.shop, {"ovmf.deb": site.matrix.package, "userland": site.program}))
    runs.prepare(engine, given, say, building=True)
    return runs.Certificate(engine, given)


def prover(engine: "Engine", project: "Project") -> listed.Doer:
    """Runs boot tests on the workers."""
    from minguest.scale import runs  # noqa: PLC0415

    given = runs.inputs(_guest(project, None, {}))
    runs.prepare(engine, given, say, building=False)
    return runs.evidence(engine, given, say)


def reproducer(engine: "Engine", project: "Project", arguments: list[str]) -> Reproduction:
    """Two builds on the workers."""
    from minguest.scale import runs  # noqa: PLC0415

    return runs.reproduction(
        engine,
        project.root,
        project.at.work / "reproduce",
        arguments,
        project.at.bundle,
        [project.at.choice],
        project.cache,
        say,
    )


def _guest(project: "Project", shop: variants.Workshop | None, more: Mapping[str, Path]) -> "Guest":
    from minguest.scale.runs import Guest  # noqa: PLC0415

    return Guest(
        name=project.at.name,
        bundle=project.at.bundle,
        pits=project.at.pits,
        launch=project.guest.launch,
        root=project.root,
        fragments=shop.fragments if shop else (),
        options=shop.options if shop else {},
        tree=shop.tree if shop else None,
        more=more,
    )
