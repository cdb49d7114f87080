# SPDX-License-Identifier: Apache-2.0
"""Which kernel is built, and how a user's tree becomes one that can be built without being touched."""

import hashlib
import http.server
import os
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from minguest.kernel import source
from minguest.model import Choice, Guest, Signature, Source, Sources
from minguest.util.errors import ToolError, UserError
from tests import ROOT
from tests.damage import Damage, a_folder, each_way

OLD = Source("4.12.14", ("https://a/x", "https://b/x"), "1" * 64, "GPL-2.0-only")
NEW = Source("6.12.94", ("https://c/x",), "2" * 64, "GPL-2.0-only")
SOURCES = Sources({"4.12": OLD, "6.12": NEW}, {})
GUEST = Guest("g", ("4.12", "6.12"))


def having(*there: Source) -> Callable[[Source], str | None]:
    return lambda wanted: "in the cache" if wanted in there else None


def unreached(_: Source) -> str | None:
    raise AssertionError("no mirror may be contacted")


def tree(folder: Path, version: tuple[int, int, int] = (4, 12, 10)) -> Path:
    """The smallest thing that looks like a kernel tree."""
    folder.mkdir(parents=True)
    major, minor, patch = version
    (folder / "Makefile").write_text(
        f"VERSION = {major}\nPATCHLEVEL = {minor}\nSUBLEVEL = {patch}\nEXTRAVERSION =\nNAME = none\n"
    )
    (folder / "file.c").write_text("one\ntwo\nthree\n")
    return folder


def test_the_first_line_that_is_there_is_taken_and_the_others_are_named() -> None:
    choice = source.choose(GUEST, SOURCES, None, None, None, having(NEW))
    assert (choice.series, choice.wanted, choice.fixed) == ("6.12", ("4.12", "6.12"), False)
    assert source.sentence(choice) == "linux 4.12.14: 2 mirrors, none answered; building 6.12.94 (in the cache)"
    assert source.choose(GUEST, SOURCES, None, None, None, having(OLD, NEW)).series == "4.12"


def test_the_choice_stays_and_asks_nobody() -> None:
    kept = Choice(("4.12", "6.12"), "6.12", "6.12.94", "r")
    assert source.choose(GUEST, SOURCES, kept, None, None, unreached) == kept


def test_the_choice_is_made_anew_when_the_guest_or_the_user_says_so() -> None:
    kept = Choice(("4.12", "6.12"), "6.12", "6.12.94", "r")
    other = Guest("g", ("4.12",))
    assert source.choose(other, SOURCES, kept, None, None, having(OLD)).series == "4.12"
    assert source.choose(GUEST, SOURCES, kept, "auto", None, having(OLD, NEW)).series == "4.12"


def test_a_required_series_is_chosen_or_the_error_names_it() -> None:
    choice = source.choose(GUEST, SOURCES, None, "6.12", None, having(OLD, NEW))
    assert (choice.series, choice.wanted, choice.fixed) == ("6.12", ("6.12",), True)
    with pytest.raises(ToolError, match=r"(?s)kernel=4\.12: linux 4\.12\.14 is not available.*2 mirrors.*source=DIR"):
        source.choose(GUEST, SOURCES, None, "4.12", None, having(NEW))
    with pytest.raises(UserError, match=r"(?s)kernel=5\.4: no such series.*4\.12, 6\.12"):
        source.choose(GUEST, SOURCES, None, "5.4", None, having(NEW))


def test_no_series_at_all_is_an_error_that_names_each() -> None:
    with pytest.raises(ToolError, match=r"no kernel is available: linux 4\.12\.14: 2 .*; linux 6\.12\.94: 1 "):
        source.choose(GUEST, SOURCES, None, None, None, having())


def test_the_users_tree_gives_its_series_and_stays(tmp_path: Path) -> None:
    own = tree(tmp_path / "t")
    choice = source.choose(GUEST, SOURCES, None, None, str(own), unreached)
    assert (choice.series, choice.version, choice.source, choice.fixed) == ("4.12", "4.12.10", str(own), True)
    assert source.choose(GUEST, SOURCES, choice, None, None, unreached) == choice
    assert source.choose(GUEST, SOURCES, choice, "4.12", None, unreached).source == str(own)
    assert source.choose(GUEST, SOURCES, choice, "6.12", None, having(NEW)).source is None
    assert source.choose(GUEST, SOURCES, choice, None, "pinned", having(OLD)).source is None


def test_a_tarball_gives_its_series(tmp_path: Path) -> None:
    tree(tmp_path / "linux-6.12.3", (6, 12, 3))
    with tarfile.open(tmp_path / "t.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "linux-6.12.3", "linux-6.12.3")
    assert source.own_version(tmp_path / "t.tar.xz") == "6.12.3"


def test_an_unusable_tree_is_named(tmp_path: Path) -> None:
    own = tree(tmp_path / "t", (5, 4, 1))
    with pytest.raises(UserError, match=r"(?s)is linux 5\.4\.1.*name a tree of linux 4\.12 or 6\.12"):
        source.choose(GUEST, SOURCES, None, None, str(own), unreached)
    own = tree(tmp_path / "u")
    with pytest.raises(UserError, match=r"(?s)is linux 4\.12\.10, but kernel=6\.12 was requested"):
        source.choose(GUEST, SOURCES, None, "6.12", str(own), unreached)
    with pytest.raises(UserError, match=r"not a kernel tree or tarball"):
        source.own_version(tmp_path / "nowhere")
    (tmp_path / "text").write_text("no tarball")
    with pytest.raises(UserError, match=r"not a kernel tree or tarball"):
        source.own_version(tmp_path / "text")
    (own / "Makefile").write_text("all:\n")
    with pytest.raises(UserError, match=r"has no kernel version"):
        source.own_version(own)


SERIES = """
[[patch]]
file = "4.12/a.patch"
series = "4.12"
versions = ">=4.12, <4.13"
tool = "gcc"
tools = ">=8"
reason = "a test"
"""
PATCH = "--- a/file.c\n+++ b/file.c\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n"


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    folder = tmp_path / "patches"
    (folder / "4.12").mkdir(parents=True)
    (folder / "series.toml").write_text(SERIES)
    (folder / "4.12/a.patch").write_text(PATCH)
    return folder


def test_patches_are_for_versions_and_tools(patches: Path) -> None:
    def wanted(line: str, version: str, gcc: str) -> int:
        return len(
            source.wanted_patches(
                patches / "series.toml", line, version, {"gcc": gcc, "binutils": "2.40", "glibc": "2.36"}
            )
        )

    assert wanted("4.12", "4.12.10", "12.2.0") == 1
    assert wanted("4.12", "4.12.10-rc1", "14.2.0-19ubuntu2") == 1
    assert wanted("4.12", "4.12.10", "7.5.0") == 0
    assert wanted("4.12", "4.13.0", "12.2.0") == 0
    assert wanted("6.12", "6.12.94", "12.2.0") == 0


def test_a_patch_may_be_for_one_guest(patches: Path) -> None:
    series = patches / "series.toml"
    series.write_text(SERIES.replace("reason", 'guest = "host"\nreason'))
    tools = {"gcc": "12", "binutils": "2.40", "glibc": "2.36"}
    assert len(source.wanted_patches(series, "4.12", "4.12.10", tools, "host")) == 1
    assert source.wanted_patches(series, "4.12", "4.12.10", tools, "default") == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('tool = "gcc"', 'tool = "clang"', r"tool = 'clang'; known: gcc, binutils, glibc"),
        ('">=8"', '"8+"', r"write for example"),
        ("reason", "reasn", r"unknown key `patch\[0\]\.reasn`; nearest known key: `reason`"),
    ],
)
def test_a_wrong_row_of_the_series_is_named(patches: Path, old: str, new: str, message: str) -> None:
    (patches / "series.toml").write_text(SERIES.replace(old, new))
    with pytest.raises(UserError, match=message):
        source.wanted_patches(
            patches / "series.toml", "4.12", "4.12.10", {"gcc": "12", "binutils": "2.40", "glibc": "2.36"}
        )


def prepare(own: Path, folder: Path, patches: Path) -> tuple[Path, source.Tree, list[str]]:
    said: list[str] = []
    choice = Choice(("4.12",), "4.12", "4.12.10", "r", str(own), True)
    made = source.prepare(
        choice, None, folder, cache=own, keys=own, patches=patches, log=folder.parent / "log", say=said.append
    )
    return Path(made.path), made.tree, said


def test_the_users_tree_is_copied_patched_and_never_written_to(tmp_path: Path, patches: Path) -> None:
    own = tree(tmp_path / "own")
    before = source.fingerprint(own)
    place, made, said = prepare(own, tmp_path / "trees", patches)
    assert (place / "file.c").read_text() == "one\n2\nthree\n"
    assert source.fingerprint(own) == before
    assert [each.file for each in made.patches] == ["4.12/a.patch"]
    assert said == [f"copying {own}"]
    assert prepare(own, tmp_path / "trees", patches) == (place, made, [])


def test_a_tree_has_its_content_in_its_name(tmp_path: Path, patches: Path) -> None:
    """A change that leaves a file's size and time as they were, as `cp -p` may, makes another tree."""
    own = tree(tmp_path / "own")
    place, made, _ = prepare(own, tmp_path / "trees", patches)
    times = (own / "Makefile").stat()
    makefile = (own / "Makefile").read_text()
    (own / "Makefile").write_text(makefile.replace("none", "some"))
    os.utime(own / "Makefile", ns=(times.st_atime_ns, times.st_mtime_ns))
    other, changed, said = prepare(own, tmp_path / "trees", patches)
    assert other != place and changed.identity != made.identity and said == [f"copying {own}"]
    assert "NAME = some" in (other / "Makefile").read_text() and "NAME = none" in (place / "Makefile").read_text()
    (own / "Makefile").write_text(makefile)
    assert prepare(own, tmp_path / "trees", patches) == (place, made, [])


def test_without_a_patch_the_tree_is_another_one(tmp_path: Path, patches: Path) -> None:
    own = tree(tmp_path / "own")
    place, _, _ = prepare(own, tmp_path / "trees", patches)
    (patches / "series.toml").write_text("patch = []\n")
    other, made, _ = prepare(own, tmp_path / "trees", patches)
    assert other != place and made.patches == ()
    assert (other / "file.c").read_text() == "one\ntwo\nthree\n"


def spoil(place: Path) -> None:
    (place / "file.c").write_text("spoilt\n")


def cut(place: Path) -> None:
    (place / "file.c").unlink()


def add(place: Path) -> None:
    (place / "more.c").write_text("")


def forget(place: Path) -> None:
    place.with_name(f".{place.name}.made").unlink()


@pytest.mark.parametrize("harm", [spoil, cut, add, forget])
def test_a_tree_that_is_not_as_it_was_made_is_made_again(
    tmp_path: Path, patches: Path, harm: Callable[[Path], None]
) -> None:
    own = tree(tmp_path / "own")
    place, made, _ = prepare(own, tmp_path / "trees", patches)
    harm(place)
    assert prepare(own, tmp_path / "trees", patches) == (place, made, [f"copying {own}"])
    assert sorted(path.name for path in place.iterdir()) == [source.STAMP, "Makefile", "file.c"]
    assert (place / "file.c").read_text() == "one\n2\nthree\n"


def test_what_a_tree_contains_is_all_that_counts(tmp_path: Path) -> None:
    own, copy = tree(tmp_path / "own"), tmp_path / "copy"
    shutil.copytree(own, copy)
    (copy / ".git").mkdir()
    (copy / ".git/HEAD").write_text("")
    assert source.content(own) == source.content(copy) and source.fingerprint(own) != source.fingerprint(copy)
    (copy / "file.c").chmod(0o755)
    seen = {source.content(own), source.content(copy)}
    (copy / "link").symlink_to("file.c")
    seen.add(source.content(copy))
    (copy / "link").unlink()
    (copy / "link").symlink_to("Makefile")
    seen.add(source.content(copy))
    (copy / "file.c").rename(copy / "file.h")
    seen.add(source.content(copy))
    assert len(seen) == 5


def test_a_tree_that_has_the_patch_already_is_left_as_it_is(tmp_path: Path, patches: Path) -> None:
    own = tree(tmp_path / "own")
    (own / "file.c").write_text("one\n2\nthree\n")
    place, _, _ = prepare(own, tmp_path / "trees", patches)
    assert (place / "file.c").read_text() == "one\n2\nthree\n"


def test_a_patch_that_does_not_apply_leaves_no_tree(tmp_path: Path, patches: Path) -> None:
    own = tree(tmp_path / "own")
    (own / "file.c").write_text("something else\n")
    with pytest.raises(ToolError, match=r"a\.patch: does not apply to this tree"):
        prepare(own, tmp_path / "trees", patches)
    assert [path for path in (tmp_path / "trees").iterdir() if path.is_dir()] == []


# ── a pinned source, from a server ──

SIGNED = ROOT / "tests/data/signature"


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    """A mirror with a signed tarball."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name in ("tiny.tar.xz", "tiny.tar.sign"):
        (folder / name).write_bytes((SIGNED / name).read_bytes())
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def pinned(mirror: str, tmp_path: Path, patches: Path, key: str, sign: str) -> tuple[Path, source.Tree, list[str]]:
    digest = hashlib.sha256((SIGNED / "tiny.tar.xz").read_bytes()).hexdigest()
    wanted = Source(
        "6.12.0", (f"{mirror}/tiny.tar.xz",), digest, "x", signature=Signature((f"{mirror}/{sign}",), (key,))
    )
    said: list[str] = []
    choice = Choice(("6.12",), "6.12", "6.12.0", "r")
    made = source.prepare(
        choice, wanted, tmp_path / "trees", cache=tmp_path / "cache", keys=SIGNED, patches=patches,
        log=tmp_path / "log", say=said.append,
    )  # fmt: skip
    return Path(made.path), made.tree, said


def test_a_pinned_source_is_fetched_verified_and_unpacked(mirror: str, tmp_path: Path, patches: Path) -> None:
    place, made, said = pinned(mirror, tmp_path, patches, "signer.asc", "tiny.tar.sign")
    assert "Test Signer" in made.signed
    assert any("signature: Test Signer" in line for line in said)
    assert (place / "Makefile").is_file()
    assert source.stamp(place) == made


def test_a_signature_that_is_not_there_is_said(mirror: str, tmp_path: Path, patches: Path) -> None:
    _, made, said = pinned(mirror, tmp_path, patches, "signer.asc", "nowhere.sign")
    assert made.signed.startswith("not verified: nowhere.sign: none of 1 mirrors")
    assert any("not verified" in line for line in said)


def test_a_signature_by_another_key_stops_everything(mirror: str, tmp_path: Path, patches: Path) -> None:
    with pytest.raises(ToolError, match="not among the trusted ones"):
        pinned(mirror, tmp_path, patches, "other.asc", "tiny.tar.sign")
    assert [path for path in (tmp_path / "trees").iterdir() if path.is_dir()] == []


def test_without_gpgv_it_is_said(mirror: str, tmp_path: Path, patches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minguest.kernel.pgp.available", lambda: False)
    _, made, _ = pinned(mirror, tmp_path, patches, "signer.asc", "tiny.tar.sign")
    assert made.signed == "not verified: gpgv is not installed"


@each_way
def test_a_tree_with_a_damaged_stamp_is_made_again(damage: Damage, tmp_path: Path, patches: Path) -> None:
    own = tree(tmp_path / "own")
    place, made, _ = prepare(own, tmp_path / "trees", patches)
    assert source.stamp(place) == made
    damage(place / source.STAMP)
    assert source.stamp(place) is None
    again, same, said = prepare(own, tmp_path / "trees", patches)
    assert (again, same, source.stamp(again)) == (place, made, made) and said == [f"copying {own}"]


@each_way
def test_a_damaged_record_of_a_tree_is_worked_out_again(damage: Damage, tmp_path: Path, patches: Path) -> None:
    own = tree(tmp_path / "own")
    before = prepare(own, tmp_path / "trees", patches)
    (known,) = (tmp_path / "trees").glob(".own-*.json")
    whole = known.read_bytes()
    damage(known)
    if damage is a_folder:  # it cannot be replaced, and is named
        with pytest.raises(IsADirectoryError) as error:
            prepare(own, tmp_path / "trees", patches)
        assert str(known) in (str(error.value.filename), str(error.value.filename2))
        return
    assert prepare(own, tmp_path / "trees", patches)[:2] == before[:2]
    assert known.read_bytes() == whole
