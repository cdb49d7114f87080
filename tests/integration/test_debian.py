# SPDX-License-Identifier: Apache-2.0
"""Debian 12 on a root disk, started by a bundle: systemd, network, ssh, hotplug, and its power button."""

import contextlib
import json
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minguest import paths
from minguest.vm import report
from tests import ROOT
from tests.integration.conftest import SERIES, Doit
from tests.integration.test_cards import checks
from tests.integration.test_shutdown import INCOMPATIBLE, STATE, SUPERBLOCK

# Seconds. Emulated, with nothing else to do, it takes 10.
UP, DOWN = 300, 120
PACKAGES = "systemd-sysv,dbus,udev,openssh-server,iproute2,iputils-ping,kmod"
GUEST = """
name = "it-debian"
kernel = ["{series}"]
fragments = ["*", "configs/kernel/root/systemd.config"]
overlays = ["base"]

[root]
disk = "LABEL=debian"

[launch]
cpus = 2
max_cpus = 4
memory = "1G"
max_memory = "4G"
disks = [{{ file = "{disk}" }}]
"""
# In the root, by path: what a person who makes such a root would write too.
NETWORK = "[Match]\nName=e*\n[Network]\nDHCP=ipv4\n"
# A service with every protection that needs the kernel: systemd drops what it cannot do, and says so in the journal.
SANDBOX = """
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'id -u; hostname'
PrivateNetwork=yes
PrivateTmp=yes
PrivateUsers=yes
PrivateIPC=yes
ProtectHostname=yes
ProtectSystem=strict
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX
SystemCallFilter=@system-service
MemoryDenyWriteExecute=yes
IPAddressDeny=any
DevicePolicy=closed
MemoryMax=64M
TasksMax=8
CPUQuota=50%
[Install]
WantedBy=multi-user.target
"""


@pytest.fixture(scope="session")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with disk.img, an ext4 with Debian that was made without mounting it, and the ssh key `key`."""
    folder = tmp_path_factory.mktemp("debian")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    made: list[str | Path] = [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={PACKAGES}",
        "bookworm",
        folder / "root.tar",
    ]
    subprocess.run(made, check=True, timeout=900)
    (folder / "network").write_text(NETWORK)
    (folder / "sandbox").write_text(SANDBOX)
    steps = """
        mkdir root
        tar -C root -xf root.tar --exclude='./dev/*'
        mkdir -p -m 700 root/root/.ssh
        install -m 600 key.pub root/root/.ssh/authorized_keys
        echo guest > root/etc/hostname
        echo 'LABEL=debian / ext4 defaults 0 1' > root/etc/fstab
        install -m 644 network root/etc/systemd/network/80-dhcp.network
        install -m 644 sandbox root/etc/systemd/system/sandbox.service
        wants=root/etc/systemd/system/multi-user.target.wants
        ln -s /lib/systemd/system/systemd-networkd.service /etc/systemd/system/sandbox.service $wants
        mke2fs -q -t ext4 -L debian -d root disk.img 800M
        rm -r root root.tar
    """
    subprocess.run(["fakeroot", "sh", "-euc", steps], cwd=folder, check=True, timeout=600)
    return folder


class Running:
    """A guest that runs: commands in it over ssh, and QMP."""

    def __init__(self, bundle: Path, folder: Path, key: Path, disk: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.folder, self.key = folder, key
        network = [f"user,id=net,hostfwd=tcp:127.0.0.1:{self.port}-:22", "virtio-net-pci,netdev=net"]
        command: list[str | Path] = [bundle / "run-guest", "--accel", "tcg", "--keep", folder / "kept"]
        command += ["-netdev", network[0], "-device", network[1]]
        command += ["-qmp", f"unix:{folder / 'qmp'},server=on,wait=off"]
        self.console = folder / "console"
        with self.console.open("wb") as out:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
        self.disk = disk

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
def running(bundle: Path, folder: Path, debian: Path) -> Iterator[Running]:
    guest = Running(bundle, folder, debian / "key", folder / "disk.img")
    try:
        guest.wait_for("ssh", UP, lambda: guest.ssh("echo up", check=False) == "up")
        yield guest
    finally:
        guest.process.terminate()
        guest.process.wait(30)


def clean(disk: Path) -> bool:
    """Whether the file system was unmounted, or made read-only: it is valid, and does not need its journal."""
    with disk.open("rb") as file:
        file.seek(SUPERBLOCK)
        block = file.read(1024)
    valid, incompatible = struct.unpack_from("<H", block, STATE)[0], struct.unpack_from("<I", block, INCOMPATIBLE)[0]
    return valid == 1 and not incompatible & 4


@pytest.mark.parametrize(
    "series",
    [SERIES, *(["4.12"] if (paths.Layout(ROOT, "systemd", "4.12").bundle / "bzImage").exists() else [])],
)
def test_debian_lives_on_a_bundle(series: str, doit: Doit, debian: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    shutil.copyfile(debian / "disk.img", disk)
    file = tmp_path / "it-debian.toml"
    file.write_text(GUEST.format(series=series, disk=disk))
    result = doit("boot-test", "--accel", "tcg", f"guest={file}", f"kernel={series}")
    assert result.returncode == 0, result.stdout
    at = paths.Layout(ROOT, "it-debian", series)
    row = checks(at.boot_test)["root"]
    assert (row["ok"], row["guest"]) == (True, "/dev/vda, ext4, /sbin/init")
    assert clean(disk)

    with running(at.bundle, tmp_path, debian) as guest:
        assert guest.ssh("systemctl is-system-running --wait") == "running"
        assert guest.ssh("systemctl is-active multi-user.target systemd-journald sandbox").split() == ["active"] * 3
        assert guest.ssh("systemctl --failed --no-legend") == ""
        assert guest.ssh("uname -r") == json.loads((at.bundle / "manifest.json").read_bytes())["kernel"]["release"]
        assert "10.0.2.15" in guest.ssh("ip -4 -oneline address show dev eth0")
        # systemd drops what the kernel cannot do, and no unit fails.
        journal = guest.ssh("journalctl -b --no-pager")
        said = [line for line in journal.splitlines() if " kernel: " not in line]
        dropped = [line for line in said if "not support" in line or "ignoring" in line.lower()]
        assert dropped == []
        assert "Failed to find module" not in journal
        _plug(guest)
        assert guest.ssh("dd if=/dev/zero of=/file bs=1M count=8 2>/dev/null; sha256sum /file").startswith("2daeb1f3")
        guest.qmp(("system_powerdown", {}))
        guest.wait_for_end()
    assert clean(disk)

    again = tmp_path / "again"
    again.mkdir()
    with running(at.bundle, again, debian) as guest:
        assert guest.ssh("sha256sum /file").startswith("2daeb1f3")
        assert "recover" not in guest.ssh("dmesg | grep -i ext4")
        guest.ssh("systemctl poweroff", check=False)
        guest.wait_for_end()
    assert clean(disk)
    shutil.rmtree(at.work, ignore_errors=True)


def _plug(guest: Running) -> None:
    """CPUs and memory that are plugged in are online, although initd is no longer PID 1."""
    assert guest.ssh("nproc") == "2"
    before = int(guest.ssh("grep MemTotal /proc/meminfo").split()[1])
    (slots,) = guest.qmp(("query-hotpluggable-cpus", {}))
    free = next(slot for slot in reversed(slots) if "qom-path" not in slot)
    memory = {"qom-type": "memory-backend-ram", "id": "more-memory", "size": 1 << 30}
    guest.qmp(
        ("device_add", {"driver": free["type"], "id": "more-cpu", **free["props"]}),
        ("object-add", memory),
        ("device_add", {"driver": "pc-dimm", "id": "more", "memdev": "more-memory"}),
    )
    guest.wait_for("a third CPU", 60, lambda: guest.ssh("nproc") == "3")
    guest.wait_for(
        "1 GiB more", 60, lambda: int(guest.ssh("grep MemTotal /proc/meminfo").split()[1]) - before == 1 << 20
    )
    text = (guest.folder / "kept/report.jsonl").read_bytes()
    found = report.parse(text)
    assert found.complete and found.root is not None and found.root.result == "found"
    events = [json.loads(line) for line in text.splitlines() if line.startswith(b'{"record":"event"')]
    assert {each["subsystem"] for each in events if each["online"]} == {"cpu", "memory"}
