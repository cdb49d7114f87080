# SPDX-License-Identifier: Apache-2.0
"""What the rehearsal's host does, as root: bind the cards to vfio-pci, start the guest with them, unbind them.

Each step is a command of minguest in a process of its own, forked from one that has imported what they need: importing
takes an emulated CPU 6 s each time, and the steps' own work less. A step writes NAME.log and a line in `steps`.
"""

import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

SYSFS = Path("/sys/bus/pci/devices")
# A socket cannot be on a 9p share, so boot-test's folder is in memory.
WORK = Path("/run/work/test")
KEPT = ("console.log", "report.json", "verdict.json", "kernel.log", "qemu.sh", "qemu.log")


def main(share: Path, gpus: str, functions: Sequence[str]) -> None:
    """`share`: the rehearsal's folder; `gpus`: addresses with commas; `functions`: of all functions of those cards."""
    _done(share, "host", 0)
    _owners(share / "before", functions)

    # After the host's own step, which says when it was up.
    from minguest import cli  # noqa: PLC0415
    from minguest.boottest import runner  # noqa: F401, PLC0415 - what boot-test imports late
    from minguest.host import checks, survey, vfio  # noqa: F401, PLC0415 - and host-check

    if _step(share, "host-bind", vfio.main, "bind", "--gpu", gpus, "--yes"):
        _owners(share / "during", functions)
        _step(share, "host-check", cli.main, "host-check", f"{share}/bundle")
        # With the command of the bundle's run-guest.
        _step(share, "boot-test", cli.main, "boot-test", f"{share}/bundle", "--work", str(WORK))
        for name in KEPT:
            if (WORK / "boot-test" / name).exists():
                shutil.copyfile(WORK / "boot-test" / name, share / name)
    _step(share, "host-unbind", vfio.main, "unbind", "--yes")
    _owners(share / "after", functions)


def _step(share: Path, name: str, command: Callable[[Sequence[str]], int], *argv: str) -> bool:
    """Whether the command ended with 0."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            log = os.open(share / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
            status = command(argv)
        except SystemExit as error:  # of argparse
            status = int(error.code or 0)
        except BaseException:  # whatever it is, it is in the step's log
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    _done(share, name, status)
    return status == 0


def _done(share: Path, name: str, status: int) -> None:
    uptime = Path("/proc/uptime").read_text(encoding="ascii").split()[0]
    with (share / "steps").open("a", encoding="ascii") as steps:
        steps.write(f"{name} {status} {uptime}\n")


def _owners(record: Path, functions: Sequence[str]) -> None:
    """Each function's driver, and its driver_override."""
    lines = []
    for function in functions:
        driver = SYSFS / function / "driver"
        name = driver.readlink().name if driver.is_symlink() else ""
        override = (SYSFS / function / "driver_override").read_text(encoding="utf-8").rstrip("\n")
        lines.append(f"{function} {name} {override}\n")
    record.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
