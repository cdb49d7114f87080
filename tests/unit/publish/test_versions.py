# SPDX-License-Identifier: Apache-2.0
"""Versions of every form in one order."""

import pytest

from minguest.publish import versions


@pytest.mark.parametrize("version", ["1.0rc1", "1.0-rc.1", "v1.0a2", "1.0.dev3", "1.0-nightly.3", "v1.0-3-gabc"])
def test_prereleases(version: str) -> None:
    assert versions.prerelease(version)


@pytest.mark.parametrize("version", ["1.0", "v1.0", "1.0.post1", "2026-11-22", "2026.11.22", "first", "first_2"])
def test_releases(version: str) -> None:
    assert not versions.prerelease(version)


def test_order() -> None:
    wanted = ["x", "2026-9-30", "2026-11-2", "1.0.dev3", "1.0-rc.1", "1.0", "1.2", "1.10"]
    assert sorted(sorted(wanted), key=versions.order) == wanted


def test_the_latest_is_a_release_if_there_is_one() -> None:
    assert versions.latest(["1.0", "1.10", "1.9", "2.0rc1"]) == "1.10"
    assert versions.latest(["2.0rc1", "2.0rc2"]) == "2.0rc2"
