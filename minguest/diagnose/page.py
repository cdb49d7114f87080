# SPDX-License-Identifier: Apache-2.0
"""docs/pits.md, written from the pits. Pure."""

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import re2

from minguest.diagnose.catalogue import NAMES, Injection, Layer, Pit, Symptom, below, gists
from minguest.kernel import contract, kconfig

LAYERS: Mapping[Layer, str] = {
    "config": "The kernel's config",
    "cmdline": "The kernel's command line",
    "firmware": "The firmware",
    "launch": "The launch",
    "initrd": "The initrd",
    "host": "The host",
    "driver": "The driver in the guest",
}
# What a launch has for which a row of the contract holds: the keys of contract.needs.
WHEN: Mapping[str, str] = {
    "always": "",
    "smp": "more than one CPU",
    "cpu-hotplug": "CPUs to plug in",
    "x2apic": "more than 255 CPUs",
    "gpu": "a GPU",
    "q35": "machine q35",
    "numa": "more than one NUMA node",
    "memory-hotplug": "memory to plug in",
    "disk": "a disk",
    **{f"root-{name}": f"a root on {name}" for name in contract.FILESYSTEMS},
}
# What of a text is shown as code: an option with its value, an option of the kernel's config, a file of this project.
CODE = re.compile(r'(?:(?<!\S)-[a-z_]+ )?[^\s()"]*(?:=|CONFIG_|configs/)[^\s()"]*(?<![.,;:])')
# Alternatives of one pattern that are shown as what one sees.
SHOWN = 2
PAGE = """\
# Pits: when a guest fails

A pit is a known way to fail, with its symptoms, cause, fix, and how to reproduce it. `minguest diagnose LOG…` finds
yours in the logs of a guest's console, of QEMU, of libvirt and of the host's kernel. `doit pits-page` generates this
page from `configs/pits/`.

| what you see | pit |
| --- | --- |
| one CPU under OVMF, `A valid RSDP was not found` | [efi-off](#efi-off): the kernel lacks `CONFIG_EFI` |
| `group N is not viable` | [group-not-viable](#group-not-viable) |
| `failed to open /dev/vfio/N` | [not-bound](#not-bound), [vfio-denied](#vfio-denied), [group-busy](#group-busy) |
| `no iommu_group found`, `host doesn't support passthrough` | [iommu-off](#iommu-off) |
| `Failed to set iommu for container` | [vfio-no-remapping](#vfio-no-remapping), [rmrr](#rmrr) |
| `vfio_dma_map(…) = -12`; `= -22` | [memlock](#memlock); [bar-above-iommu](#bar-above-iommu), \
[ram-not-mappable](#ram-not-mappable) |
| `BAR n: can't reserve`, `Failed to mmap … BAR n` | [host-framebuffer](#host-framebuffer) |
| `NVRM: BAR0 is 0M @ 0x0` | [bar-no-room](#bar-no-room) |
| `not ready …ms after FLR`, D3cold, header type 127 | [card-lost](#card-lost) |
| `RmInitAdapter failed` | the driver could not start the card: read what is logged before it. Often \
[card-lost](#card-lost), [gpu-power-cable](#gpu-power-cable), [card-firmware-missing](#card-firmware-missing), \
[bar-no-room](#bar-no-room), [card-without-interrupt](#card-without-interrupt) |

[All of it](#what-you-see) and [an index of lines](#index-of-console-lines) are below.

**My guest has one CPU under OVMF.**
1. Did the launch request more? `-smp 8`, and none of the CPUs is only for hotplug.
2. The console has `A valid RSDP was not found` and no line `efi: EFI v…`: the kernel was built without `CONFIG_EFI`
   ([efi-off](#efi-off)), so it did not find the ACPI tables. Set `CONFIG_EFI=y`.
3. The kernel's command line has [acpi=off](#acpi-off-cmdline), [nosmp or maxcpus=0](#smp-off-cmdline),
   [nr_cpus=](#cpu-limit-cmdline), [maxcpus=](#maxcpus-cmdline), [nolapic or disableapic](#lapic-off-cmdline). Remove
   it.
4. None of these: the kernel has no ACPI ([acpi-off](#acpi-off)) or no SMP ([smp-off](#smp-off)).

## What you see
"""
FIGURES = """\
Logs of the kinds that people post, reworded and without names, in `tests/data/public/`; a person wrote down the right
answer of each. *Incomplete*: a part of it. *Silent*: no pit. *Wrong*: another pit. *False alarm*: a pit in a log that
shows none. The patterns were written with these logs in sight, so the figures say that nothing was lost since, not how
often a new log is answered. For that, a reader who had not seen the patterns collected 191 other logs on 26 November
2026: of 132 that fail 105 were right, 4 incomplete, 22 silent and 1 wrong; of 59 healthy ones 10 raised an alarm. After
that, of 174 other spellings 150 were right, 12 incomplete, 11 silent and 1 wrong; of 22 healthy look-alikes 1 raised an
alarm. What they taught is in the table below."""


def page(pits: Mapping[str, Pit], figures: str = "") -> str:
    """docs/pits.md: for someone whose guest has just failed. Symptoms come first, patterns last.

    `figures`: how often diagnose is right, as cases.table says it.
    """
    text = [PAGE + "| what you see | what it may be |", "| --- | --- |"]
    for effect, pit in pits.items():
        if pit.layer == "effect":
            roots = [name for name, other in pits.items() if other.layer != "effect" and effect in below(pits, name)]
            advice = _code(pit.look or pit.ask)
            text.append(f"| {pit.title} | {'<br>'.join(filter(None, [_linked(roots), advice]))} |")
    for layer, heading in LAYERS.items():
        of_layer = {name: pit for name, pit in pits.items() if pit.layer == layer}
        if of_layer:
            text += ["", f"## {heading}"]
        for name, pit in of_layer.items():
            text += ["", f"### {name}", f"**{_code(sentence(pit))}.**", "", *_entry(pits, pit)]
    text += ["", *_index(pits)]
    if figures:
        text += ["", "## How often it is right", FIGURES, "", figures]
    return "\n".join(text) + "\n"


def sentence(pit: Pit) -> str:
    """The title with a capital letter; one that begins with a parameter, an option or a file name is kept as it is."""
    first = pit.title.split()[0]
    parameters = [pattern for symptom in pit.symptom for pattern in symptom.cmdline]
    if not re.fullmatch(r"[A-Za-z']+,?", first) or any(re2.fullmatch(pattern, first) for pattern in parameters):
        return pit.title
    return pit.title[0].upper() + pit.title[1:]


def _index(pits: Mapping[str, Pit]) -> list[str]:
    """Which pit a line names; lines that name one only together are one row."""
    known: dict[str, list[str]] = {}
    for name, pit in pits.items():
        for symptom in pit.symptom if pit.layer != "effect" else ():
            for lines in itertools.product(*map(gists, symptom.console)):
                known.setdefault(" and ".join(f"`{line}`" for line in lines), []).append(name)
    known.pop("", None)  # of the symptoms without a console
    rows = [f"| {lines} | {_linked(dict.fromkeys(names))} |" for lines, names in sorted(known.items())]
    return [
        "## Index of console lines",
        "N is a number; … is anything.",
        "",
        "| console | pit |",
        "| --- | --- |",
        *rows,
    ]


def _entry(pits: Mapping[str, Pit], pit: Pit) -> list[str]:
    effects = [pits[other].title for other in pit.leads_to if pits[other].layer == "effect"]
    others = _linked(other for other in pit.leads_to if pits[other].layer != "effect")
    patterns = [_symptom(symptom) for symptom in pit.symptom] + [_required(rule) for rule in pit.require]
    return [
        *_item("What you see", _seen(pit)),
        f"- **Cause:** {_code(pit.cause)}",
        f"- **Fix:** {_code(pit.fix)}.",
        *(f"- **Fix with {NAMES[tool]}:** {_code(text)}." for tool, text in pit.stack.items()),
        *_item("Leads to", filter(None, ["; ".join(effects), others and f"other pits: {others}"])),
        *_item("Links", (f"<{link}>" for link in pit.links)),
        *_item("Printed by", [", ".join(pit.printed_by)] if pit.printed_by else []),
        *_item("Reproduced by", [_reproduced(each) for each in pit.inject if not each.cannot]),
        *_item("Not reproduced", [_code(each.cannot) for each in pit.inject if each.cannot]),
        *_item("Patterns" if pit.symptom else "Recognized by", patterns),
    ]


def _item(name: str, parts: Iterable[str]) -> list[str]:
    """One part on the same line, several below it, none not at all."""
    known = list(parts)
    if len(known) < 2:
        return [f"- **{name}:** {each}" for each in known]
    return [f"- **{name}:**", *(f"  - {each}" for each in known)]


def _seen(pit: Pit) -> list[str]:
    """What a person sees: what happens without an option, or the console's lines."""
    if len(pit.require) == 1:
        return [_code(pit.require[0].without)]
    if pit.require:
        return [f"Without `CONFIG_{rule.option}`: {_code(rule.without)}" for rule in pit.require]
    lines = (
        " and ".join(" or ".join(f"`{gist}`" for gist in gists(pattern)[:SHOWN]) for pattern in symptom.console)
        for symptom in pit.symptom
        if symptom.console
    )
    return list(dict.fromkeys(lines))


def _linked(names: Iterable[str]) -> str:
    return ", ".join(f"[{name}](#{name})" for name in names)


def _code(text: str) -> str:
    return CODE.sub(r"`\g<0>`", text)


def _symptom(symptom: Symptom) -> str:
    parts = [f"console {_patterns(symptom.console, ' and ')}"] if symptom.console else []
    parts += [f"the first in {symptom.times} lines or more"] if symptom.times > 1 else []
    parts += [f"not on the console {_patterns(symptom.missing, ' or ')}"] if symptom.missing else []
    parts += [f"not in the log {_patterns(symptom.absent, ' or ')}"] if symptom.absent else []
    parts += [f"not followed by {_patterns(symptom.resolved, ' or ')}"] if symptom.resolved else []
    parts += [f"command line {_patterns(symptom.cmdline, ' and ')}"] if symptom.cmdline else []
    parts += [f"not on the command line {_patterns(symptom.no_cmdline, ' or ')}"] if symptom.no_cmdline else []
    # Only doctor knows a command line before a boot.
    known_to = "doctor" if any(each.startswith("cmdline.") for each in symptom.facts) else "boot test"
    parts += [f"{known_to} {_patterns(symptom.facts, ' and ')}"] if symptom.facts else []
    parts += [f"unless {_patterns(symptom.unless, ' or ')}"] if symptom.unless else []
    return "; ".join(parts)


def _patterns(patterns: Iterable[str], between: str) -> str:
    return between.join(f"`{pattern}`" for pattern in patterns)


def _required(rule: contract.Rule) -> str:
    value = rule.value or "y"
    wanted = f"below {rule.at_least}" if rule.at_least is not None else f"not `{value}`"
    given = f", and `CONFIG_{rule.given}` is on" if rule.given else ""
    series = f", in series {rule.series}" if rule.series else ""
    when = f", and the launch has {WHEN[rule.when]}" if WHEN[rule.when] else ""
    return f"config `CONFIG_{rule.option}` is {wanted}{given}{when}{series}"


def _reproduced(injection: Injection) -> str:
    parts = [f"`CONFIG_{option}={kconfig.spell(value)}`" for option, value in injection.options.items()]
    parts += [f"`{option}` on the command line" for option in injection.cmdline]
    parts += [f"launch `{key} = {_toml(value)}`" for key, value in injection.launch.items()]
    parts += [f"hotplug up to `{key} = {_toml(value)}`" for key, value in injection.plug.items()]
    parts += [f"fault `{fault}`" for fault in injection.fault]
    parts += [f"host fault `{injection.host}`"] if injection.host else []
    series = f" ({', '.join(injection.series)})" if injection.series else ""
    return ", ".join(parts) + series


def _toml(value: Any) -> str:
    """A value as the pit's file has it."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
