# SPDX-License-Identifier: Apache-2.0
"""Why a card does not have the driver that it must have, from what initd said of its modules. Pure."""

from collections.abc import Sequence

from minguest.vm.report import Module

# Of a module's messages, how many are in the verdict: an oops has many.
SAID = 4


def why_not(wanted: str, bound: str | None, modules: Sequence[Module]) -> str:
    """Empty if the driver that is bound is the one that is wanted; else what is bound, and what the modules said: those
    that were not loaded, and the driver's own, which may have refused the card."""
    if bound == wanted:
        return ""
    own = wanted.replace("-", "_")
    told = [_told(module) for module in modules if module.result != "loaded" or module.name == own]
    if not any(module.name == own for module in modules):
        told.append(f"no module {own} was asked for, by initd.modules= or by a device's MODALIAS")
    return "; ".join([f"{bound} is bound" if bound else "no driver is bound", *told])


def _told(module: Module) -> str:
    """A module, its result, and what the kernel printed."""
    detail = module.errno or (f"signal {module.signal}" if module.signal else "")
    if module.result in ("timeout", "absent"):
        detail = ""
    result = f"module {module.name}: {module.result}" + f", {detail}" * bool(detail)
    said = module.messages[:SAID]
    return result + f": {' | '.join(said)}" * bool(said)
