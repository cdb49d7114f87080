# SPDX-License-Identifier: Apache-2.0
"""bench build: a kernel from nothing beside others on the same tree, and what is built again after a change.

With `cold` it compiles, in a store of its own that starts empty: minutes to an hour. Without, it
measures only what compiles nothing.
"""

import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from minguest import settings
from minguest.bundle import manifests
from minguest.kernel import kbuild, kconfig
from minguest.paths import Layout, Store
from minguest.util import files
from minguest.util.errors import UserError
from minguest.util.run import run as run_tool
from tests import ROOT
from tests.bench import boot, record
from tests.bench.record import Part, Subject, Value
from tests.bench.tools import seconds

COLD, WHOLE, CHANGED = "kernel from nothing", "doit build from nothing", "one option changed"
SECOND, NOTHING, REHEARSAL = "a second guest", "nothing to do", "rehearsal"
MEASURES = (COLD, WHOLE, CHANGED, SECOND, NOTHING, REHEARSAL)
# The guests that are made for it: their results are in out/NAME-SERIES, and are removed.
ONE, OTHER, NEXT = "bench-one", "bench-changed", "bench-second"
NOTES = (
    f"{COLD}: make olddefconfig bzImage, without ccache. {WHOLE}: with an empty store, and the tree unpacked already.",
    f"{CHANGED}: another value in the guest's [options], with ccache as the build before it left it. {SECOND}: of "
    f"another name, with the same kernel. {NOTHING}: doit build again. {REHEARSAL}: doit rehearse, all built.",
)


def variant(text: str, name: str, options: str = "") -> str:
    """A guest's TOML with another name and more [options]; UserError if it has no such places."""
    text, named = re.subn(r'^name = "[^"]*"', f'name = "{name}"', text, flags=re.MULTILINE)
    text, opened = re.subn(r"^\[options\]$", f"[options]\n{options}", text, flags=re.MULTILINE)
    if (named, opened) != (1, 1):
        raise UserError("configs/guest.toml: has not one line `name = …` and one `[options]`", "see docs/guests.md")
    return text


@contextmanager
def guest(folder: Path, name: str, series: str, options: str = "") -> Iterator[list[str]]:
    """doit's variables for a variant of the default guest, whose results are removed before and after."""
    at = Layout(ROOT, name, series)
    file = folder / f"{name}.toml"
    file.write_text(variant((ROOT / "configs/guest.toml").read_text(encoding="utf-8"), name, options))

    def clear() -> None:
        shutil.rmtree(at.work, ignore_errors=True)
        at.choice.unlink(missing_ok=True)

    clear()
    try:
        yield [f"guest={file}", f"kernel={series}"]
    finally:
        clear()


def compiled(tree: Path, config: Path, image: Path | None = None) -> float:
    """Wall time of compiling `config` from nothing, olddefconfig included. `image` gets its bzImage."""
    with tempfile.TemporaryDirectory(prefix="minguest-bench-") as name:
        out = Path(name)
        shutil.copyfile(config, out / ".config")
        start = time.monotonic()
        for target in ("olddefconfig", "bzImage"):
            run_tool(kbuild.make_argv(tree, out, settings.jobs(), target), bare=True)
        took = time.monotonic() - start
        if image is not None:
            files.copy(out / kbuild.IMAGE, image)
        return took


def rebuilt(series: str, change: str) -> dict[str, Value]:
    """A build in an empty store, and one after a change with ccache as that left it."""
    with tempfile.TemporaryDirectory(prefix="minguest-bench-") as name:
        folder = Path(name)
        store = Store(folder / "store")
        store.folder.mkdir()
        # Not the tree: unpacking is not what changes.
        store.trees.symlink_to(Store(settings.store_folder()).trees)
        env = {"MINGUEST_STORE": str(store.folder)}
        with guest(folder, ONE, series) as variables:
            seconds("doit", "tree", *variables, env=env)
            cold = seconds("doit", "build", *variables, env=env)
        with guest(folder, OTHER, series, change) as variables:
            again = seconds("doit", "build", *variables, env=env)
    return {WHOLE: Value("s", (cold,)), CHANGED: Value("s", (again,))}


def run(
    part: Part,
    bundle: str,
    peers: Sequence[str],
    base: str,
    times: int,
    change: str,
    cold: bool,
    rehearsal: bool,
    out: Path,
    say: Callable[[str], None],
) -> Part:
    """Measure; `peers` are NAME=CONFIG, and each one's kernel is left as `out`/NAME.bzImage. ToolError if a build
    fails, UserError for a config that is missing, or that of a 32-bit kernel."""
    folder = Path(bundle.rpartition("=")[2])
    manifest = manifests.load(folder)
    series, name = manifest.kernel.series, manifest.guest.name
    configs = dict(boot.pair(each, "--peer") for each in peers)
    if missing := [path for path in configs.values() if not Path(path).is_file()]:
        raise UserError(f"{missing[0]}: no such file", "--peer NAME=CONFIG")
    for path in configs.values():
        if kconfig.parse_config(Path(path).read_text(encoding="utf-8")).get("64BIT") != "y":
            raise UserError(
                f"{path}: CONFIG_64BIT is not on: a 32-bit kernel is no peer",
                "make the config with ARCH=x86_64; ARCH=x86 starts from 32 bits",
            )
    ours = bundle.rpartition("=")[0] or f"{name}-{series}"
    boot.one_of(base, [ours, *configs])
    values: dict[str, Value] = {}
    if name == "default":
        values[NOTHING] = Value("s", tuple(seconds("doit", "build", f"kernel={series}") for _ in range(times + 1))[1:])
        say(NOTHING)
    with tempfile.TemporaryDirectory(prefix="minguest-bench-") as temporary:
        samples = []
        for _ in range(times):
            with guest(Path(temporary), NEXT, series) as variables:
                samples.append(seconds("doit", "build", *variables))
        values[SECOND] = Value("s", tuple(samples))
        say(SECOND)
    if rehearsal:
        seconds("doit", "build", "host", f"kernel={series}")
        values[REHEARSAL] = Value("s", tuple(seconds("doit", "rehearse", f"kernel={series}") for _ in range(times)))
        say(REHEARSAL)
    theirs: dict[str, Value] = {}
    if cold:
        tree = Path(json.loads((folder.parent / "tree.json").read_bytes())["path"])
        values |= rebuilt(series, change)
        say(CHANGED)
        values[COLD] = Value("s", (compiled(tree, folder / "kernel.config"),))
        for each, config in configs.items():
            theirs[each] = Value("s", (compiled(tree, Path(config), out / f"{each}.bzImage"),))
            say(f"{each}, {COLD}")
    subjects = {ours: Subject("ours", f"linux {manifest.kernel.version}", manifest.files, values)}
    for each, config in configs.items():
        made_of = {Path(config).name: manifests.describe(Path(config))}
        problem = "" if cold else "not compiled: that needs --cold"
        subjects[each] = Subject("peer", Path(config).name, made_of, {COLD: theirs[each]} if cold else {}, problem)
    return msgspec.structs.replace(part, base=base, subjects=subjects, notes=NOTES)


def tables(part: Part) -> dict[str, record.Rows]:
    return {"Builds": record.table(part, MEASURES), "Spread": record.spreads(part, MEASURES)}
