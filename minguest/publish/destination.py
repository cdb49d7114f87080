# SPDX-License-Identifier: Apache-2.0
"""Publishes a release where users fetch it: the kinds of places, and a folder as the simplest of them.

Below a folder DIR:

    NAME/VERSION/FILE      the release's files, as they are
    NAME/latest            a symbolic link to the newest version that is no pre-release
    NAME/latest.json       the same for who reads over HTTP
    NAME/index.json        every version
    NAME/index.html        the same for a person
"""

import html
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from minguest import paths, settings
from minguest.publish import credentials, github, oci, s3, versions
from minguest.release import layout, sshsig
from minguest.util import files
from minguest.util.errors import ToolError, UserError

INDEX_SCHEMA = 1
PUBLISHING = ".publishing-"
LINK = ".latest"
TOLD = ("index.json", "index.html", "latest.json")


class Index(msgspec.Struct, frozen=True):
    """index.json: the versions of one release's name that are whole."""

    schema: int
    name: str
    latest: str
    versions: tuple[str, ...]


def publish(folder: Path, to: str | None, say: Callable[[str], None]) -> layout.Published:
    """Publish the release in `folder`; `to` is a folder, oci://…, github:OWNER/REPO or s3://BUCKET/PREFIX.

    Raises UserError for a release that is not whole, for words that cannot be, and where this version is published
    already with other content; ToolError where the place failed: run it again, and it goes on.
    """
    if not to:
        raise UserError(
            "nowhere to publish to", "to=DIR, to=oci://HOST/REPOSITORY, to=github:OWNER/REPO or to=s3://BUCKET/PREFIX"
        )
    release = _checked(folder)
    if to.startswith("oci:"):
        place = oci.parse(to)
        return oci.publish(release, place, credentials.find(settings.registry_configs(), place.registry), say)
    if to.startswith("github:"):
        return github.publish(release, github.parse(to), settings.github_token(), settings.github_api(), say)
    if to.startswith("s3:"):
        return s3.publish(release, s3.parse(to), say)
    if "://" in to:
        raise UserError(f"to={to}: not known how to publish there", "a folder, oci://…, github:OWNER/REPO or s3://…")
    return publish_folder(release, Path(to).expanduser().absolute(), say)


def _checked(folder: Path) -> layout.Release:
    """The release in `folder`, whole; a signature that does not fit its sums is found here, whoever made it."""
    release = layout.load(folder)
    item = release.item(layout.SIGNATURE)
    if release.facts.signed != (item is not None):
        raise UserError(
            f"{folder}: says signed = {release.facts.signed}, but that is not so", "doit release makes it again"
        )
    if item is not None:
        sshsig.check(
            (folder / layout.SUMS).read_bytes(), (folder / layout.SIGNATURE).read_bytes(), str(folder / item.name)
        )
    return release


def publish_folder(release: layout.Release, root: Path, say: Callable[[str], None]) -> layout.Published:
    """Publish to a folder of this machine: a version appears whole, then the index and `latest` tell of it."""
    home = root / release.facts.name
    place = home / release.facts.version
    try:
        with files.lock(
            root / f".{release.facts.name}.lock", lambda: say(f"{root}: another run is publishing; waiting")
        ):
            return _into(release, home, place, say)
    except OSError as error:
        raise ToolError(
            f"{error.filename or root}: {error.strerror}", "the folder must be one that you may write to"
        ) from error


def _into(release: layout.Release, home: Path, place: Path, say: Callable[[str], None]) -> layout.Published:
    _sweep(home)
    new = not place.exists()
    if new:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=PUBLISHING, dir=home) as name, files.disk_errors(home):
            folder = Path(name, "release")
            folder.mkdir()
            for item in release.items:
                files.copy(release.folder / item.name, folder / item.name)
                mode = 0o755 if item.name == paths.RUN_GUEST else 0o644
                (folder / item.name).chmod(mode)
            folder.chmod(0o755)
            # What was copied is read again: the disk may have lied, and nobody looks afterwards.
            if layout.load(folder).items != release.items:
                raise ToolError(f"{place}: what was written is not what was read", "check the disk, then run it again")
            files.sync(folder)
            folder.rename(place)
        files.sync(home)
    elif layout.load(place).items != release.items:
        raise UserError(
            f"{place}: {release.facts.version} is published already with other content",
            "a published version never changes: make a new one",
        )
    _tell(release.facts.name, home)
    count = len(release.items)
    size = sum(item.size for item in release.items)
    return layout.Published(str(place), count if new else 0, size if new else 0, 0 if new else count)


def _sweep(home: Path) -> None:
    """Remove what a killed run left: whoever publishes has the lock, so none of it is another one's."""
    for path in home.glob(f"{PUBLISHING}*"):
        shutil.rmtree(path, ignore_errors=True)
    for name in TOLD:  # as files.replacing names them until they are whole
        for path in home.glob(f".{name}.*"):
            path.unlink(missing_ok=True)
    (home / LINK).unlink(missing_ok=True)


def _tell(name: str, home: Path) -> None:
    """Make the index and `latest` of what lies in `home`."""
    there = sorted((path.parent.name for path in home.glob(f"*/{layout.SUMS}") if not path.parent.is_symlink()
                    and layout.VERSION.fullmatch(path.parent.name)), key=versions.order)  # fmt: skip
    index = Index(INDEX_SCHEMA, name, versions.latest(there), tuple(there))
    _update(home / "index.json", msgspec.json.format(msgspec.json.encode(index), indent=1) + b"\n")
    _update(home / "index.html", _page(index).encode())
    _update(home / "latest.json", msgspec.json.encode({"version": index.latest}) + b"\n")
    link = home / "latest"
    if not link.is_symlink() or link.readlink().name != index.latest:
        temporary = home / LINK
        temporary.symlink_to(index.latest)
        temporary.replace(link)


def _update(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        files.write(path, content)


def _page(index: Index) -> str:
    """index.html: the versions, newest first."""
    rows = "".join(
        f'<li><a href="{html.escape(version)}/index.html">{html.escape(version)}</a>'
        f"{' (latest)' if version == index.latest else ''}</li>\n"
        for version in reversed(index.versions)
    )
    name = html.escape(index.name)
    head = f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{name}</title>\n'
    return f"{head}<h1>{name}</h1>\n<ul>\n{rows}</ul>\n"


def shown(result: layout.Published) -> str:
    """What a publication came to, as one line."""
    if not result.uploaded:
        return f"{result.where}: is there already, nothing uploaded"
    sent = f"{result.uploaded} files, {result.uploaded_bytes / 1e6:.2f} MB uploaded"
    return f"{result.where}: {sent}, {result.kept} were there"
