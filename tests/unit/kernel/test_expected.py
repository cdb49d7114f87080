# SPDX-License-Identifier: Apache-2.0
"""How many objects a build will compile: an estimate from builds before, never an error."""

from pathlib import Path

import pytest

from minguest import settings
from minguest.kernel import expected, kconfig
from minguest.paths import Store
from tests import ROOT
from tests.damage import Damage, each_way


def config(on: int) -> dict[str, str]:
    return {**{f"A{number}": "y" for number in range(on)}, "OFF": "n", "NAME": '"y"'}


def test_every_series_was_measured_with_the_default_guest() -> None:
    """The first build on a machine shows how far it is. A kernel has more options on than its fragments request."""
    guest = settings.guest(ROOT / "configs/guest.toml")
    for series in settings.sources(ROOT / "configs/sources.toml").kernel:
        fragments = kconfig.select(ROOT / "configs/kernel", guest.fragments, series, ROOT)
        requested = kconfig.merge(kconfig.read(fragments, ROOT), guest.options, "guest.toml")
        on = sum(option.value == "y" for option in requested.values())
        options, objects = expected.MEASURED[series]
        assert on < options < objects


def test_the_first_build_goes_by_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expected, "MEASURED", {"6.12": (200, 300)})
    store = Store(tmp_path)
    assert expected.objects(store, "6.12", config(200)) == 300
    assert expected.objects(store, "6.12", config(100)) == 150
    assert expected.objects(store, "9.9", config(100)) is None
    assert expected.objects(store, "6.12", {}) is None


def test_later_ones_by_the_nearest_build(tmp_path: Path) -> None:
    store = Store(tmp_path)
    expected.record(store, "6.12", config(700), 1500)
    expected.record(store, "6.12", config(1000), 3000)
    expected.record(store, "9.9", config(10), 50)
    assert expected.objects(store, "6.12", config(700)) == 1500
    assert expected.objects(store, "6.12", config(1100)) == 3300
    assert expected.objects(store, "9.9", config(10)) == 50
    expected.record(store, "6.12", config(700), 1400)
    assert expected.objects(store, "6.12", config(700)) == 1400


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"6.12": [{"options": 0, "objects": 1}]}', b"\xff", b'{"\xff": []}'])
def test_damage_is_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    monkeypatch.setattr(expected, "MEASURED", {"6.12": (676, 1330)})
    store = Store(tmp_path)
    store.objects_compiled.write_bytes(raw)
    assert expected.objects(store, "6.12", config(676)) == 1330
    expected.record(store, "6.12", config(676), 1400)
    assert expected.objects(store, "6.12", config(676)) == 1400


@pytest.mark.parametrize(
    ("line", "is_one"),
    [
        ("  CC      init/main.o", True),
        ("  AS      arch/x86/boot/header.o", True),
        ("  HOSTCC  scripts/mod/sumversion.o", True),
        ("  AR      init/built-in.a", False),
        ("  LD      vmlinux", False),
        ("init/main.c:12: warning: unused.o", False),
    ],
)
def test_lines_about_objects(line: str, is_one: bool) -> None:
    assert bool(expected.OBJECT.fullmatch(line)) is is_one


@each_way
def test_damaged_counts_are_not_used(tmp_path: Path, damage: Damage) -> None:
    store = Store(tmp_path)
    expected.record(store, "6.12", config(676), 5000)
    assert expected.objects(store, "6.12", config(676)) == 5000
    damage(store.objects_compiled)
    assert expected.objects(store, "6.12", config(676)) == 1330
