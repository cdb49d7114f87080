# SPDX-License-Identifier: Apache-2.0
"""The logs that a host has of a libvirt domain: QEMU's, the domain's XML, and the kernel's lines on its cards."""

import re
from collections.abc import Callable
from pathlib import Path

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
HOSTDEV = re.compile(
    r"""<address domain=['"]0x([0-9a-f]{4})['"] bus=['"]0x([0-9a-f]{2})['"] slot=['"]0x([0-9a-f]{2})['"] """
    r"""function=['"]0x([0-7])['"]/>\s*</source>"""
)


def collect(domain: str, say: Callable[[str], None]) -> list[logs.Log]:
    """The domain's logs. What cannot be read is said. UserError where there is nothing."""
    if not re.fullmatch(r"[^/\0-\x1f]+", domain) or domain.startswith((".", "-")):
        raise UserError(f"--libvirt {domain}: not a domain's name", "virsh list --all shows them")
    found: list[logs.Log] = []
    for place in (SYSTEM / f"{domain}.log", Path.home() / SESSION / f"{domain}.log"):
        try:
            found.append(logs.read(str(place)))
        except UserError as error:
            say(f"not read: {error}")
        else:
            break
    xml = _said(["virsh", "--readonly", "dumpxml", "--", domain], say)
    if xml:
        found.append(logs.unwrapped(f"{domain}.xml", xml.encode()))
    if not found:
        raise UserError(
            f"--libvirt {domain}: no log and no XML of it",
            "is the name right? virsh list --all; as root for the system's domains",
        )
    kernel = _said(["dmesg"], say).encode()
    lines = b"\n".join(line if ABOUT.search(line) else b"" for line in kernel.split(b"\n"))
    if lines.strip():
        found.append(logs.unwrapped("dmesg", lines))
    return found


def _said(command: list[str], say: Callable[[str], None]) -> str:
    try:
        return run.run(command, deadline=PATIENCE, merge=False)[1]
    except ToolError as error:
        say(f"not read: {error}")
        return ""
