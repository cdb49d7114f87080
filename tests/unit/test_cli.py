# SPDX-License-Identifier: Apache-2.0
"""The installed command: does without what builds and publishes, and shows untrusted text as text."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from minguest import cli
from minguest.boottest import runner
from minguest.bundle import manifests
from minguest.util.errors import GuestFailed
from tests import ROOT, fake_qmp, workshop

CONSOLES = ROOT / "tests/data" / "consoles"
# What the extras `build`, `s3` and `test` bring, by the names that are imported.
NOT_THERE = ("doit", "jinja2", "elftools", "debian", "pefile", "kconfiglib", "cyclonedx", "boto3", "pytest", "oras")
# What takes 5 to 60 ms each to import, and is imported where it is used: `doit list` must not wait for it.
SLOW = {*NOT_THERE[1:], "requests", "tqdm", "securesystemslib"}
# A reset, a bell, an eight-bit CSI, a change of direction, a backspace and a line separator.
STRANGE = "\x1bc\x07\x9b2J\u202e\x08\u2028"

GUESTS = {path.stem for path in (ROOT / "configs/guests").glob("*.toml")}


def test_the_command_needs_none_of_the_builds_packages() -> None:
    # pull and verify are imported by their commands only.
    late = "from minguest import cli; from minguest.publish import pull; from minguest.release import verify"
    program = f"import sys; sys.modules.update(dict.fromkeys({NOT_THERE})); {late}; cli.main(['-h'])"
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "verify" in found.stdout


def test_a_command_starts_without_the_slow_libraries() -> None:
    late = "import sys, minguest.cli, minguest.tasks.project; minguest.cli.main(['completion', '--help'])"
    program = f"{late}; print(*sys.modules.keys() & {SLOW}, file=sys.stderr)"
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr.split()) == (0, [])
    assert found.stdout.startswith("usage: minguest completion ")


def test_diagnose_names_the_pit_of_a_console(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["diagnose", str(CONSOLES / "6.12-efi-off.log")]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("efi-off: ")
    assert "A valid RSDP was not found" in said.out
    assert "fix: " in said.out
    assert not said.err


def test_a_guest_without_a_pit_is_no_failure_of_diagnose(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["diagnose", str(CONSOLES / "6.12-healthy-q35-4.log")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("nothing wrong is seen") and "4 CPUs are up" in said and "EDK II" in said


def test_diagnose_reads_initds_report_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, report = tmp_path / "console.log", tmp_path / "report"
    log.write_text("[    0.000000] Linux version 6.12.0\n")
    report.write_text('{"record":"begin","protocol":1,"cmdline":"acpi=off"}\n{"record":"end","records":1}\n')
    assert cli.main(["diagnose", str(log)]) == 0
    assert "acpi-off-cmdline: " not in capsys.readouterr().out
    assert cli.main(["diagnose", str(log), "--report", str(report)]) == 0
    assert "acpi-off-cmdline: " in capsys.readouterr().out
    # A report among the logs is the report; of a quiet console it is enough, else the console is missing.
    assert cli.main(["diagnose", str(log), str(report)]) == 0
    assert "acpi-off-cmdline: " in capsys.readouterr().out
    assert cli.main(["diagnose", str(report)]) == 1
    assert "a report without the kernel's log: its console was not quiet" in capsys.readouterr().err
    with report.open("a") as file:
        file.write('{"record":"log","left_out":0,"lines":["[    0.1] Linux version 6.12.0 (a@b) #1"]}\n')
    assert cli.main(["diagnose", str(report)]) == 0
    assert "acpi-off-cmdline: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "raw", "why"),
    [
        ("none.log", None, "no such file"),
        (".", None, "no regular file and no pipe"),
        ("empty.log", b" \n", "empty"),
        ("binary.log", bytes(range(256)) * 16, "not text"),
    ],
)
def test_what_cannot_be_a_console_is_reported_in_one_line(
    name: str, raw: bytes | None, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / name
    if raw is not None:
        log.write_bytes(raw)
    assert cli.main(["diagnose", str(log)]) == 1
    said = capsys.readouterr()
    assert not said.out
    first, *remedy = said.err.splitlines()
    assert first.startswith("minguest: ")
    assert why in first
    assert all(line.startswith("  remedy: ") for line in remedy)


def test_a_report_that_cannot_be_one_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = str(CONSOLES / "6.12-efi-off.log")
    assert cli.main(["diagnose", log, "--report", str(tmp_path / "none")]) == 1
    assert "minguest: report " in capsys.readouterr().err


def test_a_console_moves_nothing_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "console.log"
    log.write_text(f"ACPI BIOS Error (bug): A valid RSDP was not found {STRANGE}\n")
    assert cli.main(["diagnose", str(log)]) == 0
    said = capsys.readouterr().out
    assert "A valid RSDP was not found" in said
    assert not [c for c in said if not c.isprintable() and c != "\n"]


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that passes for a bundle, as far as the command looks into it."""
    monkeypatch.setattr(manifests, "read", lambda _: msgspec.convert({"guest": {"launch": {}}}, _Loaded))
    monkeypatch.setattr(runner, "settled", lambda *_: None)
    return tmp_path


def test_boot_test_knows_the_pits(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benches: list[runner.Bench] = []
    monkeypatch.setattr(runner, "run", lambda bench, *_: benches.append(bench))
    assert cli.main(["boot-test", str(bundled), "--work", str(bundled / "work")]) == 0
    assert benches[0].pits is not None
    assert (benches[0].pits / "efi-off.toml").is_file()


def test_a_guest_under_test_moves_nothing_on_the_terminal(
    bundled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A verdict quotes the guest's report, which may hold anything."""
    monkeypatch.setattr(runner, "run", lambda bench, options, wanted, say: say(f"CPUs\n{STRANGE}"))
    assert cli.main(["boot-test", str(bundled), "--work", str(bundled / "work")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("CPUs\n\\x1bc")
    assert not [c for c in said if not c.isprintable() and c != "\n"]


class _Guest(msgspec.Struct):
    launch: dict[str, str]


class _Loaded(msgspec.Struct):
    """As much of a manifest as is read before a boot test."""

    guest: _Guest


def test_the_help_groups_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    listed = [name for group in cli.GROUPS.values() for name in group]
    assert all(f"\n  {name} " in said for name in listed) and all(f"\n{title}:\n" in said for title in cli.GROUPS)
    assert "a known way to fail" in " ".join(said.split())
    for name in listed:
        assert cli.main([name, "--help"]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"usage: minguest {name} ") and "--json" in shown


@pytest.mark.parametrize(
    ("argv", "status", "keys"),
    [
        (
            ["diagnose", str(CONSOLES / "6.12-efi-off.log")],
            0,
            {
                "logs",
                "ending",
                "roots",
                "follows",
                "unexplained",
                "questions",
                "trouble",
                "well",
                "not_shown",
                "notes",
                "stacks",
                "card",
                "ruled_out",
            },
        ),
        (["doctor", str(ROOT / "tests/data/consoles/none")], 2, {"error", "kernels", "refused"}),
        (["plan", "--card", "nvidia-h100", "--phys-bits", "46"], 0, {"plan", "warnings"}),
        (["plan", "--gpu", "bar:512G", "--phys-bits", "39"], 1, {"plan", "warnings", "error"}),
        (["plan"], 1, {"error"}),
        (["host-check"], 1, {"rows", "missing", "error"}),
        (["host-bind"], 1, {"error"}),
        (["host-unbind", "--gpu", "foo"], 1, {"error"}),
        (["pull", "https://127.0.0.1:9/x", "--unsigned"], 1, {"error"}),
        (["verify", "no-such-folder", "--unsigned"], 1, {"error"}),
        (["boot-test", "no-such-folder"], 1, {"error"}),
        (["cache"], 0, {"entries", "removed"}),
        (["completion", "fish"], 0, {"shell", "script"}),
    ],
)
def test_every_command_answers_with_one_document(
    argv: list[str], status: int, keys: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in ("MINGUEST_CACHE", "MINGUEST_STORE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    assert cli.main([*argv, "--json"]) == status
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document.keys() == {"command", "ok"} | keys
    assert (document["command"], document["ok"]) == (argv[0], status == 0)
    assert bool(said.err) == (status != 0)


def test_a_document_is_plain_ascii(tmp_path: Path) -> None:
    """Whatever the console quotes, the file is called, or the output can show."""
    log = tmp_path / os.fsdecode(b"a\xff\xc3\xa9.log")
    log.write_text(f"ACPI BIOS Error (bug): A valid RSDP was not found {STRANGE}\n")
    done = subprocess.run(
        [sys.executable, "-m", "minguest.cli", "diagnose", log, "--json"],
        cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii() and all(byte >= ord(" ") or byte == ord("\n") for byte in done.stdout)
    assert json.loads(done.stdout)["logs"][0]["log"] == str(log)


def test_logs_of_two_boots_are_named_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    logs = [str(CONSOLES / "6.12-efi-off.log"), str(CONSOLES / "4.12-healthy-q35-4.log")]
    assert cli.main(["diagnose", *logs]) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        f"{logs[0]}: guest console\n{logs[1]}: guest console\nnote: these are consoles of different boots"
    )
    assert f"| {logs[0]}:36: ACPI BIOS Error" in said
    assert cli.main(["diagnose", *logs, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [hit["pit"] for hit in found["roots"]] == ["efi-off"]
    assert {line["log"] for hit in found["roots"] for line in hit["lines"]} == {logs[0]}
    assert [log["kinds"] for log in found["logs"]] == [["guest console"]] * 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    assert "minguest" in capsys.readouterr().out


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    program = """
complete_it() { COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_TYPE=9
    COMPREPLY=(); _python_argcomplete minguest; echo "${COMPREPLY[*]}"; }
eval "$(minguest completion bash)"
complete_it minguest host-
complete_it minguest boot-test --plug-
"""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", program], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    offered = [line.split() for line in done.stdout.splitlines()]
    assert offered == [["host-check", "host-bind", "host-unbind"], ["--plug-cpus", "--plug-memory"]], done.stderr


def offered(line: str, folder: Path) -> dict[str, str]:
    """What a shell offers at the end of a line, with the descriptions that fish and zsh show."""
    answer = folder.with_name("answer")
    done = subprocess.run(
        [sys.executable, "-m", "minguest.cli"],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_SHELL": "fish",
            "_ARGCOMPLETE_IFS": "\n",
            "_ARGCOMPLETE_DFS": "\t",
            "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return {name.strip(): text for name, _, text in (each.partition("\t") for each in answer.read_text().splitlines())}


@pytest.fixture
def things(tmp_path: Path) -> Path:
    """A folder with a file, a TOML file and a folder in it."""
    folder = tmp_path / "things"
    (folder / "a-folder").mkdir(parents=True)
    for name in ("a-file", "a.toml"):
        (folder / name).write_text("")
    return folder


def test_a_shell_shows_what_each_command_does(things: Path) -> None:
    described = {name: text for group in cli.GROUPS.values() for name, text in group.items()}
    found = offered("minguest ", things)
    assert {name: found.get(name) for name in described} == described


FILES = {"a-file", "a.toml", "a-folder/"}


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("boot-test --machine ", {"q35", "pc"}),
        ("boot-test --accel ", {"auto", "kvm", "tcg"}),
        ("boot-test --accel t", {"tcg"}),
        ("plan --card ", {"nvidia-h100", "a.toml", "a-folder/"}),
        ("plan --card nvidia-h100,nv", {"nvidia-h100,nvidia-h100"}),
        ("plan --card nvidia-h100,./a", {"nvidia-h100,./a.toml", "nvidia-h100,./a-folder/"}),
        ("plan --guest ", {"default", *GUESTS, "a.toml", "a-folder/"}),
        *((f"plan --{name} ", set()) for name in ("count", "memory", "phys-bits", "gpu")),
        *((f"boot-test --{name} ", set()) for name in ("cpus", "memory", "timeout", "plug-cpus", "gpu")),
        ("cache --older-than ", set()),
        ("host-check --work ", {"a-folder/"}),
        ("boot-test --work ", {"a-folder/"}),
        ("doctor --config ", FILES),
        ("verify --key ", FILES),
        ("completion ", {"bash", "zsh", "fish"}),
    ],
)
def test_an_option_is_completed_with_what_it_takes(line: str, wanted: set[str], things: Path) -> None:
    found = {name for name in offered(f"minguest {line}", things) if not name.startswith("--") and name != "-h"}
    assert found == wanted


@pytest.mark.parametrize(
    ("command", "wanted"), [("diagnose", FILES), ("doctor", FILES), ("boot-test", {"a-folder/"}), ("pull", set())]
)
def test_an_argument_is_completed_with_what_it_takes(command: str, wanted: set[str], things: Path) -> None:
    assert {name for name in offered(f"minguest {command} ", things) if not name.startswith("-")} == wanted


def test_bash_itself_offers_no_files() -> None:
    """Where nothing fits, as for a number."""
    program = 'eval "$(minguest completion bash)"; complete -p minguest'
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", program], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert "-F _python_argcomplete minguest" in done.stdout and "-o default" not in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("diagnose", "[LOG ...]"), ("doctor", "IMAGE"), ("host-check", "[FOLDER]"), ("boot-test", "FOLDER"),
        ("pull", "SOURCE"), ("verify", "RELEASE"), ("completion", "{bash,zsh,fish}"),
    ],
)  # fmt: skip
def test_the_usage_names_its_arguments(command: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    usage, _, more = capsys.readouterr().out.partition("\n\n")
    assert f" {shown}" in usage
    assert f"\n  {shown.strip('[. ]')}" in more


def test_a_guest_that_failed_is_in_the_document(
    bundled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(bench: runner.Bench, *_: object) -> None:
        bench.folder.mkdir(parents=True)
        (bench.folder / "verdict.json").write_text('{"pits": ["efi-off"]}')
        raise GuestFailed("FAIL, failed: CPUs: 1 of 4", "read the console")

    monkeypatch.setattr(runner, "run", fails)
    assert cli.main(["boot-test", str(bundled), "--work", str(bundled / "work"), "--json"]) == 1
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["outcome"] == {"pits": ["efi-off"]} and document["error"].startswith("FAIL, failed: CPUs")
    assert said.err.startswith("minguest: FAIL, failed")


@pytest.mark.parametrize(
    ("argv", "command", "why"),
    [
        (["--json"], "", "COMMAND"),
        (["frobnicate", "--json"], "frobnicate", "invalid choice: 'frobnicate'"),
        (["--json", "cache"], "cache", "unrecognized arguments: --json"),
        (["plan", "--json", "--count", "x"], "plan", "--count: invalid int value: 'x'"),
        (["verify", "--jso"], "verify", "the following arguments are required: RELEASE"),
    ],
)
def test_a_usage_error_is_a_document_too(
    argv: list[str], command: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document.keys() == {"command", "ok", "error"}
    assert (document["command"], document["ok"]) == (command, False)
    assert why in document["error"]
    assert said.err.startswith("usage: minguest") and said.err.endswith(f": error: {document['error']}\n")


@pytest.mark.parametrize("argv", [["plan", "--count", "x"], ["diagnose", "--", "--json", "x"]])
def test_without_json_there_is_no_document(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) != 0
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    "argv", [[], ["--cpus", "9999"], ["--memory", "x"], ["--gpu", "none-such"], ["--accel", "tcg", "--memory", "999T"]]
)
def test_a_boot_test_that_cannot_start_leaves_no_folder(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = workshop.build(tmp_path / "project").bundle
    fake_qmp.install(tmp_path / "path", steps=[])
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:{os.environ['PATH']}")
    if not argv:
        (bundle / "bzImage").write_bytes(b"other")
    before = sorted(bundle.parent.iterdir())
    assert cli.main(["boot-test", str(bundle), *argv]) == 1
    assert capsys.readouterr().err.startswith("minguest: ")
    assert sorted(bundle.parent.iterdir()) == before


@pytest.mark.parametrize("name", ["..", ".", "../../{name}", "../link"])
def test_a_boot_test_works_beside_the_folder_however_it_is_named(
    name: str, bundled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benches: list[runner.Bench] = []
    monkeypatch.setattr(runner, "run", lambda bench, *_: benches.append(bench))
    (bundled / "sub").mkdir()
    (bundled / "link").symlink_to(bundled)
    monkeypatch.chdir(bundled if name == "." else bundled / "sub")
    assert cli.main(["boot-test", name.format(name=bundled.name)]) == 0
    (bench,) = benches
    assert (bench.name, bench.bundle) == (bundled.name, bundled)
    assert bench.folder == bundled.with_name(f"{bundled.name}.boot-test") / "boot-test"


@pytest.mark.parametrize("count", ["0", "-1", "257", "10000"])
def test_a_count_of_cards_has_a_limit(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--gpu", "bar:16M", "--count", count]) == 1
    assert capsys.readouterr().err == f"minguest: --count {count}: must be from 1 to 256\n"
    assert cli.main(["plan", "--gpu", "bar:16M", "--count", "256", "--json"]) in (0, 1)
    assert len(json.loads(capsys.readouterr().out)["plan"]["ports"]) == 256


@pytest.mark.parametrize("days", ["nan", "inf", "-inf", "-1"])
def test_an_age_is_a_number_of_days(
    days: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("MINGUEST_CACHE", "MINGUEST_STORE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for prune in ([], ["--prune"]):
        assert cli.main(["cache", f"--older-than={days}", *prune]) == 1
        assert capsys.readouterr().err == f"minguest: --older-than {days}: must be a number of days, 0 or more\n"
