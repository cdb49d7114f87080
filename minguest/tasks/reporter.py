# SPDX-License-Identifier: Apache-2.0
"""What doit prints and how it ends: its lines about tasks, Ctrl-C, lost output, and a damaged database."""

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

# What doit remembers from earlier runs: pyproject.toml, dep_file.
MEMORY = ".doit.db"
# SQLite's results for a file that is damaged: https://www.sqlite.org/rescode.html
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Reporter(ConsoleReporter):  # type: ignore[misc]
    """Says what runs and how long it took; a failure once, with no traceback for the user's mistakes."""

    def __init__(self, outstream: Any, options: Any) -> None:
        # doit took its stream before it read dodo.py; with --output-file it is a file.
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
        # doit also calls this after an interrupted run, which is not up to date.
        ended_early = sys.exc_info()[0] is not None
        if self.nothing and not (self.failures or self.runtime_errors or ended_early):
            self.outstream.write("nothing to do: everything is up to date\n")
        if self.runtime_errors:
            self.outstream.write("\n".join(self.runtime_errors) + "\n")

    def _write_failure(self, result: Any, write_exception: bool = True) -> None:
        self.outstream.write(f"FAILED {result['task'].name}: {result['exception'].get_msg()}\n")


def say(text: str) -> None:
    """Print a text at once; what it quotes from a guest does not move the cursor."""
    print(printable(text, keep="\n\t"), flush=True)


def begin(root: Path, *, shows: bool) -> None:
    """Prepare this process, whose main program is doit's, for how it may end.

    `shows`: it only shows something. InvalidTask if it has nowhere to show it, or doit's memory cannot be opened.
    """
    if shows and sys.stdout is None:
        raise InvalidTask("standard output is closed: there is nowhere to write to")
    if shows:
        # doit took its stream before this. A reader that goes away ends the process, as with any tool that only shows.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    terminal.plug()
    out = terminal.Output(sys.stdout)
    sys.stdout, sys.stderr = out, terminal.Output(sys.stderr)
    atexit.register(_complain, out)
    terminal.end_on_signals()
    if forget_damaged(root / MEMORY):
        say(f"{MEMORY}: damaged, so it was removed: it only remembers what is up to date; each task is checked again")


def forget_damaged(memory: Path) -> bool:
    """Remove doit's memory if it is damaged, and return whether it was; it is only a cache.

    InvalidTask if it cannot be opened at all.
    """
    if not memory.exists():
        return False
    try:
        # Not read-only: SQLite rolls back what a killed doit left half-written. A short wait: another doit may write.
        with contextlib.closing(
            sqlite3.connect(f"{memory.absolute().as_uri()}?mode=rw", uri=True, timeout=0.5)
        ) as there:
            sound = there.execute("pragma quick_check").fetchall() == [("ok",)]
            if sound and there.execute("select name from sqlite_master where name = 'doit'").fetchone():
                for (data,) in there.execute("select task_data from doit"):
                    sound = sound and isinstance(json.loads(data), dict)
    except sqlite3.DatabaseError as error:
        # The primary result code. Python's own error, for text that is not UTF-8, has no code.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code == sqlite3.SQLITE_BUSY:
            return False  # another doit writes it, and would have found the damage
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
    """At the end of the process: say which output was lost, and exit with an error."""
    out.flush()
    if out.lost:
        print(f"doit: {terminal.complaint(out.lost)}", file=sys.stderr, flush=True)
        os._exit(1)  # an atexit function has no other way; all others were registered later, so they are done
