# SPDX-License-Identifier: Apache-2.0
"""What a submitter and its workers send each other: small, and by content. Larger things go through the store."""

import functools
import hashlib
from collections.abc import Mapping
from typing import Literal

import msgspec

from minguest import paths
from minguest.kernel.source import Tree
from minguest.model import Launch
from minguest.util import files

SCHEMA = 1
Kind = Literal["pits", "certify", "base", "evidence", "reproduce", "kernel"]
# Seconds after which a cell hangs. A guest ends after its own time, and a certificate's row may build and boots nine.
DEADLINES: dict[Kind, float] = {
    "pits": 600, "certify": 3600, "base": 1800, "evidence": 900, "reproduce": 7200, "kernel": 3600,
}  # fmt: skip


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file of a setting."""

    sha256: str = ""
    executable: bool = False
    link: str = ""
    """Where a symbolic link points to; then there is no hash."""


class Setting(msgspec.Struct, frozen=True):
    """All inputs that the cells of a run have in common, by content."""

    name: str
    """The bundle's, as default-6.12."""
    launch: Launch
    files: Mapping[str, Entry]
    """bundle/, pits/, root/ (fragments, or a checkout), downloads/, ovmf.deb, userland."""
    fragments: tuple[str, ...] = ()
    """Below root/, in their order."""
    options: Mapping[str, str | int | bool] = {}
    tree: Tree | None = None
    arguments: tuple[str, ...] = ()
    """Of reproduce's builds."""
    facts: Mapping[str, str] = {}
    """What `minguest history` compares: series, kernel, OVMF, minguest, bundle."""

    @property
    def key(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


class Made(msgspec.Struct, frozen=True, order=True):
    """What a result depends on beside its inputs."""

    compiler: str
    qemu: str

    def __str__(self) -> str:
        return f"QEMU {self.qemu.split(' ')[0]}, {self.compiler}"


class Order(msgspec.Struct, frozen=True):
    """One cell to be run."""

    id: str
    """Unique in a run, and the cell's name in a history."""
    kind: Kind
    setting: str
    """Its key: it is in the store as settings/KEY."""
    what: msgspec.Raw
    """JSON; each kind has its own."""
    builds: bool = False
    """It may build a kernel: the worker needs the source."""
    beside: msgspec.Raw = msgspec.Raw(b"null")
    """JSON that follows from the setting and was measured, so the cell's key has none of it."""


class Done(msgspec.Struct, frozen=True):
    """The result of a cell."""

    order: str
    worker: str = ""
    result: msgspec.Raw = msgspec.Raw(b"null")
    """JSON; each kind has its own."""
    files: Mapping[str, str] = {}
    """In the store: SHA-256 by name."""
    inline: Mapping[str, bytes] = {}
    """Files that could not be put there."""
    problems: tuple[str, ...] = ()
    """Lines to be said, of which the exit status tells too."""
    poisoned: tuple[str, ...] = ()
    """Entries of the store that the cell needs: it did not run."""
    error: str = ""
    """Why there is no result."""
    hung: bool = False
    seconds: float = 0.0
    """Of the cell itself, without what the engine did for it."""


class Facts(msgspec.Struct, frozen=True):
    """What a worker says about itself."""

    address: str
    host: str
    pid: int
    code: str
    """Of minguest's modules."""
    made: Made
    memory: int
    """Available bytes of its machine."""
    kvm: str
    """Why /dev/kvm does not open; empty: it does."""
    trees: tuple[str, ...]
    """Names of the kernel sources that it has."""

    @property
    def name(self) -> str:
        return f"{self.host} ({self.address.rpartition('/')[2]})"


@functools.cache
def code() -> str:
    """A hash of this minguest's modules."""
    digest = hashlib.sha256()
    for path in sorted(paths.PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(paths.PACKAGE)} {files.sha256(path)}\n".encode())
    return digest.hexdigest()
