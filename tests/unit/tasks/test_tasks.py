# SPDX-License-Identifier: Apache-2.0
"""How a command line is read, and what the tasks that start a bundle do with the result."""

import contextlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from doit.exceptions import InvalidTask

from minguest import VERSION
from minguest.boottest import certify, inject, records, rehearse, runner
from minguest.bundle import initrd, manifests, reproduce
from minguest.bundle.reproduction import SCHEMA, Difference, Reproduction
from minguest.diagnose import page
from minguest.kernel import source
from minguest.model import Choice
from minguest.paths import Store
from minguest.release import evidence
from minguest.tasks import project, reporter, test
from minguest.util.errors import GuestFailed, UserError
from minguest.vm.launch import Options
from tests import ROOT, fake_qmp
from tests.unit.boottest import test_runner
from tests.unit.tasks.test_build import Toy, refused

KEPT = Choice(("4.12", "6.12"), "6.12", "6.12.1", "in the cache")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """A checkout in which nothing was made."""
    toy = Toy(tmp_path / "toy")
    toy.here(monkeypatch)
    return toy


# ── the guest ──


def test_a_firmware_that_is_not_in_sources_is_named(toy: Toy) -> None:
    guest = toy.guest("g.toml", 'name = "toy"\nkernel = ["6.12"]\nfirmware = "ovfm"\n')
    with pytest.raises(UserError, match=r"g\.toml: firmware = 'ovfm': not in sources\.toml") as raised:
        toy.project("g.toml", chooses=False)
    assert raised.value.remedy == "known: ovmf, ovmf-minimal"
    said = toy.run("initd", f"guest={guest}", status=3)
    assert said == f"ERROR: {guest}: firmware = 'ovfm': not in sources.toml\n  remedy: known: ovmf, ovmf-minimal\n"


def test_an_overlay_that_is_not_there_is_named(toy: Toy) -> None:
    guest = toy.guest("g.toml", 'name = "toy"\nkernel = ["6.12"]\noverlays = ["base", "none"]\n')
    said = toy.run("build", f"guest={guest}", status=3)
    why = "overlay 'none': no such folder in overlays/ or from the project's root"
    assert said.endswith(f"ERROR: {guest}: {why}\n")


def test_overlays_are_taken_from_their_folder_first(toy: Toy) -> None:
    toy.write("base/etc/other", "")
    found = toy.project(chooses=False).overlays
    assert found == [toy.root / "overlays/base", toy.root / "mine"]


def test_two_overlays_of_one_name_are_refused(toy: Toy) -> None:
    toy.write("other/mine/file", "")
    guest = toy.guest("g.toml", 'name = "toy"\nkernel = ["6.12"]\noverlays = ["mine", "other/mine"]\n')
    said = toy.run("build", f"guest={guest}", status=3)
    assert f"ERROR: {guest}: overlays: 'mine' and 'other/mine': two of one name" in said and "Traceback" not in said


def test_fragments_are_of_the_series(toy: Toy) -> None:
    names = {series: [path.name for path in toy.project(chooses=False, kernel=series).fragments]
             for series in ("4.12", "6.12")}  # fmt: skip
    assert names == {"4.12": ["10-toy.config", "20-old.4.12.config"], "6.12": ["10-toy.config"]}


def test_tools_are_those_that_compile(toy: Toy) -> None:
    assert toy.project(chooses=False).tools == {**source.compiler_tools(), "musl": initrd.musl_version()}


@pytest.mark.parametrize(
    ("unsigned", "contract", "found"),
    [(None, None, (False, False)), ("no", None, (False, False)), ("yes", "ignore", (True, True))],
)
def test_what_is_allowed_needs_yes_or_ignore(
    toy: Toy, unsigned: str | None, contract: str | None, found: tuple[bool, bool]
) -> None:
    given = {name: value for name, value in (("unsigned", unsigned), ("contract", contract)) if value}
    made = toy.project(chooses=False, **given)
    assert (made.unsigned, made.ignore) == found


def test_another_value_is_an_error(toy: Toy) -> None:
    with pytest.raises(UserError, match="contract=yes: not known") as raised:
        toy.project(chooses=False, contract="yes")
    assert raised.value.remedy == "contract=ignore"
    with pytest.raises(UserError, match="unsigned=ignore: not known") as raised:
        toy.project(chooses=False, unsigned="ignore")
    assert raised.value.remedy == "unsigned=yes or unsigned=no"


def test_paths_are_absolute_and_shown_from_the_checkout_on(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/it")
    monkeypatch.chdir(toy.folder)
    made = toy.project(chooses=False, key="~/key", since="before")
    assert (made.path("key"), made.path("since"), made.path("to")) == (
        Path("/home/it/key"),
        Path.cwd() / "before",
        None,
    )
    assert made.shown(toy.root / "out/x") == "out/x" and made.shown(toy.folder / "x") == str(toy.folder / "x")


def test_a_boot_test_is_done_in_the_guests_folder(toy: Toy) -> None:
    made = toy.project(chooses=False, kernel="6.12")
    at = toy.at()
    assert made.bench == runner.Bench("toy-6.12", at.bundle, at.boot_test, at.kvm, at.pits, at.evidence)
    assert made.store == Store(toy.store)


# ── the choice of its kernel ──


def test_a_choice_is_kept_and_written_once(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    made = toy.project()
    place = toy.at().choice
    assert msgspec.json.decode(place.read_bytes(), type=Choice) == made.choice
    assert (made.choice.series, made.pinned) == ("6.12", made.sources.kernel["6.12"])
    reason = "linux 4.12.14: 1 mirrors, none answered; building 6.12.1 (in the cache)\n"
    assert capsys.readouterr().out == reason
    written = place.stat().st_ino, place.stat().st_mtime_ns
    assert toy.project().choice == made.choice
    assert (place.stat().st_ino, place.stat().st_mtime_ns) == written
    assert capsys.readouterr().out == reason
    fixed = toy.project(kernel="6.12").choice
    assert fixed.fixed and msgspec.json.decode(place.read_bytes(), type=Choice) == fixed


def test_a_kernel_that_cannot_be_downloaded_is_one_line(toy: Toy) -> None:
    said = toy.run("build", "kernel=4.12", status=3)
    assert said.startswith(
        "ERROR: kernel=4.12: linux 4.12.14 is not available: not in the cache, 1 mirrors, none answered"
    )
    assert not toy.at().choice.exists()


@pytest.mark.parametrize(
    ("kept", "kernel", "found"),
    [
        (None, None, Choice(("4.12", "6.12"), "4.12", "4.12.14", "not chosen yet")),
        (None, "auto", Choice(("4.12", "6.12"), "4.12", "4.12.14", "not chosen yet")),
        (None, "6.12", Choice(("4.12", "6.12"), "6.12", "6.12.1", "not chosen yet")),
        (KEPT, None, KEPT),
        (KEPT, "auto", KEPT),
        (KEPT, "6.12", KEPT),
        (KEPT, "4.12", Choice(("4.12", "6.12"), "4.12", "4.12.14", "not chosen yet")),
        # Of a series that this project had once.
        (Choice(("5.4",), "5.4", "5.4.1", "in the cache"), None,
         Choice(("4.12", "6.12"), "4.12", "4.12.14", "not chosen yet")),
    ],
)  # fmt: skip
def test_a_run_that_needs_no_kernel_goes_by_the_choice_that_is_kept(
    toy: Toy, kept: Choice | None, kernel: str | None, found: Choice
) -> None:
    place = toy.at().choice
    if kept:
        place.parent.mkdir()
        place.write_bytes(msgspec.json.encode(kept))
    made = toy.project(chooses=False, **({"kernel": kernel} if kernel else {}))
    assert (made.choice, made.at) == (found, toy.at(series=found.series))
    assert place.read_bytes() == msgspec.json.encode(kept) if kept else not place.exists()


def test_the_list_names_the_version_that_a_first_run_may_build(toy: Toy) -> None:
    said = toy.run("list", "--all")
    assert re.findall(r"^(tree|kernel):toy-4\.12 +linux (\S+): ", said, re.MULTILINE) == [
        ("kernel", "4.12.14"), ("tree", "4.12.14")
    ]  # fmt: skip


def test_a_series_that_is_not_in_sources_can_still_be_listed(toy: Toy) -> None:
    guest = toy.guest("g.toml", 'name = "toy"\nkernel = ["5.4"]\n')
    assert "linux 5.4: " in toy.run("list", "--all", f"guest={guest}")


def test_a_choice_that_is_damaged_is_none(toy: Toy) -> None:
    toy.write("out/choice-toy.json", '{"series": "6.12"')
    assert toy.project(chooses=False).choice.reason == "not chosen yet"


def test_the_rehearsals_host_has_the_first_of_its_kernels_as_it_is_pinned(toy: Toy) -> None:
    # A launch that this machine cannot start is no error of a run that starts another one.
    toy.guest("configs/guests/host.toml", 'name = "host"\nkernel = ["6.12", "4.12"]\n', launch='window = "no size"\n')
    host = toy.project(chooses=False, kernel="4.12", contract="ignore").host
    assert host.choice == Choice(("6.12", "4.12"), "6.12", "6.12.1", "pinned")
    assert (host.at, host.ignore, host.host.at) == (toy.at("host"), False, host.at)
    assert not (toy.root / "out").exists()


def test_what_cannot_be_built_or_started_is_named_before_anything_is_unpacked(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.guest("g.toml", 'name = "toy"\nkernel = ["6.12"]\n', launch='window = "no size"\n')
    with pytest.raises(UserError, match=r"^g\.toml: .*no size"):
        toy.project("g.toml")
    toy.project("g.toml", chooses=False)
    monkeypatch.setenv("MINGUEST_STORE", "/a folder")
    with pytest.raises(UserError, match="make cannot build in a folder with ' '"):
        toy.project()
    toy.project(chooses=False)
    assert not toy.store.exists()


# ── the command line ──


class Line:
    """project.project() of a command line, in this process."""

    def __init__(self, toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.toy, self.monkeypatch = toy, monkeypatch
        self.shows: list[bool] = []
        self.instead: list[list[str]] = []
        monkeypatch.setattr(reporter, "begin", lambda _, *, shows: self.shows.append(shows))
        monkeypatch.setattr(os, "execv", self._execv)

    def _execv(self, program: str, argv: list[str]) -> None:
        assert program == argv[0] == sys.executable
        self.instead.append(argv[1:])
        raise SystemExit

    def read(self, *arguments: str) -> project.Project:
        given = dict(each.split("=", 1) for each in arguments if "=" in each and not each.startswith("-"))
        self.monkeypatch.setattr(project, "get_var", given.get)
        self.monkeypatch.setattr(sys, "argv", ["doit", *arguments])
        return project.project(self.toy.root)


@pytest.fixture
def line(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> Line:
    return Line(toy, monkeypatch)


@pytest.mark.parametrize(
    ("command", "shows"),
    [("list", True), ("help", True), ("info", True), ("dumpdb", True), ("tabcompletion", True), ("clean", False),
     ("forget", False), ("ignore", False), ("strace", False), ("reset-dep", False), ("initd", False)],
)  # fmt: skip
def test_a_reader_that_goes_away_ends_only_what_shows(line: Line, command: str, shows: bool) -> None:
    line.read(command)
    assert line.shows == [shows] and line.instead == []


def test_a_command_after_options_is_started_again_with_it_first(line: Line) -> None:
    with pytest.raises(SystemExit):
        line.read("-v", "2", "list", "--all")
    assert line.instead == [["doit", "list", "--all"]] and line.shows == []


def test_variables_are_read_by_name(line: Line) -> None:
    given = ["kernel=6.12", "contract=ignore", "version=1", "key=k", "unsigned=yes", "since=s", "to=t", "only=o"]
    made = line.read("initd", *given)
    others = dict.fromkeys(("guest", "source", "src", "name", "make", "redistribute", "scheduler", "store"))
    assert made.variables == {**dict(each.split("=") for each in given), **others}
    assert (made.guest.name, made.at.series) == ("toy", "6.12")
    own = line.toy.guest("own.toml", 'name = "own"\nkernel = ["6.12"]\n')
    assert line.read("initd", f"guest={own}").guest.name == "own"
    assert line.read("initd", "guest=host").guest.name == "host"


@pytest.mark.parametrize(
    ("arguments", "chosen"), [(["initd"], False), (["list"], False), (["build"], True), ([], True)]
)
def test_a_kernel_is_chosen_where_one_is_needed(line: Line, arguments: list[str], chosen: bool) -> None:
    line.read(*arguments)
    assert line.toy.at().choice.exists() is chosen


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["initd", "kernl=6.12"], "kernl=6.12: no such variable\n  remedy: nearest: kernel="),
        (["initd", "zzz=1"], "zzz=1: no such variable\n  remedy: known: guest= kernel= source="),
        (["plan", "gpu=01:00.0"], "`doit plan` is now: minguest plan --gpu 01:00.0"),
        (["initd", "kernel=5.4"], "kernel=5.4: no such series"),
    ],
)
def test_what_cannot_be_read_is_an_error_of_doits(line: Line, arguments: list[str], why: str) -> None:
    with pytest.raises(InvalidTask) as raised:
        line.read(*arguments)
    assert str(raised.value).startswith(why)


NO_VERSION = "no version for the release"
NO_KEY = "no key to sign with"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["release"], f"{NO_VERSION}; {NO_KEY}\n  remedy: for example: doit release version=1.0 key="),
        (["release", "key=k"], f"{NO_VERSION}\n  remedy: for example: doit release version=1.0 key="),
        (["build", "release", "version=1.0"], f"{NO_KEY}\n"),
        (["run", "release", "version=1.0", "unsigned=no"], f"{NO_KEY}\n"),
        (["rel*", "unsigned=yes"], f"{NO_VERSION}\n"),
        (["release", "version=1/0", "unsigned=yes"], "version=1/0: not a version\n"),
        (["release", "version=1.0", "key=/nowhere"], "key=/nowhere: no such file\n"),
        (["release", "version=1.0", "unsigned=true"], "unsigned=true: not known\n"),
        (["build", "publish"], "to= is not given\n  remedy: for example: doit publish to="),
        (["release", "publish", "version=1.0", "unsigned=yes"], "to= is not given\n"),
        (["build", "publish", "to=ftp://host"], "to=ftp://host: not a place to publish to\n"),
        (["modules"], "modules: src= is not given\n  remedy: src=DIR, src=TARBALL or src=PACKAGE.deb"),
        (["build", "modules", "src=/nowhere"], "src=/nowhere: no such file or folder"),
        (["modules", "src=initd", "name=a/b"], "name=a/b: becomes a folder's name\n"),
        (["publish", "to=s3://"], "'s3://' is not a place in an S3 store\n"),
        (["publish", "to=github:owner"], "'github:owner' is not a repository at GitHub\n"),
        (["publish", "to=oci://host"], "'oci://host': not a place in a registry"),
    ],
)
def test_what_a_release_lacks_is_named_before_anything_is_built(
    line: Line, monkeypatch: pytest.MonkeyPatch, arguments: list[str], why: str
) -> None:
    monkeypatch.delenv("MINGUEST_SIGNING_KEY", raising=False)
    with pytest.raises(InvalidTask) as raised:
        line.read(*arguments)
    assert str(raised.value).startswith(why)
    assert not line.toy.at().choice.exists()


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["help", "release"], ["help", "publish"], ["forget", "release"], ["initd"], ["publish", "to=folder"],
     ["release", "version=1.0", "unsigned=yes"], ["release", "version=1.0", "key=pyproject.toml"]],
)  # fmt: skip
def test_what_makes_no_release_needs_no_version(
    line: Line, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.delenv("MINGUEST_SIGNING_KEY", raising=False)
    monkeypatch.chdir(line.toy.root)
    assert line.read(*arguments).guest.name == "toy"


def test_the_environment_may_name_the_key(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINGUEST_SIGNING_KEY", str(line.toy.root / "pyproject.toml"))
    assert line.read("release", "version=1.0").guest.name == "toy"


def test_options_with_values_are_no_variables(line: Line) -> None:
    assert line.read("initd", "--db-file=x", "-n=2").guest.name == "toy"


# ── boot tests, by a program in QEMU's place ──


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A checkout in which `doit build` ran."""
    toy = Toy(tmp_path_factory.mktemp("built"))
    toy.run("build", "kernel=6.12")
    return toy


@pytest.fixture
def there(built: Toy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    """The same, without what earlier tests came to."""
    built.here(monkeypatch)
    at = built.at()
    yield built
    for folder in (at.evidence, at.matrices):
        shutil.rmtree(folder, ignore_errors=True)
    at.reproduced.unlink(missing_ok=True)


# Without the fake's log of what it heard: a boot test takes no folder in which there is a file of others.
QUIET = """\
import json, pathlib, sys
sys.path.insert(0, {folder!r})
import fake_qmp
class Quiet(fake_qmp._Fake):
    def __init__(self, scene):
        super().__init__(scene)
        self.log = pathlib.Path("/dev/null")
fake_qmp._Fake = Quiet
fake_qmp.main(json.loads(pathlib.Path({scene!r}).read_text()), sys.argv[1:])
"""


def qemu(toy: Toy, *steps: list[Any]) -> dict[str, str]:
    """The environment in which QEMU is a program that does `steps`."""
    program = fake_qmp.install(toy.folder / "path", steps=steps)
    code = QUIET.format(folder=str(ROOT / "tests"), scene=str(program.with_name("scene.json")))
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E -c {shlex.quote(code)} "$@"\n')
    return {"PATH": f"{toy.folder / 'path'}:{os.environ['PATH']}"}


def report(online: str = "0") -> str:
    """Of a guest with one CPU that booted this bundle."""
    text = test_runner.records(online)
    for old, new in (("4.12.14", "6.12.1"), ("2025.02-8+deb13u1", "2025.02-toy"), ('"0-63"', '"0"')):
        text = text.replace(old, new)
    return text


def test_boot_test_is_of_the_bundle_and_the_options(there: Toy) -> None:
    env = qemu(there, *test_runner.steps(report()))
    said = there.run("boot-test", env=env)
    assert "PASS: three views agree" in said
    outcome = msgspec.json.decode((there.at().boot_test / "verdict.json").read_bytes(), type=runner.Outcome)
    assert (outcome.spec.cpus, outcome.spec.machine, outcome.spec.timeout) == (1, "q35", 120)
    assert outcome.bundle == manifests.load(there.at().bundle).files
    said = there.run("boot-test", "--machine", "pc", "--timeout", "50", "--gpu", "none", env=env)
    assert "toy-6.12: linux 6.12.1, OVMF 2025.02-toy, pc, tcg as requested" in said
    outcome = msgspec.json.decode((there.at().boot_test / "verdict.json").read_bytes(), type=runner.Outcome)
    assert (outcome.spec.machine, outcome.spec.timeout, outcome.spec.gpus) == ("pc", 50, ())


def test_a_guest_that_says_nothing_is_one_failed_line(there: Toy) -> None:
    said = there.run("boot-test", status=1, env=qemu(there, *test_runner.steps("")))
    assert refused(said).startswith("boot-test: FAIL, lost: ")
    said = there.run("boot-test", "--cpus", "none", status=1, env=qemu(there))
    assert refused(said).startswith("boot-test: ") and "--cpus" in refused(said)


def test_evidence_is_of_what_passed(there: Toy) -> None:
    env = qemu(there, *test_runner.steps(report()))
    at = there.at()
    said = there.run("evidence", status=1, env=env)
    # It shows one card, and powers off before its button is pressed.
    assert refused(said) == "evidence: FAIL: power-button, large-bars"
    assert "their consoles are in out/toy-6.12/evidence" in said
    results = {name: result for result, name in re.findall(r"^ +(PASS|FAIL) +(\S+)", said, re.MULTILINE)}
    assert results == {"boot-test-q35-1": "PASS", "boot-test-pc-1": "PASS", "power-button": "FAIL",
                       "large-bars": "FAIL"}  # fmt: skip
    assert (at.evidence / "boot-test-pc-1/verdict.json").is_file()
    # What passed is not run again.
    again = there.run("evidence", status=1, env=qemu(there, *test_runner.steps("")))
    assert re.findall(r"^ +PASS +(\S+)", again, re.MULTILINE) == ["boot-test-q35-1", "boot-test-pc-1"]


def test_evidence_goes_on_after_what_fails_or_cannot_be_run(
    there: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {each.options: each.name for each in runner.tests(there.project(chooses=False).guest.launch)}
    ran: list[str] = []
    comes_to: Mapping[str, Exception] = {
        "boot-test-q35-1": GuestFailed("it has no CPU", "read the console"),
        "boot-test-pc-1": UserError("more memory than there is"),
        "large-bars": GuestFailed("it has no BAR"),
    }

    def run(bench: runner.Bench, options: Options, wanted: Any, say: Any) -> None:
        ran.append(names[options])
        if error := comes_to.get(names[options]):
            raise error

    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(runner, "without_room", lambda _, each, __: "too small" * (each.name == "power-button"))
    failed = test.evidence_step(there.project(chooses=False))["actions"][0]()
    assert ran == ["boot-test-q35-1", "boot-test-pc-1", "large-bars"]
    assert failed.get_msg().rstrip() == (
        "FAIL: boot-test-q35-1, large-bars\n  remedy: their consoles are in out/toy-6.12/evidence"
    )
    said = capsys.readouterr().out
    assert said.startswith(
        "it has no CPU\n  remedy: read the console\nboot-test-pc-1 cannot be run: more memory than there is\n"
        "power-button is not run: too small\nit has no BAR\n"
    )
    assert re.findall(r"^ +NOT RUN +(\S+)", said, re.MULTILINE)[-4:] == ["pits", "rehearsal", "necessity", "real-card"]
    monkeypatch.setattr(runner, "run", lambda *_: None)
    assert test.evidence_step(there.project(chooses=False))["actions"][0]() is None


def test_evidence_that_could_not_be_run_at_all_is_an_error(there: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise UserError("there is a file of yours in the folder")

    monkeypatch.setattr(runner, "run", refuse)
    monkeypatch.setattr(runner, "without_room", lambda *_: "")
    failed = test.evidence_step(there.project(chooses=False))["actions"][0]()
    assert failed.get_msg().startswith("no boot test could be run: boot-test-q35-1, ")


def test_evidence_is_looked_at_again_after_the_tests(there: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this bundle, with what its kernel was built for and with the pits of this project."""
    of: list[tuple[Any, ...]] = []
    tables: list[Any] = []
    checks, table = evidence.checks, evidence.table

    def look(*about: Any) -> list[evidence.Check]:
        of.append(about)
        return checks(*about)

    def show(found: Any) -> str:
        tables.append(found)
        return table(found)

    monkeypatch.setattr(evidence, "checks", look)
    monkeypatch.setattr(evidence, "table", show)
    monkeypatch.setattr(runner, "run", lambda *_: None)
    monkeypatch.setattr(runner, "without_room", lambda *_: "")
    made = there.project(chooses=False)
    assert test.evidence_step(made)["actions"][0]() is None
    about = made.at, manifests.load(made.at.bundle), 1, made.pits
    assert of == [about, about] and len(tables) == 1


# ── each option left out ──


def certified(there: Toy, monkeypatch: pytest.MonkeyPatch, *rows: records.Row) -> Any:
    """How `doit certify` ends with these rows; None: well."""
    made = records.Certificate(
        records.CERTIFICATE_SCHEMA, "6.12", "6.12.94", {}, {}, "gcc", "7.2", "", "", True, 1000, None, rows
    )
    monkeypatch.setattr(initrd, "compile_initd", lambda *_: None)
    monkeypatch.setattr(test, "_injected", lambda *_: contextlib.nullcontext((None, None)))
    monkeypatch.setattr(certify, "run", lambda *_: made)
    return test.certify_step(there.project(chooses=False))["actions"][0]()


def test_a_certificate_fails_where_an_option_has_no_reason_or_was_not_tried(
    there: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = records.Row("EPOLL", "10-base.config", "y", "Loops.", "row")
    unseen, not_run = (msgspec.structs.replace(one, option=kind, kind=kind) for kind in ("unseen", "NOT RUN"))
    assert certified(there, monkeypatch, one) is None
    assert certified(there, monkeypatch, one, unseen).get_msg().startswith("no test shows what these are for: unseen\n")
    assert certified(there, monkeypatch, one, not_run).get_msg().startswith("NOT RUN: NOT RUN\n")


def test_a_certificate_is_of_the_bundles_compiler(there: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "compiler_tools", lambda: {"gcc": "1.2", "binutils": "3.4"})
    failed = certified(there, monkeypatch)
    assert re.search(
        r"out/toy-6\.12/bundle is of gcc .*, and this machine has gcc 1\.2, binutils 3\.4", failed.get_msg()
    )


# ── built twice ──


def reproduced(result: str, *differences: Difference) -> Reproduction:
    return Reproduction(SCHEMA, result, {}, differences, {"umask": ("1", "2")}, {}, VERSION)  # type: ignore[arg-type]


@pytest.mark.parametrize(("ignore", "variables"), [(False, []), (True, ["contract=ignore"])])
def test_reproduce_builds_the_same_guest_twice(
    there: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ignore: bool, variables: list[str]
) -> None:
    got: list[tuple[Any, ...]] = []
    same = reproduced("same")

    def builds(*given: Any, **more: Any) -> Reproduction:
        got.append((*given[:3], more))
        return same

    monkeypatch.setattr(reproduce, "builds", builds)
    made = there.project(chooses=False, **({"contract": "ignore"} if ignore else {}))
    at = made.at
    assert test.reproduce_step(made)["actions"][0]() is None
    more = {"store": Store(there.store).reproduce, "bundle": at.bundle, "inputs": [at.choice]}
    guest = f"guest={there.root / 'configs/guest.toml'}"
    assert got == [(there.root, at.work / "reproduce", [guest, *variables], more)]
    assert msgspec.json.decode(at.reproduced.read_bytes(), type=Reproduction) == same
    assert capsys.readouterr().out == f"{reproduce.table(same)}\n"


def test_two_builds_that_differ_are_one_failed_line(there: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    other = reproduced("different", Difference("bzImage", "", "1", "2"))
    monkeypatch.setattr(reproduce, "builds", lambda *_, **__: other)
    failed = test.reproduce_step(there.project(chooses=False))["actions"][0]()
    assert failed.get_msg().rstrip() == (
        "the two builds are not the same, 1 differences\n  remedy: both are kept in out/toy-6.12/reproduce"
    )
    # The record is kept for the evidence.
    assert msgspec.json.decode(there.at().reproduced.read_bytes(), type=Reproduction) == other


# ── the rehearsal ──


def test_a_rehearsal_gets_what_the_user_says_and_nothing_for_the_rest(
    there: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[tuple[rehearse.Site, records.Options]] = []
    monkeypatch.setattr(rehearse, "run", lambda site, options, say: got.append((site, options)))
    made = there.project(chooses=False)
    task = test.rehearse_step(made)
    # As doit gives them: an empty text for an option that is left out.
    given = {each["name"]: each["default"] for each in task["params"]}
    assert given == dict.fromkeys(("gpu", "driver", "cpus", "memory", "timeout"), "")
    assert task["actions"][0](**given) is None
    assert task["actions"][0](**{**given, "gpu": "bar:1G", "cpus": "3"}) is None
    at, host = there.at(), there.at("host")
    site = rehearse.Site("toy-6.12", there.root, at.bundle, host.bundle, at.rehearse, at.rehearsed, at.templates)
    assert got == [(site, records.Options()), (site, records.Options(gpu="bar:1G", cpus="3"))]
    assert task["file_dep"] == [str(each.bundle / "manifest.json") for each in (at, host)]


# ── the fault matrix ──


def cell(name: str, result: records.Result) -> records.Cell:
    return records.Cell("packet-off", name, "no sockets", "nothing", "pass", "pass", result, why="it is a test")


def matrix(version: str, *cells: records.Cell) -> records.Matrix:
    return records.Matrix(records.MATRIX_SCHEMA, version[:4], version, {}, "key", True, cells)


Injector = Callable[..., Any]


@pytest.fixture
def injector(there: Toy, monkeypatch: pytest.MonkeyPatch) -> Injector:
    """What `doit pits` comes to, where injecting comes to `cells`; and the pits that it is of."""

    def give(*cells: records.Cell, **variables: str) -> tuple[Any, inject.Site, list[str]]:
        got: list[tuple[inject.Site, list[str]]] = []
        made = matrix("6.12.1", *cells)

        def run(site: inject.Site, only: list[str], say: Any) -> records.Matrix:
            got.append((site, only))
            site.folder.mkdir(parents=True, exist_ok=True)
            (site.folder / "matrix.json").write_bytes(msgspec.json.encode(made))
            return made

        monkeypatch.setattr(inject, "run", run)
        failed = test.pits_step(there.project(chooses=False, **variables))["actions"][0]()
        return (failed and failed.get_msg().rstrip(), *got[0])

    return give


def test_pits_are_injected_into_this_guest(there: Toy, injector: Injector, capsys: pytest.CaptureFixture[str]) -> None:
    failed, site, only = injector(cell("", "right"), cell("two", "NOT RUN"))
    made, at = there.project(chooses=False), there.at()
    assert (failed, only) == (None, [])
    assert (site.bench, site.launch, site.known, site.folder) == (made.bench, made.guest.launch, made.pits, at.matrix)
    assert site.package == there.cache / "sha256" / there.deb
    said = capsys.readouterr().out
    assert said.endswith("linux 6.12.1: 1 right, 0 wrong, 1 NOT RUN; out/pits/index.html\n")
    page = (at.matrices / "index.html").read_text()
    assert "packet-off" in page and "6.12.1" in page
    # With the guest's fragments, and with the options of the injection.
    config = (site.kernels({"NUMBER": 7}) / "kernel.config").read_text()
    assert "CONFIG_PACKET=y" in config and "CONFIG_NUMBER=7" in config
    assert (at.matrix / "log/NUMBER-7.log").is_file()


@pytest.mark.parametrize(("only", "names"), [("", []), ("a", ["a"]), ("a,,b,", ["a", "b"])])
def test_only_some_pits_are_injected(injector: Injector, only: str, names: list[str]) -> None:
    assert injector(cell("", "right"), only=only)[2] == names


def test_what_does_not_follow_is_one_failed_line(there: Toy, injector: Injector) -> None:
    failed, _, _ = injector(cell("", "right"), cell("two", "wrong"), cell("three", "NOT RUN"), cell("four", "wrong"))
    consoles = there.at().matrix / "runs"
    assert failed == (f"not what must follow: packet-off.two, packet-off.four\n  remedy: their consoles: {consoles}")
    assert (there.at().matrices / "index.html").is_file()


def test_the_page_is_of_all_matrices_in_the_order_of_their_names(
    there: Toy, injector: Injector, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = there.at()
    for name in ("another-4.12", "without-one", "zz-6.12"):
        (at.matrices / name).mkdir(parents=True)
    for name, version in (("another-4.12", "4.12.14"), ("zz-6.12", "6.12.9")):
        (at.matrices / name / "matrix.json").write_bytes(msgspec.json.encode(matrix(version, cell("", "right"))))
    pages: list[Any] = []

    def page(template: Path, found: Any, folders: Any) -> str:
        pages.append((template, [each.version for each in found], folders))
        return "a page"

    monkeypatch.setattr(inject, "page", page)
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(iterdir(self), reverse=True)))
    injector(cell("", "right"))
    assert pages == [(
        at.templates / "pits.html.j2", ["4.12.14", "6.12.1", "6.12.9"], ["another-4.12", "toy-6.12", "zz-6.12"]
    )]  # fmt: skip
    assert (at.matrices / "index.html").read_text() == "a page"


def test_a_pit_whose_boot_says_nothing_of_it_is_one_failed_line(there: Toy) -> None:
    """The program in QEMU's place is a healthy guest, whatever its kernel."""
    said = there.run("pits", "only=packet-off", status=1, env=qemu(there, *test_runner.steps(report())))
    assert refused(said) == "pits: not what must follow: packet-off"
    assert "0 right, 1 wrong, 0 NOT RUN; out/pits/index.html" in said
    said = there.run("pits", "only=packet-of", status=1, env=qemu(there))
    assert refused(said) == "pits: only=packet-of: not a pit that can be injected"
    assert "nearest: packet-off" in said


def test_the_page_of_pits_is_made_of_their_files(there: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    (there.root / "docs").mkdir(exist_ok=True)
    pits = there.root / "configs/pits"
    for name in ("a-pit", "z-pit"):
        (pits / f"{name}.toml").write_text((pits / "packet-off.toml").read_text().replace("no sockets", name))
    try:
        made = there.project(chooses=False)
        task = test.pits_page_step(made)
        names = [str(pits / f"{name}.toml") for name in ("a-pit", "packet-off", "z-pit")]
        assert task["file_dep"][:3] == names
        assert task["targets"] == [str(there.root / "docs/pits.md")]
        glob = Path.glob
        with monkeypatch.context() as patched:
            patched.setattr(Path, "glob", lambda self, pattern: reversed(list(glob(self, pattern))))
            assert test.pits_page_step(made)["file_dep"] == task["file_dep"]
        assert task["actions"][0]() is None
        text = (there.root / "docs/pits.md").read_text()
        assert text == page.page(made.pits) and "z-pit" in text
    finally:
        for name in ("a-pit", "z-pit"):
            (pits / f"{name}.toml").unlink()
