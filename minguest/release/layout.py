# SPDX-License-Identifier: Apache-2.0
"""A release as a folder (docs/release.md): the names and sums of its files, and how an untrusted one is read."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from minguest.paths import DOMAIN, RUN_GUEST
from minguest.util import files, strictjson
from minguest.util.errors import UserError

SCHEMA = 2
SUMS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"
SIZES = "SIZES"
FACTS = "release.json"
MANIFEST = "manifest.json"
SBOM = "sbom.cdx.json"
PROVENANCE = "provenance.dsse.json"
EVIDENCE = "evidence.dsse.json"
EVIDENCE_FILES = "evidence.tar.gz"
NOTES = "NOTES.md"
PAGE = "index.html"

# The type of each file, for registries and web servers. DSSE: https://github.com/secure-systems-lab/dsse, envelope.md;
# CycloneDX: https://www.iana.org/assignments/media-types/application/vnd.cyclonedx+json
MEDIA_TYPES: Mapping[str, str] = {
    "bzImage": "application/vnd.minguest.kernel.bzimage",
    "initrd.img": "application/vnd.minguest.initrd.cpio+gzip",
    "OVMF_CODE.fd": "application/vnd.minguest.ovmf.code",
    "OVMF_VARS.fd": "application/vnd.minguest.ovmf.vars",
    "kernel.config": "application/vnd.minguest.kernel.config",
    "System.map": "application/vnd.minguest.kernel.system-map",
    "kernel-devel.tar.zst": "application/vnd.minguest.kernel.devel.tar+zstd",
    "drivers.img": "application/vnd.minguest.drivers.squashfs",
    MANIFEST: "application/vnd.minguest.manifest.v1+json",
    FACTS: "application/vnd.minguest.release.v1+json",
    RUN_GUEST: "text/x-shellscript",
    DOMAIN: "text/xml",
    SUMS: "application/vnd.minguest.sha256sums",
    SIGNATURE: "application/vnd.minguest.sshsig",
    SIZES: "text/plain",
    SBOM: "application/vnd.cyclonedx+json",
    PROVENANCE: "application/vnd.dsse.envelope.v1+json",
    EVIDENCE: "application/vnd.dsse.envelope.v1+json",
    EVIDENCE_FILES: "application/vnd.minguest.evidence.v1.tar+gzip",
    NOTES: "text/markdown",
    PAGE: "text/html",
}
# Files that older releases do not have; kernel-devel neither has a kernel without modules, drivers.img only a
# guest with [drivers].
LATER = frozenset({DOMAIN, SIZES, "kernel-devel.tar.zst", "drivers.img"})
# Most bytes of SHA256SUMS, of its signature and of SIZES: usually under 2000.
SMALL = 64 << 10
# Most files of a release; it has about 17.
FILES_MAX = 100
# Most bytes of all files of a release without SIZES: today's have under 20 MB.
UNSIZED_MAX = 1 << 30
# A version becomes a folder's name, a tag of an OCI registry and a tag of git; all three accept this.
VERSION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
# File names of a release are flat: GitHub has no folders.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_LINE = re.compile(r"([0-9a-f]{64})  (\S+)")
# Less than 10 GB per file.
_SIZE = re.compile(r"(0|[1-9][0-9]{0,9})  (\S+)")


class Facts(msgspec.Struct, frozen=True):
    """release.json: which release this is."""

    schema: int
    name: str
    """`guest-series`, such as `default-4.12`."""
    version: str
    signed: bool
    """False only if the user explicitly requested an unsigned release."""
    guest: str
    series: str
    kernel: str
    firmware: str
    minguest: str
    previous: str | None
    """The version that the notes compare with."""


class Item(msgspec.Struct, frozen=True):
    """One file of a release; `size` in bytes."""

    name: str
    sha256: str
    size: int
    media_type: str


class Published(msgspec.Struct, frozen=True):
    """The result of a publication. Publishing the same release again uploads nothing."""

    where: str
    """The address that a user pulls from or opens."""
    uploaded: int
    """Files, and what a place keeps beside them."""
    uploaded_bytes: int
    kept: int
    """Files that were already there."""


class Release(msgspec.Struct, frozen=True):
    """A release whose sums were checked; `items` has every file, including SHA256SUMS and its signature."""

    folder: Path
    facts: Facts
    items: tuple[Item, ...]

    def item(self, name: str) -> Item | None:
        """One of its files by name."""
        return next((each for each in self.items if each.name == name), None)


def render_sums(sums: Mapping[str, str]) -> str:
    """SHA256SUMS as sha256sum(1) writes and checks it: sorted by name."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))


def render_sizes(sizes: Mapping[str, int]) -> str:
    """SIZES: the bytes of each file, two spaces, its name; sorted by name."""
    return "".join(f"{size}  {name}\n" for name, size in sorted(sizes.items()))


def parse_sums(text: bytes, where: str) -> dict[str, str]:
    """Names and hashes of SHA256SUMS; UserError for anything that `render_sums` would not have written."""
    sums = _parse(text, where, _LINE, "a hash")
    if render_sums(sums).encode() != text:
        raise UserError(f"{where}: damaged: not a sorted list in the format of sha256sum")
    return sums


def parse_sizes(text: bytes, sums: Mapping[str, str], where: str) -> dict[str, int]:
    """Names and sizes of SIZES, which is one of `sums`; UserError unless it is that file and lists all others."""
    if hashlib.sha256(text).hexdigest() != sums[SIZES]:
        raise UserError(f"{where}: is not the file that {SUMS} names", "pull or make the release again")
    sizes = {name: int(size) for name, size in _parse(text, where, _SIZE, "a size").items()}
    if render_sizes(sizes).encode() != text or sizes.keys() | {SIZES} != sums.keys():
        raise UserError(f"{where}: damaged: not a sorted list of the other files in {SUMS}")
    return sizes


def _parse(text: bytes, where: str, shape: re.Pattern[str], what: str) -> dict[str, str]:
    """The lines of a list: the value of each name."""
    values: dict[str, str] = {}
    try:
        lines = text.decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: damaged: {error}") from error
    if len(lines) > FILES_MAX:
        raise UserError(f"{where}: lists {len(lines)} files, too many for a release")
    for number, line in enumerate(lines, 1):
        found = shape.fullmatch(line)
        if not found:
            raise UserError(f"{where}:{number}: damaged: {line[:80]!r} is not {what}, two spaces and a name")
        if not NAME.fullmatch(found[2]):
            raise UserError(f"{where}:{number}: {found[2]!r} is not a valid file name in a release")
        values[found[2]] = found[1]
    return values


def load(folder: Path, sums: bytes | None = None) -> Release:
    """Read a release's files and check them against its SHA256SUMS, or against `sums`, its content when its signature
    was verified. Signatures are not checked.

    Sizes come first: a file is read only if it has the size in SIZES, or if all files of a release without SIZES have
    at most UNSIZED_MAX bytes. UserError: not a release, or a file is missing, changed, or not a plain file.
    """
    text = sums if sums is not None else read(folder, SUMS, SMALL)
    items = []
    listed = parse_sums(text, str(folder / SUMS))
    _check_sizes(folder, listed)
    for name, digest in listed.items():
        items.append(_item(folder, name))
        if items[-1].sha256 != digest:
            raise UserError(f"{folder / name}: is not the file that {SUMS} names", "pull or make the release again")
    items.append(_item(folder, SUMS))
    if items[-1].sha256 != hashlib.sha256(text).hexdigest():
        raise UserError(f"{folder / SUMS}: changed while it was read")
    if (folder / SIGNATURE).exists():
        read(folder, SIGNATURE, SMALL)
        items.append(_item(folder, SIGNATURE))
    facts = read_facts(folder)
    return Release(folder, facts, tuple(sorted(items, key=lambda each: each.name)))


def read_facts(folder: Path) -> Facts:
    """release.json of a folder; UserError if it is missing or of another schema."""
    try:
        facts = strictjson.decode(read(folder, FACTS, SMALL), Facts, SCHEMA)
    except ValueError as error:
        raise UserError(f"{folder / FACTS}: not the facts of a release: {error}") from error
    if not NAME.fullmatch(facts.name) or not VERSION.fullmatch(facts.version):
        raise UserError(f"{folder / FACTS}: name {facts.name!r} or version {facts.version!r} is invalid")
    return facts


def _check_sizes(folder: Path, listed: Mapping[str, str]) -> None:
    """UserError if a file's size, or that of all files, is wrong."""
    sizes = {name: plain(folder, name).stat().st_size for name in listed}
    if SIZES not in listed:
        if sum(sizes.values()) > UNSIZED_MAX:
            raise UserError(
                f"{folder}: {sum(sizes.values())} bytes: a release without {SIZES} may have at most {UNSIZED_MAX}"
            )
        return
    signed = parse_sizes(read(folder, SIZES, SMALL), listed, str(folder / SIZES))
    for name, size in signed.items():
        if sizes[name] != size:
            raise UserError(
                f"{folder / name}: is not the file that {SUMS} names: it has {sizes[name]} bytes, not {size}",
                "pull or make the release again",
            )


def read(folder: Path, name: str, limit: int) -> bytes:
    """A release's file; UserError unless it is a plain file of at most `limit` bytes that can be read."""
    path = plain(folder, name)
    try:
        return strictjson.read(path, limit)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def plain(folder: Path, name: str) -> Path:
    """The path of a plain file; UserError for a link, a pipe or no file."""
    path = folder / name
    try:
        if path.is_symlink() or not path.is_file():
            what = "not a release: " if name == SUMS else ""
            raise UserError(f"{path}: {what}missing, or not a plain file", "pull or make the release again")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    return path


def _item(folder: Path, name: str) -> Item:
    path = plain(folder, name)
    return Item(name, files.sha256(path), path.stat().st_size, MEDIA_TYPES.get(name, "application/octet-stream"))
