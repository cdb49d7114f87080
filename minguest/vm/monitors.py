# SPDX-License-Identifier: Apache-2.0
"""Whether the monitors of disks on Ceph can be reached at all: QEMU waits for them, for 300 s, and says nothing."""

import socket
from collections.abc import Sequence

from minguest import model
from minguest.util.errors import ToolError
from minguest.vm import disks

# Seconds for a monitor to take a connection.
CONNECT = 3.0


def check(of: Sequence[model.Disk]) -> None:
    """ToolError for a disk that names monitors of which none takes a connection; `of` are a launch's disks, settled.

    What takes connections need not be a monitor, and may refuse the key: QEMU finds that out.
    """
    for number, disk in enumerate(of):
        failures = []
        for text in disk.monitors:
            failure = _failure(*disks.monitor(text))
            if not failure:
                break
            failures.append(f"{text}: {failure}")
        else:
            if failures:
                raise ToolError(
                    f"launch.disks[{number}]: no monitor of Ceph takes a connection: {'; '.join(failures)}",
                    "ceph mon stat, on a host of the cluster, says where they are: "
                    "correct launch.disks, or see to the network and the monitors",
                )


def _failure(host: str, port: int) -> str:
    """Why a TCP connection failed; empty: it did not."""
    try:
        socket.create_connection((host, port), CONNECT).close()
    except TimeoutError:
        return f"no answer in {CONNECT:g} s"
    except OSError as error:
        return error.strerror or str(error)
    return ""
