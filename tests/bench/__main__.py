# SPDX-License-Identifier: Apache-2.0
"""The command line: `python -m tests.bench PART`, or `doit bench PART`."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from minguest import settings
from minguest.util import files
from minguest.util.errors import MinguestError, UserError
from tests import ROOT
from tests.bench import boot, build, check, firmware, growth, guests, page, record, size, timeline, tools

BUNDLE = "out/default-6.12/bundle"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _finish(part: record.Part, tables: dict[str, record.Rows], folder: Path) -> int:
    """Show and keep what was measured; the status is not 0 if it is no measurement."""
    for heading, rows in tables.items():
        if rows:
            print(f"{heading}\n{record.screen(rows)}\n")
    print(record.save(part, folder))
    for fault in part.faults:
        print(f"NOT MEASURED: {fault}")
    return 1 if part.faults else 0


def _asked(options: argparse.Namespace) -> tuple[guests.Guest, ...]:
    ovmf = options.firmware or (guests.debians_ovmf(_say) if options.peer else Path())
    return boot.subjects(options.bundle or [BUNDLE], options.peer, ovmf, options.base)


def _variants(options: argparse.Namespace, asked: Sequence[guests.Guest]) -> Iterator[guests.Guest]:
    """What each of ours is also started as, after it."""
    for guest in asked:
        yield guest
        if options.phases and not guest.peer:
            yield firmware.measured(guest, _say)
        if options.quiet and not guest.peer:
            yield guests.quiet(guest)


def _boot(options: argparse.Namespace, part: record.Part) -> int:
    asked = tuple(_variants(options, _asked(options)))
    wanted = boot.Wanted(asked, options.base, options.times, options.deadline, options.spread, not options.uncounted)
    done = boot.run(part, wanted, _say)
    # First: what reads boot.json takes the drawing beside it for the same boots.
    options.out.mkdir(parents=True, exist_ok=True)
    files.write(options.out / "boot.svg", timeline.svg(done))
    return _finish(done, boot.tables(done), options.out)


def _build(options: argparse.Namespace, part: record.Part) -> int:
    bundle = (options.bundle or [BUNDLE])[0]
    how = (options.times, options.change, options.cold, options.rehearsal)
    done = build.run(part, bundle, options.peer, options.base, *how, options.out, _say)
    return _finish(done, build.tables(done), options.out)


def _size(options: argparse.Namespace, part: record.Part) -> int:
    done = size.run(part, options.bundle or [BUNDLE], options.peer, options.base)
    return _finish(done, size.tables(done), options.out)


def _growth(options: argparse.Namespace, part: record.Part) -> int:
    asked = _asked(options)
    wanted = boot.Wanted(asked, options.base, options.times, options.deadline, options.spread, not options.uncounted)
    counts = [settings.integer(each, "--cpus") for each in options.cpus.split(",") if each]
    done = growth.run(part, wanted, counts, options.memory, _say)
    return _finish(done, growth.tables(done), options.out)


def _tools(options: argparse.Namespace, part: record.Part) -> int:
    done = tools.run(part, ROOT / options.work, options.image)
    return _finish(done, tools.tables(done), options.out)


def _checked(folder: Path) -> tuple[dict[str, record.Part | None], list[check.Found]]:
    parts = {name: record.load(name, folder) for name in page.PARTS}
    return parts, check.held(check.load(), parts)


def _check(options: argparse.Namespace, _: record.Part) -> int:
    parts, found = _checked(options.out)
    print(record.screen(check.table(found)))
    for name, part in parts.items():
        if part is not None:
            print(f"{name}: {part.date}, {part.machine}: {part.command}")
    return check.status(found)


def _page(options: argparse.Namespace, _: record.Part) -> int:
    parts, found = _checked(options.out)
    booted = parts["boot"]
    drawn = timeline.svg(booted) if booted is not None else ""
    options.to.mkdir(parents=True, exist_ok=True)
    if not any(parts.values()):
        raise UserError(f"{options.out}: has no figures", "doit bench boot, build, size and growth write them")
    if drawn:
        files.write(options.to / "performance.svg", drawn)
    files.write(options.to / "performance.md", page.page(parts, found, bool(drawn)))
    print(options.to / "performance.md")
    return 0


def _subjects(parser: argparse.ArgumentParser, peer: str) -> None:
    parser.add_argument(
        "--bundle", action="append", default=[], metavar="[NAME=]FOLDER",
        help=f"one of ours; may be given again (default {BUNDLE})",
    )  # fmt: skip
    parser.add_argument("--peer", action="append", default=[], metavar=peer, help="one of others; may be given again")
    parser.add_argument("--base", default="", metavar="NAME", help="the subject that ratios are against")


def _boots(parser: argparse.ArgumentParser, times: int) -> None:
    _subjects(parser, "NAME=BZIMAGE")
    parser.add_argument(
        "--firmware", type=Path, metavar="FOLDER",
        help="OVMF_CODE.fd and OVMF_VARS.fd for the peers (default: Debian's OVMF of sources.toml)",
    )  # fmt: skip
    parser.add_argument("--times", type=_times, default=times, help="boots of each subject (default %(default)s)")
    parser.add_argument("--deadline", type=float, default=boot.DEADLINE, help="seconds of a boot (default %(default)g)")
    parser.add_argument(
        "--spread", type=float, default=boot.SPREAD,
        help="how far boots may lie apart before the machine is too loaded (default %(default)g)",
    )  # fmt: skip
    parser.add_argument("--uncounted", action="store_true", help="no boots that count instructions")


def _times(text: str) -> int:
    if (times := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return times


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")

    def add(name: str, what: str, does: Callable[[argparse.Namespace, record.Part], int]) -> argparse.ArgumentParser:
        part = parts.add_parser(name, help=what, description=what)
        part.set_defaults(does=does)
        part.add_argument("--out", type=Path, default=record.OUT, metavar="FOLDER", help="where PART.json is")
        return part

    part = add("boot", "from QEMU's start to the whole report, phase by phase", _boot)
    _boots(part, 9)
    part.add_argument(
        "--phases", action="store_true",
        help="each of ours also with its firmware measured: SEC and PEI, DXE, BDS; it is built first (a minute)",
    )  # fmt: skip
    part.add_argument("--quiet", action="store_true", help="each of ours also with a quiet console")
    part = add("build", "a kernel from nothing, and what is built again after a change", _build)
    _subjects(part, "NAME=CONFIG")
    part.add_argument("--times", type=_times, default=5, help="runs of what compiles nothing (default %(default)s)")
    part.add_argument("--cold", action="store_true", help="also compile: ours, each peer's config, and after a change")
    part.add_argument("--change", default="LOG_BUF_SHIFT = 16", help="the option that changes (default %(default)s)")
    part.add_argument("--rehearsal", action="store_true", help="also the rehearsal; builds its host first")
    part = add("size", "how large what ships is", _size)
    _subjects(part, "NAME=BZIMAGE[,INITRD]")
    part = add("growth", "more CPUs, and the smallest memory", _growth)
    _boots(part, 3)
    part.add_argument("--cpus", default=",".join(map(str, growth.CPUS)), help="numbers of CPUs (default %(default)s)")
    part.add_argument("--memory", action="store_true", help="also look for the smallest memory that passes")
    part = add("tools", "minguest's own commands", _tools)
    part.add_argument("--work", default="out/default-6.12", help="folder of the guest (default %(default)s)")
    part.add_argument("--image", type=Path, help="a kernel for doctor to look at, else the built one")
    add("check", "what was measured, against configs/budget.toml", _check)
    part = add("page", "docs/performance.md and its timeline, of what was measured", _page)
    part.add_argument("--to", type=Path, default=ROOT / "docs", metavar="FOLDER", help="where the page goes")
    return parser


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    try:
        return int(options.does(options, record.begin(options.part, arguments)))
    except MinguestError as error:
        print(error, file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
