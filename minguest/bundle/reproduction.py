# SPDX-License-Identifier: Apache-2.0
"""The record of a bundle that was built twice. Evidence reads it, where nothing that builds is installed."""

from typing import Literal

import msgspec

from minguest.bundle import manifests

SCHEMA = 1


class Difference(msgspec.Struct, frozen=True):
    """One thing that is not the same."""

    file: str
    """The file's path in both folders."""
    where: str
    """The place in it, outermost first: `compressed payload > .text`, `/init`, `CONFIG_EFI`; "" for all of it."""
    first: str
    second: str
    """What is there, in short: a value, or the size, the first differing offset and the bytes there in hex."""


class Reproduction(msgspec.Struct, frozen=True):
    """What came out. Where it is `same`, nothing in it tells the machine's paths or names."""

    schema: int
    result: Literal["same", "different"]
    files: dict[str, manifests.File]
    """What was built, as a manifest's `files` (without the manifest); empty where it is different."""
    differences: tuple[Difference, ...]
    """Between the first and the second build; also between the first and the bundle that was there: `file (bundle)`."""
    varied: dict[str, tuple[str, str]]
    """What was not the same for the two builds, and how."""
    not_varied: dict[str, str]
    """What was the same, and why."""
    minguest: str
