# SPDX-License-Identifier: Apache-2.0
"""ovmf-minimal, built twice: in folders of other names and lengths, with other jobs. Four minutes of CPU time."""

from pathlib import Path

import pytest

from minguest import settings
from minguest.bundle import edk2
from minguest.paths import Store
from minguest.util import fetch
from tests import ROOT


def test_two_builds_are_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = settings.sources(ROOT / "configs/sources.toml").firmware["ovmf-minimal"]
    kept = []
    for folder, jobs, zone in (("a", "1", "LINT-14"), ("deeper/and-with/a-longer-name", "3", "SST11")):
        monkeypatch.setenv("MINGUEST_JOBS", jobs)
        monkeypatch.setenv("TZ", zone)
        kept.append(
            edk2.build(
                wanted,
                ROOT / "configs/firmware",
                Store(tmp_path / folder),
                lambda source, name: fetch.fetch(source, name, settings.cache_folder(), print),
                log=tmp_path / folder / "edk2.log",
                say=print,
            )
        )
    assert kept[0] != kept[1]
    for name in edk2.KEPT:
        assert (kept[0] / name).read_bytes() == (kept[1] / name).read_bytes(), name
