# SPDX-License-Identifier: Apache-2.0
"""bench tools: how long minguest's own commands take, and how much memory those that read a lot."""

import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from minguest.util.errors import ToolError
from tests import ROOT, workshop
from tests.bench.record import Part, Rows, Subject, Unit, Value, number

MINGUEST = str(Path(sys.executable).with_name("minguest"))
SUBJECT = "this checkout"
# Linux counts the memory of the process that starts another one as the other's too (fs/exec.c, exec_mmap): a small one.
MEASURE = """
import resource, subprocess, sys, time
start = time.monotonic()
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def seconds(*argv: str, env: Mapping[str, str] | None = None) -> float:
    """Wall time of a command in the checkout; ToolError with its last lines if it fails."""
    start = time.monotonic()
    done = subprocess.run(
        argv, cwd=ROOT, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-8:])
        raise ToolError(f"{shlex.join(argv)}: exit status {done.returncode}\n{last}")
    return time.monotonic() - start


def often(times: int, *argv: str) -> Value:
    return Value("s", tuple(seconds(*argv) for _ in range(times)))


def peaks(times: int, *argv: str) -> tuple[Value, Value]:
    """Wall time and the most memory of a command, whatever its status: few machines pass host-check."""
    walls, memories = [], []
    for _ in range(times):
        said = subprocess.run([sys.executable, "-S", "-c", MEASURE, *argv], cwd=ROOT, capture_output=True, check=True)
        wall, kib = said.stdout.split()
        walls.append(float(wall))
        memories.append(int(kib) * 1024.0)
    return Value("s", tuple(walls)), Value("bytes", tuple(memories))


def shipping(work: Path, line: str) -> dict[str, Value]:
    """A release of what was built, verified and published twice; and of one padded to 20 MB, verified."""
    with tempfile.TemporaryDirectory(prefix="minguest-bench-") as name:
        folder = Path(name)
        key = workshop.key(folder)
        publish = ("doit", "publish", f"to={folder / 'shelf'}", line)
        found = {
            "release": often(3, "doit", "release", "version=bench", f"key={key}", line),
            "publish to a folder": often(1, *publish),
            "publish it again": often(3, *publish),
            "verify": often(5, MINGUEST, "verify", str(work / "release"), "--key", f"{key}.pub"),
        }
        padded = workshop.build(folder / "padded", extra={"bzImage": random.Random(0).randbytes(20_000_000)})
        workshop.tested(padded)
        workshop.make(padded, key)
        found["verify 20 MB"] = often(5, MINGUEST, "verify", str(padded.release), "--key", f"{key}.pub")
    return found


def run(part: Part, work: Path, image: Path | None) -> Part:
    """Measure; ToolError if a command fails."""
    line = f"kernel={work.name.rsplit('-', 1)[1]}"
    shipped = shipping(work, line)  # first: it fails at once without a boot test of these bytes
    console = (ROOT / "tests/data/consoles/6.12-healthy-q35-4.log").read_bytes()
    with tempfile.NamedTemporaryFile() as log:
        log.write(console * (10_000_000 // len(console) + 1))
        log.flush()
        diagnose = peaks(5, MINGUEST, "diagnose", log.name)
    doctor = peaks(5, MINGUEST, "doctor", str(image or work / "bundle/bzImage"))
    values = {
        "doit build, nothing to do": often(5, "doit", "build", line),
        "doit list": often(5, "doit", "list"),
        "doit.sh list": often(5, "./doit.sh", "list"),
        "minguest --help": often(10, MINGUEST, "--help"),
        "minguest plan": often(10, MINGUEST, "plan", "--card", "nvidia-h100"),
        "minguest host-check": peaks(10, MINGUEST, "host-check")[0],
        "diagnose 10 MB": diagnose[0],
        "diagnose 10 MB, memory": diagnose[1],
        "doctor": doctor[0],
        "doctor, memory": doctor[1],
        **shipped,
    }
    return msgspec.structs.replace(part, subjects={SUBJECT: Subject("ours", work.name, values=values)})


def tables(part: Part) -> dict[str, Rows]:
    rows = [["", "median", "p95", "unit", "samples"]]
    for name, value in part.subjects[SUBJECT].values.items():
        unit: Unit = value.unit
        rows.append([name, number(value.median, unit), number(value.p95, unit), unit, str(len(value.samples))])
    return {"minguest's own commands": rows}
