# SPDX-License-Identifier: Apache-2.0
"""How many objects a build will compile: an estimate from builds before, never an error."""

from pathlib import Path

import pytest

from minguest.kernel import expected
from minguest.paths import Store


def config(on: int) -> dict[str, str]:
    return {**{f"A{number}": "y" for number in range(on)}, "OFF": "n", "NAME": '"y"'}


def test_the_first_build_goes_by_what_was_measured(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert expected.objects(store, "6.12", config(676)) == 1330
    assert expected.objects(store, "6.12", config(338)) == 665
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
def test_damage_is_no_matter(tmp_path: Path, raw: bytes) -> None:
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
