# SPDX-License-Identifier: Apache-2.0
"""Releases in OCI registries: published as an artifact, and read back without trusting the registry.

Formats: OCI image-spec 1.1 ("Guidelines for Artifact Usage").

One repository holds the releases of one name. A tag is a version and never moves; `latest` is the last published one.
"""

import functools
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn
from urllib.parse import urlsplit

import msgspec

from minguest.publish.credentials import Credentials
from minguest.publish.registry import DIGEST, INDEX, MANIFEST, Place, Repository, digest_of
from minguest.release import layout
from minguest.util import files, strictjson, web
from minguest.util.errors import UserError

ARTIFACT = "application/vnd.minguest.release.v1+json"
# The artifact types of the referrers of a release. application/vnd.in-toto.<predicate>+dsse: in-toto/attestation,
# spec/v1/envelope.md; the evidence has a predicate of our own.
REFERRERS: Mapping[str, str] = {
    layout.SIGNATURE: "application/vnd.minguest.sshsig",
    layout.SBOM: "application/vnd.cyclonedx+json",
    layout.PROVENANCE: "application/vnd.in-toto.provenance+dsse",
    layout.EVIDENCE: "application/vnd.minguest.evidence.v1+dsse",
}
LATEST = "latest"
TITLE = "org.opencontainers.image.title"
# Most bytes of one file.
FILE_LIMIT = 4 << 30
# A manifest must have a config; this is an empty one (image-spec, manifest.md).
_NOTHING = b"{}"

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_REGISTRY = re.compile(r"(?:[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*|\[[0-9A-Fa-f:.]+\])(?::\d+)?")
_PLACE = re.compile(r"oci://([^/]*)/([^:@]*)(?::([^@]*))?(?:@(.*))?")


class Descriptor(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A blob or manifest by its content (image-spec, descriptor.md); `size` in bytes."""

    media_type: str
    digest: Annotated[str, msgspec.Meta(pattern=rf"^{DIGEST.pattern}\Z")]
    size: Annotated[int, msgspec.Meta(ge=0, le=FILE_LIMIT)]
    artifact_type: str | None = None
    annotations: dict[str, str] | None = None


class Manifest(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """An artifact (image-spec, manifest.md), with its fields in the order in which they are written."""

    schema_version: int
    media_type: str
    artifact_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class _Kind(msgspec.Struct, frozen=True, rename="camel"):
    """The fields that determine a manifest's kind."""

    media_type: str = ""
    artifact_type: str = ""
    config: dict[str, Any] = {}


def parse(text: str) -> Place:
    """The place that `oci://host[:port]/repository[:tag][@sha256:…]` names; UserError for an invalid one."""

    def refuse(why: str) -> NoReturn:
        raise UserError(f"{shown!r}: not a place in a registry: {why}", "write oci://HOST[:PORT]/REPOSITORY[:TAG]")

    shown = web.shown(text)
    if "@" in text.removeprefix("oci://").partition("/")[0] or "…" in shown:
        refuse("it must have no user and no password: use docker login")

    found = _PLACE.fullmatch(text)
    if not found:
        refuse("it needs oci://, a host, a slash and a repository")
    registry, repository, tag, digest = found.groups()
    if not _REGISTRY.fullmatch(registry) or not _port(registry):
        refuse(f"{registry!r} is not host[:port]")
    if not _REPOSITORY.fullmatch(repository) or len(repository) > 255:
        refuse(f"{repository!r} is not a repository: use a-z, 0-9 and '/', with '.', '_' and '-' inside")
    # A tag and a release's version follow the same rule.
    if tag is not None and not layout.VERSION.fullmatch(tag):
        refuse(f"{tag!r} is not a tag")
    if digest is not None and not DIGEST.fullmatch(digest):
        refuse(f"{digest!r} is not a digest such as sha256:{'0' * 64}")
    return Place(registry, repository, tag, digest)


def publish(
    release: layout.Release, place: Place, credentials: Credentials, say: Callable[[str], None]
) -> layout.Published:
    """Send a release to a repository; only missing parts are sent, so a second run completes a publication.

    The artifact is of type ARTIFACT, with a layer for each file and its name as title; each file of REFERRERS gets a
    manifest of its own type beside it. The tag comes last: a tagged version is complete. Then `latest` moves.
    `where` of the result has tag and digest, and can be parsed; blobs, manifests and tags are counted.
    UserError: the tag has other content, the repository holds something else, the registry refuses access.
    ToolError: the registry or the network failed; the same command may succeed later.
    """
    version = release.facts.version
    if place.digest or place.tag not in (None, version):
        raise UserError(f"{place}: a release's tag is its version, {version}", "name the repository without a tag")
    # `sha256-…` tags list referrers, and `latest` moves: neither can be a version.
    if version == LATEST or version.startswith("sha256-"):
        raise UserError(f"{release.folder}: version {version!r} cannot be a tag in a registry", "use another version")
    repository = Repository(place, credentials, "pull,push")
    manifest = render(release)
    subject = Descriptor(MANIFEST, digest_of(manifest), len(manifest), ARTIFACT)
    where = Place(place.registry, place.repository, version, subject.digest)
    _check_latest(repository, release)
    if not _tagged(repository, version, manifest):
        say(f"{where}: sending what is missing")

    sent = [repository.put_blob(digest_of(_NOTHING), _NOTHING)]
    # Files of the same content are one blob.
    for item in {item.sha256: item for item in release.items}.values():
        sent.append(repository.put_blob(f"sha256:{item.sha256}", release.folder / item.name))
        if sent[-1] is not None:
            say(f"{item.name}: {item.size / 1e6:.2f} MB sent")
    sent.append(
        None if repository.has_manifest(subject.digest) else repository.put_manifest(subject.digest, manifest)[0]
    )
    sent += _put_referrers(repository, release, subject)
    # Checked again, because another run may have been faster: registries do not guarantee that a tag is new.
    for tag in (version, LATEST):
        sent.append(None if _tagged(repository, tag, manifest) else repository.put_manifest(tag, manifest)[0])
    new = [size for size in sent if size is not None]
    return layout.Published(str(where), len(new), sum(new), len(sent) - len(new))


def render(release: layout.Release) -> bytes:
    """The release's manifest; it depends on the release alone, so the same release has the same digest.

    Licences are not annotated: a release has several, and its SBOM lists them by file.
    """
    facts = release.facts
    annotations = {
        TITLE: facts.name,
        "org.opencontainers.image.version": facts.version,
        "org.opencontainers.image.description": f"guest {facts.guest}: linux {facts.kernel}, firmware {facts.firmware}",
        "vnd.minguest.kernel": facts.kernel,
        "vnd.minguest.firmware": facts.firmware,
        "vnd.minguest.series": facts.series,
        "vnd.minguest.signed": "true" if facts.signed else "false",
    }
    return _artifact(ARTIFACT, release.items, None, annotations)


class Remote:
    """A published release, to be read; the registry is contacted only when the first file is requested.

    Every method raises UserError: nothing there, not a release of minguest, damaged, not allowed; and ToolError: the
    registry or the network failed, or the content does not match the manifest.
    """

    def __init__(self, place: Place, credentials: Credentials) -> None:
        """`place` without tag and digest means its `latest`."""
        place = place if place.tag or place.digest else Place(place.registry, place.repository, LATEST)
        self.where = str(place)
        self.wanted = place.tag if place.tag != LATEST and not place.digest else None
        self.newest = f"the tag {LATEST}" if place.tag == LATEST and not place.digest else ""
        self._reference = place.digest or place.tag or LATEST
        self._repository = Repository(place, credentials, "pull")

    def read(self, name: str, limit: int) -> bytes | None:
        """A small file, or None if the release has none of that name; UserError for more than `limit` bytes."""
        layer = self._layers.get(name)
        if layer is None:
            return None
        if layer.size > limit:
            raise UserError(f"{self.where}: {name} has {layer.size} bytes, more than the limit of {limit}")
        content = io.BytesIO()
        self._repository.get_blob(layer.digest, layer.size, content)
        return content.getvalue()

    def save(self, name: str, sha256: str, size: int | None, limit: int, target: Path) -> None:
        """Write a file of that name and hash (hex) to `target`, a temporary name; it has `size` bytes or, if that is
        unknown, at most `limit`."""
        layer = self._layers.get(name)
        if layer is None:
            raise UserError(f"{self.where}: has no {name}", "publish the release again")
        if layer.digest != f"sha256:{sha256}":
            raise UserError(f"{self.where}: its {name} is not the file that {layout.SUMS} names")
        if layer.size > limit if size is None else layer.size != size:
            right = f"at most {limit}" if size is None else str(size)
            raise UserError(f"{self.where}: offers {layer.size} bytes of {name} instead of {right}")
        with files.disk_errors(target), target.open("w+b") as file:
            self._repository.get_blob(layer.digest, layer.size, file)

    @functools.cached_property
    def _layers(self) -> dict[str, Descriptor]:
        content = self._repository.get_manifest(self._reference)
        if content is None:
            raise UserError(
                f"{self.where}: the registry has nothing of that name", "check the repository and the version"
            )
        layers: dict[str, Descriptor] = {}
        for layer in _read(content, self.where).layers:
            name = (layer.annotations or {}).get(TITLE, "")
            if not layout.NAME.fullmatch(name) or name in layers:
                raise UserError(f"{self.where}: damaged: {name!r} occurs twice, or is not a valid file name")
            layers[name] = layer
        return layers


def _check_latest(repository: Repository, release: layout.Release) -> None:
    """UserError if the repository holds releases of another name, or something else."""
    content = repository.get_manifest(LATEST)
    if content is None:
        return
    where = str(Place(repository.place.registry, repository.place.repository, LATEST))
    name = (_read(content, where).annotations or {}).get(TITLE)
    if name != release.facts.name:
        raise UserError(
            f"{where}: is a release of {name!r}, not of {release.facts.name!r}",
            "give each name its own repository",
        )


def _tagged(repository: Repository, tag: str, manifest: bytes) -> bool:
    """Whether a tag already names this manifest; UserError if it is a version's tag and names another one."""
    there = repository.get_manifest(tag)
    if there is not None and there != manifest and tag != LATEST:
        raise UserError(
            f"{tag} is already published with other content, {digest_of(there)}",
            "make a new version: a published one never changes",
        )
    return there == manifest


def _put_referrers(repository: Repository, release: layout.Release, subject: Descriptor) -> list[int | None]:
    """Send a manifest for each file of REFERRERS, and make sure that the registry lists them for the release."""
    sent: list[int | None] = []
    listed: bool | None = None
    referrers = []
    for name, kind in REFERRERS.items():
        item = release.item(name)
        if item is None:
            continue
        manifest = _artifact(kind, (item,), Descriptor(subject.media_type, subject.digest, subject.size), None)
        referrers.append(Descriptor(MANIFEST, digest_of(manifest), len(manifest), kind))
        if repository.has_manifest(referrers[-1].digest):
            sent.append(None)
        else:
            size, listed = repository.put_manifest(referrers[-1].digest, manifest)
            sent.append(size)
    if not referrers:
        return sent
    if listed is None:  # all were there already, so no answer reported it
        listed = repository.lists_referrers(subject.digest)
    return sent if listed else [*sent, _list_referrers(repository, subject, referrers)]


def _list_referrers(repository: Repository, subject: Descriptor, referrers: Sequence[Descriptor]) -> int | None:
    """Add to the list under the tag `sha256-…`, for registries without the API (distribution-spec, "Referrers Tag
    Schema"); returns the bytes sent, or None if all are in it. Other entries stay."""
    tag = subject.digest.replace(":", "-")
    there = repository.get_manifest(tag)
    index: Any = {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
    try:
        index = index if there is None else msgspec.json.decode(there)
        known = {each["digest"] for each in index["manifests"]}
    except (msgspec.DecodeError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"tag {tag}: not an index of referrers: {error!r}", "remove it from the repository") from error
    missing = [msgspec.to_builtins(each) for each in referrers if each.digest not in known]
    if not missing:
        return None
    content = msgspec.json.encode({**index, "manifests": [*index["manifests"], *missing]})
    return repository.put_manifest(tag, content, INDEX)[0]


def _artifact(
    kind: str, items: Sequence[layout.Item], subject: Descriptor | None, annotations: dict[str, str] | None
) -> bytes:
    config = Descriptor("application/vnd.oci.empty.v1+json", digest_of(_NOTHING), len(_NOTHING))
    layers = tuple(
        Descriptor(item.media_type, f"sha256:{item.sha256}", item.size, annotations={TITLE: item.name})
        for item in items
    )
    return msgspec.json.encode(Manifest(2, MANIFEST, kind, config, layers, subject, annotations))


def _read(content: bytes, where: str) -> Manifest:
    """A release's manifest; UserError says what it is instead, or where it is damaged."""
    try:
        kind = strictjson.decode(content, _Kind)
        found = kind.artifact_type or kind.config.get("mediaType") or kind.media_type
        if found != ARTIFACT:
            raise UserError(f"{where}: not a release of minguest, but {found or 'of no type'}", "check the repository")
        return msgspec.json.decode(content, type=Manifest)
    except ValueError as error:
        raise UserError(f"{where}: damaged: {error}") from error


def _port(registry: str) -> bool:
    try:
        return urlsplit(f"//{registry}").port != 0
    except ValueError:
        return False
