# SPDX-License-Identifier: Apache-2.0
"""How long Debian takes to multi-user.target, on a bundle's kernel and on Debian's own cloud kernel with its initrd.

    python -m tests.bench.root [--runs 5] [--series 6.12] [--work DIR]

The same root disk, QEMU, firmware and CPUs, in turns; software emulation. Times are from QEMU's start to a unit that
runs after multi-user.target; CPU seconds are all of QEMU's. `took` is from the disk's appearance to the start of the
root's init, by the guest's clock. The bundle is that of `doit build guest=systemd`; the root is made with mmdebstrap.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import msgspec

from minguest import paths
from minguest.util.run import require
from tests import ROOT, debian

MARK = "minguest: multi-user"
UNIT = f"""
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo {MARK} > /dev/ttyS0'
[Install]
WantedBy=multi-user.target
"""
CPUS, DEADLINE = 2, 300.0


class Boot(msgspec.Struct, frozen=True):
    """One boot, in seconds."""

    wall: float
    cpu: float
    took: float | None


def boot(work: Path, bundle: Path, kernel: Path, initrd: Path, append: str) -> Boot:
    """Start QEMU, and end it when the mark is on the console; RuntimeError if it does not come."""
    console, report = work / "console", work / "report"
    for path in (console, report):
        path.write_bytes(b"")
    argv: list[str | Path] = [
        require("qemu-system-x86_64"), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", "q35,accel=tcg", "-cpu", "max", "-smp", str(CPUS), "-m", "1G",
        "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={bundle / 'OVMF_CODE.fd'}",
        "-drive", f"if=pflash,unit=1,format=raw,snapshot=on,file={bundle / 'OVMF_VARS.fd'}",
        "-drive", f"if=virtio,format=raw,snapshot=on,file={work / 'disk.img'}",
        "-kernel", kernel, "-initrd", initrd, "-append", f"console=ttyS0 no_timer_check {append}",
        "-serial", f"file:{console}", "-chardev", f"file,id=report,path={report}",
        "-device", "isa-serial,chardev=report,index=3",
    ]  # fmt: skip
    start = time.monotonic()
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        while MARK.encode() not in console.read_bytes():
            if process.poll() is not None or time.monotonic() - start > DEADLINE:
                raise RuntimeError(f"no mark: {console.read_text(errors='replace')[-2000:]}")
            time.sleep(0.01)
        wall = time.monotonic() - start
    finally:
        process.kill()
        _, _, used = os.wait4(process.pid, 0)
        process.returncode = 0
    handover = re.search(rb'^{"record":"handover".*$', report.read_bytes(), re.MULTILINE)
    return Boot(wall, used.ru_utime + used.ru_stime, json.loads(handover[0])["took"] if handover else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--series", default="6.12")
    parser.add_argument("--work", type=Path, help="keep the root here, and use it if it is there")
    options = parser.parse_args()
    bundle = paths.Layout(ROOT, "systemd", options.series).bundle
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        if not (work / "disk.img").exists():
            work.mkdir(parents=True, exist_ok=True)
            debian.make(work, {"mark.service": UNIT}, ("linux-image-cloud-amd64",))
            unpack = ["tar", "-C", work, "--wildcards", "-xf", work / "root.tar", "./boot/vmlinuz-*", "./boot/initrd*"]
            subprocess.run(unpack, check=True)
        (theirs,) = work.glob("boot/vmlinuz-*")
        (initrd,) = work.glob("boot/initrd.img-*")
        kinds = {
            f"Debian's cloud kernel {theirs.name.partition('-')[2]}": (theirs, initrd, "root=LABEL=debian"),
            f"minguest {options.series}": (
                bundle / "bzImage",
                bundle / "initrd.img",
                "initd.root=LABEL=debian initd.report=/dev/ttyS3",
            ),
        }
        found: dict[str, list[Boot]] = {name: [] for name in kinds}
        for _ in range(options.runs):
            for name, kind in kinds.items():
                found[name].append(boot(work, bundle, *kind))
    first: Boot | None = None
    for name, boots in found.items():
        tooks = [each.took for each in boots if each.took is not None]
        middle = Boot(
            statistics.median(each.wall for each in boots),
            statistics.median(each.cpu for each in boots),
            statistics.median(tooks) if tooks else None,
        )
        first = first or middle
        took = f", disk to init {middle.took * 1000:.0f} ms" if middle.took is not None else ""
        print(
            f"{name}: multi-user after {middle.wall:.1f} s ({middle.wall / first.wall:.2f}), "
            f"{middle.cpu:.1f} CPU s ({middle.cpu / first.cpu:.2f}){took}; median of {len(boots)}"
        )


if __name__ == "__main__":
    main()
