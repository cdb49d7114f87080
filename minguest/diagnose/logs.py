# SPDX-License-Identifier: Apache-2.0
"""Reads logs as people have them: compressed, in UTF-16, inside the records of a collector; and what wrote them.

A line of a log keeps the number that it has in its file, also where a collector put several lines into one.
Formats: journalctl -o export (systemd, JOURNAL_EXPORT_FORMATS) and -o json; Docker's json-file; the CRI's log format
(Kubernetes, cri-api); logrus' text format, in which Kata's runtime quotes its guest's console.
"""

import bisect
import functools
import json
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import msgspec
import re2

from minguest.util.errors import UserError

Kind = Literal[
    "guest console", "host kernel", "kernel", "QEMU", "libvirt", "libvirt XML", "Proxmox", "Kata", "Kubernetes", "text"
]  # fmt: skip
"""Who wrote lines of a log. `kernel`: it is not seen whether a guest's or a host's."""

# Bytes of the largest log: what prints more repeats itself.
LOG_MAX = 64 << 20
# Bytes whose characters are looked at.
SAMPLE = 1 << 20
# The kernel's log of a guest whose console is quiet: initd sends it after the report.
KERNEL = "kernel.log"
# Standard input as a log.
STDIN = "-"
# Bytes that a console does not send: ASCII's control characters, except those that move the cursor or ring.
CONTROLS = [bytes([code]) for code in (*range(7), *range(14, 27), *range(28, 32), 127)]
# The first bytes of gzip, xz and zstd.
COMPRESSED = (b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
UTF16 = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}

# What a collector put around a line. The value of a logrus field has its quotes and line ends escaped.
FIELD = re2.compile(r'\b(?:vmconsole|console)="((?:[^"\\]|\\.)*)(?:"|$)')
CRI = re.compile(rb"^\d{4}-\d\d-\d\dT\S+ std(?:out|err) [FP] ")
# A message that begins in the midst of a line: the line of another writer was cut.
TIME = r"\[ {0,4}\+?\d{1,5}\.\d{6}\](?:\[ *[CT]\d+\])? "
INNER = re.compile(rb"(?<=[^\s\]<>:])[ \t]*(?=" + TIME.encode() + rb")")
# Lines that are not as their writer wrote them.
WRAPPED = re2.compile(
    r'(?m)^.*(?:console="|\\n|\\"|[^\s\]<>:][ \t]*' + TIME + r")|"
    r"^\{.*|^\d{4}-\d\d-\d\dT\S+ std(?:out|err) [FP] "
)
EXPORT = re2.compile(r"(?m)^__(?:CURSOR|REALTIME_TIMESTAMP)=")
EXPORTED = re2.compile(r"(?m)^[A-Z_][A-Z0-9_]*=?")

# What a forum, a mail program or a browser made of quotes and of < > &.
TYPOGRAPHY = {
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "&#39;": "'", "&#x27;": "'", "&apos;": "'",
    "&quot;": '"', "&gt;": ">", "&lt;": "<", "&amp;": "&", "\u00a0": " ",
}  # fmt: skip
# What a line begins with that continues no other one.
BEGINS = re.compile(
    rb"(?:" + TIME.encode() + rb"|<\d+>|\w{3} +\d+ \d\d:\d\d:\d\d |\d{4}-\d\d-\d\d[T ]\d\d:\d\d|"
    rb"\d\d:\d\d:\d\d |(?:/\S*/)?(?:qemu|kvm|libvirt|virsh|error|TASK)[\w-]*: |[-*#>$] |$)"
)
# Characters of the shortest line that is wrapped, and of a word that is wrapped whole.
WRAPPED_AT, WORD = 60, 25
# Lines of the largest log that may have been wrapped; people wrap excerpts.
EXCERPT = 300

# Who writes such lines.
SIGNS: tuple[tuple[Kind, str], ...] = (
    ("libvirt XML", r"<domain(?:status)?[ >]"),
    ("Proxmox", r"(?m)^TASK ERROR: |/var/run/qemu-server/|/etc/pve/|^kvm: -|\bqm start\b"),
    ("Kata", r"source=virtcontainers|kata-runtime|containerd-shim-kata|/run/vc/|vmconsole="),
    ("Kubernetes", r"(?i)kubevirt|virt-launcher|virt-handler|kubelet|SyncVMI|\bk8s\b"),
    (
        "libvirt",
        r"(?m)starting up libvirt version|^\d{4}-\d\d-\d\d [\d:]{8}\.\d{3}\+\d{4}: |LibvirtError|qemuProcess|"
        r"libvirt\.libvirtError|-name guest=|"
        r"error : vir[A-Z]|error: (?:internal error|Failed to start domain)",
    ),
    ("QEMU", r"""(?m)(?:^|[ /'"])(?:qemu-system-\w+|qemu-kvm|qemu): |^(?:\S+ )*kvm: -|^Could not access KVM"""),
    (
        "guest console",
        r"(?m)Hypervisor detected|DMI: (?:QEMU|Red Hat|KubeVirt|Bochs|Amazon EC2|Google|Microsoft|Xen|VMware|innotek)|"
        r"BdsDxe: |SeaBIOS|^initd: |Booting paravirtualized kernel on KVM|MPTABLE: OEM ID: FC|!!!! X64 Exception|"
        r"virtio_blk virtio\d|qemu_fw_cfg",
    ),
    (
        "host kernel",
        r"vfio-pci [0-9a-f]{4}:|vfio_pci: |vfio_iommu_type1|DMAR: (?:IOMMU enabled|Host address)|AMD-Vi: |"
        r"(?:\] |kernel: )(?:kvm(?:_amd|_intel)?|SVM): ",
    ),
    ("kernel", rf"(?m)^.{{0,80}}{TIME}|^.{{0,80}} kernel: |^Linux version \d"),
)  # fmt: skip


class Log(msgspec.Struct, frozen=True):
    """A log as lines of text, and where they stand in its file."""

    name: str
    text: bytes
    """Decompressed, in UTF-8, out of its collector's records."""
    kinds: tuple[Kind, ...] = ("text",)
    """Who wrote lines of it; `text` where nobody is recognized."""
    breaks: tuple[tuple[int, int], ...] = ()
    """(N, M): from line N of the text on, the numbers in the file count from M. Only where they are not the same."""
    names: tuple[tuple[int, str], ...] = ()
    """(N, NAME): from line N of the text on, the lines are of the log NAME. Only where several were joined."""


def joined(kernel: bytes, console: Log) -> Log:
    """The kernel's log of a quiet console, and then that console, as one log: what a full console would have.

    Lines of the console that the kernel's log has too are empty here.
    """
    lines = kernel.splitlines()
    known = set(lines)
    shown = [b"" if line.rstrip(b"\r") in known else line for line in console.text.split(b"\n")]
    before = len(lines)
    breaks = [(before + line, number) for line, number in console.breaks]
    if not console.breaks or console.breaks[0][0] > 1:
        breaks.insert(0, (before + 1, 1))
    text = b"\n".join([*lines, *shown])
    return Log(console.name, text, kinds(text), tuple(breaks), ((1, KERNEL), (before + 1, console.name)))


def number_in_file(breaks: Sequence[tuple[int, int]], line: int) -> int:
    """The number in the file of a line of a Log's text, which counts from 1."""
    place = bisect.bisect(breaks, (line, sys.maxsize)) - 1
    if place < 0:
        return line
    begin, first = breaks[place]
    return first + line - begin


def read(name: str, stdin: IO[bytes] | None = None) -> Log:
    """A log from a file, a pipe, or standard input (`-`); UserError for what cannot be one."""
    shown = "standard input" if name == STDIN else name
    raw = _decompressed(shown, _bytes(name, shown, stdin))
    if not raw.strip(b"\0 \t\r\n"):
        raise UserError(f"log {shown}: empty", "was the console written to it? -serial file:LOG, or console=ttyS0")
    raw = _utf8(raw)
    sample = raw[:SAMPLE]
    # Not text: what is not UTF-8, and control characters that no terminal knows. A noisy serial line has a few.
    odd = sample.decode("utf-8", "replace").count("\ufffd") + sum(map(sample.count, CONTROLS))
    if odd * 5 > len(sample):
        raise UserError(
            f"log {shown}: not text: {odd} of its first {len(sample)} bytes are no characters",
            "pass the log of a console, of QEMU, libvirt or a kernel, as text or as .gz, .xz or .zst",
        )
    return unwrapped(shown, raw)


def _bytes(name: str, shown: str, stdin: IO[bytes] | None) -> bytes:
    try:
        if name == STDIN:
            raw = (stdin or sys.stdin.buffer).read(LOG_MAX + 1)
        else:
            path = Path(name)
            facts = path.stat()
            if not stat.S_ISREG(facts.st_mode) and not stat.S_ISFIFO(facts.st_mode):
                raise UserError(f"log {shown}: no regular file and no pipe", "pass a log, or - for standard input")
            if stat.S_ISREG(facts.st_mode):
                _bounded(shown, facts.st_size)
            with path.open("rb") as file:
                raw = file.read(LOG_MAX + 1)
    except FileNotFoundError:
        raise UserError(f"log {shown}: no such file", "pass a log, or - for standard input") from None
    except (OSError, ValueError) as error:
        raise UserError(f"log {shown}: {getattr(error, 'strerror', None) or error}") from error
    _bounded(shown, len(raw))
    return raw


def _bounded(shown: str, size: int) -> None:
    if size > LOG_MAX:
        raise UserError(
            f"log {shown}: {size / 1e6:.0f} MB or more; the limit is {LOG_MAX >> 20} MiB",
            "pass the part with the boot that failed, such as its end: tail -c 64M",
        )


def _decompressed(shown: str, raw: bytes) -> bytes:
    if not raw.startswith(COMPRESSED):
        return raw
    from minguest.kernel import packing  # noqa: PLC0415 - few logs are compressed, and its libraries take long to import

    text = b""
    try:
        # Rotated logs are streams one after another.
        while raw.startswith(COMPRESSED):
            part, raw = packing.unpack(raw, LOG_MAX)
            text += part
            _bounded(shown, len(text))
    except ValueError as error:
        raise UserError(f"log {shown}: {error}", "unpack what can be read of it: zcat, xzcat or zstdcat") from error
    return text


def _utf8(raw: bytes) -> bytes:
    """Windows' tools save text in UTF-16, with or without its mark."""
    coding = next((name for mark, name in UTF16.items() if raw.startswith(mark)), None)
    if coding is None:
        half = min(len(raw), SAMPLE) // 2
        if raw[1:SAMPLE:2].count(0) > 0.8 * half:
            coding = "utf-16-le"
        elif raw[0:SAMPLE:2].count(0) > 0.8 * half and raw[1:SAMPLE:2].count(0) < 0.2 * half:
            coding = "utf-16-be"
    return raw.decode(coding, "replace").lstrip("\ufeff").encode() if coding else raw


def unwrapped(name: str, raw: bytes) -> Log:
    """The lines of a log, out of the records that a collector made of them."""
    raw = raw.replace(b"\r\n", b"\n")
    for typed, plain in TYPOGRAPHY.items():
        if typed.encode() in raw:
            raw = raw.replace(typed.encode(), plain.encode())
    export = EXPORT.search(raw) is not None
    text = bytearray()
    breaks: list[tuple[int, int]] = []
    copied = counted = added = 0
    number = 1
    for match in (EXPORTED if export else WRAPPED).finditer(raw):
        begin, end = match.start(), raw.find(b"\n", match.start())
        end = end if end >= 0 else len(raw)
        parts = list(_parts(raw[begin:end], export))
        text += raw[copied:begin]
        text += b"\n".join(parts)
        copied = end
        if len(parts) > 1:
            number += raw.count(b"\n", counted, begin)
            counted = begin
            breaks += [(number + added + place, number) for place in range(len(parts))]
            added += len(parts) - 1
    text += raw[copied:]
    return Log(name, bytes(text), kinds(raw), tuple(breaks))


def _parts(line: bytes, export: bool) -> Iterator[bytes]:
    """What one line of the file has in it. `export`: the file is journalctl's, a field a line."""
    if export:
        field, _, value = line.partition(b"=")
        line = value if field == b"MESSAGE" else b""
    elif line.startswith(b"{"):
        line = _record(line)
    line = CRI.sub(b"", line)
    if field := FIELD.search(line):
        line = field[1]
    if b"\\" in line:
        line = line.replace(b'\\"', b'"').replace(b"\\r", b"").replace(b"\\n", b"\n").replace(b"\\t", b"\t")
    for part in line.split(b"\n"):
        yield from INNER.split(part) if b"[" in part else (part,)


def _record(line: bytes) -> bytes:
    """The message of a JSON record of Docker or journald; the line itself where it is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if not isinstance(record, dict):
        return line
    message = next((record[key] for key in ("vmconsole", "MESSAGE", "log", "message", "msg") if key in record), None)
    if isinstance(message, list) and all(isinstance(each, int) and 0 <= each < 256 for each in message):
        return bytes(message)  # journald: not UTF-8
    return message.encode("utf-8", "replace") if isinstance(message, str) else line


def unfolded(log: Log, between: bytes) -> Log | None:
    """An excerpt whose long lines a terminal or a mail program wrapped, with those lines whole; None: none was.

    `between` comes where a line was broken: nothing for a terminal, a blank for a mail program.
    """
    lines = log.text.split(b"\n")
    width = max(map(len, lines))
    if len(lines) > EXCERPT or width < WRAPPED_AT:
        return None
    whole: list[bytes] = []
    breaks: list[tuple[int, int]] = []
    for number, line in enumerate(lines, 1):
        if whole and len(lines[number - 2]) >= width - WORD and not BEGINS.match(line):
            whole[-1] += between + line
        else:
            whole.append(line)
            breaks.append((len(whole), number_in_file(log.breaks, number)))
    if len(whole) == len(lines):
        return None
    return Log(log.name, b"\n".join(whole), log.kinds, tuple(breaks))


@functools.cache
def _signs() -> Any:
    signs = re2.Set.SearchSet()
    for _, sign in SIGNS:
        signs.Add(sign)
    signs.Compile()
    return signs


def kinds(text: bytes) -> tuple[Kind, ...]:
    """Who wrote lines of this text, by what they say; `text` where nobody is recognized."""
    matched = set(_signs().Match(text) or ())
    found = [kind for place, (kind, _) in enumerate(SIGNS) if place in matched]
    if "kernel" in found and ("guest console" in found or "host kernel" in found):
        found.remove("kernel")
    return tuple(found) or ("text",)
