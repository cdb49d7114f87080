# SPDX-License-Identifier: Apache-2.0
"""What an overlay lays, and that several of them agree: every mistake names the file, the key and the value."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from minguest import settings
from minguest.bundle import cpio, overlay
from minguest.model import Overlay, Package
from minguest.util.errors import UserError
from tests import ROOT
from tests.unit.bundle.test_firmware import package

TEMPLATE = ROOT / "configs/templates/initrd.list.j2"
BASE = overlay.Layer("the list", (
    cpio.Entry("init", stat.S_IFREG | 0o755, b"initd"),
    cpio.Entry("dev", stat.S_IFDIR | 0o755),
    cpio.Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
    cpio.Entry("dev/null", stat.S_IFCHR | 0o666, device=(1, 3)),
    *(cpio.Entry(name, stat.S_IFDIR | 0o755) for name in ("proc", "run", "sys")),
    cpio.Entry("tmp", stat.S_IFDIR | 0o1777),
))  # fmt: skip


def make(folder: Path, text: str = "", contents: Mapping[str, str] | None = None) -> Path:
    """An overlay's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (contents or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    if text:
        (folder / overlay.SETTINGS).write_text(text)
    return folder


def laid(*folders: Path, debs: Mapping[str, Path] | None = None) -> dict[str, cpio.Entry]:
    """What comes from these overlays, by name, without the base."""
    layers = [layer for folder in folders for layer in overlay.layers(folder, debs or {})]
    entries = overlay.combine(BASE, layers)
    return {entry.name: entry for entry in entries if entry not in BASE.entries}


def refused(*folders: Path, debs: Mapping[str, Path] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        laid(*folders, debs=debs)
    return str(caught.value)


# ── one overlay ──


def test_modes_owners_nodes_links_and_folders(tmp_path: Path) -> None:
    text = """
    [[file]]
    path = "/etc/secret"
    mode = "4750"
    owner = "7:4294967294"
    [[file]]
    path = "/etc/link"
    owner = "1:2"
    [[folder]]
    path = "/srv/empty"
    mode = "2700"
    owner = "0:6"
    [[node]]
    path = "/dev/card0"
    type = "char"
    major = 4095
    minor = 1048575
    [[node]]
    path = "/srv/disk"
    type = "block"
    major = 0
    minor = 0
    mode = "0660"
    owner = "0:6"
    [[link]]
    folder = "/bin"
    target = "nowhere/at all"
    names = ["sh", "more/ls"]
    [[link]]
    target = "/proc/mounts"
    names = ["mtab"]
    """
    own = make(tmp_path / "own", text, {"etc/secret": "s"})
    (own / "etc/link").symlink_to("secret")
    folders = {name: cpio.Entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "bin/more", "etc", "srv")}
    assert laid(own) == folders | {
        entry.name: entry
        for entry in (
            cpio.Entry("etc/secret", stat.S_IFREG | 0o4750, b"s", owner=(7, 4294967294)),
            cpio.Entry("etc/link", stat.S_IFLNK | 0o777, b"secret", owner=(1, 2)),
            cpio.Entry("srv/empty", stat.S_IFDIR | 0o2700, owner=(0, 6)),
            cpio.Entry("dev/card0", stat.S_IFCHR | 0o600, device=(4095, 1048575)),
            cpio.Entry("srv/disk", stat.S_IFBLK | 0o660, device=(0, 0), owner=(0, 6)),
            cpio.Entry("bin/sh", stat.S_IFLNK | 0o777, b"nowhere/at all"),
            cpio.Entry("bin/more/ls", stat.S_IFLNK | 0o777, b"nowhere/at all"),
            cpio.Entry("mtab", stat.S_IFLNK | 0o777, b"/proc/mounts"),
        )
    }


def test_without_settings_it_is_its_folder(tmp_path: Path) -> None:
    own = make(tmp_path / "own", contents={"etc/motd": "m", "etc/overlay.toml": "not these"})
    assert overlay.read(own) == Overlay()
    assert set(laid(own)) == {"etc", "etc/motd", "etc/overlay.toml"}


NODE = '[[node]]\npath = "{}"\ntype = "char"\nmajor = {}\nminor = {}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[files]]\npath = "/a"', "unknown key `files`; nearest known key: `file`"),
        ('[[node]]\npath = "/x"\ntype = "fifo"\nmajor = 1\nminor = 1', "Invalid enum value 'fifo' - at `node[0].type`"),
        ('[[file]]\npath = "/etc/a"\nmode = 644', "Expected `str`, got `int` - at `file[0].mode`"),
        ('[[file]]\npath = "/etc/a"\nmode = "0888"', "file[0].mode: mode '0888' is not octal"),
        ('[[file]]\npath = "/etc/a"\nmode = "17777"', "file[0].mode: mode '17777' is more than 7777"),
        ('[[folder]]\npath = "/x"\nmode = ""', "folder[0].mode: mode '' is not octal"),
        ('[[file]]\npath = "/etc/a"\nowner = "root"', "file[0].owner = 'root': not UID:GID, two numbers"),
        ('[[file]]\npath = "/etc/a"\nowner = "0:4294967295"', "owner = '0:4294967295': not UID:GID, two numbers up to"),
        ('[[file]]\npath = "etc/a"', "file[0].path: 'etc/a': a path in the initrd is absolute, with"),
        ('[[folder]]\npath = "/x/../y"', "folder[0].path: '/x/../y': a path in the initrd is absolute, with"),
        ('[[folder]]\npath = "/"', "folder[0].path: '/': names nothing in the initrd"),
        ('[[folder]]\npath = "/a\\u0000b"', "names nothing in the initrd"),
        ('[[folder]]\npath = "/' + "x" * 4095 + '"', "a path in the initrd has at most 4095 bytes"),
        (NODE.format("/x", 4096, 0), "node[0].major = 4096: not from 0 to 4095"),
        (NODE.format("/y", 1, 0) + NODE.format("/x", 1, -1), "node[1].minor = -1: not from 0 to 1048575"),
        ('[[link]]\ntarget = ""\nnames = ["a"]', "link[0].target = '': a link's target has 1 to 4095 bytes"),
        ('[[link]]\ntarget = "x"\nnames = []', "link[0].names = [] names no link"),
        ('[[link]]\ntarget = "x"\nnames = ["/bin/sh"]', "link[0].names: '/bin/sh' is not below the folder"),
        ('[[link]]\nfolder = "/bin"\ntarget = "x"\nnames = ["../sh"]', "link[0].names: '/bin/../sh': a path"),
        ('[[link]]\nfolder = "bin"\ntarget = "x"\nnames = ["sh"]', "link[0].names: 'bin/sh': a path"),
        ('[[package]]\nsource = "p"\n[[package.file]]\nname = "usr/x"\npath = "/x"', "package[0].file.name: 'usr/x'"),
        ('[[package]]\nsource = "p"\n[[package.file]]\nname = "/x"\npath = "x"', "package[0].file.path: 'x'"),
        ("[[file]", "not TOML"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named_before_anything_is_read(tmp_path: Path, text: str, message: str) -> None:
    own = make(tmp_path / "own", text, {"etc/a": "a"})
    with pytest.raises(UserError) as caught:
        overlay.read(own)
    assert str(caught.value).startswith(f"{own}/overlay.toml: ") and message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[[file]]\npath = "/etc/sercet"\nmode = "0600"',
            "path = '/etc/sercet': the overlay's folder has no such file",
        ),
        ('[[file]]\npath = "/etc"', "path = '/etc': is a folder"),
        ('[[file]]\npath = "/etc/link"\nmode = "0600"', "mode = '0600': /etc/link is a link, which has none"),
        ('[[file]]\npath = "/overlay.toml"\nmode = "0600"', "path = '/overlay.toml': the overlay's folder has no such"),
    ],
)
def test_settings_that_do_not_fit_the_folder_are_named(tmp_path: Path, text: str, message: str) -> None:
    own = make(tmp_path / "own", text, {"etc/secret": "s"})
    (own / "etc/link").symlink_to("secret")
    said = refused(own)
    assert said.startswith(f"{own}/overlay.toml: file[0].") and message in said
    assert ("nearest: /etc/secret" in said) == ("sercet" in text)


@pytest.mark.parametrize(
    ("kind", "word", "remedy"),
    [
        (stat.S_IFIFO, "a named pipe", "remove it"),
        (stat.S_IFSOCK, "a socket", "remove it"),
        (stat.S_IFCHR, "a character device", "a [[node]] in overlay.toml"),
        (stat.S_IFBLK, "a block device", "a [[node]] in overlay.toml"),
    ],
)
def test_a_folder_with_something_else_in_it_is_named(tmp_path: Path, kind: int, word: str, remedy: str) -> None:
    own = make(tmp_path / "own")
    try:
        os.mknod(own / "it", kind | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("NOT RUN: only root makes device nodes")
    said = refused(own)
    assert said.startswith(f"{own}/it: is {word}; an overlay's folder has") and remedy in said


def test_a_name_that_is_no_text_is_named(tmp_path: Path) -> None:
    own = make(tmp_path / "own")
    Path(os.fsdecode(os.fsencode(own) + b"/\xff")).write_text("x")
    assert r"/\udcff': its name is not UTF-8" in refused(own)


def test_a_file_of_4_gib_is_named(tmp_path: Path) -> None:
    own = make(tmp_path / "own", contents={"large": ""})
    os.truncate(own / "large", 1 << 32)
    assert f"{own}/large: 4294967296 bytes, but a file in an initrd has less than 4 GiB" in refused(own)


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = make(tmp_path / "own", contents={"etc/motd": "m"})
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("etc"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="etc"):
        laid(own)


# ── several ──


def test_what_two_have_in_common_is_no_conflict(tmp_path: Path) -> None:
    text = '[[link]]\ntarget = "busybox"\nnames = ["bin/sh"]\n' + NODE.format("/dev/card", 195, 0)
    one = make(tmp_path / "one", text, {"etc/motd": "m", "etc/one": "1"})
    two = make(tmp_path / "two", text, {"etc/motd": "m", "etc/two": "2"})
    assert set(laid(one, two)) == {"bin", "bin/sh", "dev/card", "etc", "etc/motd", "etc/one", "etc/two"}
    assert laid(one, two) == laid(two, one)


def link(folder: Path, target: str) -> None:
    (folder / "it").unlink(missing_ok=True)
    (folder / "it").symlink_to(target)


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ("content", "other", "files of 7 and 5 bytes, with another content"),
        ("content", "mode", "mode 0644, mode 0600"),
        ("content", "owner", "owner 0:0, owner 0:7"),
        ("content", "link", "a file, a link"),
        ("content", "folder", "a file, a folder"),
        ("link", "another link", "a link to there, a link to elsewhere"),
        ("node", "another node", "device 195:0, device 195:1"),
        ("node", "content", "a character device, a file"),
        ("stated folder", "another folder", "mode 0700, mode 0711"),
    ],
)
def test_two_that_claim_a_path_differently_are_both_named(tmp_path: Path, first: str, second: str, why: str) -> None:
    settings_of = {
        "mode": '[[file]]\npath = "/it"\nmode = "0600"\n',
        "owner": '[[file]]\npath = "/it"\nowner = "0:7"\n',
        "node": NODE.format("/it", 195, 0),
        "another node": NODE.format("/it", 195, 1),
        "stated folder": '[[folder]]\npath = "/it"\nmode = "0700"\n',
        "another folder": '[[folder]]\npath = "/it"\nmode = "0711"\n',
    }
    folders = []
    for number, what in enumerate((first, second)):
        contents = {"content": {"it": "content"}, "other": {"it": "other"}, "folder": {"it/below": ""}}
        of = contents.get(what, {"it": "content"} if what in ("mode", "owner") else {})
        folders.append(make(tmp_path / f"{number}", settings_of.get(what, ""), of))
        if "link" in what:
            link(folders[-1], "there" if what == "link" else "elsewhere")
    said = refused(*folders)
    assert said.startswith("/it: ") and why in said and "no overlay wins over another" in said
    assert all(f"{tmp_path}/{number}" in said for number in (0, 1))
    assert str(tmp_path / "1") in refused(*reversed(folders))


def test_a_stated_folder_wins_over_one_that_is_just_there(tmp_path: Path) -> None:
    plain = make(tmp_path / "plain", contents={"srv/file": "f", "tmp/.keep": ""})
    (plain / "tmp/.keep").unlink()  # git has no empty folder, but a checkout may
    stated = make(tmp_path / "stated", '[[folder]]\npath = "/srv"\nmode = "0700"\n')
    for folders in ((plain, stated), (stated, plain)):
        found = laid(*folders)
        assert found["srv"].mode == stat.S_IFDIR | 0o700
        assert "tmp" not in found  # it is the base's, with mode 1777
    own = make(tmp_path / "own", '[[folder]]\npath = "/tmp"\nmode = "0755"\n')
    assert "/tmp would replace initd's own, of the list: mode 1777, mode 0755" in refused(own)


def test_nothing_lies_below_another_overlays_link(tmp_path: Path) -> None:
    one = make(tmp_path / "one", '[[link]]\ntarget = "usr/bin"\nnames = ["bin"]\n')
    two = make(tmp_path / "two", contents={"bin/tools/it": "i"})
    assert "differ: a link, a folder" in refused(one, two)
    nodes = make(tmp_path / "nodes", NODE.format("/bin/card", 195, 0))
    for folders in ((one, nodes), (nodes, one)):
        said = refused(*folders)
        assert f"{nodes}/overlay.toml: /bin/card cannot lie below /bin, which is a link in {one}/overlay.toml" in said


@pytest.mark.parametrize("name", ["init", "proc"])
def test_initds_own_is_not_replaced(tmp_path: Path, name: str) -> None:
    own = make(tmp_path / "own", contents={name: "mine"})
    assert f"{own}: /{name} would replace initd's own, of the list: " in refused(own)


def test_the_console_is_not_replaced(tmp_path: Path) -> None:
    same, other = make(tmp_path / "same", NODE.format("/dev/console", 5, 1)), make(tmp_path / "other")
    assert laid(same) == {}
    make(other, NODE.format("/dev/console", 4, 64))
    said = refused(other)
    assert f"{other}/overlay.toml: /dev/console would replace initd's own" in said and "device 5:1, device 4:64" in said


@pytest.mark.parametrize("name", ["proc/x", "sys/x", "run/x", "tmp/a/x", "dev/x"])
def test_what_a_mount_would_hide_is_named(tmp_path: Path, name: str) -> None:
    own = make(tmp_path / "own", contents={name: "hidden"})
    said = refused(own)
    assert said.startswith(f"{own}: /{name.partition('/x')[0]}") and "initd mounts" in said


def test_one_overlay_that_says_two_things_is_named(tmp_path: Path) -> None:
    twice = make(tmp_path / "twice", NODE.format("/x", 1, 1) * 2)
    assert f"{twice}/overlay.toml: has /x twice" in refused(twice)
    both = make(tmp_path / "both", '[[link]]\ntarget = "y"\nnames = ["x"]\n', {"x": "file"})
    assert f"/x: {both} and {both}/overlay.toml differ: a file, a link" in refused(both)


# ── Debian packages ──

WANTED = """
[[package]]
source = "tool"
[[package.file]]
name = "/usr/bin/tool"
path = "/bin/tool"
mode = "0755"
owner = "0:6"
[[package.file]]
name = "/usr/share/doc/tool/copyright"
path = "/copyright"
"""


@pytest.fixture
def deb(tmp_path: Path) -> Path:
    files = {"./usr/bin/tool": b"\x7fELF tool", "./usr/share/doc/tool/copyright": b"licence"}
    return package(tmp_path / "tool.deb", files)


def test_files_of_a_package_are_laid(tmp_path: Path, deb: Path) -> None:
    found = laid(make(tmp_path / "own", WANTED), debs={"tool": deb})
    assert found.pop("bin").mode == stat.S_IFDIR | 0o755
    assert list(found.values()) == [
        cpio.Entry("bin/tool", stat.S_IFREG | 0o755, b"\x7fELF tool", owner=(0, 6)),
        cpio.Entry("copyright", stat.S_IFREG | 0o644, b"licence"),
    ]


def test_what_a_package_lacks_is_named(tmp_path: Path, deb: Path) -> None:
    own = make(tmp_path / "own", WANTED.replace("/usr/bin/tool", "/usr/bin/tol"))
    assert f"{deb}: has no file ./usr/bin/tol; nearest: ./usr/bin/tool" in refused(own, debs={"tool": deb})


def test_a_packages_file_and_an_overlays_own_differ(tmp_path: Path, deb: Path) -> None:
    own, other = make(tmp_path / "own", WANTED), make(tmp_path / "other", contents={"copyright": "another"})
    said = refused(own, other, debs={"tool": deb})
    assert f"/copyright: {own}/overlay.toml (tool) and {other} differ: files of 7 and 7 bytes" in said


def test_packages_are_those_that_overlays_name(tmp_path: Path) -> None:
    known = {name: Package("1", ("u",), "0" * 64, "MIT") for name in ("tool", "unused")}
    own, none = make(tmp_path / "own", WANTED), make(tmp_path / "none")
    assert overlay.packages([none, own, own], known) == {"tool": known["tool"]}
    with pytest.raises(UserError, match=r"source = 'tool': configs/sources\.toml has no \[package\.tool\]") as caught:
        overlay.packages([own], {"unused": known["unused"]})
    assert f"{own}/overlay.toml: package[0]" in str(caught.value) and "known: unused" in str(caught.value)


def test_the_projects_own_overlays_are_good() -> None:
    known = settings.sources(ROOT / "configs/sources.toml").package
    folders = [path for path in sorted((ROOT / "overlays").iterdir()) if path.is_dir()]
    assert {path.name for path in folders} >= {"base", "rescue"}
    assert set(overlay.packages(folders, known)) == {
        "busybox-static", "firmware-nvidia-gsp", "firmware-nvidia-gsp-535",
    }  # fmt: skip
