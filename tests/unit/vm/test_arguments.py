# SPDX-License-Identifier: Apache-2.0
"""qemu.sh starts QEMU with exactly the arguments of the first start."""

import subprocess
from pathlib import Path

import msgspec

from minguest.model import Launch, Root
from minguest.vm import arguments, launch

ARGUMENTS = [
    "%s\\n",
    "-cpu",
    "-x;touch evil",
    "-$(touch evil)",
    "a b",
    "-",
    "--",
    "",
    "it's",
    "-m",
    "1G",
    "-nodefaults",
]


def test_every_argument_is_quoted(tmp_path: Path) -> None:
    script = tmp_path / "qemu.sh"
    script.write_text(arguments.script(["printf", *ARGUMENTS]))
    shown = subprocess.run(["sh", script], check=True, capture_output=True, text=True).stdout
    assert shown.split("\n")[:-1] == ARGUMENTS[1:]
    assert not (tmp_path / "evil").exists()
    # An option and its value a line, for a person.
    assert {"  -m 1G \\", "  -nodefaults"} <= set(script.read_text().splitlines())


def options(**changed: object) -> list[str]:
    spec = launch.settle(Launch(gpus=(), **changed), launch.Options(), 64, (), Path("/sys"))  # type: ignore[arg-type]
    return arguments.cmdline(msgspec.structs.replace(spec, accel="tcg"))


def test_a_guest_with_a_root_goes_on_to_it() -> None:
    given = options(root=Root(disk="UUID=1-2", init="/lib/systemd/systemd", seconds=5, onfail="shell"))
    assert [each for each in given if "root" in each or each.startswith("initd.") or each in ("ro", "rw")] == [
        "initd.report=/dev/ttyS3",
        "initd.then=init",
        "initd.root=UUID=1-2",
        "initd.init=/lib/systemd/systemd",
        "initd.root-seconds=5",
        "initd.onfail=shell",
        "initd.report-after=root",
        "rw",
    ]
    assert '"initd.root=LABEL=my root"' in options(root=Root(disk="LABEL=my root"))
    only_read = options(root=Root(read_only=True))
    assert "ro" in only_read and "rw" not in only_read  # the kernel takes the last one


def test_a_guest_without_a_root_powers_off() -> None:
    given = options()
    assert "initd.then=poweroff" in given and "rw" not in given and "ro" not in given
    assert [each for each in given if each.startswith("initd.")] == ["initd.report=/dev/ttyS3", "initd.then=poweroff"]


def test_a_quiet_console_prints_warnings_and_the_log_comes_later() -> None:
    """`quiet` would drop warnings too. What the user writes comes last, and wins."""
    given = options(console="quiet", cmdline=("loglevel=7",))
    assert [each for each in given if "log" in each or each == "quiet"] == [
        "loglevel=5", "initd.report-log=kernel", "loglevel=7",
    ]  # fmt: skip
    assert not any("log" in each for each in options())
