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
from minguest.diagnose.catalogue import NAMES, Stack, compiled
from minguest.diagnose.matching import BANNER, WIDTH, Diagnosis, Found, Quote, Seen, quote
from minguest.util.errors import UserError, printable

# The address that stands for the reader's card in pits and subsystems.
EXAMPLE = "0000:01:00.0"
# The card in what QEMU, libvirt and the host's kernel say; a guest has addresses of its own.
CARD = re.compile(
    rb"(?:vfio-pci,host=|\bvfio-pci |\bvfio |[dD]evice '?)((?:[0-9a-f]{4}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7])\b"
)
# And in libvirt's XML of a domain, where it is the host's.
HOSTDEV = re.compile(
    rb"""<source>\s*<address domain=['"]0x([0-9a-f]{4})['"] bus=['"]0x([0-9a-f]{2})['"] """
    rb"""slot=['"]0x([0-9a-f]{2})['"] function=['"]0x([0-7])['"]/>"""
)
# Lines that are quoted for one subsystem.
QUOTED = 3
STACKS: Mapping[Stack, re.Pattern[bytes]] = {"minguest": re.compile(rb"^initd: ", re.MULTILINE)}
Ending = Literal["pit", "trouble", "nothing wrong seen", "nothing recognized"]


class Subsystem(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who complains in a log."""

    name: str
    line: tuple[str, ...]
    """Patterns; a line that has one of them is a complaint."""
    means: str
    next: str
    """The next command, or the next thing to look at."""


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
    shown = {(line.log, line.number) for hit in diagnosis.unexplained for line in hit.lines}
    trouble = () if diagnosis.roots else tuple(_trouble(seen, subsystems, shown))
    well, unseen = _health(seen)
    ending: Ending = "nothing wrong seen"
    if diagnosis.roots:
        ending = "pit"
    elif trouble or diagnosis.unexplained:
        ending = "trouble"
    elif not well and not diagnosis.questions and all(each.kinds == ("text",) for each in seen):
        ending = "nothing recognized"
    return Answer(ending, diagnosis, trouble, well, unseen, tuple(_notes(seen)), _stacks(seen), _card(seen))


def _trouble(seen: Sequence[Seen], known: Subsystems, taken: set[tuple[str, int]]) -> Iterator[Trouble]:
    """Complaints, each line once; not those that are shown already."""
    for subsystem in known.subsystem:
        lines: list[Quote] = []
        for each in seen:
            places = sorted(
                (match.start(), match.end())
                for pattern in subsystem.line
                for match in compiled(pattern).finditer(each.screen)
                if b"\n" not in match[0]
            )
            for place, end in places:
                line = quote(each, place, end)
                if any(compiled(pattern).search(line.text.encode()) for pattern in known.harmless):
                    continue
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
    kinds = {kind for each in seen for kind in each.kinds}
    found: list[Stack] = []
    if kinds & {"libvirt", "libvirt XML"}:
        found.append("libvirt")
    if "Proxmox" in kinds:
        found.append("proxmox")
    if "Kata" in kinds:
        found.append("kata")
    if any(re2.search(r"(?i)kubevirt|kubelet|virt-launcher|SyncVMI", each.screen) for each in seen):
        found.append("kubernetes")
    if any(STACKS["minguest"].search(each.screen) for each in seen):
        found.append("minguest")
    return tuple(found)


def _card(seen: Sequence[Seen]) -> str:
    cards = {match[1].decode() for each in seen for match in CARD.finditer(each.screen)}
    for each in seen:
        cards |= {"{}:{}:{}.{}".format(*map(bytes.decode, part)) for part in HOSTDEV.findall(each.screen)}
    whole = {card if card.count(":") == 2 else f"0000:{card}" for card in cards}
    # The functions of one card are one card.
    return min(whole) if len({card[:-2] for card in whole}) == 1 else ""


def describe(found: Answer, *, verbose: bool = False) -> str:
    """An answer for a person. `verbose`: with what was ruled out."""
    diagnosis = found.diagnosis
    text = [f"note: {each}" for each in found.notes]
    if found.ending == "trouble":
        text.append("no known pit, but this looks like trouble:")
    text += _findings(diagnosis, found.stacks, found.card, alone=found.ending == "trouble")
    for trouble in found.trouble:
        text += [f"{trouble.subsystem}: {trouble.means}", *(_line(str(line)) for line in trouble.lines)]
        text.append(f"  next: {_own(trouble.next, found.card)}")
    if found.ending == "nothing wrong seen":
        text.append("nothing wrong is seen, as far as this goes:")
        text += [f"  {each}" for each in found.well or ("nothing is shown to work either",)]
        text += [f"  not shown: {each}" for each in found.unseen]
    if found.ending == "nothing recognized":
        text.append("no known pit, and no line of a guest, of QEMU or of a host's kernel: this says nothing of a boot")
        text.append("  next: pass the guest's console (-serial file:LOG), QEMU's messages, or the host's dmesg")
    for hit in diagnosis.questions:
        text += [f"to ask: {_own(hit.pit.ask, found.card)}", *_evidence(hit)]
    if verbose:
        text += [printable(f"not {name}: {why}"[:WIDTH]) for name, why in diagnosis.ruled_out]
    return "\n".join(text)


def findings(diagnosis: Diagnosis, stacks: Sequence[Stack] = ("minguest",)) -> str:
    """The pits of a boot for a person: each root with its lines, cause and fix, and what follows."""
    text = [] if diagnosis.roots else ["no known pit"]
    return "\n".join([*text, *_findings(diagnosis, stacks)])


def _findings(diagnosis: Diagnosis, stacks: Sequence[Stack], card: str = "", *, alone: bool = False) -> list[str]:
    text: list[str] = []
    for hit in diagnosis.roots:
        text += [f"{hit.id}: {hit.pit.title}", *_evidence(hit)]
        text += [f"  cause: {hit.pit.cause}", f"  fix:   {_own(hit.pit.fix, card)}"]
        text += [
            f"  fix with {NAMES[each]}: {_own(hit.pit.stack[each], card)}" for each in stacks if each in hit.pit.stack
        ]
    for hit in diagnosis.follows:
        text += [f"follows from {', '.join(hit.follows)}: {hit.pit.title}", *_evidence(hit)]
    for hit in diagnosis.unexplained:
        head = "seen" if alone else "seen, and no known pit causes it"
        text += [f"{head}: {hit.pit.title}", *_evidence(hit)]
        text += [f"  look at: {_own(hit.pit.look, card)}"] if hit.pit.look else []
    return text


def _own(advice: str, card: str) -> str:
    """Advice for the reader's own card, with and without the PCI domain."""
    if not card:
        return advice
    return re.sub(rf"(?<![\w:]){EXAMPLE.partition(':')[2]}", card.partition(":")[2], advice.replace(EXAMPLE, card))


def _evidence(hit: Found) -> list[str]:
    return [_line(str(line)) for line in hit.lines] + [_line(each) for each in hit.proof]


def _line(text: str) -> str:
    return printable(f"  | {text}"[: 2 * WIDTH])
