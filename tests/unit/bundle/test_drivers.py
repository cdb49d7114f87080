# SPDX-License-Identifier: Apache-2.0
"""The disk of drivers, up to the program that packs it."""

import io
import stat
import tarfile
from pathlib import Path

import pytest

from minguest.bundle import cpio, drivers
from minguest.util.errors import ToolError, UserError


def test_the_tar_has_owners_modes_and_no_time() -> None:
    packed = io.BytesIO()
    entries = [
        cpio.Entry("lib", stat.S_IFDIR | 0o755),
        cpio.Entry("lib/a.bin", stat.S_IFREG | 0o640, b"firmware", owner=(0, 6)),
        cpio.Entry("lib/b.bin", stat.S_IFLNK | 0o777, b"a.bin"),
    ]
    drivers.write_tar(entries, packed)
    packed.seek(0)
    with tarfile.open(fileobj=packed) as archive:
        found = {each.name: each for each in archive.getmembers()}
        file = archive.extractfile("lib/a.bin")
        assert file is not None and file.read() == b"firmware"
    assert list(found) == ["lib", "lib/a.bin", "lib/b.bin"]
    assert found["lib"].isdir() and found["lib"].mode == 0o755
    assert (found["lib/a.bin"].mode, found["lib/a.bin"].uid, found["lib/a.bin"].gid) == (0o640, 0, 6)
    assert found["lib/b.bin"].issym() and found["lib/b.bin"].linkname == "a.bin"
    assert {each.mtime for each in found.values()} == {0}


def test_a_device_node_is_refused() -> None:
    node = cpio.Entry("dev/card", stat.S_IFCHR | 0o600, device=(195, 0))
    with pytest.raises(UserError, match="/dev/card: a device node on the disk of drivers"):
        drivers.write_tar([node], io.BytesIO())


def test_without_squashfs_tools_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "firmware/lib").mkdir(parents=True)
    (tmp_path / "firmware/lib/a.bin").write_bytes(b"firmware")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match=r"drivers\.img: .*sqfstar") as raised:
        drivers.build((), None, [tmp_path / "firmware"], {}, tmp_path / "out/drivers.img", tmp_path / "log")
    assert "squashfs-tools" in raised.value.remedy
    assert not (tmp_path / "out").exists()
