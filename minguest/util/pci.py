# SPDX-License-Identifier: Apache-2.0
"""PCI functions by their addresses, and where sysfs has them. Uses the standard library alone: host.vfio must run on
hosts that have only python3."""

import re
from pathlib import Path

from minguest.util.errors import UserError

# Domain, bus, slot and function, as lspci -D prints them; plain lspci may omit the domain.
ADDRESS = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.IGNORECASE)
# Below /sys: one folder per function.
DEVICES = "bus/pci/devices"


def is_address(text: str) -> bool:
    return ADDRESS.fullmatch(text.strip()) is not None


def address(text: str, where: str = "--gpu") -> str:
    """The full address as sysfs writes it; UserError for what is not one."""
    match = ADDRESS.fullmatch(text.strip())
    if not match:
        raise UserError(
            f"{where} {text}: not a PCI address", "write it as lspci -D prints it, for example 0000:01:00.0"
        )
    return f"{int(match[1] or '0', 16):04x}:{match[2]}:{match[3]}.{match[4]}".lower()


def parts(full: str) -> dict[str, str]:
    """`domain`, `bus`, `slot` and `function` of a full address, in hex digits."""
    return dict(zip(("domain", "bus", "slot", "function"), re.split("[:.]", full), strict=True))


def function(sysfs: Path, full: str) -> Path:
    """The folder of a function in `sysfs` (/sys), by its full address; it may not exist."""
    return sysfs / DEVICES / full


def driver(place: Path) -> str | None:
    """The driver bound to a function, by its folder in sysfs."""
    try:
        return (place / "driver").readlink().name
    except OSError:
        return None
