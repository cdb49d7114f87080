# SPDX-License-Identifier: Apache-2.0
"""One store that all machines see: a folder, or a bucket of an S3 store.

    blobs/XX/SHA256     bytes, by their SHA-256
    NAME.json           a record: {"sha256": of the body, "body": …}

Nothing that is read is believed: bytes whose hash differs are `Poisoned`, which names the entry. Writers are atomic,
and two that write one entry write the same, so there are no locks. Who can write to the store can run code on the
workers (a kernel's source is in it): docs/scale.md.
"""

import hashlib
import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from minguest.util import files
from minguest.util.errors import ToolError, UserError

T = TypeVar("T")


class Missing(ToolError):
    """The store has no such entry."""


class Poisoned(ToolError):
    """An entry of the store is not what it must be."""

    def __init__(self, where: str, name: str, why: str) -> None:
        super().__init__(
            f"{where}: {name} is poisoned: {why}; it is not used",
            "find out who writes to this store; the next run that makes it again replaces it, or remove it",
        )
        self.name = name


class Place(ABC):
    """Bytes by name."""

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def get(self, name: str, target: Path) -> bool:
        """Write the bytes to `target`, unchecked; False if there is no such name."""

    @abstractmethod
    def put(self, name: str, source: Path, sha256: str) -> None:
        """Write a file's bytes, whole or not at all."""

    @abstractmethod
    def digest(self, name: str) -> str | None:
        """SHA-256 of the bytes that are there, in hex; None if there is no such name."""

    @abstractmethod
    def names(self, below: str) -> list[str]:
        """The names that begin with `below`, in order."""


class Folder(Place):
    """A folder, which for several machines is on a shared file system."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def get(self, name: str, target: Path) -> bool:
        try:
            content = (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return False
        target.write_bytes(content)
        return True

    def put(self, name: str, source: Path, sha256: str) -> None:
        with _writing(self.root):
            files.copy(source, self.root / name)

    def digest(self, name: str) -> str | None:
        try:
            return files.sha256(self.root / name)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names(self, below: str) -> list[str]:
        top = self.root / below
        found = [path for path in top.rglob("*") if path.is_file() and not path.name.startswith(".")]
        return sorted(path.relative_to(self.root).as_posix() for path in found)


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ToolError(
            f"{root}: the store cannot be written: {error.strerror or error}",
            "make it writable for all workers; what a run found out is not lost: it is where the run was started",
        ) from error


class Bucket(Place):
    """A bucket below a prefix, through the client that `doit publish` has."""

    def __init__(self, place: str, endpoint: str | None = None) -> None:
        from minguest.publish import s3  # noqa: PLC0415 - with it comes boto3

        self._s3, self._place = s3, s3.parse(place)
        self._bucket = s3.Bucket(s3.client(endpoint), self._place, lambda _: None)

    def __str__(self) -> str:
        return str(self._place)

    def get(self, name: str, target: Path) -> bool:
        with self._s3.errors(self._place):
            return self._bucket.get(name, target)

    def put(self, name: str, source: Path, sha256: str) -> None:
        with self._s3.errors(self._place):
            kind = "application/json" if name.endswith(".json") else "application/octet-stream"
            self._bucket.put(self._s3.File(name, sha256, source.stat().st_size, kind, source), None)

    def digest(self, name: str) -> str | None:
        with self._s3.errors(self._place):
            return self._bucket.digest(name)

    def names(self, below: str) -> list[str]:
        with self._s3.errors(self._place):
            return sorted(self._bucket.sizes(below))


class Store:
    """Blobs and records in a place, by their hashes."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.replaced: list[str] = []
        """Entries that were poisoned, and that this process wrote again."""
        self.distrusted: set[str] = set()
        """Entries that are poisoned, whatever the place says of them: they are written again."""

    def __str__(self) -> str:
        return str(self.place)

    def put(self, source: Path) -> str:
        """Put a file's bytes, if they are not there; gives their SHA-256. ToolError for a full or read-only store."""
        sha256 = files.sha256(source)
        self._write(_blob(sha256), source, sha256)
        return sha256

    def has(self, sha256: str) -> bool:
        """Whether the bytes with this hash are there."""
        name = _blob(sha256)
        return name not in self.distrusted and self.place.digest(name) == sha256

    def get(self, sha256: str, target: Path) -> None:
        """Write the bytes with this hash to `target`; Missing, or Poisoned."""
        with files.replacing(target) as temporary:
            if not self.place.get(_blob(sha256), temporary):
                raise Missing(f"{self}: has no {_blob(sha256)}", "run the same command again: it puts what is missing")
            if (found := files.sha256(temporary)) != sha256:
                self.distrusted.add(_blob(sha256))
                raise Poisoned(str(self), _blob(sha256), f"its SHA-256 is {found[:16]}…")

    def put_record(self, name: str, body: Any) -> None:
        """Write a record."""
        plain = msgspec.to_builtins(body)
        text = json.dumps({"sha256": _hash(plain), "body": plain}, indent=1, sort_keys=True).encode() + b"\n"
        with tempfile.NamedTemporaryFile(prefix="minguest-record-") as file:
            file.write(text)
            file.flush()
            self._write(f"{name}.json", Path(file.name), hashlib.sha256(text).hexdigest())

    def record(self, name: str, kind: type[T]) -> T | None:
        """A record, None if there is none; Poisoned if it is not what was written."""
        with tempfile.NamedTemporaryFile(prefix="minguest-record-") as file:
            if not self.place.get(f"{name}.json", Path(file.name)):
                return None
            try:
                whole = json.loads(Path(file.name).read_bytes())
                if whole["sha256"] != _hash(whole["body"]):
                    raise ValueError("the hash in it is of other content")
                return msgspec.convert(whole["body"], kind)
            except (ValueError, TypeError, KeyError) as error:
                raise Poisoned(str(self), f"{name}.json", str(error) or "not a record") from error

    def records(self, below: str) -> list[str]:
        """The names of the records below a name that ends with a slash."""
        return [name.removesuffix(".json") for name in self.place.names(below) if name.endswith(".json")]

    def _write(self, name: str, source: Path, sha256: str) -> None:
        there = self.place.digest(name)
        if there == sha256 and name not in self.distrusted:
            return
        self.place.put(name, source, sha256)
        if there is not None and name.startswith("blobs/"):
            self.replaced.append(name)
            self.distrusted.discard(name)


def _blob(sha256: str) -> str:
    return f"blobs/{sha256[:2]}/{sha256}"


def _hash(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def check(text: str) -> str:
    """The store's name, a folder's as an absolute path; UserError for one that cannot be a store."""
    if text.startswith("s3:"):
        from minguest.publish import s3  # noqa: PLC0415

        s3.parse(text)
        return text
    if "://" in text:
        raise UserError(f"store={text}: not a store", "a folder that all workers see, or s3://BUCKET/PREFIX")
    return str(Path(text).expanduser().absolute())


def opened(name: str) -> Store:
    """The store of a name from `check`; nothing is read or written yet."""
    return Store(Bucket(name) if name.startswith("s3:") else Folder(Path(name)))
