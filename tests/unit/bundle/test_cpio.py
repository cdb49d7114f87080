# SPDX-License-Identifier: Apache-2.0
"""newc archives: GNU cpio reads them back, and the same input gives the same bytes."""

import contextlib
import os
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minguest.bundle import cpio
from minguest.util.errors import UserError

NAMES = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=8)


def listing(data: bytes) -> list[str]:
    found = subprocess.run(["cpio", "-itv", "--quiet"], input=data, capture_output=True, check=True)
    return found.stdout.decode().splitlines()


def test_gnu_cpio_reads_it(tmp_path: Path) -> None:
    (tmp_path / "init").write_bytes(b"hello")
    text = f"""
# a comment
dir /dev 0755 0 0
nod /dev/console 0600 0 0 c 5 1
nod /dev/vda 0660 0 0 b 254 0
file /init {tmp_path}/init 0755 0 0
slink /bin/sh busybox 0777 0 0
"""
    rows = listing(cpio.archive(cpio.merge(cpio.parse_list(text, "list"))))
    shown = [(row.split()[0], row.split()[2], row.split(maxsplit=8)[-1]) for row in rows]
    assert [(mode, owner) for mode, owner, _ in shown] == [
        ("drwxr-xr-x", "root"), ("lrwxrwxrwx", "root"), ("drwxr-xr-x", "root"),
        ("crw-------", "root"), ("brw-rw----", "root"), ("-rwxr-xr-x", "root"),
    ]  # fmt: skip
    assert "5,   1" in rows[3]
    assert rows[1].endswith("bin/sh -> busybox")


@given(st.dictionaries(NAMES, st.binary(max_size=64), min_size=1, max_size=6))
def test_contents_come_back(contents: dict[str, bytes]) -> None:
    entries = [cpio.Entry(name, stat.S_IFREG | 0o644, data) for name, data in contents.items()]
    data = cpio.archive(cpio.merge(entries))
    assert len(data) % 512 == 0
    found = subprocess.run(
        ["cpio", "-i", "--to-stdout", "--quiet", *sorted(contents)], input=data, capture_output=True, check=True
    )
    assert found.stdout == b"".join(contents[name] for name in sorted(contents))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dir dev 0755 0 0", "is absolute"),
        ("dir /a/../b 0755 0 0", "absolute, without"),
        ("dir /dev 0888 0 0", "not octal"),
        ("dir /dev 17777 0 0", "more than 7777"),
        ("dir /dev 0755 1000 0", "not one of"),
        ("nod /dev/x 0600 0 0 p 5 1", "not one of"),
        ("nod /dev/x 0600 0 0 c five 1", "invalid literal"),
        ("file /init /no/such/file 0755 0 0", "cannot be read: No such file"),
        ("fiel /init x 0755 0 0", "not one of"),
        ("file /init 'x 0755 0 0", "quotation"),
    ],
)
def test_a_wrong_line_is_named(line: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"list:2: .*{message}"):
        cpio.parse_list(f"dir /x 0755 0 0\n{line}\n", "list")


def test_parents_are_made_and_names_are_sorted() -> None:
    entries = [cpio.Entry(name, stat.S_IFREG | 0o644, b"x") for name in ("etc/motd", "a")]
    assert [(entry.name, entry.data) for entry in cpio.merge(entries)] == [
        ("a", b"x"),
        ("etc", b""),
        ("etc/motd", b"x"),
    ]


def test_nothing_lies_below_a_file() -> None:
    with pytest.raises(UserError, match=r"/a/b cannot lie below /a, which is not a folder"):
        cpio.merge([cpio.Entry("a", stat.S_IFREG | 0o644), cpio.Entry("a/b", stat.S_IFREG | 0o644)])


def test_an_overlay_does_not_depend_on_umask_time_or_order(tmp_path: Path) -> None:
    archives = []
    for number, mask in enumerate((0o022, 0o077)):
        folder = tmp_path / str(number)
        before = os.umask(mask)
        try:
            (folder / "d").mkdir(parents=True)
            for name in ("b", "a") if number else ("a", "b"):
                (folder / name).write_text(name)
            (folder / "d/run").write_text("#!/bin/sh\n")
            (folder / "d/run").chmod(0o755 & ~mask)
            (folder / "link").symlink_to("d/run")
        finally:
            os.umask(before)
        os.utime(folder / "a", (number, number))
        archives.append(cpio.archive(cpio.merge(cpio.tree(folder))))
    assert archives[0] == archives[1]


def test_an_overlay_has_no_sockets_or_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"pipe: is a named pipe; an overlay's folder has files"):
        cpio.tree(tmp_path)


def test_every_field_comes_back() -> None:
    entries = [
        cpio.Entry("bin", stat.S_IFDIR | 0o755),
        cpio.Entry("bin/sh", stat.S_IFLNK | 0o777, b"busybox"),
        cpio.Entry("console", stat.S_IFCHR | 0o600, device=(5, 1)),
    ]
    members, rest = cpio.parse(cpio.archive(entries))
    assert members == [
        cpio.Member("bin", b"", 1, stat.S_IFDIR | 0o755, 0, 0, 2, 0, (0, 0), (0, 0), 0),
        cpio.Member("bin/sh", b"busybox", 2, stat.S_IFLNK | 0o777, 0, 0, 1, 0, (0, 0), (0, 0), 0),
        cpio.Member("console", b"", 3, stat.S_IFCHR | 0o600, 0, 0, 1, 0, (0, 0), (5, 1), 0),
    ]
    assert not rest.strip(b"\0")


@pytest.mark.parametrize("kind", ["newc", "crc"])
def test_what_gnu_cpio_wrote_is_read(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "init"
    file.write_bytes(b"hello")
    file.chmod(0o750)
    os.utime(file, (86400, 86400))
    argv = ["cpio", "-o", "--quiet", "-H", kind]
    made = subprocess.run(argv, cwd=tmp_path, input=b"init\n", capture_output=True, check=True)
    [member], rest = cpio.parse(made.stdout)
    found = file.stat()
    assert (member.name, member.data, member.mtime, member.mode) == ("init", b"hello", 86400, stat.S_IFREG | 0o750)
    assert (member.ino, member.uid, member.gid) == (found.st_ino & 0xFFFFFFFF, found.st_uid, found.st_gid)
    assert member.on == (os.major(found.st_dev), os.minor(found.st_dev))
    assert member.check == (sum(b"hello") if kind == "crc" else 0)
    assert not rest.strip(b"\0")


def test_what_follows_the_trailer_is_given() -> None:
    first = cpio.archive([cpio.Entry("a", stat.S_IFREG | 0o644, b"1")])
    members, rest = cpio.parse(first + b"another")
    assert [member.name for member in members] == ["a"]
    assert rest.lstrip(b"\0") == b"another"


NUMBERS = st.integers(0, 2**32 - 1)


@given(st.lists(st.tuples(NAMES, st.binary(max_size=9), st.integers(0, 0o7777), NUMBERS, NUMBERS), max_size=5))
def test_what_was_written_is_read_back(rows: list[tuple[str, bytes, int, int, int]]) -> None:
    entries = [
        cpio.Entry(name, stat.S_IFREG | mode, data, (one, one), (one, two)) for name, data, mode, one, two in rows
    ]
    members, rest = cpio.parse(cpio.archive(entries))
    assert [
        cpio.Entry(each.name, each.mode, each.data, each.device, (each.uid, each.gid)) for each in members
    ] == entries
    assert [each.ino for each in members] == list(range(1, len(entries) + 1))
    assert not rest.strip(b"\0")


def test_names_that_are_no_text_stay_two() -> None:
    data = cpio.archive([cpio.Entry("a", stat.S_IFREG), cpio.Entry("b", stat.S_IFREG)])
    data = data.replace(b"a\0", b"\xfe\0").replace(b"b\0", b"\xff\0")
    first, second = cpio.parse(data)[0]
    assert first.name != second.name


def test_a_member_that_is_cut_short_is_the_one_that_is_named() -> None:
    whole = cpio.archive([cpio.Entry("init", stat.S_IFREG | 0o755, b"hello")])
    with pytest.raises(UserError, match="the member at byte 0 is damaged or cut short"):
        cpio.parse(whole[: whole.index(b"hello") + 3])


@given(st.data())
def test_damage_is_named(data: st.DataObject) -> None:
    whole = cpio.archive([cpio.Entry("init", stat.S_IFREG | 0o755, b"hello"), cpio.Entry("x", stat.S_IFREG)])
    needed = whole.rindex(b"TRAILER!!!\0") + len(b"TRAILER!!!\0")
    cut = data.draw(st.integers(0, needed - 1))
    with pytest.raises(UserError, match="cpio: "):
        cpio.parse(whole[:cut])
    at, byte = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 255))
    with contextlib.suppress(UserError):  # and nothing else
        cpio.parse(whole[:at] + bytes([byte]) + whole[at + 1 :])
