# SPDX-License-Identifier: Apache-2.0
"""A bundle is whole, and what its manifest says."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from minguest.bundle import manifests
from minguest.util.errors import UserError
from tests import workshop
from tests.damage import Damage, each_way

FACTS: dict[str, Any] = workshop.facts()
LAUNCH_FILES = {"run-guest": "#!/bin/sh\n", "domain.xml": "<domain/>\n"}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(b"kernel")
    manifests.write(tmp_path / "bundle", dict.fromkeys(manifests.PARTS, tmp_path / "a"), FACTS, LAUNCH_FILES)
    return tmp_path / "bundle"


def test_a_bundle_comes_back(made: Path) -> None:
    assert manifests.load(made).files["bzImage"].size == 6
    assert sorted(path.name for path in made.iterdir()) == sorted([*manifests.PARTS, *LAUNCH_FILES, "manifest.json"])
    assert (made / "run-guest").stat().st_mode & 0o777 == 0o755
    assert (made / "domain.xml").stat().st_mode & 0o111 == 0


def test_a_manifest_of_before_has_no_packages_and_loads(made: Path) -> None:
    path = made / "manifest.json"
    document = json.loads(path.read_bytes())
    assert list(document["initrd"].pop("packages")) == ["tool"]
    path.write_text(json.dumps(document))
    assert manifests.load(made).initrd.packages == {}


def test_a_bundle_of_before_has_no_launch_files_and_loads(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"kernel")
    manifests.write(tmp_path / "bundle", dict.fromkeys(manifests.PARTS, tmp_path / "a"), FACTS, {})
    assert set(manifests.load(tmp_path / "bundle").files) == set(manifests.PARTS)


@pytest.mark.parametrize("name", LAUNCH_FILES)
def test_a_changed_launch_file_is_named(made: Path, name: str) -> None:
    with (made / name).open("a") as file:
        file.write("#")
    with pytest.raises(UserError, match=f"{name}: is not the file that the manifest names"):
        manifests.load(made)


def test_a_part_that_is_missing_leaves_the_old_bundle(made: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        manifests.write(
            made, {**dict.fromkeys(manifests.PARTS, tmp_path / "a"), "initrd.img": tmp_path / "nowhere"}, FACTS, {}
        )
    assert manifests.load(made).files["bzImage"].size == 6


@pytest.mark.parametrize("spoil", [b"kernal", b"kern", None])
def test_a_changed_or_missing_file_is_named(made: Path, spoil: bytes | None) -> None:
    if spoil is None:
        (made / "bzImage").unlink()
    else:
        (made / "bzImage").write_bytes(spoil)
    with pytest.raises(UserError, match="bzImage: is not the file that the manifest names"):
        manifests.load(made)


@pytest.mark.parametrize("text", ["", "{}", "{", '{"schema": "1"}'])
def test_a_wrong_manifest_is_named(made: Path, text: str) -> None:
    (made / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"(?s)manifest\.json: not a bundle's manifest.*doit build"):
        manifests.load(made)


def test_a_manifest_that_is_not_a_plain_file_does_not_hang(made: Path) -> None:
    (made / "manifest.json").unlink()
    os.mkfifo(made / "manifest.json")
    with pytest.raises(UserError, match="missing, or not a plain file"):
        manifests.load(made)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("schema", 1, "schema 1, this minguest knows 2"),
        ("files", {}, "does not name bzImage, initrd.img"),
        ("kernel", {}, "missing required field `wanted`"),
        ("guest", {"name": "x", "kernel": [], "launch": {"memori": "1G"}}, "unknown field `memori`"),
    ],
)
def test_a_manifest_of_another_shape_is_named(made: Path, name: str, value: object, why: str) -> None:
    content = json.loads((made / "manifest.json").read_bytes())
    (made / "manifest.json").write_text(json.dumps({**content, name: value}))
    with pytest.raises(UserError, match=why):
        manifests.load(made)


def test_a_manifest_nested_without_end_is_named(made: Path) -> None:
    (made / "manifest.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match="not a bundle's manifest"):
        manifests.load(made)


@pytest.mark.parametrize(
    ("inspected", "release"),
    [
        ({"bzimage": {"version": "4.12.14-own+ (a@b) #1 SMP"}}, "4.12.14-own+"),
        ({"bzimage": {"version": " "}}, "4.12.14"),
        ({"bzimage": {"version": 4}}, "4.12.14"),
        ({"bzimage": 4}, "4.12.14"),
        ({}, "4.12.14"),
    ],
)
def test_the_release_is_what_the_image_says(tmp_path: Path, inspected: dict[str, object], release: str) -> None:
    kernel = manifests.load(workshop.build(tmp_path / "project", inspected=inspected).bundle).kernel
    assert kernel.version == "4.12.14" and kernel.release == release


@each_way
def test_a_damaged_manifest_is_named(damage: Damage, made: Path) -> None:
    damage(made / "manifest.json")
    with pytest.raises(UserError, match=r"(?s)manifest\.json: not a bundle's manifest.*doit build"):
        manifests.load(made)
