# SPDX-License-Identifier: Apache-2.0
"""What a doit run is about: the guest, the choice of its kernel, and what the command line says about them.

`build` and `test` turn it into doit's tasks.
"""

import difflib
import fnmatch
import functools
import os
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import msgspec
from doit import get_var
from doit.exceptions import InvalidTask

from minguest import settings
from minguest.boottest import runner
from minguest.bundle import edk2, initrd, modules, overlay
from minguest.diagnose import catalogue
from minguest.kernel import contract, kconfig, signing, source
from minguest.model import Choice, Firmware, Guest, Package, Source, Sources
from minguest.paths import Layout, Store
from minguest.tasks import reporter, scaled
from minguest.tasks.reporter import say
from minguest.util import files
from minguest.util.errors import MinguestError, UserError
from minguest.vm import launch, scripts

# What a run takes as NAME=VALUE, before or after the tasks.
VARIABLES = ("guest", "kernel", "source", "contract", "version", "key", "unsigned", "since", "to", "only", "src",
             "name", "make", "redistribute", "scheduler", "store")  # fmt: skip
# Commands of doit that run no task.
SHOWS = {"list", "help", "info", "clean", "forget", "ignore", "dumpdb", "tabcompletion", "reset-dep"}
# Those of them that change something.
WORKS = {"clean", "forget", "ignore", "reset-dep"}
# Options of doit that take a value as the next argument.
VALUED = {"-f", "--file", "-d", "--dir", "--db-file", "--backend", "-o", "--output-file", "-v", "--verbosity", "-n",
          "--process", "-r", "--reporter", "-P", "--parallel-type"}  # fmt: skip
# Options of every command of doit, with a value each; not -f and -d: doit is in that folder already.
EVERYWHERE = ("--db-file", "--backend")
# Tasks that need the guest's kernel, so that one is chosen; and those that need none.
WITH_KERNEL = {"tree", "config", "kernel", "in-tree", "initrd", "drivers", "bundle", "build", "boot-test", "evidence",
               "reproduce", "rehearse", "pits", "certify", "release", "modules"}  # fmt: skip
WITHOUT_KERNEL = {"initd", "firmware", "host", "pits-host", "publish", "pits-page", "necessity-page", "lint", "test",
                  "bench", "ceph-test"}  # fmt: skip
# Commands of minguest that were tasks, or could be mistaken for one, with the argument that each takes first.
MOVED = {"diagnose": "LOG", "doctor": "IMAGE", "plan": "", "host-check": "", "host-bind": "", "host-unbind": "",
         "verify": "RELEASE", "pull": "SOURCE", "cache": ""}  # fmt: skip
# What they took as NAME=VALUE, with what takes it now.
MOVED_VARIABLES = {
    "log": "minguest diagnose LOG",
    "report": "minguest diagnose LOG --report FILE",
    "image": "minguest doctor IMAGE",
    "config": "minguest doctor IMAGE --config FILE",
    "cpus": "--cpus of doit boot-test, doit rehearse and minguest doctor",
    "gpu": "--gpu of doit boot-test, doit rehearse, minguest plan, doctor, host-check, host-bind and host-unbind",
    "card": "minguest plan --card NAME",
    "yes": "minguest host-bind --yes, minguest host-unbind --yes",
}


class Project:
    """The guest, the choice of its kernel, and where its parts are.

    `chooses`: the run needs the guest's kernel, so one is chosen, which may ask the network, and the choice is kept.
    `first_series`: the choice is the first of the guest's series, in the version that sources.toml pins.
    """

    def __init__(
        self,
        root: Path,
        guest_file: Path,
        variables: Mapping[str, str | None],
        *,
        chooses: bool,
        first_series: bool = False,
    ) -> None:
        self.root = root
        self.variables = variables
        self.guest_file = guest_file
        self.guest: Guest = settings.guest(guest_file)
        self.sources: Sources = settings.sources(root / "configs/sources.toml")
        self.cache = settings.cache_folder()
        self.ignore = _one_of(variables, "contract", "ignore") == "ignore"
        self.unsigned = _one_of(variables, "unsigned", "yes", "no") == "yes"
        self.choice = self._first() if first_series else self._choose() if chooses else self._unchosen()
        self.at = Layout(root, self.guest.name, self.choice.series)
        if self.guest.firmware not in self.sources.firmware:
            known = ", ".join(self.sources.firmware)
            raise UserError(f"{guest_file}: firmware = {self.guest.firmware!r}: not in sources.toml", f"known: {known}")
        self.ovmf: Firmware = self.sources.firmware[self.guest.firmware]
        self.fragments = kconfig.select(self.at.fragments, self.guest.fragments, self.choice.series, root)
        self.overlays = self._overlays(self.guest.overlays)
        self.modules = [self._modules(name) for name in self.guest.modules]
        on_disk = self.guest.drivers
        self.driver_overlays = self._overlays(on_disk.overlays) if on_disk else []
        self.driver_modules = [self._modules(name) for name in on_disk.modules] if on_disk else []
        if chooses:
            # A store that cannot be used, a launch that cannot be started or an overlay that cannot be laid is named
            # before anything is unpacked.
            _ = self.store, self.launch_files, self.packages, self.driver_packages, self.certificate
            _ = self.firmware_tools

    @functools.cached_property
    def tools(self) -> Mapping[str, str]:
        """Versions of what compiles."""
        return {**source.compiler_tools(), "musl": initrd.musl_version()}

    @functools.cached_property
    def firmware_tools(self) -> Mapping[str, str]:
        """Versions of what builds the firmware, if it is built here; ToolError if a program is missing."""
        return edk2.tools() if self.ovmf.debian else {}

    @functools.cached_property
    def store(self) -> Store:
        """Where the trees and kernels of all checkouts are."""
        return Store(settings.store_folder())

    @functools.cached_property
    def packages(self) -> dict[str, Package]:
        """The Debian packages that the overlays take files from, by name."""
        return overlay.packages(self.overlays, self.sources.package)

    @functools.cached_property
    def driver_packages(self) -> dict[str, Package]:
        """Those that the overlays of the disk of drivers take files from."""
        return overlay.packages(self.driver_overlays, self.sources.package)

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
            raise UserError(f"{self.shown(self.guest_file)}: {error.message}", error.remedy) from error

    @functools.cached_property
    def host(self) -> "Project":
        """The rehearsal's host."""
        guest = self.root / "configs/guests/host.toml"
        return Project(self.root, guest, dict.fromkeys(VARIABLES), chooses=False, first_series=True)

    @property
    def bench(self) -> runner.Bench:
        """Where the guest is boot-tested."""
        return runner.Bench(
            self.at.name, self.at.bundle, self.at.boot_test, self.at.kvm, self.at.pits, self.at.evidence
        )

    @property
    def pinned(self) -> Source | None:
        """Where the kernel comes from; None for the user's own tree."""
        return None if self.choice.source else self.sources.kernel[self.choice.series]

    @property
    def options(self) -> Mapping[str, str | int | bool]:
        """The guest's, and with a key what checks signatures."""
        return {**(signing.OPTIONS if self.guest.module_key else {}), **self.guest.options}

    @property
    def module_key(self) -> Path | None:
        """What signs modules."""
        return self.root / Path(self.guest.module_key).expanduser() if self.guest.module_key else None

    @functools.cached_property
    def certificate(self) -> str:
        """What the kernel checks signatures by, as PEM; empty without a key."""
        where = f"{self.shown(self.guest_file)}: module_key = {self.guest.module_key!r}"
        return signing.certificate(self.module_key, where) if self.module_key else ""

    @property
    def module_package(self) -> str:
        """The Debian package that src= names, if it is one of sources.toml; else empty."""
        name = self.variables["src"] or ""
        return name if name in self.sources.package else ""

    @property
    def contract(self) -> tuple[contract.Rule, ...]:
        """What the kernel's config must hold."""
        return catalogue.rules(self.pits)

    @functools.cached_property
    def pits(self) -> dict[str, catalogue.Pit]:
        """The known pits by id."""
        return catalogue.load(self.at.pits)

    def prepared(self) -> source.Prepared:
        """The guest's tree; it is unpacked and patched unless the store has it whole."""
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

    def path(self, name: str) -> Path | None:
        """A variable that is a path."""
        return _path(self.variables[name])

    def shown(self, path: Path) -> str:
        """A path for a message: relative to the checkout, if it is in it."""
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def _first(self) -> Choice:
        series = self.guest.kernel[0]
        return Choice(self.guest.kernel, series, self.sources.kernel[series].version, "pinned")

    def _choose(self) -> Choice:
        kept, place = self._kept()
        choice = source.choose(
            self.guest,
            self.sources,
            kept,
            self.variables["kernel"],
            self.variables["source"],
            source.availability(self.cache),
        )
        if choice != kept:
            files.write(place, msgspec.json.encode(choice))
        say(source.sentence(choice))
        return choice

    def _unchosen(self) -> Choice:
        """The choice for a run that builds no kernel: kernel=, the choice that is kept, or the first series.

        Needs no network and keeps nothing.
        """
        series = self.variables["kernel"]
        source.check_series(series, self.sources)
        kept, _ = self._kept()
        if series in (None, source.AUTO):
            series = kept.series if kept and kept.series in self.sources.kernel else self.guest.kernel[0]
        if kept and kept.series == series:
            return kept
        pinned = self.sources.kernel.get(series)
        return Choice(self.guest.kernel, series, pinned.version if pinned else series, "not chosen yet")

    def _kept(self) -> tuple[Choice | None, Path]:
        """The choice of an earlier run, if any, and the file that keeps it."""
        place = Layout(self.root, self.guest.name, "").choice
        try:
            return msgspec.json.decode(place.read_bytes(), type=Choice), place
        except (OSError, ValueError):
            return None, place

    def _overlays(self, names: Sequence[str]) -> list[Path]:
        found: dict[str, str] = {}
        for name in names:
            folder = Path(name).name
            if folder in found:
                raise UserError(
                    f"{self.guest_file}: overlays: {found[folder]!r} and {name!r}: two of one name",
                    "the manifest lists their files by that name: remove one, or rename its folder",
                )
            found[folder] = name
        return [self._overlay(name) for name in names]

    @property
    def uses_in_tree(self) -> bool:
        """Whether the guest names the kernel's own modules."""
        return self.at.modules / modules.IN_TREE in [*self.modules, *self.driver_modules]

    def _modules(self, name: str) -> Path:
        if not modules.NAME.fullmatch(name):
            raise UserError(f"{self.guest_file}: modules: {name!r} is not a name", "the name= of `doit modules`")
        return self.at.modules / name

    def _overlay(self, name: str) -> Path:
        for path in (self.root / "overlays" / name, self.root / name):
            if path.is_dir():
                return path
        raise UserError(f"{self.guest_file}: overlay {name!r}: no such folder in overlays/ or from the project's root")


def project(root: Path) -> Project:
    """The project that this process's command line names; InvalidTask, with one message, if there is none.

    Not doit's InvalidDodoFile: on that, `doit help` shows its general help in place of the message.
    """
    arguments = sys.argv[1:]
    named = positionals(arguments)
    command = named[0] if named and named[0] in SHOWS else ""
    if command and next(each for each in arguments if not _is_variable(each)) != command:
        # doit takes a command only before all options, and would run a task of that name.
        os.execv(sys.executable, [sys.executable, sys.argv[0], *command_first(command, arguments)])
    reporter.begin(root, shows=command in SHOWS - WORKS)
    try:
        moved = next((each for each in named if each not in SHOWS and each != "run"), "")
        if moved in MOVED:
            raise UserError(f"`doit {moved}` is now: {moved_to(moved, arguments)}")
        for argument in arguments:
            _check_variable(argument)
        variables = {name: get_var(name) for name in VARIABLES}
        packages = settings.sources(root / "configs/sources.toml").package if variables["src"] else {}
        check_what_ships(tasks_of(arguments), variables, packages)
        scaled.check(tasks_of(arguments), variables)
        guest, chooses = settings.guest_file(root, variables["guest"]), needs_kernel(arguments)
        made = Project(root, guest, variables, chooses=chooses)
        if not chooses and "host" in tasks_of(arguments) and made.host.at == made.at:
            made = Project(root, guest, variables, chooses=True)  # with guest=host, `host` builds this guest
        return made
    except MinguestError as error:
        raise InvalidTask(str(error)) from None


def positionals(arguments: Sequence[str]) -> list[str]:
    """The arguments that are a command, a task or a target: without options, their values, and variables."""
    return [
        each
        for before, each in zip(("", *arguments), arguments, strict=False)
        if not each.startswith("-") and not _is_variable(each) and before not in VALUED
    ]


def command_first(command: str, arguments: Sequence[str]) -> list[str]:
    """The arguments with the command before them; of the options before it those that every command has."""
    index = arguments.index(command)
    kept: list[str] = []
    for place, argument in enumerate(arguments[:index]):
        name, equals, _ = argument.partition("=")
        if name in EVERYWHERE:
            kept += [argument] if equals else arguments[place : place + 2]
        elif _is_variable(argument):
            kept.append(argument)  # a variable: it may stand anywhere
    return [command, *kept, *arguments[index + 1 :]]


def tasks_of(arguments: Sequence[str]) -> set[str]:
    """The tasks that a run of doit with these arguments names. No name, or the path of a target, counts as `build`.

    A name that is no task is left out: doit refuses it.
    """
    named = positionals(arguments)
    if named and named[0] in SHOWS:
        return set()
    wanted = [each for each in named if each not in ("run", "strace")] or ["build"]
    if "bench" in wanted:
        wanted = wanted[: wanted.index("bench") + 1]  # what follows is its own: `doit bench build`
    return {task for each in wanted for task in ({"build"} if "/" in each else _tasks(each))}


def needs_kernel(arguments: Sequence[str]) -> bool:
    """Whether a run of doit with these arguments needs the guest's kernel."""
    return bool(tasks_of(arguments) & WITH_KERNEL)


def check_what_ships(
    tasks: Collection[str], variables: Mapping[str, str | None], packages: Collection[str] = ()
) -> None:
    """UserError if one of these tasks lacks a variable, or cannot work with it: the bundle is built before they run.

    `packages` are those of sources.toml, which src= may name."""
    if "release" in tasks:
        from minguest.release import assemble  # noqa: PLC0415 - slow to import, see SLOW in build.py

        unsigned = _one_of(variables, "unsigned", "yes", "no") == "yes"
        assemble.check(variables["version"], _path(variables["key"]) or settings.signing_key(), unsigned=unsigned)
    if "modules" in tasks:
        if variables["src"] in packages:
            modules.check_words(str(variables["src"]), variables["name"], variables["make"])
        else:
            modules.check(_path(variables["src"]), variables["name"], variables["make"], packages)
    if "publish" in tasks:
        from minguest.publish import destination  # noqa: PLC0415 - the same

        destination.check(variables["to"])


def moved_to(name: str, arguments: Sequence[str]) -> str:
    """What to type for a command of minguest that was a task, with the same arguments."""
    behind = list(arguments[arguments.index(name) + 1 :])
    options = [each for each in behind if not _is_variable(each)]
    first = [MOVED[name]] if MOVED[name] and not (options and not options[0].startswith("-")) else []
    for argument in filter(_is_variable, arguments):
        key, _, value = argument.partition("=")
        if key in ("log", "image"):
            first = [value]
        elif key == "yes":
            options += ["--yes"] if value == "yes" else []
        elif key in MOVED_VARIABLES:
            options += [f"--{key}", value]
    return shlex.join(["minguest", name, *first, *options])


def _path(value: str | None) -> Path | None:
    return Path(value).expanduser().absolute() if value else None


def _one_of(variables: Mapping[str, str | None], name: str, *known: str) -> str | None:
    """A variable's value; UserError for one that it cannot have."""
    value = variables[name]
    if value is not None and value not in known:
        raise UserError(f"{name}={value}: not known", " or ".join(f"{name}={each}" for each in known))
    return value


def _is_variable(argument: str) -> bool:
    return "=" in argument and not argument.startswith("-")


def _tasks(argument: str) -> set[str]:
    """Tasks that an argument names: by name, with a part after a colon, or by a pattern."""
    pattern = argument.partition(":")[0]
    return {task for task in WITH_KERNEL | WITHOUT_KERNEL if fnmatch.fnmatchcase(task, pattern)}


def _check_variable(argument: str) -> None:
    name, equals, _ = argument.partition("=")
    if not equals or name.startswith("-") or name in VARIABLES:
        return
    if name in MOVED_VARIABLES:
        remedy = f"what takes it now: {MOVED_VARIABLES[name]}"
    elif near := difflib.get_close_matches(name, VARIABLES, 1):
        remedy = f"nearest: {near[0]}="
    else:
        remedy = f"known: {'= '.join(VARIABLES)}="
    raise UserError(f"{argument}: no such variable", remedy)
