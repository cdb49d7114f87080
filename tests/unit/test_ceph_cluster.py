# SPDX-License-Identifier: Apache-2.0
"""What `doit ceph-test` decides before it starts anything."""

import configparser
import random
import socket
import stat
from pathlib import Path

import pytest

from minguest.util.errors import ToolError
from tests.ceph import cluster

SAID = "qemu-system-x86_64: -blockdev driver=rbd,node-name=x,pool=x,image=x,conf=/nonexistent: "
WITH = f"{SAID}error reading conf file /nonexistent: No such file or directory"
WITHOUT = f"{SAID}Unknown driver 'rbd'"


def test_what_is_not_installed_is_named_with_the_line_to_type() -> None:
    assert cluster.missing(lambda _: True, WITH) == []
    assert cluster.missing(lambda name: name != "rbd", WITH) == ["ceph-common"]
    assert cluster.missing(lambda name: name != "ceph-osd", WITHOUT) == ["ceph-osd", "qemu-block-extra"]
    assert cluster.missing(lambda _: False, WITH) == list(cluster.PROGRAMS)
    assert cluster.advice(["ceph-mon", "ceph-osd"]).endswith(
        "\n  apt-get install --no-install-recommends ceph-mon ceph-osd"
    )


def test_all_files_and_addresses_of_a_cluster_are_its_own(tmp_path: Path) -> None:
    found = configparser.ConfigParser(interpolation=None)
    found.read_string(cluster.conf(tmp_path, "127.1.2.3", "an-id"))
    options = found["global"]
    assert options["mon_host"] == "[v2:127.1.2.3:13300,v1:127.1.2.3:6789]"
    assert {options["public_addr"], options["cluster_addr"]} == {"127.1.2.3"}
    assert {options[f"auth_{each}_required"] for each in ("cluster", "service", "client")} == {"cephx"}
    paths = [value for value in options.values() if "/" in value]
    assert len(paths) == 5
    assert all(Path(each).is_relative_to(tmp_path) for each in paths)


def test_a_loopback_address_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter([9, 9, 9, 9, 9, 10])
    monkeypatch.setattr(random, "randint", lambda *_: next(numbers))
    with socket.create_server(("127.9.9.9", cluster.ODD_PORT)):
        assert cluster.free_address() == "127.9.9.10"


def test_a_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("an old one")
    key.chmod(0o644)
    cluster.write_key(key, "another")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert key.read_text() == "another\n"


def test_a_daemon_that_ends_or_is_late_is_named_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    made = cluster.Cluster(tmp_path, "127.0.0.1", {})
    made.start("ended", "sh", "-c", "echo a reason; exit 3")
    with pytest.raises(ToolError, match=r"ended: no quorum: it ended, status 3\na reason"):
        made.wait_for("ended", "quorum", lambda: False)
    made.start("late", "sh", "-c", "sleep 60")
    with pytest.raises(ToolError, match=r"late: no quorum: not in 0\.3 s"):
        made.wait_for("late", "quorum", lambda: False, 0.3)
    late = made.daemons["late"]
    made.end("late")
    assert late.returncode == -15
    assert list(made.daemons) == ["ended"]
