# SPDX-License-Identifier: Apache-2.0
"""Publishing to a folder: a version appears complete or not at all, never changes, and the index lists it."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minguest import paths
from minguest.publish import destination, folder
from minguest.release import layout
from minguest.util import files
from minguest.util.errors import MinguestError, ToolError, UserError
from tests import fake_release, workshop


def versions(home: Path) -> list[str]:
    return list(json.loads((home / "index.json").read_bytes())["versions"])


def test_a_folder_gets_the_version_an_index_and_latest(tmp_path: Path) -> None:
    release = fake_release.make(tmp_path / "r", "1.0", {paths.RUN_GUEST: b"#!/bin/sh\n"})
    result = folder.publish(release, tmp_path / "to", workshop.quiet)
    home = tmp_path / "to/default-4.12"
    assert layout.load(home / "1.0").items == release.items
    assert layout.load(home / "latest").facts.version == "1.0"
    assert json.loads((home / "latest.json").read_bytes()) == {"version": "1.0"}
    assert (home / "1.0/run-guest").stat().st_mode & 0o777 == 0o755
    assert (home / "1.0/bzImage").stat().st_mode & 0o777 == 0o644
    assert (result.uploaded, result.kept) == (len(release.items), 0)
    assert result.uploaded_bytes == sum(item.size for item in release.items)
    assert sorted(path.name for path in home.iterdir()) == ["1.0", "index.html", "index.json", "latest", "latest.json"]
    assert 'href="1.0/index.html"' in (home / "index.html").read_text()


def test_the_same_again_uploads_nothing_and_touches_nothing(tmp_path: Path) -> None:
    release = fake_release.make(tmp_path / "r", "1.0")
    folder.publish(release, tmp_path / "to", workshop.quiet)
    before = {path: path.lstat().st_mtime_ns for path in (tmp_path / "to").rglob("*")}
    result = folder.publish(release, tmp_path / "to", workshop.quiet)
    assert (result.uploaded, result.uploaded_bytes, result.kept) == (0, 0, len(release.items))
    assert {path: path.lstat().st_mtime_ns for path in (tmp_path / "to").rglob("*")} == before
    assert "nothing uploaded" in destination.shown(result)


def test_latest_is_the_newest_and_no_pre_release(tmp_path: Path) -> None:
    for version in ("1.9", "1.10", "2.0rc1", "1.2"):
        folder.publish(fake_release.make(tmp_path / version, version), tmp_path / "to", workshop.quiet)
    home = tmp_path / "to/default-4.12"
    assert versions(home) == ["1.2", "1.9", "1.10", "2.0rc1"]
    assert (home / "latest").readlink() == Path("1.10")


def test_a_version_never_changes(tmp_path: Path) -> None:
    folder.publish(fake_release.make(tmp_path / "a", "1.0"), tmp_path / "to", workshop.quiet)
    other = fake_release.make(tmp_path / "b", "1.0", {"bzImage": b"another kernel"})
    with pytest.raises(UserError, match=r"(?s)1\.0 is already published with other content.*make a new version"):
        folder.publish(other, tmp_path / "to", workshop.quiet)


def test_a_full_disk_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (fake_release.make(tmp_path / version, version) for version in ("1.0", "1.1"))
    folder.publish(first, tmp_path / "to", workshop.quiet)
    copied = files.copy

    def full(source: Path, target: Path) -> None:
        if target.name == "bzImage":
            raise OSError(28, "No space left on device", str(target))
        copied(source, target)

    monkeypatch.setattr(files, "copy", full)
    with pytest.raises(ToolError, match="No space left on device"):
        folder.publish(second, tmp_path / "to", workshop.quiet)
    home = tmp_path / "to/default-4.12"
    assert sorted(path.name for path in home.iterdir()) == ["1.0", "index.html", "index.json", "latest", "latest.json"]
    monkeypatch.setattr(files, "copy", copied)
    folder.publish(second, tmp_path / "to", workshop.quiet)
    assert versions(home) == ["1.0", "1.1"]


def test_a_killed_run_before_the_index_is_mended_by_the_next(tmp_path: Path) -> None:
    release = fake_release.make(tmp_path / "r", "1.0")
    folder.publish(release, tmp_path / "to", workshop.quiet)
    home = tmp_path / "to/default-4.12"
    for name in ("index.json", "latest.json", "index.html", "latest"):
        (home / name).unlink()
    folder.publish(release, tmp_path / "to", workshop.quiet)
    assert versions(home) == ["1.0"] and (home / "latest").is_symlink()


# Publishes, and is killed where one of its steps would begin.
KILLED = """
import os, signal, sys
from pathlib import Path
from minguest.publish import folder
from minguest.release import layout
from minguest.util import files
step, count = sys.argv[3], int(sys.argv[4])
module = {"copy": files, "sync": files, "write": files, "replace": Path, "symlink_to": Path}[step]
real = getattr(module, step)
def counted(*arguments, **more):
    global count
    count -= 1
    if count < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **more)
setattr(module, step, counted)
folder.publish(layout.load(Path(sys.argv[1])), Path(sys.argv[2]), print)
"""


@pytest.mark.parametrize(
    ("step", "count"),
    [("copy", 0), ("copy", 3), ("replace", 4), ("sync", 0), ("sync", 1), ("replace", 6), ("symlink_to", 0)]
    + [("write", count) for count in range(3)]
    + [("replace", count) for count in (5, 7, 8)],
)
def test_what_a_killed_run_left_goes(tmp_path: Path, step: str, count: int) -> None:
    old, new = (fake_release.make(tmp_path / version, version) for version in ("1.0", "1.1"))
    home = tmp_path / "to/default-4.12"
    folder.publish(old, tmp_path / "to", workshop.quiet)
    whole = {path.name for path in home.iterdir()} | {"1.1"}
    argv = [sys.executable, "-c", KILLED, str(new.folder), str(tmp_path / "to"), step, str(count)]
    killed = subprocess.run(argv, env=workshop.doit_env(), capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert versions(home) in (["1.0"], ["1.0", "1.1"])
    folder.publish(new, tmp_path / "to", workshop.quiet)
    assert {path.name for path in home.iterdir()} == whole
    assert layout.load(home / "latest").facts.version == "1.1"


def test_what_is_published_is_whole(tmp_path: Path) -> None:
    at = workshop.build(tmp_path / "p")
    workshop.tested(at)
    workshop.make(at, workshop.key(tmp_path))
    destination.publish(at.release, str(tmp_path / "to"), workshop.quiet)

    spoiled = tmp_path / "spoiled"
    for name, content in (
        (layout.SIGNATURE, workshop.key(tmp_path, "other").read_bytes()),
        (layout.SIGNATURE, None),
        ("bzImage", b"another"),
    ):
        shutil.rmtree(spoiled, ignore_errors=True)
        shutil.copytree(at.release, spoiled)
        if content is None:
            (spoiled / name).unlink()
        else:
            (spoiled / name).write_bytes(content)
        with pytest.raises(UserError):
            destination.publish(spoiled, str(tmp_path / "nothing"), workshop.quiet)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("to", [None, "", "ftp://host/x", "oci://", "github:owner", "s3://"])
def test_places_that_cannot_be_are_named(tmp_path: Path, to: str | None) -> None:
    at = workshop.build(tmp_path / "p")
    workshop.tested(at)
    workshop.make(at, None)
    with pytest.raises(UserError, match=r"to=|publish|oci|github|s3"):
        destination.publish(at.release, to, workshop.quiet)


def test_no_release_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)SHA256SUMS: not a release.*make the release again"):
        destination.publish(tmp_path, str(tmp_path / "to"), workshop.quiet)


def test_a_folder_that_may_not_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MinguestError, match="file"):
        folder.publish(fake_release.make(tmp_path / "r"), tmp_path / "file", workshop.quiet)
