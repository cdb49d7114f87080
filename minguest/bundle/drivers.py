# SPDX-License-Identifier: Apache-2.0
"""The disk of drivers: modules out of the tree and the firmware of their cards, as a squashfs that is only read. In an
initrd they would be memory. initd mounts it (initd/drivers.c)."""

import io
import shutil
import stat
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from minguest.bundle import cpio, modules, overlay
from minguest.model import Devel
from minguest.util import files, run, scratch
from minguest.util.errors import ToolError, UserError

NAME = "drivers.img"
# 512 KiB: firmware is read as a whole, once. zstd: the fragment root/squashfs has it.
ARGV = (
    "sqfstar", "-force", "-quiet", "-no-progress", "-no-xattrs", "-comp", "zstd", "-b", "512K",
    "-mkfs-time", "0", "-all-time", "0", "-root-mode", "755", "-root-uid", "0", "-root-gid", "0",
)  # fmt: skip


def build(
    folders: Sequence[Path],
    kernel: Devel | None,
    overlays: Sequence[Path],
    debs: Mapping[str, Path],
    target: Path,
    log: Path,
) -> None:
    """Write the image: the modules that `modules.build` wrote to `folders`, and overlays with their Debian packages.

    The same input gives the same bytes. UserError as `modules.load` and `overlay.combine`; ToolError without
    squashfs-tools.
    """
    if not shutil.which(ARGV[0]):
        raise ToolError(f"{target.name}: {ARGV[0]}: no such program on this machine", "apt install squashfs-tools")
    with scratch.folder("drivers") as work:
        (work / "modules").mkdir()
        modules.combine(folders, kernel, work / "modules")
        layers = [layer for folder in [*overlays, work / "modules"] for layer in overlay.layers(folder, debs)]
        entries = overlay.combine(overlay.Layer("", ()), layers)
        with (work / "tar").open("w+b") as packed, files.replacing(target) as temporary:
            write_tar(entries, packed)
            packed.seek(0)
            run.run([*ARGV, temporary], log=log, stdin=packed, bare=True)


def write_tar(entries: Sequence[cpio.Entry], to: IO[bytes]) -> None:
    """The entries as a tar, owners and modes included. UserError for a device node: the disk is mounted without."""
    with tarfile.open(fileobj=to, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            member = tarfile.TarInfo(entry.name)
            member.mode = stat.S_IMODE(entry.mode)
            member.uid, member.gid = entry.owner
            if stat.S_ISDIR(entry.mode):
                member.type = tarfile.DIRTYPE
            elif stat.S_ISLNK(entry.mode):
                member.type, member.linkname = tarfile.SYMTYPE, entry.data.decode()
            elif stat.S_ISREG(entry.mode):
                member.size = len(entry.data)
            else:
                raise UserError(
                    f"/{entry.name}: a device node on the disk of drivers, which is mounted without them",
                    "put the node into an overlay of the guest's own, for the initrd",
                )
            archive.addfile(member, io.BytesIO(entry.data) if member.isreg() else None)
