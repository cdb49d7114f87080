# SPDX-License-Identifier: Apache-2.0
"""What is answered to the reader of logs: a pit; or lines that look like trouble; or what is seen to be well. Pure, but
for the reader of configs/diagnose/subsystems.toml."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import re2

from minguest import settings
from minguest.diagnose import logs
from minguest.diagnose.catalogue import NAMES, Stack, compiled
from minguest.diagnose.matching import BANNER, WIDTH, Diagnosis, Found, Quote, Seen, quote
from minguest.util.errors import UserError, printable

# What stands for the reader's card, and for the number of its IOMMU group, in pits and subsystems.
EXAMPLE, GROUP = "0000:01:00.0", "GROUP"
# Lines of the host: its addresses are the host's, and a guest's are its own.
HOSTS = re.compile(rb"(?i)vfio|qemu|libvirt|hostdev|\bkvm: -")
BDF = re.compile(rb"\b((?:[0-9a-f]{4}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7])\b")
# In libvirt's XML of a domain.
HOSTDEV = re.compile(
    rb"""<source>\s*<address domain=['"]0x([0-9a-f]{4})['"] bus=['"]0x([0-9a-f]{2})['"] """
    rb"""slot=['"]0x([0-9a-f]{2})['"] function=['"]0x([0-7])['"]/>"""
)
IN_GROUP = re.compile(rb"\bgroup (\d+)\b|/dev/vfio/(\d+)\b")
# Lines that are quoted for one subsystem.
QUOTED = 3
MINGUEST = re.compile(rb"^initd: ", re.MULTILINE)
KINDS: Mapping[logs.Kind, Stack] = {
    "libvirt": "libvirt", "libvirt XML": "libvirt", "Proxmox": "proxmox", "Kata": "kata", "Kubernetes": "kubernetes",
}  # fmt: skip

Ending = Literal["pit", "trouble", "nothing wrong seen", "nothing recognized"]


class Subsystem(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who complains in a log."""

    name: str
    line: tuple[str, ...]
    """Patterns; a line that has one of them is a complaint."""
    means: str
    next: str
    """The next command, or the next thing to look at."""
    resolved: tuple[str, ...] = ()
    """Patterns of a later line that shows that the complaints before it passed."""
    always: bool = False
    """Whether it is shown beside a pit too."""


class Subsystems(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """configs/diagnose/subsystems.toml."""

    subsystem: tuple[Subsystem, ...]
    harmless: tuple[str, ...] = ()
    """Patterns of complaints that healthy machines print too."""


class Trouble(msgspec.Struct, frozen=True):
    """Complaints of one subsystem that are no known pit."""

    subsystem: str
    means: str
    next: str
    lines: tuple[Quote, ...]


class Answer(msgspec.Struct, frozen=True):
    """All that the logs of one boot say."""

    ending: Ending
    diagnosis: Diagnosis
    trouble: tuple[Trouble, ...]
    """Only where there is no root."""
    well: tuple[str, ...]
    """What the logs prove."""
    unseen: tuple[str, ...]
    """What they do not show."""
    notes: tuple[str, ...]
    stacks: tuple[Stack, ...]
    """The tools that started the guest."""
    card: str
    """The address on the host that the logs name; empty: none, or several."""
    group: str
    """The number of the IOMMU group that they name; likewise."""


def load(path: Path) -> Subsystems:
    """Read the subsystems. UserError names file and value."""
    found = settings.decode(path, Subsystems)
    for pattern in (*found.harmless, *(pattern for each in found.subsystem for pattern in each.line)):
        try:
            compiled(pattern)
        except re2.error as error:
            raise UserError(f"{path}: pattern {pattern!r}: {error}") from error
    return found


def answer(diagnosis: Diagnosis, seen: Sequence[Seen], subsystems: Subsystems) -> Answer:
    """What to say, given what was found."""
    hits = (*diagnosis.roots, *diagnosis.follows, *diagnosis.unexplained)
    shown = {(line.log, line.number) for hit in hits for line in hit.lines}
    trouble = tuple(_trouble(seen, subsystems, shown, beside=bool(diagnosis.roots)))
    well, unseen = _health(seen)
    ending: Ending = "nothing wrong seen"
    if diagnosis.roots:
        ending = "pit"
    elif trouble or diagnosis.unexplained:
        ending = "trouble"
    elif not well and not diagnosis.questions and all(each.kinds == ("text",) for each in seen):
        ending = "nothing recognized"
    return Answer(
        ending,
        diagnosis,
        trouble,
        well,
        unseen,
        tuple(_notes(seen)),
        _stacks(seen),
        _card(diagnosis, seen),
        _group(seen),
    )


def _trouble(
    seen: Sequence[Seen], known: Subsystems, taken: set[tuple[str, int]], *, beside: bool
) -> Iterator[Trouble]:
    """Complaints, each line once; not those that are shown already. `beside` a pit, only those that always are."""
    for subsystem in known.subsystem:
        if beside and not subsystem.always:
            continue
        lines: list[Quote] = []
        for each in seen:
            places = sorted(
                (match.start(), match.end())
                for pattern in subsystem.line
                for match in compiled(pattern).finditer(each.screen)
                if b"\n" not in match[0]
            )
            passed = max(
                (match.start() for pattern in subsystem.resolved for match in compiled(pattern).finditer(each.screen)),
                default=-1,
            )
            for place, end in places:
                # Before it is quoted, which counts the lines up to it.
                raw = each.screen[each.screen.rfind(b"\n", 0, place) + 1 : each.screen.find(b"\n", end)]
                if place < passed or any(compiled(pattern).search(raw) for pattern in known.harmless):
                    continue
                line = quote(each, place, end)
                if (line.log, line.number) not in taken and len(lines) < QUOTED:
                    taken.add((line.log, line.number))
                    lines.append(line)
                if len(lines) == QUOTED:
                    break
        if lines:
            yield Trouble(subsystem.name, subsystem.means, subsystem.next, tuple(lines))


# What a kernel that boots prints: 4.12 to 6.17, arch/x86 and init/main.c.
_UEFI = re.compile(rb"^.*efi: EFI v([\d.]+)(?: by (.+))?", re.MULTILINE)
_CPUS = re.compile(rb"Brought up (\d+) nodes?, (\d+) CPUs?|Total of (\d+) processors activated")
_STARTED = re.compile(rb"Run (\S+) as init process|Freeing unused kernel|systemd\[1\]: |initd: ")
_ENDED = re.compile(rb"reboot: Power down|reboot: System halted|ACPI: PM: Preparing to enter system sleep state S5")
_PLACED = re.compile(rb"^.*pci \S+: BAR \d+[ :].*assigned", re.MULTILINE)
_IOMMU = re.compile(rb"Adding to iommu group")
_NVIDIA = re.compile(rb"NVRM: loading NVIDIA UNIX .*?(\d{3}\.\d+[\d.]*)")
_DRM = re.compile(rb"\[drm\] Initialized (\w+) ")
_VERSION = re.compile(rb"Linux version (\S+)")


def _health(seen: Sequence[Seen]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the logs prove, and what they do not show."""
    well: list[str] = []
    unseen: list[str] = []
    for each in seen:
        if not {"guest console", "host kernel", "kernel"} & set(each.kinds):
            continue
        where = f"{each.name}: " if len(seen) > 1 else ""
        screen = each.screen
        if version := _VERSION.search(screen):
            well.append(f"{where}Linux {version[1].decode(errors='replace')} starts")
        if uefi := _UEFI.search(screen):
            well.append(
                f"{where}it knows its UEFI firmware"
                + (f": {uefi[2].decode(errors='replace').strip()}" if uefi[2] else "")
            )
        if cpus := _CPUS.search(screen):
            count = int(cpus[2] or cpus[3])
            well.append(f"{where}{count} {'CPU is' if count == 1 else 'CPUs are'} up")
        elif version:
            unseen.append(f"{where}how many CPUs came up")
        if placed := len(_PLACED.findall(screen)):
            well.append(f"{where}{placed} BAR{'s' * (placed > 1)} got an address")
        if _IOMMU.search(screen):
            well.append(f"{where}an IOMMU is on")
        if nvidia := _NVIDIA.search(screen):
            well.append(f"{where}NVIDIA's driver {nvidia[1].decode()} loads")
        drivers = dict.fromkeys(match[1].decode(errors="replace") for match in _DRM.finditer(screen))
        well += [f"{where}the graphics driver {driver} has its card" for driver in drivers]
        if _STARTED.search(screen):
            well.append(f"{where}the kernel is up and PID 1 starts")
        elif version:
            unseen.append(f"{where}the end of the kernel's boot: the log ends before PID 1")
        if _ENDED.search(screen):
            well.append(f"{where}it powers off")
    return tuple(well), tuple(unseen)


def _notes(seen: Sequence[Seen]) -> Iterator[str]:
    """Where logs are not of one boot."""
    boots = {}
    for each in seen:
        banner = BANNER.search(each.screen)
        if banner and "host kernel" not in each.kinds:
            boots[each.name] = (_VERSION.search(banner[0]) or [b"", b""])[1].decode(errors="replace"), each.options
    if len(boots) > 1 and len(set(boots.values())) > 1:
        named = ", ".join(f"{name} (Linux {version})" for name, (version, _) in boots.items())
        yield f"these are consoles of different boots: {named}; what is found in one may not hold for the other"
    elif len(boots) > 1:
        ups = {name: (_CPUS.search(each.screen) or [b""])[0] for name in boots for each in seen if each.name == name}
        if len(set(ups.values())) > 1:
            yield f"{' and '.join(boots)} contradict each other: they are not the same boot"


def _stacks(seen: Sequence[Seen]) -> tuple[Stack, ...]:
    found = dict.fromkeys(KINDS[kind] for each in seen for kind in each.kinds if kind in KINDS)
    own: tuple[Stack, ...] = ("minguest",) if any(MINGUEST.search(each.screen) for each in seen) else ()
    return (*found, *own)


def _card(diagnosis: Diagnosis, seen: Sequence[Seen]) -> str:
    """The card on the host: the one that the lines of a pit name, else the only one that lines of the host name."""
    for hit in (*diagnosis.roots, *diagnosis.unexplained):
        for line in hit.lines:
            raw = line.text.encode()
            if HOSTS.search(raw) and (match := BDF.search(raw)):
                return _whole(match[1].decode())
    found = []
    for each in seen:
        found += ["{}:{}:{}.{}".format(*map(bytes.decode, part)) for part in HOSTDEV.findall(each.screen)]
        for raw in each.screen.split(b"\n") if HOSTS.search(each.screen) else ():
            if HOSTS.search(raw):
                found += [match[1].decode() for match in BDF.finditer(raw)]
    whole = set(map(_whole, found))
    # The functions of one card are one card.
    return min(whole) if len({card[:-2] for card in whole}) == 1 else ""


def _whole(card: str) -> str:
    """With its PCI domain."""
    return card if card.count(":") == 2 else f"0000:{card}"


def _group(seen: Sequence[Seen]) -> str:
    found = {(match[1] or match[2]).decode() for each in seen for match in IN_GROUP.finditer(each.screen)}
    return min(found) if len(found) == 1 else ""


def describe(found: Answer, *, verbose: bool = False) -> str:
    """An answer for a person. `verbose`: with what was ruled out."""
    diagnosis = found.diagnosis
    text = [f"note: {each}" for each in found.notes]
    if found.ending == "trouble":
        text.append("no known pit, but this looks like trouble:")
    text += _findings(diagnosis, found.stacks, found.card, found.group, alone=found.ending == "trouble")
    for trouble in found.trouble:
        head = "also: " if diagnosis.roots else ""
        text += [f"{head}{trouble.subsystem}: {trouble.means}", *(_line(str(line)) for line in trouble.lines)]
        text.append(f"  next: {_own(trouble.next, found.card, found.group)}")
    if found.ending == "nothing wrong seen":
        if found.well:
            text.append("nothing wrong is seen, as far as this goes:")
        else:
            text.append("no known pit, and these lines show no trouble; they do not show that anything works either")
        text += [f"  {each}" for each in found.well]
        text += [f"  not shown: {each}" for each in found.unseen]
    if found.ending == "nothing recognized":
        text.append("no known pit, and no line of a guest, of QEMU or of a host's kernel: this says nothing of a boot")
        text.append("  next: pass the guest's console (-serial file:LOG), QEMU's messages, or the host's dmesg")
    for hit in diagnosis.questions:
        text += [f"to ask: {_own(hit.pit.ask, found.card, found.group)}", *_evidence(hit)]
    if verbose:
        text += [printable(f"not {name}: {why}"[:WIDTH]) for name, why in diagnosis.ruled_out]
    return "\n".join(text)


def findings(diagnosis: Diagnosis, stacks: Sequence[Stack] = ("minguest",)) -> str:
    """The pits of a boot for a person: each root with its lines, cause and fix, and what follows."""
    text = [] if diagnosis.roots else ["no known pit"]
    return "\n".join([*text, *_findings(diagnosis, stacks)])


def _findings(
    diagnosis: Diagnosis, stacks: Sequence[Stack], card: str = "", group: str = "", *, alone: bool = False
) -> list[str]:
    text: list[str] = []
    for hit in diagnosis.roots:
        text += [f"{hit.id}: {hit.pit.title}", *_evidence(hit)]
        text += [f"  cause: {hit.pit.cause}", f"  fix:   {_own(hit.pit.fix, card, group)}"]
        text += [
            f"  fix with {NAMES[each]}: {_own(hit.pit.stack[each], card, group)}"
            for each in stacks
            if each in hit.pit.stack
        ]
    shown = {line for hit in diagnosis.roots for line in hit.lines}
    for hit in diagnosis.follows:
        text += [f"follows from {', '.join(hit.follows)}: {hit.pit.title}"]
        text += _evidence(msgspec.structs.replace(hit, lines=tuple(line for line in hit.lines if line not in shown)))
        shown |= set(hit.lines)
    for hit in diagnosis.unexplained:
        head = "seen" if alone else "seen, and no known pit causes it"
        text += [f"{head}: {hit.pit.title}", *_evidence(hit)]
        text += [f"  look at: {_own(hit.pit.look, card, group)}"] if hit.pit.look else []
    return text


def _own(advice: str, card: str, group: str) -> str:
    """Advice for the reader's own card; where that is not known, with a word in its place, not another's address."""
    short = EXAMPLE.partition(":")[2]
    named = re.sub(
        rf"(?<![\w:]){short}", card.partition(":")[2] or "ADDRESS", advice.replace(EXAMPLE, card or "ADDRESS")
    )
    return re.sub(rf"\b{GROUP}\b", group or GROUP, named)


def _evidence(hit: Found) -> list[str]:
    return [_line(str(line)) for line in hit.lines] + [_line(each) for each in hit.proof]


def _line(text: str) -> str:
    return printable(f"  | {text}"[: 2 * WIDTH])
