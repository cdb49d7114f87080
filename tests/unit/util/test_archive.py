# SPDX-License-Identifier: Apache-2.0
"""Archives that are as they should be, evil ones and broken ones."""

import bz2
import gzip
import io
import lzma
import os
import resource
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minguest.util import archive
from minguest.util.errors import ToolError, UserError
from tests import small_disk
from tests.unit.bundle.test_firmware import package

File = tarfile.REGTYPE
Folder = tarfile.DIRTYPE
Sym = tarfile.SYMTYPE
Hard = tarfile.LNKTYPE


def member(name: str, kind: bytes = File, link: str = "", content: bytes = b"x", mode: int = 0o664) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.mtime = kind, link, mode, 1_500_000_000
    info.size = len(content) if kind == File else 0
    return info


def tar(members: Iterable[tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as made:
        for info in members:
            made.addfile(info, io.BytesIO(b"x" * info.size) if info.isreg() else None)
    return buffer.getvalue()


def zstd(content: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c"], input=content, capture_output=True, check=True).stdout


def unpack(tmp_path: Path, content: bytes) -> Path:
    tarball, target = tmp_path / "a.tar", tmp_path / "target"
    tarball.write_bytes(content)
    target.mkdir()
    archive.extract_tar(tarball, target)
    return target


GOOD = (
    member("linux-1/", Folder, mode=0o700),
    member("linux-1/Makefile"),
    member("linux-1/scripts/run", mode=0o4775),
    member("linux-1/linux-1"),
    member("linux-1/scripts/up", Sym, "../Makefile"),
    member("linux-1/folder", Sym, "scripts"),
    member("linux-1/twin", Hard, "linux-1/Makefile"),
)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, zstd])
def test_any_compression_and_one_leading_folder(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    before = os.umask(0o077)
    try:
        target = unpack(tmp_path, pack(tar(GOOD)))
    finally:
        os.umask(before)
    assert sorted(path.name for path in target.iterdir()) == ["Makefile", "folder", "linux-1", "scripts", "twin"]
    assert (target / "scripts/up").read_text() == "x" == (target / "folder/run").read_text()
    assert (target / "twin").stat().st_ino == (target / "Makefile").stat().st_ino
    modes = {name: (target / name).stat().st_mode & 0o7777 for name in ("Makefile", "scripts/run", "scripts")}
    assert modes == {"Makefile": 0o644, "scripts/run": 0o755, "scripts": 0o755}
    assert (target / "Makefile").stat().st_mtime == 1_500_000_000


def test_a_folders_time_is_kept(tmp_path: Path) -> None:
    target = unpack(tmp_path, tar([member("d", Folder), member("d/e", Folder), member("d/e/file"), member("f")]))
    assert (target / "d").stat().st_mtime == (target / "d/e").stat().st_mtime == 1_500_000_000


def test_two_tops_or_a_lone_file_are_left_where_they_are(tmp_path: Path) -> None:
    assert {path.name for path in unpack(tmp_path, tar([member("./a/f"), member("b/f")])).iterdir()} == {"a", "b"}
    shutil.rmtree(tmp_path / "target")
    assert [path.name for path in unpack(tmp_path, tar([member("lone")])).iterdir()] == ["lone"]


EVIL = {
    "absolute": ([member("/etc/x")], "writes outside"),
    "dots": ([member("a/../../x")], "writes outside"),
    "dots at the end": ([member("a/..", Folder)], "writes outside"),
    "below a link": ([member("a", Sym, "/tmp"), member("a/x")], "through a symbolic link"),
    "below a link inside": ([member("d", Folder), member("a", Sym, "d"), member("a/x")], "through a symbolic link"),
    "link in a folder's place": ([member("a/x"), member("a", Sym, "/tmp")], "two members of one name"),
    "absolute link": ([member("d/a", Sym, "/etc")], "points outside"),
    "link up": ([member("d/a", Sym, "../../x")], "points outside"),
    "link up from the top that is left out": ([member("d/a", Sym, "../x")], "points outside"),
    "links that add up": (
        [member("f"), member("d", Folder), member("d/p", Sym, ".."), member("q", Sym, "d/p/../x")],
        "points outside",
    ),
    "hard link out": ([member("f"), member("a", Hard, "../x")], "writes outside"),
    "hard link to a file of the host": ([member("f"), member("a", Hard, "/etc/passwd")], "writes outside"),
    "hard link to nothing": ([member("f"), member("a", Hard, "b")], "hard link to a file it"),
    "hard link to a link": ([member("s", Sym, "f"), member("a", Hard, "s")], "hard link to a file it"),
    "hard link through a link": ([member("s", Sym, "/etc"), member("a", Hard, "s/passwd")], "hard link to a file it"),
    "character device": ([member("null", tarfile.CHRTYPE)], "device"),
    "block device": ([member("sda", tarfile.BLKTYPE)], "device"),
    "fifo": ([member("pipe", tarfile.FIFOTYPE)], "device"),
    "unknown kind": ([member("odd", b"Q")], "device"),
    "file twice": ([member("f"), member("f")], "two members"),
    "file as folder": ([member("f"), member("f/x")], "a file and a folder"),
    "no name": ([member("./", File)], "two members"),
    "deep": ([member("d/" * 100 + "f")], "has folders more than 100 deep"),
    "deeper than a path can be": ([member("d/" * 3000 + "f")], "has folders more than 100 deep"),
}


@pytest.mark.parametrize("case", EVIL)
def test_evil_is_refused_and_nothing_kept(tmp_path: Path, case: str) -> None:
    members, why = EVIL[case]
    if "top" not in case:
        members = [member("ok/first"), *members]  # what comes first must go again, too
    with pytest.raises(UserError, match=rf"a\.tar: the archive .*{why}.*nothing was kept"):
        unpack(tmp_path, tar(members))
    assert not list((tmp_path / "target").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "target"}


def test_a_zero_byte_in_a_name(tmp_path: Path) -> None:
    info = member("f")
    info.pax_headers = {"path": "a\0b"}
    with pytest.raises(UserError, match=r"a name with a zero byte"):
        unpack(tmp_path, tar([info]))
    shutil.rmtree(tmp_path / "target")
    info = member("s", Sym, "x")
    info.pax_headers = {"linkpath": "a\0b"}
    with pytest.raises(UserError, match=r"points outside"):
        unpack(tmp_path, tar([info]))


def test_a_negative_size(tmp_path: Path) -> None:
    info = member("f")
    info.pax_headers = {"size": "-1024"}
    with pytest.raises(UserError, match=r"negative size|a member's header is invalid"):
        unpack(tmp_path, tar([member("ok"), info, member("after")]))


def test_times_that_no_disk_holds(tmp_path: Path) -> None:
    members = [member("a"), member("b"), member("c")]
    for info, text in zip(members, ("-5", "1e300", "nan"), strict=True):
        info.pax_headers = {"mtime": text}
    target = unpack(tmp_path, tar(members))
    assert [(target / name).stat().st_mtime for name in "abc"] == [0, 0, 0]


def test_a_name_that_is_no_utf8_stays_as_it_is(tmp_path: Path) -> None:
    target = unpack(tmp_path, tar([member(os.fsdecode(b"caf\xe9")), member("f")]))
    assert sorted(os.listdir(os.fsencode(target))) == [b"caf\xe9", b"f"]  # noqa: PTH208


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, zstd])
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_cut_short(tmp_path: Path, pack: Callable[[bytes], bytes], keep: float) -> None:
    body = tar([member(f"d/{i}", content=b"x" * 3000) for i in range(40)]).rstrip(b"\0")
    packed = pack(body + bytes(1024))
    with pytest.raises(UserError, match=r"a\.tar: (cut short|damaged)"):
        unpack(tmp_path, packed[: int(len(packed) * keep)])
    assert not list((tmp_path / "target").iterdir())


def test_cut_between_two_members(tmp_path: Path) -> None:
    whole = tar([member("d/a"), member("d/b")])
    with pytest.raises(UserError, match=r"cut short: the archive has no end"):
        unpack(tmp_path, whole[:1024])


def test_a_broken_header_is_not_the_end(tmp_path: Path) -> None:
    whole = bytearray(tar([member("d/a"), member("d/b"), member("d/c")]))
    whole[1024 + 150] ^= 1  # the check sum of b's header; tarfile alone would end there, content
    with pytest.raises(UserError, match=r"damaged"):
        unpack(tmp_path, bytes(whole))
    assert not list((tmp_path / "target").iterdir())


def test_more_than_zstd_may_unpack_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "ZSTD_MAX", 1 << 20)
    with pytest.raises(UserError, match=r"a\.tar: damaged, or more than"):
        unpack(tmp_path, zstd(bytes(2 << 20)))


def test_a_package_is_unpacked(tmp_path: Path) -> None:
    deb, target = tmp_path / "a.deb", tmp_path / "target"
    package(deb, {"./usr/src/x/Makefile": b"obj-m := x.o", "./usr/share/doc/x": b"", "./etc/x": b"1"})
    target.mkdir()
    archive.extract_deb(deb, target)
    assert (target / "usr/src/x/Makefile").read_bytes() == b"obj-m := x.o" and (target / "etc/x").read_bytes() == b"1"
    package(deb, {"./../x": b""})
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="writes outside its folder"):
        archive.extract_deb(deb, tmp_path / "other")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_changed_byte_behind_the_end_is_seen_by_the_check_sum(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    packed = bytearray(pack(tar(GOOD)))
    packed[-6] ^= 1  # in the CRC, or xz's footer
    with pytest.raises(UserError, match=r"damaged"):
        unpack(tmp_path, bytes(packed))


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", bytes(10), os.urandom(2000)])
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match=r"a\.tar: (damaged|cut short)"):
        unpack(tmp_path, content)


def test_no_file_and_a_target_in_use(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with pytest.raises(UserError, match=r"none\.tar: cannot be read: No such file"):
        archive.extract_tar(tmp_path / "none.tar", tmp_path / "target")
    (tmp_path / "target/mine").touch()
    with pytest.raises(UserError, match="not empty"):
        archive.extract_tar(tmp_path / "none.tar", tmp_path / "target")
    assert (tmp_path / "target/mine").exists()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 512 * 14), st.integers(0, 255)), min_size=1, max_size=8))
def test_any_damage_ends_in_a_clear_error_or_inside(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    content = bytearray(tar(GOOD))
    for place, byte in changes:
        content[place] = byte
    for path in tmp_path.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    try:
        target = unpack(tmp_path, bytes(content))
    except (UserError, ToolError):
        assert not list((tmp_path / "target").iterdir())
    else:
        root = os.fspath(target.resolve())
        assert all(os.path.realpath(path).startswith(root) for path in target.rglob("*"))
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "target"}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    members=st.lists(
        st.builds(
            member,
            st.lists(st.sampled_from(["a", "b", "..", ".", ""]), min_size=1, max_size=4).map("/".join),
            st.sampled_from([File, Folder, Sym, Sym, Hard]),
            st.lists(st.sampled_from(["a", "b", "..", "."]), min_size=1, max_size=4).map("/".join),
        ),
        max_size=6,
    )
)
def test_no_mix_of_names_and_links_leads_out(tmp_path: Path, members: list[tarfile.TarInfo]) -> None:
    for path in tmp_path.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    try:
        target = unpack(tmp_path, tar([*members, member("file")]))
    except UserError:
        assert not list((tmp_path / "target").iterdir())
    else:
        root = os.path.realpath(target)
        for folder, folders, names in os.walk(target):
            for name in (*folders, *names):
                end = os.path.realpath(os.path.join(folder, name))  # noqa: PTH118
                assert end == root or end.startswith(f"{root}/")
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "target"}


FULL = """
from minguest.util import archive
try:
    archive.extract_tar(Path(sys.argv[3]), folder)
except ToolError as error:
    print(error, list(folder.iterdir()))
"""


def test_a_full_disk(tmp_path: Path) -> None:
    tarball = tmp_path / "a.tar"
    tarball.write_bytes(tar([member(f"d/{i}", content=b"x" * 9000) for i in range(20)]))
    said = small_disk.run(FULL, tmp_path / "target", "64k", tarball)
    assert "No space left on device" in said and "remedy: free some space" in said
    assert said.endswith("[]\n")


def test_an_error_of_the_system_is_no_traceback(tmp_path: Path) -> None:
    tarball, target = tmp_path / "a.tar", tmp_path / "target"
    tarball.write_bytes(tar([member("d/a", content=b"x" * 9000)]))
    target.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))  # EFBIG; Python ignores SIGXFSZ
    try:
        with pytest.raises(ToolError, match=r"a\.tar: cannot be unpacked into .*: File too large"):
            archive.extract_tar(tarball, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(target.iterdir())


def deb(path: Path, control: bytes = b"Package: a\nVersion: 1:2-3\n") -> Path:
    """A .deb (deb(5)): an ar archive of three members."""
    data = [member("./usr/share/A.fd"), member("./usr/share/B.fd", Sym, "A.fd")]
    control_tar = io.BytesIO()
    with tarfile.open(fileobj=control_tar, mode="w") as made:
        info = member("./control", content=control)
        made.addfile(info, io.BytesIO(control))
    content = b"!<arch>\n"
    for name, body in (
        ("debian-binary", b"2.0\n"),
        ("control.tar.gz", gzip.compress(control_tar.getvalue())),
        ("data.tar.xz", lzma.compress(tar(data))),
    ):
        content += (
            f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2)
        )
    path.write_bytes(content)
    return path


def test_files_and_version_of_a_deb(tmp_path: Path) -> None:
    package = deb(tmp_path / "a.deb")
    assert archive.deb_version(package) == "1:2-3"
    names = ["./usr/share/A.fd", "usr/share/A.fd", "./usr/share/B.fd"]
    assert archive.deb_member(package, names) == dict.fromkeys(names, b"x")


def test_a_name_that_a_deb_has_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.deb: has no file \./usr/share/A_4M\.fd; nearest: \./usr/share/A\.fd"):
        archive.deb_member(deb(tmp_path / "a.deb"), ["./usr/share/A_4M.fd"])
    with pytest.raises(UserError, match=r"gives no version"):
        archive.deb_version(deb(tmp_path / "a.deb", b"Package: a\n"))


def test_what_is_no_deb(tmp_path: Path) -> None:
    package = deb(tmp_path / "a.deb")
    whole = package.read_bytes()
    for content in (b"", b"<html>", whole[:60], whole[:150], whole[:-40], tar(GOOD), whole.replace(b"7zXZ", b"7zXX")):
        package.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.deb: "):
            archive.deb_member(package, ["./usr/share/A.fd"])
    with pytest.raises(UserError, match="No such file"):
        archive.deb_version(tmp_path / "none.deb")


def test_gzip_is_the_same_each_time() -> None:
    packed = archive.gzip_bytes(b"words " * 1000)
    # RFC 1952, 2.3: magic, deflate, no flags (so no name), time 0, extra flags, system unknown
    assert packed[:10] == bytes([0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 2, 255])
    assert packed == archive.gzip_bytes(b"words " * 1000)
    assert gzip.decompress(packed) == b"words " * 1000
    assert gzip.decompress(archive.gzip_bytes(b"")) == b""


# ── headers that cost ──


def header(name: str, size: int, kind: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_long_header_of_digits_is_not_read(tmp_path: Path, kind: bytes) -> None:
    # tarfile needs 20 s for 160,000 of them.
    content = header("pax", 200_192, kind) + b"1" * 200_192 + tar(GOOD)
    with pytest.raises(UserError, match="a header of 200192 bytes for another header"):
        unpack(tmp_path, content)
    assert list((tmp_path / "target").iterdir()) == []


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    sparse = bytearray(header("linux-1/hole", 0, tarfile.GNUTYPE_SPARSE))
    sparse[483:495] = b"%011o\0" % (1 << 32)
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    with pytest.raises(UserError, match="has a sparse file"):
        unpack(tmp_path, bytes(sparse) + tar(GOOD))


@given(
    contents=st.dictionaries(st.from_regex(r"[a-z]{1,9}(/[a-z]{1,9})?", fullmatch=True), st.binary(max_size=1500)),
    skipped=st.integers(0, 600),
)
def test_plain_members_are_what_tarfile_wrote(contents: dict[str, bytes], skipped: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as made:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    packed = buffer.getvalue()
    found = {name: content.read() for name, content in archive.plain_members(io.BytesIO(packed), len(packed))}
    assert found == contents
    # What is left unread of one does not spoil the next.
    begun = {name: content.read(skipped) for name, content in archive.plain_members(io.BytesIO(packed), len(packed))}
    assert begun == {name: content[:skipped] for name, content in contents.items()}
    if contents:
        used = sum(512 + -(-len(content) // 512) * 512 for content in contents.values())
        with pytest.raises(ValueError, match="more than"):
            list(archive.plain_members(io.BytesIO(packed), used - 513))
        with pytest.raises(ValueError):
            list(archive.plain_members(io.BytesIO(packed[: used - 1]), len(packed)))
