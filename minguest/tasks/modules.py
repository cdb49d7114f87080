# SPDX-License-Identifier: Apache-2.0
"""The tasks of kernel modules, and of the disk of drivers that brings them and their cards' firmware."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from minguest.bundle import drivers, kmodule, modules
from minguest.kernel import devel
from minguest.model import Devel
from minguest.tasks.project import Project
from minguest.tasks.reporter import say
from minguest.tasks.step import Task, always, step
from minguest.util import files, scratch
from minguest.util.errors import UserError

# Firmware files of one module that the screen shows; amdgpu names hundreds.
SHOWN = 4


def belonging(project: Project) -> Devel | None:
    """Which kernel modules must be built for; None if it takes none."""
    facts = project.at.kernel / devel.FACTS
    return msgspec.json.decode(facts.read_bytes(), type=Devel) if facts.exists() else None


@contextlib.contextmanager
def _module_source(project: Project) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """What src= names, as a file or folder, and the variables for make that it needs."""
    if not project.module_package:
        yield modules.check(project.path("src"), project.variables["name"], project.variables["make"])[0], ()
        return
    from minguest.util import fetch  # noqa: PLC0415 - slow, see SLOW in build.py

    package = project.sources.package[project.module_package]
    fetched = fetch.fetch(package, f"{project.module_package} {package.version}", project.cache, say)
    with scratch.folder("source") as folder:
        # In the cache it has no name, and `modules` goes by the name.
        named = folder / f"{project.module_package}.deb"
        named.symlink_to(fetched)
        yield named, package.make


def modules_step(project: Project) -> Task:
    src = project.module_package or Path(project.variables["src"] or "").name

    def make() -> None:
        name, variables = modules.check_words(src, project.variables["name"], project.variables["make"])
        packed = project.at.kernel / devel.ARCHIVE
        if not packed.exists():
            raise UserError("this guest's kernel has no modules", "CONFIG_MODULES=y: configs/kernel/75-modules.config")
        with _module_source(project) as (path, own):
            made = modules.build(
                path,
                name,
                packed,
                project.at.modules / name,
                store=project.store,
                make=[*own, *variables],
                key=project.module_key,
                beside_in_tree=project.uses_in_tree,
                log=project.at.log(f"modules-{name}"),
                say=say,
            )
        _show(made)
        if project.at.modules / name not in [*project.modules, *project.driver_modules]:
            say(f'for the initrd: modules = ["{name}"] in {project.shown(project.guest_file)}')

    return step(
        make,
        basename="modules",
        doc="build modules out of the tree: src=DIR|TARBALL|.deb|PACKAGE [name=NAME] [make='K=V …']",
        task_dep=[f"kernel:{project.at.name}"],
        facts=always,
    )


def _show(made: kmodule.Set) -> None:
    for each in made.modules:
        parts = [f"{each.file} {each.version}".strip(), f"{each.size / 1e3:.0f} KB", *["signed"] * each.signed]
        parts += [f"needs {', '.join(each.depends)}"] * bool(each.depends)
        more = f" and {len(each.firmware) - SHOWN} more" if len(each.firmware) > SHOWN else ""
        parts += [f"firmware {', '.join(each.firmware[:SHOWN])}{more}"] * bool(each.firmware)
        say(", ".join(parts))


def in_tree_step(project: Project) -> Task:
    """The kernel's own modules, where the guest names them."""
    target, kernel = project.at.modules / modules.IN_TREE, project.at.kernel

    def make() -> None:
        if not (kernel / devel.IN_TREE).exists():
            raise UserError(
                f"{project.shown(project.guest_file)}: modules: {modules.IN_TREE!r}: this kernel builds no module",
                "a fragment with =m, such as configs/kernel/drivers/amdgpu.config; or remove it from modules",
            )
        if not modules.is_of(target, kernel / devel.IN_TREE, belonging(project), signed=bool(project.certificate)):
            archives = kernel / devel.IN_TREE, kernel / devel.ARCHIVE
            _show(modules.in_tree(*archives, target, key=project.module_key, log=project.at.log("in-tree")))

    return step(
        make,
        basename="in-tree",
        name=project.at.name,
        doc="the modules of the kernel's own source, checked and laid out",
        facts=always,
        task_dep=[f"kernel:{project.at.name}"],
    )


def drivers_step(project: Project) -> Task:
    def make() -> None:
        from minguest.util import fetch  # noqa: PLC0415 - slow, see SLOW in build.py

        debs = {
            name: fetch.fetch(package, f"{name} {package.version}", project.cache, say)
            for name, package in project.driver_packages.items()
        }
        drivers.build(
            project.driver_modules,
            belonging(project),
            project.driver_overlays,
            debs,
            project.at.drivers,
            project.at.log("drivers"),
        )
        say(f"{drivers.NAME} {project.at.drivers.stat().st_size / 1e6:.1f} MB")

    overlaid = [path for overlay in project.driver_overlays for path in sorted(overlay.rglob("*"))]
    return step(
        make,
        name=project.at.name,
        doc="the disk of drivers: modules and firmware, as squashfs",
        file_dep=[path for path in overlaid if path.is_file()],
        targets=[project.at.drivers],
        code=["bundle/drivers", "bundle/overlay", "bundle/modules", "bundle/kmodule", "util/archive"],
        facts=lambda: {
            "overlaid": [[path, path.lstat().st_mode] for path in overlaid],
            "packages": project.driver_packages,
            "modules": [[path, files.sha256(path)] for path in below(project.driver_modules)],
            "kernel": belonging(project),
        },
        task_dep=[f"kernel:{project.at.name}", *needing_in_tree(project, project.driver_modules)],
    )


def needing_in_tree(project: Project, folders: Iterable[Path]) -> list[str]:
    """The task that makes the kernel's own modules, if they are among these."""
    return [f"in-tree:{project.at.name}"] if project.at.modules / modules.IN_TREE in folders else []


def below(folders: Iterable[Path]) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
