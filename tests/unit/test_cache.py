# SPDX-License-Identifier: Apache-2.0
"""The cache and the store: what is there, and what goes."""

import os
import time
from pathlib import Path

import pytest

from minguest import cache, cli
from minguest.paths import Store
from minguest.util import files

NOW = 1_000_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A cache with one of each kind, all of them used 40 days ago, but for a kernel of today."""
    store = Store(tmp_path)
    for name, size in {
        "sha256/aa": 5_000_000, "sha256/bb.part": 7, "sha256/aa.lock": 0,
        "trees/linux-6.12.94-0123/Makefile": 100, "trees/.linux-6.12.94-0123.made": 64, "trees/.x.new/half": 9,
        "configs/k.json": 10, "kernels/old/bzImage": 1000, "kernels/new/bzImage": 2000, "kernels/.old.busy": 0,
        "making/0/vmlinux.o": 30, "making/.0.lock": 0, "reproduce/first/x": 1, "ccache/0/0/o": 50,
    }.items():  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    for path in (*tmp_path.rglob("*"), tmp_path):
        os.utime(path, (NOW - 40 * cache.DAY_S,) * 2)
    os.utime(tmp_path / "kernels/new", (NOW, NOW))
    return store


def left(store: Store) -> set[str]:
    return {str(each.path.relative_to(store.folder)) for each in cache.entries(store.folder, store)}


ALL = {
    "sha256/aa", "sha256/bb.part", "trees/linux-6.12.94-0123", "trees/.x.new", "configs/k.json", "kernels/old",
    "kernels/new", "making/0", "reproduce", "ccache",
}  # fmt: skip


def prune(store: Store, days: float) -> tuple[int, list[str]]:
    said: list[str] = []
    return len(cache.prune(cache.entries(store.folder, store), store, days, NOW, said.append)), said


def test_all_is_seen_with_its_size(store: Store) -> None:
    found = cache.entries(store.folder, store)
    assert left(store) == ALL
    assert {each.path.name: each.size for each in found}["linux-6.12.94-0123"] == 100
    table = cache.table(found, NOW)
    assert "download      1        5.0 MB" in table and "kernel        2        0.0 MB" in table
    assert "unused for up to 40 days" in table and "total        10" in table


def test_what_was_not_used_goes_and_leftovers_always_do(store: Store) -> None:
    assert prune(store, 41) == (4, [])
    assert left(store) == ALL - {"sha256/bb.part", "trees/.x.new", "making/0", "reproduce"}
    assert prune(store, 30) == (5, [])
    assert left(store) == {"kernels/new"}
    assert not (store.trees / ".linux-6.12.94-0123.made").exists()
    assert prune(store, 0) == (1, [])


def test_what_is_in_use_stays(store: Store) -> None:
    with files.lock(store.making / ".0.lock"), files.lock(store.kernels / ".old.busy"):
        _, said = prune(store, 30)
        assert left(store) == {"making/0", "trees/linux-6.12.94-0123", "ccache", "kernels/old", "kernels/new"}
    assert len(said) == 4 and all(line.endswith(": in use, kept") for line in said)
    prune(store, 30)
    assert left(store) == {"kernels/new"}


def test_the_command_shows_and_removes(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINGUEST_CACHE", str(store.folder))
    monkeypatch.delenv("MINGUEST_STORE", raising=False)
    os.utime(store.kernels / "new", (time.time(), time.time()))
    assert cli.main(["cache"]) == 0
    assert left(store) == ALL
    assert cli.main(["cache", "--prune"]) == 0
    assert "removed 9, 5.0 MB" in capsys.readouterr().out
    assert left(store) == {"kernels/new"}
    assert cli.main(["cache", "--prune", "--older-than", "-1"]) == 1
    assert "--older-than -1: must be a number of days" in capsys.readouterr().err


def test_what_was_pulled_goes_by_itself(store: Store) -> None:
    """After a month, and nothing else does."""
    pulled = store.folder / "pulled/sha256"
    pulled.mkdir(parents=True)
    for name, days in {"old": 31, "new": 29, "held": 31}.items():
        (pulled / name).write_text(name)
        os.utime(pulled / name, (NOW - days * cache.DAY_S,) * 2)
    with files.lock(pulled / "held.lock"):
        cache.forget_pulled(store.folder, NOW)
    assert left(store) == ALL | {"pulled/sha256/new", "pulled/sha256/held"}


def test_an_empty_cache_is_no_error(tmp_path: Path) -> None:
    store = Store(tmp_path / "nothing")
    assert cache.entries(store.folder, store) == []
    assert cache.prune([], store, 0, NOW, print) == []
