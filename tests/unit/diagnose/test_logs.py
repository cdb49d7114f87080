# SPDX-License-Identifier: Apache-2.0
"""Logs as people have them: compressed, of other systems, inside a collector's records."""

import gzip
import io
import json
import lzma
import os
import subprocess
import threading
from pathlib import Path

import pytest

from minguest.diagnose import logs
from minguest.util.errors import UserError
from tests import ROOT

RAW = (ROOT / "tests/data/consoles/6.12-efi-off.log").read_bytes()
BANNER = "[    0.000000] Linux version 6.12.1 (a@b) #1 SMP"
RSDP = "[    0.100000] ACPI BIOS Error (bug): A valid RSDP was not found"


@pytest.mark.parametrize("program", ["gzip", "xz", "zstd"])
def test_a_compressed_log_is_the_same_log(program: str, tmp_path: Path) -> None:
    place = tmp_path / "log"
    place.write_bytes(subprocess.run([program, "-c"], input=RAW, capture_output=True, check=True).stdout)
    assert logs.read(str(place)).text == logs.unwrapped("", RAW).text


def test_streams_one_after_another_are_one_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(gzip.compress(b"one\n") + gzip.compress(b"two\n"))
    assert logs.read(str(tmp_path / "log")).text == b"one\ntwo\n"


@pytest.mark.parametrize("packed", [gzip.compress(RAW)[:-100], lzma.compress(RAW)[:-100], b"\x1f\x8b" + bytes(90)])
def test_damaged_compression_is_named(packed: bytes, tmp_path: Path) -> None:
    (tmp_path / "log.gz").write_bytes(packed)
    with pytest.raises(UserError, match=r"log .*log\.gz: .*"):
        logs.read(str(tmp_path / "log.gz"))


def test_a_small_file_cannot_become_a_large_log(tmp_path: Path) -> None:
    (tmp_path / "bomb").write_bytes(gzip.compress(bytes(logs.LOG_MAX + 1)))
    with pytest.raises(UserError, match=r"bomb: .*67108864|bomb: .*64 MiB"):
        logs.read(str(tmp_path / "bomb"))


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_read_as_text(coding: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(f"{BANNER}\r\n{RSDP}\r\n".encode(coding))
    assert logs.read(str(tmp_path / "log")).text.decode() == f"{BANNER}\n{RSDP}\n"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b" \n", "empty"),
        (b"\0" * 500, "empty"),
        (bytes(range(256)) * 40, "not text"),
        (os.urandom(5000), "not text"),
    ],
)
def test_what_is_no_log_is_named(content: bytes | None, why: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "log").write_bytes(content)
    with pytest.raises(UserError, match=f"log {tmp_path / 'log'}: .*{why}"):
        logs.read(str(tmp_path / "log"))
    with pytest.raises(UserError, match="no regular file"):
        logs.read(str(tmp_path))


def test_a_log_over_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(UserError, match="1074 MB or more; the limit is 64 MiB"):
        logs.read(str(tmp_path / "log"))


def test_a_line_with_noise_on_it_is_a_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(f"{BANNER}\n".encode() + b"\xff\xfe\x00\x13 junk \x80\n")
    assert logs.read(str(tmp_path / "log")).kinds == ("kernel",)


def test_standard_input_and_pipes_are_logs(tmp_path: Path) -> None:
    assert logs.read("-", io.BytesIO(RAW)).name == "standard input"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(RAW,))
    writer.start()
    assert logs.read(str(pipe)).kinds == ("guest console",)
    writer.join()


def export(message: str) -> str:
    return f"__CURSOR=s=1\n__REALTIME_TIMESTAMP=1\nSYSLOG_IDENTIFIER=kernel\nMESSAGE={message}\n"


WRAPPERS = {
    "docker": lambda line: json.dumps({"log": f"{line}\n", "stream": "stdout", "time": "2026-01-01T00:00:00Z"}),
    "journal": lambda line: json.dumps({"MESSAGE": line, "_TRANSPORT": "kernel"}),
    "journal-bytes": lambda line: json.dumps({"MESSAGE": list(line.encode()), "_TRANSPORT": "kernel"}),
    "cri": lambda line: f"2026-01-01T00:00:00.000000000Z stdout F {line}",
    "kata": lambda line: (
        f'time="2026-01-01T00:00:00Z" level=debug msg="reading guest console" vmconsole="{line}" pid=1'
    ),
    "cut": lambda line: f'level=debug vmconsole="{line}',
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_line_comes_out_of_its_record(wrapper: str) -> None:
    lines = [BANNER, "[    0.000000] Command line: console=ttyS0 pci=nomsi", RSDP]
    log = logs.unwrapped("x", "\n".join(map(WRAPPERS[wrapper], lines)).encode())
    assert [line.rstrip() for line in log.text.decode().split("\n") if line.strip()] == lines
    where = next(number for number, line in enumerate(log.text.split(b"\n"), 1) if b"RSDP" in line)
    assert logs.number_in_file(log.breaks, where) == 3


def test_an_exported_journal_is_its_messages() -> None:
    log = logs.unwrapped("x", (export(BANNER) + "\n" + export(RSDP)).encode())
    lines = log.text.decode().split("\n")
    assert [line for line in lines if line] == [BANNER, RSDP]
    assert logs.number_in_file(log.breaks, lines.index(RSDP) + 1) == 9


def test_lines_in_one_line_come_apart_and_keep_its_number() -> None:
    escaped = (
        f'first\nmsg="qemu-system-x86_64: vfio 0000:01:00.0: group 1 is not viable\\nPlease ensure \\"all\\""\n{RSDP}\n'
    )
    log = logs.unwrapped("x", escaped.encode())
    lines = log.text.decode().split("\n")
    assert [logs.number_in_file(log.breaks, number) for number in range(1, len(lines) + 1)] == [1, 2, 2, 3, 4]
    assert lines[2] == 'Please ensure "all""'


def test_a_log_that_lost_its_line_ends_is_taken_apart() -> None:
    log = logs.unwrapped("x", f"BdsDxe: starting Boot0001 {BANNER} {RSDP}".encode())
    lines = log.text.decode().split("\n")
    assert lines[1:] == [BANNER, RSDP]
    assert [logs.number_in_file(log.breaks, number) for number in (1, 2, 3)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("qemu-system-x86_64: -device vfio-pci,host=0000:0a:00.0: vfio: no", ("QEMU",)),
        ("/usr/libexec/qemu-kvm: -m: no", ()),
        ("qemu-kvm: -m: no", ("QEMU",)),
        ("kvm: -device vfio-pci,host=0000:0a:00.0: no\nTASK ERROR: start failed", ("Proxmox", "QEMU")),
        ("2026-01-01 00:00:00.000+0000: starting up libvirt version: 9.0.0", ("libvirt",)),
        ("<domain type='kvm'>", ("libvirt XML",)),
        (f"{BANNER}\n[    0.000000] Hypervisor detected: KVM", ("guest console",)),
        (f"{BANNER}\n[    9.000000] vfio-pci 0000:0a:00.0: enabling device", ("host kernel",)),
        ("Nov 22 12:00:00 host kernel: usb 1-1: new device", ("kernel",)),
        ("hello", ("text",)),
    ],
)
def test_who_wrote_a_log(text: str, kinds: tuple[str, ...]) -> None:
    assert logs.kinds(text.encode()) == (kinds or ("QEMU",))


@pytest.mark.parametrize("text", ["\u2018a\u2019 \u201cb\u201d", "&#39;a&#39; &quot;b&quot;"])
def test_quotes_of_forums_and_browsers_become_plain(text: str) -> None:
    assert logs.unwrapped("x", text.encode()).text == b"""'a' "b\""""


def test_lines_that_were_wrapped_become_whole_and_keep_their_numbers() -> None:
    long = "kvm: " + "x" * 65
    text = f"first\n{long}\nrest of it\n{long}\nkvm: another\nlast"
    whole = logs.unfolded(logs.unwrapped("x", text.encode()), b"")
    assert whole is not None
    lines = whole.text.decode().split("\n")
    assert lines == ["first", f"{long}rest of it", long, "kvm: another", "last"]
    assert [logs.number_in_file(whole.breaks, number) for number in range(1, 6)] == [1, 2, 4, 5, 6]


@pytest.mark.parametrize(
    "text",
    ["a\nb", "kvm: " + "x" * 65 + "\nkvm: y", "\n".join(["kvm: " + "x" * 65, "y"] * logs.EXCERPT)],
    ids=["short", "whole", "no-excerpt"],
)
def test_a_log_that_nobody_wrapped_stays_as_it_is(text: str) -> None:
    assert logs.unfolded(logs.unwrapped("x", text.encode()), b"") is None
