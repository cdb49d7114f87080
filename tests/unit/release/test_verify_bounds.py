# SPDX-License-Identifier: Apache-2.0
"""Verifying any folder takes little memory and ends; and no signed document has two meanings."""

import base64
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minguest.release import layout, sshsig
from tests import ROOT, workshop
from tests.forgery import change_statement, sign_again

# Bytes of memory that the whole program may have, and seconds that it may take here.
MEMORY = 300 << 20
SECONDS = 60
BOOT = "boot-test-q35-4"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workshop.key(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Path:
    at = workshop.build(tmp_path_factory.mktemp("work") / "project")
    workshop.tested(at)
    workshop.make(at, key)
    return at.release


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "release")
    return tmp_path / "release"


# Runs the command in a child of its own, ended where it takes too long or too much: a child of this process begins
# with the memory that this one has, as Linux counts. Prints the most that it had, in KiB, after what it says.
WATCH = """
import os, resource, subprocess, sys, time
limit, seconds = int(sys.argv[1]), float(sys.argv[2])
child = subprocess.Popen([sys.executable, "-m", "minguest.cli", *sys.argv[3:]])
end = time.monotonic() + seconds
while child.poll() is None:
    pages = int(open(f"/proc/{child.pid}/statm").read().split()[1] or 0)
    if pages * os.sysconf("SC_PAGE_SIZE") > limit or time.monotonic() > end:
        child.kill()
    time.sleep(0.01)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, child.returncode)
"""


def look(folder: Path, key: Path, *, holds: bool = False) -> str:
    """What `minguest verify` says of a folder, in a process whose memory and time are bounded."""
    arguments = ["verify", str(folder), "--key", f"{key}.pub"]
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(MEMORY), str(SECONDS), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        check=True,
    )
    said, _, used = done.stdout.decode().rstrip("\n").rpartition("\n")
    most, status = map(int, used.split())
    assert most << 10 < MEMORY, f"{most >> 10} MiB"
    assert status == (0 if holds else 1) and "Traceback" not in said, f"{status}: {said}"
    assert ("does NOT hold" in said) != holds and len(said) < 20_000
    return said


def grow(path: Path, size: int) -> None:
    """Make a file sparse and that large."""
    with path.open("ab") as file:
        file.truncate(size)


@pytest.mark.parametrize("name", [layout.SIGNATURE, layout.SUMS, layout.SIZES])
def test_lists_of_20_gb_are_not_read(folder: Path, key: Path, name: str) -> None:
    grow(folder / name, 20 << 30)
    assert "more than the limit of 65536 bytes" in look(folder, key) or name == layout.SIZES


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("name", [layout.SBOM, "bzImage", layout.EVIDENCE_FILES, "kernel.config"])
def test_a_file_of_another_size_is_not_read(folder: Path, key: Path, name: str, sized: bool) -> None:
    if not sized:
        sign_again(folder, key, sized=False)
    grow(folder / name, 1 << 40)
    said = look(folder, key)
    assert (f"{name}: is not the file that SHA256SUMS names" if sized else "a release without SIZES may have") in said


def test_a_stranger_that_the_manifest_names_is_not_read(folder: Path, key: Path) -> None:
    manifest = json.loads((folder / layout.MANIFEST).read_bytes())
    manifest["files"]["stranger"] = {"sha256": "0" * 64, "size": 1 << 40}
    (folder / layout.MANIFEST).write_text(json.dumps(manifest))
    sign_again(folder, key)
    grow(folder / "stranger", 1 << 40)
    assert "describes another stranger than SHA256SUMS" in look(folder, key)


@pytest.mark.parametrize(
    "name",
    [layout.SBOM, layout.MANIFEST, layout.FACTS, layout.PROVENANCE, layout.EVIDENCE, "kernel.config"],
)
def test_a_document_of_500_mb_that_is_signed_is_not_read(folder: Path, key: Path, name: str) -> None:
    grow(folder / name, 500 << 20)
    sign_again(folder, key)
    said = look(folder, key)
    assert "more than the limit" in said or f"describes another {name}" in said


FULL = (4 << 20) - 100
WORST = {
    "lists": b"[" + b"[]," * (FULL // 3) + b"[]]",
    "objects": b"[" + b'{"a":{}},' * (FULL // 9) + b"[]]",
    "texts": b"[" + b'"\xc4\x80",' * (FULL // 5) + b"[]]",
    "deep": b"[" * FULL,
    "names": b"{" + b",".join(b'"%d":{}' % number for number in range(FULL // 12)) + b"}",
}


@pytest.mark.parametrize(
    ("name", "worst"),
    [
        *((layout.SBOM, worst) for worst in WORST),
        (layout.MANIFEST, "objects"),
        (layout.PROVENANCE, "names"),
        (layout.EVIDENCE, "lists"),
    ],
)
def test_the_worst_json_of_4_mib_takes_little(folder: Path, key: Path, name: str, worst: str) -> None:
    (folder / name).write_bytes(WORST[worst])
    sign_again(folder, key)
    look(folder, key)


@pytest.mark.parametrize("worst", ["lists", "objects", "names"])
def test_the_worst_attestation_takes_little(folder: Path, key: Path, worst: str) -> None:
    envelope = json.loads((folder / layout.EVIDENCE).read_bytes())
    payload = WORST[worst][: 3 * len(WORST[worst]) // 4 - 1000]
    payload = payload[: payload.rfind(b",")] + payload[:1].replace(b"[", b"]").replace(b"{", b"}")
    envelope["payload"] = base64.b64encode(payload).decode()
    (folder / layout.EVIDENCE).write_text(json.dumps(envelope))
    sign_again(folder, key)
    look(folder, key)


# ── evidence.tar.gz ──


def pack(folder: Path, key: Path, packed: bytes, listed: dict[str, str]) -> None:
    """Put a tar in the evidence's place, with matching signatures; `listed`: its attestation's hashes."""
    (folder / layout.EVIDENCE_FILES).write_bytes(packed)

    def spoil(statement: Any) -> None:
        for subject in statement["subject"]:
            if subject["name"] == layout.EVIDENCE_FILES:
                subject["digest"]["sha256"] = hashlib.sha256(packed).hexdigest()
        next(each for each in statement["predicate"]["checks"] if each["name"] == BOOT)["files"] = listed

    change_statement(folder, layout.EVIDENCE, key, spoil)
    sign_again(folder, key)


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """Headers and what follows each, as they are given."""
    content = b"".join(
        member.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE) for member, data in members
    )
    return gzip.compress(content + bytes(1024), 1)


def member(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.type = size, kind
    return made


def zeros(size: int) -> bytes:
    """A gzip of a member of so many zeros, which is a thousandth of that."""
    content = io.BytesIO()
    with gzip.open(content, "wb", 9) as file:
        file.write(member(f"{BOOT}/console.log", size).tobuf(tarfile.GNU_FORMAT))
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
        file.write(bytes(1024))
    return content.getvalue()


def sparse() -> bytes:
    """200 members of 200 MiB each, of which the archive has nothing: GNU's old format, tar(5)."""
    members = []
    for number in range(200):
        header = bytearray(member(f"x{number}/console.log", 0, tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
        header[483:495] = b"%011o\0" % (200 << 20)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        members.append(bytes(header))
    return gzip.compress(b"".join(members) + bytes(1024), 1)


def sparse_by_pax() -> bytes:
    """The same by records of a pax header, version 0.1."""
    records = b""
    for name, value in (("GNU.sparse.map", "0,0"), ("GNU.sparse.size", str(200 << 20))):
        record = f" {name}={value}\n"
        records += f"{len(record) + 2}{record}".encode()
    members: list[tuple[tarfile.TarInfo, bytes]] = []
    for number in range(200):
        members.append((member("pax", len(records), tarfile.XHDTYPE), records))
        members.append((member(f"x{number}/console.log", 0), b""))
    return tar(*members)


def many() -> bytes:
    """300,000 empty members: 150 MiB of headers."""
    first = member("x000000/console.log", 0).tobuf(tarfile.GNU_FORMAT)
    start, check = sum(first[:148]) + sum(first[156:]) + 8 * 32 - 6 * ord("0"), slice(148, 156)
    content = bytearray()
    for number in range(300_000):
        digits = b"%06d" % number
        header = bytearray(first)
        header[1:7], header[check] = digits, b"%06o\0 " % (start + sum(digits))
        content += header
    return gzip.compress(content + bytes(1024), 1)


HARMFUL: dict[str, tuple[Callable[[], bytes], str]] = {
    "sparse": (sparse, "is not a plain file"),
    "sparse by pax": (sparse_by_pax, "is not a plain file"),
    "digits": (lambda: tar((member("pax", 400_000, tarfile.XHDTYPE), b"1" * 400_000)), "is not a plain file"),
    "global digits": (lambda: tar((member("pax", 400_000, tarfile.XGLTYPE), b"1" * 400_000)), "is not a plain file"),
    "long name": (lambda: tar((member("x", 1 << 30, tarfile.GNUTYPE_LONGNAME), bytes(1 << 20))), "is not a plain file"),
    "zeros": (lambda: zeros(200 << 20), "more than 128 MiB"),
    "zeros after the end": (lambda: gzip.compress(bytes(200 << 20), 1), "goes on after its end"),
    "many": (many, "has more than 1000 files"),
    "negative": (lambda: tar((member(f"{BOOT}/console.log", -512), b"")), "damaged"),
    "huge": (lambda: tar((member(f"{BOOT}/console.log", 1 << 62), b"")), "more than 128 MiB"),
    "folder": (lambda: tar((member(BOOT, 0, tarfile.DIRTYPE), b"")), "is not a plain file"),
    "link": (lambda: tar((member(f"{BOOT}/console.log", 0, tarfile.SYMTYPE), b"")), "is not a plain file"),
    "cut": (lambda: gzip.compress(member(f"{BOOT}/console.log", 900).tobuf(tarfile.GNU_FORMAT) + b"x", 1), "cut short"),
    "no header": (lambda: gzip.compress(b"x" * 1024, 1), "a member's header"),
    "no end": (lambda: gzip.compress(member(f"{BOOT}/console.log", 0).tobuf(tarfile.GNU_FORMAT), 1), "a member's head"),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_harmful_archive_is_refused(folder: Path, key: Path, name: str) -> None:
    make, why = HARMFUL[name]
    pack(folder, key, make(), {})
    assert why in look(folder, key)


@pytest.mark.parametrize("worst", ["objects", "names"])
def test_the_worst_report_takes_little(folder: Path, key: Path, worst: str) -> None:
    report = b'{"complete":true,"records":[{"x":' + WORST[worst][:-1000]
    report = report[: report.rfind(b",")] + (b"}" if worst == "names" else b"]") + b'}],"pci":[]}'
    with tarfile.open(folder / layout.EVIDENCE_FILES) as archive:
        files = {each.name: archive.extractfile(each).read() for each in archive}  # type: ignore[union-attr]
    files[f"{BOOT}/report.json"] = report
    packed = tar(*((member(path, len(data)), data) for path, data in files.items()))
    pack(folder, key, packed, {path: hashlib.sha256(data).hexdigest() for path, data in files.items()})
    # It is a report, and what it says beside that is nobody's business.
    look(folder, key, holds=True)


# ── one meaning ──


@pytest.mark.parametrize(
    ("name", "key_name"),
    [
        (layout.FACTS, "version"),
        (layout.MANIFEST, "schema"),
        (layout.MANIFEST, "sha256"),
        (layout.SBOM, "bomFormat"),
        (layout.PROVENANCE, "payload"),
        (layout.EVIDENCE, "payloadType"),
    ],
)
def test_a_document_that_has_a_name_twice_is_refused(folder: Path, key: Path, name: str, key_name: str) -> None:
    text = json.dumps(json.loads((folder / name).read_bytes())).encode()
    value = json.dumps(json.loads(text).get(key_name, "0" * 64)).encode()
    start = text.index(f'"{key_name}"'.encode())
    (folder / name).write_bytes(text[:start] + f'"{key_name}": '.encode() + value + b", " + text[start:])
    sign_again(folder, key)
    assert f"has the name '{key_name}' twice" in look(folder, key)


@pytest.mark.parametrize("name", [layout.PROVENANCE, layout.EVIDENCE])
def test_a_statement_that_has_a_name_twice_is_refused(folder: Path, key: Path, name: str) -> None:
    envelope = json.loads((folder / name).read_bytes())
    payload = base64.b64decode(envelope["payload"])
    payload = payload.replace(b'"predicateType":', b'"predicateType":"x","predicateType":', 1)
    kind = envelope["payloadType"].encode()
    pae = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)  # protocol.md of DSSE
    envelope["payload"] = base64.b64encode(payload).decode()
    envelope["signatures"][0]["sig"] = base64.b64encode(sshsig.blob(sshsig.sign(pae, key))).decode()
    (folder / name).write_text(json.dumps(envelope))
    sign_again(folder, key)
    assert "has the name 'predicateType' twice" in look(folder, key)


def test_a_verdict_that_has_a_name_twice_proves_nothing(folder: Path, key: Path) -> None:
    with tarfile.open(folder / layout.EVIDENCE_FILES) as archive:
        files = {each.name: archive.extractfile(each).read() for each in archive}  # type: ignore[union-attr]
    name = f"{BOOT}/verdict.json"
    files[name] = b'{"qemu":"1.0",' + files[name][1:]
    packed = tar(*((member(path, len(data)), data) for path, data in files.items()))
    pack(folder, key, packed, {path: hashlib.sha256(data).hexdigest() for path, data in files.items()})
    assert "its files show NOT RUN" in look(folder, key)


def test_many_strangers_are_counted_and_not_listed(folder: Path, key: Path) -> None:
    for number in range(3000):
        (folder / f"stranger-{number:04}-{'x' * 100}").touch()
    (folder / "bzImage").write_bytes((folder / "bzImage").read_bytes()[::-1])
    look(folder, key)
