# SPDX-License-Identifier: Apache-2.0
"""The store: what is read is what was written, or an error that names the entry; in a folder and in a bucket."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from minguest.scale import store as shared
from minguest.scale.store import Bucket, Folder, Missing, Poisoned, Store
from minguest.util.errors import ToolError, UserError
from tests import small_disk
from tests.unit.publish.test_s3 import BUCKET, SESSION, settings, swift

__all__ = ["settings", "swift"]

CONTENT = b"what a cell came to\n" * 100
DIGEST = hashlib.sha256(CONTENT).hexdigest()
BLOB = f"blobs/{DIGEST[:2]}/{DIGEST}"


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    if request.param == "folder":
        yield Store(Folder(tmp_path / "store"))
        return
    port = request.getfixturevalue("swift")
    monkeypatch.setattr("boto3.session.Session", lambda: SESSION)
    yield Store(Bucket(f"s3://{BUCKET}/{tmp_path.name}", f"http://127.0.0.1:{port}"))


def file(tmp_path: Path, content: bytes = CONTENT) -> Path:
    path = tmp_path / "a file"
    path.write_bytes(content)
    return path


def poison(store: Store, tmp_path: Path, name: str, content: bytes) -> None:
    """Other bytes where an entry was, behind the store's back."""
    other = tmp_path / "poison"
    other.write_bytes(content)
    store.place.put(name, other, hashlib.sha256(content).hexdigest())


def test_what_was_put_comes_back(store: Store, tmp_path: Path) -> None:
    assert store.put(file(tmp_path)) == DIGEST
    store.get(DIGEST, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == CONTENT
    store.put_record("kernels/a", {"one": 1})
    store.put_record("kernels/b", {"one": 2})
    assert store.record("kernels/b", dict[str, int]) == {"one": 2}
    assert store.records("kernels/") == ["kernels/a", "kernels/b"]
    assert store.record("kernels/c", dict[str, int]) is None and store.records("cells/") == []
    with pytest.raises(Missing, match="has no blobs/00/0"):
        store.get("0" * 64, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_poisoned_blob_is_named_and_not_used_and_is_replaced(store: Store, tmp_path: Path) -> None:
    store.put(file(tmp_path))
    assert store.replaced == []
    poison(store, tmp_path, BLOB, b"another thing")
    with pytest.raises(
        Poisoned, match=f"{BLOB} is poisoned: its SHA-256 is {hashlib.sha256(b'another thing').hexdigest()[:16]}"
    ):
        store.get(DIGEST, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    store.put(file(tmp_path))
    assert store.replaced == [BLOB]
    store.get(DIGEST, tmp_path / "back")


def test_a_place_that_says_a_poisoned_blob_is_right_gets_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(Folder(tmp_path / "store"))
    store.put(file(tmp_path))
    poison(store, tmp_path, BLOB, b"another thing")
    monkeypatch.setattr(store.place, "digest", lambda _: DIGEST)
    store.put(file(tmp_path))
    with pytest.raises(Poisoned):
        store.get(DIGEST, tmp_path / "back")
    store.put(file(tmp_path))
    store.get(DIGEST, tmp_path / "back")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"sha256": "0", "body": {"one": 1}}', b"\xff\xfe"])
def test_a_poisoned_record_is_named(store: Store, tmp_path: Path, content: bytes) -> None:
    store.put_record("kernels/a", {"one": 1})
    poison(store, tmp_path, "kernels/a.json", content)
    with pytest.raises(Poisoned, match=r"kernels/a\.json is poisoned: "):
        store.record("kernels/a", dict[str, int])
    store.put_record("kernels/a", {"one": 1})
    assert store.record("kernels/a", dict[str, int]) == {"one": 1}


def test_a_record_of_another_kind_is_poisoned(tmp_path: Path) -> None:
    store = Store(Folder(tmp_path / "store"))
    store.put_record("kernels/a", {"one": "two"})
    with pytest.raises(Poisoned, match="Expected `int`"):
        store.record("kernels/a", dict[str, int])


FULL = """
from minguest.scale.store import Folder, Store
big = folder.parent / "big"
big.write_bytes(bytes(200_000))
store = Store(Folder(folder))
store.put_record("kernels/a", {"one": 1})
try:
    store.put(big)
except ToolError as error:
    print(error)
print(store.record("kernels/a", dict), sorted(path.name for path in folder.rglob("*") if path.is_file()))
subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
try:
    store.put_record("kernels/b", {"one": 1})
except ToolError as error:
    print(error)
store.put_record("kernels/a", {"one": 1})
"""


def test_a_full_store_and_a_read_only_one_are_a_line(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    lines = small_disk.run(FULL, folder, "100k").splitlines()
    assert lines[0].startswith(f"{folder}/blobs/") and ": No space left on device (" in lines[0]
    assert lines[2] == "{'one': 1} ['a.json']"
    assert lines[3] == f"{folder}: the store cannot be written: Read-only file system"
    assert lines[4].startswith("  remedy: make it writable for all workers; what a run found out is not lost")
    assert len(lines) == 5  # what is there already needs no writing


def test_a_store_is_a_folder_or_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shared.check("cells") == str(tmp_path / "cells")
    assert shared.check("s3://bucket/a/b") == "s3://bucket/a/b"
    for wrong in ("s3://B", "https://example.org/x"):
        with pytest.raises(UserError):
            shared.check(wrong)
    assert issubclass(Poisoned, ToolError)
