# SPDX-License-Identifier: Apache-2.0
"""The submitter's side: the Doers of inject, certify and listed, and reproduce's two builds, on an engine's workers."""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from minguest import VERSION
from minguest.boottest import certify, inject, listed, runner
from minguest.boottest.records import Cell, Row
from minguest.bundle import manifests, reproduce
from minguest.bundle.reproduction import Reproduction
from minguest.diagnose import catalogue
from minguest.kernel import source, variants
from minguest.kernel.kconfig import Option
from minguest.model import Launch
from minguest.scale import cells, settings
from minguest.scale.kernels import Kernels
from minguest.scale.orders import Done, Kind, Order, Setting
from minguest.scale.scheduler import Engine
from minguest.scale.settings import Inputs
from minguest.scale.store import Folder
from minguest.util import files
from minguest.util.errors import MinguestError, ToolError, UserError

Say = Callable[[str], None]


class Guest(msgspec.Struct, frozen=True):
    """What the cells of one guest need."""

    name: str
    bundle: Path
    pits: Path
    launch: Launch
    root: Path
    fragments: tuple[Path, ...] = ()
    options: Mapping[str, str | int | bool] = {}
    tree: source.Prepared | None = None
    more: Mapping[str, Path] = {}
    """Other files: ovmf.deb, userland."""


def inputs(guest: Guest) -> Inputs:
    """The setting of a guest's cells."""
    manifest = manifests.read(guest.bundle)
    fragments = {f"root/{path.relative_to(guest.root).as_posix()}": path for path in guest.fragments}
    entries, found = settings.gather(
        {
            **settings.below(guest.bundle, "bundle"),
            **settings.below(guest.pits, "pits", "*.toml"),
            **fragments,
            **guest.more,
        }
    )
    setting = Setting(
        name=guest.name,
        launch=guest.launch,
        files=entries,
        fragments=tuple(name.removeprefix("root/") for name in fragments),
        options=guest.options,
        tree=guest.tree.tree if guest.tree else None,
        facts=facts(manifest),
    )
    return Inputs(setting, found, guest.tree)


def facts(manifest: manifests.Manifest) -> dict[str, str]:
    """What a history compares, beside QEMU and the compiler."""
    bundle = [f"{name} {file.sha256}" for name, file in sorted(manifest.files.items())]
    return {
        "guest": manifest.guest.name,
        "series": manifest.kernel.series,
        "kernel": manifest.kernel.version,
        "OVMF": manifest.firmware.version,
        "minguest": VERSION,
        "bundle": hashlib.sha256("\n".join(bundle).encode()).hexdigest()[:12],
    }


def prepare(engine: Engine, given: Inputs, say: Say, *, building: bool) -> None:
    """Put the inputs into the store; `building`: kernels are built, so workers need the source. Also how an entry that
    was poisoned is put there again."""
    with_tree = given.tree is not None and building
    if with_tree and given.tree:
        name = Path(given.tree.path).name
        with_tree = any(name not in each.trees for each in engine.workers.values())
    settings.put(given, engine.store, with_tree=with_tree, say=say)
    for name in engine.store.replaced:
        engine.problem(f"{engine.store}: {name} was poisoned, and was replaced")
    engine.store.replaced.clear()

    def repair(name: str) -> bool:
        digest = name.rpartition("/")[2]
        engine.store.distrusted.add(name)
        try:
            if digest in given.paths:
                engine.store.put(given.paths[digest])
            elif name.startswith("settings/"):
                engine.store.put_record(f"settings/{given.setting.key}", given.setting)
            elif given.tree is not None:
                settings.put_tree(given.tree, engine.store, say)
            else:
                return False
        except MinguestError:
            return False
        return True

    engine.repair = repair


def seed(engine: Engine, shop: variants.Workshop, wanted: Iterable[Mapping[str, str | int | bool] | str]) -> None:
    """Put kernels into the store that this machine has: with options, or without one. The workers of this machine
    alone share them without it."""
    if isinstance(engine.store.place, Folder) and engine.store.place.root == shop.store.cells:
        return
    kernels = Kernels(engine.store, "the submitter", str(engine.made))
    for each in wanted:
        folder = variants.there(shop, but=each) if isinstance(each, str) else variants.there(shop, each)
        if folder is not None:
            kernels.keep(folder)
    for line in kernels.problems:
        engine.problem(line)


def order(name: str, kind: Kind, given: Inputs, what: object, *, builds: bool = False) -> Order:
    """One cell of a setting."""
    return Order(name, kind, given.setting.key, msgspec.Raw(msgspec.json.encode(what)), builds)


def fetch(engine: Engine, done: Done, folder: Path) -> None:
    """Write a cell's files to `folder`, which is new."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in done.inline.items():
        files.write(folder / name, content)
    for name, digest in done.files.items():
        try:
            (folder / name).parent.mkdir(exist_ok=True)
            engine.store.get(digest, folder / name)
        except (MinguestError, OSError) as error:
            engine.problem(f"{done.order}: {name} is not kept: {getattr(error, 'message', error)}")


def pits(engine: Engine, given: Inputs, shop: variants.Workshop) -> inject.Doer:
    """Injects faults on the workers; one kernel for all cells that need it. `shop`: this machine's."""

    def does(
        site: inject.Site,
        manifest: manifests.Manifest,
        chosen: Sequence[tuple[str, catalogue.Injection]],
        begin: inject.Begin,
    ) -> Iterator[Cell]:
        planned = {inject.planned(site, name, each).id: (name, each) for name, each in chosen}
        by_kernel: dict[str, list[Order]] = {}
        ready = []
        for cell, (name, each) in planned.items():
            builds = bool(each.options and not each.cannot)
            ordered = order(cell, "pits", given, cells.Injected(name, each), builds=builds)
            if builds:
                wanted = msgspec.json.encode(each.options, order="sorted").decode()
                by_kernel.setdefault(f"kernel {wanted}", []).append(ordered)
            else:
                ready.append(ordered)
        kernels = [
            Order(name, "kernel", given.setting.key, msgspec.Raw(name.removeprefix("kernel ").encode()), builds=True)
            for name in by_kernel
        ]
        failed: list[Done] = []
        seed(engine, shop, [each.options for _, each in planned.values() if each.options])

        def then(done: Done) -> Sequence[Order]:
            after = by_kernel.get(done.order, [])
            if not done.error:
                return after
            failed.extend(Done(each.id, done.worker, error=done.error, hung=done.hung) for each in after)
            return []

        for cell in planned:
            begin(cell)
        for done in engine.run([*ready, *kernels], then):
            some = failed[:] if done.order in by_kernel else [done]
            failed.clear()
            for one in some:
                yield _cell(engine, site, planned[one.order], one)

    return does


def _cell(engine: Engine, site: inject.Site, of: tuple[str, catalogue.Injection], done: Done) -> Cell:
    planned = inject.planned(site, *of)
    if done.error:
        result = "wrong" if done.hung else "NOT RUN"
        if not any(done.error in each for each in engine.problems):
            engine.problem(f"{planned.id}: {result}: {done.error}")
        return msgspec.structs.replace(planned, result=result, why=done.error)
    cell = msgspec.json.decode(done.result, type=Cell)
    if done.files or done.inline:
        fetch(engine, done, site.folder / "runs" / cell.id)
    return cell


class Certificate:
    """certify.Doer: rows on the workers, each with its kernel."""

    def __init__(self, engine: Engine, given: Inputs) -> None:
        self._engine, self._given = engine, given
        self._whole: certify.Whole | None = None

    def base(self, site: certify.Site, manifest: manifests.Manifest, say: Say) -> certify.Whole:
        for done in self._engine.run([order("with all options", "base", self._given, None, builds=True)]):
            if done.error:
                raise UserError(done.error, "doit boot-test; a certificate needs a healthy guest")
            made = msgspec.json.decode(done.result, type=Base)
            for line in made.said:
                say(line)
            for run, some in _by_folder(done).items():
                fetch(self._engine, some, site.matrix.folder / "runs" / run)
            self._whole = made.whole
        assert self._whole is not None
        return self._whole

    def rows(
        self,
        site: certify.Site,
        manifest: manifests.Manifest,
        options: Sequence[Option],
        begin: certify.Begin,
        say: Say,
    ) -> Iterator[Row]:
        by_name = {each.name: each for each in options}
        seed(self._engine, site.shop, by_name)
        for name in by_name:
            begin(name)
        whole = msgspec.Raw(msgspec.json.encode(self._whole))
        orders = [
            msgspec.structs.replace(order(name, "certify", self._given, option, builds=True), beside=whole)
            for name, option in by_name.items()
        ]
        for done in self._engine.run(orders):
            option = by_name[done.order]
            if done.error:
                self._engine.problem(f"{option.name}: NOT RUN: {done.error}")
                yield Row(
                    option.name, option.fragment, option.value, certify.reason_of(option), "NOT RUN", seen=done.error
                )
                continue
            for run, some in _by_folder(done).items():
                fetch(self._engine, some, site.matrix.folder / "runs" / run)
            yield msgspec.json.decode(done.result, type=Row)


class Base(msgspec.Struct, frozen=True):
    """What cells.base produces."""

    whole: certify.Whole
    said: tuple[str, ...]


def _by_folder(done: Done) -> dict[str, Done]:
    """The files of a result by the folder in their names."""

    def part(of: Mapping[str, object], folder: str) -> dict[str, object]:
        return {name.partition("/")[2]: value for name, value in of.items() if name.partition("/")[0] == folder}

    folders = {name.partition("/")[0] for name in (*done.files, *done.inline)}
    return {
        folder: msgspec.structs.replace(done, files=part(done.files, folder), inline=part(done.inline, folder))
        for folder in sorted(folders)
    }


class Proved(msgspec.Struct, frozen=True):
    """What cells.evidence produces."""

    ended: listed.Ended
    said: tuple[str, ...]


def evidence(engine: Engine, given: Inputs, say: Say) -> listed.Doer:
    """Runs boot tests on the workers."""

    def does(bench: runner.Bench, tests: Sequence[runner.Test], wanted: Launch) -> Iterator[listed.Ended]:
        assert bench.evidence is not None
        orders = [order(each.name, "evidence", given, each) for each in tests]
        for done in engine.run(orders):
            if done.error:
                engine.problem(f"{done.order}: {done.error}")
                yield listed.Ended(done.order, "failed" if done.hung else "refused", done.error)
                continue
            made = msgspec.json.decode(done.result, type=Proved)
            for line in made.said:
                say(line)
            if done.files or done.inline:
                with files.replacing_tree(bench.evidence / done.order) as new:
                    fetch(engine, done, new)
            yield made.ended

    return does


def reproduction(
    engine: Engine, root: Path, work: Path, arguments: Sequence[str], bundle: Path, more: Iterable[Path], cache: Path,
    say: Say,
) -> Reproduction:  # fmt: skip
    """reproduce.builds with its two builds on two workers, or one after the other on one. `more`: files below `root`
    that are copied too."""
    both = (reproduce.FIRST, reproduce.SECOND)
    manifest = manifests.read(bundle)
    names = [*reproduce.checkout(root), *(path.relative_to(root).as_posix() for path in more)]
    checkout = {f"root/{name}": root / name for name in names}
    downloads = {f"downloads/{digest}": cache / "sha256" / digest for digest in _downloads(cache, root)}
    entries, found = settings.gather(checkout | downloads)
    moved = tuple(reproduce.absolute(each, root).replace(str(root), "{root}") for each in arguments)
    given = Inputs(Setting(bundle.parent.name, manifest.guest.launch, entries, arguments=moved), found)
    prepare(engine, given, say, building=False)
    reproduce.begin(work)
    built: dict[str, tuple[cells.BuiltOnce, Path, str]] = {}
    orders = [order(each.name, "reproduce", given, cells.Once(each)) for each in both]
    for done in engine.run(orders):
        if done.error:
            raise ToolError(f"the {done.order} build failed: {done.error}")
        made = msgspec.json.decode(done.result, type=cells.BuiltOnce)
        place = work / done.order / "bundle"
        fetch(engine, done, place)
        for name in made.executable:
            (place / name).chmod(0o755)
        built[done.order] = (made, place, done.worker)
        say(f"{done.order} build: done by {done.worker} in {done.seconds:.0f} s")
    (one, first, here), (two, second, there) = built[both[0].name], built[both[1].name]
    about = reproduce.varied(one.side, two.side)
    if here.partition(" ")[0] != there.partition(" ")[0]:
        about[1].pop("machine", None)
        about[0]["machine"] = ("one", "another")
    if here != there:
        about[1]["date"] = "two workers built at the same time, or nearly"
    return reproduce.compared(work, first, second, bundle, about, say)


def _downloads(cache: Path, root: Path) -> list[str]:
    """The downloads of the checkout's sources.toml that this machine has."""
    text = (root / "configs/sources.toml").read_text(encoding="utf-8")
    there = (path.name for path in sorted((cache / "sha256").glob("*")) if "." not in path.name)
    return [name for name in there if name in text]
