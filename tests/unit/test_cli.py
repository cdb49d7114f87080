# SPDX-License-Identifier: Apache-2.0
"""The installed command does without what builds and publishes."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What the extras `build`, `s3` and `test` bring, by the names that are imported.
NOT_THERE = ("doit", "jinja2", "elftools", "debian", "pefile", "kconfiglib", "cyclonedx", "boto3", "pytest", "oras")


def test_the_command_needs_none_of_the_builds_packages() -> None:
    program = f"import sys; sys.modules.update(dict.fromkeys({NOT_THERE})); from minguest.cli import main; main(['-h'])"
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "verify" in found.stdout
