# SPDX-License-Identifier: Apache-2.0
"""The tasks that start what was built, and judge it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from minguest.boottest import certify, hostmatrix, inject, listed, necessity, records, rehearse, runner
from minguest.bundle import initrd, manifests
from minguest.diagnose import cases, page
from minguest.kernel import folders, source, variants
from minguest.release import evidence
from minguest.tasks import scaled
from minguest.tasks.project import Project
from minguest.tasks.reporter import say
from minguest.tasks.step import Task, always, flags, params, step
from minguest.util import files
from minguest.util.errors import GuestFailed, ToolError, UserError
from minguest.vm import emulator
from minguest.vm.launch import Options


def boot_test_step(project: Project) -> Task:
    def test(**options: Any) -> None:
        runner.run(project.bench, Options(**options), project.guest.launch, say)

    return step(
        test,
        basename="boot-test",
        doc="start the bundle in QEMU and assert that CPUs, memory, firmware and every GPU are there",
        file_dep=[project.at.bundle / "manifest.json"],
        facts=always,
        params=[*params(runner.OPTIONS), *flags(runner.FLAGS)],
    )


def evidence_step(project: Project) -> Task:
    def make() -> None:
        manifest = manifests.load(project.at.bundle)
        nr_cpus = runner.nr_cpus_of(project.at.bundle)
        checks = evidence.checks(project.at, manifest, nr_cpus, project.pits)
        tests = evidence.missing(checks, manifest.guest.launch, nr_cpus)
        ended: dict[str, list[str]] = {}
        with scaled.engine(project, builds=False) as engine:
            doer = scaled.prover(engine, project) if engine else listed.one_by_one(say)
            for each in doer(project.bench, tests, project.guest.launch):
                if said := listed.line(each):
                    say(said)
                ended.setdefault(each.ending, []).append(each.test)
        checks = evidence.checks(project.at, manifest, nr_cpus, project.pits)
        say(evidence.table(checks))
        if failed := ended.get("failed"):
            raise GuestFailed(
                f"FAIL: {', '.join(failed)}", f"their consoles are in {project.shown(project.at.evidence)}"
            )
        if (refused := ended.get("refused")) and not {"passed", "failed"} & ended.keys():
            raise UserError(f"no boot test could be run: {', '.join(refused)}", "the reasons are above")
        scaled.end(engine)

    return step(
        make,
        doc="boot tests of both machines, hotplug, power button, large BARs: those that have not passed on these bytes",
        basename="evidence",
        file_dep=[project.at.bundle / "manifest.json"],
        facts=always,
    )


def reproduce_step(project: Project) -> Task:
    def make() -> None:
        from minguest.bundle import reproduce  # noqa: PLC0415 - see SLOW

        variables = [f"guest={project.guest_file}", *(["contract=ignore"] if project.ignore else [])]
        with scaled.engine(project, builds=True) as engine:
            if engine:
                record = scaled.reproducer(engine, project, variables)
            else:
                # The choice goes along, as the manifest says how it came about: series, source and reason.
                record = reproduce.builds(
                    project.root,
                    project.at.work / "reproduce",
                    variables,
                    say,
                    store=project.store.reproduce,
                    bundle=project.at.bundle,
                    inputs=[project.at.choice],
                )
        files.write(project.at.reproduced, msgspec.json.format(msgspec.json.encode(record)))
        say(reproduce.table(record))
        if record.result != "same":
            raise ToolError(reproduce.cause(record), f"both are kept in {project.shown(project.at.work)}/reproduce")
        scaled.end(engine)

    return step(
        make,
        basename="reproduce",
        doc="build twice in different surroundings and compare every byte (takes two whole builds)",
        file_dep=[project.at.bundle / "manifest.json"],
        facts=always,
    )


def rehearse_step(project: Project) -> Task:
    def make(**options: str) -> None:
        site = rehearse.Site(
            name=project.at.name,
            root=project.root,
            bundle=project.at.bundle,
            host=project.host.at.bundle,
            folder=project.at.rehearse,
            record=project.at.rehearsed,
            templates=project.at.templates,
        )
        rehearse.run(site, records.Options(**{name: value for name, value in options.items() if value}), say)

    return step(
        make,
        basename="rehearse",
        doc="a real VFIO passthrough of emulated cards, in an emulated host: host-bind, boot-test, host-unbind",
        file_dep=[project.at.bundle / "manifest.json", project.host.at.bundle / "manifest.json"],
        facts=always,
        params=params(rehearse.OPTIONS),
    )


def pits_step(project: Project) -> Task:
    folder = project.at.matrix

    def make() -> None:
        with scaled.engine(project, builds=True) as engine, _injected(project, folder) as (shop, site):
            far = [scaled.injector(engine, project, site, shop)] if engine else []
            made = inject.run(site, _only(project), say, *far)
        say(f"linux {made.version}: {inject.summary(made.cells)}; {_matrix_page(project)}")
        if wrong := [cell.id for cell in made.cells if cell.result == "wrong"]:
            raise GuestFailed(f"not what must follow: {', '.join(wrong)}", f"their consoles: {folder}/runs")
        scaled.end(engine)

    return step(
        make,
        basename="pits",
        doc="the fault matrix: injects every known pit, and checks that its first boot names it; only=ID,…",
        file_dep=[project.at.bundle / "manifest.json"],
        facts=always,
    )


def pits_host_step(project: Project) -> Task:
    def make(qemu: str) -> None:
        site = hostmatrix.Site(
            host=project.host.at.bundle,
            known=project.pits,
            folder=project.at.matrices,
            templates=project.at.templates,
            system=Path(qemu) if qemu else None,
        )
        only = _only(project)
        made = hostmatrix.make(site, say, only)
        say(f"{made.series}: {inject.summary(made.cells)}; {_matrix_page(project)}")
        if wrong := [cell.id for cell in made.cells if cell.result == "wrong"]:
            raise GuestFailed(f"not what must follow: {', '.join(wrong)}", f"their logs: {project.at.matrices}")

    return step(
        make,
        basename="pits-host",
        doc="the host's column of the fault matrix: faults of an emulated host; only=ID,…",
        file_dep=[project.host.at.bundle / "manifest.json"],
        facts=always,
        params=params(hostmatrix.OPTIONS),
    )


def certify_step(project: Project) -> Task:
    folder = project.at.certified

    def make() -> None:
        compiler = source.compiler(source.compiler_tools())
        program = folder / "userland"
        initrd.compile_initd(project.root / "initd/userland", program, folder / "log/userland.log")
        bundles = source.compiler(manifests.read(project.at.bundle).tools)
        if compiler != bundles and not project.variables["scheduler"]:
            raise UserError(
                f"{project.at.bundle} is of {bundles}, and this machine has {compiler}: what an option costs would be "
                "mixed up with what the compiler costs",
                "doit build",
            )
        with scaled.engine(project, builds=True) as engine, _injected(project, folder) as (shop, matrix):
            site = certify.Site(
                matrix,
                shop,
                engine.made.compiler if engine else compiler,
                engine.made.qemu if engine else emulator.version(),
                program,
                project.root / "docs/necessity.json",
            )
            far = [scaled.certifier(engine, project, site)] if engine else []
            only = _only(project)
            made = certify.run(site, only, say, *far)
        say(f"linux {made.version}: {certify.summary(made)}; {project.shown(certify.place(folder))}")
        if wrong := [row.option for row in made.rows if row.kind == "unseen"]:
            raise GuestFailed(
                f"no test shows what these are for: {', '.join(wrong)}",
                f"leave them out, or say in their comments what for: {certify.UNTESTED}…",
            )
        scaled.end(engine)
        if left := [row.option for row in made.rows if row.kind == "NOT RUN" and row.option in (only or [row.option])]:
            raise ToolError(f"NOT RUN: {', '.join(left)}", "their lines say why; the same command tries them again")

    return step(
        make,
        basename="certify",
        doc="the certificate that each option is needed: leaves each out, and looks what is missing; only=OPTION,…",
        file_dep=[project.at.bundle / "manifest.json"],
        facts=always,
    )


def necessity_page_step(project: Project) -> Task:
    target, data = project.root / "docs/necessity.md", project.root / "docs/necessity.json"

    def make() -> None:
        folders = [project.at.certified.parent / f"{project.guest.name}-{series}" for series in project.sources.kernel]
        made = [each for folder in folders if (each := certify.load(folder)) is not None]
        found = necessity.together(made, certify.published(data), list(project.sources.kernel))
        if not found:
            raise UserError(f"{project.at.certified.parent}: no certificate of {project.guest.name}", "doit certify")
        files.write(target, necessity.page(found))
        files.write(data, msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")

    return step(
        make,
        basename="necessity-page",
        doc="docs/necessity.md and necessity.json, made from the certificates of all series",
        facts=always,
        targets=[target, data],
    )


@contextlib.contextmanager
def _injected(project: Project, folder: Path) -> Iterator[tuple[variants.Workshop, inject.Site]]:
    """What makes kernels with other options, and where they are started."""
    from minguest.util import fetch  # noqa: PLC0415 - see SLOW

    debian = project.sources.firmware["ovmf"]
    with folders.Objects(project.store, say) as objects:
        shop = variants.Workshop(
            tree=project.prepared(),
            fragments=tuple(project.fragments),
            options=project.guest.options,
            store=project.store,
            root=project.root,
            log=folder / "log",
            objects=objects,
        )
        site = inject.Site(
            bench=project.bench,
            launch=project.guest.launch,
            known=project.pits,
            folder=folder,
            package=fetch.fetch(debian, f"OVMF {debian.version}", project.cache, say),
            kernels=lambda options: variants.kernel_with(shop, options, say),
        )
        yield shop, site


def _only(project: Project) -> list[str]:
    """The pits or options that only= names; empty: all."""
    return [name for name in (project.variables["only"] or "").split(",") if name]


def _matrix_page(project: Project) -> str:
    """Write the page of all matrices, and give its place as it is shown."""
    found = {other.name: each for other in sorted(project.at.matrices.iterdir()) if (each := inject.load(other))}
    target = project.at.matrices / "index.html"
    files.write(target, inject.page(project.at.templates / "pits.html.j2", list(found.values()), list(found)))
    return project.shown(target)


def pits_page_step(project: Project) -> Task:
    target, public = project.root / "docs/pits.md", project.root / "tests/data/public"

    def make() -> None:
        files.write(target, page.page(project.pits, cases.summary(public, project.pits)))

    return step(
        make,
        basename="pits-page",
        doc="docs/pits.md, made from configs/pits/",
        file_dep=[*sorted(project.at.pits.glob("*.toml")), *sorted(public.glob("*.toml"))],
        targets=[target],
        code=["diagnose/cases", "diagnose/catalogue", "diagnose/logs", "diagnose/matching", "diagnose/page"],
    )
