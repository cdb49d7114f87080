# SPDX-License-Identifier: Apache-2.0
"""Which pits the logs, the report and the facts of a boot show. Pure, except read_report."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import re2

from minguest.diagnose import logs
from minguest.diagnose.catalogue import Pit, Symptom, below, compiled, gists
from minguest.diagnose.facts import Fact, condition, of_command, of_report
from minguest.kernel import contract
from minguest.util.errors import UserError
from minguest.vm import console
from minguest.vm.report import BEGIN, Report, kernel_log, parse

# printk's time, which may be switched off, with its caller (CONFIG_PRINTK_CALLER), and what a log collector puts
# before it.
TIME = re.compile(
    rb"^(?:[^\n\[]{0,80}\[ *\+?\d+\.\d{6}\](?:\[ *[CT]\d+\])? ?|<\d+>|"
    # dmesg -T, dmesg --time-format iso, journalctl -k.
    rb"\[\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}\] |\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[,.]\d{6}\S* |"
    rb"\w{3} [ \d]\d \d\d:\d\d:\d\d \S+ kernel: )",
    re.MULTILINE,
)
CMDLINE = re.compile(rb"(?:Kernel command line|Command line): (.*)")
# What a guest's kernel writes.
CONSOLES = {"guest console", "kernel", "Kata"}
# Each start of QEMU in libvirt's log.
STARTED = re.compile(rb"^.*: starting up libvirt version.*", re.MULTILINE)
# The kernel's banner: a log may hold several boots, and may begin after a banner.
BANNER = re.compile(rb"^.*Linux version \d+\.\d+.*#\d+", re.MULTILINE)
# Options that keep the messages of a healthy kernel off the console.
SILENCING = re.compile(r"quiet|loglevel=[0-6]")
# The end of the kernel's boot: what it has not printed by then, it does not print.
BOOTED = re.compile(rb"Run \S+ as init process|Freeing unused kernel|initd: |Kernel panic - not syncing")
# Bytes of a file in which a report has begun.
HEAD = 4 << 10
# Lines that are quoted for one pit.
QUOTED = 4
# Characters that are quoted of a line.
WIDTH = 300
# Bytes for all patterns together.
PATTERNS_MAX = 64 << 20
# Devices of one log that are looked at for one pattern.
ITS = 64
# Bytes of a log that are cleaned at a time, and the rest of their last line.
PART = 1 << 20


class Seen(msgspec.Struct, frozen=True):
    """What one log shows, and what else is known of its boot."""

    screen: bytes
    """The log without times, escapes and carriage returns; it keeps its lines' numbers."""
    options: tuple[str, ...]
    """On the kernel's command line."""
    booted: bool
    """Whether the log has all that a healthy kernel prints; or the report is whole."""
    facts: Mapping[str, Fact] = {}
    breaches: tuple[contract.Breach, ...] | None = None
    """Where the kernel's config breaks the contract of its launch; None: its config is not known."""
    name: str = "console"
    """Of the log."""
    kinds: tuple[logs.Kind, ...] = ()
    breaks: tuple[tuple[int, int], ...] = ()
    """As in logs.Log."""
    names: tuple[tuple[int, str], ...] = ()
    """Likewise."""

    def log_of(self, line: int) -> str:
        """The name of the log that has a line of the screen, which counts from 1."""
        return next((name for first, name in reversed(self.names) if line >= first), self.name)


class Quote(msgspec.Struct, frozen=True):
    """A line of a log, numbered from 1."""

    log: str
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.log}:{self.number}: {self.text}"


class Found(msgspec.Struct, frozen=True):
    """A pit that was recognized."""

    id: str
    pit: Pit
    lines: tuple[Quote, ...]
    """The lines of the logs that show it."""
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
    questions: tuple[Found, ...]
    """Effects that follow from no root, and are trouble only if the launch was another."""
    ruled_out: tuple[tuple[str, str], ...]
    """Pits that share an effect with a root, and what rules each of them out."""


def is_report(name: str) -> bool:
    """Whether a file that was given as a log is a report. A report begins after what a firmware wrote to its port."""
    try:
        path = Path(name)
        if not path.is_file():
            return False
        with path.open("rb") as file:
            begin = file.read(HEAD)
    except (OSError, ValueError):
        return False
    return BEGIN in begin or begin.lstrip().startswith((b'{"complete"', b'{\n  "complete"'))


def read_report(path: Path) -> Report:
    """initd's report as a file: its lines, or the report.json of a boot test."""
    remedy = "pass initd's report, or the report.json of a boot test"
    try:
        if not path.is_file():
            raise UserError(f"report {path}: no such file, or not a regular file", remedy)
        if path.stat().st_size > logs.LOG_MAX:
            raise UserError(f"report {path}: more than {logs.LOG_MAX >> 20} MiB", remedy)
        raw = path.read_bytes()
        report = msgspec.json.decode(raw, type=Report) if b'"complete"' in raw[:200] else parse(raw)
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"report {path}: {why}", remedy) from error
    if not report.records:
        raise UserError(f"report {path}: no record in it: {report.damage or 'empty'}", remedy)
    return report


def see(
    log: bytes | logs.Log,
    report: Report | None = None,
    facts: Mapping[str, Fact] | None = None,
    breaches: Sequence[contract.Breach] | None = None,
) -> Seen:
    """What is known of a boot. Printk's times, escapes and carriage returns in the log do not matter. A report may have
    the kernel's log, which belongs to a quiet console.

    `facts` are those of the whole boot; left out, those of the report.
    """
    log = log if isinstance(log, logs.Log) else logs.Log("console", log)
    sent = report.log if report else ()
    if sent:
        log = logs.joined(kernel_log(sent), log)
    screen = _last(BANNER, _last(STARTED, _cleaned(log.text)))
    reported = str(report.record("begin").get("cmdline") or "") if report else ""
    printed = CMDLINE.search(screen)
    # What comes after "--" is init's (admin-guide/kernel-parameters).
    options = (reported or (_unquoted(printed[1]) if printed else "")).partition(" -- ")[0].split()
    if facts is None:
        facts = of_report(report) if report else {}
    # What the kernel logged and did not print is missing, unless its log came whole.
    silent = any(map(SILENCING.fullmatch, options)) and (not sent or any(part.left_out for part in sent))
    complete = facts.get("report") == "whole" or (BANNER.search(screen) and BOOTED.search(screen))
    known = None if breaches is None else tuple(breaches)
    return Seen(
        screen, tuple(options), bool(complete) and not silent, facts, known, log.name, log.kinds, log.breaks, log.names
    )


def boot(read: Sequence[logs.Log], report: Report | None = None) -> list[Seen]:
    """What several logs of one boot show. The report belongs to the guest's console; what QEMU was given, to all. A
    report with the kernel's log needs no other one."""
    if not read and report and report.log:
        read = [logs.Log(logs.KERNEL, b"")]
    consoles = [each for each in read if CONSOLES & set(each.kinds)] or list(read)
    given = {name: fact for each in read for name, fact in of_command(each.text).items()}
    seen = []
    for each in read:
        alone = see(each, report if each in consoles[:1] else None)
        seen.append(msgspec.structs.replace(alone, facts={**given, **alone.facts}))
    return seen


def diagnose_logs(
    pits: Mapping[str, Pit], read: Sequence[logs.Log], report: Report | None = None
) -> tuple[Diagnosis, list[Seen]]:
    """Which pits logs show; where they show none, whether they do with their wrapped lines whole."""
    seen = boot(read, report)
    found = diagnose(pits, *seen)
    for between in (b"", b" "):
        if found.roots:
            break
        whole = [logs.unfolded(each, between) for each in read]
        if any(whole):
            again = boot([after or before for after, before in zip(whole, read, strict=True)], report)
            other = diagnose(pits, *again)
            if other.roots or (other.unexplained and not found.unexplained):
                found, seen = other, again
    return found, seen


def _unquoted(line: bytes) -> str:
    """A command line, without the end of a quotation that a log collector put around it."""
    text = line.decode("utf-8", "replace")
    for quote in ('"', "'"):
        if text.count(quote) % 2:
            text = text.rpartition(quote)[0]
    return text


def _cleaned(raw: bytes) -> bytes:
    """Without times, escapes and carriage returns; a part at a time, so that memory holds few copies of a large log."""
    clean = bytearray()
    begin = 0
    while begin < len(raw):
        end = raw.find(b"\n", begin + PART) + 1 or len(raw)
        clean += TIME.sub(b"", console.plain(raw[begin:end]))
        begin = end
    return bytes(clean)


def _last(start: re.Pattern[bytes], screen: bytes) -> bytes:
    """The last of several boots, from its first line on. The lines before it become empty, which keeps the numbers."""
    starts = list(start.finditer(screen))
    if len(starts) < 2:
        return screen
    begin = starts[-1].start()
    return b"\n" * screen.count(b"\n", 0, begin) + screen[begin:]


def diagnose(pits: Mapping[str, Pit], *seen: Seen) -> Diagnosis:
    """Which pits this boot fell into, as its logs show. None is guessed: where nothing is known, none is named.

    A symptom is looked for in each log alone; a pit in one log can follow from a pit in another.
    """
    looked = [_Look(each, _present(pits, each.screen)) for each in seen]
    hits = {}
    for name, pit in pits.items():
        tried = [_matches(symptom, look) for symptom in pit.symptom for look in looked]
        found = [each for each in tried if isinstance(each, _Match)]
        broken = [str(breach) for each in seen for breach in each.breaches or () if breach.pit == name]
        if found or broken:
            lines = tuple(dict.fromkeys(line for match in found for line in match.lines))
            proof = dict.fromkeys(broken + [each for match in found for each in match.proof])
            order = [name for each in seen for name in (*(name for _, name in each.names), each.name)]
            lines = tuple(sorted(lines, key=lambda line: (order.index(line.log), line.number))[:QUOTED])
            hits[name] = Found(name, pit, lines, tuple(proof))
    led_to = {name: below(pits, name) for name in hits}
    judged = [
        msgspec.structs.replace(hit, follows=tuple(other for other in hits if other != name and name in led_to[other]))
        for name, hit in hits.items()
    ]
    judged.sort(key=lambda hit: (hit.lines[0].number if hit.lines else 0, hit.id))
    roots = tuple(hit for hit in judged if not hit.follows and hit.pit.layer != "effect")
    alone = [hit for hit in judged if not hit.follows and hit.pit.layer == "effect"]
    return Diagnosis(
        roots,
        tuple(hit for hit in judged if hit.follows),
        tuple(hit for hit in alone if not hit.pit.ask),
        tuple(hit for hit in alone if hit.pit.ask),
        tuple(_ruled_out(pits, hits, roots, looked)),
    )


def _ruled_out(
    pits: Mapping[str, Pit], hits: Mapping[str, Found], roots: Sequence[Found], looked: Sequence["_Look"]
) -> Iterator[tuple[str, str]]:
    shared = {effect for hit in roots for effect in pits[hit.id].leads_to}
    for name, pit in pits.items():
        if name in hits or pit.layer == "effect" or not shared & set(pit.leads_to):
            continue
        tried = (_matches(symptom, look) for symptom in pit.symptom for look in looked)
        against = [why for why in tried if isinstance(why, str) and why]
        if pit.require and any(look.seen.breaches is not None for look in looked):
            against.insert(0, f"CONFIG_{pit.require[0].option} is as required")
        if against:
            yield name, against[0]


class _Match(msgspec.Struct, frozen=True):
    lines: tuple[Quote, ...]
    proof: tuple[str, ...]


class _Look(msgspec.Struct, frozen=True):
    """A log, and the patterns that it has somewhere."""

    seen: Seen
    present: frozenset[str]


def _present(pits: Mapping[str, Pit], screen: bytes) -> frozenset[str]:
    """Which of the pits' patterns a text has: one pass for all of them."""
    patterns = list(
        dict.fromkeys(
            pattern
            for pit in pits.values()
            for symptom in pit.symptom
            for pattern in (*symptom.console, *symptom.missing, *symptom.absent)
        )
    )
    options = re2.Options()
    options.max_mem = PATTERNS_MAX
    options.log_errors = False
    # Anything has the last one: a set that ran out of memory has none.
    together = re2.Set.SearchSet(options)
    for pattern in (*patterns, ""):
        together.Add(f"(?m){pattern}")
    together.Compile()
    found = together.Match(screen) or ()
    if len(patterns) not in found:
        return frozenset(patterns)
    return frozenset(patterns[each] for each in found if each < len(patterns))


def _matches(symptom: Symptom, look: _Look) -> _Match | str:
    """What shows a symptom; or the text of what rules it out, which is empty where that is not known."""
    proof = []
    for of in (_options(symptom, look.seen), _facts(symptom, look.seen)):
        if isinstance(of, str):
            return of
        proof += of
    lines = _lines(symptom, look)
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


def _lines(symptom: Symptom, look: _Look) -> list[Quote] | str:
    lines = []
    for pattern in symptom.console:
        line = _unresolved(pattern, symptom.resolved, look) if symptom.resolved else _find(pattern, look)
        if line is None:
            return f'the console has no line like "{gists(pattern)[0]}"' if look.seen.screen.strip() else ""
        lines.append(line)
    if (
        symptom.times > 1
        and sum(1 for _ in itertools.islice(_all(symptom.console[0], look), symptom.times)) < symptom.times
    ):
        return f'the console has fewer than {symptom.times} lines like "{gists(symptom.console[0])[0]}"'
    if symptom.missing and not look.seen.booted:
        return ""
    for pattern in (*symptom.missing, *symptom.absent):
        if line := _find(pattern, look):
            return f'the console has the line "{line.text}"'
    return lines


def _find(pattern: str, look: _Look) -> Quote | None:
    """The first line that has a pattern in it."""
    for match in _all(pattern, look):
        return quote(look.seen, match.start(), match.end())
    return None


def _unresolved(pattern: str, resolved: Sequence[str], look: _Look) -> Quote | None:
    """The first line that has a pattern in it, and whose trouble no later line shows to have passed."""
    first: dict[bytes, tuple[int, int]] = {}
    last: dict[bytes, int] = {}
    for match in _all(pattern, look):
        it = match["it"] if "it" in match.re.groupindex else b""
        first.setdefault(it, match.span())
        last[it] = match.end()
    for it, place in itertools.islice(first.items(), ITS):
        quoted = re2.escape(it.decode("utf-8", "replace"))
        later = (compiled(each.replace("{it}", quoted)).search(look.seen.screen, last[it]) for each in resolved)
        if not any(later):
            return quote(look.seen, *place)
    return None


def _all(pattern: str, look: _Look) -> Iterator[re.Match[bytes]]:
    if pattern in look.present:
        for match in compiled(pattern).finditer(look.seen.screen):
            if b"\n" not in match[0]:
                yield match


def quote(seen: Seen, place: int, end: int) -> Quote:
    """The line that has a match from `place` to `end`; of a very long line, the part around it."""
    screen = seen.screen
    begin, over = screen.rfind(b"\n", 0, place) + 1, screen.find(b"\n", place)
    over = over if over >= 0 else len(screen)
    line = screen.count(b"\n", 0, begin) + 1
    number = logs.number_in_file(seen.breaks, line)
    if over - begin > WIDTH:
        begin = max(begin, min(place, end - WIDTH))
        over = min(over, begin + WIDTH)
    return Quote(seen.log_of(line), number, screen[begin:over].decode("utf-8", "replace").replace("\t", " ").rstrip())
