# SPDX-License-Identifier: Apache-2.0
"""A real Ceph cluster as small as it goes: one monitor and one OSD on a file, on a loopback address of its own.

Its daemons are children of this process: no systemd, no root, no manager daemon (RBD needs none). They end with it,
also if it is killed. Options of Ceph: https://docs.ceph.com/en/pacific/rados/configuration/
"""

import contextlib
import json
import random
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from minguest.util import run
from minguest.util.errors import ToolError
from minguest.vm import emulator

# Debian's packages, and the programs that are used of each. qemu-block-extra has none: QEMU itself says it.
PROGRAMS: Mapping[str, tuple[str, ...]] = {
    "ceph-mon": ("ceph-mon", "monmaptool"),
    "ceph-osd": ("ceph-osd",),
    "ceph-common": ("ceph", "ceph-authtool", "rbd"),
    "mmdebstrap": ("mmdebstrap",),
    "fakeroot": ("fakeroot",),
    "e2fsprogs": ("mke2fs", "e2fsck"),
}
QEMU_PACKAGE = "qemu-block-extra"
PROBE = (
    emulator.QEMU, "-nodefaults", "-display", "none", "-machine", "none",
    "-blockdev", "driver=rbd,node-name=x,pool=x,image=x,conf=/nonexistent",
)  # fmt: skip
# Ceph's own ports of its two protocols (v2: 3300), on which librados knows which one to speak. The monitor has an
# unusual one for v2: on such a port librados tries both.
PORT, ODD_PORT = 6789, 13300
# Seconds: for one command, for the monitor and the OSD to work, for a daemon to end.
COMMAND, UP, END = 60.0, 120.0, 20.0
# Bytes of the OSD's file, which is sparse.
SIZE = 4 << 30
POOL, OTHER_POOL, USER = "vm", "other", "guest"
# How much of a daemon's log an error shows.
TAIL = 2000

CONF = """\
[global]
fsid = {fsid}
mon_host = [v2:{address}:{odd_port},v1:{address}:{port}]
public_addr = {address}
cluster_addr = {address}
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
auth_allow_insecure_global_id_reclaim = false
keyring = {folder}/keyring
run_dir = {folder}
# The name of a UNIX socket is short, and this folder's may be long. Nobody needs it.
admin_socket =
log_file = {folder}/log/$name.log
mon_data = {folder}/mon
# A disk that is nearly full is no reason to refuse: the cluster takes little and goes away.
mon_data_avail_crit = 1
osd_data = {folder}/osd
osd_objectstore = bluestore
bluestore_block_size = {size}
# The least that it allows: 896 MiB is a limit for its caches.
osd_memory_target = 939524096
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
"""


def conf(folder: Path, address: str, fsid: str) -> str:
    """ceph.conf of a cluster that has all its files in `folder`."""
    return CONF.format(folder=folder, address=address, fsid=fsid, port=PORT, odd_port=ODD_PORT, size=SIZE)


def missing(has: Callable[[str], bool], qemu_says: str) -> list[str]:
    """The packages that are not there. `has`: whether there is a program; `qemu_says`: of PROBE, where only QEMU's
    driver can complain about the file."""
    absent = [package for package, programs in PROGRAMS.items() if not all(map(has, programs))]
    return absent if "error reading conf file" in qemu_says else [*absent, QEMU_PACKAGE]


def missing_here() -> list[str]:
    """The same on this machine."""
    _, text = run.run(PROBE, check=False, deadline=COMMAND)
    return missing(lambda name: shutil.which(name) is not None, text)


def advice(packages: Sequence[str]) -> str:
    """What to type for these packages."""
    return (
        f"not installed, and needed for a Ceph cluster with Debian: {', '.join(packages)}. On Debian and Ubuntu:\n"
        f"  apt-get install --no-install-recommends {' '.join(packages)}"
    )


def free_address() -> str:
    """A loopback address on which nobody has the monitor's ports."""
    for _ in range(100):
        address = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}.{random.randint(1, 254)}"
        with contextlib.suppress(OSError):
            for port in (PORT, ODD_PORT):
                socket.create_server((address, port)).close()
            return address
    raise ToolError(f"no address of 127.0.0.0/8 has its ports {PORT} and {ODD_PORT} free")


class Cluster(msgspec.Struct):
    """A cluster that runs."""

    folder: Path
    address: str
    daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def monitor(self) -> str:
        return f"{self.address}:{PORT}"

    def ceph(self, *arguments: str) -> str:
        """`ceph` as its administrator: what it prints."""
        return self._tool("ceph", "--connect-timeout", f"{COMMAND / 2:g}", *arguments)

    def rbd(self, *arguments: str) -> str:
        """`rbd` as the cluster's administrator: what it prints."""
        return self._tool("rbd", *arguments)

    def _tool(self, *argv: str, deadline: float = COMMAND) -> str:
        environment = {"CEPH_CONF": str(self.folder / "ceph.conf"), "CEPH_ARGS": ""}
        _, text = run.run(argv, cwd=self.folder, env=environment, deadline=deadline, merge=False)
        return text

    def start(self, name: str, *argv: str) -> None:
        """Start a daemon in the foreground of its own session; this process ends it, and does not outlive it."""
        with (self.folder / f"log/{name}.out").open("wb") as out:
            self.daemons[name] = subprocess.Popen(
                run.bound([*argv, "--foreground", "--conf", self.folder / "ceph.conf"]),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for(self, name: str, what: str, holds: Callable[[], bool], seconds: float = UP) -> None:
        """Wait for what a daemon must do; ToolError with its log if it ends or takes too long."""
        until = time.monotonic() + seconds
        while True:
            with contextlib.suppress(ToolError):
                if holds():
                    return
            status = self.daemons[name].poll()
            if status is not None or time.monotonic() > until:
                why = f"it ended, status {status}" if status is not None else f"not in {seconds:g} s"
                said = (self.folder / f"log/{name}.out").read_text(errors="replace")[-TAIL:]
                raise ToolError(f"{name}: no {what}: {why}\n{said}", f"its log is in {self.folder / 'log'}")
            time.sleep(0.2)

    def end(self, name: str) -> None:
        """End a daemon: SIGTERM, and SIGKILL if it takes too long."""
        daemon = self.daemons.pop(name)
        daemon.terminate()
        try:
            daemon.wait(END)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """A cluster in `folder`, which is emptied first and keeps its logs, with two pools. USER may use POOL alone; its
    key is in the file `key`."""
    if folder.exists():
        shutil.rmtree(folder)
    (folder / "log").mkdir(parents=True)
    folder.chmod(0o700)
    cluster = Cluster(folder, free_address())
    try:
        _monitor(cluster)
        _osd(cluster)
        for pool in (POOL, OTHER_POOL):
            cluster.ceph("osd", "pool", "create", pool)
            cluster.rbd("pool", "init", pool)
        cluster.ceph("auth", "add", f"client.{USER}", "mon", "profile rbd", "osd", f"profile rbd pool={POOL}")
        write_key(folder / "key", cluster.ceph("auth", "get-key", f"client.{USER}"))
        yield cluster
    finally:
        for name in [*reversed(cluster.daemons)]:
            cluster.end(name)
        for name in ("mon", "osd"):
            shutil.rmtree(folder / name, ignore_errors=True)


def write_key(file: Path, key: str) -> None:
    """A key that nobody else can read, not even for a moment."""
    file.unlink(missing_ok=True)
    file.touch(0o600)
    file.write_text(f"{key}\n")


def _monitor(cluster: Cluster) -> None:
    """Make and start the monitor, and wait until it is the quorum."""
    folder, fsid = cluster.folder, str(uuid.uuid4())
    (folder / "ceph.conf").write_text(conf(folder, cluster.address, fsid))
    keyring, monmap = str(folder / "keyring"), str(folder / "monmap")
    cluster._tool("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    admin = ["--cap", "mon", "allow *", "--cap", "osd", "allow *"]
    cluster._tool("ceph-authtool", keyring, "--gen-key", "-n", "client.admin", *admin)
    addresses = f"[v2:{cluster.address}:{ODD_PORT},v1:{cluster.address}:{PORT}]"
    cluster._tool("monmaptool", "--create", "--fsid", fsid, "--addv", "a", addresses, monmap)
    cluster._tool("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
    cluster.start("mon", "ceph-mon", "-i", "a")
    cluster.wait_for("mon", "quorum", lambda: json.loads(cluster.ceph("quorum_status"))["quorum"] == [0])


def _osd(cluster: Cluster) -> None:
    """Make and start the OSD, and wait until it is up and in."""
    place, number = cluster.folder / "osd", str(uuid.uuid4())
    place.mkdir()
    keyring = str(place / "keyring")
    cluster._tool("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "osd.0")
    cluster.ceph("osd", "new", number)
    cluster.ceph("auth", "add", "osd.0", "mon", "allow profile osd", "osd", "allow *", "-i", keyring)
    cluster._tool("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", number, "--keyring", keyring, deadline=UP)
    cluster.start("osd", "ceph-osd", "-i", "0", "--keyring", keyring)

    def up() -> bool:
        found = json.loads(cluster.ceph("osd", "stat", "--format", "json"))
        return (found["num_up_osds"], found["num_in_osds"]) == (1, 1)

    cluster.wait_for("osd", "OSD that is up", up)
