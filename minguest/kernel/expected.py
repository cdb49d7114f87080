# SPDX-License-Identifier: Apache-2.0
"""How many objects a kernel's build will compile, for its progress: about, from what earlier builds compiled.

make cannot say: without its generated headers a dry run stops early. The number grows with the options that are on.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from minguest.paths import Store
from minguest.util import files

# Options that are on, and objects that were compiled: the default guest's, for the first build on a machine.
MEASURED = {"4.12": (462, 1406), "6.12": (676, 1330)}
# A line of kbuild about one object: `  CC      init/main.o`, or of a module `  CC [M]  drivers/gpu/drm/drm_file.o`.
OBJECT = re.compile(r"  [A-Z]+ .*\.o")


class Count(msgspec.Struct, frozen=True):
    """One build."""

    options: int
    """Options that are on."""
    objects: int
    """Objects that were compiled or assembled, from a cache or not."""


def objects(store: Store, series: str, config: Mapping[str, str]) -> int | None:
    """About how many objects `config` compiles, by the build of this series that is nearest; None: nothing is known."""
    counts = [*_read(store.objects_compiled).get(series, ())]
    if series in MEASURED:
        counts.append(Count(*MEASURED[series]))
    on = _on(config)
    if not counts or not on:
        return None
    nearest = min(counts, key=lambda count: abs(count.options - on))
    return round(nearest.objects * on / nearest.options)


def record(store: Store, series: str, config: Mapping[str, str], compiled: int) -> None:
    """Keep what a build compiled, for the next one of this series."""
    known = _read(store.objects_compiled)
    count = Count(_on(config), compiled)
    others = [each for each in known.get(series, ()) if each.options != count.options]
    # The last few will do: a fault matrix builds dozens.
    files.write(store.objects_compiled, msgspec.json.encode({**known, series: [*others, count][-20:]}))


def _on(config: Mapping[str, str]) -> int:
    return sum(value == "y" for value in config.values())


def _read(path: Path) -> dict[str, tuple[Count, ...]]:
    """What is kept; nothing where it is damaged, as it is only for show."""
    try:
        known = msgspec.json.decode(path.read_bytes(), type=dict[str, tuple[Count, ...]])
    except (OSError, ValueError):
        return {}
    return {series: tuple(each for each in counts if each.options > 0) for series, counts in known.items()}
