# SPDX-License-Identifier: Apache-2.0
"""Which workers get work. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from minguest.scale.orders import Facts, Made
from minguest.util import units
from minguest.util.errors import UserError

# What QEMU and a compiler take beside the guest's memory, in bytes.
BESIDE = 512 << 20


class Chosen(msgspec.Struct, frozen=True):
    """The workers that get work, and why others do not."""

    made: Made
    workers: Mapping[str, Facts]
    """By address."""
    refused: tuple[str, ...]
    """A line for each."""


def choose(found: Sequence[Facts], code: str, memory: int, made: Made | None = None, compiler: str = "") -> Chosen:
    """Those with this minguest and enough memory for a guest; of these the largest group that makes the same, or that
    of `made`. `compiler`: the one that they must have, if kernels are built. UserError if there is none."""
    refused = []
    able: list[Facts] = []
    on_host = Counter(each.host for each in found)
    for each in found:
        if each.code != code:
            refused.append(f"{each.name}: has another minguest ({each.code[:12]}, not {code[:12]}): it gets no cell")
        elif each.memory < (wanted := (memory + BESIDE) * on_host[each.host]):
            many = f"for {on_host[each.host]} workers " * (on_host[each.host] > 1)
            refused.append(
                f"{each.name}: {units.whole(each.memory >> 20 << 20)} of memory are available, "
                f"{many}{units.whole(wanted)} are needed: it gets no cell"
            )
        elif each.made.qemu == "none":
            refused.append(f"{each.name}: has no QEMU: it gets no cell")
        elif compiler and each.made.compiler != compiler:
            refused.append(f"{each.name}: has {each.made.compiler}, the bundle is of {compiler}: it gets no cell")
        else:
            able.append(each)
    groups = Counter(each.made for each in able)
    if made is None and groups:
        made = max(groups, key=lambda group: (groups[group], group))
    if made is None or made not in groups:
        said = "".join(f"\n  {line}" for line in refused)
        raise UserError(
            f"no worker can be used{said}" if refused else "the scheduler has no worker that answers",
            "start workers with this checkout's minguest, on machines with QEMU: docs/scale.md",
        )
    refused += [
        f"{each.name}: makes with {each.made}, most with {made}: results of different tools are not mixed, so it gets "
        "no cell"
        for each in able
        if each.made != made
    ]
    return Chosen(made, {each.address: each for each in able if each.made == made}, tuple(refused))
