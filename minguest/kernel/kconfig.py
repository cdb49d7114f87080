# SPDX-License-Identifier: Apache-2.0
"""Kernel options: fragments, their merge, the final .config, and what became of each request.

Values are kept as a .config spells them: `y`, `m`, `n`, `64`, `0x1000000`, `"quo\\"ted"`. An option that a .config
does not mention is `n`. The formats are those of the kernel's Documentation/kbuild/kconfig-language and of
scripts/kconfig/merge_config.sh. Kconfig alone (`make olddefconfig`) decides whether an option is possible, and
`unmet` reads its answer.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from minguest.util.errors import UserError

VALUE = r'[ymn]|-?\d+|0[xX][0-9a-fA-F]+|"(?:[^"\\\n]++|\\.)*+"'
SET = re.compile(rf"CONFIG_(\w+)=({VALUE})", re.ASCII)
BLANKS = r"[ \t\r\f\v]*+"
OPTION = re.compile(rf"^{BLANKS}(?:# CONFIG_(\w+) is not set|CONFIG_(\w+)=({VALUE})){BLANKS}$", re.ASCII | re.MULTILINE)
UNSET = re.compile(r"# CONFIG_(\w+) is not set", re.ASCII)
# A comment that was meant as an "is not set" line; merge_config.sh would silently ignore it.
NEARLY_UNSET = re.compile(r"#+\s*CONFIG_(\w+)\s+is\s+not\s+set\W*", re.ASCII | re.IGNORECASE)
FRAGMENT_NAME = re.compile(r"(?P<number>\d+)-(?P<name>[A-Za-z0-9_-]+)(?:\.(?P<series>\d+\.\d+))?\.config", re.ASCII)
DEFINES = re.compile(r"^[ \t]*(?:menu)?config[ \t]+(\w+)[ \t]*(?:#.*)?$", re.ASCII | re.MULTILINE)
SOURCES = re.compile(r"^[ \t]*source[ \t]+[\"']?([^\s\"'#]+)[\"']?[ \t]*(?:#.*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Option:
    """One request: an option, its value, and which file requests it and why."""

    name: str
    """Without CONFIG_."""
    value: str
    """As in a .config, `n` for "is not set"."""
    fragment: str
    """The file with the request: a fragment, or the guest for an override."""
    line: int
    """Counted from 1; 0 if the file is not a fragment."""
    reason: str

    @property
    def place(self) -> str:
        """`file:line`, for messages."""
        return f"{self.fragment}:{self.line}" if self.line else self.fragment


@dataclass(frozen=True)
class Fragment:
    """One *.config file."""

    name: str
    """The path that messages show."""
    concern: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Problem:
    """One thing that the user has to fix; `refuse` makes one error from all of them."""

    what: str
    """Begins with the place."""
    remedy: str


@dataclass(frozen=True)
class Unmet:
    """A request that the final config does not hold."""

    option: Option
    found: str


# Fragments


def parse_fragment(text: str, name: str) -> Fragment:
    """Read one fragment; `name` is the path that messages show. UserError with every problem in it.

    The comment directly above an option, or above several options without a blank line, is their reason. The first
    comment of the file, if a blank line follows, is the fragment's concern.
    """
    fragment, problems = _parse(text, name)
    refuse(problems)
    return fragment


def read(paths: Iterable[Path], root: Path) -> list[Fragment]:
    """Read fragments, named relative to `root`. UserError with the problems of all of them."""
    fragments = []
    problems = []
    for path in paths:
        name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(Problem(f"{name}: cannot be read: {error}", "fix the file, or remove it from the guest"))
            continue
        fragment, wrong = _parse(text, name)
        fragments.append(fragment)
        problems += wrong
    refuse(problems)
    return fragments


def merge(
    fragments: Iterable[Fragment], overrides: Mapping[str, str | int | bool] | None = None, guest: str = "guest"
) -> dict[str, Option]:
    """Put all requests into one mapping by name; `overrides` (of the file `guest`) win over the fragments.

    An override's text that reads as `y`, `m`, `n` or hex is such a value, any other is a string option's value.
    UserError names every option that two fragments request: no fragment wins over another one.
    """
    merged: dict[str, Option] = {}
    problems = []
    for option in (each for fragment in fragments for each in fragment.options):
        first = merged.setdefault(option.name, option)
        if first is option:
            continue
        if first.value == option.value:
            problems.append(
                Problem(
                    f"{option.place}: CONFIG_{option.name}={option.value} is a duplicate of {first.place}",
                    "remove one of the two, so that the option has one reason",
                )
            )
        else:
            problems.append(
                Problem(
                    f"{option.place}: CONFIG_{option.name}={option.value} is a conflict: "
                    f"{first.place} requests {first.value}, and no fragment wins over another",
                    f"remove one of the two; put a value for one guest under [options] in {guest}",
                )
            )
    for name, value in (overrides or {}).items():
        if not re.fullmatch(r"(?!CONFIG_)\w+", name, re.ASCII):
            problems.append(
                Problem(f"{guest}: options.{name}: not the name of an option", "write it without CONFIG_, as in EFI")
            )
        elif isinstance(value, str) and re.search(r"[\n\r\0]", value):
            problems.append(
                Problem(
                    f"{guest}: options.{name}: a .config cannot hold a value with a line break", "write it on one line"
                )
            )
        else:
            before = merged.get(name)
            merged[name] = Option(name, spell(value), guest, 0, f"overrides {before.place}" if before else "override")
    refuse(problems)
    return merged


def select(folder: Path, globs: Iterable[str], series: str, root: Path) -> list[Path]:
    """The fragments of `folder` that a guest uses for a series, in the order of their numbers.

    A glob matches a fragment's name with or without its number (`20-efi`, `efi`, `*`); one with a slash is the path
    of a fragment from `root`, and comes after those of the folder, with NAME.SERIES.config if that is beside it.
    UserError names every glob without a match.
    """
    problems = []
    named: list[tuple[int, str, str | None, Path]] = []
    for path in sorted(folder.glob("*.config")):
        if match := FRAGMENT_NAME.fullmatch(path.name):
            named.append((int(match["number"]), match["name"], match["series"], path))
        else:
            problems.append(
                Problem(
                    f"{path}: not a fragment's name",
                    f"name it NN-name.config (every series) or NN-name.SERIES.config (60-hotplug.{series}.config)",
                )
            )
    taken: set[Path] = set()
    given: list[Path] = []
    for glob in globs:
        if "/" in glob:
            path = root / glob
            match = FRAGMENT_NAME.fullmatch(path.name)
            if not path.is_file():
                beside = sorted(path.parent.glob("*.config"))
                problems.append(_no_match(glob, [str(Path(glob).parent / each.name) for each in beside]))
            elif path not in given and (match is None or match["series"] in (None, series)):
                given.append(path)
                of_series = path.with_name(f"{path.stem}.{series}.config")
                given += [of_series] * (of_series.is_file() and of_series not in given)
            continue
        matching = [
            (owner, path)
            for _, name, owner, path in named
            if fnmatchcase(name, glob) or fnmatchcase(_numbered(path), glob)
        ]
        if not matching:
            problems.append(_no_match(glob, [each for _, name, _, path in named for each in (name, _numbered(path))]))
        taken.update(path for owner, path in matching if owner in (None, series))
    refuse(problems)
    ordered = [path for _, _, _, path in sorted(named, key=lambda each: (each[0], each[1], each[2] or ""))]
    return [path for path in ordered if path in taken] + [path for path in given if path not in taken]


def render(options: Mapping[str, Option]) -> str:
    """All requests as one fragment for merge_config.sh, each below its origin."""
    return "".join(f"# {option.place}\n{_assignment(option)}\n\n" for option in options.values())


# The final config


def parse_config(text: str) -> dict[str, str]:
    """A .config as values by name; an option that it does not mention is `n`. Blanks around a line do not matter."""
    # In one pass: a hostile file may have millions of lines. A line ends in \n only: a string may hold
    # Unicode's other line breaks.
    return {(name or unset): value or "n" for unset, name, value in OPTION.findall(text)}


@dataclass(frozen=True)
class CommandLine:
    """The command line that is built into a kernel."""

    text: str
    """Empty for none."""
    overrides: bool
    """Whether the kernel ignores the one of its loader."""


def command_line(config: Mapping[str, str]) -> CommandLine:
    """CONFIG_CMDLINE of x86's arch/x86/Kconfig."""
    if config.get("CMDLINE_BOOL") != "y":
        return CommandLine("", False)
    text = " ".join(string(config.get("CMDLINE", '""')).split())
    return CommandLine(text, config.get("CMDLINE_OVERRIDE") == "y")


def string(value: str) -> str:
    """The text of a string option, without its quotes."""
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value


def unmet(requested: Mapping[str, Option], config: Mapping[str, str]) -> list[Unmet]:
    """Every request that the final config does not hold, on or off, with the value that it holds instead."""
    answers = [(option, config.get(option.name, "n")) for option in requested.values()]
    return [Unmet(option, found) for option, found in answers if not _same(option.value, found)]


def describe(dropped: Iterable[Unmet], why: Mapping[str, str] | None = None) -> str:
    """The message for the user: each unmet request, its file and its reason; `why` has explanations by name."""
    blocks = []
    for each in dropped:
        option = each.option
        reason = " ".join(option.reason.split())
        text = f"CONFIG_{option.name}: requested {option.value}, got {each.found} ({option.place}: {reason})"
        blocks.append("\n  ".join([text, *(why or {}).get(option.name, "").splitlines()]))
    return "\n".join(blocks)


# What a tree knows


def known_symbols(tree: Path) -> frozenset[str]:
    """Every option that the Kconfig files of an x86 build define; UserError if `tree` is not a kernel tree.

    Follows `source` from the top file, so that an option of another architecture cannot hide a typing error.
    """
    if not (tree / "Kconfig").is_file():
        raise UserError(
            f"{tree}: not a kernel tree: it has no Kconfig", "name the folder with the kernel's top Makefile"
        )
    found: set[str] = set()
    waiting = ["Kconfig"]
    seen = set(waiting)
    while waiting:
        try:
            text = (tree / waiting.pop()).read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            continue  # a help text with a line like "source code"
        found.update(DEFINES.findall(text))
        for path in SOURCES.findall(text):
            # `$SRCARCH` up to 4.17, `$(SRCARCH)` since.
            target = re.sub(r"\$(?:\(SRCARCH\)|SRCARCH)", "x86", path)
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    return frozenset(found)


def unknown(
    requested: Mapping[str, Option],
    series: str,
    symbols: frozenset[str],
    others: Mapping[str, frozenset[str]] | None = None,
) -> list[Problem]:
    """Requests for options that `series` does not have: typing errors, and options that only `others` have."""
    problems = []
    for option in requested.values():
        if option.name in symbols:
            continue
        elsewhere = [other for other, theirs in (others or {}).items() if option.name in theirs]
        if elsewhere:
            remedy = f"only linux {' and '.join(elsewhere)} has it: " + " or ".join(
                _move(option, other) for other in elsewhere
            )
        else:
            near = difflib.get_close_matches(option.name, symbols, 1)
            remedy = f"nearest: CONFIG_{near[0]}" if near else "remove it: no option has a similar name"
        problems.append(Problem(f"{option.place}: linux {series} has no CONFIG_{option.name}", remedy))
    return problems


def refuse(problems: Iterable[Problem]) -> None:
    """Raise one UserError for all problems, if there are any."""
    found = list(problems)
    if len(found) == 1:
        raise UserError(found[0].what, found[0].remedy)
    if found:
        each = [f"{problem.what}\n    remedy: {problem.remedy}" for problem in found]
        raise UserError("\n  ".join([f"{len(found)} things to fix in the kernel's options:", *each]))


# Details


def _parse(text: str, name: str) -> tuple[Fragment, list[Problem]]:
    """One fragment and its problems; doubtful options are left out."""
    options: dict[str, Option] = {}
    problems: list[Problem] = []
    concern: str | None = None
    comment: list[str] = []
    above_is_option = False
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.rstrip()
        unset = UNSET.fullmatch(line)
        match = unset or SET.fullmatch(line)
        if match:
            option = Option(match[1], "n" if unset else match[2], name, number, "\n".join(comment))
            problems += _doubts(option, options.get(option.name))
            options.setdefault(option.name, option)
            concern = concern or ""
        elif line.startswith("#") and not NEARLY_UNSET.fullmatch(line):
            if above_is_option:
                comment = []
            if "SPDX-License-Identifier:" not in line:
                comment.append(line.lstrip("#").strip())
        elif line:
            problems.append(_neither(f"{name}:{number}", line))
        else:
            if concern is None and comment:
                concern = "\n".join(comment)
            comment = []
        above_is_option = match is not None
    return Fragment(name, concern or "", tuple(options.values())), problems


def _doubts(option: Option, first: Option | None) -> list[Problem]:
    """The problems of a well-formed line; `first` is the same option further up in the same file."""
    problems = []
    shown = f"{option.place}: CONFIG_{option.name}={option.value}"
    if first:
        problems.append(Problem(f"{shown}: set twice, first in line {first.line} to {first.value}", "remove one"))
    if not option.reason.strip():
        problems.append(
            Problem(
                f"{shown} has no reason",
                "write a comment directly above it: why it is there and what breaks without it",
            )
        )
    return problems


def _neither(place: str, line: str) -> Problem:
    """The problem of a line that a fragment must not have, with the likely cause."""
    near = NEARLY_UNSET.fullmatch(line)
    assigned = re.match(r"\s*(?:CONFIG_)?(\w+)\s*=\s*(.*)", line, re.ASCII)
    if near:
        return Problem(f"{place}: {line!r} is a comment for Kconfig", f"write exactly: # CONFIG_{near[1]} is not set")
    if assigned:
        value = assigned[2].strip()
        if re.fullmatch(VALUE, value):
            return Problem(f"{place}: {line!r} does not set an option", f"write exactly: CONFIG_{assigned[1]}={value}")
        return Problem(
            f"{place}: {line!r}: {value!r} is not a value of an option",
            'write y, m, n, a number, 0xhex or a "string" in double quotes, and nothing after it',
        )
    return Problem(
        f"{place}: {line!r} is neither an option nor a comment",
        "write CONFIG_X=value, # CONFIG_X is not set, a # comment or a blank line",
    )


def _no_match(glob: str, names: list[str]) -> Problem:
    near = list(dict.fromkeys(difflib.get_close_matches(glob, names, 3, 0.5)))
    known = near or sorted(dict.fromkeys(names))
    return Problem(
        f"fragments: {glob!r} matches no fragment",
        f"{'nearest' if near else 'there are'}: {', '.join(known) or 'none at all'}",
    )


def _numbered(path: Path) -> str:
    """`20-efi` of `…/20-efi.4.12.config`."""
    return path.name.partition(".")[0]


def _move(option: Option, series: str) -> str:
    """The remedy that gives an option to one series."""
    match = FRAGMENT_NAME.fullmatch(Path(option.fragment).name)
    if match is None:
        return f"remove it from {option.fragment} for other series"
    target = Path(option.fragment).with_name(f"{match['number']}-{match['name']}.{series}.config")
    return f"move it to {target}"


def spell(value: str | int | bool) -> str:
    """A guest's value as a .config spells it."""
    if isinstance(value, bool):
        return "y" if value else "n"
    if isinstance(value, int):
        return str(value)
    if re.fullmatch(r"[ymn]|0[xX][0-9a-fA-F]+", value):
        return value
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _assignment(option: Option) -> str:
    return f"# CONFIG_{option.name} is not set" if option.value == "n" else f"CONFIG_{option.name}={option.value}"


def _same(wanted: str, found: str) -> bool:
    """Whether two values are equal to Kconfig: 0x0100 is 0x100, 064 is 64, but 16 is not 0x10 and "16" is not 16."""
    hexes = all(re.fullmatch(r"0[xX][0-9a-fA-F]+", value) for value in (wanted, found))
    numbers = all(re.fullmatch(r"-?\d+", value, re.ASCII) for value in (wanted, found))
    if hexes or numbers:
        return int(wanted, 16 if hexes else 10) == int(found, 16 if hexes else 10)
    return wanted == found
