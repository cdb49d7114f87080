# SPDX-License-Identifier: Apache-2.0
"""What a worker does for each kind of cell: the functions that a run without Dask calls too."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from minguest import settings as environment
from minguest.boottest import certify, inject, listed, runner
from minguest.bundle import manifests, reproduce
from minguest.diagnose import catalogue
from minguest.kernel import folders, source, variants
from minguest.kernel.kconfig import Option
from minguest.model import Accel
from minguest.paths import Store as Local
from minguest.scale import settings
from minguest.scale.kernels import Kernels
from minguest.scale.orders import Kind, Made, Order, Setting
from minguest.scale.store import Store
from minguest.util import files
from minguest.util.errors import ToolError

# Files of a boot that go into the store.
KEPT = (*runner.KEPT, runner.KERNEL_LOG, runner.NO_ROOM, "qemu.log")


class Produced(msgspec.Struct):
    """What a cell came to."""

    result: object
    """As JSON: the submitter knows what it is."""
    outcome: str
    """In a word or two, for its record; empty: none is kept, as of what only this machine could not do."""
    files: Mapping[str, Path] = {}


class Desk(msgspec.Struct):
    """What a worker has for a setting."""

    setting: Setting
    inputs: Path
    """The setting's files."""
    work: Path
    """A folder of this process."""
    store: Store
    local: Local
    made: Made
    objects: folders.Objects
    kernels: Kernels
    trees: dict[bytes, source.Prepared]
    """Sources that this process has looked at."""
    alone: bool = False
    """The store is of this machine: its workers share kernels without it."""

    def bench(self, evidence: Path | None = None) -> runner.Bench:
        pits = self.inputs / "pits"
        kvm = self.local.desks / "kvm.json"
        return runner.Bench(self.setting.name, self.inputs / "bundle", self.work / "boot-test", kvm, pits, evidence)

    @property
    def accel(self) -> Accel:
        """What the guests of its cells ran with."""
        asked = self.setting.launch.accel
        return runner.kept_accelerator(self.bench().kvm) if asked == "auto" else asked

    def tree(self) -> source.Prepared:
        if self.setting.tree is None:
            raise ToolError("this setting has no kernel's source", "a bug of minguest: please report it")
        name = self.setting.tree.identity
        if name not in self.trees:  # to look at all of its files takes a second
            self.trees[name] = settings.get_tree(self.setting.tree, self.store, self.local)
        return self.trees[name]

    def shop(self) -> variants.Workshop:
        root = self.inputs / "root"
        return variants.Workshop(
            tree=self.tree(),
            fragments=tuple(root / name for name in self.setting.fragments),
            options=self.setting.options,
            store=self.local,
            root=root,
            log=self.work / "log",
            objects=self.objects,
            shared=None if self.alone else self.kernels,
        )

    def site(self) -> inject.Site:
        return inject.Site(
            bench=self.bench(),
            launch=self.setting.launch,
            known=catalogue.load(self.inputs / "pits"),
            folder=self.work,
            package=self.inputs / "ovmf.deb",
            kernels=lambda options: variants.kernel_with(self.shop(), options, quiet),
        )


def quiet(_: str) -> None:
    """Takes what would be said: the submitter says a line for each cell."""


def kept(folder: Path) -> dict[str, Path]:
    """The files of a boot that are kept."""
    return {name: folder / name for name in KEPT if (folder / name).is_file()}


class Injected(msgspec.Struct, frozen=True):
    """`what` of a cell of the matrix."""

    pit: str
    injection: catalogue.Injection


def pits(desk: Desk, order: Order) -> Produced:
    """A cell of the fault matrix."""
    what, site = msgspec.json.decode(order.what, type=Injected), desk.site()
    cell = inject.injected(site, what.pit, what.injection, manifests.load(site.bench.bundle))
    # An error of this machine, a full disk, has not booted anything.
    outcome = cell.result if cell.qemu else ""
    return Produced(cell, outcome, kept(site.folder / "runs" / cell.id))


def _certificate(desk: Desk) -> certify.Site:
    made = desk.made
    return certify.Site(
        desk.site(), desk.shop(), made.compiler, made.qemu, desk.inputs / "userland", desk.work / "none.json"
    )


def base(desk: Desk, order: Order) -> Produced:
    """The kernel with all options, of which a certificate's rows are."""
    site = _certificate(desk)
    said: list[str] = []
    whole = certify.with_all(site, manifests.load(site.matrix.bench.bundle), said.append)
    return Produced({"whole": whole, "said": said}, "", _runs(site.matrix.folder, "with-all-options"))


def _runs(folder: Path, option: str) -> dict[str, Path]:
    runs = sorted((folder / "runs").glob(f"{option}.*"))
    return {f"{run.name}/{name}": path for run in runs for name, path in kept(run).items()}


def certified(desk: Desk, order: Order) -> Produced:
    """A row of a certificate."""
    option, site = msgspec.json.decode(order.what, type=Option), _certificate(desk)
    whole = msgspec.json.decode(order.beside, type=certify.Whole)
    row = certify.left_out(site, manifests.load(site.matrix.bench.bundle), option, whole, quiet)
    return Produced(row, "" if row.kind == "NOT RUN" else row.kind, _runs(site.matrix.folder, row.option))


def kernel(desk: Desk, order: Order) -> Produced:
    """A kernel with some options, in this worker's store and in the one of all. One that cannot be built is the matter
    of its cells."""
    options = msgspec.json.decode(order.what, type=dict[str, str | int | bool])
    try:
        variants.kernel_with(desk.shop(), options, quiet)
    except ToolError as error:
        return Produced(str(error), "")
    return Produced("", "")


def evidence(desk: Desk, order: Order) -> Produced:
    """A boot test that a release lists."""
    test = msgspec.json.decode(order.what, type=runner.Test)
    folder = desk.work / "evidence"
    said: list[str] = []
    shutil.rmtree(folder, ignore_errors=True)
    try:
        ended = listed.one(desk.bench(folder), test, desk.setting.launch, said.append)
        outcome = ended.ending if ended.ending in ("passed", "failed") else ""
    except ToolError as error:
        ended, outcome = listed.Ended(test.name, "failed", str(error)), ""
    return Produced({"ended": ended, "said": said}, outcome, kept(folder / test.name))


class Once(msgspec.Struct, frozen=True):
    """`what` of one of two builds."""

    surroundings: reproduce.Surroundings


class BuiltOnce(msgspec.Struct, frozen=True):
    """One of two builds."""

    side: reproduce.Side
    executable: tuple[str, ...]


def reproduced(desk: Desk, order: Order) -> Produced:
    """One of two builds of a checkout that are compared."""
    what = msgspec.json.decode(order.what, type=Once)
    checkout = desk.inputs / "root"
    cache = environment.cache_folder() / "sha256"
    for path in sorted((desk.inputs / "downloads").glob("*")):
        if not (cache / path.name).is_file():
            files.copy(path, cache / path.name)
    # The paths that a user types are elsewhere on this machine.
    line = [*reproduce.COMMAND, *(each.replace("{root}", str(checkout)) for each in desk.setting.arguments)]
    names = [name.removeprefix("root/") for name in desk.setting.files if name.startswith("root/")]
    refusal = reproduce.refusal_of(what.surroundings)
    store, work = desk.work / "store", desk.work / "reproduce"
    try:
        shutil.rmtree(work, ignore_errors=True)
        built = reproduce.build(
            what.surroundings, checkout, names, work, line, quiet, store, namespace=not refusal
        )  # fmt: skip
    finally:
        shutil.rmtree(store, ignore_errors=True)
    found = {path.relative_to(built).as_posix(): path for path in sorted(built.rglob("*")) if path.is_file()}
    executable = tuple(name for name, path in found.items() if path.stat().st_mode & 0o100)
    return Produced(BuiltOnce(reproduce.side(what.surroundings, refusal), executable), "", found)


KINDS: Mapping[Kind, Callable[[Desk, Order], Produced]] = {
    "pits": pits, "certify": certified, "base": base, "evidence": evidence, "reproduce": reproduced, "kernel": kernel,
}  # fmt: skip
