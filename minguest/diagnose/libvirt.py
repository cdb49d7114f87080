# SPDX-License-Identifier: Apache-2.0
"""The logs that a host has of a libvirt domain: QEMU's, the domain's XML, and the kernel's lines on its cards."""

import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from minguest.diagnose import logs
from minguest.util import run
from minguest.util.errors import ToolError, UserError

# Where libvirt keeps QEMU's messages: of the system, and of a user's session (docs/drvqemu.html).
SYSTEM = Path("/var/log/libvirt/qemu")
SESSION = Path(".cache/libvirt/qemu/log")
# Seconds that virsh has; libvirtd may have to start.
PATIENCE = 30
# Lines of the host's kernel that are about passed-through devices.
ABOUT = re.compile(
    rb"vfio|iommu|DMAR|AMD-Vi|\bkvm|NVRM|nouveau|amdgpu|BAR \d|simple-framebuffer|efifb|D3cold|FLR", re.IGNORECASE
)
# Services of libvirt: the one daemon, and the newer one for QEMU alone.
SERVICES = ("libvirtd", "virtqemud")
JOURNAL_LINES = 500


def collect(domain: str, say: Callable[[str], None]) -> list[logs.Log]:
    """The domain's logs. What cannot be read is said. UserError where there is neither a log nor an XML."""
    if not re.fullmatch(r"[^/\0-\x1f]+", domain) or domain.startswith((".", "-")):
        raise UserError(f"--libvirt {domain}: not a domain's name", "virsh list --all shows them")
    found: list[logs.Log] = []
    places = [SYSTEM / f"{domain}.log", Path.home() / SESSION / f"{domain}.log"]
    place = next((each for each in places if each.exists()), None)
    if place is None:
        say(f"not read: {places[0]}: no such file")
    else:
        try:
            found.append(logs.read(str(place)))
        except UserError as error:
            say(f"not read: {error.message}")
    if xml := _output(["virsh", "--readonly", "dumpxml", "--", domain], say):
        found.append(logs.unwrapped(f"{domain}.xml", xml))
    if not found:
        raise UserError(
            f"--libvirt {domain}: this host has no log and no XML of it",
            "virsh list --all shows the names; the system's domains need root",
        )
    units = [argument for each in SERVICES for argument in ("-u", each)]
    said = _output(["journalctl", "--no-pager", "-q", "-b", "-n", str(JOURNAL_LINES), *units], say)
    if said.strip():
        found.append(msgspec.structs.replace(logs.unwrapped("libvirt's journal", said), kinds=("libvirt",)))
    kernel = _output(["dmesg"], say)
    about = b"\n".join(line if ABOUT.search(line) else b"" for line in kernel.split(b"\n"))
    if about.strip():
        found.append(msgspec.structs.replace(logs.unwrapped("dmesg", about), kinds=("host kernel",)))
    return found


def _output(command: list[str], say: Callable[[str], None]) -> bytes:
    try:
        return run.run(command, deadline=PATIENCE, merge=False)[1].encode()
    except ToolError as error:
        say(f"not read: {' '.join(command[:3])}: {error.message.splitlines()[0]}")
        return b""
