# SPDX-License-Identifier: Apache-2.0
"""Kills builds at random moments and sees that the next one makes the bytes of a build that nobody killed.

    python -m tests.kill_campaign --kernel 6.12 [--source DIR] [--kills 50] [--seed N]

Builds in a copy of the checkout and in a store of its own, both gone afterwards; downloads are taken from the user's
cache. Each trial takes away what an earlier build has left from some stage on, starts `doit build`, and ends it after a
random time: by SIGINT or SIGTERM to doit, as Ctrl-C and a service manager do; by SIGKILL to doit alone; to all of its
processes at once, as a power cut does; or to one of them, as the kernel does when memory runs out. Some objects are
missing from ccache each time, so that compilers are cut too. A trial is right when the next `doit build` succeeds and
each file of the bundle is as it was. Exit status 1 when one is wrong. A line a trial; some hours for both series.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from minguest.util import files
from tests import ROOT

# What is taken away before a trial: of the copy's out/ (with its name GUEST-LINE as *), and of the store.
STAGES = {
    "kernel": (("*/kernel",), ("kernels",)),
    "config": (("*/kernel", "*/config"), ("kernels", "configs")),
    "tree": (("*/kernel", "*/config", "*/tree.json"), ("kernels", "configs", "trees")),
    "all": (("*",), ("kernels",)),
}
# Most of a build is compiling, and most trials are of it.
WEIGHTS = {"kernel": 6, "config": 2, "tree": 1, "all": 1}
HOW = ("SIGINT to doit", "SIGTERM to doit", "SIGKILL to doit", "SIGKILL to all", "SIGKILL to one")
# One in so many of ccache's objects is taken away.
MISSING = 12


def checkout(target: Path) -> Path:
    """What git has or would have."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name, follow_symlinks=False)
    return target


class Site:
    """The copy, its store, and the command that builds in it."""

    def __init__(self, folder: Path, variables: Sequence[str]) -> None:
        self.root = checkout(folder / "checkout")
        self.store = folder / "store"
        self.argv = [sys.executable, "-m", "doit", "build", *variables]
        self.environment = {**os.environ, "MINGUEST_STORE": str(self.store), "PYTHONPATH": str(self.root)}

    def begin(self) -> "subprocess.Popen[bytes]":
        log = (self.root.parent / "log").open("wb")
        return subprocess.Popen(
            self.argv, cwd=self.root, env=self.environment, stdout=log, stderr=log, start_new_session=True
        )

    def build(self) -> tuple[int, float]:
        """Status and seconds of a build that nobody kills."""
        start = time.monotonic()
        status = self.begin().wait()
        return status, time.monotonic() - start

    def said(self) -> str:
        return (self.root.parent / "log").read_text(errors="replace")

    def bundle(self) -> dict[str, str]:
        (folder,) = self.root.glob("out/*/bundle")
        return {path.name: files.sha256(path) for path in sorted(folder.iterdir())}

    def take_away(self, stage: str, chance: random.Random) -> None:
        outs, kept = STAGES[stage]
        for path in (found for glob in outs for found in self.root.glob(f"out/{glob}")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name in kept:
            shutil.rmtree(self.store / name, ignore_errors=True)
        objects = sorted(path for path in self.store.glob("ccache/?/?/*") if path.is_file())
        for path in chance.sample(objects, len(objects) // MISSING):
            path.unlink()


def below(pid: int) -> list[int]:
    """The processes that a process started, theirs too, as /proc has them now."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it ended meanwhile
    found, pending = [], [pid]
    while pending:
        parent = pending.pop()
        children = [child for child, of in parents.items() if of == parent]
        found += children
        pending += children
    return found


def cut(process: "subprocess.Popen[bytes]", how: str, chance: random.Random) -> str:
    """End a build as `how` says; what was hit."""
    others = below(process.pid)
    hit = [process.pid]
    if how == "SIGKILL to all":
        hit += others
    elif how == "SIGKILL to one" and others:
        hit = [chance.choice(others)]
    names = []
    for pid in hit:
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            os.kill(pid, signal.Signals[how.split(maxsplit=1)[0]])
            names.append(name)
        except OSError:
            continue
    return names[0] if len(names) == 1 else f"{len(names)} processes"


def trial(site: Site, clean: dict[str, str], usual: float, chance: random.Random) -> tuple[bool, str, str]:
    """One cut and one build: whether it was cut before it was done, what was done, what is wrong (empty: nothing)."""
    stage = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    how, after = chance.choice(HOW), chance.uniform(0.2, usual)
    site.take_away(stage, chance)
    process = site.begin()
    try:
        process.wait(after)
        killed, what = False, f"{stage}: done within {after:.1f} s, not killed"
    except subprocess.TimeoutExpired:
        hit = cut(process, how, chance)
        killed, what = True, f"{stage}: {how} ({hit}) after {after:.1f} s, status {process.wait()}"
    status, seconds = site.build()
    if status != 0:
        return killed, what, f"the next build: status {status}\n{site.said()}"
    other = [name for name, digest in site.bundle().items() if clean.get(name) != digest]
    return killed, f"{what}; next build {seconds:.0f} s", f"other bytes: {', '.join(other)}" if other else ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kill_campaign", description=__doc__.split("\n")[0])
    parser.add_argument("--kernel", default="6.12", help="the series (default 6.12)")
    parser.add_argument("--source", help="a tree of that series, where it cannot be fetched")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="a folder to work in that stays; else a temporary one")
    requested = parser.parse_args()
    # In the background a shell lets SIGINT be ignored, which what is started here would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    variables = [f"kernel={requested.kernel}", *([f"source={requested.source}"] if requested.source else [])]
    chance = random.Random(requested.seed)
    with ExitStack() as at_end:
        place = requested.work or at_end.enter_context(
            tempfile.TemporaryDirectory(prefix="minguest-campaign-", dir="/var/tmp")
        )
        site = Site(Path(place).absolute(), variables)
        status, seconds = site.build()
        if status != 0:
            print(site.said())
            return 1
        clean = site.bundle()
        print(f"a whole build: {seconds:.0f} s, bzImage {clean['bzImage'][:16]}", flush=True)
        site.take_away("kernel", random.Random(0))
        _, usual = site.build()
        print(f"with ccache: {usual:.0f} s; the same: {site.bundle() == clean}", flush=True)
        results: Counter[str] = Counter()
        while results["killed"] < requested.kills:
            was_killed, what, fault = trial(site, clean, usual, chance)
            results["wrong" if fault else "right"] += 1
            results["killed"] += was_killed
            print(
                f"{results['killed']:3} {'WRONG' if fault else 'right'}  {what}{f': {fault}' if fault else ''}",
                flush=True,
            )
        killed, right, wrong = (results[key] for key in ("killed", "right", "wrong"))
        print(f"linux {requested.kernel}, seed {requested.seed}: {killed} killed; {right} right, {wrong} wrong")
        return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
