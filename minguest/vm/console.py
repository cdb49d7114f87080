# SPDX-License-Identifier: Apache-2.0
"""Reads a guest's console: plain lines from a serial port's output, and the lines that name trouble."""

import re

import msgspec

# CSI and single-character escapes, with which the firmware draws its screens (ECMA-48).
ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")
# Lines that name trouble, as 4.12 and 6.12 print them; each was seen in a real console.
TROUBLE = re.compile(
    r"A valid RSDP was not found|SMP disabled|SMP motherboard not detected|MADT or MP tables are not detected|"
    r"Kernel panic - not syncing|NR_CPUS/possible_cpus limit|no space for|failed to assign|"
    r"KVM internal error|initd: (?!\d).*:|Out of memory"
)


class Line(msgspec.Struct, frozen=True):
    """A line of the console, numbered from 1."""

    number: int
    text: str


def plain(raw: bytes) -> bytes:
    """The console without escapes and carriage returns."""
    return ESCAPES.sub(b"", raw).replace(b"\r", b"")


def lines(raw: bytes) -> list[Line]:
    """The console as text; empty lines stay, for the numbers."""
    text = plain(raw).decode("utf-8", "replace")
    return [Line(number, line.rstrip()) for number, line in enumerate(text.split("\n"), 1)]


def trouble(console: list[Line]) -> list[Line]:
    """The lines that name trouble."""
    return [line for line in console if TROUBLE.search(line.text)]


def tail(console: list[Line], count: int) -> list[Line]:
    """The last `count` lines that are not empty."""
    return [line for line in console if line.text][-count:]
