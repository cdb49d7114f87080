# SPDX-License-Identifier: Apache-2.0
"""Sizes and times, as a table and out/bench.json: `doit bench`, or `python -m tests.bench --help`.

Figures of one noisy machine: compare within one run, quote ratios.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from minguest import settings
from minguest.kernel import kbuild
from minguest.util.run import run
from tests import ROOT, workshop


def seconds(*argv: str) -> float:
    """Wall time of a command that must succeed."""
    start = time.monotonic()
    subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


MINGUEST = str(Path(sys.executable).with_name("minguest"))


def median(times: int, *argv: str) -> float:
    return statistics.median(seconds(*argv) for _ in range(times))


def plain(times: int, *argv: str) -> float:
    """Median wall time of a command, whatever its status: few machines pass host-check."""
    return statistics.median(peak(*argv)[0] for _ in range(times))


def sizes(bundle: Path) -> dict[str, float]:
    found = {name: (bundle / name).stat().st_size for name in ("bzImage", "initrd.img")}
    return {**found, "bzImage + initrd.img": sum(found.values()), "initd": (ROOT / "out/initd/initd").stat().st_size}


def boots(times: int, work: Path, variables: list[str]) -> dict[str, float]:
    """Median of each phase of boot-test, in seconds."""
    phases = []
    for _ in range(times):
        seconds("doit", "boot-test", *variables)
        phases.append(json.loads((work / "boot-test/verdict.json").read_bytes())["verdict"]["phases"])
    return {name: statistics.median(each[name] for each in phases) for name in ("firmware", "kernel", "initd", "wall")}


def cold(tree: Path, config: Path) -> float:
    """Wall time of compiling `config` from nothing, olddefconfig included."""
    with tempfile.TemporaryDirectory(prefix="minguest-bench-") as name:
        out = Path(name)
        shutil.copyfile(config, out / ".config")
        start = time.monotonic()
        for target in ("olddefconfig", "bzImage"):
            run(kbuild.make_argv(tree, out, settings.jobs(), target), bare=True)
        return time.monotonic() - start


def shipping(work: Path, line: str) -> dict[str, float]:
    """A release of what was built, verified and published twice; and of one padded to 20 MB, verified."""
    with tempfile.TemporaryDirectory(prefix="minguest-bench-") as name:
        folder = Path(name)
        key = workshop.key(folder)
        release = ("doit", "release", "version=bench", f"key={key}", line)
        publish = ("doit", "publish", f"to={folder / 'shelf'}", line)
        verify = (str(Path(sys.executable).with_name("minguest")), "verify")
        figures = {"release, s": median(3, *release), "publish to a folder, s": seconds(*publish)}
        figures["publish it again, s"] = median(3, *publish)
        figures["verify, s"] = median(5, *verify, str(work / "release"), "--key", f"{key}.pub")
        figures["release, bytes"] = sum(path.stat().st_size for path in (work / "release").iterdir())
        padded = workshop.build(folder / "padded", extra={"bzImage": random.Random(0).randbytes(20_000_000)})
        workshop.tested(padded)
        workshop.make(padded, key)
        figures["verify 20 MB, s"] = median(5, *verify, str(padded.release), "--key", f"{key}.pub")
        return figures


def peak(*argv: str) -> tuple[float, float]:
    """Wall time in seconds and the most memory in bytes of a command, whatever its status."""
    start = time.monotonic()
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0  # waited for already
    return time.monotonic() - start, usage.ru_maxrss * 1024


def knowing(image: Path) -> dict[str, float]:
    """diagnose of 10 MB of a healthy console, which every pattern is looked for in; doctor of `image`."""
    console = (ROOT / "tests/data/consoles/6.12-healthy-q35-4.log").read_bytes()
    with tempfile.NamedTemporaryFile() as log:
        log.write(console * (10_000_000 // len(console) + 1))
        log.flush()
        runs = [peak(MINGUEST, "diagnose", log.name) for _ in range(5)]
    looked = [peak(MINGUEST, "doctor", str(image)) for _ in range(5)]
    size = image.stat().st_size / 1e6
    return {
        "diagnose 10 MB, s": statistics.median(wall for wall, _ in runs),
        "diagnose 10 MB, bytes at most": max(memory for _, memory in runs),
        f"doctor {size:.1f} MB, s": statistics.median(wall for wall, _ in looked),
        f"doctor {size:.1f} MB, bytes at most": max(memory for _, memory in looked),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="doit bench", description=__doc__)
    parser.add_argument("--work", default="out/default-6.12", help="folder of the guest to measure")
    parser.add_argument("--boots", type=int, default=5, help="how many boots (default 5)")
    parser.add_argument("--cold", action="store_true", help="also compile the kernel from nothing")
    parser.add_argument("--against", type=Path, help="another .config to compile from nothing, on the same tree")
    parser.add_argument("--image", type=Path, help="a kernel for doctor to look at, else the built one")
    options = parser.parse_args()
    work = ROOT / options.work
    line = f"kernel={work.name.rsplit('-', 1)[1]}"
    figures: dict[str, float] = {
        "doit build, nothing to do, s": median(5, "doit", "build", line),
        "doit.sh list, s": median(5, "./doit.sh", "list"),
        "doit list, s": median(5, "doit", "list"),
        "minguest plan, s": median(10, MINGUEST, "plan", "--card", "nvidia-h100"),
        "minguest --help, s": median(10, MINGUEST, "--help"),
        "minguest host-check, s": plain(10, MINGUEST, "host-check"),
        **{f"{name}, bytes": size for name, size in sizes(work / "bundle").items()},
        **{f"boot, {name}, s": value for name, value in boots(options.boots, work, [line]).items()},
    }
    figures |= shipping(work, line) | knowing(options.image or work / "bundle/bzImage")
    tree = Path(json.loads((work / "tree.json").read_bytes())["path"])
    if options.cold:
        figures["kernel from nothing, s"] = cold(tree, work / "bundle/kernel.config")
    if options.against:
        figures[f"{options.against.name} from nothing, s"] = cold(tree, options.against)
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:{width}}  {value:,.0f}" if value > 1000 else f"{name:{width}}  {value:.3f}")
    (ROOT / "out/bench.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
