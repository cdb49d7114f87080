# SPDX-License-Identifier: Apache-2.0
"""Publishes a release to a folder, a registry, GitHub, or an S3 store."""

from collections.abc import Callable
from pathlib import Path

from minguest import settings
from minguest.publish import credentials, folder, github, oci, s3
from minguest.release import layout, sshsig
from minguest.util.errors import UserError


def publish(path: Path, to: str | None, say: Callable[[str], None]) -> layout.Published:
    """Publish the release at `path`; `to` is a folder, oci://…, github:OWNER/REPO or s3://BUCKET/PREFIX.

    Raises UserError for an incomplete release, for an impossible `to`, and if this version is already published with
    other content; ToolError if the place failed: a second run continues.
    """
    to = check(to)
    release = _checked(path)
    if to.startswith("oci:"):
        place = oci.parse(to)
        return oci.publish(release, place, credentials.find(settings.registry_configs(), place.registry), say)
    if to.startswith("github:"):
        return github.publish(release, github.parse(to), settings.github_token(), settings.github_api(), say)
    if to.startswith("s3:"):
        return s3.publish(release, s3.parse(to), say)
    return folder.publish(release, Path(to).expanduser().absolute(), say)


def check(to: str | None) -> str:
    """`to`, which names a place to publish to; UserError otherwise. Needs no release and no network."""
    if not to:
        raise UserError(
            "to= is not given",
            "for example: doit publish to=../releases; or to=oci://HOST/REPOSITORY, to=github:OWNER/REPO, "
            "to=s3://BUCKET/PREFIX",
        )
    for scheme, parse in (("oci:", oci.parse), ("github:", github.parse), ("s3:", s3.parse)):
        if to.startswith(scheme):
            parse(to)
            return to
    if "://" in to:
        raise UserError(f"to={to}: not a place to publish to", "pass a folder, oci://…, github:OWNER/REPO or s3://…")
    return to


def _checked(path: Path) -> layout.Release:
    """The complete release at `path`; a signature by any key must match its sums."""
    release = layout.load(path)
    item = release.item(layout.SIGNATURE)
    if release.facts.signed != (item is not None):
        raise UserError(
            f"{path}: says signed = {release.facts.signed}, but {layout.SIGNATURE} is {'there' if item else 'missing'}",
            "make it again: doit release",
        )
    if item is not None:
        sshsig.check((path / layout.SUMS).read_bytes(), (path / layout.SIGNATURE).read_bytes(), str(path / item.name))
    return release


def shown(result: layout.Published) -> str:
    """The result of a publication, as one line."""
    if not result.uploaded:
        return f"{result.where}: already published, nothing uploaded"
    sent = f"{result.uploaded} files, {result.uploaded_bytes / 1e6:.2f} MB uploaded"
    return f"{result.where}: {sent}, {result.kept} already there"
