# SPDX-License-Identifier: Apache-2.0
"""What workers cost: `python -m tests.bench.scale [--times N] [--only PITS]`, in a checkout with its bundle.

The same cells in one process, on one worker and on two, in turns; the time from the first cell's start to the last
one's end, and the engine's own cost a cell, as it says it itself. A machine that does other things makes all of them
slower: its load is shown.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time

from tests import ROOT

WAYS = {"in this process": [], "local:1": ["scheduler=local:1"], "local:2": ["scheduler=local:2"]}
COST = re.compile(r"(\d+) cells; the engine's own cost ([\d.]+) s a cell")
CELL = re.compile(r"^  (right|wrong|NOT RUN) +\S+ +([\d.]+) s", re.MULTILINE)


def once(way: list[str], only: str) -> tuple[float, float, float | None]:
    """Seconds of the whole command, the sum of its cells, and the engine's cost a cell."""
    start = time.monotonic()
    done = subprocess.run(
        ["doit", "-s", "pits", "kernel=6.12", f"only={only}", *way],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    seconds = time.monotonic() - start
    if done.returncode != 0:
        sys.exit(done.stdout)
    cost = COST.search(done.stdout)
    return seconds, sum(float(each[1]) for each in CELL.findall(done.stdout)), float(cost[2]) if cost else None


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--only", default="healthy")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float, float | None]]] = {name: [] for name in WAYS}
    for _ in range(options.times):
        for name, way in WAYS.items():
            found[name].append(once(way, options.only))
            print(f"{name}: {found[name][-1]}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    print("| | whole command, s (median, least) | sum of the cells, s | the engine's own cost a cell, s |")
    print("| --- | --- | --- | --- |")
    for name, runs in found.items():
        whole = [each[0] for each in runs]
        costs = [each[2] for each in runs if each[2] is not None]
        cost = f"{statistics.median(costs):.2f}" if costs else "-"
        cells = statistics.median(each[1] for each in runs)
        print(f"| {name} | {statistics.median(whole):.1f}, {min(whole):.1f} | {cells:.1f} | {cost} |")


if __name__ == "__main__":
    main()
