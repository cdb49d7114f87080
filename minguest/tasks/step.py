# SPDX-License-Identifier: Apache-2.0
"""One task of doit: when it runs again, what it must have made, and how its errors end it.

A step names all that it depends on, because doit sees neither imported code nor values: see `step`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from doit.dependency import FileChangedChecker
from doit.exceptions import TaskFailed
from doit.tools import config_changed

from minguest import paths
from minguest.util import files
from minguest.util.errors import MinguestError

Task = dict[str, Any]
CODE = paths.PACKAGE


class ByContent(FileChangedChecker):  # type: ignore[misc]
    """How doit finds out whether a dependency has changed: by its content, never by its time."""

    def check_modified(self, file_path: str, _: Any, state: str) -> bool:
        return files.sha256(Path(file_path)) != state

    def get_state(self, dep: str, _: Any) -> str:
        return files.sha256(Path(dep))


def step(
    action: Callable[..., None],
    *,
    doc: str,
    file_dep: Sequence[Path] = (),
    targets: Sequence[Path] = (),
    maybe: Sequence[Path] = (),
    code: Sequence[str] = (),
    facts: Callable[[], Mapping[str, Any]] = dict,
    **more: Any,
) -> Task:
    """A task that runs when a file, one of its modules (`code`), a fact or a target has changed.

    `facts` is called only when doit looks at the task. Afterwards every target must exist; one that is
    missing or has other content later is made again, so nothing is built from a damaged one. So are those of `maybe`,
    which the action makes, or does not, as its input requires.
    """

    def sums() -> dict[str, str]:
        return {str(target): files.sha256(target) for target in (*targets, *maybe) if target.is_file()}

    def changed(task: Any, values: Any) -> Any:
        task.value_savers.append(lambda: {"sums": sums()})
        # config_changed knows only plain text, so msgspec turns structs and paths into it. doit calls configure_task
        # itself for what is in `uptodate`, when it loads: that would compute the facts of tasks that do not run.
        checker = config_changed(msgspec.json.encode(facts(), enc_hook=str).decode())
        checker.configure_task(task)
        same = checker(task, values)
        return same and values.get("sums") == sums()

    def checked(**options: Any) -> TaskFailed | None:
        try:
            action(**options)
        except MinguestError as error:
            return TaskFailed(str(error))
        except OSError as error:
            if error.filename is None:
                raise
            return TaskFailed(f"{error.filename}: {error.strerror}")
        missing = [str(target) for target in targets if not target.exists()]
        return TaskFailed(f"did not make {', '.join(missing)}") if missing else None

    return {
        "doc": doc,
        "actions": [checked],
        "file_dep": [str(path) for path in [*file_dep, *(CODE / f"{module}.py" for module in code)]],
        "targets": [str(target) for target in targets],
        "uptodate": [changed],
        **more,
    }


def params(options: Mapping[str, str]) -> list[dict[str, str]]:
    """doit's parameters of a task, from their names on the command line and their help texts."""
    return [
        {"name": name.replace("-", "_"), "long": name, "default": "", "help": text} for name, text in options.items()
    ]


def flags(options: Mapping[str, str]) -> list[dict[str, Any]]:
    """The same for those that take no value."""
    return [{**param, "type": bool, "default": False} for param in params(options)]


def always() -> Mapping[str, Any]:
    """The facts of a task that runs whenever it is requested. Not the time: a clock may stop, or be set back."""
    return {"once": os.urandom(16).hex()}
