# SPDX-License-Identifier: Apache-2.0
"""Gets a release from where it was published: the signed list first, then what it names, each by its hash."""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import msgspec

from minguest import fetch, files, oci, released, scratch, sshsig, verify, web
from minguest.errors import ToolError, UserError
from minguest.model import Source

# Bytes of SHA256SUMS, of its signature, and of latest.json: some are under 2000.
SMALL = 64 << 10
# Files that a release may have; it has about 17.
FILES_MAX = 100
LATEST = "latest.json"


class Remote(Protocol):
    """A place that a release can be read from."""

    where: str
    wanted: str | None
    """The version that was asked for, where the address names one."""

    def read(self, name: str, limit: int) -> bytes | None:
        """A small file; None where the place has none of that name. An error beyond `limit` bytes."""

    def save(self, name: str, sha256: str, target: Path) -> None:
        """Write a file of that hash to `target`; ToolError or UserError where it is not to be had."""


class Latest(msgspec.Struct, frozen=True):
    """latest.json beside the versions of a release: which one is the newest."""

    version: str


class Web:
    """A folder on a web server: what `doit publish to=DIR` or to=s3://… made, or a release's downloads at GitHub."""

    def __init__(self, url: str, cache: Path, say: Callable[[str], None]) -> None:
        self.where = url.rstrip("/")
        self.wanted = None
        self._cache = cache
        self._say = say
        self._session = web.session()
        if self.read(released.SUMS, SMALL) is None and (latest := self.read(LATEST, SMALL)) is not None:
            try:
                version = msgspec.json.decode(latest, type=Latest).version
            except msgspec.DecodeError as error:
                raise UserError(f"{self.where}/{LATEST}: damaged: {error}") from error
            if not released.VERSION.fullmatch(version):
                raise UserError(f"{self.where}/{LATEST}: {version!r} is no version")
            say(f"{self.where}: the latest is {version}")
            self.where, self.wanted = f"{self.where}/{version}", version

    def read(self, name: str, limit: int) -> bytes | None:
        """One file, whole."""
        # Object stores say 403 of what is not there to those who may not list.
        answer = web.call(self._session, "GET", f"{self.where}/{name}", wanted=(200, 403, 404, 410), limit=limit)
        return answer.content if answer.status_code == 200 else None

    def save(self, name: str, sha256: str, target: Path) -> None:
        """By way of the cache, which resumes and knows what an earlier run has got."""
        source = Source(version="", urls=(f"{self.where}/{name}",), sha256=sha256, licence="")
        try:
            path = fetch.fetch(source, name, self._cache, self._say)
        except ToolError as error:
            raise ToolError(
                f"{self.where}: {name} is not to be had as {released.SUMS} lists it\n{error.message}",
                "try again; if it stays so, the publication is incomplete or was changed: ask who keeps it",
            ) from error
        shutil.copyfile(path, target)


def remote(source: str, cache: Path, configs: Sequence[Path], say: Callable[[str], None]) -> Remote:
    """Where `source` is: oci://registry/repository[:tag], or https://….

    `configs` are the files where docker and podman keep credentials.
    """
    kind, separator, rest = source.partition("://")
    source = f"{kind.lower()}{separator}{rest}"
    if source.startswith("oci://"):
        place = oci.parse(source)
        return oci.Remote(place, oci.credentials(configs, place.registry))
    if re.match(r"https?://", source):
        if "?" in source or "#" in source:
            raise UserError(f"{web.shown(source)}: a folder's address has no '?' and no '#'")
        return Web(source, cache, say)
    raise UserError(f"{source}: not known how to get that", "oci://REGISTRY/REPOSITORY:VERSION, or https://…")


def is_remote(source: str) -> bool:
    """Whether a word names a place to pull from rather than a folder."""
    return "://" in source


def download(source: Remote, trusted: sshsig.Trusted | None, folder: Path, say: Callable[[str], None]) -> None:
    """Put a release's files into the empty `folder`; the list's signature is verified before what it names is got."""
    sums = source.read(released.SUMS, SMALL)
    if sums is None:
        raise ToolError(f"{source.where}: no release there: it has no {released.SUMS}", "check the address")
    signature = source.read(released.SIGNATURE, SMALL)
    say(f"{source.where}: signature {verify.signed(sums, signature, trusted).detail}")
    listed = released.parse_sums(sums, f"{source.where}/{released.SUMS}")
    if len(listed) > FILES_MAX:
        raise UserError(f"{source.where}/{released.SUMS}: lists {len(listed)} files, too many for a release")
    (folder / released.SUMS).write_bytes(sums)
    if signature is not None:
        (folder / released.SIGNATURE).write_bytes(signature)
    for name, digest in listed.items():
        source.save(name, digest, folder / name)
    if released.RUN_GUEST in listed:
        (folder / released.RUN_GUEST).chmod(0o755)


def check_source(source: str) -> None:
    """UserError where a word can name no release: said before anything is asked of keys."""
    if not is_remote(source) and not (source and Path(source).is_dir()):
        raise UserError(f"{source!r}: no such folder", "a release's folder, oci://… or https://…")


@contextmanager
def at_hand(
    source: str, trusted: sshsig.Trusted | None, cache: Path, configs: Sequence[Path], say: Callable[[str], None]
) -> Iterator[Path]:
    """A release as a folder, wherever it is: a folder as it lies, anything else downloaded for the time being."""
    if not is_remote(source):
        yield Path(source)
        return
    with scratch.folder("release") as folder, files.disk_errors(folder):
        place = remote(source, cache, configs, say)
        download(place, trusted, folder, say)
        _is_wanted(place, released.read_facts(folder))
        yield folder


def pull(
    source: str,
    target: Path | None,
    trusted: sshsig.Trusted | None,
    cache: Path,
    configs: Sequence[Path],
    *,
    allow_failed: bool,
    say: Callable[[str], None],
) -> tuple[Path, verify.Report]:
    """Get a release, verify it, and leave it as the folder `target` (NAME-VERSION here, if None); whole or not at all.

    Raises UserError where it does not verify, or where another release is in the target's place.
    """
    if target is not None and target.exists():
        _refuse_other(target)
    parent = (target or Path()).absolute().parent if target else Path.cwd()
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".minguest-pull-", dir=parent) as name, files.disk_errors(parent):
        folder = Path(name, "release")
        folder.mkdir()
        origin = remote(source, cache, configs, say)
        download(origin, trusted, folder, say)
        report = verify.verify(folder, trusted, allow_failed=allow_failed)
        if not report.holds or report.facts is None:
            raise UserError(f"{web.shown(source)}: does not hold; nothing was kept\n{verify.table(report)}")
        _is_wanted(origin, report.facts)
        place = (target or parent / f"{report.facts.name}-{report.facts.version}").absolute()
        if place.exists():
            _refuse_other(place)
            if (place / released.SUMS).read_bytes() != (folder / released.SUMS).read_bytes():
                raise UserError(f"{place}: another release is there", "give another folder with --to, or remove it")
            again = verify.verify(place, trusted, allow_failed=allow_failed)
            if not again.holds:
                raise UserError(
                    f"{place}: was changed since it was pulled\n{verify.table(again)}", "remove it, pull again"
                )
            say(f"{place}: is there already, and holds")
            return place, again
        for path in folder.iterdir():
            files.sync(path)
        folder.rename(place)
    return place, report


def _is_wanted(place: Remote, facts: released.Facts) -> None:
    """UserError where the signed facts tell of another release than the address: a place can serve an old one."""
    # In a registry a tag names the version, and the repository may have any name.
    *_, home, last = ["", ""] if place.where.startswith("oci:") else f"//{place.where}".split("/")
    wanted = place.wanted
    if home == facts.name and last != "latest":
        wanted = last  # NAME/VERSION, as `publish` lays it out
    elif home == "download":
        wanted = last.removeprefix(f"{facts.name}-")  # NAME-VERSION, the tag at GitHub
    if wanted not in (None, facts.version):
        raise UserError(
            f"{place.where}: is {facts.name} {facts.version}, and not {wanted}",
            "the place serves another release under this address: ask who keeps it",
        )


def _refuse_other(place: Path) -> None:
    if not (place / released.SUMS).is_file():
        raise UserError(f"{place}: is there already, and no release", "give another folder with --to")
