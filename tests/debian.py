# SPDX-License-Identifier: Apache-2.0
"""A Debian root disk, and a guest that runs from it: commands in it over ssh, and QMP."""

import contextlib
import json
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minguest.util import run

# Seconds to ssh, and to the end. Emulated, with nothing else to do, they are 10 and 5.
UP, DOWN = 300, 120
PACKAGES = ("systemd-sysv", "dbus", "udev", "openssh-server", "iproute2", "kmod")
# An ext4 superblock: state at 0x3a, where 1 is clean, and incompatible features at 0x60, where 4 is "needs recovery".
SUPERBLOCK, STATE, INCOMPATIBLE = 1024, 0x3A, 0x60
# The head of the file of a guest that goes on to this disk; its [launch] follows.
GUEST = """
name = "{name}"
kernel = ["{series}"]
fragments = ["*", "configs/kernel/root/systemd.config"]
overlays = ["base"]

[root]
disk = "LABEL=debian"
"""
NETWORK = "[Match]\nName=e*\n[Network]\nDHCP=ipv4\n"


def make(folder: Path, units: dict[str, str] | None = None, packages: tuple[str, ...] = ()) -> None:
    """Make disk.img, an ext4 with Debian 12 and the label `debian`, and `key`, which may log in as root by ssh.

    Nothing is mounted, and no root is needed. `units` of systemd are wanted by multi-user.target. root.tar is left.
    """
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    wanted = ",".join((*PACKAGES, *packages))
    made: list[str | Path] = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={wanted}", "bookworm"]
    subprocess.run([*made, folder / "root.tar"], check=True, timeout=900)
    (folder / "network").write_text(NETWORK)
    (folder / "units").mkdir()
    for name, text in (units or {}).items():
        (folder / "units" / name).write_text(text)
    steps = """
        mkdir root
        tar -C root -xf root.tar --exclude='./dev/*'
        mkdir -p -m 700 root/root/.ssh
        install -m 600 key.pub root/root/.ssh/authorized_keys
        echo guest > root/etc/hostname
        echo 'LABEL=debian / ext4 defaults 0 1' > root/etc/fstab
        install -m 644 network root/etc/systemd/network/80-dhcp.network
        wants=root/etc/systemd/system/multi-user.target.wants
        ln -s /lib/systemd/system/systemd-networkd.service $wants
        for unit in units/*; do
            [ -e "$unit" ] || continue
            install -m 644 "$unit" root/etc/systemd/system/
            ln -s "/etc/systemd/system/${unit#units/}" $wants
        done
        mke2fs -q -t ext4 -L debian -d root disk.img 1G
        rm -r root
    """
    subprocess.run(["fakeroot", "sh", "-euc", steps], cwd=folder, check=True, timeout=600)


class Running:
    """A guest that runs: commands in it over ssh, and QMP."""

    def __init__(self, bundle: Path, folder: Path, key: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.folder, self.key = folder, key
        # On the root bus: else QEMU may take the one of a node's cards, which has no place for it.
        network = [f"user,id=net,hostfwd=tcp:127.0.0.1:{self.port}-:22", "virtio-net-pci,netdev=net,bus=pcie.0"]
        command: list[str | Path] = [bundle / "run-guest", "--accel", "tcg", "--keep", folder / "kept"]
        command += ["-netdev", network[0], "-device", network[1]]
        command += ["-qmp", f"unix:{folder / 'qmp'},server=on,wait=off"]
        self.console = folder / "console"
        with self.console.open("wb") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def ssh(self, command: str, *, check: bool = True) -> str:
        options = "-oStrictHostKeyChecking=no -oUserKnownHostsFile=/dev/null -oConnectTimeout=10 -oBatchMode=yes"
        argv: list[str | Path] = [
            "ssh",
            "-q",
            *options.split(),
            "-i",
            self.key,
            "-p",
            str(self.port),
            "root@127.0.0.1",
            command,
        ]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=UP)
        assert not check or done.returncode == 0, f"{command}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def wait_for(self, what: str, seconds: float, holds: Callable[[], bool]) -> None:
        until = time.monotonic() + seconds
        while not holds():
            assert self.process.poll() is None, f"QEMU ended before {what}: {self.tail()}"
            assert time.monotonic() < until, f"no {what} in {seconds:g} s: {self.tail()}"
            time.sleep(0.5)

    def wait_for_end(self) -> None:
        """The guest powers off by itself: QEMU ends, and run-guest says that the report was whole."""
        assert self.process.wait(DOWN) == 0, self.tail()
        assert "Power down" in self.console.read_text(errors="replace")

    def tail(self) -> str:
        return self.console.read_text(errors="replace")[-3000:]

    def qmp(self, *commands: tuple[str, dict[str, Any]]) -> list[Any]:
        """The answers to these commands; an error fails the test."""
        answers = []
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(str(self.folder / "qmp"))
            with channel.makefile("rw") as file:
                file.readline()
                for name, arguments in (("qmp_capabilities", {}), *commands):
                    file.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
                    file.flush()
                    while "return" not in (answer := json.loads(file.readline())):
                        assert "error" not in answer, answer
                    answers.append(answer["return"])
        return answers[1:]


@contextlib.contextmanager
def running(bundle: Path, folder: Path, key: Path) -> Iterator[Running]:
    guest = Running(bundle, folder, key)
    try:
        guest.wait_for("ssh", UP, lambda: guest.ssh("echo up", check=False) == "up")
        yield guest
    finally:
        guest.process.terminate()
        try:
            guest.process.wait(30)
        finally:
            run.end_group(guest.process)  # QEMU does not end while its disk does not answer


def clean(disk: Path) -> bool:
    """Whether the file system was unmounted, or made read-only: it is valid, and does not need its journal."""
    with disk.open("rb") as file:
        file.seek(SUPERBLOCK)
        block = file.read(1024)
    valid, incompatible = struct.unpack_from("<H", block, STATE)[0], struct.unpack_from("<I", block, INCOMPATIBLE)[0]
    return valid == 1 and not incompatible & 4
