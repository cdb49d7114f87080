# SPDX-License-Identifier: Apache-2.0
"""Pits: known ways for a guest to fail, one file each in configs/pits/, and which of them a console tells of. Pure.

A pit is recognized by symptoms: patterns on the console, words of the kernel's command line, facts of launch, QMP and
initd's report; and by what it requires of the kernel's config, where that is known: all pits' requirements together
are the contract. Patterns are RE2's (https://github.com/google/re2/wiki/Syntax), which takes no longer than the text is
long, whatever the pattern.
"""

import difflib
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import re2

from minguest import settings
from minguest.diagnose.facts import Fact, condition, of_report
from minguest.kernel import contract, kconfig
from minguest.util import errors
from minguest.util.errors import UserError
from minguest.vm import console
from minguest.vm.report import Report, parse

Layer = Literal["config", "cmdline", "firmware", "launch", "host", "initrd", "effect"]
# printk's time, which may be switched off, and what a log collector puts before it.
TIME = re.compile(rb"^(?:[^\n\[]{0,80}\[ *\d+\.\d{6}\] ?|<\d+>)", re.MULTILINE)
CMDLINE = re.compile(rb"(?:Kernel command line|Command line): (.*)")
# The kernel's banner: a log may hold several boots, and begin after its own.
BANNER = re.compile(rb"^.*Linux version \d+\.\d+.*#\d+", re.MULTILINE)
# Words that leave out of the console what a healthy kernel says.
SILENCING = re.compile(r"quiet|loglevel=[0-6]")
# The kernel has come to its end of the boot: what it did not print by now it does not print.
BOOTED = re.compile(rb"Run \S+ as init process|Freeing unused kernel|initd: |Kernel panic - not syncing")
# Lines that are quoted of one pit.
QUOTED = 4
# Characters of a line that are quoted.
WIDTH = 300
# Bytes that a console does not send: ASCII's control characters, but for those that move the cursor or ring.
CONTROLS = [bytes([code]) for code in (*range(7), *range(14, 27), *range(28, 32), 127)]
# Bytes of a log that are cleaned at once, and a line more.
PART = 1 << 20
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

Made of `configs/pits/` by `doit pits-page`. `doit diagnose log=FILE`, or `minguest diagnose FILE`,
finds yours in a console's log.

**My guest has one CPU under OVMF.**
1. Was it given more? `-smp 8`, and none of them only to be plugged in later.
2. `A valid RSDP was not found` on the console, and no line `efi: EFI v…`: the kernel was built without `CONFIG_EFI`
   ([efi-off](#efi-off)), so it never found the ACPI tables. Set `CONFIG_EFI=y`.
3. On the kernel's command line: [acpi=off](#acpi-off-cmdline), [nosmp or maxcpus=0](#smp-off-cmdline),
   [nr_cpus=](#cpu-limit-cmdline), [maxcpus=](#maxcpus-cmdline), [nolapic or disableapic](#lapic-off-cmdline). Take it
   away.
4. None of them: the kernel has no ACPI ([acpi-off](#acpi-off)) or no SMP ([smp-off](#smp-off)).

## What you see
"""


class Symptom(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way to see a pit: all that it names must be so."""

    console: tuple[str, ...] = ()
    """Patterns; each is found in some line, without printk's time."""
    missing: tuple[str, ...] = ()
    """Patterns that are found in no line of a console that has its kernel's banner, was not silenced, and came as far
    as BOOTED; or of one with a whole report."""
    cmdline: tuple[str, ...] = ()
    """Patterns; each is a whole word of the kernel's command line."""
    no_cmdline: tuple[str, ...] = ()
    """Patterns; none is a whole word of a command line that is known."""
    facts: tuple[str, ...] = ()
    """Conditions (minguest/diagnose/facts.py) that hold."""
    unless: tuple[str, ...] = ()
    """Conditions of which none is known to hold."""


class Injection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to bring a pit about: the smallest change of a healthy guest, and the verdict that must follow."""

    name: str = ""
    """Tells the injections of one pit apart."""
    series: tuple[str, ...] = ()
    """Only of these; else of every series."""
    options: Mapping[str, str | int | bool] = {}
    """Options of another kernel."""
    cmdline: tuple[str, ...] = ()
    """Words after those of the guest."""
    launch: Mapping[str, Any] = {}
    """Fields of the guest's launch."""
    plug: Mapping[str, int | str] = {}
    """`cpus` and `memory` that are there in the end, plugged in while the guest runs."""
    fault: tuple[str, ...] = ()
    """Keys of faults.FAULTS."""
    result: tuple[Literal["failed", "lost", "not started"], ...] = ("failed",)
    """Any of these."""
    needs: str = ""
    """A key of inject.NEEDS; where the machine has not what it names, this is NOT RUN."""
    blind: str | None = None
    """What is named where the kernel's config is not known; left out: the pit itself if it has a symptom, else none."""
    wrong: tuple[str, ...] = ()
    """Of a guest that failed: the rows of its verdict that are wrong, all of them; `pits` only where no other is."""
    cannot: str = ""
    """Why it cannot be brought about here at all; it is NOT RUN then."""


class Pit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """configs/pits/ID.toml."""

    title: str
    layer: Layer
    """Where the mistake is; `effect`: not a mistake, what comes of one."""
    symptom: tuple[Symptom, ...] = ()
    """Any of them is enough."""
    require: tuple[contract.Rule, ...] = ()
    """What of the kernel's config it rests on: any of them broken is enough, where the config is known."""
    cause: str = ""
    fix: str = ""
    """The exact change."""
    leads_to: tuple[str, ...] = ()
    """Pits and effects that are seen because of this one."""
    links: tuple[str, ...] = ()
    inject: tuple[Injection, ...] = ()


class Seen(msgspec.Struct, frozen=True):
    """What is known of one boot."""

    screen: bytes
    """The console without times, escapes and carriage returns; it keeps its lines' numbers."""
    words: tuple[str, ...]
    """Of the kernel's command line."""
    booted: bool
    facts: Mapping[str, Fact] = {}
    breaches: tuple[contract.Breach, ...] | None = None
    """Where the kernel's config breaks the contract of its launch; None: its config is not known."""


class Found(msgspec.Struct, frozen=True):
    """A pit that was recognized."""

    id: str
    pit: Pit
    lines: tuple[console.Line, ...]
    """That tell it."""
    proof: tuple[str, ...] = ()
    """What tells it beside the console: of config, command line and facts."""
    follows: tuple[str, ...] = ()
    """Ids of recognized pits that it comes of."""


class Diagnosis(msgspec.Struct, frozen=True):
    """Roots in the order of the console; then what follows from them."""

    roots: tuple[Found, ...]
    follows: tuple[Found, ...]
    unexplained: tuple[Found, ...]
    """Effects that come of none of the roots: their cause is none that is known."""
    ruled_out: tuple[tuple[str, str], ...]
    """Pits that have an effect in common with a root and are not it, and what rules them out."""


def load(folder: Path) -> dict[str, Pit]:
    """Read every pit by its id, the name of its file. UserError names file and field."""
    pits = {path.stem: settings.decode(path, Pit) for path in sorted(folder.glob("*.toml"))}
    if not pits:
        raise UserError(f"{folder}: no pit there")
    for name, pit in pits.items():
        where = str(folder / f"{name}.toml")
        _verify(where, pit)
        for other in pit.leads_to:
            if other not in pits:
                near = difflib.get_close_matches(other, pits, 1)
                raise UserError(f"{where}: leads_to = {other!r}: no such pit", f"nearest: {near[0]}" if near else "")
        rules = tuple(msgspec.structs.replace(rule, pit=name) for rule in pit.require)
        pits[name] = msgspec.structs.replace(pit, require=rules)
    for name in pits:
        if name in _below(pits, name):
            raise UserError(f"{folder / name}.toml: leads_to comes back to itself: nothing would be the root")
    return pits


def _verify(where: str, pit: Pit) -> None:
    if not (pit.symptom or pit.require):
        raise UserError(f"{where}: no [[symptom]] and no [[require]]: nothing would ever tell of it")
    if pit.layer != "effect" and not (pit.cause and pit.fix):
        raise UserError(f"{where}: cause or fix is missing", 'only a pit with layer = "effect" has none')
    if pit.layer != "effect" and not pit.inject:
        raise UserError(f"{where}: no [[inject]]: how is it brought about?", "if it cannot be: [[inject]] cannot = WHY")
    for rule in pit.require:
        contract.verify(rule, where)
    for symptom in pit.symptom:
        if not (symptom.console or symptom.cmdline or symptom.facts):
            raise UserError(f"{where}: an empty [[symptom]] would always be there", "console, cmdline or facts")
        for pattern in (*symptom.console, *symptom.missing, *symptom.cmdline, *symptom.no_cmdline):
            try:
                everywhere = _compiled(pattern).search(b"")
            except re2.error as error:
                why = error.args[0].decode() if isinstance(error.args[0], bytes) else error
                raise UserError(f"{where}: pattern {pattern!r}: {why}", "patterns are RE2's") from error
            if everywhere:
                raise UserError(f"{where}: pattern {pattern!r} would always be there")
        try:
            for text in (*symptom.facts, *symptom.unless):
                condition(text)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    names = [injection.name for injection in pit.inject]
    if len(set(names)) != len(names):
        raise UserError(f"{where}: two [[inject]] of one name", "name = tells them apart")


def rules(pits: Mapping[str, Pit]) -> tuple[contract.Rule, ...]:
    """The contract: what all pits require of a config."""
    return tuple(rule for pit in pits.values() for rule in pit.require)


def see(
    raw: bytes,
    report: Report | None = None,
    facts: Mapping[str, Fact] | None = None,
    breaches: Sequence[contract.Breach] | None = None,
) -> Seen:
    """What a console tells, with or without printk's times, escapes and carriage returns.

    `facts` are those of the whole boot; left out, those of the report.
    """
    screen = _last_boot(_cleaned(raw))
    told = str(report.record("begin").get("cmdline") or "") if report else ""
    spoken = CMDLINE.search(screen)
    # What comes after "--" is init's (admin-guide/kernel-parameters).
    words = (told or (spoken[1].decode("utf-8", "replace") if spoken else "")).partition(" -- ")[0].split()
    if facts is None:
        facts = of_report(report) if report else {}
    told_all = BANNER.search(screen) and BOOTED.search(screen) and not any(map(SILENCING.fullmatch, words))
    booted = facts.get("report") == "whole" or bool(told_all)
    return Seen(screen, tuple(words), booted, facts, None if breaches is None else tuple(breaches))


def _cleaned(raw: bytes) -> bytes:
    """Without times, escapes and carriage returns, a part at a time: a large log is not held many times over."""
    clean = bytearray()
    begin = 0
    while begin < len(raw):
        end = raw.find(b"\n", begin + PART) + 1 or len(raw)
        clean += TIME.sub(b"", console.plain(raw[begin:end]))
        begin = end
    return bytes(clean)


def _last_boot(screen: bytes) -> bytes:
    """Of several boots the last, from its banner on; the lines before are left empty, for the numbers."""
    banners = list(BANNER.finditer(screen))
    if len(banners) < 2:
        return screen
    begin = banners[-1].start()
    return b"\n" * screen.count(b"\n", 0, begin) + screen[begin:]


def diagnose(pits: Mapping[str, Pit], seen: Seen) -> Diagnosis:
    """Which pits this boot fell into. None is guessed: where nothing is known, the diagnosis is empty."""
    hits = {}
    for name, pit in pits.items():
        matched = [each for each in (_matches(one, seen) for one in pit.symptom) if isinstance(each, _Match)]
        broken = [str(breach) for breach in seen.breaches or () if breach.pit == name]
        if matched or broken:
            lines = max((match.lines for match in matched), key=len, default=())
            proof = dict.fromkeys(broken + [each for match in matched for each in match.proof])
            lines = tuple(sorted(lines, key=lambda line: line.number)[:QUOTED])
            hits[name] = Found(name, pit, lines, tuple(proof))
    below = {name: _below(pits, name) for name in hits}
    found = [
        msgspec.structs.replace(hit, follows=tuple(other for other in hits if other != name and name in below[other]))
        for name, hit in hits.items()
    ]
    found.sort(key=lambda hit: (hit.lines[0].number if hit.lines else 0, hit.id))
    roots = tuple(hit for hit in found if not hit.follows and hit.pit.layer != "effect")
    return Diagnosis(
        roots,
        tuple(hit for hit in found if hit.follows),
        tuple(hit for hit in found if not hit.follows and hit.pit.layer == "effect"),
        tuple(_ruled_out(pits, hits, roots, seen)),
    )


def _ruled_out(
    pits: Mapping[str, Pit], hits: Mapping[str, Found], roots: Sequence[Found], seen: Seen
) -> Iterator[tuple[str, str]]:
    shared = {effect for hit in roots for effect in pits[hit.id].leads_to}
    for name, pit in pits.items():
        if name in hits or pit.layer == "effect" or not shared & set(pit.leads_to):
            continue
        against = [why for symptom in pit.symptom if isinstance(why := _matches(symptom, seen), str) and why]
        if pit.require and seen.breaches is not None:
            against.insert(0, " and ".join(f"CONFIG_{rule.option} is as wanted" for rule in pit.require[:1]))
        if against:
            yield name, against[0]


def describe(diagnosis: Diagnosis) -> str:
    """A diagnosis for a person: the root, its cause and fix, the lines that tell, what follows, what it is not."""
    text = [] if diagnosis.roots else ["no known pit"]
    for hit in diagnosis.roots:
        text.append(f"{hit.id}: {hit.pit.title}")
        text += _evidence(hit)
        text += [f"  cause: {hit.pit.cause}", f"  fix:   {hit.pit.fix}"]
    for hit in diagnosis.follows:
        text.append(f"follows from {', '.join(hit.follows)}: {hit.pit.title}")
        text += _evidence(hit)
    for hit in diagnosis.unexplained:
        text.append(f"seen, and of no cause that is known: {hit.pit.title}")
        text += _evidence(hit)
    text += [errors.printable(f"not {name}: {why}"[:WIDTH]) for name, why in diagnosis.ruled_out]
    return "\n".join(text)


def _evidence(hit: Found) -> list[str]:
    told = [f"  {line.number:5} | {line.text}" for line in hit.lines] + [f"        | {each}" for each in hit.proof]
    return [errors.printable(line[:WIDTH]) for line in told]


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


class _Match(msgspec.Struct, frozen=True):
    lines: tuple[console.Line, ...]
    proof: tuple[str, ...]


def _matches(symptom: Symptom, seen: Seen) -> _Match | str:
    """What tells a symptom; or what rules it out, empty where that is only not known."""
    proof = []
    for of in (_words(symptom, seen), _facts(symptom, seen)):
        if isinstance(of, str):
            return of
        proof += of
    lines = _lines(symptom, seen)
    return lines if isinstance(lines, str) else _Match(tuple(lines), tuple(proof))


def _words(symptom: Symptom, seen: Seen) -> list[str] | str:
    if (symptom.cmdline or symptom.no_cmdline) and not seen.words:
        return ""
    proof = []
    for pattern in symptom.cmdline:
        word = next((word for word in seen.words if re2.fullmatch(pattern, word)), None)
        if word is None:
            return f"the command line has no {pattern}"
        proof.append(f"{word} is on the command line")
    for pattern in symptom.no_cmdline:
        if word := next((word for word in seen.words if re2.fullmatch(pattern, word)), None):
            return f"{word} is on the command line"
    return proof


def _facts(symptom: Symptom, seen: Seen) -> list[str] | str:
    proof = []
    for each in map(condition, symptom.facts):
        holds = each.holds(seen.facts)
        if not holds:
            return each.told(seen.facts) if holds is False else ""
        proof.append(each.told(seen.facts))
    for each in map(condition, symptom.unless):
        if each.holds(seen.facts):
            return each.told(seen.facts)
    return proof


def _lines(symptom: Symptom, seen: Seen) -> list[console.Line] | str:
    lines = []
    for pattern in symptom.console:
        line = _find(pattern, seen.screen)
        if line is None:
            return f"no console line has {pattern!r}" if seen.screen.strip() else ""
        lines.append(line)
    if symptom.missing and not seen.booted:
        return ""
    for pattern in symptom.missing:
        if line := _find(pattern, seen.screen):
            return f"the console says {line.text!r}"
    return lines


@functools.cache
def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    return re2.compile(f"(?m){pattern}", options=options)


def _find(pattern: str, screen: bytes) -> console.Line | None:
    """The first line that has a pattern in it."""
    for match in _compiled(pattern).finditer(screen):
        if b"\n" not in match[0]:
            begin, end = screen.rfind(b"\n", 0, match.start()) + 1, screen.find(b"\n", match.end())
            text = screen[begin : end if end >= 0 else None].decode("utf-8", "replace").rstrip()
            return console.Line(screen.count(b"\n", 0, begin) + 1, text)
    return None


def read_log(path: Path) -> bytes:
    """A console's log from anywhere; UserError for what cannot be one."""
    try:
        if not path.is_file():
            raise UserError(f"log {path}: no such file, or not a plain one", "it is a guest's console, as a file")
        size = path.stat().st_size
        if size > LOG_MAX:
            raise UserError(
                f"log {path}: {size / 1e6:.0f} MB, and {LOG_MAX >> 20} MiB is the most",
                "give its first part: head -c 64M",
            )
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"log {path}: {error.strerror}") from error
    if not raw.strip():
        raise UserError(f"log {path}: empty", "was the console written to it? -serial file:LOG, or console=ttyS0")
    sample = raw[:PART]
    # No text: what is neither UTF-8 nor ASCII, and what no terminal knows. A line with noise on it has some of it.
    odd = sample.decode("utf-8", "replace").count("\ufffd") + sum(map(sample.count, CONTROLS))
    if odd * 5 > len(sample):
        raise UserError(
            f"log {path}: not a console's text: {odd} of its first {len(sample)} bytes are none",
            "what was it written by? UTF-16 becomes text with iconv -f UTF-16",
        )
    return raw


def read_report(path: Path) -> Report:
    """initd's report as a file: its lines, or the report.json of a boot test."""
    remedy = "it is initd's report, or a boot test's report.json"
    try:
        if not path.is_file():
            raise UserError(f"report {path}: no such file, or not a plain one", remedy)
        if path.stat().st_size > LOG_MAX:
            raise UserError(f"report {path}: more than {LOG_MAX >> 20} MiB", remedy)
        raw = path.read_bytes()
        report = msgspec.json.decode(raw, type=Report) if b'"complete"' in raw[:200] else parse(raw)
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"report {path}: {why}", remedy) from error
    if not report.records:
        raise UserError(f"report {path}: no record in it: {report.damage or 'empty'}", remedy)
    return report


def page(pits: Mapping[str, Pit]) -> str:
    """docs/pits.md: for someone whose guest has just failed, symptoms first."""
    text = [PAGE + "| what you see | what it may be |", "| --- | --- |"]
    for effect, pit in pits.items():
        if pit.layer == "effect":
            roots = [name for name, other in pits.items() if other.layer != "effect" and effect in _below(pits, name)]
            text.append(f"| {pit.title} | {_linked(roots)} |")
    text += ["", "## A line on the console", "| console (a pattern, RE2) | what it is |", "| --- | --- |"]
    said: dict[str, list[str]] = {}
    for name, pit in pits.items():
        for pattern in (pattern for symptom in pit.symptom for pattern in symptom.console if pit.layer != "effect"):
            said.setdefault(pattern, []).append(name)
    text += [f"| {_code(pattern)} | {_linked(dict.fromkeys(names))} |" for pattern, names in sorted(said.items())]
    for layer, title in LAYERS.items():
        of_layer = {name: pit for name, pit in pits.items() if pit.layer == layer}
        if not of_layer:
            continue
        text += ["", f"## {title}"]
        for name, pit in of_layer.items():
            text += ["", f"### {name}", f"**{pit.title[0].upper()}{pit.title[1:]}.** {pit.cause}", ""]
            text += [f"Fix: {pit.fix}.", ""]
            text += [f"- {_told(symptom)}" for symptom in pit.symptom]
            text += [f"- config: {_required(rule)}" for rule in pit.require]
            if effects := [pits[other].title for other in pit.leads_to if pits[other].layer == "effect"]:
                text.append(f"- seen because of it: {'; '.join(effects)}")
            text += [f"- reproduced by: {_reproduced(injection)}" for injection in pit.inject]
            text += [f"- <{link}>" for link in pit.links]
    return "\n".join(text) + "\n"


def _linked(names: Iterable[str]) -> str:
    return ", ".join(f"[{name}](#{name})" for name in names)


def _code(text: str) -> str:
    """Code in a cell of a Markdown table, where a bar would end the cell."""
    return f"`{text}`".replace("|", "\\|")


def _told(symptom: Symptom) -> str:
    parts = [f"console: `{pattern}`" for pattern in symptom.console]
    parts += [f"not on the console: `{pattern}`" for pattern in symptom.missing]
    parts += [f"command line: `{pattern}`" for pattern in symptom.cmdline]
    parts += [f"not on the command line: `{pattern}`" for pattern in symptom.no_cmdline]
    parts += [f"boot test: `{text}`" for text in symptom.facts]
    parts += [f"unless `{text}`" for text in symptom.unless]
    return ", and ".join(parts)


def _required(rule: contract.Rule) -> str:
    wanted = f"at least {rule.at_least}" if rule.at_least is not None else rule.value or "y"
    when = "" if rule.when == "always" else f" ({rule.when})"
    return f"`CONFIG_{rule.option}` not {wanted}{when}: {rule.without}"


def _reproduced(injection: Injection) -> str:
    if injection.cannot:
        return f"cannot be: {injection.cannot}"
    parts = [f"`CONFIG_{option}={kconfig.spell(value)}`" for option, value in injection.options.items()]
    parts += [f"`{word}`" for word in (*injection.cmdline, *injection.fault)]
    parts += [f"launch `{key} = {value}`" for key, value in injection.launch.items()]
    parts += [f"plugging in, up to `{key} = {value}`" for key, value in injection.plug.items()]
    series = f" ({', '.join(injection.series)})" if injection.series else ""
    return ", ".join(parts) + series
