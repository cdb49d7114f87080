# SPDX-License-Identifier: Apache-2.0
"""How doit talks and ends: what it says of tasks, Ctrl-C, lost output, and its memory where that is damaged."""

import atexit
import contextlib
import json
import os
import signal
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

from doit.exceptions import InvalidTask
from doit.reporter import ConsoleReporter

from minguest.util import terminal
from minguest.util.errors import printable

# What doit remembers of former runs: pyproject.toml, dep_file.
MEMORY = ".doit.db"
# SQLite's results for a file that is damaged: https://www.sqlite.org/rescode.html
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Reporter(ConsoleReporter):  # type: ignore[misc]
    """Says what runs and how long it took; a failure once, without a traceback for the user's mistakes."""

    def __init__(self, outstream: Any, options: Any) -> None:
        # doit took its stream before dodo.py was read; a file of its option --output-file is another.
        super().__init__(sys.stdout if outstream in (None, sys.__stdout__) else outstream, options)
        self.started: dict[str, float] = {}
        self.nothing = True

    def execute_task(self, task: Any) -> None:
        if task.actions and not task.name.startswith("_"):
            self.nothing = False
            self.started[task.name] = time.monotonic()
            self.outstream.write(f"── {task.title()}\n")
            self.outstream.flush()

    def add_success(self, task: Any) -> None:
        if (begun := self.started.get(task.name)) and (seconds := time.monotonic() - begun) >= 1:
            self.outstream.write(f"   {task.title()}: {seconds:.0f} s\n")

    def skip_uptodate(self, task: Any) -> None:
        pass

    def complete_run(self) -> None:
        # doit calls this of a run that was interrupted too: that one is not up to date.
        ended_early = sys.exc_info()[0] is not None
        if self.nothing and not (self.failures or self.runtime_errors or ended_early):
            self.outstream.write("nothing to do: everything is up to date\n")
        if self.runtime_errors:
            self.outstream.write("\n".join(self.runtime_errors) + "\n")

    def _write_failure(self, result: Any, write_exception: bool = True) -> None:
        self.outstream.write(f"FAILED {result['task'].name}: {result['exception'].get_msg()}\n")


def say(text: str) -> None:
    """A text to the user, at once; what it quotes of a guest does not move the cursor."""
    print(printable(text, keep="\n\t"), flush=True)


def begin(root: Path, *, shows: bool) -> None:
    """Prepare this process, whose main program is doit's, for how it may end.

    `shows`: it only shows something. InvalidTask where it has nowhere to show it, or no memory can be had.
    """
    if shows and sys.stdout is None:
        raise InvalidTask("standard output is closed: there is nowhere to write to")
    if shows:
        # doit took its stream before this: a reader that goes away ends it, as it ends any tool that only shows.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    terminal.plug()
    out = terminal.Output(sys.stdout)
    sys.stdout, sys.stderr = out, terminal.Output(sys.stderr)
    atexit.register(_complain, out)
    terminal.end_on_signals()
    if forget_damaged(root / MEMORY):
        say(f"{MEMORY}: damaged, so it was removed: it only remembers what is up to date, and that is looked at anew")


def forget_damaged(memory: Path) -> bool:
    """Remove doit's memory where it is damaged, and say so; it is only a cache.

    InvalidTask where it cannot be opened at all.
    """
    if not memory.exists():
        return False
    try:
        # Not read-only: what a killed doit left half written is played back. A short wait: another doit may write it.
        with contextlib.closing(
            sqlite3.connect(f"{memory.absolute().as_uri()}?mode=rw", uri=True, timeout=0.5)
        ) as there:
            sound = there.execute("pragma quick_check").fetchall() == [("ok",)]
            if sound and there.execute("select name from sqlite_master where name = 'doit'").fetchone():
                for (data,) in there.execute("select task_data from doit"):
                    sound = sound and isinstance(json.loads(data), dict)
    except sqlite3.DatabaseError as error:
        # Without what extends it; Python's own error, of text that is no UTF-8, has none.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code == sqlite3.SQLITE_BUSY:
            return False  # another doit writes it, and so would have found it damaged
        if code not in DAMAGED:
            raise InvalidTask(f"{memory}: cannot be read: {error}; remove it: it is only a cache") from None
        sound = False
    except (TypeError, ValueError, RecursionError):
        sound = False
    if not sound:
        for name in (memory.name, f"{memory.name}-journal"):
            memory.with_name(name).unlink(missing_ok=True)
    return not sound


def _complain(out: terminal.Output) -> None:
    """At the end of the process: say what was lost, and let the exit status say so too."""
    out.flush()
    if out.lost:
        print(f"doit: {terminal.complaint(out.lost)}", file=sys.stderr, flush=True)
        os._exit(1)  # the only way for a function of atexit; every other one was registered later, and is done
