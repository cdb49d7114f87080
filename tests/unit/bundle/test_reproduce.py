# SPDX-License-Identifier: Apache-2.0
"""A build that lets one influence in is found, each of them; one that lets none in is the same."""

import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from minguest.bundle import manifests, reproduce
from minguest.bundle.reproduce import FIRST, SECOND
from minguest.bundle.reproduction import Reproduction
from minguest.kernel import kbuild
from minguest.paths import Store
from minguest.util import run
from minguest.util.errors import ToolError

# A fake build: writes a bundle with the surroundings that it should leak.
BUILD = """
import json, os, pathlib, sys, time

umask = os.umask(0)
os.umask(umask)
try:
    LEAKS = {
        "none": "",
        "umask": umask,
        "modes of the checkout": oct(os.stat("configs/tool").st_mode),
        "mode of a file that it makes": lambda: oct(os.open("x", os.O_CREAT | os.O_WRONLY) and os.stat("x").st_mode),
        "locale": os.environ["LC_ALL"],
        "language": os.environ["LANGUAGE"],
        "time zone": time.strftime("%H:%M", time.localtime(0)),
        "date": time.strftime("%d", time.localtime()),
        "user": os.environ["USER"],
        "uid": os.getuid(),
        "gid": os.getgid(),
        "owner of the checkout": os.stat("configs/tool").st_uid,
        "home": os.path.expanduser("~"),
        "jobs": os.environ["MINGUEST_JOBS"],
        "folder": os.getcwd(),
        "length of the folder": len(os.getcwd()),
        "depth of the folder": os.getcwd().count("/"),
        "time": time.time_ns(),
        "arguments": sys.argv[2:],
    }
    leak = LEAKS[sys.argv[1]]
    (out := pathlib.Path("out/x-6.12/bundle")).mkdir(parents=True)
    (out / "bzImage").write_text(str(leak() if callable(leak) else leak))
    (out / "manifest.json").write_text(json.dumps({"files": {}}))
    print("built with", os.environ["PYTHONPATH"])
except KeyError as error:
    sys.exit(f"unknown: {error}")
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout without git."""
    root = tmp_path / "checkout"
    (root / "configs").mkdir(parents=True)
    (root / "build.py").write_text(BUILD)
    (root / "configs/tool").write_text("#!/bin/sh\n")
    (root / "configs/tool").chmod(0o744)
    (root / "out/x-6.12/bundle").mkdir(parents=True)
    (root / "out/x-6.12/bundle/stale").write_text("")
    return root


def builds(root: Path, leak: str, *arguments: str, **more: Any) -> tuple[Reproduction, list[str]]:
    said: list[str] = []
    command = (sys.executable, "build.py", leak)
    record = reproduce.builds(
        root, root.parent / "work", arguments, said.append, store=root.parent / "store", command=command, **more
    )
    return record, said


def test_a_build_that_lets_nothing_in_is_the_same(root: Path) -> None:
    before = os.umask(0)
    os.umask(before)
    record, said = builds(root, "none")
    assert (record.result, record.differences) == ("same", ())
    assert record.files == {"bzImage": manifests.File(hashlib.sha256(b"").hexdigest(), 0)}
    assert list((root.parent / "work").iterdir()) == []
    assert os.umask(before) == before
    work = root.parent / "work"
    copies = [work / each.name / each.folder for each in (FIRST, SECOND)]
    # Each copy's own code is on the path.
    assert [line for line in said if "│" in line] == [
        f"{each.name} │ built with {copy}" for each, copy in zip((FIRST, SECOND), copies, strict=True)
    ]


@pytest.mark.parametrize(
    "leak",
    [
        "umask", "modes of the checkout", "mode of a file that it makes", "locale", "language", "time zone", "date",
        "user", "home", "jobs", "folder", "length of the folder", "depth of the folder", "time",
    ],
)  # fmt: skip
def test_each_influence_is_found(root: Path, leak: str) -> None:
    record, said = builds(root, leak)
    assert record.result == "different"
    assert [(each.file, each.where) for each in record.differences] == [("bzImage", "line 1")]
    assert record.files == {}
    kept = [root.parent / "work" / each.name / each.folder / "out/x-6.12/bundle" for each in (FIRST, SECOND)]
    assert all((folder / "bzImage").is_file() for folder in kept)
    assert said[-1].startswith(f"kept for inspection: {kept[0]} and {kept[1]}")


@pytest.mark.parametrize("leak", ["uid", "gid", "owner of the checkout"])
def test_another_user_where_that_can_be(root: Path, leak: str) -> None:
    record, _ = builds(root, leak)
    # Both ways are right; which one it is here, the record must say.
    if record.result == "different":
        [row] = record.differences
        assert (row.first, row.second) == (str(os.getgid() if leak == "gid" else os.getuid()), "54321")
        assert record.varied["user's number"] == (str(os.getuid()), "54321")
        assert "user's number" not in record.not_varied
    else:
        assert record.not_varied["user's number"].startswith(("no user namespace: ", "unshare: no such program"))


def test_where_no_other_user_can_be_it_says_why(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/unshare").write_text("#!/bin/sh\necho unshare failed: Operation not permitted\nexit 1\n")
    (tmp_path / "bin/unshare").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=":")
    record, _ = builds(root, "uid")
    assert record.result == "same"
    assert record.not_varied["user's number"] == "no user namespace: unshare failed: Operation not permitted"
    assert "user's number" not in record.varied
    assert record.varied["user's name"] == ("alice", "bartholomew")


def test_everything_that_is_varied_is_recorded(root: Path) -> None:
    record, _ = builds(root, "none")
    assert {"folder", "home", "umask", "locale", "time zone", "user's name", "jobs"} <= record.varied.keys()
    assert all(first != second for first, second in record.varied.values())
    assert {"machine", "date", "tools", "downloads"} <= record.not_varied.keys()
    # Published with a release: this machine's folders are nobody's business.
    assert str(root.parent) not in msgspec.json.encode(record).decode()
    assert msgspec.json.decode(msgspec.json.encode(record), type=Reproduction) == record


def test_what_is_the_same_for_both_is_not_called_varied(root: Path) -> None:
    second = msgspec.structs.replace(SECOND, umask=FIRST.umask, locale="xx_XX.UTF-8")
    record, _ = builds(root, "umask", second=second)
    assert record.result == "same"
    assert "umask" not in record.varied
    assert record.not_varied["umask"] == "0022 for both"
    assert "not installed here" in record.not_varied["rules of xx_XX.UTF-8"]


def test_the_bundle_that_is_there_must_be_the_same(root: Path, tmp_path: Path) -> None:
    there = tmp_path / "bundle"
    there.mkdir()
    (there / "bzImage").write_text("")
    (there / "manifest.json").write_text('{"files": {}}')
    assert builds(root, "none", bundle=there)[0].result == "same"
    (there / "manifest.json").write_text('{"files": {"a": 1}}')
    record, _ = builds(root, "none", bundle=there)
    assert record.result == "different"
    assert record.files == {}
    assert [(each.file, each.where) for each in record.differences] == [
        ("manifest.json (bundle)", "files"), ("manifest.json (bundle)", "files.a"),
    ]  # fmt: skip
    assert reproduce.cause(record).startswith("the two builds are the same, but not the bundle that was there, ")


def test_an_input_beside_the_checkout_is_copied(root: Path) -> None:
    (root / "out/choice-x.json").write_text("chosen")
    (root / "build.py").write_text(BUILD.replace('"none": ""', '"none": open("out/choice-x.json").read()'))
    record, _ = builds(root, "none", inputs=[root / "out/choice-x.json"])
    assert record.files["bzImage"].size == len("chosen")


def test_the_table_tells_what_came_out(root: Path) -> None:
    record, _ = builds(root, "none")
    lines = reproduce.table(record).splitlines()
    assert lines[2].split() == ["umask", "0022", "|", "0077"]
    assert any(line.startswith("  date ") and "not varied: the second build began" in line for line in lines)
    assert lines[-1] == "built twice, the same: bzImage"
    record, _ = builds(root, "user")
    lines = reproduce.table(record).splitlines()
    assert lines[-2:] == ["the two builds are not the same, 1 differences:", "bzImage: line 1: alice | bartholomew"]


def test_a_failed_build_is_kept_and_named(root: Path) -> None:
    with pytest.raises(
        ToolError,
        match=r"(?s)the first build failed, in .*/first/a\n.*exit status 1.*unknown: 'nonsense'.*work/first/build.log",
    ):
        builds(root, "nonsense")
    assert (root.parent / "work/first/a/build.py").is_file()


def test_a_build_without_a_bundle_is_named(root: Path) -> None:
    (root / "build.py").write_text("")
    with pytest.raises(ToolError, match="the build left 0 bundles"):
        builds(root, "none")


def test_what_an_earlier_run_left_is_no_part_of_it(root: Path) -> None:
    builds(root, "umask")
    (root.parent / "work/first/a/out/x-6.12/bundle/old").write_text("")
    assert builds(root, "none")[0].result == "same"
    assert list((root.parent / "work").iterdir()) == []  # a report of diffoscope's neither


def test_arguments_that_name_a_file_name_the_same_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    arguments = [
        "kernel=6.12",
        "source=../linux",
        "guest=own.toml",
        "guest=efi-off",
        "source=pinned",
        "source=~/l",
        "clean",
    ]
    # Both builds get the same arguments, although the copies and their $HOME differ.
    assert builds(root, "arguments", *arguments)[0].result == "same"
    assert [reproduce.absolute(each, root) for each in arguments] == [
        "kernel=6.12", f"source={root}/../linux", f"guest={root}/own.toml", "guest=efi-off", "source=pinned",
        "source=/home/x/l", "clean",
    ]  # fmt: skip


def test_the_copy_is_as_the_umask_makes_it(root: Path, tmp_path: Path) -> None:
    (root / "link").symlink_to("configs/tool")
    modes = {}
    for mask in (0o022, 0o077):
        with reproduce._umask(mask):
            reproduce._copy(root, reproduce.checkout(root), target := tmp_path / oct(mask))
        modes[mask] = [stat.S_IMODE((target / name).stat().st_mode) for name in ("build.py", "configs/tool", "configs")]
        assert (target / "link").is_symlink()
    assert modes == {0o022: [0o644, 0o755, 0o755], 0o077: [0o600, 0o700, 0o700]}


def test_a_checkout_without_git(root: Path) -> None:
    for name in (".venv/x", ".git/x", ".doit.db"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("")
    assert reproduce.checkout(root) == ["build.py", "configs/tool"]


def test_a_checkout_with_git(root: Path) -> None:
    (root / ".gitignore").write_text("/out/\n*.o\n")
    (root / "deleted").write_text("")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    subprocess.run(["git", "add", "build.py", "deleted"], cwd=root, check=True)
    (root / "deleted").unlink()
    (root / "x.o").write_text("")
    assert reproduce.checkout(root) == [".gitignore", "build.py", "configs/tool"]


def test_the_two_differ_in_everything() -> None:
    for field in FIRST.__struct_fields__:
        assert getattr(FIRST, field) != getattr(SECOND, field)


def test_a_user_without_a_name_can_compile(tmp_path: Path) -> None:
    """As reproduce's second build does, in a user namespace; and a container that runs with any number."""
    (tmp_path / "a.c").write_text("int a;\n")
    line = reproduce.argv(SECOND, ["ccache", "gcc", "-c", "a.c"], namespace=not reproduce.refusal_of(SECOND))
    run.run(line, cwd=tmp_path, env=kbuild.make_environment(Store(tmp_path / "store"), tmp_path), bare=True)
    assert (tmp_path / "a.o").is_file()
