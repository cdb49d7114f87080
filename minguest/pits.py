# SPDX-License-Identifier: Apache-2.0
"""Pits: known ways for a guest to fail, one file each in configs/pits/, and which of them a console tells of. Pure.

A pit is recognized by symptoms: patterns on the console, words of the kernel's command line, facts of initd's report.
Patterns are RE2's (https://github.com/google/re2/wiki/Syntax), which takes no longer than the text is long, whatever
the pattern.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import re2

from minguest import console, settings
from minguest.errors import UserError
from minguest.report import Report, parse

Layer = Literal["config", "cmdline", "firmware", "launch", "host", "initrd", "effect"]
# printk's time, which may be switched off, and what a log collector puts before it.
TIME = re.compile(r"^.{0,80}?\[\s*\d+\.\d{6}\]\s?|^<\d+>")
CMDLINE = re.compile(r"(?:Kernel command line|Command line): (.*)$")
# The kernel has come to its end of the boot: what it did not print by now it does not print.
BOOTED = re.compile(r"Run \S+ as init process|Freeing unused kernel|initd: |Kernel panic - not syncing")
# Lines that are quoted of one pit.
QUOTED = 4
# Bytes of a log: a guest that says more repeats itself.
LOG_MAX = 64 << 20
LAYERS: Mapping[Layer, str] = {
    "config": "The kernel's config",
    "cmdline": "The kernel's command line",
    "firmware": "The firmware",
    "launch": "The launch",
    "initrd": "The initrd",
    "host": "The host",
}
PAGE = """\
# Pits: when a guest fails

Made of `configs/pits/` by `doit pits-page`. `doit diagnose log=FILE` finds yours in a console's log.

**My guest has one CPU under OVMF.** Look for `A valid RSDP was not found` on the console. It is there: the kernel was
built without `CONFIG_EFI` ([efi-off](#efi-off)), so it never found the ACPI tables; set `CONFIG_EFI=y`. It is not
there: look at the command line for `acpi=off`, `nosmp`, `nr_cpus=`, `maxcpus=`, `nolapic`, and take it away.

"""


class Symptom(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way to see a pit: all that it names must be so."""

    console: tuple[str, ...] = ()
    """Patterns; each is found in some line, without printk's time."""
    missing: tuple[str, ...] = ()
    """Patterns that are found in no line of a console that came as far as BOOTED."""
    cmdline: tuple[str, ...] = ()
    """Patterns; each is a whole word of the kernel's command line."""
    report: Mapping[str, str | None] = {}
    """`record.field` of initd's report, and what it is as text; null is null."""


class Pit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """configs/pits/ID.toml."""

    title: str
    layer: Layer
    """Where the mistake is; `effect`: not a mistake, what comes of one."""
    symptom: tuple[Symptom, ...]
    """Any of them is enough."""
    cause: str = ""
    mend: str = ""
    """The exact change."""
    leads_to: tuple[str, ...] = ()
    """Pits and effects that are seen because of this one."""
    links: tuple[str, ...] = ()


class Seen(msgspec.Struct, frozen=True):
    """What is known of one boot."""

    lines: tuple[console.Line, ...]
    words: tuple[str, ...]
    """Of the kernel's command line."""
    booted: bool
    report: Report | None = None


class Found(msgspec.Struct, frozen=True):
    """A pit that was recognized, and the lines that tell it."""

    id: str
    pit: Pit
    lines: tuple[console.Line, ...]
    follows: tuple[str, ...] = ()
    """Ids of recognized pits that it comes of."""


class Diagnosis(msgspec.Struct, frozen=True):
    """Roots first, in the order of the console; then what follows from them."""

    roots: tuple[Found, ...]
    follows: tuple[Found, ...]
    ruled_out: tuple[str, ...]
    """Ids of pits that have a symptom's line in common with a root, and are not it."""


def load(folder: Path) -> dict[str, Pit]:
    """Read every pit by its id, the name of its file. UserError names file and field."""
    pits = {path.stem: settings.decode(path, Pit) for path in sorted(folder.glob("*.toml"))}
    for name, pit in pits.items():
        where = folder / f"{name}.toml"
        if not pit.symptom:
            raise UserError(f"{where}: no [[symptom]]: nothing would ever tell of it")
        if pit.layer != "effect" and not (pit.cause and pit.mend):
            raise UserError(f"{where}: cause or mend is missing", 'only a pit with layer = "effect" has none')
        for other in pit.leads_to:
            if other not in pits:
                raise UserError(f"{where}: leads_to = {other!r}: no such pit", f"known: {', '.join(pits)}")
        for symptom in pit.symptom:
            if symptom == Symptom():
                raise UserError(f"{where}: an empty [[symptom]] would always be there")
            for pattern in (*symptom.console, *symptom.missing, *symptom.cmdline):
                try:
                    re2.compile(pattern)
                except re2.error as error:
                    why = error.args[0].decode() if isinstance(error.args[0], bytes) else error
                    raise UserError(f"{where}: pattern {pattern!r}: {why}", "patterns are RE2's") from error
    return pits


def see(raw: bytes, report: Report | None = None) -> Seen:
    """What a console tells, with or without printk's times, escapes and carriage returns."""
    lines = tuple(
        console.Line(line.number, TIME.sub("", line.text)) for line in console.lines(raw) if line.text.strip()
    )
    told = report.record("begin").get("cmdline") if report else None
    spoken = next((found[1] for line in lines if (found := CMDLINE.search(line.text))), "")
    return Seen(lines, tuple((told or spoken).split()), any(BOOTED.search(line.text) for line in lines), report)


def diagnose(pits: Mapping[str, Pit], seen: Seen) -> Diagnosis:
    """Which pits this boot fell into. None is guessed: where nothing is known, the diagnosis is empty."""
    screen = "\n".join(line.text for line in seen.lines)
    hits = {}
    for name, pit in pits.items():
        matched = [lines for symptom in pit.symptom if (lines := _matches(symptom, seen, screen)) is not None]
        if matched:
            best = max(matched, key=len)
            hits[name] = Found(name, pit, tuple(sorted(best, key=lambda line: line.number)[:QUOTED]))
    below = {name: _below(pits, name) for name in hits}
    found = [
        msgspec.structs.replace(hit, follows=tuple(other for other in hits if other != name and name in below[other]))
        for name, hit in hits.items()
    ]
    found.sort(key=lambda hit: (hit.lines[0].number if hit.lines else 0, hit.id))
    roots = tuple(hit for hit in found if not hit.follows)
    shared = {effect for hit in roots for effect in pits[hit.id].leads_to}
    others = tuple(
        name for name, pit in pits.items() if name not in hits and pit.layer != "effect" and shared & set(pit.leads_to)
    )
    return Diagnosis(roots, tuple(hit for hit in found if hit.follows), others)


def describe(diagnosis: Diagnosis, pits: Mapping[str, Pit]) -> str:
    """A diagnosis for a person: the root, its cause and mend, the lines that tell, what follows, what it is not."""
    if not diagnosis.roots:
        return "no known pit"
    text = []
    for hit in diagnosis.roots:
        text.append(f"{hit.id}: {hit.pit.title}")
        text += [f"  {line.number:5} | {line.text}" for line in hit.lines]
        if hit.pit.cause:
            text += [f"  cause: {hit.pit.cause}", f"  mend:  {hit.pit.mend}"]
    for hit in diagnosis.follows:
        text.append(f"follows from {', '.join(hit.follows)}: {hit.pit.title}")
        text += [f"  {line.number:5} | {line.text}" for line in hit.lines]
    if diagnosis.ruled_out:
        text.append("not it, though some of it looks alike: " + ", ".join(diagnosis.ruled_out))
    return "\n".join(text)


def _below(pits: Mapping[str, Pit], name: str) -> set[str]:
    """All that a pit leads to, however far."""
    found: set[str] = set()
    pending = list(pits[name].leads_to)
    while pending:
        each = pending.pop()
        if each not in found:
            found.add(each)
            pending += pits[each].leads_to
    return found


def _matches(symptom: Symptom, seen: Seen, screen: str) -> list[console.Line] | None:
    """The lines that tell a symptom, or None where it is not there."""
    for pattern in symptom.cmdline:
        if not any(re2.fullmatch(pattern, word) for word in seen.words):
            return None
    for path, wanted in symptom.report.items():
        if seen.report is None or not seen.report.complete or _field(seen.report, path) != wanted:
            return None
    if symptom.missing and (not seen.booted or any(re2.search(pattern, screen) for pattern in symptom.missing)):
        return None
    lines = []
    for pattern in symptom.console:
        # Once over the whole, which is fast; over the lines only where it is there.
        if not re2.search(pattern, screen):
            return None
        line = next((line for line in seen.lines if re2.search(pattern, line.text)), None)
        if line is None:
            return None
        lines.append(line)
    return lines


def _field(report: Report, path: str) -> str | None:
    record, _, field = path.partition(".")
    value: Any = report.record(record).get(field)
    return None if value is None else str(value)


def read_log(path: Path) -> bytes:
    """A console's log from anywhere; UserError for what cannot be one."""
    try:
        if not path.is_file():
            raise UserError(f"log={path}: no such file, or not a plain one", "log=FILE names a guest's console log")
        size = path.stat().st_size
        if size > LOG_MAX:
            raise UserError(
                f"log={path}: {size / 1e6:.0f} MB, and {LOG_MAX >> 20} MiB is the most",
                "give its first part: head -c 64M",
            )
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"log={path}: {error.strerror}") from error
    if not raw.strip():
        raise UserError(f"log={path}: empty", "was the console written to it? -serial file:LOG, or console=ttyS0")
    if raw.count(0) * 10 > len(raw):
        raise UserError(f"log={path}: not a console's text: {raw.count(0)} of {len(raw)} bytes are zero")
    return raw


def read_report(path: Path) -> Report:
    """initd's report as a file: its lines, or the report.json of a boot test."""
    try:
        raw = path.read_bytes()
        return msgspec.json.decode(raw, type=Report) if b'"complete"' in raw[:200] else parse(raw)
    except (OSError, msgspec.DecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"report={path}: {why}", "report=FILE names initd's report, or a boot test's report.json"
        ) from error


def page(pits: Mapping[str, Pit]) -> str:
    """docs/pits.md: for someone whose guest has just failed, symptoms first."""
    text = [PAGE]
    text += ["| what you see | what it may be |", "| --- | --- |"]
    for effect, pit in pits.items():
        if pit.layer == "effect":
            roots = [name for name, other in pits.items() if other.layer != "effect" and effect in _below(pits, name)]
            text.append(f"| {pit.title} | {', '.join(f'[{name}](#{name})' for name in roots)} |")
    for layer, title in LAYERS.items():
        of_layer = {name: pit for name, pit in pits.items() if pit.layer == layer}
        if not of_layer:
            continue
        text += ["", f"## {title}"]
        for name, pit in of_layer.items():
            text += ["", f"### {name}", f"**{pit.title[0].upper()}{pit.title[1:]}.** {pit.cause}", ""]
            text += [f"Mend: {pit.mend}.", ""]
            text += [f"- {_told(symptom)}" for symptom in pit.symptom]
            if pit.leads_to:
                text.append(f"- seen because of it: {'; '.join(pits[other].title for other in pit.leads_to)}")
            text += [f"- <{link}>" for link in pit.links]
    return "\n".join(text) + "\n"


def _told(symptom: Symptom) -> str:
    parts = [f"console: `{pattern}`" for pattern in symptom.console]
    parts += [f"not on the console: `{pattern}`" for pattern in symptom.missing]
    parts += [f"command line: `{pattern}`" for pattern in symptom.cmdline]
    parts += [f"report: {path} is {value}" for path, value in symptom.report.items()]
    return ", and ".join(parts)
