# SPDX-License-Identifier: Apache-2.0
"""A disk that is really full: a small tmpfs, for root and, in a user namespace, for everyone else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

MOUNT = """
import subprocess, sys
from pathlib import Path
from minguest.util.errors import ToolError
folder = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=" + sys.argv[2], "none", folder], check=True)
"""


def run(program: str, folder: Path, size: str, *arguments: str | Path) -> str:
    """What a Python program prints that runs with a tmpfs of `size` mounted on `folder`.

    The program finds the folder as `folder`, and `arguments` in sys.argv[3:]. The network is as it is outside.
    """
    unshare = ["unshare", "-m" if os.geteuid() == 0 else "-rm"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("NOT RUN: mounting is not allowed here, not even in a user namespace")
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [*unshare, sys.executable, "-c", MOUNT + program, folder, size, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.fspath(ROOT), *sys.path])},
    )
    return done.stdout
