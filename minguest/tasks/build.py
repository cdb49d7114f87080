# SPDX-License-Identifier: Apache-2.0
"""The tasks that make the bundle and what ships, in the order of the data."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from minguest import settings
from minguest.bundle import drivers, edk2, firmware, initrd, manifests, modules
from minguest.kernel import devel, kbuild, source
from minguest.model import Package
from minguest.paths import DOMAIN, RUN_GUEST
from minguest.tasks.modules import belonging, below, needing_in_tree
from minguest.tasks.project import Project
from minguest.tasks.reporter import say
from minguest.tasks.step import Task, always, step
from minguest.util import files, scratch

# SLOW: a module whose libraries take long to import is imported by the steps that use it: all others start without.
# The files of a kernel that are in out/.
KERNEL = ("bzImage", "System.map", "kernel.json")
# And of a kernel with modules.
DEVEL = (devel.ARCHIVE, devel.FACTS, devel.IN_TREE)


def tree_step(project: Project) -> Task:
    def make() -> None:
        files.write(project.at.tree, msgspec.json.encode(project.prepared()))

    def facts() -> Mapping[str, Any]:
        own = project.choice.source
        return {
            "choice": [project.choice.version, own],
            "pinned": project.pinned,
            "tools": project.tools,
            "own": source.fingerprint(Path(own)) if own else None,
            "store": project.store.folder,
        }

    return step(
        make,
        name=project.at.name,
        doc=f"linux {project.choice.version}: fetched, verified, unpacked, patched",
        file_dep=[path for path in sorted(project.at.patches.rglob("*")) if path.is_file()],
        targets=[project.at.tree],
        code=["kernel/source", "util/archive"],
        facts=facts,
    )


def config_step(project: Project) -> Task:
    def make() -> None:
        result = kbuild.configure(
            project.prepared(),
            project.choice.series,
            project.fragments,
            project.options,
            project.contract,
            project.guest.launch,
            project.at.config,
            root=project.root,
            guest_file=project.shown(project.guest_file),
            store=project.store,
            ignore=project.ignore,
            log=project.at.log("config"),
            say=say,
        )
        say(f"{result.requested} options requested, {len(result.problems)} problems")

    return step(
        make,
        name=project.at.name,
        doc="the kernel's config from fragments, verified against them and the contract",
        file_dep=[*project.fragments, project.at.tree],
        targets=[project.at.config / "kernel.config", project.at.config / "config.json"],
        code=["kernel/kbuild", "kernel/kconfig", "kernel/contract", "kernel/explain"],
        facts=lambda: {
            "options": dict(project.options),
            "launch": project.guest.launch,
            "contract": project.contract,
            "ignore": project.ignore,
            "tools": project.tools,
        },
    )


def kernel_step(project: Project) -> Task:
    config = project.at.config / "kernel.config"

    def make() -> None:
        tree, text = project.prepared(), config.read_text()
        folder, inspected = kbuild.build(
            tree,
            text,
            project.store,
            log=project.at.log("kernel"),
            say=say,
            with_devel=True,
            certificate=project.certificate,
        )
        for name in KERNEL:
            files.copy(folder / name, project.at.kernel / name)
        beside = kbuild.devel_folder(tree, text, project.store, project.certificate)
        for name in DEVEL:
            (project.at.kernel / name).unlink(missing_ok=True)
            if beside and (beside / name).exists():
                files.copy(beside / name, project.at.kernel / name)
        say(f"bzImage {inspected.bzimage.size / 1e6:.2f} MB, EFI stub {inspected.bzimage.efi_stub}")

    return step(
        make,
        name=project.at.name,
        doc=f"linux {project.choice.version}: compiled and inspected",
        file_dep=[config, project.at.tree],
        targets=[project.at.kernel / name for name in KERNEL],
        maybe=[project.at.kernel / name for name in DEVEL],
        code=["kernel/kbuild", "kernel/devel", "kernel/binary", "kernel/linked"],
        facts=lambda: {"tools": project.tools, "certificate": project.certificate},
    )


def initd_step(project: Project) -> Task:
    folder = project.root / "initd"

    def make() -> None:
        initrd.compile_initd(folder, project.at.initd, project.at.log("initd"))
        say(f"initd {project.at.initd.stat().st_size / 1e3:.0f} KB")

    return step(
        make,
        doc="PID 1, compiled as a static program",
        file_dep=sorted(folder.glob("*.[ch]")),
        targets=[project.at.initd],
        code=["bundle/initrd"],
        facts=lambda: {"tools": project.tools},
    )


def initrd_step(project: Project) -> Task:
    def make() -> None:
        from minguest.util import fetch  # noqa: PLC0415 - see SLOW

        debs = {
            name: fetch.fetch(package, f"{name} {package.version}", project.cache, say)
            for name, package in project.packages.items()
        }
        with scratch.folder("modules") as folder:
            modules.combine(project.modules, belonging(project), folder)
            overlays = [*project.overlays, *([folder] if project.modules else [])]
            initrd.build(project.at.initrd_template, project.at.initd, overlays, project.at.initrd, debs)
        say(f"initrd.img {project.at.initrd.stat().st_size / 1e3:.0f} KB")

    overlaid = [path for overlay in project.overlays for path in sorted(overlay.rglob("*"))]
    return step(
        make,
        name=project.at.name,
        doc="initd and the overlays as newc, gzip",
        file_dep=[project.at.initrd_template, project.at.initd, *(path for path in overlaid if path.is_file())],
        targets=[project.at.initrd],
        code=["bundle/initrd", "bundle/cpio", "bundle/overlay", "bundle/modules", "bundle/kmodule", "util/archive"],
        facts=lambda: {
            "overlaid": [[path, path.lstat().st_mode] for path in overlaid],
            "packages": project.packages,
            # Not as file_dep: `doit modules build` makes them after this was called.
            "modules": [[path, files.sha256(path)] for path in below(project.modules)],
            "kernel": belonging(project) if project.modules else None,
        },
        task_dep=[f"kernel:{project.at.name}", *needing_in_tree(project, project.modules)] if project.modules else [],
    )


def firmware_step(project: Project) -> Task:
    if project.ovmf.debian:
        return _built_firmware_step(project)
    target = project.at.firmware(project.ovmf.version)

    def make() -> None:
        from minguest.util import fetch  # noqa: PLC0415 - see SLOW

        package = fetch.fetch(project.ovmf, f"OVMF {project.ovmf.version}", project.cache, say)
        firmware.unpack(package, project.ovmf, target)

    return step(
        make,
        doc=f"OVMF {project.ovmf.version}: fetched, verified, unpacked",
        targets=[target / name for name in ("OVMF_CODE.fd", "OVMF_VARS.fd", "firmware.json")],
        code=["bundle/firmware", "util/archive"],
        facts=lambda: {"source": project.ovmf},
    )


def _built_firmware_step(project: Project) -> Task:
    target = project.at.firmware(project.ovmf.version)

    def make() -> None:
        from minguest.util import fetch  # noqa: PLC0415 - see SLOW

        folder = edk2.build(
            project.ovmf,
            project.at.platform,
            project.store,
            lambda wanted, name: fetch.fetch(wanted, name, project.cache, say),
            log=project.root / "out/firmware/edk2.log",
            say=say,
        )
        with files.replacing_tree(target) as new:
            for name in edk2.KEPT:
                files.copy(folder / name, new / name)

    return step(
        make,
        doc=f"OVMF {project.ovmf.version}: built from edk2's source",
        file_dep=list(edk2.inputs(project.at.platform).values()),
        targets=[target / name for name in edk2.KEPT],
        code=["bundle/edk2", "bundle/firmware", "kernel/kbuild", "util/archive"],
        facts=lambda: {"source": project.ovmf, "tools": project.firmware_tools},
    )


def bundle_step(project: Project) -> Task:
    ovmf = project.at.firmware(project.ovmf.version)
    parts = {
        "bzImage": project.at.kernel / "bzImage",
        "initrd.img": project.at.initrd,
        "OVMF_CODE.fd": ovmf / "OVMF_CODE.fd",
        "OVMF_VARS.fd": ovmf / "OVMF_VARS.fd",
        "kernel.config": project.at.config / "kernel.config",
        "System.map": project.at.kernel / "System.map",
        **({drivers.NAME: project.at.drivers} if project.guest.drivers else {}),
    }
    made_of = [project.at.config / "config.json", project.at.kernel / "kernel.json", ovmf / "firmware.json"]

    archive = project.at.kernel / devel.ARCHIVE

    def make() -> None:
        shipped = {**parts, **({devel.ARCHIVE: archive} if archive.exists() else {})}
        manifest = manifests.write(project.at.bundle, shipped, _facts(project), project.launch_files)
        sizes = [f"{name} {manifest.files[name].size / 1e6:.2f} MB" for name in ("bzImage", "initrd.img")]
        say(f"{project.at.bundle.relative_to(project.root)}: {', '.join(sizes)}, OVMF {project.ovmf.version}")

    return step(
        make,
        name=project.at.name,
        doc="what ships, with the manifest of what it was built from",
        file_dep=[*parts.values(), *made_of],
        targets=[project.at.bundle / name for name in [*parts, RUN_GUEST, DOMAIN, "manifest.json"]],
        maybe=[project.at.bundle / devel.ARCHIVE],
        code=["bundle/manifests"],
        facts=lambda: {
            "choice": project.choice,
            "guest": project.guest,
            "launch_files": project.launch_files,
            # What may change, and leave the initrd the same.
            "overlays": _overlaid(project.overlays),
            "packages": [project.packages, project.driver_packages],
            "devel": files.sha256(archive) if archive.exists() else None,
        },
    )


def _facts(project: Project) -> dict[str, Any]:
    """What the manifest says in addition to the files."""
    tree = msgspec.json.decode(project.at.tree.read_bytes(), type=source.Prepared).tree
    configured = msgspec.json.decode((project.at.config / "config.json").read_bytes())
    pinned = project.pinned
    return {
        "guest": msgspec.to_builtins(project.guest),
        "kernel": {
            "wanted": list(project.choice.wanted),
            "series": project.choice.series,
            "version": project.choice.version,
            "reason": project.choice.reason,
            "urls": list(pinned.urls) if pinned else [],
            "licence": pinned.licence if pinned else None,
            "origin": tree.origin,
            "signature": tree.signed,
            "patches": msgspec.to_builtins(tree.patches),
            "inspected": msgspec.json.decode((project.at.kernel / "kernel.json").read_bytes()),
            "devel": belonging(project),
        },
        "config": {"fragments": {path.name: files.sha256(path) for path in project.fragments}, **configured},
        "initrd": {
            "initd": manifests.describe(project.at.initd),
            "template": files.sha256(project.at.initrd_template),
            "overlays": _overlaid(project.overlays),
            "packages": _packages(project.packages),
            "modules": [modules.load(folder, belonging(project)) for folder in project.modules],
        },
        "drivers": {
            "overlays": _overlaid(project.driver_overlays),
            "packages": _packages(project.driver_packages),
            "modules": [modules.load(folder, belonging(project)) for folder in project.driver_modules],
        }
        if project.guest.drivers
        else None,
        "firmware": _firmware(project),
        "tools": dict(project.tools),
    }


def _firmware(project: Project) -> dict[str, Any]:
    """As the manifest has it."""
    ovmf = project.ovmf
    found: dict[str, Any] = {
        "version": ovmf.version,
        "sha256": ovmf.sha256,
        "urls": list(ovmf.urls),
        "licence": ovmf.licence,
    }
    if ovmf.debian:
        made = project.at.firmware(ovmf.version) / "firmware.json"
        built = msgspec.json.decode(made.read_bytes(), type=edk2.Built)
        facts = {name: getattr(built, name) for name in manifests.BUILT}
        found["built"] = {"debian": msgspec.to_builtins(ovmf.debian), **msgspec.to_builtins(facts)}
    return found


def _packages(packages: Mapping[str, Package]) -> dict[str, Any]:
    """As the manifest has them."""
    return {
        name: {key: value for key, value in msgspec.to_builtins(package).items() if key in manifests.PACKAGE}
        for name, package in packages.items()
    }


def _overlaid(overlays: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file of the overlays, by the overlay's name and the path in it."""
    return {
        f"{overlay.name}/{path.relative_to(overlay)}": files.sha256(path)
        for overlay in overlays
        for path in sorted(overlay.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def host_steps(project: Project) -> Iterator[Task]:
    """What makes the rehearsal's host. With guest=host, that is this guest's own bundle."""
    host = project.host
    if host.at == project.at:
        own = f"bundle:{host.at.name}"
        yield {"name": "bundle", "doc": f"the same as {own}", "actions": None, "task_dep": [own]}
        return
    steps = {
        "tree": tree_step,
        "config": config_step,
        "kernel": kernel_step,
        "initrd": initrd_step,
        "bundle": bundle_step,
    }
    for name, made in steps.items():
        yield {**made(host), "name": name}


def release_step(project: Project) -> Task:
    def make() -> None:
        from minguest.release import assemble  # noqa: PLC0415 - see SLOW

        made = assemble.make(
            project.at,
            project.variables["version"],
            project.path("key") or settings.signing_key(),
            project.path("since"),
            unsigned=project.unsigned,
            redistribute=list(filter(None, (project.variables["redistribute"] or "").split(","))),
            say=say,
        )
        size = sum(item.size for item in made.items)
        say(f"{project.shown(project.at.release)}: {made.facts.name} {made.facts.version}, {size / 1e6:.2f} MB")

    return step(
        make,
        basename="release",
        doc="what ships, signed, with its evidence: version=X key=FILE, of a bundle that passed its boot test",
        file_dep=[project.at.bundle / "manifest.json"],
        facts=always,
    )


def publish_step(project: Project) -> Task:
    def make() -> None:
        from minguest.publish import destination  # noqa: PLC0415 - see SLOW

        say(destination.shown(destination.publish(project.at.release, project.variables["to"], say)))

    return step(
        make,
        basename="publish",
        doc="put the release where users fetch it: to=DIR|oci://…|github:OWNER/REPO|s3://BUCKET/PREFIX",
        facts=always,
    )
