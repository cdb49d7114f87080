# SPDX-License-Identifier: Apache-2.0
"""The order of versions: that of PEP 440 for versions of its form, else by their numbers and text; and the index of the
versions at a place."""

import re
from collections.abc import Sequence

import msgspec
from packaging.version import InvalidVersion, Version

# Files beside the versions of a name.
INDEX = "index.json"
LATEST = "latest.json"
INDEX_SCHEMA = 1

Key = tuple[bool, Version | tuple[tuple[int, str], ...]]


class Index(msgspec.Struct, frozen=True):
    """INDEX: the complete versions of one name."""

    schema: int
    name: str
    latest: str
    versions: tuple[str, ...]


class Latest(msgspec.Struct, frozen=True):
    """LATEST: the newest version."""

    version: str


def index(name: str, whole: Sequence[str]) -> Index:
    """The index of these versions, in their order. ValueError if there are none."""
    return Index(INDEX_SCHEMA, name, latest(whole), tuple(whole))


def prerelease(version: str) -> bool:
    """Whether a version is a pre-release: `1.0rc1`, `1.0.dev3`, `1.0-nightly.3`; not `2026-11-22`.

    Any other form than PEP 440's is read as SemVer's (semver.org, 9), with letters after the hyphen.
    """
    try:
        return Version(version).is_prerelease
    except InvalidVersion:
        return re.search("-[A-Za-z]", version) is not None


def order(version: str) -> Key:
    """A sort key for versions; those of another form than PEP 440's come first."""
    try:
        return True, Version(version)
    except InvalidVersion:
        return False, tuple((int(digits or 0), text) for digits, text in re.findall(r"(\d+)|([^\d]+)", version))


def latest(versions: Sequence[str]) -> str:
    """The newest one; a pre-release only if there is nothing else. ValueError if there are none."""
    return max(versions, key=lambda version: (not prerelease(version), order(version)))
