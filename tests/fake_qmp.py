# SPDX-License-Identifier: Apache-2.0
"""A program in QEMU's place: it speaks QMP on qmp.sock, and console, report and stderr as a scene says.

As a module it installs itself; as a program it plays `scene.json`, which lies beside it. A scene is

- `steps`, done in order: ["console" | "report" | "stderr", text], ["event", name, data], ["raw", line of QMP],
  ["heard", command] waits for one, ["wait", seconds], ["flood", "console" | "report" | "stderr", bytes, text] writes
  that much, ["close"] hangs up, ["exit", status], ["kill", signal]. Without an end it stays until it is killed.
- `answers`, by command: a value; {"error": text}; {"raw": line}, where ID stands for the command's; "hang", "close" or
  "die" in place of an answer. `greeting` is a line likewise; null: there is no socket.

What it was requested is in heard.jsonl, a line a command. It needs no package and starts fast.
"""

import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

GREETING = '{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""}, "capabilities": []}}'
VERSION = "QEMU emulator version 7.2.22 (fake)"
DEVICES = 'Display devices:\nname "secondary-vga", bus PCI\nname "virtio-vga", bus PCI\n\nInput devices:\n'
# A machine of one CPU, 1 GiB, a host bridge, and a card behind a root port.
CARD = {
    "bus": 1, "slot": 0, "function": 0, "qdev_id": "gpu0",
    "regions": [{"bar": 0, "type": "memory", "size": 1 << 24, "address": 0x80000000}],
}  # fmt: skip
PORT = {"bus": 0, "slot": 1, "function": 0, "qdev_id": "port0", "regions": [], "pci_bridge": {"devices": [CARD]}}
ANSWERS: dict[str, Any] = {
    "query-version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "fake"},
    "query-kvm": {"enabled": False, "present": True},
    "query-cpus-fast": [{"cpu-index": 0}],
    "query-hotpluggable-cpus": [{"type": "max-x86_64-cpu", "props": {"core-id": 0}, "qom-path": "/cpu0"}],
    "query-memory-size-summary": {"base-memory": 1 << 30, "plugged-memory": 0},
    "query-pci": [{"bus": 0, "devices": [{"bus": 0, "slot": 0, "function": 0, "qdev_id": "", "regions": []}, PORT]}],
    "query-status": {"status": "shutdown", "running": False, "singlestep": False},
}
REPORT = '{"record":"begin","protocol":1,"uptime":0.5}\n{"record":"end","status":"ok","records":1}\n'
# What a guest that is well does: it speaks, reports and powers off. QEMU stops it after that.
POWER_OFF: list[list[Any]] = [["event", "SHUTDOWN", {"guest": True, "reason": "guest-shutdown"}], ["event", "STOP", {}]]
WELL: list[list[Any]] = [
    ["heard", "qmp_capabilities"],
    ["console", "Linux version 6.12\n"],
    ["report", REPORT],
    *POWER_OFF,
]


def install(folder: Path, name: str = "qemu-system-x86_64", **scene: Any) -> Path:
    """The program as `folder`/`name`, with its scene beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    # -S -E: it starts twice as fast.
    command = f"{shlex.quote(sys.executable)} -S -E {shlex.quote(__file__)}"
    program.write_text(f'#!/bin/sh\nexec {command} "$(dirname "$0")/scene.json" "$@"\n')
    program.chmod(0o755)
    (folder / "scene.json").write_text(json.dumps(scene))
    return program


def heard(folder: Path) -> list[dict[str, Any]]:
    """The commands that a fake that ran in `folder` was given, without their ids."""
    try:
        lines = (folder / "heard.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


class _Fake:
    def __init__(self, scene: dict[str, Any]) -> None:
        self.scene = scene
        self.answers = {**ANSWERS, **scene.get("answers", {})}
        self.heard: set[str] = set()
        self.news = threading.Condition()
        self.peer: socket.socket | None = None
        # As QEMU opens it: what was in it is gone.
        self.report = os.open("report.jsonl", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.log = Path("heard.jsonl")

    def serve(self, server: socket.socket) -> None:
        while True:
            peer, _ = server.accept()
            self.peer = peer
            self.send(self.scene.get("greeting", GREETING))
            for command in _commands(peer):
                number = command.pop("id", None)
                with self.log.open("a") as log:
                    log.write(json.dumps(command) + "\n")
                self.answer(command["execute"], number)
                with self.news:
                    self.heard.add(command["execute"])
                    self.news.notify_all()

    def answer(self, command: str, number: str | None) -> None:
        answer = self.answers.get(command, {})
        if answer == "hang":
            return
        if answer == "die":
            os.kill(os.getpid(), 9)
        if answer == "close":
            self.close()
        elif isinstance(answer, dict) and "raw" in answer:
            self.send(answer["raw"].replace("ID", json.dumps(number)))
        elif isinstance(answer, dict) and "error" in answer:
            self.send(json.dumps({"error": {"class": "GenericError", "desc": answer["error"]}, "id": number}))
        else:
            self.send(json.dumps({"return": answer, **({"id": number} if number else {})}))

    def send(self, line: str) -> None:
        if self.peer is not None:
            self.peer.sendall(line.encode(errors="surrogateescape") + b"\n")

    def close(self) -> None:
        if self.peer is not None:
            self.peer.shutdown(socket.SHUT_RDWR)
            self.peer = None

    def event(self, name: str, data: Any) -> None:
        self.send(json.dumps({"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 0}}))

    def play(self, what: str, *values: Any) -> None:
        outputs = {"console": 1, "stderr": 2, "report": self.report}
        if what in outputs:
            _write(outputs[what], values[0].encode(errors="surrogateescape"))
        elif what == "flood":
            block = values[2].encode() * max(1, (1 << 20) // len(values[2]))
            for _ in range(values[1] // len(block)):
                _write(outputs[values[0]], block)
        elif what == "heard":
            with self.news:
                self.news.wait_for(lambda: values[0] in self.heard)
        else:
            deeds: dict[str, Callable[..., None]] = {
                "event": self.event,
                "raw": self.send,
                "wait": time.sleep,
                "close": self.close,
                "exit": os._exit,
            }
            deeds["kill"] = lambda number: os.kill(os.getpid(), number)
            deeds[what](*values)


def _commands(peer: socket.socket) -> Iterator[dict[str, Any]]:
    """JSON objects as they come: a client need not end one with a newline."""
    text = ""
    while chunk := peer.recv(1 << 16):
        text += chunk.decode()
        while text := text.lstrip():
            try:
                command, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                break
            text = text[end:]
            yield command


def _write(handle: int, text: bytes) -> None:
    while text:
        text = text[os.write(handle, text) :]


def main(scene: dict[str, Any], argv: list[str]) -> None:
    """Be QEMU."""
    if "--version" in argv:
        print(VERSION)
        return
    if argv[-1:] == ["help"]:
        print(DEVICES)
        return
    fake = _Fake(scene)
    if scene.get("greeting", GREETING) is not None:
        server = socket.socket(socket.AF_UNIX)
        server.bind("qmp.sock")
        server.listen(1)
        threading.Thread(target=fake.serve, args=(server,), daemon=True).start()
    for step in scene.get("steps", []):
        fake.play(*step)
    time.sleep(600)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2:])
