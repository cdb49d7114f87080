# SPDX-License-Identifier: Apache-2.0
"""A bundle is whole, and what its manifest says."""

from pathlib import Path
from typing import Any

import pytest

from minguest import bundle
from minguest.errors import UserError

FACTS: dict[str, Any] = {
    "guest": {}, "kernel": {}, "config": {"problems": []}, "initrd": {}, "firmware": {}, "tools": {},
}  # fmt: skip


@pytest.fixture
def made(tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(b"kernel")
    bundle.write(tmp_path / "bundle", {"bzImage": tmp_path / "a"}, FACTS)
    return tmp_path / "bundle"


def test_a_bundle_comes_back(made: Path) -> None:
    assert bundle.load(made).files["bzImage"].size == 6
    assert sorted(path.name for path in made.iterdir()) == ["bzImage", "manifest.json"]


def test_a_part_that_is_missing_leaves_the_old_bundle(made: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        bundle.write(made, {"bzImage": tmp_path / "a", "initrd.img": tmp_path / "nowhere"}, FACTS)
    assert bundle.load(made).files["bzImage"].size == 6


@pytest.mark.parametrize("spoil", [b"kernal", b"kern", None])
def test_a_changed_or_missing_file_is_named(made: Path, spoil: bytes | None) -> None:
    if spoil is None:
        (made / "bzImage").unlink()
    else:
        (made / "bzImage").write_bytes(spoil)
    with pytest.raises(UserError, match="bzImage: is not the file that the manifest names"):
        bundle.load(made)


@pytest.mark.parametrize("text", ["", "{}", "{", '{"schema": "1"}'])
def test_a_wrong_manifest_is_named(made: Path, text: str) -> None:
    (made / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"(?s)manifest\.json: no bundle.*doit build"):
        bundle.load(made)
