# SPDX-License-Identifier: Apache-2.0
"""The only way to start a program: explicit argv, a log, a deadline, and no child left behind."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from minguest.util.errors import ToolError

# How many of a failed tool's last lines the error shows, and before them of its first lines that carry an error:
# with make -j, the other jobs go on for hundreds of lines after the one that failed.
TAIL = 15
ERRORS = 8
_ERROR = re.compile(r"error:|fatal error|\*\*\* |undefined reference")
# Seconds that a program has to end by itself before it is killed: make removes what it was writing.
GRACE = 10.0


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    on_line: Callable[[str], None] | None = None,
    deadline: float | None = None,
    stdin: IO[bytes] | None = None,
    check: bool = True,
    bare: bool = False,
    merge: bool = True,
    pass_fds: Sequence[int] = (),
) -> tuple[int, str]:
    """Run a program and return its status and its output (stdout and stderr as one text).

    Without `merge`, stderr is discarded.

    `env` is added to the environment, or with `bare` to `bare_environment`. `log` gets the command and every line as
    it comes, `on_line` each line. `deadline` is in seconds. Raises ToolError when the program is missing, misses the
    deadline or (`check`) fails. The whole process group is then ended, and also when this call is interrupted: it gets
    SIGTERM, and SIGKILL after GRACE seconds. The program and its children keep a copy of `pass_fds`: a lock among them
    outlives this process.
    """
    arguments = [os.fspath(argument) for argument in argv]
    environment = {**(bare_environment() if bare else os.environ), **(env or {})}
    require(arguments[0], environment.get("PATH"))
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    late = threading.Event()
    with (log or Path(os.devnull)).open("w", encoding="utf-8", errors="backslashreplace") as sink:
        sink.write(f"$ {shlex.join(arguments)}\n")
        process = subprocess.Popen(
            bound(arguments),
            cwd=cwd,
            env=environment,
            stdin=stdin if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merge else subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=pass_fds,
        )

        def expire() -> None:
            late.set()
            end(process)

        timer = threading.Timer(deadline, expire) if deadline is not None else None
        try:
            if timer is not None:
                timer.start()
            assert process.stdout is not None
            for raw in process.stdout:
                line = raw.decode(errors="replace").rstrip("\n")
                lines.append(line)
                sink.write(line + "\n")
                if on_line is not None:
                    on_line(line)
            status = process.wait()
        finally:
            if timer is not None:
                timer.cancel()
            if process.poll() is None:
                end(process)
    if late.is_set():
        raise ToolError(f"{arguments[0]}: not done after {deadline:g} s, ended{_excerpt(lines, log)}")
    if check and status != 0:
        raise ToolError(f"{arguments[0]}: {_status(status)}{_excerpt(lines, log)}")
    return status, "\n".join(lines)


def require(tool: str, path: str | None = None) -> str:
    """Full path of a host tool; ToolError when it is not installed."""
    found = shutil.which(tool, path=path)
    if found is None:
        raise ToolError(
            f"{tool}: no such program on this machine",
            "install the package that has it; in a checkout, ./doit.sh installs all of them",
        )
    return found


def bare_environment() -> dict[str, str]:
    """The environment of a build's tools: no other variable of the user's shell reaches what they make.

    PATH is the user's: the tools are found by it. TMPDIR is a writable folder: without one, compilers fail, and
    Kconfig concludes that such a compiler lacks the features that it checks for.
    """
    return {"PATH": os.environ.get("PATH", os.defpath), "TMPDIR": tempfile.gettempdir(), "LC_ALL": "C", "TZ": "UTC"}


def bound(argv: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The command with a prefix: the kernel kills it when its parent ends for any reason (prctl(2), PR_SET_PDEATHSIG).

    The prefix is setpriv of util-linux: a `preexec_fn` would run Python after a fork, which may hang with threads.
    """
    require("setpriv")
    return ["setpriv", "--pdeathsig", "KILL", "--", *(os.fspath(argument) for argument in argv)]


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that run() started, and its children: SIGTERM, and after GRACE seconds SIGKILL."""
    try:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    finally:  # also when the user presses Ctrl-C again
        end_group(process)
        process.wait()


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that run() or qemu started, and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _status(status: int) -> str:
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _excerpt(lines: list[str], log: Path | None) -> str:
    tail = lines[-TAIL:]
    errors = list(dict.fromkeys(line for line in lines if _ERROR.search(line)))[:ERRORS]
    above = [line for line in errors if line not in tail]
    shown = "".join(f"\n  | {line}" for line in [*above, *(["…"] if above else []), *tail])
    return shown + (f"\n  whole log: {log}" if log is not None else "")
