# SPDX-License-Identifier: Apache-2.0
"""qemu.sh starts QEMU with exactly the arguments of the first start."""

import subprocess
from pathlib import Path

from minguest.vm import arguments

ARGUMENTS = [
    "%s\\n",
    "-cpu",
    "-x;touch evil",
    "-$(touch evil)",
    "a b",
    "-",
    "--",
    "",
    "it's",
    "-m",
    "1G",
    "-nodefaults",
]


def test_every_argument_is_quoted(tmp_path: Path) -> None:
    script = tmp_path / "qemu.sh"
    script.write_text(arguments.script(["printf", *ARGUMENTS]))
    shown = subprocess.run(["sh", script], check=True, capture_output=True, text=True).stdout
    assert shown.split("\n")[:-1] == ARGUMENTS[1:]
    assert not (tmp_path / "evil").exists()
    # An option and its value a line, for a person.
    assert {"  -m 1G \\", "  -nodefaults"} <= set(script.read_text().splitlines())
