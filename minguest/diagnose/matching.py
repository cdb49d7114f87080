# SPDX-License-Identifier: Apache-2.0
"""Which pits a console, a report and the facts of a boot show. Pure, but for what reads a log or a report."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import re2

from minguest.diagnose.catalogue import Pit, Symptom, below, compiled
from minguest.diagnose.facts import Fact, condition, of_report
from minguest.kernel import contract
from minguest.util import errors
from minguest.util.errors import UserError
from minguest.vm import console
from minguest.vm.report import Report, parse

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
    led_to = {name: below(pits, name) for name in hits}
    found = [
        msgspec.structs.replace(hit, follows=tuple(other for other in hits if other != name and name in led_to[other]))
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


def _find(pattern: str, screen: bytes) -> console.Line | None:
    """The first line that has a pattern in it."""
    for match in compiled(pattern).finditer(screen):
        if b"\n" not in match[0]:
            begin, end = screen.rfind(b"\n", 0, match.start()) + 1, screen.find(b"\n", match.end())
            text = screen[begin : end if end >= 0 else None].decode("utf-8", "replace").rstrip()
            return console.Line(screen.count(b"\n", 0, begin) + 1, text)
    return None
