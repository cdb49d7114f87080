# SPDX-License-Identifier: Apache-2.0
"""Releases in a folder of this machine, which a web server may serve. Below a folder DIR:

NAME/VERSION/FILE      the release's files, unchanged
NAME/latest            a symbolic link to the newest version that is not a pre-release
NAME/latest.json       the same for clients over HTTP
NAME/index.json        every version
NAME/index.html        the same for a reader
"""

import html
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from minguest import paths
from minguest.publish import versions
from minguest.release import layout
from minguest.util import files
from minguest.util.errors import ToolError, UserError

PUBLISHING = ".publishing-"
LINK = ".latest"
PAGE = "index.html"
POINTERS = (versions.INDEX, PAGE, versions.LATEST)


def publish(release: layout.Release, root: Path, say: Callable[[str], None]) -> layout.Published:
    """Publish to a folder of this machine: a version appears complete, then the index and `latest` name it."""
    home = root / release.facts.name
    place = home / release.facts.version
    try:
        with files.lock(
            root / f".{release.facts.name}.lock", lambda: say(f"{root}: waiting for another run that publishes")
        ):
            return _into(release, home, place, say)
    except OSError as error:
        raise ToolError(f"{error.filename or root}: {error.strerror}", "name a folder that you can write to") from error


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
            # Read the copies again: the disk may be faulty, and nothing checks them later.
            if layout.load(folder).items != release.items:
                raise ToolError(
                    f"{place}: the written files differ from the release",
                    "check the disk, then run the same command again",
                )
            files.sync(folder)
            folder.rename(place)
        files.sync(home)
    elif layout.load(place).items != release.items:
        raise UserError(
            f"{place}: {release.facts.version} is already published with other content",
            "make a new version: a published one never changes",
        )
    _update_pointers(release.facts.name, home)
    count = len(release.items)
    size = sum(item.size for item in release.items)
    return layout.Published(str(place), count if new else 0, size if new else 0, 0 if new else count)


def _sweep(home: Path) -> None:
    """Remove what a killed run left: this run has the lock, so no live run uses it."""
    for path in home.glob(f"{PUBLISHING}*"):
        shutil.rmtree(path, ignore_errors=True)
    for name in POINTERS:  # as files.replacing names them until they are complete
        for path in home.glob(f".{name}.*"):
            path.unlink(missing_ok=True)
    (home / LINK).unlink(missing_ok=True)


def _update_pointers(name: str, home: Path) -> None:
    """Make the index and `latest` of the versions in `home`."""
    there = sorted((path.parent.name for path in home.glob(f"*/{layout.SUMS}") if not path.parent.is_symlink()
                    and layout.VERSION.fullmatch(path.parent.name)), key=versions.order)  # fmt: skip
    index = versions.index(name, there)
    _update(home / versions.INDEX, msgspec.json.format(msgspec.json.encode(index), indent=1) + b"\n")
    _update(home / PAGE, _page(index).encode())
    _update(home / versions.LATEST, msgspec.json.encode(versions.Latest(index.latest)) + b"\n")
    link = home / "latest"
    if not link.is_symlink() or link.readlink().name != index.latest:
        temporary = home / LINK
        temporary.symlink_to(index.latest)
        temporary.replace(link)


def _update(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        files.write(path, content)


def _page(index: versions.Index) -> str:
    """index.html: the versions, newest first."""
    rows = "".join(
        f'<li><a href="{html.escape(version)}/index.html">{html.escape(version)}</a>'
        f"{' (latest)' if version == index.latest else ''}</li>\n"
        for version in reversed(index.versions)
    )
    name = html.escape(index.name)
    head = f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{name}</title>\n'
    return f"{head}<h1>{name}</h1>\n<ul>\n{rows}</ul>\n"
