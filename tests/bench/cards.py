# SPDX-License-Identifier: Apache-2.0
"""Boot time against the number of cards and the size of their BARs: docs/boot-time.md and docs/boot-time.svg.

`python -m tests.bench.cards` runs the real boot test with emulated cards of one BAR each, in software emulation, in
rounds of random order. Every boot is kept at once in boot-time/boots.json below the guest's folder; a run that was
ended goes on there. Figures of one machine: leave it alone meanwhile.
"""

import argparse
import collections
import math
import random
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from minguest import paths, settings
from minguest.boottest import runner
from minguest.boottest.verdict import Phases
from minguest.bundle import manifests
from minguest.model import Launch
from minguest.util import files
from minguest.util.errors import GuestError, ToolError
from minguest.vm import emulator, launch
from tests import ROOT
from tests.bench.record import machine

CARDS = (1, 2, 4, 8)
BARS = ("16M", "256M", "4G", "16G", "64G", "128G", "256G")
# Of middle brightness, to be read on white and on black: an SVG in a page does not know which theme GitHub shows.
COLOURS = ("#3b8eea", "#e0752d", "#2da44e", "#b36ae2", "#bf8700", "#e5534b")
GREY = "#848d97"

Combination = tuple[int, str]
"""How many cards, and the size of each one's BAR."""


class Boot(msgspec.Struct, frozen=True):
    """What one boot test came to."""

    cards: int
    bar: str
    result: str
    """`pass`, `failed`, `lost`, or `refused`: QEMU did not start the guest."""
    reason: str = ""
    phases: Phases | None = None


class Record(msgspec.Struct, frozen=True):
    """boots.json: what was measured where, and every boot. Boots of another setting are not mixed in."""

    bundle: dict[str, manifests.File]
    qemu: str
    machine: str
    boots: tuple[Boot, ...] = ()


Found = Mapping[Combination, Sequence[Boot]]


def grouped(boots: Sequence[Boot], wanted: Sequence[Combination]) -> dict[Combination, list[Boot]]:
    """The boots of each combination; one that was not run has none."""
    return {each: [boot for boot in boots if (boot.cards, boot.bar) == each] for each in wanted}


def missing(found: Found, times: int) -> list[Combination]:
    """What is still to be run, in rounds: what disturbs the machine for a while disturbs all combinations alike."""
    rounds = [[each for each, boots in found.items() if len(boots) <= number] for number in range(times)]
    return [each for one in rounds for each in random.sample(one, len(one))]


def boot(work: Path, folder: Path, wanted: Launch, cards: int, bar: str) -> Boot:
    """One boot test of the bundle in `work` with the launch `wanted`; `folder` gets what it saw."""
    bench = runner.Bench(work.name, work / "bundle", folder, work / "kvm.json", paths.known_pits())
    options = launch.Options(gpu=",".join([f"bar:{bar}"] * cards), accel="tcg")
    try:
        runner.run(bench, options, wanted, lambda _: None)
    except GuestError:
        pass  # its verdict says why
    except ToolError as error:
        return Boot(cards, bar, "refused", error.message)
    judged = msgspec.json.decode((folder / "verdict.json").read_bytes(), type=runner.Outcome).verdict
    return Boot(cards, bar, judged.result, "" if judged.result == "pass" else judged.reason, judged.phases)


def seconds(boots: Sequence[Boot], phase: str) -> list[float]:
    """The seconds of a phase in the boots that passed."""
    seconds = [getattr(boot.phases, phase) for boot in boots if boot.result == "pass"]
    return [each for each in seconds if each is not None]


def others(boots: Sequence[Boot]) -> str:
    """What did not pass, such as `lost 2 of 5`; empty where all did."""
    if not boots:
        return "NOT RUN"
    counts = collections.Counter(boot.result for boot in boots if boot.result != "pass")
    return ", ".join(f"{result} {count} of {len(boots)}" for result, count in counts.items())


def whole(boots: Sequence[Boot]) -> str:
    """A cell: the median of the whole, the fastest and the slowest; and what did not pass."""
    times = seconds(boots, "wall")
    shown = f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})" if times else ""
    wrong = f"**{failed}**" if (failed := others(boots)) else ""
    return ", ".join(filter(None, (shown, wrong)))


def parts(boots: Sequence[Boot]) -> str:
    """A cell: the medians of firmware and kernel."""
    both = [seconds(boots, "firmware"), seconds(boots, "kernel")]
    return " + ".join(f"{statistics.median(times):.2f}" for times in both) if all(both) else ""


def table(found: Found, cell: Callable[[Sequence[Boot]], str]) -> str:
    """A row a BAR's size, a column a number of cards."""
    counts = sorted({cards for cards, _ in found})
    rows = [["BAR of each card", *map(named, counts)], ["---"] * (len(counts) + 1)]
    rows += [[bar, *(cell(found[cards, bar]) for cards in counts)] for bar in sizes(found)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def named(cards: int) -> str:
    return f"{cards} card{'s' * (cards != 1)}"


def sizes(found: Found) -> list[str]:
    return sorted({bar for _, bar in found}, key=size)


def size(bar: str) -> int:
    return settings.size(bar, "--bars")


def page(found: Found, record: Record, manifest: manifests.Manifest, command: str) -> str:
    """docs/boot-time.md."""
    runs = sorted({len(boots) for boots in found.values()})
    wanted = manifest.guest.launch
    wrong = [
        f"- {named(cards)} of {bar}, {boot.result}: {' '.join(boot.reason.split())}"
        for (cards, bar), boots in found.items()
        for boot in boots
        if boot.result != "pass"
    ]
    return f"""# Boot time

How long the boot test of a guest takes with 1 to {max(cards for cards, _ in found)} cards, each one BAR of this size. \
The cards are emulated (QEMU's `pci-testdev`), and so is the CPU: compare within this page. Made by `{command}`.

![The whole boot test in seconds against the BAR's size, one line for each number of cards](boot-time.svg)

| | |
| --- | --- |
| guest | linux {manifest.kernel.version}, OVMF {manifest.firmware.version}; {wanted.machine}, {wanted.cpus} CPUs, \
{wanted.memory} |
| QEMU | {record.qemu}, software emulation (tcg) |
| machine | {record.machine} |
| boots | {" to ".join(map(str, dict.fromkeys((runs[0], runs[-1]))))} of each combination, in rounds of random order |

## The whole boot test
Seconds from QEMU's start to its end: the median, and from the fastest to the slowest.

{table(found, whole)}

## Firmware and kernel
Median seconds: the firmware, to the kernel's first clock tick, + the kernel, to initd's start.

{table(found, parts)}

## What did not pass
{chr(10).join(dict.fromkeys(wrong)) or "Nothing: every boot passed."}
"""


def plot(found: Found) -> str:
    """docs/boot-time.svg: the table of the whole. A combination that did not always pass has a cross below."""
    left, right, top, bottom = 60, 770, 60, 370
    medians = {each: statistics.median(times) for each, boots in found.items() if (times := seconds(boots, "wall"))}
    low, high = (math.log2(size(sizes(found)[end])) for end in (0, -1))
    most = math.ceil(max(medians.values(), default=1))

    def x(bar: str) -> float:
        return left + (math.log2(size(bar)) - low) / ((high - low) or 1) * (right - left)

    def y(time: float) -> float:
        return bottom - time / most * (bottom - top)

    step = math.ceil(most / 8)
    drawn = [
        f'<path d="M{left} {y(n):.1f}H{right}" stroke="{GREY}" stroke-opacity=".35"/>'
        f'<text x="{left - 8}" y="{y(n) + 4:.1f}" text-anchor="end">{n}</text>'
        for n in range(0, most + 1, step)
    ]
    drawn += [f'<text x="{x(bar):.1f}" y="{bottom + 20}" text-anchor="middle">{bar}</text>' for bar in sizes(found)]
    for n, cards in enumerate(sorted({cards for cards, _ in found})):
        colour = COLOURS[n % len(COLOURS)]
        points = [(x(bar), y(medians[cards, bar])) for bar in sizes(found) if (cards, bar) in medians]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        drawn.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in points]
        drawn.append(f'<circle cx="{left + 110 * n + 6}" cy="40" r="5" fill="{colour}"/>')
        drawn.append(f'<text x="{left + 110 * n + 18}" y="45">{named(cards)}</text>')
        drawn += [
            f'<text x="{x(bar):.1f}" y="{bottom - 6 - 14 * n}" text-anchor="middle" fill="{colour}">&#215;</text>'
            for bar in sizes(found)
            if others(found[cards, bar])
        ]
    if any(map(others, found.values())):
        drawn.append(f'<text x="{right}" y="18" text-anchor="end">&#215; did not always pass</text>')
    body = "\n".join(drawn)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 430" font-family="sans-serif" font-size="13" \
fill="{GREY}">
<title>Boot time against BAR size</title>
<text x="{left}" y="18" font-size="15">Whole boot test, seconds: median by the size of each card's BAR</text>
{body}
<text x="{(left + right) / 2}" y="{bottom + 45}" text-anchor="middle">BAR of each card (log scale)</text>
</svg>
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cards", description=__doc__)
    parser.add_argument("--work", default="out/default-6.12", help="folder of the guest; its bundle must be built")
    parser.add_argument("--times", type=int, default=5, help="boots of each combination (default 5)")
    parser.add_argument("--cards", default=",".join(map(str, CARDS)), help="numbers of cards (default %(default)s)")
    parser.add_argument("--bars", default=",".join(BARS), help="sizes of BARs (default %(default)s)")
    options = parser.parse_args()
    work = ROOT / options.work
    manifest = manifests.load(work / "bundle")
    wanted = [(int(cards), bar) for cards in options.cards.split(",") for bar in options.bars.split(",")]
    place = work / "boot-time/boots.json"
    record = Record(manifest.files, emulator.version(), machine())
    if place.exists():
        kept = msgspec.json.decode(place.read_bytes(), type=Record)
        if msgspec.structs.replace(kept, boots=()) == record:
            record = kept
            print(f"going on with the {len(kept.boots)} boots of {place}; remove it to measure afresh")
        else:
            print(f"{place} is of another bundle, QEMU or machine: measuring afresh")
    todo = missing(grouped(record.boots, wanted), options.times)
    for number, (cards, bar) in enumerate(todo, 1):
        folder = place.parent / f"{cards}x{bar}-{len(record.boots)}"
        done = boot(work, folder, manifest.guest.launch, cards, bar)
        record = msgspec.structs.replace(record, boots=(*record.boots, done))
        files.write(place, msgspec.json.format(msgspec.json.encode(record)))
        wall = f" {done.phases.wall:.2f} s" if done.phases else ""
        print(f"{number} of {len(todo)}: {named(cards)} of {bar}: {done.result}{wall}", flush=True)
    found = grouped(record.boots, wanted)
    command = shlex.join(["python", "-m", "tests.bench.cards", *sys.argv[1:]])
    files.write(ROOT / "docs/boot-time.md", page(found, record, manifest, command))
    files.write(ROOT / "docs/boot-time.svg", plot(found))
    print(table(found, whole))


if __name__ == "__main__":
    main()
