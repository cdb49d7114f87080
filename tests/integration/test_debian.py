# SPDX-License-Identifier: Apache-2.0
"""Debian 12 on a root disk, started by a bundle: systemd, network, ssh, hotplug, and its power button."""

import json
import shutil
from pathlib import Path

import pytest

from minguest import paths
from minguest.bundle import manifests
from minguest.vm import report
from tests import ROOT, debian
from tests.integration.conftest import SERIES, Doit
from tests.integration.test_cards import checks

LAUNCH = """
[launch]
cpus = 2
max_cpus = 4
memory = "1G"
max_memory = "4G"
disks = [{{ file = "{disk}" }}]
"""
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
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("debian")
    debian.make(folder, {"sandbox.service": SANDBOX})
    return folder


def own_tree() -> list[str]:
    """The tree of 4.12 that the guest `systemd` was last built from, if it was."""
    try:
        choice = json.loads((ROOT / "out/choice-systemd.json").read_bytes())
    except FileNotFoundError:
        return []
    return [choice["source"]] if choice["series"] == "4.12" and choice["source"] else []


@pytest.mark.parametrize(("series", "source"), [(SERIES, None), *(("4.12", tree) for tree in own_tree())])
def test_debian_lives_on_a_bundle(series: str, source: str | None, doit: Doit, made: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    shutil.copyfile(made / "disk.img", disk)
    file = tmp_path / "it-debian.toml"
    head = debian.GUEST.format(name="it-debian", series=series)
    file.write_text(head + LAUNCH.format(disk=disk))
    own = [f"source={source}"] if source else []
    result = doit("boot-test", "--accel", "tcg", f"guest={file}", f"kernel={series}", *own)
    assert result.returncode == 0, result.stdout
    at = paths.Layout(ROOT, "it-debian", series)
    row = checks(at.boot_test)["root"]
    assert (row["ok"], row["guest"]) == (True, "/dev/vda, ext4, /sbin/init")
    assert debian.clean(disk)

    with debian.running(at.bundle, tmp_path, made / "key") as guest:
        assert guest.ssh("systemctl is-system-running --wait") == "running"
        assert guest.ssh("systemctl is-active multi-user.target systemd-journald sandbox").split() == ["active"] * 3
        assert guest.ssh("systemctl --failed --no-legend") == ""
        assert guest.ssh("uname -r") == manifests.load(at.bundle).kernel.release
        assert "10.0.2.15" in guest.ssh("ip -4 -oneline address")
        # systemd drops what the kernel cannot do, and no unit fails.
        journal = guest.ssh("journalctl -b --no-pager")
        said = [line for line in journal.splitlines() if " kernel: " not in line]
        dropped = [line for line in said if "not support" in line]
        assert dropped == []
        assert "Failed to find module" not in journal
        # On 4.12, under emulation, programs hang on a CPU that was plugged in: docs/guests.md.
        _plug(guest, cpu=series != "4.12")
        assert guest.ssh("dd if=/dev/zero of=/file bs=1M count=8 2>/dev/null; sha256sum /file").startswith("2daeb1f3")
        guest.qmp(("system_powerdown", {}))
        guest.wait_for_end()
    assert debian.clean(disk)

    again = tmp_path / "again"
    again.mkdir()
    with debian.running(at.bundle, again, made / "key") as guest:
        assert guest.ssh("sha256sum /file").startswith("2daeb1f3")
        assert "recover" not in guest.ssh("dmesg | grep -i ext4")
        guest.ssh("systemctl poweroff", check=False)
        guest.wait_for_end()
    assert debian.clean(disk)
    shutil.rmtree(at.work, ignore_errors=True)


def _plug(guest: debian.Running, *, cpu: bool) -> None:
    """CPUs and memory that are plugged in are online, although initd is no longer PID 1."""
    assert guest.ssh("nproc") == "2"
    before = int(guest.ssh("grep MemTotal /proc/meminfo").split()[1])
    if cpu:
        (slots,) = guest.qmp(("query-hotpluggable-cpus", {}))
        free = next(slot for slot in reversed(slots) if "qom-path" not in slot)
        guest.qmp(("device_add", {"driver": free["type"], "id": "more-cpu", **free["props"]}))
        guest.wait_for("a third CPU", 60, lambda: guest.ssh("nproc") == "3")
    guest.qmp(
        ("object-add", {"qom-type": "memory-backend-ram", "id": "more-memory", "size": 1 << 30}),
        ("device_add", {"driver": "pc-dimm", "id": "more", "memdev": "more-memory"}),
    )
    guest.wait_for(
        "1 GiB more", 60, lambda: int(guest.ssh("grep MemTotal /proc/meminfo").split()[1]) - before == 1 << 20
    )
    text = (guest.folder / "kept/report.jsonl").read_bytes()
    found = report.parse(text)
    assert found.complete and found.root is not None and found.root.result == "found"
    events = [json.loads(line) for line in text.splitlines() if line.startswith(b'{"record":"event"')]
    assert {each["subsystem"] for each in events if each["online"]} >= {"memory", *["cpu"] * cpu}
