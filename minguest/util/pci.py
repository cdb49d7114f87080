# SPDX-License-Identifier: Apache-2.0
"""PCI functions by their addresses, and where sysfs has them. Standard library alone: host.vfio needs it where nothing
but python3 is."""

import re
from pathlib import Path

from minguest.util.errors import UserError

# Domain, bus, slot and function, as lspci -D prints them; lspci alone leaves the domain out.
ADDRESS = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.IGNORECASE)
# Below /sys: a folder a function.
DEVICES = "bus/pci/devices"


def is_address(word: str) -> bool:
    return ADDRESS.fullmatch(word.strip()) is not None


def address(word: str, where: str = "gpu") -> str:
    """An address in full and as sysfs writes it; UserError for what is none."""
    match = ADDRESS.fullmatch(word.strip())
    if not match:
        raise UserError(
            f"{where} {word}: not a PCI address", "write it as lspci -D prints it, for example 0000:01:00.0"
        )
    return f"{int(match[1] or '0', 16):04x}:{match[2]}:{match[3]}.{match[4]}".lower()


def parts(full: str) -> dict[str, str]:
    """`domain`, `bus`, `slot` and `function` of an address in full, in hex digits."""
    return dict(zip(("domain", "bus", "slot", "function"), re.split("[:.]", full), strict=True))


def function(sysfs: Path, full: str) -> Path:
    """What `sysfs`, /sys, has of a function, by its address in full; it may not be there."""
    return sysfs / DEVICES / full


def driver(place: Path) -> str | None:
    """The driver of a function, by its folder in sysfs."""
    try:
        return (place / "driver").readlink().name
    except OSError:
        return None
