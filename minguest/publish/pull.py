# SPDX-License-Identifier: Apache-2.0
"""Downloads a published release: the signed list first, then each file in it, by its hash."""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from minguest import paths
from minguest.model import Source
from minguest.paths import PULLED
from minguest.publish import credentials, oci, versions
from minguest.release import layout, sshsig, verify
from minguest.util import fetch, files, scratch, strictjson, web
from minguest.util.errors import ToolError, UserError


class Remote(Protocol):
    """A place with a published release."""

    where: str
    """Without a password."""
    wanted: str | None
    """The version that it must have, if the address or an index at the place names one."""
    newest: str
    """What chose the version, without a signature; empty if the address did."""

    def read(self, name: str, limit: int) -> bytes | None:
        """A small file; None if the place has none of that name. An error for more than `limit` bytes."""

    def save(self, name: str, sha256: str, size: int | None, limit: int, target: Path) -> None:
        """Write a file of that hash to `target`; of `size` bytes or, if that is unknown, of at most `limit`.
        ToolError or UserError if it cannot be downloaded."""


class Web:
    """A folder on a web server: made by `doit publish to=DIR` or to=s3://…, or a release's downloads at GitHub."""

    def __init__(self, url: str, cache: Path, say: Callable[[str], None]) -> None:
        """`url` may have a user name and a password, which no message shows and no other host gets."""
        plain, self._auth = web.login(url)
        self.where = plain.rstrip("/")
        self.wanted: str | None = None
        self.newest = "its `latest`" if self.where.endswith("/latest") else ""
        self._cache = cache
        self._say = say
        self._session = web.session()
        if self.read(layout.SUMS, layout.SMALL) is None:
            latest = self.read(versions.LATEST, layout.SMALL)
            if latest is not None:
                self._follow(latest)

    def _follow(self, latest: bytes) -> None:
        try:
            version = strictjson.decode(latest, versions.Latest).version
        except ValueError as error:
            raise UserError(f"{self.where}/{versions.LATEST}: damaged: {error}") from error
        if not layout.VERSION.fullmatch(version):
            raise UserError(f"{self.where}/{versions.LATEST}: {version!r} is not a version")
        self._say(f"{self.where}: the latest is {version}, according to {versions.LATEST}, which is not signed")
        self.where, self.wanted, self.newest = f"{self.where}/{version}", version, versions.LATEST

    def read(self, name: str, limit: int) -> bytes | None:
        """One file, whole."""
        # Object stores answer 403 for a missing file if the client may not list.
        answer = web.call(
            self._session,
            "GET",
            f"{self.where}/{name}",
            wanted=(200, 403, 404, 410),
            auth=self._auth,
            limit=limit,
        )
        return answer.content if answer.status_code == 200 else None

    def save(self, name: str, sha256: str, size: int | None, limit: int, target: Path) -> None:
        """Through the cache, which resumes, and keeps what an earlier run downloaded."""
        source = Source(version="", urls=(f"{self.where}/{name}",), sha256=sha256, licence="", size=size)
        try:
            path = fetch.fetch(source, name, self._cache / PULLED, self._say, limit=limit, auth=self._auth)
        except ToolError as error:
            raise ToolError(
                f"{self.where}: {name} is not available as {layout.SUMS} lists it\n{error.message}",
                "try again; if the error stays, the publication is incomplete or was changed: ask its publisher",
            ) from error
        with contextlib.suppress(OSError):  # a read-only cache
            os.utime(path)
        shutil.copyfile(path, target)


def remote(source: str, cache: Path, configs: Sequence[Path], say: Callable[[str], None]) -> Remote:
    """Where `source` is: oci://registry/repository[:tag], or https://….

    `configs` are the files where docker and podman keep credentials.
    """
    kind, separator, rest = source.partition("://")
    source = f"{kind.lower()}{separator}{rest}"
    if source.startswith("oci://"):
        place = oci.parse(source)
        return oci.Remote(place, credentials.find(configs, place.registry))
    if re.match(r"https?://", source):
        if "?" in source or "#" in source:
            raise UserError(f"{web.shown(source)}: not a folder's address: it has '?' or '#'", "name the folder")
        return Web(source, cache, say)
    raise UserError(
        f"{web.shown(source)}: not an address of a release", "write oci://REGISTRY/REPOSITORY:VERSION, or https://…"
    )


def is_remote(source: str) -> bool:
    """Whether `source` is an address to pull from, not a folder."""
    return "://" in source


def download(source: Remote, trusted: sshsig.Trusted | None, folder: Path, say: Callable[[str], None]) -> None:
    """Put a release's files into the empty `folder`; the list's signature is verified before any file is downloaded."""
    sums = source.read(layout.SUMS, layout.SMALL)
    if sums is None:
        raise ToolError(f"{source.where}: not a release: it has no {layout.SUMS}", "check the address")
    signature = source.read(layout.SIGNATURE, layout.SMALL)
    say(f"{source.where}: signature {verify.signed(sums, signature, trusted).detail}")
    listed = layout.parse_sums(sums, f"{source.where}/{layout.SUMS}")
    sizes = _sizes(source, listed)
    (folder / layout.SUMS).write_bytes(sums)
    if signature is not None:
        (folder / layout.SIGNATURE).write_bytes(signature)
    left = layout.UNSIZED_MAX
    for name, digest in listed.items():
        path = folder / name
        if name == layout.SIZES:
            path.write_text(layout.render_sizes(sizes))
            continue
        source.save(name, digest, sizes.get(name), left, path)
        left -= path.stat().st_size
    if paths.RUN_GUEST in listed:
        (folder / paths.RUN_GUEST).chmod(0o755)


def _sizes(source: Remote, listed: Mapping[str, str]) -> dict[str, int]:
    """The size of each file, as the signed list has it; empty for a release older than that list."""
    if layout.SIZES not in listed:
        return {}
    content = source.read(layout.SIZES, layout.SMALL)
    if content is None:
        raise ToolError(f"{source.where}: has no {layout.SIZES}", "publish the release again")
    return layout.parse_sizes(content, listed, f"{source.where}/{layout.SIZES}")


def check_source(source: str) -> None:
    """UserError if `source` cannot be a release; checked before keys are used."""
    if not is_remote(source) and not (source and Path(source).is_dir()):
        raise UserError(f"{source!r}: no such folder", "name a release's folder, oci://… or https://…")


@contextmanager
def as_folder(
    source: str, trusted: sshsig.Trusted | None, cache: Path, configs: Sequence[Path], say: Callable[[str], None]
) -> Iterator[Path]:
    """A release as a folder: a folder as it is, any other place as a temporary download."""
    if not is_remote(source):
        yield Path(source)
        return
    with scratch.folder("release") as folder, files.disk_errors(folder):
        place = remote(source, cache, configs, say)
        download(place, trusted, folder, say)
        _is_wanted(place, layout.read_facts(folder), say, signed=trusted is not None)
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
    """Download and verify a release as the folder `target` (NAME-VERSION here, if None); complete or not at all.

    Raises UserError if it does not verify, or if `target` is another release.
    """
    if target is not None and target.exists():
        _refuse_other(target)
    parent = (target or Path()).absolute().parent if target else Path.cwd()
    parent.mkdir(parents=True, exist_ok=True)
    with scratch.folder("pull", parent) as folder, files.disk_errors(parent):
        origin = remote(source, cache, configs, say)
        download(origin, trusted, folder, say)
        report = verify.verify(folder, trusted, allow_failed=allow_failed)
        if not report.holds or report.facts is None:
            raise UserError(f"{web.shown(source)}: does not verify; nothing was kept\n{verify.table(report)}")
        _is_wanted(origin, report.facts, say, signed=trusted is not None)
        place = (target or parent / f"{report.facts.name}-{report.facts.version}").absolute()
        if place.exists():
            _refuse_other(place)
            sums = layout.read(place, layout.SUMS, layout.SMALL)
            if sums != layout.read(folder, layout.SUMS, layout.SMALL):
                raise UserError(f"{place}: another release is there", "name another folder with --to, or remove it")
            again = verify.verify(place, trusted, allow_failed=allow_failed)
            if not again.holds:
                raise UserError(
                    f"{place}: was changed after it was pulled\n{verify.table(again)}", "remove it, and pull again"
                )
            say(f"{place}: already there, and it verifies")
            return place, again
        for path in folder.iterdir():
            files.sync(path)
        folder.rename(place)
    return place, report


def _is_wanted(place: Remote, facts: layout.Facts, say: Callable[[str], None], *, signed: bool) -> None:
    """UserError if the facts name another release than the address: a place can serve an old one. If the address
    names no version, this cannot be checked, and a message says so."""
    # In a registry a tag names the version, and the repository may have any name.
    *_, home, last = ["", ""] if place.where.startswith("oci:") else f"//{place.where}".split("/")
    wanted, chosen = place.wanted, place.newest
    if home == facts.name and last != "latest":
        wanted = last  # NAME/VERSION, as `publish` lays it out
    elif home == "download":
        wanted = last.removeprefix(f"{facts.name}-")  # NAME-VERSION, the tag at GitHub
    if wanted not in (None, facts.version):
        raise UserError(
            f"{place.where}: is {facts.name} {facts.version}, not {wanted}",
            "ask the operator: the place serves another release under this address",
        )
    if chosen or wanted is None:
        proof = (
            "It is signed, but nothing proves that it is the newest: the server's operator can hold newer ones back. "
            "Name a version in the address to be sure"
            if signed
            else "It is unsigned: nothing proves who made it, nor that it is the newest"
        )
        say(f"{place.where}: {chosen or 'the server'} chose {facts.version}. {proof}")


def _refuse_other(place: Path) -> None:
    if not (place / layout.SUMS).is_file():
        raise UserError(f"{place}: already exists, and is not a release", "name another folder with --to")
