# SPDX-License-Identifier: Apache-2.0
"""The pits: known ways for a guest to fail, one TOML file each in configs/pits/. Their shapes, and their reader.

A pit is recognized by symptoms: patterns on the console, options on the kernel's command line, facts of the launch, QMP
and initd's report; and by what it requires of the kernel's config, where that is known. The requirements of all pits
are the contract. Patterns are RE2's (https://github.com/google/re2/wiki/Syntax): no pattern takes longer than the text
is long.
"""

import difflib
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import re2

from minguest import settings
from minguest.diagnose.facts import condition
from minguest.kernel import contract
from minguest.util.errors import UserError

Layer = Literal["config", "cmdline", "firmware", "launch", "host", "initrd", "driver", "effect"]
Stack = Literal["qemu", "libvirt", "proxmox", "kata", "kubernetes", "minguest"]
# Names of tools that start guests, as their users write them.
NAMES: Mapping[Stack, str] = {
    "qemu": "QEMU", "libvirt": "libvirt", "proxmox": "Proxmox", "kata": "Kata", "kubernetes": "Kubernetes",
    "minguest": "minguest",
}  # fmt: skip


class Symptom(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way to recognize a pit: everything in it must hold."""

    console: tuple[str, ...] = ()
    """Patterns; each is found in some line, without printk's time."""
    times: int = 1
    """How many lines have the first pattern of `console`, at least."""
    missing: tuple[str, ...] = ()
    """Patterns that no line has. They count only where the console has the kernel's banner, is not silenced and reaches
    matching.BOOTED, or where the report is whole."""
    absent: tuple[str, ...] = ()
    """Patterns that no line of the log has, whether the log is whole or not."""
    resolved: tuple[str, ...] = ()
    """Patterns of a later line that shows that the trouble passed; {it} is what the group (?P<it>…) of `console`
    matched. A line of `console` that such a line follows does not count."""
    cmdline: tuple[str, ...] = ()
    """Patterns; each matches a whole option on the kernel's command line."""
    no_cmdline: tuple[str, ...] = ()
    """Patterns; none matches a whole option. The command line must be known."""
    facts: tuple[str, ...] = ()
    """Conditions (minguest/diagnose/facts.py) that hold."""
    unless: tuple[str, ...] = ()
    """Conditions of which none is known to hold."""


class Injection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to bring a pit about: the smallest change of a healthy guest, and the verdict that must follow."""

    name: str = ""
    """Distinguishes the injections of one pit."""
    series: tuple[str, ...] = ()
    """Only for these; empty: for every series."""
    options: Mapping[str, str | int | bool] = {}
    """Config options of a kernel that is built for it."""
    cmdline: tuple[str, ...] = ()
    """Options after those of the guest."""
    launch: Mapping[str, Any] = {}
    """Fields of the guest's launch that it changes."""
    plug: Mapping[str, int | str] = {}
    """`cpus` and `memory` after hotplug, which happens while the guest runs."""
    fault: tuple[str, ...] = ()
    """Keys of faults.FAULTS."""
    host: str = ""
    """A key of hostfaults.FAULTS: brought about in the rehearsal's host, and not in a guest."""
    result: tuple[Literal["failed", "lost", "not started", "started"], ...] = ("failed",)
    """The result may be any of these; `started` is for a host's fault, which a guest survives."""
    needs: str = ""
    """A key of inject.NEEDS. On a machine without it, this is NOT RUN."""
    blind: str | None = None
    """The pit that is named where the config is not known. Left out: this pit if it has a symptom, else none."""
    wrong: tuple[str, ...] = ()
    """All wrong rows in the verdict of a guest that failed; `pits` only where no other row is wrong."""
    cannot: str = ""
    """Why it cannot be brought about here. It is then NOT RUN."""


class Pit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """configs/pits/ID.toml."""

    title: str
    layer: Layer
    """Where the mistake is; `effect`: not a mistake, but what follows from one."""
    symptom: tuple[Symptom, ...] = ()
    """Any of them is enough."""
    require: tuple[contract.Rule, ...] = ()
    """What it requires of the kernel's config: one broken row is enough, where the config is known."""
    cause: str = ""
    fix: str = ""
    """The exact change; on QEMU's command line where the reader's own tool does not matter."""
    stack: Mapping[Stack, str] = {}
    """The same change for who starts guests with that tool."""
    look: str = ""
    """Of an effect: what to look at where no root is known."""
    ask: str = ""
    """Of an effect that may be as it should be: what to ask. Alone, it is no trouble."""
    printed_by: tuple[str, ...] = ()
    """Where the source has the lines: `QEMU hw/vfio/pci.c`, `Linux drivers/pci/pci.c`."""
    leads_to: tuple[str, ...] = ()
    """Pits and effects that follow from this one."""
    links: tuple[str, ...] = ()
    inject: tuple[Injection, ...] = ()


def load(folder: Path) -> dict[str, Pit]:
    """Read every pit by its id, the name of its file. UserError names file and field."""
    pits = {path.stem: settings.decode(path, Pit) for path in sorted(folder.glob("*.toml"))}
    if not pits:
        raise UserError(f"{folder}: no pits (*.toml) in this folder")
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
        if name in below(pits, name):
            raise UserError(f"{folder / name}.toml: leads_to comes back to itself, so there would be no root")
    return pits


def _verify(where: str, pit: Pit) -> None:
    if not (pit.symptom or pit.require):
        raise UserError(f"{where}: no [[symptom]] and no [[require]]: nothing could recognize it")
    if pit.layer != "effect" and not (pit.cause and pit.fix):
        raise UserError(f"{where}: cause or fix is missing", 'only a pit with layer = "effect" has none')
    if pit.layer != "effect" and not pit.inject:
        raise UserError(
            f"{where}: no [[inject]]: how is it brought about?",
            "if that is impossible: [[inject]] cannot = WHY",
        )
    if pit.layer != "effect" and (pit.look or pit.ask):
        raise UserError(f'{where}: look and ask are for layer = "effect"', "a pit has cause and fix")
    for rule in pit.require:
        contract.verify(rule, where)
    for symptom in pit.symptom:
        _verify_symptom(where, symptom)
    names = [injection.name for injection in pit.inject]
    if len(set(names)) != len(names):
        raise UserError(f"{where}: two [[inject]] have the same name", "give each its own name = …")


def _verify_symptom(where: str, symptom: Symptom) -> None:
    if not (symptom.console or symptom.cmdline or symptom.facts):
        raise UserError(f"{where}: an empty [[symptom]] would always match", "set console, cmdline or facts")
    if symptom.times < 1 or (symptom.times > 1 and not symptom.console):
        raise UserError(f"{where}: times = {symptom.times}: needs a console pattern and a number of 1 or more")
    if symptom.resolved and len(symptom.console) != 1:
        raise UserError(f"{where}: resolved needs one console pattern")
    patterns = (*symptom.console, *symptom.missing, *symptom.absent, *symptom.cmdline, *symptom.no_cmdline)
    for pattern in (*patterns, *(each.replace("{it}", "it") for each in symptom.resolved)):
        try:
            everywhere = compiled(pattern).search(b"")
        except re2.error as error:
            why = error.args[0].decode() if isinstance(error.args[0], bytes) else error
            raise UserError(f"{where}: pattern {pattern!r}: {why}", "patterns have the syntax of RE2") from error
        if everywhere:
            raise UserError(f"{where}: pattern {pattern!r} would always match")
    try:
        for text in (*symptom.facts, *symptom.unless):
            condition(text)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def rules(pits: Mapping[str, Pit]) -> tuple[contract.Rule, ...]:
    """The contract: what all pits require of a kernel's config."""
    return tuple(rule for pit in pits.values() for rule in pit.require)


def below(pits: Mapping[str, Pit], name: str) -> set[str]:
    """All that a pit leads to, directly or not."""
    found: set[str] = set()
    pending = list(pits[name].leads_to)
    while pending:
        each = pending.pop()
        if each not in found:
            found.add(each)
            pending += pits[each].leads_to
    return found


@functools.cache
def compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    return re2.compile(f"(?m){pattern}", options=options)


def gists(pattern: str) -> list[str]:
    """A pattern as a person reads it: `limit of \\d+ reached` is `limit of N reached`. A text for each alternative."""
    # Escaped punctuation stands for itself: meanwhile it is one of Unicode's private characters.
    text = re.sub(r"\\(\W)", lambda match: chr(0xE000 + ord(match[1])), pattern).replace(r"\b", "")
    text = re.sub(r"(?:(?:\[\d-\d\]|\\d)[+*]?)+", "N", text)
    text = re.sub(r"(?:\[[^]]*\]|\w)\?", "", text)
    text = re.sub(r"(?:(?:\[[^]]*\]|\\[wS]|\.)(?:[+*]|\{\d+\})?)+", "…", text)
    found, pending = [], [text]
    while pending:
        text = pending.pop(0)
        group = re.search(r"\((?:\?(?:\w*:|P<\w+>))?([^()]*)\)(\??)", text)
        if group:
            ways = [""] if group[2] else group[1].split("|")
            pending[:0] = [text[: group.start()] + way + text[group.end() :] for way in ways]
        else:
            found += text.split("|")
    plain = [re.sub("[\ue000-\ue07f]", lambda match: chr(ord(match[0]) - 0xE000), each).strip() for each in found]
    return list(dict.fromkeys(plain))
