# SPDX-License-Identifier: Apache-2.0
"""Which pits a console, a report and the facts of a boot show. Pure, except read_log and read_report."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import re2

from minguest.diagnose.catalogue import Pit, Symptom, below, compiled, gists
from minguest.diagnose.facts import Fact, condition, of_report
from minguest.kernel import contract
from minguest.util import errors
from minguest.util.errors import UserError
from minguest.vm import console
from minguest.vm.report import Report, parse

# printk's time, which may be switched off, and what a log collector puts before it.
TIME = re.compile(rb"^(?:[^\n\[]{0,80}\[ *\d+\.\d{6}\] ?|<\d+>)", re.MULTILINE)
CMDLINE = re.compile(rb"(?:Kernel command line|Command line): (.*)")
# The kernel's banner: a log may hold several boots, and may begin after a banner.
BANNER = re.compile(rb"^.*Linux version \d+\.\d+.*#\d+", re.MULTILINE)
# Options that keep the messages of a healthy kernel off the console.
SILENCING = re.compile(r"quiet|loglevel=[0-6]")
# The end of the kernel's boot: what it has not printed by then, it does not print.
BOOTED = re.compile(rb"Run \S+ as init process|Freeing unused kernel|initd: |Kernel panic - not syncing")
# Lines that are quoted for one pit.
QUOTED = 4
# Characters that are quoted of a line.
WIDTH = 300
# Devices of one log that are looked at for one pattern.
ITS = 64
# Bytes that a console does not send: ASCII's control characters, except those that move the cursor or ring.
CONTROLS = [bytes([code]) for code in (*range(7), *range(14, 27), *range(28, 32), 127)]
# Bytes of a log that are cleaned at a time, and the rest of their last line.
PART = 1 << 20
# Bytes of the largest log: a guest that prints more repeats itself.
LOG_MAX = 64 << 20


class Seen(msgspec.Struct, frozen=True):
    """What is known of one boot."""

    screen: bytes
    """The console without times, escapes and carriage returns; it keeps its lines' numbers."""
    options: tuple[str, ...]
    """On the kernel's command line."""
    booted: bool
    """Whether the console has all that a healthy kernel prints; or the report is whole."""
    facts: Mapping[str, Fact] = {}
    breaches: tuple[contract.Breach, ...] | None = None
    """Where the kernel's config breaks the contract of its launch; None: its config is not known."""


class Found(msgspec.Struct, frozen=True):
    """A pit that was recognized."""

    id: str
    pit: Pit
    lines: tuple[console.Line, ...]
    """The lines of the console that show it."""
    proof: tuple[str, ...] = ()
    """What else shows it: config, command line and facts."""
    follows: tuple[str, ...] = ()
    """Ids of the recognized pits that it follows from."""


class Diagnosis(msgspec.Struct, frozen=True):
    """Roots in the order of the console; then what follows from them."""

    roots: tuple[Found, ...]
    follows: tuple[Found, ...]
    unexplained: tuple[Found, ...]
    """Effects that follow from no root: their cause is not known."""
    ruled_out: tuple[tuple[str, str], ...]
    """Pits that share an effect with a root, and what rules each of them out."""


def read_log(path: Path) -> bytes:
    """A console's log from anywhere; UserError for what cannot be one."""
    try:
        if not path.is_file():
            raise UserError(f"log {path}: no such file, or not a regular file", "pass the log of a guest's console")
        size = path.stat().st_size
        if size > LOG_MAX:
            raise UserError(
                f"log {path}: {size / 1e6:.0f} MB; the limit is {LOG_MAX >> 20} MiB",
                "pass its first part: head -c 64M",
            )
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"log {path}: {error.strerror}") from error
    if not raw.strip():
        raise UserError(f"log {path}: empty", "was the console written to it? -serial file:LOG, or console=ttyS0")
    sample = raw[:PART]
    # Not text: what is not UTF-8, and control characters that no terminal knows. A noisy serial line has a few.
    odd = sample.decode("utf-8", "replace").count("\ufffd") + sum(map(sample.count, CONTROLS))
    if odd * 5 > len(sample):
        raise UserError(
            f"log {path}: not a console's text: {odd} of its first {len(sample)} bytes are not text",
            "if it is UTF-16, convert it: iconv -f UTF-16",
        )
    return raw


def read_report(path: Path) -> Report:
    """initd's report as a file: its lines, or the report.json of a boot test."""
    remedy = "pass initd's report, or the report.json of a boot test"
    try:
        if not path.is_file():
            raise UserError(f"report {path}: no such file, or not a regular file", remedy)
        if path.stat().st_size > LOG_MAX:
            raise UserError(f"report {path}: more than {LOG_MAX >> 20} MiB", remedy)
        raw = path.read_bytes()
        report = msgspec.json.decode(raw, type=Report) if b'"complete"' in raw[:200] else parse(raw)
    except (OSError, ValueError, RecursionError) as error:
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
    """What is known of a boot. Printk's times, escapes and carriage returns on the console do not matter.

    `facts` are those of the whole boot; left out, those of the report.
    """
    screen = _last_boot(_cleaned(raw))
    reported = str(report.record("begin").get("cmdline") or "") if report else ""
    printed = CMDLINE.search(screen)
    # What comes after "--" is init's (admin-guide/kernel-parameters).
    options = (reported or (printed[1].decode("utf-8", "replace") if printed else "")).partition(" -- ")[0].split()
    if facts is None:
        facts = of_report(report) if report else {}
    complete = BANNER.search(screen) and BOOTED.search(screen) and not any(map(SILENCING.fullmatch, options))
    booted = facts.get("report") == "whole" or bool(complete)
    return Seen(screen, tuple(options), booted, facts, None if breaches is None else tuple(breaches))


def _cleaned(raw: bytes) -> bytes:
    """Without times, escapes and carriage returns; a part at a time, so that memory holds few copies of a large log."""
    clean = bytearray()
    begin = 0
    while begin < len(raw):
        end = raw.find(b"\n", begin + PART) + 1 or len(raw)
        clean += TIME.sub(b"", console.plain(raw[begin:end]))
        begin = end
    return bytes(clean)


def _last_boot(screen: bytes) -> bytes:
    """The last of several boots, from its banner on. The lines before it become empty, which keeps the numbers."""
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
            against.insert(0, f"CONFIG_{pit.require[0].option} is as required")
        if against:
            yield name, against[0]


def describe(diagnosis: Diagnosis) -> str:
    """A diagnosis for a person: each root with its lines, cause and fix; what follows; what is ruled out."""
    text = [] if diagnosis.roots else ["no known pit"]
    for hit in diagnosis.roots:
        text.append(f"{hit.id}: {hit.pit.title}")
        text += _evidence(hit)
        text += [f"  cause: {hit.pit.cause}", f"  fix:   {hit.pit.fix}"]
    for hit in diagnosis.follows:
        text.append(f"follows from {', '.join(hit.follows)}: {hit.pit.title}")
        text += _evidence(hit)
    for hit in diagnosis.unexplained:
        text.append(f"seen, but no known pit causes it: {hit.pit.title}")
        text += _evidence(hit)
    text += [errors.printable(f"not {name}: {why}"[:WIDTH]) for name, why in diagnosis.ruled_out]
    return "\n".join(text)


def _evidence(hit: Found) -> list[str]:
    shown = [f"  {line.number:5} | {line.text}" for line in hit.lines] + [f"        | {each}" for each in hit.proof]
    return [errors.printable(line[:WIDTH]) for line in shown]


class _Match(msgspec.Struct, frozen=True):
    lines: tuple[console.Line, ...]
    proof: tuple[str, ...]


def _matches(symptom: Symptom, seen: Seen) -> _Match | str:
    """What shows a symptom; or the text of what rules it out, which is empty where that is not known."""
    proof = []
    for of in (_options(symptom, seen), _facts(symptom, seen)):
        if isinstance(of, str):
            return of
        proof += of
    lines = _lines(symptom, seen)
    return lines if isinstance(lines, str) else _Match(tuple(lines), tuple(proof))


def _options(symptom: Symptom, seen: Seen) -> list[str] | str:
    if (symptom.cmdline or symptom.no_cmdline) and not seen.options:
        return ""
    proof = []
    for pattern in symptom.cmdline:
        option = next((each for each in seen.options if re2.fullmatch(pattern, each)), None)
        if option is None:
            return f"the command line has no {' or '.join(gists(pattern))}"
        proof.append(f"{option} is on the command line")
    for pattern in symptom.no_cmdline:
        if option := next((each for each in seen.options if re2.fullmatch(pattern, each)), None):
            return f"{option} is on the command line"
    return proof


def _facts(symptom: Symptom, seen: Seen) -> list[str] | str:
    proof = []
    for each in map(condition, symptom.facts):
        holds = each.holds(seen.facts)
        if not holds:
            return each.describe(seen.facts) if holds is False else ""
        proof.append(each.describe(seen.facts))
    for each in map(condition, symptom.unless):
        if each.holds(seen.facts):
            return each.describe(seen.facts)
    return proof


def _lines(symptom: Symptom, seen: Seen) -> list[console.Line] | str:
    lines = []
    for pattern in symptom.console:
        line = _unresolved(pattern, symptom.resolved, seen.screen) if symptom.resolved else _find(pattern, seen.screen)
        if line is None:
            return f'the console has no line like "{gists(pattern)[0]}"' if seen.screen.strip() else ""
        lines.append(line)
    if symptom.missing and not seen.booted:
        return ""
    for pattern in (*symptom.missing, *symptom.absent):
        if line := _find(pattern, seen.screen):
            return f'the console has the line "{line.text}"'
    return lines


def _find(pattern: str, screen: bytes) -> console.Line | None:
    """The first line that has a pattern in it."""
    for match in compiled(pattern).finditer(screen):
        if b"\n" not in match[0]:
            return _line(screen, match.start())
    return None


def _unresolved(pattern: str, resolved: Sequence[str], screen: bytes) -> console.Line | None:
    """The first line that has a pattern in it, and whose trouble no later line shows to have passed."""
    first: dict[bytes, int] = {}
    last: dict[bytes, int] = {}
    form = compiled(pattern)
    for match in form.finditer(screen):
        if b"\n" not in match[0]:
            it = match["it"] if "it" in form.groupindex else b""
            first.setdefault(it, match.start())
            last[it] = match.end()
    for it, begin in itertools.islice(first.items(), ITS):
        quoted = re2.escape(it.decode("utf-8", "replace"))
        later = (compiled(each.replace("{it}", quoted)).search(screen, last[it]) for each in resolved)
        if not any(later):
            return _line(screen, begin)
    return None


def _line(screen: bytes, place: int) -> console.Line:
    begin, end = screen.rfind(b"\n", 0, place) + 1, screen.find(b"\n", place)
    text = screen[begin : end if end >= 0 else None].decode("utf-8", "replace").rstrip()
    return console.Line(screen.count(b"\n", 0, begin) + 1, text)
