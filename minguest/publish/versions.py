# SPDX-License-Identifier: Apache-2.0
"""Versions in order: as PEP 440 has it where they are of that form, else by their numbers and words; and what a place
says of those that it has."""

import re
from collections.abc import Sequence

import msgspec
from packaging.version import InvalidVersion, Version

# Beside the versions of a release's name.
INDEX = "index.json"
LATEST = "latest.json"
INDEX_SCHEMA = 1

Key = tuple[bool, Version | tuple[tuple[int, str], ...]]


class Index(msgspec.Struct, frozen=True):
    """INDEX: the versions of one release's name that are whole."""

    schema: int
    name: str
    latest: str
    versions: tuple[str, ...]


class Latest(msgspec.Struct, frozen=True):
    """LATEST: which one is the newest."""

    version: str


def index(name: str, whole: Sequence[str]) -> Index:
    """The index of these versions, in their order. ValueError where there is none."""
    return Index(INDEX_SCHEMA, name, latest(whole), tuple(whole))


def prerelease(version: str) -> bool:
    """Whether a version says that it comes before a release: `1.0rc1`, `1.0.dev3`, `1.0-nightly.3`; not `2026-11-22`.

    What is no PEP 440 version is taken for SemVer's form (semver.org, 9), with a word after the hyphen.
    """
    try:
        return Version(version).is_prerelease
    except InvalidVersion:
        return re.search("-[A-Za-z]", version) is not None


def order(version: str) -> Key:
    """A key to sort versions by; those of another form than PEP 440's come first."""
    try:
        return True, Version(version)
    except InvalidVersion:
        return False, tuple((int(digits or 0), word) for digits, word in re.findall(r"(\d+)|([^\d]+)", version))


def latest(versions: Sequence[str]) -> str:
    """The newest one; a pre-release only where there is nothing else. ValueError where there is none."""
    return max(versions, key=lambda version: (not prerelease(version), order(version)))
