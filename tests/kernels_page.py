# SPDX-License-Identifier: Apache-2.0
"""docs/kernels.md: what `minguest doctor` says of published guest kernels.

`python -m tests.kernels_page FOLDER` reads FOLDER/index.toml and the configs that it names, which are not of this
project and stay where they are: only facts and names of options go to the page. Each claim is read again by a second
parser, which shares nothing with the first one; where the two differ, no page is written.
"""

import argparse
import datetime
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from minguest import paths, settings
from minguest.diagnose import catalogue, doctor
from minguest.kernel import image
from minguest.util import files
from minguest.util.errors import UserError
from tests import ROOT

PAGE = ROOT / "docs/kernels.md"
DRIVER: doctor.Driver = "nvidia"
HEAD = """\
# Published guest kernels: what doctor says of them

Made on {date} by `python -m tests.kernels_page FOLDER` from the configs of the projects themselves, as of the commit or
date in the last column. *Under OVMF* and *NVIDIA's driver* name the pits, or the options, that keep a guest or its card
from working; - is none. A kernel that its project starts without UEFI (Firecracker, libkrun, Cloud Hypervisor, Kata's
plain kernel) is not wrong: it was not made for this. *less*: what only makes less of the card. A second reading of each
config agrees with every claim below.

"""


class Kernel(msgspec.Struct, frozen=True):
    """A published config."""

    file: str
    project: str
    variant: str
    version: str
    source: str
    path: str
    commit: str
    date: str
    upstream_version: str = ""
    whole: bool = True
    merged: str = ""
    start: str = ""


class Index(msgspec.Struct, frozen=True):
    """index.toml."""

    kernel: tuple[Kernel, ...]


def second_reading(text: str, option: str) -> str:
    """The value of an option by the last line that sets it; n where none does, or a comment says that it is not set."""
    last = "n"
    for line in text.splitlines():
        if line.strip() == f"# CONFIG_{option} is not set":
            last = "n"
        elif found := re.match(rf"\s*CONFIG_{option}=(.*?)\s*$", line):
            last = found[1].strip('"')
    return last


def check(report: doctor.Report, text: str) -> None:
    """Raise UserError for a claim that a second reading of the config does not bear out."""
    for each in report.findings:
        claimed = re.fullmatch(r"CONFIG_(\w+) is (\S+), wanted (?:at least )?(.+)", each.why)
        if claimed is None:
            if each.option:
                raise UserError(f"{report.image.path}: {each.why!r}: not a claim about an option that can be checked")
            continue
        option, value, wanted = claimed.groups()
        read = second_reading(text, option)
        enough = read.isdecimal() and wanted.isdecimal() and int(read) >= int(wanted)
        if read != value or read in wanted.split(" or ") or enough:
            raise UserError(f"{report.image.path}: doctor says {each.why!r}; a second reading finds {read!r}")
    for kind, options in (("file system", doctor.SYSTEMS), ("initrd", doctor.PACKINGS)):
        wanted_set = {name for name, option in options.items() if second_reading(text, option) == "y"}
        if kind == "initrd" and second_reading(text, "BLK_DEV_INITRD") != "y":
            wanted_set = set()
        if set(report.boots_from[kind]) != wanted_set:
            raise UserError(f"{report.image.path}: built in, {kind}: {report.boots_from[kind]}, not {wanted_set}")


def examined(folder: Path, kernel: Kernel) -> doctor.Report:
    """What doctor says of one config, checked."""
    place = folder / kernel.file
    looked = image.read(place)
    report = doctor.examine(
        looked, None, catalogue.load(paths.known_pits()), doctor.PLAIN, None, doctor.load(paths.known_drivers()), DRIVER
    )
    check(report, place.read_text(encoding="utf-8", errors="replace"))
    return report


def row(kernel: Kernel, report: doctor.Report) -> str:
    """A line of the table."""

    def roots(group: str) -> str:
        own = [each for each in report.findings if each.group == group and each.blocks and not each.follows]
        return ", ".join(dict.fromkeys(_shown(each) for each in own)) or "-"

    less = [
        f"`{each.option}`" for each in report.findings if each.group == "gpu" and not each.blocks and not each.follows
    ]
    disks = ", ".join(report.boots_from["root disk"]) or "-"
    version = kernel.upstream_version.split(" ")[0] or kernel.version
    merged = f", merged on {kernel.version}" if kernel.merged else ""
    when = kernel.date if re.fullmatch(r"\d{4}-\d\d-\d\d", kernel.date) else "date not known"
    commit = f"{kernel.commit[:7]}, " if re.fullmatch(r"[0-9a-f]{7,40}", kernel.commit) else ""
    cells = [
        f"{kernel.project}: {kernel.variant}", f"{version}{merged}", roots("guest"), roots("gpu"),
        ", ".join(less) or "-", disks, f"[{commit}{when}]({kernel.source})",
    ]  # fmt: skip
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _shown(each: doctor.Finding) -> str:
    return f"[{each.pit}](pits.md#{each.pit})" if each.pit else f"`{each.option}`"


def repair(report: doctor.Report) -> str:
    """The options that a kernel lacks, without their reasons; empty where nothing is missing."""
    lines = [line for line in doctor.fragment([report]).splitlines() if "CONFIG_" in line]
    return "\n".join(line for line in lines if re.match(r"CONFIG_|# CONFIG_\w+ is not set$", line))


def page(found: Sequence[tuple[Kernel, doctor.Report]], date: datetime.date) -> str:
    """docs/kernels.md."""
    text = [
        HEAD.format(date=date.isoformat())
        + "| kernel | Linux | under OVMF | NVIDIA's driver | less | root disk built in | config |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(row(kernel, report) for kernel, report in found),
        "",
        "## What fixes each",
        "As `minguest doctor CONFIG --driver nvidia --fragment` prints it, with a reason for each option. An option"
        " may need others: `make olddefconfig`, and doctor again.",
    ]
    for kernel, report in found:
        if report.wrong:
            text += ["", f"**{kernel.project}: {kernel.variant}**", "", "```", repair(report), "```"]
    return "\n".join(text) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args(argv).folder
    found = []
    for kernel in settings.decode(folder / "index.toml", Index).kernel:
        # A fragment is not a kernel's config, and another architecture's is not examined.
        if kernel.file.startswith("fragments/"):
            continue
        try:
            found.append((kernel, examined(folder, kernel)))
        except UserError as error:
            print(f"{kernel.file}: {error}", file=sys.stderr)
            return 1
    files.write(PAGE, page(found, datetime.datetime.now(tz=datetime.UTC).date()))
    print(f"{len(found)} kernels of {len({kernel.project for kernel, _ in found})} projects: {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
