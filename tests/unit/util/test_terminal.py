# SPDX-License-Identifier: Apache-2.0
"""How the commands end: Ctrl-C, nohup, and a standard output that is closed, full or of few letters."""

import errno
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from minguest.paths import Layout
from minguest.release import layout
from minguest.tasks import reporter
from minguest.util import files, terminal
from tests import ROOT, workshop

CONSOLE = ROOT / "tests/data/consoles/6.12-efi-off.log"
MINGUEST = [sys.executable, "-m", "minguest.cli"]
# Seconds until a command that waits for a lock has said so.
SAYS_S = 60
INTERRUPTED = "interrupted: what is complete is kept; run the same command again to continue\n"
LOST = "standard output: {}: some of it was not written; the work itself is complete\n"
CLOSED, FULL = "it is closed", os.strerror(errno.ENOSPC)


@pytest.fixture
def at(tmp_path: Path) -> Layout:
    """A checkout with a release in it."""
    made = workshop.build(tmp_path / "p")
    workshop.tested(made)
    workshop.make(made, None)
    workshop.checkout(made)
    return made


def shell(line: str, argv: Sequence[str | Path], cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command by a line of sh that says "$@" for it."""
    return subprocess.run(
        ["sh", "-c", line, "sh", *argv],
        cwd=cwd,
        env=workshop.doit_env(**env),
        capture_output=True,
        text=True,
        check=False,
    )


def published(at: Layout) -> bool:
    return (at.root / f"to/{at.name}/latest.json").is_file()


# ── signals ──


def interrupted(
    at: Layout, number: int, started: Callable[[list[str]], list[str]] = lambda argv: argv
) -> tuple[int, str]:
    """Signal doit's process group while it waits for another one that publishes; its status and what it said."""
    with files.lock(at.root / f"to/.{at.name}.lock"):
        process = subprocess.Popen(
            started(workshop.doit_argv("publish", "to=to")),
            cwd=at.root,
            env=workshop.doit_env(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        said = ""
        while "waiting" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        os.killpg(process.pid, number)
        if number == signal.SIGHUP:
            time.sleep(0.5)  # time to die of it
    rest, _ = process.communicate(timeout=SAYS_S)
    return process.returncode, rest


def test_ctrl_c_on_doit_says_one_line(at: Layout) -> None:
    assert interrupted(at, signal.SIGINT) == (130, INTERRUPTED)
    assert not published(at)


def test_doit_ends_with_sigterm_and_says_nothing(at: Layout) -> None:
    assert interrupted(at, signal.SIGTERM) == (143, "")


def test_doit_and_nohup(at: Layout) -> None:
    status, said = interrupted(at, signal.SIGHUP, lambda argv: ["nohup", *argv])
    assert (status, published(at)) == (0, True), said


def test_ctrl_c_while_doit_reads_its_tasks(at: Layout) -> None:
    """An interrupt may come at any time; here, while dodo.py is read."""
    dodo = at.root / "dodo.py"
    marked = "import os, signal; os.kill(os.getpid(), signal.SIGINT)\nfrom minguest.tasks import"
    dodo.write_text(dodo.read_text().replace("from minguest.tasks import", marked))
    done = shell('exec "$@"', workshop.doit_argv("publish", "to=to"), at.root)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", INTERRUPTED)


# Its last object is dropped, and the signal comes while Python drops it.
DROPPING = """
import os, time
from minguest.util import terminal
terminal.end_on_interrupt()
terminal.end_on_signals()
class Dropped:
    def __del__(self):
        os.kill(os.getpid(), {number})
        time.sleep({pause})
it = Dropped()
del it
time.sleep({pause})
"""


@pytest.mark.parametrize(("number", "status", "said"), [(2, 130, INTERRUPTED), (15, 143, ""), (1, 129, "")])
def test_a_signal_is_not_lost_where_python_drops_exceptions(number: int, status: int, said: str) -> None:
    program = DROPPING.format(number=number, pause=SAYS_S)
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, said)


@pytest.mark.parametrize(
    ("number", "ignored", "status", "error"),
    [
        (signal.SIGINT, False, 130, "interrupted"),
        (signal.SIGTERM, False, 143, "ended by SIGTERM"),
        (signal.SIGHUP, False, 129, "ended by SIGHUP"),
        (signal.SIGHUP, True, 1, "report none: no such file, or not a regular file"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_and_signals(
    tmp_path: Path, number: int, ignored: bool, status: int, error: str, as_json: bool
) -> None:
    """`diagnose` reads a pipe that is opened, and then a signal comes."""
    program = f"""
import os, sys
from minguest import cli
from minguest.diagnose import logs
def read(log):
    os.kill(os.getpid(), {int(number)})
    return logs.Log(log, b"")
logs.read = read
sys.exit(cli.main(["diagnose", "x", "--report", "none", *{["--json"] * as_json}]))
"""
    line = 'trap "" HUP; exec "$@"' if ignored else 'exec "$@"'
    done = shell(line, [sys.executable, "-c", program], tmp_path)
    assert done.returncode == status
    if as_json:
        document = json.loads(done.stdout)
        assert (document.pop("error").partition("\n")[0], document) == (error, {"command": "diagnose", "ok": False})
    else:
        assert not done.stdout
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize(
    ("number", "status", "error"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")]
)
def test_a_signal_while_the_command_imports_its_modules(tmp_path: Path, number: int, status: int, error: str) -> None:
    (tmp_path / "msgspec.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\n")
    argv = [sys.executable, "-c", "import sys; from minguest.cli import main; sys.exit(main())", "cache"]
    path = f"{tmp_path}:{ROOT}"
    done = shell('exec "$@"', argv, tmp_path, PYTHONPATH=path)
    said = f"minguest: {error}\n" if number == signal.SIGINT else ""
    assert (done.returncode, done.stdout, done.stderr) == (status, "", said)
    done = shell('exec "$@"', [*argv, "--json"], tmp_path, PYTHONPATH=path)
    assert (done.returncode, json.loads(done.stdout)["error"], done.stderr) == (status, error, said)


# ── standard output ──


@pytest.mark.parametrize(("line", "why"), [('exec "$@" >&-', CLOSED), ('exec "$@" >/dev/full', FULL)])
def test_doit_does_its_work_without_an_output(at: Layout, line: str, why: str) -> None:
    done = shell(line, workshop.doit_argv("publish", "to=to"), at.root)
    assert (done.returncode, done.stderr) == (1, f"doit: {LOST.format(why)}")
    assert published(at)


def test_doit_does_its_work_for_a_reader_that_went_away(at: Layout) -> None:
    done = shell('"$@" | true; exit 0', workshop.doit_argv("publish", "to=to"), at.root)
    assert done.stderr == f"doit: {LOST.format(os.strerror(errno.EPIPE))}"
    assert published(at)


def test_doit_shows_nothing_where_nothing_can_be_shown(at: Layout) -> None:
    done = shell('exec "$@" >&-', [sys.executable, "-m", "doit", "list"], at.root)
    assert (done.returncode, done.stderr) == (3, "ERROR: standard output is closed: there is nowhere to write to\n")


@pytest.mark.parametrize(("line", "why"), [('exec "$@" >&-', CLOSED), ('exec "$@" >/dev/full', FULL)])
@pytest.mark.parametrize("arguments", [["diagnose", str(CONSOLE)], ["verify", "--unsigned", "{release}"]])
def test_the_exit_status_says_that_the_output_was_lost(at: Layout, arguments: list[str], line: str, why: str) -> None:
    argv = [*MINGUEST, *(each.format(release=at.release) for each in arguments)]
    done = shell(line, argv, at.root)
    assert (done.returncode, done.stderr) == (1, f"minguest: {LOST.format(why)}")
    assert shell('exec "$@"', argv, at.root).returncode == 0


@pytest.mark.parametrize("line", ['exec "$@" 2>&-', 'exec "$@" 2>/dev/full', 'exec "$@" <&- >&- 2>&-'])
def test_without_a_standard_error_the_status_still_says_it(at: Layout, line: str) -> None:
    assert shell(line, [*MINGUEST, "verify", "--unsigned", "no-such-folder"], at.root).returncode == 1
    shell(line, workshop.doit_argv("publish", "to=to"), at.root)
    assert published(at)
    # What is written to a standard stream goes into no file that was opened in its place.
    for path in (at.root / "to").rglob("*"):
        assert not path.is_file() or b"standard output" not in path.read_bytes()


@pytest.mark.parametrize("argv", [["diagnose", str(CONSOLE)], ["diagnose", str(CONSOLE), "--json"], ["--help"]])
def test_a_reader_that_went_away_ends_the_command_silently(tmp_path: Path, argv: list[str]) -> None:
    """As after `| head -1`; the status is that of a program that SIGPIPE ended."""
    done = shell('{ "$@"; echo $? >status; } | true', [*MINGUEST, *argv], tmp_path)
    assert done.stderr == ""
    assert (tmp_path / "status").read_text() == "141\n"


def test_what_is_wrong_is_said_without_a_reader_too(tmp_path: Path) -> None:
    done = shell('{ "$@"; echo $? >status; } | true', [*MINGUEST, "verify", "--unsigned", "none", "--json"], tmp_path)
    assert done.stderr.startswith("minguest: 'none': no such folder")
    assert (tmp_path / "status").read_text() == "1\n"


def test_the_help_is_lost_too(tmp_path: Path) -> None:
    done = shell('exec "$@" >/dev/full', [*MINGUEST, "--help"], tmp_path)
    assert (done.returncode, done.stderr) == (1, f"minguest: {LOST.format(FULL)}")
    assert shell('exec "$@"', [*MINGUEST, "--help"], tmp_path).returncode == 0
    assert shell('exec "$@"', [*MINGUEST, "nonsense"], tmp_path).returncode == 2


def test_a_stream_that_failed_is_left_alone() -> None:
    with Path("/dev/full").open("w", buffering=1) as stream:
        out = terminal.Output(stream)
        assert (out.write("a\n"), out.lost) == (2, FULL)
        assert (out.write("b\n"), out.lost) == (2, FULL)
        stream.write("and every other process that has it\n")


# ── letters ──

ASCII = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_locale_of_few_letters_changes_nothing(at: Layout, tmp_path: Path) -> None:
    key = workshop.key(tmp_path)
    signers = tmp_path / "signers"
    signers.write_text(f"# ü\nme@example.org {key.with_name('key.pub').read_text()}", encoding="utf-8")
    for argv in (
        [*MINGUEST, "diagnose", str(CONSOLE)],
        [*MINGUEST, "boot-test", "--help"],
        workshop.doit_argv("release", "version=1.1", f"key={key}"),
        [*MINGUEST, "verify", "--trusted-keys", str(signers), str(at.release)],
        workshop.doit_argv("publish", "to=to"),
        [sys.executable, "-m", "doit", "list"],
    ):
        done = shell('exec "$@"', argv, at.root, **ASCII)
        assert (done.returncode, done.stderr) == (0, ""), argv
        assert done.stdout.isascii()
    assert layout.load(at.root / f"to/{at.name}/1.1").facts.version == "1.1"


# ── doit's memory ──


def broken_header(path: Path) -> None:
    path.write_bytes(b"not a database, and of some length " * 99)


def broken_page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)


def broken_row(path: Path) -> None:
    with sqlite3.connect(path) as there:
        there.execute("update doit set task_data = '{\"deps:'")
    there.close()


def broken_letters(path: Path) -> None:
    with sqlite3.connect(path) as there:
        there.execute("update doit set task_data = cast(x'ff22' as text)")
    there.close()


def too_deep(path: Path) -> None:
    with sqlite3.connect(path) as there:
        there.execute("update doit set task_data = ?", ("[" * 100_000,))
    there.close()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize("damage", [broken_header, broken_page, broken_row, broken_letters, too_deep, cut])
def test_a_damaged_memory_of_doit_is_made_anew(at: Layout, damage: Callable[[Path], None]) -> None:
    argv = workshop.doit_argv("initd")
    assert shell('exec "$@"', argv, at.root).returncode == 0
    assert "nothing to do" in shell('exec "$@"', argv, at.root).stdout
    memory = at.root / reporter.MEMORY
    damage(memory)
    done = shell('exec "$@"', argv, at.root)
    assert (done.returncode, done.stderr) == (0, "")
    first, *rest = done.stdout.splitlines()
    assert re.match(r"\.doit\.db: damaged, so it was removed", first)
    assert "── initd" in rest
    assert "nothing to do" in shell('exec "$@"', argv, at.root).stdout
    for (data,) in sqlite3.connect(memory).execute("select task_data from doit"):
        json.loads(data)


def test_a_memory_that_another_doit_writes_is_not_damaged(at: Layout) -> None:
    assert shell('exec "$@"', workshop.doit_argv("initd"), at.root).returncode == 0
    memory = at.root / reporter.MEMORY
    writer = sqlite3.connect(memory)
    writer.execute("begin exclusive")
    try:
        program = (
            f"import pathlib, minguest.tasks.reporter as it; print(it.forget_damaged(pathlib.Path({str(memory)!r})))"
        )
        assert shell('exec "$@"', [sys.executable, "-c", program], at.root).stdout == "False\n"
    finally:
        writer.close()
    assert memory.exists()


def test_a_memory_whose_writer_was_killed_is_kept(at: Layout) -> None:
    """SQLite leaves a journal then, which the next process that opens the file plays back."""
    assert shell('exec "$@"', workshop.doit_argv("initd"), at.root).returncode == 0
    program = """
import os, signal, sqlite3, sys
there = sqlite3.connect(sys.argv[1])
there.execute("pragma cache_size = 1")
there.execute("pragma cache_spill = 1")
for number in range(5000):
    there.execute("insert into doit values (?, ?)", (f"task {number}", "{}" + " " * 300))
os.kill(os.getpid(), signal.SIGKILL)
"""
    memory = at.root / reporter.MEMORY
    subprocess.run([sys.executable, "-c", program, memory], check=False)
    assert memory.with_name(f"{reporter.MEMORY}-journal").exists()
    done = shell('exec "$@"', workshop.doit_argv("initd"), at.root)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing to do" in done.stdout and "damaged" not in done.stdout
