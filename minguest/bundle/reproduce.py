# SPDX-License-Identifier: Apache-2.0
"""Builds the bundle twice, in surroundings that differ in all that can be varied here, and compares every file.

Each build is this project's own command in a fresh copy of the checkout. The kernel's own build gets few of these
surroundings (run.run, `bare`): that is one reason why it reproduces, and this proves it.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from minguest import VERSION, settings
from minguest.bundle import compare, manifests
from minguest.bundle.reproduction import SCHEMA, Reproduction
from minguest.util import run
from minguest.util.errors import ToolError

COMMAND = (sys.executable, "-m", "doit", "build")
# Where a build puts its bundle, from the copy of the checkout: out/NAME-SERIES/bundle.
BUNDLE = "out/*/bundle"
# Diffoscope's, beside the two builds.
REPORT = "diffoscope.txt"
# What a checkout without git has, but is not a part of it.
GENERATED = {"out", ".venv", ".git", ".doit.db"}


class Surroundings(msgspec.Struct, frozen=True):
    """What one build is done in."""

    name: str
    """The name of the build's folder below the work folder."""
    folder: str
    """Where in it the copy of the checkout is."""
    umask: int
    locale: str
    timezone: str
    user: str
    """$USER, $LOGNAME, and the last part of $HOME, which is empty at first."""
    uid: int | None
    """The user's and the group's number, in a user namespace; None: as it is."""
    more_jobs: int
    """How many jobs more than settings.jobs()."""


# Time zones 25 hours apart, so that the dates always differ; in POSIX' format, which needs no zone files. The locale
# need not be installed: programs see its name in any case, and the record says whether they find it.
FIRST = Surroundings("first", "a", 0o022, "C.UTF-8", "LINT-14", "alice", None, 0)
SECOND = Surroundings("second", "deeper/and-with/a-longer-name", 0o077, "de_DE.UTF-8", "SST11", "bartholomew", 54321, 1)
# What is not varied.
SAME = {
    "machine": "one machine: its CPU, kernel, host name and file system",
    "tools": "one set of installed tools; the manifest names the compiler and the linker",
    "date": "the second build began when the first one ended",
    "downloads": "one cache, of files that are pinned by hash",
}


def builds(
    root: Path,
    work: Path,
    arguments: Sequence[str],
    say: Callable[[str], None],
    *,
    store: Path,
    bundle: Path | None = None,
    inputs: Sequence[Path] = (),
    command: Sequence[str] = COMMAND,
    first: Surroundings = FIRST,
    second: Surroundings = SECOND,
) -> Reproduction:
    """Run `command` with `arguments` in two copies of `root` below `work`, and compare their bundles.

    `arguments` are doit's (`kernel=6.12`). Each build has a store of its own below `store`, empty at first, so that it
    compiles everything. `bundle` is one that exists already: it must be the same too. `inputs` are more files below
    `root` that are copied: which kernel was chosen, and why, is in the manifest. Both copies are removed if all is the
    same; else they are kept and named, as when a build fails (ToolError). What an earlier run left in `work` is removed
    first.
    """
    both = (first, second)
    refusal = next(filter(None, (refusal_of(each) for each in both)), "")
    shutil.rmtree(store, ignore_errors=True)
    begin(work, both)
    names = [*checkout(root), *(path.relative_to(root).as_posix() for path in inputs)]
    line = [*command, *(absolute(each, root) for each in arguments)]
    try:
        one, two = (build(each, root, names, work, line, say, store, namespace=not refusal) for each in both)
    finally:
        shutil.rmtree(store, ignore_errors=True)
    return compared(work, one, two, bundle, varied(side(first, refusal), side(second, refusal)), say, both)


Varied = tuple[dict[str, tuple[str, str]], dict[str, str]]
"""What was varied between two builds, and how; what was not, and why."""


def begin(work: Path, both: Sequence[Surroundings] = (FIRST, SECOND)) -> None:
    """Remove what an earlier run left in `work`."""
    for each in both:
        shutil.rmtree(work / each.name, ignore_errors=True)
    (work / REPORT).unlink(missing_ok=True)


def compared(
    work: Path,
    one: Path,
    two: Path,
    bundle: Path | None,
    about: Varied,
    say: Callable[[str], None],
    both: Sequence[Surroundings] = (FIRST, SECOND),
) -> Reproduction:
    """The record of two bundles in `work` that were built, and of `bundle`, which was there before."""
    report = work / REPORT
    differences = compare.folders(one, two)
    if bundle is not None:
        rows = compare.folders(one, bundle)
        differences += [msgspec.structs.replace(row, file=f"{row.file} (bundle)") for row in rows]
    record = Reproduction(
        schema=SCHEMA,
        result="different" if differences else "same",
        files={} if differences else _described(two),
        differences=tuple(differences),
        varied=about[0],
        not_varied=about[1],
        minguest=VERSION,
    )
    if differences:
        more = f"; {report} has diffoscope's report" if compare.diffoscope(one, two, report) else ""
        say(f"kept for inspection: {one} and {two}{more}")
    else:
        for each in both:
            shutil.rmtree(work / each.name)
    return record


def build(
    surroundings: Surroundings,
    root: Path,
    names: Sequence[str],
    work: Path,
    command: Sequence[str],
    say: Callable[[str], None],
    store: Path,
    *,
    namespace: bool,
) -> Path:
    """Build once in a copy; returns the bundle's folder."""
    folder = work / surroundings.name
    copy, home = folder / surroundings.folder, folder / surroundings.user
    with _umask(surroundings.umask):
        _copy(root, names, copy)
        home.mkdir()
    say(f"{surroundings.name} build: {copy}")
    try:
        run.run(
            argv(surroundings, command, namespace=namespace),
            cwd=copy,
            env=environment(surroundings, copy, home, store / surroundings.name / surroundings.folder),
            log=folder / "build.log",
            on_line=lambda line: say(f"{surroundings.name} │ {line}"),
        )
    except ToolError as error:
        remedy = f"both copies are kept in {work} until the next run"
        raise ToolError(f"the {surroundings.name} build failed, in {copy}\n{error.message}", remedy) from error
    found = list(copy.glob(BUNDLE))
    if len(found) != 1:
        raise ToolError(f"{copy}: the build left {len(found)} bundles ({BUNDLE}), not one")
    return found[0]


def table(record: Reproduction) -> str:
    """A record for a person: what was varied, what was not, and the result."""
    width = max(map(len, [*record.varied, *record.not_varied]), default=0)
    lines = [f"  {name:{width}}  {first} | {second}" for name, (first, second) in record.varied.items()]
    lines += [f"  {name:{width}}  not varied: {why}" for name, why in record.not_varied.items()]
    if record.result == "same":
        return "\n".join([*lines, f"built twice, the same: {', '.join(record.files)}"])
    return "\n".join([*lines, f"{cause(record)}:", compare.describe(record.differences)])


def cause(record: Reproduction) -> str:
    """Between what the difference is: the two builds, or both of them and the bundle that was there."""
    count = f"{len(record.differences)} differences"
    if all(row.file.endswith(" (bundle)") for row in record.differences):
        return f"the two builds are the same, but not the bundle that was there, {count}"
    return f"the two builds are not the same, {count}"


def argv(surroundings: Surroundings, command: Sequence[str], *, namespace: bool) -> list[str]:
    """The command with its umask and, if namespaces work, as its user.

    A user namespace needs no privilege on most systems. A file's real owner is the same; programs in the namespace see
    the other number.
    """
    uid = surroundings.uid if namespace else None
    user = [] if uid is None else ["unshare", "--user", f"--map-user={uid}", f"--map-group={uid}", "--"]
    return [*user, "sh", "-c", 'umask "$1"; shift; exec "$@"', "sh", f"{surroundings.umask:04o}", *command]


def environment(surroundings: Surroundings, copy: Path, home: Path, store: Path) -> dict[str, str]:
    """A build's environment; PYTHONPATH makes it run the copy's own minguest, and not an installed one."""
    return {
        "LANG": surroundings.locale,
        "LC_ALL": surroundings.locale,
        "LANGUAGE": surroundings.locale.split(".")[0],
        "TZ": surroundings.timezone,
        "USER": surroundings.user,
        "LOGNAME": surroundings.user,
        "MINGUEST_STORE": str(store),
        "HOME": str(home),
        "PYTHONPATH": str(copy),
        "PYTHONUNBUFFERED": "1",
        "MINGUEST_CACHE": str(settings.cache_folder()),
        "MINGUEST_JOBS": str(settings.jobs() + surroundings.more_jobs),
    }


def checkout(root: Path) -> list[str]:
    """The files of a checkout: what git tracks or would track, else all but what is generated. Paths from `root`."""
    # git's warnings would end up among the names.
    script = 'exec git -C "$1" ls-files -co --exclude-standard -z 2>/dev/null'
    status, listing = run.run(["sh", "-c", script, "sh", root], check=False)
    names = listing.split("\0") if status == 0 else []
    if not any(names):
        names = [
            path.relative_to(root).as_posix()
            for top in root.iterdir()
            if top.name not in GENERATED
            for path in (top, *top.rglob("*"))
        ]
    # git also lists what was deleted but not staged, and submodules as folders.
    return sorted({name for name in names if (root / name).is_symlink() or (root / name).is_file()})


def _copy(root: Path, names: Sequence[str], target: Path) -> None:
    """Copy as a checkout does: only the executable bit is kept, the umask sets the rest; times are new."""
    for name in names:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, path, follow_symlinks=False)
        if not path.is_symlink() and (root / name).stat().st_mode & 0o100:
            path.chmod(path.stat().st_mode | (path.stat().st_mode & 0o444) >> 2)


def absolute(argument: str, root: Path) -> str:
    """`source=` and `guest=` may name a file; the copies and their $HOME are elsewhere."""
    name, equals, value = argument.partition("=")
    path = root / Path(value).expanduser()
    is_path = (name == "source" and value != "pinned") or (name == "guest" and value.endswith(".toml"))
    return f"{name}={path}" if equals and is_path else argument


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def refusal_of(surroundings: Surroundings) -> str:
    """Why these surroundings' user is not possible here; empty if it is."""
    try:
        status, output = run.run(argv(surroundings, ["true"], namespace=True), check=False)
    except ToolError as error:
        return error.message
    return "" if status == 0 else f"no user namespace: {output or f'exit status {status}'}"


def _described(folder: Path) -> dict[str, manifests.File]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(folder).as_posix(): manifests.describe(path) for path in paths}


class Side(msgspec.Struct, frozen=True):
    """One of two builds, as the machine that makes it sees its surroundings."""

    facts: Mapping[str, str]
    refusal: str
    """Why it cannot have another user's number; empty: it has."""
    without: str
    """Its locale, if that is not installed there; else empty."""


def side(surroundings: Surroundings, refusal: str) -> Side:
    """What a build in these surroundings gets on this machine."""
    uid = surroundings.uid if not refusal and surroundings.uid is not None else os.getuid()
    facts = {
        "folder": f"{surroundings.name}/{surroundings.folder}",
        "home": f"{surroundings.name}/{surroundings.user}",
        "umask": f"{surroundings.umask:04o}",
        "locale": surroundings.locale,
        "time zone": surroundings.timezone,
        "user's name": surroundings.user,
        "user's number": str(uid),
        "jobs": str(settings.jobs() + surroundings.more_jobs),
    }
    there = _spelled(surroundings.locale) in _locales()
    return Side(facts, refusal, "" if there else surroundings.locale)


def varied(first: Side, second: Side) -> Varied:
    """What was varied, and what was not and why."""
    varied = {name: (value, second.facts[name]) for name, value in first.facts.items() if value != second.facts[name]}
    not_varied = dict(SAME)
    refusal = first.refusal or second.refusal
    for name, value in first.facts.items():
        if name not in varied:
            not_varied[name] = refusal if name == "user's number" and refusal else f"{value} for both"
    for locale in filter(None, (first.without, second.without)):
        not_varied[f"rules of {locale}"] = "not installed here: programs saw its name, and used the locale C"
    return varied, not_varied


def _locales() -> set[str]:
    try:
        return {_spelled(line) for line in run.run(["locale", "-a"], check=False)[1].splitlines()}
    except ToolError:
        return set()


def _spelled(locale: str) -> str:
    """`locale -a` prints C.utf8 for C.UTF-8."""
    return locale.lower().replace("utf-8", "utf8")
