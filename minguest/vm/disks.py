# SPDX-License-Identifier: Apache-2.0
"""A guest's disks: checks a Disk, and gives QEMU's options for it. Looks at files, writes none."""

import ipaddress
import re
import shlex
from pathlib import Path

import msgspec

from minguest import model
from minguest.util.errors import UserError

# QEMU finds the bundle by a link in the folder that it is started in. So its arguments have no path of this machine,
# and no comma from a path: QEMU takes a comma for the end of a value.
LINK = "bundle"
# The disk of drivers, which is in the bundle. initd finds it by its serial: its number depends on the other disks.
DRIVERS = model.Disk(file=f"{LINK}/drivers.img", read_only=True, serial="drivers")
# The port of a Ceph monitor without one: for the protocol that every release of Ceph speaks.
MONITOR_PORT = 6789


def settle(where: str, disk: model.Disk, here: bool) -> model.Disk:
    """A disk that QEMU accepts; UserError for what QEMU would fail on, or what would disclose a key."""
    if bool(disk.file) == bool(disk.rbd):
        raise UserError(f"{where}: give one of file = and rbd =")
    if disk.file:
        path = Path(disk.file).expanduser()
        if here and not (path.is_file() or path.is_block_device()):
            raise UserError(f"{where}.file = {disk.file!r}: no such file or block device")
        if disk.monitors or disk.conf or disk.user or disk.key_file:
            raise UserError(f"{where}: monitors, conf, user and key_file are for rbd")
        return msgspec.structs.replace(disk, file=str(path.absolute()))
    if not re.fullmatch(r"[^/]+/[^/]+(/[^/]+)?", disk.rbd):
        raise UserError(f"{where}.rbd = {disk.rbd!r}", "write it as POOL/IMAGE or POOL/NAMESPACE/IMAGE")
    if disk.format != "raw":
        raise UserError(f"{where}.format = {disk.format!r}: an RBD image is raw")
    for n, each in enumerate(disk.monitors):
        try:
            monitor(each)
        except ValueError as error:
            raise UserError(
                f"{where}.monitors[{n}] = {each!r}: {error}",
                "write each as HOST or HOST:PORT, for example mon-1.example or [2001:db8::1]:6789",
            ) from None
    return _with_key(where, disk, here) if disk.key_file else disk


def _with_key(where: str, disk: model.Disk, here: bool) -> model.Disk:
    key = Path(disk.key_file).expanduser()
    if not here:
        return msgspec.structs.replace(disk, key_file=str(key.absolute()))
    try:
        mode, content = key.stat().st_mode, key.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}.key_file = {disk.key_file!r}: cannot be read: {error}") from error
    if mode & 0o077:
        raise UserError(
            f"{where}.key_file = {disk.key_file!r}: others can read it", f"chmod 600 {shlex.quote(disk.key_file)}"
        )
    if not re.fullmatch(r"[A-Za-z0-9+/]{20,}={0,2}", content):
        raise UserError(
            f"{where}.key_file = {disk.key_file!r}: is not a plain key", "ceph auth get-key client.NAME > FILE"
        )
    return msgspec.structs.replace(disk, key_file=str(key.absolute()))


def monitor(text: str) -> tuple[str, int]:
    """Host and port of `HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT`; ValueError for anything else."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9][A-Za-z0-9._-]*))(?::([0-9]{1,5}))?", text)
    if not match:
        raise ValueError("is not a host")
    if match[1]:
        ipaddress.IPv6Address(match[1])
    port = int(match[3] or MONITOR_PORT)
    if not 1 <= port <= 65535:
        raise ValueError(f"port {port}: not from 1 to 65535")
    return match[1] or match[2], port


def argv(disk: model.Disk, number: int) -> list[str]:
    """QEMU's options for a disk that `settle` accepted; `number` counts the guest's disks from 0."""
    name = f"disk{number}"
    only = ",read-only=on" if disk.read_only else ""
    serial = f",serial={comma(disk.serial)}" if disk.serial else ""
    device = ["-device", f"virtio-blk-pci,drive={name},id={name}-device{serial}"]
    if disk.file:
        host = "host_device" if is_device(disk.file) else "file"
        file = f"file.driver={host},file.filename={comma(disk.file)}"
        return ["-blockdev", f"driver={disk.format},node-name={name},{file}{only}", *device]
    pool, *namespace, image = disk.rbd.split("/")
    value = f"driver=rbd,node-name={name},pool={comma(pool)},image={comma(image)}{only}"
    value += "".join(f",namespace={comma(each)}" for each in namespace)
    value += f",user={comma(disk.user)}" if disk.user else ""
    # BlockdevOptionsRbd in QEMU's qapi/block-core.json: a server has both of these, and nothing else.
    for n, (host, port) in enumerate(map(monitor, disk.monitors)):
        value += f",server.{n}.host={host},server.{n}.port={port}"
    value += f",conf={comma(disk.conf)}" if disk.conf else ""
    if not disk.key_file:
        return ["-blockdev", value, *device]
    # The key stays in its file: everyone on the machine can read a command line.
    secret = f"secret,id={name}-key,format=base64,file={comma(disk.key_file)}"
    return ["-object", secret, "-blockdev", f"{value},key-secret={name}-key", *device]


def is_device(path: str) -> bool:
    """Whether a disk is a block device; if it is not on this machine, whether it is below /dev."""
    return Path(path).is_block_device() or (path.startswith("/dev/") and not Path(path).exists())


def comma(path: str) -> str:
    """A path inside QEMU's option=value lists: a comma is doubled."""
    return path.replace(",", ",,")
