# SPDX-License-Identifier: Apache-2.0
"""Monitors of Ceph that can be reached, or not."""

import socket

import pytest

from minguest.model import Disk
from minguest.util.errors import ToolError
from minguest.vm import monitors


def closed() -> str:
    """A monitor's address on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_one_of_a_disks_monitors_is_enough() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        reached = f"127.0.0.1:{server.getsockname()[1]}"
        monitors.check([Disk(file="/f"), Disk(rbd="a/b"), Disk(rbd="a/b", monitors=(closed(), reached))])


def test_a_disk_without_any_is_named_with_the_reasons() -> None:
    first, second = closed(), "nowhere.invalid:3300"
    with pytest.raises(ToolError) as raised:
        monitors.check([Disk(file="/f"), Disk(rbd="a/b", monitors=(first, second))])
    said = str(raised.value)
    assert said.startswith("launch.disks[1]: no monitor of Ceph takes a connection: ")
    assert f"{first}: Connection refused; {second}: " in said


def test_silence_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitors, "CONNECT", 0.2)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, socket.socket() as waiting:
        # A queue that is full takes nobody more.
        waiting.connect(server.getsockname())
        text = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ToolError, match=r"no answer in 0\.2 s"):
            monitors.check([Disk(rbd="a/b", monitors=(text,))])
