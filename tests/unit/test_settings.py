# SPDX-License-Identifier: Apache-2.0
"""TOML: every mistake names the file, the key and what would have been right."""

import os
import re
from pathlib import Path

import pytest

from minguest import settings
from minguest.model import Disk, Guest, Launch, Node, Root, Source
from minguest.util.errors import UserError
from tests import ROOT

GOOD = 'name = "x"\nkernel = ["6.12"]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('nmae = "x"\nkernel = ["6.12"]', r"g\.toml: unknown key `nmae`; nearest known key: `name`"),
        (GOOD + "[launch]\ncpuss = 3", r"unknown key `launch.cpuss`; nearest known key: `cpus`"),
        (GOOD + "zzzzzz = 1", r"unknown key `zzzzzz`; known: name, kernel, fragments"),
        (GOOD + '[launch]\ncpus = "3"', r"Expected `int`, got `str` - at `launch.cpus`"),
        (GOOD + '[launch]\nmachine = "q36"', r"Invalid enum value 'q36' - at `launch.machine`"),
        ('name = "x"\nkernel = "6.12"', r"Expected `array`, got `str` - at `kernel`"),
        ('name = "x"', r"missing required field `kernel`"),
        ('name = "x"\nkernel = []', r"kernel = \[\] names no series"),
        ("name = ", r"not TOML"),
        ('name = "../x"\nkernel = ["6.12"]', r"becomes a folder's name"),
        (GOOD + "[launch]\ncpus = 0", r"launch.cpus = 0: a guest has at least one CPU"),
        (GOOD + "[launch]\ncpus = 8\nmax_cpus = 4", r"launch.max_cpus = 4 is below launch.cpus = 8"),
        (GOOD + '[launch]\nmemory = "1X"', r"launch.memory = '1X' is not a size"),
        (GOOD + "[launch]\ntimeout = 0", r"launch.timeout = 0 must be a positive number"),
        (GOOD + '[root]\ndisk = "vda"', r"root\.disk = 'vda': not known"),
        (GOOD + '[root]\ndisk = "LABEL="', r"root\.disk = 'LABEL=': not known"),
        (GOOD + '[root]\ndisk = "LABEL=a\\"b"', r"root\.disk = .*: not known"),
        *[
            (f"{GOOD}[root]\ndisk = '{disk}'", rf"root\.disk = '{disk}': not known")
            for disk in ("/dev/", "/dev/a b", '/dev/a"b')
        ],
        *[
            (f"{GOOD}[root]\ninit = '{init}'", rf"root\.init = '{init}': not the path of a program")
            for init in ("sbin/init", "/", "/sbin/", "/a b/init", "/init ", '/a"b', '/init"')
        ],
        *[
            (f"{GOOD}[root]\nseconds = {seconds}", rf"root\.seconds = {seconds}: not from 1 to 600")
            for seconds in (-1, 0, 601)
        ],
        (GOOD + '[root]\nfilesystem = "ext3"', r"Invalid enum value 'ext3' - at `root.filesystem`"),
        (GOOD + '[launch.drivers]\nmodules = ["a"]', r"a guest's drivers are \[drivers\], at the top of the file"),
        (GOOD + "[drivers]\nmodules = []", r"drivers.modules = \[\] names no modules"),
        (GOOD + '[drivers]\nmodules = ["a"]\nload = ["b,c"]', r"drivers.load: 'b,c' is not a module's name"),
        (GOOD + '[launch.root]\ndisk = "/dev/vda"', r"a guest's root is \[root\], at the top of the file"),
    ],
)
def test_a_wrong_guest_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "g.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        settings.guest(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ('[launch]\ndisks = [{secret = "f"}]', "launch.disks[0].secret`; nearest known key: `key_file`"),
        ('[launch]\ndisks = [{key = "f"}]', "launch.disks[0].key`; nearest known key: `key_file`"),
        ('[launch]\ndisks = [{mon_host = "f"}]', "nearest known key: `monitors`"),
        ('[launch]\ndisks = [{servers = ["f"]}]', "nearest known key: `monitors`"),
        ('[launch]\ndisks = [{image = "f"}]', "nearest known key: `rbd`"),
        ('[launch]\ndisks = [{path = "f"}]', "nearest known key: `file`"),
        ("[launch]\ndisks = [{readonly = true}]", "nearest known key: `read_only`"),
        ('[launch]\ndisks = [{id = "f"}]', "nearest known key: `user`"),
        ("[launch]\nram = 1", "nearest known key: `memory`"),
        ("[launch]\nvcpus = 1", "nearest known key: `cpus`"),
        ("[launch]\nappend = 1", "nearest known key: `cmdline`"),
        ("[launch]\ndrives = []", "nearest known key: `disks`"),
        ("[launch]\nnodes = []", "nearest known key: `numa`"),
        ("[launch]\ncpuss = 1", "nearest known key: `cpus`"),
        # What is known elsewhere, is named there.
        ("cpus = 1", "unknown key `cpus`; it belongs below [launch]"),
        ("[launch]\noptions = {A = 1}", "unknown key `launch.options`; it belongs at the top of the file"),
        ("[launch]\ndistances = [1]", "unknown key `launch.distances`; it belongs below [launch.numa]"),
        # Nobody is sent somewhere else by a guess.
        ("[launch]\nzzzz = 1", "unknown key `launch.zzzz`; known: machine, cpu, "),
    ],
)
def test_an_unknown_key_is_answered_with_a_useful_one(tmp_path: Path, text: str, near: str) -> None:
    path = tmp_path / "g.toml"
    path.write_text(f"{GOOD}{text}\n")
    with pytest.raises(UserError, match=re.escape(near)):
        settings.guest(path)


def test_every_word_of_elsewhere_leads_to_a_key() -> None:
    keys = {name for kind in (Guest, Launch, Disk, Node, Source) for name in kind.__struct_fields__}
    assert set(settings.ELSEWHERE.values()) <= keys


@pytest.mark.parametrize(
    ("disk", "seconds", "init"),
    [
        ("/dev/vda", 1, "/lib/systemd/systemd"),
        ("LABEL=my root", 600, "/i"),
        *((f"{kind}1-2", 30, "/sbin/init") for kind in ("UUID=", "PARTUUID=", "PARTLABEL=", "SERIAL=")),
        ("9p:tag", 30, "/sbin/init"),
        ("virtiofs:tag", 30, "/sbin/init"),
    ],
)
def test_a_guests_root_is_its_launchs(tmp_path: Path, disk: str, seconds: int, init: str) -> None:
    path = tmp_path / "g.toml"
    path.write_text(f'{GOOD}[root]\ndisk = "{disk}"\nonfail = "shell"\nseconds = {seconds}\ninit = "{init}"\n')
    found = settings.guest(path)
    assert found.root == found.launch.root == Root(disk=disk, onfail="shell", seconds=seconds, init=init)


def test_a_missing_guest_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "guest.toml").write_text(GOOD)
    with pytest.raises(UserError, match=r"(?s)gust\.toml: no such file.*did you mean guest\.toml"):
        settings.guest(tmp_path / "gust.toml")


def test_an_unknown_key_deep_inside_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sources.toml"
    path.write_text(
        '[firmware]\n[kernel."4.12"]\nversion="1"\nurls=["u"]\nsha256="1"\nlicence="a"\nsignature={url=["a"],keys=[]}'
    )
    with pytest.raises(UserError, match=r"signature.url`; nearest known key: `urls`"):
        settings.sources(path)


@pytest.mark.parametrize(("digest", "urls"), [("A" * 64, '["u"]'), ("1" * 63, '["u"]'), ("1" * 64, "[]")])
def test_a_source_without_a_real_pin_is_refused(tmp_path: Path, digest: str, urls: str) -> None:
    path = tmp_path / "sources.toml"
    path.write_text(f'[kernel]\n[firmware.x]\nversion="1"\nlicence="a"\nurls={urls}\nsha256="{digest}"')
    with pytest.raises(UserError, match=r"sources\.toml: x: "):
        settings.sources(path)


@pytest.mark.parametrize(("digest", "urls"), [("A" * 64, '["u"]'), ("1" * 64, "[]")])
def test_the_source_of_a_package_is_pinned_too(tmp_path: Path, digest: str, urls: str) -> None:
    path = tmp_path / "sources.toml"
    path.write_text(
        f'[kernel]\n[firmware]\n[package.x]\nversion="1"\nlicence="a"\nurls=["u"]\nsha256="{"1" * 64}"\n'
        f'[[package.x.source]]\nsha256="{digest}"\nurls={urls}'
    )
    with pytest.raises(UserError, match=r"sources\.toml: x: source: "):
        settings.sources(path)


def test_the_projects_own_files_are_good() -> None:
    assert settings.guest(ROOT / "configs/guest.toml").kernel == ("4.12", "6.12")
    assert settings.guest(ROOT / "configs/guests/rescue.toml").overlays == ("base", "rescue")
    sources = settings.sources(ROOT / "configs/sources.toml")
    for source in [*sources.kernel.values(), *sources.firmware.values(), *sources.package.values()]:
        assert len(source.urls) >= 2
        for key in source.signature.keys if source.signature else ():
            assert (ROOT / "configs/keys" / key).is_file()
    # Licences such as busybox' oblige whoever passes the program on to offer its source.
    for package in sources.package.values():
        assert (package.source or package.restricted) and all(len(part.urls) >= 2 for part in package.source)


@pytest.mark.parametrize(
    ("text", "size"), [("512M", 512 << 20), ("2G", 2 << 30), ("1.5G", 3 << 29), ("2GiB", 2 << 30), ("1048576", 1 << 20)]
)
def test_sizes(text: str, size: int) -> None:
    assert settings.size(text, "x") == size


@pytest.mark.parametrize("text", ["", "0", "-1G", "1000", "G", "1P", "1G2", "0.1M"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(UserError, match=r"--memory = .* is not a size in whole MiB"):
        settings.size(text, "--memory")


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    monkeypatch.delenv("MINGUEST_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert settings.cache_folder() == Path("/home/x/.cache/minguest")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert settings.cache_folder() == Path("/c/minguest")
    monkeypatch.setenv("MINGUEST_CACHE", "/m")
    assert settings.cache_folder() == Path("/m")


def test_the_job_count_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINGUEST_JOBS", raising=False)
    assert settings.jobs() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("MINGUEST_JOBS", "7")
    assert settings.jobs() == 7


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_a_wrong_job_count_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MINGUEST_JOBS", text)
    with pytest.raises(UserError, match="MINGUEST_JOBS = "):
        settings.jobs()


@pytest.mark.parametrize("name", ["a b", "a:b", "a'b", 'a"b', "a$b", "a#b", "a%b", "a;b", "a\\b"])
def test_a_store_where_make_cannot_build_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINGUEST_STORE", f"/x/{name}")
    with pytest.raises(UserError, match="make cannot build in a folder with"):
        settings.store_folder()
    monkeypatch.delenv("MINGUEST_STORE")
    monkeypatch.setenv("MINGUEST_CACHE", f"/x/{name}")
    with pytest.raises(UserError, match="MINGUEST_STORE=/another/folder"):
        settings.store_folder()


def test_the_store_is_the_cache_or_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINGUEST_STORE", raising=False)
    monkeypatch.setenv("MINGUEST_CACHE", "/x/cache-1.0_a+b,c@d=e")
    assert settings.store_folder() == settings.cache_folder()
    monkeypatch.setenv("MINGUEST_STORE", "/y/café")
    assert settings.store_folder() == Path("/y/café")
