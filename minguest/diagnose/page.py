# SPDX-License-Identifier: Apache-2.0
"""docs/pits.md, written from the pits. Pure."""

from collections.abc import Iterable, Mapping

from minguest.diagnose.catalogue import Injection, Layer, Pit, Symptom, below
from minguest.kernel import contract, kconfig

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


def page(pits: Mapping[str, Pit]) -> str:
    """docs/pits.md: for someone whose guest has just failed, symptoms first."""
    text = [PAGE + "| what you see | what it may be |", "| --- | --- |"]
    for effect, pit in pits.items():
        if pit.layer == "effect":
            roots = [name for name, other in pits.items() if other.layer != "effect" and effect in below(pits, name)]
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
