# SPDX-License-Identifier: Apache-2.0
"""QEMU's version and its display devices."""

import functools
import re

from minguest.util import run

QEMU = "qemu-system-x86_64"


def version() -> str:
    """QEMU's own version, such as `7.2.22 (Debian …)`."""
    _, text = run.run([QEMU, "--version"])
    return text.partition("\n")[0].removeprefix("QEMU emulator version ")


@functools.cache
def display_models(qemu: str = QEMU) -> list[str]:
    """PCI display devices that this QEMU can emulate, from its own help."""
    _, text = run.run([qemu, "-device", "help"])
    section = re.search(r"^Display devices:\n((?:.+\n?)*)", text, re.MULTILINE)
    return re.findall(r'^name "([^"]+)", bus PCI', section[1], re.MULTILINE) if section else []
