# SPDX-License-Identifier: Apache-2.0
"""Joins the stages to doit: the only module that knows it, beside dodo.py and reporter.

Each function makes one of doit's task dicts. What a step depends on is spelled out, because doit sees neither
imported code nor values: see `step`.
"""

import difflib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from doit import get_var
from doit.dependency import FileChangedChecker
from doit.exceptions import InvalidDodoFile, TaskFailed
from doit.tools import config_changed

from minguest import paths, settings
from minguest.boottest import inject, records, rehearse, runner, verdict
from minguest.bundle import firmware, initrd, manifests
from minguest.diagnose import catalogue
from minguest.host import checks, survey, vfio
from minguest.kernel import contract, kbuild, kconfig, source, variants
from minguest.model import Choice, Guest, Launch, Source, Sources
from minguest.paths import DOMAIN, RUN_GUEST, Layout, Store
from minguest.release import evidence
from minguest.tasks import reporter
from minguest.tasks.reporter import say
from minguest.util import files, pci
from minguest.util.errors import GuestError, GuestFailed, MinguestError, ToolError, UserError
from minguest.vm import bar_window, bar_window_text, cards, launch, scripts
from minguest.vm.launch import Options

# SLOW: a module whose libraries take long to import is imported by the steps that use it: all others start without.

Task = dict[str, Any]
# What of a kernel is in out/.
KERNEL = ("bzImage", "System.map", "kernel.json")
CODE = paths.PACKAGE
# What the command line may say with an equals sign, before or after the tasks.
OPTIONS = (
    "guest",
    "kernel",
    "source",
    "contract",
    "version",
    "key",
    "unsigned",
    "since",
    "to",
    "log",
    "report",
    "image",
    "config",
    "cpus",
    "gpu",
    "card",
    "only",
    "yes",
)
# Commands of doit that run no task.
SHOWS = {"list", "help", "info", "clean", "forget", "ignore", "dumpdb", "strace", "tabcompletion", "reset-dep"}
# They must not ask the network which kernel can be had, and neither must the tasks that build nothing.
IDLE = SHOWS | {"diagnose", "doctor", "pits-page", "plan", "host-check", "host-bind", "host-unbind"}


class ByContent(FileChangedChecker):  # type: ignore[misc]
    """doit's question whether a file that a task depends on has changed: its content alone, never its time."""

    def check_modified(self, file_path: str, _: Any, state: str) -> bool:
        return files.sha256(Path(file_path)) != state

    def get_state(self, dep: str, _: Any) -> str:
        return files.sha256(Path(dep))


def step(
    action: Callable[..., None],
    *,
    doc: str,
    file_dep: Sequence[Path] = (),
    targets: Sequence[Path] = (),
    code: Sequence[str] = (),
    facts: Callable[[], Mapping[str, Any]] = dict,
    **more: Any,
) -> Task:
    """A task that runs when a file, one of its modules (`code`), a fact or a target asks for it.

    `facts` is called only when doit looks at the task. Afterwards every target must exist; one that is missing or has
    another content later is made again, so that nothing is made of a damaged one.
    """

    def sums() -> dict[str, str]:
        return {str(target): files.sha256(target) for target in targets if target.is_file()}

    def changed(task: Any, values: Any) -> Any:
        task.value_savers.append(lambda: {"sums": sums()})
        # msgspec makes plain text of structs and paths; config_changed knows only that. doit calls configure_task for
        # what it finds in `uptodate` itself, when it loads; that would ask for the facts of tasks that do not run.
        checker = config_changed(msgspec.json.encode(facts(), enc_hook=str).decode())
        checker.configure_task(task)
        same = checker(task, values)
        return same and values.get("sums") == sums()

    def checked(**words: Any) -> TaskFailed | None:
        try:
            action(**words)
        except MinguestError as error:
            return TaskFailed(str(error))
        except OSError as error:
            if error.filename is None:
                raise
            return TaskFailed(f"{error.filename}: {error.strerror}")
        missing = [str(target) for target in targets if not target.exists()]
        return TaskFailed(f"did not make {', '.join(missing)}") if missing else None

    return {
        "doc": doc,
        "actions": [checked],
        "file_dep": [str(path) for path in [*file_dep, *(CODE / f"{module}.py" for module in code)]],
        "targets": [str(target) for target in targets],
        "uptodate": [changed],
        **more,
    }


class Project:
    """The guest, the choice of its kernel, and the steps that make its bundle."""

    def __init__(
        self,
        root: Path,
        guest_file: Path,
        words: Mapping[str, str | None],
        *,
        idle: bool = False,
        pinned: bool = False,
    ) -> None:
        self.root = root
        self.words = words
        self.guest_file = guest_file
        self.guest: Guest = settings.guest(guest_file)
        self.sources: Sources = settings.sources(root / "configs/sources.toml")
        self.cache = settings.cache_folder()
        self.ignore = _contract(words["contract"])
        self.choice = self._first() if pinned else self._choose(words["kernel"], words["source"], idle=idle)
        self.at = Layout(root, self.guest.name, self.choice.series)
        if self.guest.firmware not in self.sources.firmware:
            known = ", ".join(self.sources.firmware)
            raise UserError(f"{guest_file}: firmware = {self.guest.firmware!r}: not in sources.toml", f"known: {known}")
        self.ovmf: Source = self.sources.firmware[self.guest.firmware]
        self.fragments = kconfig.select(self.at.fragments, self.guest.fragments, self.choice.series, root)
        self.overlays = [self._overlay(name) for name in self.guest.overlays]
        if not idle:
            # What cannot be built in or started is named before anything is unpacked.
            _ = self.store, self.launch_files

    @functools.cached_property
    def tools(self) -> Mapping[str, str]:
        """Versions of what compiles."""
        return {**source.compiler_tools(), "musl": initrd.musl_version()}

    @functools.cached_property
    def store(self) -> Store:
        """Where the trees and kernels of all checkouts are."""
        return Store(settings.store_folder())

    @functools.cached_property
    def launch_files(self) -> dict[str, str]:
        """run-guest and domain.xml by name."""
        try:
            specs = launch.shipped(
                self.guest.launch, self.choice.series, runner.SYSFS, runner.CPUINFO.read_text(encoding="utf-8")
            )
            return scripts.render(
                self.at.templates,
                scripts.About(self.at.name, self.choice.version, self.ovmf.version),
                self.guest.launch,
                specs,
                launch.absent(specs["kvm"], runner.SYSFS),
            )
        except UserError as error:
            raise UserError(f"{self._shown(self.guest_file)}: {error.message}", error.remedy) from error

    def _first(self) -> Choice:
        """The first of the guest's series, as it is pinned."""
        series = self.guest.kernel[0]
        return Choice(self.guest.kernel, series, self.sources.kernel[series].version, "pinned")

    @functools.cached_property
    def host(self) -> "Project":
        """The rehearsal's host."""
        return Project(
            self.root, self.root / "configs/guests/host.toml", dict.fromkeys(OPTIONS), idle=True, pinned=True
        )

    def _choose(self, series: str | None, own: str | None, *, idle: bool) -> Choice:
        place = Layout(self.root, self.guest.name, "").choice
        try:
            kept = msgspec.json.decode(place.read_bytes(), type=Choice)
        except (OSError, msgspec.DecodeError):
            kept = None
        if idle:
            return kept or Choice(self.guest.kernel, self.guest.kernel[0], "?", "not chosen yet")
        choice = source.choose(self.guest, self.sources, kept, series, own, source.availability(self.cache))
        if choice != kept:
            files.write(place, msgspec.json.encode(choice))
        say(source.sentence(choice))
        return choice

    def _shown(self, path: Path) -> str:
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def _overlay(self, name: str) -> Path:
        for path in (self.root / "overlays" / name, self.root / name):
            if path.is_dir():
                return path
        raise UserError(f"{self.guest_file}: overlay {name!r}: no such folder in overlays/ or from the project's root")

    @property
    def pinned(self) -> Source | None:
        return None if self.choice.source else self.sources.kernel[self.choice.series]

    @property
    def contract(self) -> tuple[contract.Rule, ...]:
        return catalogue.rules(self.pits)

    @functools.cached_property
    def pits(self) -> dict[str, catalogue.Pit]:
        return catalogue.load(self.at.pits)

    def prepared(self) -> source.Prepared:
        """The guest's tree, made where it is not there, or where it was changed or cleared away."""
        return source.prepare(
            self.choice,
            self.pinned,
            self.store.trees,
            cache=self.cache,
            keys=self.at.configs / "keys",
            patches=self.at.patches,
            log=self.at.log("tree"),
            say=say,
            guest=self.guest.name,
        )

    # ── the steps, in the order of the data ──

    def tree_step(self) -> Task:
        def make() -> None:
            files.write(self.at.tree, msgspec.json.encode(self.prepared()))

        def facts() -> Mapping[str, Any]:
            own = self.choice.source
            return {
                "choice": [self.choice.version, own],
                "pinned": self.pinned,
                "tools": self.tools,
                "own": source.fingerprint(Path(own)) if own else None,
                "store": self.store.folder,
            }

        return step(
            make,
            name=self.at.name,
            doc=f"linux {self.choice.version}: fetched, verified, unpacked, patched",
            file_dep=[path for path in sorted(self.at.patches.rglob("*")) if path.is_file()],
            targets=[self.at.tree],
            code=["kernel/source", "util/archive"],
            facts=facts,
        )

    def config_step(self) -> Task:
        def make() -> None:
            result = kbuild.configure(
                self.prepared(),
                self.choice.series,
                self.fragments,
                self.guest.options,
                self.contract,
                self.guest.launch,
                self.at.config,
                root=self.root,
                guest_file=self._shown(self.guest_file),
                store=self.store,
                ignore=self.ignore,
                log=self.at.log("config"),
                say=say,
            )
            say(f"{result.requested} options requested, {len(result.problems)} problems")

        return step(
            make,
            name=self.at.name,
            doc="the kernel's config from fragments, verified against them and the contract",
            file_dep=[*self.fragments, self.at.tree],
            targets=[self.at.config / "kernel.config", self.at.config / "config.json"],
            code=["kernel/kbuild", "kernel/kconfig", "kernel/contract", "kernel/explain"],
            facts=lambda: {
                "options": dict(self.guest.options),
                "launch": self.guest.launch,
                "contract": self.contract,
                "ignore": self.ignore,
                "tools": self.tools,
            },
        )

    def kernel_step(self) -> Task:
        config = self.at.config / "kernel.config"

        def make() -> None:
            folder, inspected = kbuild.build(
                self.prepared(), config.read_text(), self.store, log=self.at.log("kernel"), say=say
            )
            for name in KERNEL:
                files.copy(folder / name, self.at.kernel / name)
            say(f"bzImage {inspected.bzimage.size / 1e6:.2f} MB, EFI stub {inspected.bzimage.efi_stub}")

        return step(
            make,
            name=self.at.name,
            doc=f"linux {self.choice.version}: compiled and inspected",
            file_dep=[config, self.at.tree],
            targets=[self.at.kernel / name for name in KERNEL],
            code=["kernel/kbuild", "kernel/binary", "kernel/linked"],
            facts=lambda: {"tools": self.tools},
        )

    def initd_step(self) -> Task:
        folder = self.root / "initd"

        def make() -> None:
            initrd.compile_initd(folder, self.at.initd, self.at.log("initd"))
            say(f"initd {self.at.initd.stat().st_size / 1e3:.0f} KB")

        return step(
            make,
            doc="PID 1, compiled as a static program",
            file_dep=sorted(folder.glob("*.[ch]")),
            targets=[self.at.initd],
            code=["bundle/initrd"],
            facts=lambda: {"tools": self.tools},
        )

    def initrd_step(self) -> Task:
        def make() -> None:
            initrd.build(self.at.initrd_template, self.at.initd, self.overlays, self.at.initrd)
            say(f"initrd.img {self.at.initrd.stat().st_size / 1e3:.0f} KB")

        overlaid = [path for overlay in self.overlays for path in sorted(overlay.rglob("*"))]
        return step(
            make,
            name=self.at.name,
            doc="initd and the overlays as newc, gzip",
            file_dep=[self.at.initrd_template, self.at.initd, *(path for path in overlaid if path.is_file())],
            targets=[self.at.initrd],
            code=["bundle/initrd", "bundle/cpio", "util/archive"],
            facts=lambda: {"overlaid": [[path, path.lstat().st_mode] for path in overlaid]},
        )

    def firmware_step(self) -> Task:
        target = self.at.firmware(self.ovmf.version)

        def make() -> None:
            from minguest.util import fetch  # noqa: PLC0415 - see SLOW

            package = fetch.fetch(self.ovmf, f"OVMF {self.ovmf.version}", self.cache, say)
            firmware.unpack(package, self.ovmf, target)

        return step(
            make,
            doc=f"OVMF {self.ovmf.version}: fetched, verified, unpacked",
            targets=[target / name for name in ("OVMF_CODE.fd", "OVMF_VARS.fd", "firmware.json")],
            code=["bundle/firmware", "util/archive"],
            facts=lambda: {"source": self.ovmf},
        )

    def bundle_step(self) -> Task:
        ovmf = self.at.firmware(self.ovmf.version)
        parts = {
            "bzImage": self.at.kernel / "bzImage",
            "initrd.img": self.at.initrd,
            "OVMF_CODE.fd": ovmf / "OVMF_CODE.fd",
            "OVMF_VARS.fd": ovmf / "OVMF_VARS.fd",
            "kernel.config": self.at.config / "kernel.config",
            "System.map": self.at.kernel / "System.map",
        }
        made_of = [self.at.config / "config.json", self.at.kernel / "kernel.json", ovmf / "firmware.json"]

        def make() -> None:
            manifest = manifests.write(self.at.bundle, parts, self._facts(), self.launch_files)
            sizes = [f"{name} {manifest.files[name].size / 1e6:.2f} MB" for name in ("bzImage", "initrd.img")]
            say(f"{self.at.bundle.relative_to(self.root)}: {', '.join(sizes)}, OVMF {self.ovmf.version}")

        return step(
            make,
            name=self.at.name,
            doc="what ships, with the manifest of what it was made of",
            file_dep=[*parts.values(), *made_of],
            targets=[self.at.bundle / name for name in [*parts, RUN_GUEST, DOMAIN, "manifest.json"]],
            code=["bundle/manifests"],
            facts=lambda: {"choice": self.choice, "guest": self.guest, "launch_files": self.launch_files},
        )

    def _facts(self) -> dict[str, Any]:
        """What the manifest tells beside the files."""
        tree = msgspec.json.decode(self.at.tree.read_bytes(), type=source.Prepared).tree
        configured = msgspec.json.decode((self.at.config / "config.json").read_bytes())
        pinned = self.pinned
        return {
            "guest": msgspec.to_builtins(self.guest),
            "kernel": {
                "wanted": list(self.choice.wanted),
                "series": self.choice.series,
                "version": self.choice.version,
                "reason": self.choice.reason,
                "urls": list(pinned.urls) if pinned else [],
                "licence": pinned.licence if pinned else None,
                "origin": tree.origin,
                "signature": tree.signed,
                "patches": msgspec.to_builtins(tree.patches),
                "inspected": msgspec.json.decode((self.at.kernel / "kernel.json").read_bytes()),
            },
            "config": {"fragments": {path.name: files.sha256(path) for path in self.fragments}, **configured},
            "initrd": {
                "initd": manifests.describe(self.at.initd),
                "template": files.sha256(self.at.initrd_template),
                "overlays": {
                    f"{overlay.name}/{path.relative_to(overlay)}": files.sha256(path)
                    for overlay in self.overlays
                    for path in sorted(overlay.rglob("*"))
                    if path.is_file() and not path.is_symlink()
                },
            },
            "firmware": {
                "version": self.ovmf.version,
                "sha256": self.ovmf.sha256,
                "urls": list(self.ovmf.urls),
                "licence": self.ovmf.licence,
            },
            "tools": dict(self.tools),
        }

    @property
    def bench(self) -> runner.Bench:
        return runner.Bench(
            self.at.name, self.at.bundle, self.at.boot_test, self.at.kvm, self.at.pits, self.at.evidence
        )

    def boot_test_step(self) -> Task:
        def test(**words: Any) -> None:
            runner.run(self.bench, Options(**words), self.guest.launch, say)

        return step(
            test,
            basename="boot-test",
            doc="start the bundle in QEMU and assert that CPUs, memory, firmware and every GPU are there",
            file_dep=[self.at.bundle / "manifest.json"],
            facts=_always,
            params=[*_params(runner.OPTIONS), *_flags(runner.FLAGS)],
        )

    def evidence_step(self) -> Task:
        def make() -> None:
            manifest = manifests.load(self.at.bundle)
            key = inject.key_of(manifest, manifest.guest.launch, self.pits)
            nr_cpus = runner.nr_cpus_of(self.at.bundle)
            checks = evidence.checks(self.at, manifest, nr_cpus, key)
            failed = []
            for test in evidence.missing(checks, manifest.guest.launch, nr_cpus):
                try:
                    if why := runner.without_room(self.bench, test, self.guest.launch):
                        say(f"{test.name} is not run: {why}")
                        continue
                    runner.run(self.bench, test.words, self.guest.launch, say)
                except GuestError as error:
                    say(str(error))
                    failed.append(test.name)
                except UserError as error:
                    say(f"{test.name} cannot be run: {error}")
            checks = evidence.checks(self.at, manifest, nr_cpus, key)
            say(evidence.table(checks))
            if failed:
                raise GuestFailed(
                    f"FAIL: {', '.join(failed)}", f"their consoles are in {self._shown(self.at.evidence)}"
                )

        return step(
            make,
            doc="boot tests of both machines, of hotplug and of large BARs, what has not passed on these bytes",
            basename="evidence",
            file_dep=[self.at.bundle / "manifest.json"],
            facts=_always,
        )

    def reproduce_step(self) -> Task:
        def make() -> None:
            from minguest.bundle import reproduce  # noqa: PLC0415 - see SLOW

            words = [f"guest={self.guest_file}", *(["contract=ignore"] if self.ignore else [])]
            # The choice goes along, as the manifest tells how it came about: series, source and reason.
            record = reproduce.builds(
                self.root,
                self.at.work / "reproduce",
                words,
                say,
                store=self.store.reproduce,
                bundle=self.at.bundle,
                inputs=[self.at.choice],
            )
            files.write(self.at.reproduced, msgspec.json.format(msgspec.json.encode(record)))
            say(reproduce.table(record))
            if record.result != "same":
                raise ToolError(reproduce.cause(record), f"both are kept in {self._shown(self.at.work)}/reproduce")

        return step(
            make,
            basename="reproduce",
            doc="build twice in different surroundings, and compare every byte",
            file_dep=[self.at.bundle / "manifest.json"],
            facts=_always,
        )

    def release_step(self) -> Task:
        def make() -> None:
            from minguest.release import assemble  # noqa: PLC0415 - see SLOW

            made = assemble.make(
                self.at,
                self.words["version"],
                _path(self.words["key"]) or settings.signing_key(),
                _path(self.words["since"]),
                unsigned=_yes("unsigned", self.words["unsigned"]),
                say=say,
            )
            size = sum(item.size for item in made.items)
            say(f"{self._shown(self.at.release)}: {made.facts.name} {made.facts.version}, {size / 1e6:.2f} MB")

        return step(
            make,
            basename="release",
            doc="what ships, signed: version=X key=FILE, of a bundle that passed its boot test",
            file_dep=[self.at.bundle / "manifest.json"],
            facts=_always,
        )

    def publish_step(self) -> Task:
        def make() -> None:
            from minguest.publish import destination  # noqa: PLC0415 - see SLOW

            say(destination.shown(destination.publish(self.at.release, self.words["to"], say)))

        return step(
            make,
            basename="publish",
            doc="put the release where users fetch it: to=DIR, oci://…, github:OWNER/REPO, s3://…",
            facts=_always,
        )

    def diagnose_step(self) -> Task:
        def make() -> None:
            if not self.words["log"]:
                raise UserError("no log", "doit diagnose log=FILE: a guest's console, of any kernel")
            told = _path(self.words["report"])
            log = Path(self.words["log"]).expanduser()
            seen = catalogue.see(catalogue.read_log(log), catalogue.read_report(told) if told else None)
            say(catalogue.describe(catalogue.diagnose(self.pits, seen)))

        return step(
            make,
            basename="diagnose",
            doc="which known pit a console tells of: log=FILE, report=FILE",
            facts=_always,
        )

    def doctor_step(self) -> Task:
        def make() -> None:
            from minguest.diagnose import doctor  # noqa: PLC0415 - see SLOW
            from minguest.kernel import image  # noqa: PLC0415 - see SLOW

            if not self.words["image"]:
                raise UserError("no image", "doit doctor image=FILE [config=FILE] [cpus=N] [gpu=MODEL,…]")
            looked = image.read(Path(self.words["image"]).expanduser(), doctor.look_for())
            own = _path(self.words["config"])
            config = image.read(own).config if own else None
            wanted = self._launch()
            facts = verdict.facts_of_launch(launch.planned(wanted))
            found = doctor.examine(looked, config, self.pits, wanted, facts)
            say(doctor.describe(looked, found))
            if wrong := dict.fromkeys(each.pit for each in found if each.sure != "not known"):
                raise UserError(
                    f"under OVMF with this launch it would fall into {', '.join(wrong)}",
                    "docs/pits.md tells cause and fix of each",
                )

        return step(
            make,
            basename="doctor",
            doc="what a kernel would do under OVMF, before its first boot: image=FILE config=FILE cpus=N gpu=MODEL",
            facts=_always,
        )

    def plan_step(self) -> Task:
        def make(count: str, memory: str, phys_bits: str, hotplug: bool) -> None:
            wanted = self.guest.launch
            bits, vendor = bar_window.cpu(wanted.cpu, wanted.accel, Path("/proc/cpuinfo").read_text(encoding="utf-8"))
            bits = settings.integer(phys_bits, "--phys-bits") if phys_bits else bits
            there = settings.size(memory or wanted.memory, "--memory")
            most = settings.size(wanted.max_memory, "launch.max_memory") if wanted.max_memory else 0
            found = self._cards(settings.integer(count, "--count") if count else 1)

            def at(bits: int) -> bar_window.Plan:
                return bar_window.plan(
                    found, there, bits, max_memory=most, slots=wanted.slots, vendor=vendor, hotplug=hotplug
                )

            made = at(bits)
            say(bar_window_text.describe(made, at))
            if not made.fits:
                raise UserError(f"the cards do not fit at {bits} physical address bits", "the warning says what helps")

        return step(
            make,
            basename="plan",
            doc="whether the BARs of cards find room under OVMF, and what to tell it: gpu=BDF,… card=FILE|NAME,…",
            facts=_always,
            params=[
                {"name": "count", "long": "count", "default": "", "help": "how many of each card"},
                {"name": "memory", "long": "memory", "default": "", "help": "the guest's memory, such as 64G"},
                {"name": "phys_bits", "long": "phys-bits", "default": "", "help": "physical address bits of its CPU"},
                {
                    "name": "hotplug",
                    "long": "hotplug",
                    "type": bool,
                    "default": False,
                    "help": "the cards are plugged in while the guest runs",
                },
            ],
        )

    def _cards(self, count: int) -> list[cards.Card]:
        """The cards that the command line names, else the guest's own; `count` of each."""
        if count < 1:
            raise UserError(f"--count {count}: must be at least 1")
        hosts = [name for name in (self.words["gpu"] or "").split(",") if name]
        saved = [name for name in (self.words["card"] or "").split(",") if name]
        if not hosts and not saved:
            hosts = [name for name in self.guest.launch.gpus if pci.is_address(name) or name.startswith("bar:")]
        if not hosts and not saved:
            raise UserError(
                f"no card: {self._shown(self.guest_file)} names none by its address",
                "doit plan gpu=BDF,… for cards of this host; card=FILE or card=NAME, a name in configs/cards/",
            )
        if count > 1 and any(pci.is_address(name) for name in hosts):
            raise UserError(f"--count {count}: gpu= names each card of this host by its own address", "name them all")
        folder = self.at.configs / "cards"
        found = cards.of_words(hosts, runner.SYSFS) + [cards.described(name, folder) for name in saved]
        return [card for card in found for _ in range(count)]

    def host_check_step(self) -> Task:
        def make() -> None:
            wanted = self._launch()
            # The emulated cards of a launch ask nothing of the host; a word that names no card is a mistake.
            named = [name for name in wanted.gpus if self.words["gpu"] or pci.is_address(name)]
            facts = survey.read(cards=[pci.address(card) for card in named])
            code = self.at.firmware(self.ovmf.version) / "OVMF_CODE.fd"
            ovmf = f"{self.ovmf.version}{'' if code.exists() else ', not fetched yet'}"
            rows = checks.checks(facts, checks.wish(wanted, named, self.at.kvm, ovmf, facts.release))
            say(checks.table(rows))
            if wrong := checks.missing(rows):
                raise UserError(f"this host cannot give a card to a guest yet: {', '.join(wrong)}")

        return step(
            make,
            basename="host-check",
            doc="whether this host can give a card to a guest, and what to do: gpu=BDF,…",
            facts=_always,
        )

    def host_bind_step(self) -> Task:
        return self._bind_step("host-bind", "give cards, with all of their IOMMU groups, to vfio-pci", vfio.bind)

    def host_unbind_step(self) -> Task:
        return self._bind_step("host-unbind", "put back exactly what host-bind took", vfio.unbind)

    def _bind_step(self, name: str, doc: str, does: Callable[..., None]) -> Task:
        def make() -> None:
            cards = [word for word in (self.words["gpu"] or "").split(",") if word]
            does(vfio.Host(), cards, act=_yes("yes", self.words["yes"]), say=say)

        return step(make, basename=name, doc=f"{doc}; a dry run but for yes=yes: gpu=BDF,…", facts=_always)

    def _launch(self) -> Launch:
        """The guest's launch with the words of the command line."""
        wanted = self.guest.launch
        if self.words["cpus"]:
            cpus = settings.integer(self.words["cpus"], "cpus")
            settings.check_cpus(cpus, "cpus")
            wanted = msgspec.structs.replace(wanted, cpus=cpus, max_cpus=cpus)
        if self.words["gpu"]:
            names = () if self.words["gpu"] == "none" else tuple(self.words["gpu"].split(","))
            wanted = msgspec.structs.replace(wanted, gpus=names)
        return wanted

    def host_steps(self) -> Iterator[Task]:
        """What makes the rehearsal's host, but for what is made for this guest anyway."""
        host = self.host
        if host.at == self.at:
            return
        steps = {
            "tree": host.tree_step,
            "config": host.config_step,
            "kernel": host.kernel_step,
            "initrd": host.initrd_step,
            "bundle": host.bundle_step,
        }
        for name, made in steps.items():
            yield {**made(), "name": name}

    def rehearse_step(self) -> Task:
        def make(**words: str) -> None:
            if self.words["gpu"] or self.words["cpus"]:
                raise UserError("gpu= and cpus= are not for a rehearsal", "doit rehearse --gpu … --cpus …")
            site = rehearse.Site(
                name=self.at.name,
                root=self.root,
                bundle=self.at.bundle,
                host=self.host.at.bundle,
                folder=self.at.rehearse,
                record=self.at.rehearsed,
                templates=self.at.templates,
            )
            rehearse.run(site, records.Options(**{name: word for name, word in words.items() if word}), say)

        return step(
            make,
            basename="rehearse",
            doc="a real VFIO passthrough of emulated cards, in an emulated host",
            file_dep=[self.at.bundle / "manifest.json", self.host.at.bundle / "manifest.json"],
            facts=_always,
            params=_params(rehearse.OPTIONS),
        )

    def pits_step(self) -> Task:
        folder = self.at.matrix

        def make() -> None:
            from minguest.util import fetch  # noqa: PLC0415 - see SLOW

            shop = variants.Workshop(
                tree=self.prepared(),
                fragments=tuple(self.fragments),
                options=self.guest.options,
                store=self.store,
                root=self.root,
                log=folder / "log",
            )
            site = inject.Site(
                bench=self.bench,
                launch=self.guest.launch,
                known=self.pits,
                folder=folder,
                package=fetch.fetch(self.ovmf, f"OVMF {self.ovmf.version}", self.cache, say),
                kernels=lambda options: variants.kernel_with(shop, options, say),
            )
            only = [name for name in (self.words["only"] or "").split(",") if name]
            made = inject.run(site, only, say)
            found = {other.name: each for other in sorted(self.at.matrices.iterdir()) if (each := inject.load(other))}
            page = inject.page(self.at.templates / "pits.html.j2", list(found.values()), list(found))
            files.write(self.at.matrices / "index.html", page)
            say(f"linux {made.version}: {inject.summary(made.cells)}; {self._shown(self.at.matrices / 'index.html')}")
            if wrong := [cell.id for cell in made.cells if cell.result == "wrong"]:
                raise GuestFailed(f"not what must follow: {', '.join(wrong)}", f"their consoles: {folder}/runs")

        return step(
            make,
            basename="pits",
            doc="the fault matrix: injects every known pit, and checks that its first boot names it; only=ID,…",
            file_dep=[self.at.bundle / "manifest.json"],
            facts=_always,
        )

    def pits_page_step(self) -> Task:
        target = self.root / "docs/pits.md"

        def make() -> None:
            files.write(target, catalogue.page(self.pits))

        return step(
            make,
            basename="pits-page",
            doc="docs/pits.md, of configs/pits/",
            file_dep=sorted(self.at.pits.glob("*.toml")),
            targets=[target],
            code=["diagnose/catalogue"],
        )


def _params(words: Mapping[str, str]) -> list[dict[str, str]]:
    """doit's parameters of a task, by their names on the command line, with what help says of them."""
    return [{"name": name.replace("-", "_"), "long": name, "default": "", "help": text} for name, text in words.items()]


def _flags(words: Mapping[str, str]) -> list[dict[str, Any]]:
    """The same of those that take no value."""
    return [{**param, "type": bool, "default": False} for param in _params(words)]


def _always() -> Mapping[str, Any]:
    """The facts of a task that runs whenever it is requested. Not the time: a clock may stand, or be set back."""
    return {"once": os.urandom(16).hex()}


def _path(word: str | None) -> Path | None:
    return Path(word).expanduser().absolute() if word else None


def _yes(name: str, word: str | None) -> bool:
    if word not in (None, "yes", "no"):
        raise UserError(f"{name}={word}: not known", f"{name}=yes or {name}=no")
    return word == "yes"


def _contract(word: str | None) -> bool:
    if word not in (None, "ignore"):
        raise UserError(f"contract={word}: not known", "contract=ignore builds a config that breaks the contract")
    return word == "ignore"


def _guest_file(root: Path, word: str | None) -> Path:
    if word is None or word == "default":
        return root / "configs/guest.toml"
    path = Path(word).expanduser()
    return path.absolute() if path.suffix == ".toml" else root / "configs/guests" / f"{word}.toml"


def project(root: Path) -> Project:
    """The project as the command line's words make it."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    reporter.begin(root, shows=command in SHOWS)
    try:
        for word in sys.argv[1:]:
            name, equals, _ = word.partition("=")
            if equals and not name.startswith("-") and name not in OPTIONS:
                near = difflib.get_close_matches(name, OPTIONS, 1)
                raise UserError(f"{word}: no such word", f"{near[0]}=…" if near else f"known: {'= '.join(OPTIONS)}=")
        words = {name: get_var(name) for name in OPTIONS}
        return Project(root, _guest_file(root, words["guest"]), words, idle=command in IDLE)
    except MinguestError as error:
        raise InvalidDodoFile(str(error)) from None
