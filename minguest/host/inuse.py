# SPDX-License-Identifier: Apache-2.0
"""How the host uses PCI functions: displays, disks, networks, and processes that have their device files open.

Reads /sys, /proc and /dev. Standard library alone.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from minguest.host import sysfs
from minguest.util import pci


def claimed(node: Path) -> bool:
    """Whether something in the kernel has exclusive use of a block device: a file system, swap, md, ZFS."""
    try:
        if not stat.S_ISBLK(node.stat().st_mode):
            return False
        os.close(os.open(node, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


class Look:
    """Looks how the host uses some PCI functions, named by their addresses."""

    def __init__(self, root: Path, wanted: set[str], busy: Callable[[Path], bool]) -> None:
        self.root = root
        self.sys, self.proc = root / "sys", root / "proc"
        self.wanted = wanted
        self.busy = busy

    def uses(self) -> dict[str, list[str]]:
        """Displays, disks and networks that the host has on the functions."""
        found: dict[str, list[str]] = {name: [] for name in self.wanted}
        for search in (self._displays, self._disks, self._networks):
            for name, use in search():
                if name in found and use not in found[name]:
                    found[name].append(use)
        return found

    def held(self, groups: Mapping[str, str | None]) -> tuple[dict[str, list[str]], bool]:
        """Processes that have device files of the functions open; and whether some processes could not be read.
        `groups`: the IOMMU groups of functions that vfio-pci has."""
        owners: dict[str, list[str]] = {}
        for name in self.wanted:
            for node in self._nodes(name, groups.get(name)):
                owners.setdefault(node, []).append(name)
        found: dict[str, list[str]] = {name: [] for name in self.wanted}
        hidden = False
        for process in sysfs.entries(self.proc):
            if not process.name.isdigit() or process.name == str(os.getpid()):
                continue
            try:
                links = {sysfs.target(path) for path in (process / "fd").iterdir()}
            except PermissionError:
                hidden = True
                continue
            except OSError:
                continue  # it ended meanwhile
            for node in sorted(links & owners.keys()):
                who = f"{process.name} ({sysfs.text(process / 'comm') or '?'})"
                for name in owners[node]:
                    found[name].append(f"is open: {node}, by process {who}")
        return found, hidden

    def _nodes(self, name: str, group: str | None) -> set[str]:
        """Device files of a function: of everything below it in sysfs, and VFIO's and NVIDIA's."""
        nodes = set()
        top = pci.function(self.sys, name).resolve()
        for folder, below, names in os.walk(top):
            # Devices behind a bridge are not the bridge's.
            below[:] = [each for each in below if not pci.is_address(each)]
            if "uevent" in names and (node := sysfs.value(Path(folder) / "uevent", "DEVNAME", "=")):
                nodes.add(f"/dev/{node}")
        if group is not None:
            nodes.add(f"/dev/vfio/{group}")
        if minor := sysfs.value(self.proc / "driver/nvidia/gpus" / name / "information", "Device Minor"):
            nodes.add(f"/dev/nvidia{minor}")
        return nodes

    def _displays(self) -> Iterator[tuple[str, str]]:
        for path in sysfs.entries(self.sys / "class/drm"):
            if sysfs.text(path / "status") == "connected" and (owner := _owner(path)):
                yield owner, f"has a display connected ({path.name})"
        consoles = sysfs.entries(self.sys / "class/vtconsole")
        if any(
            sysfs.text(each / "bind") == "1" and "frame buffer" in (sysfs.text(each / "name") or "")
            for each in consoles
        ):
            for path in sysfs.entries(self.sys / "class/graphics"):
                if re.fullmatch(r"fb\d+", path.name) and (owner := _owner(path)):
                    yield owner, f"has the host's text console on it ({path.name})"

    def _disks(self) -> Iterator[tuple[str, str]]:
        found: set[str] = set()
        for what, block in self._blocks_in_use():
            for owner in _disk_owners(self.sys, block, set()):
                found.add(owner)
                yield owner, f"has a disk in use behind it: {what}"
        for disk in sysfs.entries(self.sys / "block"):
            for owner in _disk_owners(self.sys, disk, set()) & self.wanted - found:
                parts = [path.name for path in sysfs.entries(disk) if (path / "partition").exists()]
                for name in (disk.name, *parts):
                    if sysfs.entries(disk / name / "holders" if name in parts else disk / "holders") or self.busy(
                        self.root / "dev" / name.replace("!", "/")
                    ):
                        yield owner, f"has a disk in use behind it: {name} is claimed"

    def _blocks_in_use(self) -> Iterator[tuple[str, Path]]:
        """The use of a block device, and its folder in sysfs."""
        # This program's own mounts, and those of PID 1 if they can be read.
        for who in ("self", "1"):
            for line in (sysfs.text(self.proc / who / "mountinfo") or "").splitlines():
                head, _, tail = line.partition(" - ")
                fields, source = head.split(), tail.split()[1:2]
                if len(fields) < 5:
                    continue
                what = f"{_plain(fields[4])} is mounted"
                block = self.sys / "dev/block" / fields[2]
                if block.exists():
                    yield what, block
                elif source and (named := self._named(_plain(source[0]))):
                    yield what, named
        # mountinfo has no block device for btrfs: a mounted one is here, with all its disks.
        for path in self.sys.glob("fs/btrfs/*/devices/*"):
            yield "btrfs is mounted", path
        for line in (sysfs.text(self.proc / "swaps") or "").splitlines()[1:]:
            if line.split() and (named := self._named(_plain(line.split()[0]))):
                yield f"swap on {named.name}", named

    def _named(self, source: str) -> Path | None:
        """The block device of a path such as /dev/mapper/root; None for a swap file, whose file system is mounted."""
        if not source.startswith("/dev/"):
            return None
        name = (self.root / source[1:]).resolve().name
        block = self.sys / "class/block" / name
        return block if block.exists() else None

    def _networks(self) -> Iterator[tuple[str, str]]:
        routes = [line.split() for line in (sysfs.text(self.proc / "net/route") or "").splitlines()[1:]]
        default = {row[0] for row in routes if len(row) > 7 and int(row[1], 16) == int(row[7], 16) == 0}
        routes = [line.split() for line in (sysfs.text(self.proc / "net/ipv6_route") or "").splitlines()]
        default |= {row[9] for row in routes if len(row) > 9 and row[0] == "0" * 32 and row[1] == "00"}
        for path in sysfs.entries(self.sys / "class/net"):
            if (owner := _owner(path)) is None:
                continue
            if path.name in default:
                yield owner, f"carries the host's default route ({path.name})"
            if (sysfs.hexadecimal(path / "flags") or 0) & 1:  # IFF_UP
                yield owner, f"has a network interface that is up ({path.name})"


def _disk_owners(sys: Path, block: Path, seen: set[str]) -> set[str]:
    """The PCI functions below a block device: through partitions, device mapper, md and NVMe multipath."""
    place = block.resolve()
    if place.name in seen:
        return set()
    seen.add(place.name)
    whole = place.parent if (place / "partition").exists() else place
    found = {owner for owner in (_owner(whole),) if owner}
    for lower in sysfs.entries(place / "slaves") + (sysfs.entries(whole / "slaves") if whole != place else []):
        found |= _disk_owners(sys, lower, seen)
    # With native multipath an NVMe disk is below a subsystem, which has links to its controllers.
    for part in {*whole.parts, (whole / "device").resolve().name}:
        if re.fullmatch(r"nvme-subsys\d+", part):
            controllers = sysfs.entries(sys / "class/nvme-subsystem" / part)
            found |= {owner for each in controllers if re.fullmatch(r"nvme\d+", each.name) and (owner := _owner(each))}
    return found


def _owner(path: Path) -> str | None:
    """The PCI function above something in sysfs: the last address in its real path, or in its device's."""
    for place in (path.resolve(), (path / "device").resolve()):
        found = [part for part in place.parts if pci.is_address(part)]
        if found:
            return found[-1]
    return None


def _plain(field: str) -> str:
    """Without the octal escapes of mountinfo and swaps."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
