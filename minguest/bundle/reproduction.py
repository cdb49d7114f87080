# SPDX-License-Identifier: Apache-2.0
"""The record of a bundle that was built twice. Evidence reads it, also where no build tools are installed."""

from typing import Literal

import msgspec

from minguest.bundle import manifests

SCHEMA = 1


class Difference(msgspec.Struct, frozen=True):
    """One difference."""

    file: str
    """The file's path in both folders."""
    where: str
    """The place in it, outermost first: `compressed payload > .text`, `/init`, `CONFIG_EFI`; "" for the whole file."""
    first: str
    second: str
    """What is there, in short: a value, or the size, the first differing offset and the bytes at it in hex."""


class Reproduction(msgspec.Struct, frozen=True):
    """The result. If it is `same`, it has no path or name of the machine."""

    schema: int
    result: Literal["same", "different"]
    files: dict[str, manifests.File]
    """What was built, as a manifest's `files` (without the manifest); empty if it is different."""
    differences: tuple[Difference, ...]
    """Between the first and the second build; also between the first and the bundle that was there: `file (bundle)`."""
    varied: dict[str, tuple[str, str]]
    """What differed between the two builds' surroundings, and how."""
    not_varied: dict[str, str]
    """What did not, and why."""
    minguest: str
