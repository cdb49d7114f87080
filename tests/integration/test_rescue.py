# SPDX-License-Identifier: Apache-2.0
"""A shell on the console: the rescue guest as a person starts it, and what overlays bring with them."""

import json
import os
import pty
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minguest import paths, settings
from minguest.bundle import initrd
from minguest.util import fetch
from tests import ROOT
from tests.integration.conftest import SERIES, Doit

# Seconds for a guest's start, for each of its answers and for its end.
START, ANSWER = 90.0, 40.0
PROMPT = b"~ # "
# What a folder in a checkout cannot have.
SETTINGS = """\
[[node]]
path = "/dev/cards/card0"
type = "char"
major = 195
minor = 254
mode = "0640"
owner = "7:9"

[[node]]
path = "/dev/store"
type = "block"
major = 259
minor = 300000

[[link]]
folder = "/dev"
target = "cards/card0"
names = ["card"]

[[folder]]
path = "/dev/cards"
mode = "0711"

[[file]]
path = "/etc/secret"
mode = "0400"
owner = "7:9"
"""


class Terminal:
    """run-guest on a terminal of its own."""

    def __init__(self, folder: Path, bundle: Path, *options: str | Path) -> None:
        self.kept, self.said = folder / "kept", b""
        self.at, theirs = pty.openpty()
        command: list[str | Path] = [bundle / "run-guest", "--accel", "tcg", "--append", "initd.then=shell quiet"]
        self.run = subprocess.Popen(
            [*command, "--keep", self.kept, *options],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def until(self, wanted: bytes, seconds: float) -> str:
        """What the guest says next, up to `wanted`."""
        deadline = time.monotonic() + seconds
        while wanted not in self.said:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.at], [], [], max(0.0, left))
            assert ready, f"no {wanted!r} in {seconds} s: {self.said[-2000:].decode(errors='replace')}"
            try:
                self.said += os.read(self.at, 1 << 16)
            except OSError:  # EIO: nobody has the other end any more
                pytest.fail(f"it ended: {self.said[-2000:].decode(errors='replace')}")
        found, _, self.said = self.said.partition(wanted)
        return found.decode(errors="replace").replace("\r", "")

    def type(self, line: str) -> str:
        """What a command prints, between two marks that are computed: the echo of what is typed has neither."""
        os.write(self.at, f"echo $((5*8))-begin; {line}; echo $((6*7))-done\n".encode())
        self.until(b"40-begin", ANSWER)
        said = self.until(b"42-done", ANSWER)
        self.until(PROMPT, ANSWER)
        return said.lstrip("\n")

    def leave(self, line: str) -> list[dict[str, Any]]:
        """The records after the report's end, once the guest has ended by this command."""
        os.write(self.at, f"{line}\n".encode())
        self.until(b"the guest wrote its whole report", ANSWER)
        assert self.run.wait(ANSWER) == 0
        records = [json.loads(each) for each in (self.kept / "report.jsonl").read_bytes().splitlines()[1:]]
        ends = [each["record"] for each in records].index("end")
        return records[ends + 1 :]


@pytest.fixture(scope="module")
def rescue(doit: Doit) -> paths.Layout:
    result = doit("build", "guest=rescue", f"kernel={SERIES}")
    assert result.returncode == 0, result.stdout
    return paths.Layout(ROOT, "rescue", SERIES)


@pytest.fixture
def start(tmp_path: Path, rescue: paths.Layout) -> Iterator[Callable[..., Terminal]]:
    """Starts the rescue guest, and waits for its prompt."""
    started: list[Terminal] = []

    def start(*options: str | Path) -> Terminal:
        it = Terminal(tmp_path, rescue.bundle, *options)
        started.append(it)
        it.until(PROMPT, START)
        return it

    yield start
    for each in started:
        if each.run.poll() is None:
            each.run.terminate()
            each.run.wait(ANSWER)
        os.close(each.at)


def test_a_person_types_looks_and_leaves(start: Callable[..., Terminal]) -> None:
    it = start()
    assert it.type("uname -r").startswith(f"{SERIES}.")
    # Each link is to a program that this busybox has.
    assert int(it.type("busybox --list >/tmp/has; wc -l </tmp/has")) > 100
    assert it.type("for it in /bin/*; do grep -qxF ${it##*/} /tmp/has || echo $it; done") == ""
    assert "on /dev type devtmpfs" in it.type("mount")
    assert "Linux version" in it.type("dmesg | head -n 3")
    assert "Running" in it.type("sleep 99 & jobs; kill %1")  # a shell with a terminal of its own
    exited, shut = it.leave("exit 3")
    assert (exited["record"], exited["program"], exited["status"], exited["signal"]) == ("exit", "/bin/sh", 3, None)
    assert (shut["record"], shut["why"], shut["how"]) == ("shutdown", "exit", "power-off")


def test_poweroff_reaches_initd(start: Callable[..., Terminal]) -> None:
    *_, shut = start().leave("poweroff")
    assert (shut["record"], shut["why"], shut["how"]) == ("shutdown", "SIGUSR2", "power-off")


def test_nodes_modes_and_owners_of_an_overlay_are_in_the_guest(
    start: Callable[..., Terminal], rescue: paths.Layout, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    (own / "etc").mkdir(parents=True)
    (own / "etc/secret").write_text("of 7")
    (own / "overlay.toml").write_text(SETTINGS)
    package = settings.sources(ROOT / "configs/sources.toml").package["busybox-static"]
    debs = {"busybox-static": fetch.fetch(package, "busybox-static", settings.cache_folder(), print)}
    initrd.compile_initd(ROOT / "initd", tmp_path / "initd", tmp_path / "log", strict=True)
    template, image = ROOT / "configs/templates/initrd.list.j2", tmp_path / "initrd.img"
    initrd.build(template, tmp_path / "initd", [ROOT / "overlays/rescue", own], image, debs)
    it = start("-initrd", image)
    shown = it.type("stat -c '%A %u:%g %t:%T %n' /dev/cards /dev/cards/card0 /dev/store /etc/secret /dev/null")
    assert shown.splitlines() == [
        "drwx--x--x 0:0 0:0 /dev/cards",
        "crw-r----- 7:9 c3:fe /dev/cards/card0",
        "brw------- 0:0 103:493e0 /dev/store",
        "-r-------- 7:9 0:0 /etc/secret",
        "crw-rw-rw- 0:0 1:3 /dev/null",
    ]
    assert it.type("readlink /dev/card; test -e /overlay.toml || echo none").split() == ["cards/card0", "none"]
    it.leave("exit")
