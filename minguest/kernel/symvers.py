# SPDX-License-Identifier: Apache-2.0
"""Module.symvers: what the kernel and its modules export."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from minguest.util.errors import UserError

VMLINUX = "vmlinux"


class Export(msgspec.Struct, frozen=True):
    """A symbol that modules can use."""

    crc: int
    """Of its type, with CONFIG_MODVERSIONS; else 0."""
    module: str
    """`vmlinux`, or the path of the module that has it, without .ko."""
    gpl: bool
    """Only for modules whose licence is compatible with the GPL."""
    namespace: str
    """A module has to import it; empty: none."""


def read(path: Path) -> dict[str, Export]:
    """The exports by name. A line (Documentation/kbuild/modules.rst): CRC, symbol, module, kind and, since 5.4, the
    namespace, separated by tabs. UserError names a line that is not so."""
    found: dict[str, Export] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split("\t")
        try:
            crc, name, module, kind = fields[:4]
            found[name] = Export(int(crc, 16), module, kind.startswith("EXPORT_SYMBOL_GPL"), "".join(fields[4:5]))
        except ValueError:
            raise UserError(f"{path}:{number}: not a line of Module.symvers: {line[:100]!r}") from None
    return found


def of_modules(exports: Mapping[str, Export]) -> dict[str, Export]:
    """Those of modules alone, not of the kernel itself."""
    return {symbol: each for symbol, each in exports.items() if each.module != VMLINUX}
