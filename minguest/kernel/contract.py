# SPDX-License-Identifier: Apache-2.0
"""The contract: what a final kernel config must hold for a launch. Its rows are the [[require]] of configs/pits/.

It is checked on the final .config, of any origin: fragments, the user's own file, another tree's defaults.
"""

import difflib
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import msgspec

from minguest.model import Filesystem, Launch
from minguest.util.errors import UserError

WIDTH = 100
FILESYSTEMS: tuple[str, ...] = get_args(Filesystem)
Scope = Literal["guest", "gpu", "minguest"]
"""`guest`: without it the guest does not come up whole, whoever starts it; `gpu`: without it the card does not work;
`minguest`: this project's own launch needs it, for its console, its initrd or its report."""


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One row of the contract."""

    option: str
    """Without CONFIG_."""
    fragment: str
    """The fragment in configs/kernel/ that should set it."""
    without: str
    """What happens at boot without it."""
    when: str = "always"
    """A key of `needs`."""
    value: str | None = None
    """The required value, as a .config spells it; None means `y`, or `at_least` decides."""
    at_least: int | str | None = None
    """A number, or the field of the launch that holds it."""
    given: str | None = None
    """The row applies only if the config has this option on."""
    series: str | None = None
    """The row applies only to this series."""
    scope: Scope | None = None
    """Who needs it; None: a GPU where `when` is about one, else every guest."""
    blocks: bool = True
    """Whether the guest or its card does not work without it; else it works with less."""
    pit: str = ""
    """The pit whose file has it; filled in when that file is read."""

    @property
    def needed_by(self) -> Scope:
        return self.scope or ("gpu" if self.when in ("gpu", "q35") else "guest")


@dataclass(frozen=True)
class Breach:
    """One row that a config does not meet."""

    option: str
    wanted: str
    found: str
    fragment: str
    without: str
    pit: str
    scope: Scope = "guest"
    blocks: bool = True

    def __str__(self) -> str:
        return f"CONFIG_{self.option} is {self.found}, wanted {self.wanted}"


def needs(launch: Launch) -> dict[str, bool]:
    """The possible values of a row's `when`, and whether each is true for a launch."""
    return {
        "always": True,
        "smp": launch.max_cpus > 1,
        "cpu-hotplug": launch.max_cpus > launch.cpus,
        # A local APIC's ID has eight bits, and 255 means all APICs.
        "x2apic": launch.max_cpus > 255,
        "gpu": bool(launch.gpus),
        "q35": launch.machine == "q35",
        "numa": len(launch.numa) > 1,
        "memory-hotplug": bool(launch.max_memory),
        "disk": bool(launch.disks),
        **{f"root-{name}": launch.root is not None and launch.root.filesystem == name for name in FILESYSTEMS},
    }


def verify(rule: Rule, where: str) -> None:
    """Check what a schema cannot; UserError names `where`, the row and the nearest known value."""
    where = f"{where}: {rule.option}"
    numbers = [name for name in Launch.__struct_fields__ if isinstance(getattr(Launch(), name), int)]
    _known(rule.when, list(needs(Launch())), f"{where}: when = {rule.when!r}")
    if isinstance(rule.at_least, str):
        _known(rule.at_least, numbers, f"{where}: at_least = {rule.at_least!r}")
    if rule.value is not None and rule.at_least is not None:
        raise UserError(f"{where}: value and at_least exclude each other", "remove one of them")
    for name in filter(None, (rule.option, rule.given)):
        if name.startswith("CONFIG_"):
            raise UserError(f"{where}: {name!r} begins with CONFIG_", "write it without CONFIG_")


def check(rules: Iterable[Rule], config: Mapping[str, str], launch: Launch, series: str) -> list[Breach]:
    """Every row that `config` (kconfig.parse_config) does not meet for this launch of this series."""
    true = needs(launch)
    breaches = []
    for rule in rules:
        given = rule.given is None or config.get(rule.given, "n") != "n"
        if not (true[rule.when] and given and rule.series in (None, series)):
            continue
        found = config.get(rule.option, "n")
        if rule.at_least is None:
            wanted = rule.value or "y"
            met = found == wanted
        else:
            least: int = getattr(launch, rule.at_least) if isinstance(rule.at_least, str) else rule.at_least
            wanted = f"at least {least}"
            met = found.isdecimal() and int(found) >= least
        if not met:
            breaches.append(
                Breach(rule.option, wanted, found, rule.fragment, rule.without, rule.pit, rule.needed_by, rule.blocks)
            )
    return breaches


def describe(breaches: Iterable[Breach]) -> str:
    """The message for the user; empty for no breach."""
    found = list(breaches)
    if not found:
        return ""
    option, wanted, value = (max(len(getattr(each, name)) for each in found) for name in ("option", "wanted", "found"))
    lines = [f"the kernel's config breaks the contract of this launch in {_places(len(found))}:"]
    for each in found:
        lines.append(
            f"  CONFIG_{each.option:{option}}  wanted {each.wanted:{wanted}}  found {each.found:{value}}"
            f"  fragment {each.fragment}, pit {each.pit}"
        )
        lines += textwrap.wrap(f"without it: {each.without}", WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _places(count: int) -> str:
    return "1 place" if count == 1 else f"{count} places"


def _known(name: str, known: list[str], where: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise UserError(f"{where} is not known", f"nearest: {near[0]}" if near else f"known: {', '.join(known)}")
