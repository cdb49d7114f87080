# SPDX-License-Identifier: Apache-2.0
"""What a doit run is about, read from its command line: which kernel, if any; and what is minguest's now."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minguest.paths import Layout
from minguest.tasks import project
from tests import ROOT, workshop

# Nobody answers there: a run that asks the network for a kernel fails, and so does one that has none in its cache.
NO_NETWORK = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}


def doit(root: Path, *arguments: str, cache: Path, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "doit", *arguments],
        cwd=root,
        env=workshop.doit_env(MINGUEST_CACHE=str(cache), **NO_NETWORK),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def fresh(tmp_path: Path) -> Layout:
    """A checkout in which no kernel was chosen yet."""
    made = workshop.build(tmp_path / "p")
    workshop.checkout(made)
    for kept in made.out.glob("choice-*.json"):
        kept.unlink()
    return made


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["-v", "2", "list"], ["list", "--all"], ["forget", "initd"], ["initd"],
     ["-v", "0", "list", "lint"], ["help", "boot-test"]],
)  # fmt: skip
def test_what_needs_no_kernel_asks_for_none(fresh: Layout, tmp_path: Path, arguments: list[str]) -> None:
    doit(fresh.root, *arguments, cache=tmp_path / "empty")
    assert not list(fresh.out.glob("choice-*.json"))


def test_publish_needs_none_either(fresh: Layout, tmp_path: Path) -> None:
    said = doit(fresh.root, "publish", "to=to", f"kernel={fresh.series}", cache=tmp_path / "empty", status=1)
    assert "release" in said and "not available" not in said
    assert not list(fresh.out.glob("choice-*.json"))


def test_what_builds_one_asks(fresh: Layout, tmp_path: Path) -> None:
    assert "none answered" in doit(fresh.root, "config", cache=tmp_path / "empty", status=3)


def test_every_task_is_with_or_without_a_kernel() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "doit", "list", "--quiet"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(listed) == project.WITH_KERNEL | project.WITHOUT_KERNEL
    assert not project.WITH_KERNEL & project.WITHOUT_KERNEL


def test_what_a_task_does_is_written_once(fresh: Layout, tmp_path: Path) -> None:
    """doit shows the doc of a step in place of its function's docstring."""
    said = doit(fresh.root, "list", cache=tmp_path / "empty")
    listed = dict(re.split(r" +", line, maxsplit=1) for line in said.splitlines())
    body = ast.parse((ROOT / "dodo.py").read_text()).body
    functions = [each for each in body if isinstance(each, ast.FunctionDef)]
    written = {each.name.removeprefix("task_").replace("_", "-"): ast.get_docstring(each) for each in functions}
    assert all(listed.values()) and listed.keys() == written.keys()
    docstrings = {name: doc for name, doc in written.items() if doc}
    assert {name: listed[name] for name in docstrings} == docstrings


@pytest.mark.parametrize(
    ("arguments", "needs"),
    [
        ([], True),
        (["build"], True),
        (["lint"], False),
        (["lint:ruff", "initd"], False),
        (["lint", "boot-test", "--cpus", "2"], True),
        (["-v", "2", "list"], False),
        (["help", "build"], False),
        (["kernel=6.12"], True),
        (["kernel=6.12", "lint"], False),
        (["tree:default-6.12"], True),
        (["init*"], True),
        (["out/default-6.12/bundle/bzImage"], True),
        (["run", "test"], False),
        (["lnt"], False),
        (["-v", "2"], True),
        (["-o", "build", "lint"], False),
        (["strace", "tree"], True),
        (["bench", "build"], False),
        (["config", "bench", "size"], True),
        (["guest=host", "list"], False),
        (["-n", "2", "kernel=6.12"], True),
    ],
)
def test_which_run_needs_a_kernel(arguments: list[str], needs: bool) -> None:
    assert project.needs_kernel(arguments) is needs


@pytest.mark.parametrize(
    ("arguments", "types"),
    [
        (["diagnose", "log=a b.log", "report=r"], "minguest diagnose 'a b.log' --report r"),
        (["diagnose"], "minguest diagnose LOG"),
        (["diagnose", "x.log"], "minguest diagnose x.log"),
        (["log=x.log", "diagnose", "guest=host"], "minguest diagnose x.log"),
        (["list", "plan"], "minguest plan"),
        (["doctor", "image=vmlinuz", "cpus=8"], "minguest doctor vmlinuz --cpus 8"),
        (["plan", "card=nvidia-h100", "--count", "8"], "minguest plan --count 8 --card nvidia-h100"),
        (["host-bind", "gpu=0000:01:00.0", "yes=yes"], "minguest host-bind --gpu 0000:01:00.0 --yes"),
        (["host-unbind", "yes=no"], "minguest host-unbind"),
        (["-v", "2", "host-check", "gpu=x"], "minguest host-check --gpu x"),
        (["help", "diagnose"], "minguest diagnose LOG"),
        (["help", "plan"], "minguest plan"),
        (["verify", "out/default-6.12/release"], "minguest verify out/default-6.12/release"),
        (["help", "verify"], "minguest verify RELEASE"),
        (["pull"], "minguest pull SOURCE"),
        (["cache", "--prune"], "minguest cache --prune"),
        (["help", "cache"], "minguest cache"),
    ],
)
def test_what_is_minguests_now_is_said_in_one_line(arguments: list[str], types: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "doit", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    name = next(each for each in arguments if each in project.MOVED)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", f"ERROR: `doit {name}` is now: {types}\n")


def test_every_variable_that_moved_has_its_place() -> None:
    for name, place in project.MOVED_VARIABLES.items():
        assert place.startswith("minguest ") or place.startswith(f"--{name} of "), name


@pytest.mark.parametrize(
    ("argument", "why"),
    [
        ("kernl=6.12", "kernl=6.12: no such variable\n  remedy: nearest: kernel="),
        ("zzz=1", "remedy: known: guest= kernel="),
        ("log=x", "log=x: no such variable\n  remedy: what takes it now: minguest diagnose LOG\n"),
        ("report=x", "remedy: what takes it now: minguest diagnose LOG --report FILE\n"),
        ("image=x", "remedy: what takes it now: minguest doctor IMAGE\n"),
        ("card=nvidia-h100", "remedy: what takes it now: minguest plan --card NAME\n"),
        ("yes=yes", "remedy: what takes it now: minguest host-bind --yes, minguest host-unbind --yes\n"),
        ("gpu=none", "remedy: what takes it now: --gpu of doit boot-test, doit rehearse, minguest plan, doctor, "),
        ("cpus=2", "remedy: what takes it now: --cpus of doit boot-test, doit rehearse and minguest doctor\n"),
        ("config=x", "remedy: what takes it now: minguest doctor IMAGE --config FILE\n"),
        ("contract=maybe", "contract=maybe: not known\n  remedy: contract=ignore"),
        ("unsigned=perhaps", "unsigned=perhaps: not known\n  remedy: unsigned=yes or unsigned=no"),
        ("kernel=5.4", "kernel=5.4: no such series\n  remedy: known series: 4.12, 6.12"),
        ("guest=none-such", "none-such.toml: no such file"),
    ],
)
def test_a_wrong_variable_is_named(argument: str, why: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "doit", "initd", argument], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert why in done.stderr and "Traceback" not in done.stderr


def test_help_names_a_wrong_variable_too() -> None:
    """On an InvalidDodoFile, doit's help shows its general help in place of the message."""
    done = subprocess.run(
        [sys.executable, "-m", "doit", "help", "boot-test", "kernl=6.12"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    said = "ERROR: kernl=6.12: no such variable\n  remedy: nearest: kernel=\n"
    assert (done.returncode, done.stdout, done.stderr) == (3, "", said)


def test_a_kept_choice_that_is_damaged_is_none(fresh: Layout, tmp_path: Path) -> None:
    fresh.choice.write_bytes(b'{"wanted": ["\xff"]}')
    assert "boot-test" in doit(fresh.root, "list", cache=tmp_path / "empty")


def test_a_command_may_stand_after_options() -> None:
    given = ["-v", "2", "--db-file", "x", "guest=host", "list", "--all"]
    assert project.command_first("list", given) == ["list", "--db-file", "x", "guest=host", "--all"]
