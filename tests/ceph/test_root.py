# SPDX-License-Identifier: Apache-2.0
"""A guest whose root is on Ceph, and the launch of the story but for its addresses and its 32 GiB."""

import itertools
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from minguest import paths, settings
from minguest.boottest import runner
from minguest.model import Launch
from minguest.util import run
from minguest.util.errors import GuestLost, MinguestError, ToolError, UserError
from minguest.vm.launch import Options
from tests import ROOT, debian
from tests.ceph import cluster
from tests.ceph.cluster import ODD_PORT, POOL, USER, Cluster
from tests.integration.conftest import SERIES, Doit
from tests.integration.test_cards import checks
from tests.integration.test_debian import own_tree

LAUNCH = """
[launch]
machine = "q35"
cpus = 8
max_cpus = 64
memory = "4G"
max_memory = "512G"
clock = "vm"
gpus = ["secondary-vga"]
disks = [{{ rbd = "{pool}/{image}", monitors = ["{monitor}"], user = "{user}", key_file = "{key}" }}]

[[launch.numa]]
memory = "2G"
cpus = "0-3"
gpus = [0]

[[launch.numa]]
memory = "2G"
cpus = "4-7"
"""
# Seconds after which a boot test that cannot pass is over: QEMU itself would wait for 300.
SHORT = 20


class Guest(NamedTuple):
    """A bundle that was boot-tested with its root on Ceph."""

    at: paths.Layout
    launch: Launch
    image: str
    said: str
    """What doit printed."""


@pytest.fixture(scope="module", params=[(SERIES, ""), *(("4.12", tree) for tree in own_tree())], ids=lambda it: it[0])
def guest(
    request: pytest.FixtureRequest, ceph: Cluster, made: Path, doit: Doit, tmp_path_factory: pytest.TempPathFactory
) -> Guest:
    series, source = request.param
    image = f"debian-{series}"
    ceph.rbd("import", "--no-progress", str(made / "disk.img"), f"{POOL}/{image}")
    file = tmp_path_factory.mktemp("guest") / "it-ceph.toml"
    key, monitor = ceph.folder / "key", ceph.monitor
    head = debian.GUEST.format(name="it-ceph", series=series)
    file.write_text(head + LAUNCH.format(pool=POOL, image=image, monitor=monitor, user=USER, key=key))
    tried = doit(
        "boot-test", "--accel", "tcg", f"guest={file}", f"kernel={series}", *([f"source={source}"] * bool(source))
    )
    assert tried.returncode == 0, tried.stdout
    at = paths.Layout(ROOT, "it-ceph", series)
    return Guest(at, settings.guest(file).launch, image, tried.stdout)


def clean(ceph: Cluster, image: str, folder: Path) -> bool:
    """Whether the image's file system was unmounted and has no error."""
    file = folder / "exported.img"
    ceph.rbd("export", "--no-progress", f"{POOL}/{image}", str(file))
    status, text = run.run(["e2fsck", "-f", "-n", file], check=False)
    print(text.splitlines()[-1])
    found = debian.clean(file) and status == 0
    file.unlink()
    return found


def test_the_user_of_the_guest_has_its_pool_only(ceph: Cluster) -> None:
    def listing(pool: str) -> tuple[int, str]:
        login: list[str | Path] = ["--conf", ceph.folder / "ceph.conf", "--id", USER, "--keyfile", ceph.folder / "key"]
        return run.run(["rbd", *login, "ls", pool], check=False, deadline=cluster.COMMAND)

    assert listing(POOL)[0] == 0
    status, said = listing(cluster.OTHER_POOL)
    assert status != 0
    assert "Operation not permitted" in said


def test_the_storys_launch_starts_from_ceph(ceph: Cluster, guest: Guest) -> None:
    rows = checks(guest.at.boot_test)
    assert (rows["root"]["ok"], rows["root"]["guest"]) == (True, "/dev/vda, ext4, /sbin/init")
    assert "PASS" in guest.said

    _, shown = run.run([guest.at.bundle / "run-guest", "--accel", "tcg", "--show"])
    values = [*itertools.pairwise(shown.splitlines())]
    flashes = " ".join(value for option, value in values if option == "-drive")
    assert re.findall(r"if=pflash,unit=(\d),\S*file=(\S+)", flashes) == [
        ("0", "bundle/OVMF_CODE.fd"),
        ("1", "OVMF_VARS.fd"),
    ]
    assert ("-kernel", "bundle/bzImage") in values
    assert ("-initrd", "bundle/initrd.img") in values
    assert " initd.root=LABEL=debian " in next(value for option, value in values if option == "-append")
    assert ("-smp", "8,maxcpus=64") in values
    assert ("-m", "4096M,slots=4,maxmem=524288M") in values
    assert [value for option, value in values if option == "-blockdev"] == [
        f"driver=rbd,node-name=disk0,pool={POOL},image={guest.image},user={USER},"
        f"server.0.host={ceph.address},server.0.port=6789,key-secret=disk0-key"
    ]
    assert (ceph.folder / "key").read_text().strip() not in shown


def test_debian_lives_on_ceph(ceph: Cluster, guest: Guest, made: Path, tmp_path: Path) -> None:
    assert clean(ceph, guest.image, tmp_path)  # boot-test wrote nothing
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    began = time.monotonic()
    with debian.running(guest.at.bundle, first, made / "key") as up:
        print(f"ssh {time.monotonic() - began:.1f} s after the start of run-guest")
        assert up.ssh("systemctl is-system-running --wait") == "running"
        assert up.ssh("systemctl is-active multi-user.target") == "active"
        assert up.ssh("findmnt -n -o SOURCE /") == "/dev/vda"
        assert up.ssh("nproc") == "8"
        assert up.ssh("cat /sys/devices/system/node/online") == "0-1"
        assert up.ssh("dd if=/dev/zero of=/file bs=1M count=8 2>/dev/null; sha256sum /file").startswith("2daeb1f3")
        assert not clean(ceph, guest.image, tmp_path)  # while it is mounted it is not
        up.qmp(("system_powerdown", {}))
        up.wait_for_end()
    assert clean(ceph, guest.image, tmp_path)

    second.mkdir()
    with debian.running(guest.at.bundle, second, made / "key") as up:
        assert up.ssh("sha256sum /file").startswith("2daeb1f3")
        assert "recover" not in up.ssh("dmesg | grep -i ext4")
        up.ssh("systemctl poweroff", check=False)
        up.wait_for_end()
    assert clean(ceph, guest.image, tmp_path)


@pytest.fixture
def fails(guest: Guest, tmp_path: Path) -> Callable[..., str]:
    """Boot-test the guest with a changed disk: what the user reads, the error last."""

    def fail(kind: type[MinguestError], **changes: object) -> str:
        disk = msgspec.structs.replace(guest.launch.disks[0], **changes)
        launch = msgspec.structs.replace(guest.launch, disks=(disk,))
        bench = runner.Bench("it-ceph", guest.at.bundle, tmp_path / "boot-test", tmp_path / "kvm", guest.at.pits)
        said: list[str] = []
        with pytest.raises(kind) as raised:
            runner.run(bench, Options(accel="tcg", timeout=str(SHORT)), launch, said.append)
        print(text := "\n".join([*said, str(raised.value)]))
        return text

    return fail


@pytest.fixture
def wrong_key(tmp_path: Path) -> str:
    _, key = run.run(["ceph-authtool", "--gen-print-key"], merge=False)
    cluster.write_key(tmp_path / "wrong", key)
    return str(tmp_path / "wrong")


def test_a_wrong_key_is_named(fails: Callable[..., str], wrong_key: str) -> None:
    said = fails(ToolError, key_file=wrong_key)
    assert "error connecting: Permission denied" in said
    assert "ceph-key-refused" in said


def test_a_user_that_there_is_not_is_named(fails: Callable[..., str]) -> None:
    assert "ceph-key-refused" in fails(ToolError, user="nobody")


def test_a_pool_of_others_is_named(fails: Callable[..., str]) -> None:
    said = fails(ToolError, rbd=f"{cluster.OTHER_POOL}/debian")
    assert "Operation not permitted" in said
    assert "ceph-key-refused" in said


@pytest.mark.parametrize("name", [f"{POOL}/nothing", "nowhere/debian"])
def test_an_image_that_there_is_not_is_named(name: str, fails: Callable[..., str]) -> None:
    said = fails(ToolError, rbd=name)
    assert "No such file or directory" in said
    assert "ceph-image-missing" in said


def test_a_key_that_others_can_read_is_refused(fails: Callable[..., str], wrong_key: str) -> None:
    Path(wrong_key).chmod(0o640)
    assert "others can read it" in fails(UserError, key_file=wrong_key)


def test_a_wrong_key_on_an_unusual_port_ends_with_the_boot_test(
    ceph: Cluster, fails: Callable[..., str], wrong_key: str
) -> None:
    said = fails(GuestLost, key_file=wrong_key, monitors=(f"{ceph.address}:{ODD_PORT}",))
    assert "QEMU did not start the guest" in said
    assert "ceph-not-reached" in said


def test_a_monitor_that_is_not_there_is_named_at_once(fails: Callable[..., str]) -> None:
    said = fails(ToolError, monitors=(f"{cluster.free_address()}:6789",))
    assert "no monitor of Ceph takes a connection" in said
    assert "Connection refused" in said


def test_run_guest_ends_with_qemus_message(ceph: Cluster, guest: Guest, wrong_key: str) -> None:
    key = ceph.folder / "key"
    good = key.read_text().strip()
    cluster.write_key(key, Path(wrong_key).read_text().strip())
    try:
        argv: list[str | Path] = [guest.at.bundle / "run-guest", "--accel", "tcg"]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    finally:
        cluster.write_key(key, good)
    print(done.stderr)
    assert done.returncode == 1
    assert "a disk is on Ceph" in done.stderr
    assert "error connecting: Permission denied" in done.stderr
