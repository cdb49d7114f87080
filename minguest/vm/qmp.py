# SPDX-License-Identifier: Apache-2.0
"""One QMP connection to a QEMU that may die, hang or answer nonsense at any moment: every wait is bounded, and only
an answer in the shape that QEMU documents is accepted."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from qemu.qmp import EventListener, Message, QMPClient, QMPError, Runstate

# Seconds for one answer.
ANSWER = 10.0
# How much of a reason is shown.
WHY_MAX = 300
QUERIES = {
    "version": "query-version",
    "kvm": "query-kvm",
    "cpus": "query-cpus-fast",
    "hotpluggable_cpus": "query-hotpluggable-cpus",
    "memory": "query-memory-size-summary",
    "pci": "query-pci",
}

# QMP's `int` has 64 bits (QEMU, docs/devel/qapi-code-gen.rst).
_Int = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class _Status(msgspec.Struct):
    status: str


class _Slot(msgspec.Struct):
    type: str
    props: dict[str, _Int]
    place: str | None = msgspec.field(default=None, name="qom-path")


class _Memory(msgspec.Struct):
    base: _Count = msgspec.field(name="base-memory")
    plugged: _Count = msgspec.field(default=0, name="plugged-memory")


class _Region(msgspec.Struct):
    bar: _Int
    size: _Count
    address: _Int


class _Function(msgspec.Struct):
    bus: _Int
    slot: _Int
    function: _Int
    qdev_id: str
    regions: list[_Region]
    pci_bridge: "_Bridge | None" = None


class _Bridge(msgspec.Struct):
    devices: list[_Function] = []


class _Bus(msgspec.Struct):
    devices: list[_Function]


# The fields that are read, as in QEMU's qapi/*.json; the others may be anything.
SHAPES: dict[str, Any] = {
    "query-status": _Status,
    "query-cpus-fast": list[dict[str, Any]],
    "query-hotpluggable-cpus": list[_Slot],
    "query-memory-size-summary": _Memory,
    "query-pci": list[_Bus],
}


class _Shutdown(msgspec.Struct):
    reason: str = "unknown"


class NoAnswerError(Exception):
    """QEMU did not answer, or not as it documents; never seen outside a run."""


class Connection:
    """To the QEMU whose socket is qmp.sock in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._client = QMPClient("minguest")
        # It would print unescaped what it does not understand.
        self._client.logger.disabled = True
        self._listener = EventListener(names=("SHUTDOWN", "STOP"))
        self._client.register_listener(self._listener)

    @property
    def up(self) -> bool:
        """Whether QEMU can be queried."""
        return self._client.runstate == Runstate.RUNNING

    async def connect(self) -> bool:
        """Try once to connect; QEMU creates the socket soon after its start."""
        handle = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        folder = os.open(self._folder, os.O_PATH)
        try:
            # The name of a UNIX socket has at most 107 bytes; this one is short wherever the project is.
            handle.connect(f"/proc/self/fd/{folder}/qmp.sock")
            handle.setblocking(False)
            await asyncio.wait_for(self._client.connect(handle), ANSWER)
        except (TimeoutError, OSError, QMPError, EOFError, AssertionError):
            # AssertionError: QMPClient raises it for a peer that hangs up at once.
            await self.hang_up()
            handle.close()
            return False
        finally:
            os.close(folder)
        return True

    async def hang_up(self) -> None:
        """Close the connection, best when QEMU is gone."""
        # An error of its reader, such as a RecursionError, is raised here.
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._client.disconnect(), ANSWER)

    def events(self) -> list[Message]:
        """The SHUTDOWN and STOP events since the last call."""
        return self._listener.clear()

    async def answer(self, command: str, **arguments: Any) -> Any:
        """QEMU's answer, in the shape that SHAPES has; NoAnswerError says why there is none."""
        try:
            answer = await asyncio.wait_for(self._client.execute(command, arguments or None), ANSWER)
            if command in SHAPES:
                msgspec.convert(answer, SHAPES[command])
        except TimeoutError:
            raise NoAnswerError(f"{command}: no answer in {ANSWER:g} s") from None
        except (QMPError, EOFError, OSError, ValueError, RecursionError) as error:
            raise NoAnswerError(f"{command}: {_first_line(error)}") from error
        return answer

    async def views(self) -> tuple[dict[str, Any], str]:
        """The answers by the names in QUERIES, as many as came; and why some did not, if so."""
        views: dict[str, Any] = {}
        if not self.up:
            return views, "QMP could not be reached"
        try:
            for name, query in QUERIES.items():
                views[name] = await self.answer(query)
        except NoAnswerError as error:
            return views, str(error)
        return views, ""


def functions(buses: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every PCI function in query-pci's answer, by address; bridges too."""
    found = {}
    pending = [device for bus in buses for device in bus["devices"]]
    while pending:
        device = pending.pop(0)
        found[f"0000:{device['bus']:02x}:{device['slot']:02x}.{device['function']}"] = device
        pending += device.get("pci_bridge", {}).get("devices", [])
    return found


def reason(event: Message) -> str:
    """The reason in a SHUTDOWN event; NoAnswerError if it cannot be read."""
    try:
        return msgspec.convert(event.get("data"), _Shutdown).reason
    except (ValueError, RecursionError) as error:
        raise NoAnswerError(f"event SHUTDOWN: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0][:WHY_MAX]
