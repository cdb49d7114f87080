# SPDX-License-Identifier: Apache-2.0
"""Why a card does not have the driver that it must have, from what initd said of its modules. Pure."""

import re
from collections.abc import Mapping, Sequence

from minguest.vm.report import Module

# Of a module's messages, how many are in the verdict: an oops has many.
SAID = 4
# How initd says that a module was left out because of another (initd/modules.c).
BECAUSE = re.compile(r"initd: not tried, because it needs (\w+)")


def why_not(wanted: str, bound: str | None, modules: Sequence[Module]) -> str:
    """Empty if the driver that is bound is the one that is wanted; else what is bound, and what the modules said: those
    that were not loaded, and the driver's own, which may have refused the card."""
    if bound == wanted:
        return ""
    own = wanted.replace("-", "_")
    said = [_said(module) for module in modules if module.result != "loaded" or module.name == own]
    if not any(module.name == own for module in modules):
        said.append(f"no module {own} was requested, by initd.modules= or by a device's MODALIAS")
    return "; ".join([f"{bound} is bound" if bound else "no driver is bound", *said])


def of_disk(wanted: Sequence[str], modules: Sequence[Module], *, passed: bool) -> tuple[str, str]:
    """What became of modules that initd must load in any case, and why that is wrong; empty if it is right.

    A driver of PCI devices ends its loading with ENODEV if none of them is its own. That is right where no card of the
    host is `passed` to the guest.
    """
    found = {module.name: module for module in modules}
    names = [name.replace("-", "_") for name in wanted]
    if all(name in found and found[name].result == "loaded" for name in names):
        return "loaded", ""
    if not passed and all(_loaded_but_for_a_card(name, found) for name in names):
        return "no card, ENODEV", ""
    missing = [f"module {name}: initd says nothing of it" for name in names if name not in found]
    return "failed", "; ".join([*missing, *(_said(each) for each in modules if each.result != "loaded")])


def _loaded_but_for_a_card(name: str, modules: Mapping[str, Module]) -> bool:
    """Whether a module is loaded, or was not because of ENODEV alone: its own, or that of one that it needs."""
    seen: set[str] = set()
    wanted, no_card = [name], False
    while wanted:
        module = modules.get(wanted.pop())
        if module is None:
            return False
        if module.name in seen or module.result == "loaded":
            continue
        seen.add(module.name)
        because = [match[1] for line in module.messages if (match := BECAUSE.fullmatch(line))]
        if module.result != "failed" or not (because or module.errno == "ENODEV"):
            return False
        no_card |= module.errno == "ENODEV"
        wanted += because
    # depmod's lists may say that modules need each other: no card would help them.
    return no_card or name not in seen


def _said(module: Module) -> str:
    """A module, its result, and what the kernel printed."""
    detail = module.errno or (f"signal {module.signal}" if module.signal else "")
    if module.result in ("timeout", "absent"):
        detail = ""
    result = f"module {module.name}: {module.result}" + f", {detail}" * bool(detail)
    said = module.messages[:SAID]
    return result + f": {' | '.join(said)}" * bool(said)
