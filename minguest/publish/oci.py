# SPDX-License-Identifier: Apache-2.0
"""Releases in OCI registries: published as an artifact, and read back without trusting the registry.

Formats: OCI distribution-spec 1.1 and image-spec 1.1 ("Guidelines for Artifact Usage"); Docker's token authentication,
https://distribution.github.io/distribution/spec/auth/token. Not oras-py (0.2.43): it sets no time limits, does not try
again after 429 and knows no referrers.

One repository holds the releases of one name. A tag is a version and never moves; `latest` is what was published last.
"""

import base64
import functools
import hashlib
import io
import ipaddress
import math
import re
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn
from urllib.parse import urlencode, urljoin, urlsplit

import msgspec
import requests
import requests.auth
import urllib3

from minguest.release import layout
from minguest.util import files, strictjson, web
from minguest.util.errors import MinguestError, ToolError, UserError
from minguest.util.run import run

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
ARTIFACT = "application/vnd.minguest.release.v1+json"
# The artifact types of what refers to a release. application/vnd.in-toto.<predicate>+dsse: in-toto/attestation,
# spec/v1/envelope.md; the evidence has a predicate of our own.
REFERRERS: Mapping[str, str] = {
    layout.SIGNATURE: "application/vnd.minguest.sshsig",
    layout.SBOM: "application/vnd.cyclonedx+json",
    layout.PROVENANCE: "application/vnd.in-toto.provenance+dsse",
    layout.EVIDENCE: "application/vnd.minguest.evidence.v1+dsse",
}
LATEST = "latest"
TITLE = "org.opencontainers.image.title"
# All that a manifest may be: with the right one missing, a registry converts what it has, or says 404.
ACCEPT = f"{MANIFEST}, {INDEX}, " + ", ".join(
    f"application/vnd.docker.distribution.manifest.{kind}+json" for kind in ("v2", "list.v2")
)
# Bytes: of a manifest, as the specification lets a registry limit it; of one file.
MANIFEST_LIMIT = 4 << 20
FILE_LIMIT = 4 << 30
TOKEN_LIMIT = 64 << 10
CHUNK = 1 << 16
# A registry's answers to the end of an upload that it does not know or that has another part already: begin anew.
UPLOAD_LOST = (400, 404, 405, 409, 416)
# Seconds for a credential helper, which may ask a locked keyring.
HELPER_S = 60
# What Docker's own clients call Docker Hub, where its API is, and the name of its entry in config.json.
HUB, HUB_API, HUB_LOGIN = "docker.io", "registry-1.docker.io", "https://index.docker.io/v1/"

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_REGISTRY = re.compile(r"(?:[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*|\[[0-9A-Fa-f:.]+\])(?::\d+)?")
_PLACE = re.compile(r"oci://([^/]*)/([^:@]*)(?::([^@]*))?(?:@(.*))?")
# RFC 6750 (2.1) allows less; what matters is that it is one word of a header.
_TOKEN = re.compile(r"[!-~]+")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# How an answer's body can end too early.
_CUTS = (requests.RequestException, urllib3.exceptions.HTTPError)
# To be written and then read.
_Both = io.BytesIO | io.BufferedRandom


class Place(msgspec.Struct, frozen=True):
    """A repository, and what of it: a tag, or (for reading only) a digest, which wins."""

    registry: str
    """host[:port]"""
    repository: str
    tag: str | None = None
    digest: str | None = None
    """sha256:…"""

    def __str__(self) -> str:
        tag, digest = f":{self.tag}" if self.tag else "", f"@{self.digest}" if self.digest else ""
        return f"oci://{self.registry}/{self.repository}{tag}{digest}"


class Credentials(msgspec.Struct, frozen=True):
    """What a registry is told of the user; empty for nobody."""

    user: str = ""
    password: str = ""
    token: str = ""
    """An identity token: what token servers give for a password, and take in its place."""
    origin: str = "no credentials"
    """Where they are from, or where none were found, for messages."""

    def __repr__(self) -> str:
        return f"Credentials({self.origin})"  # no secret in a traceback

    @property
    def basic(self) -> str | None:
        """The Authorization header for user and password (RFC 7617)."""
        return f"Basic {base64.b64encode(f'{self.user}:{self.password}'.encode()).decode()}" if self.user else None


class Descriptor(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A blob or manifest by its content (image-spec, descriptor.md); `size` in bytes."""

    media_type: str
    digest: Annotated[str, msgspec.Meta(pattern=rf"^{_DIGEST.pattern}\Z")]
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
    """What tells one manifest's kind from another's."""

    media_type: str = ""
    artifact_type: str = ""
    config: dict[str, Any] = {}


class _Login(msgspec.Struct, frozen=True):
    """One of config.json's `auths`."""

    auth: str = ""
    identitytoken: str = ""


class _Logins(msgspec.Struct, frozen=True):
    """config.json of Docker, auth.json of podman (containers-auth.json(5)): the keys that matter here."""

    auths: dict[str, _Login] = {}
    credHelpers: dict[str, str] = {}
    credsStore: str = ""


class _Helped(msgspec.Struct, frozen=True):
    """What a credential helper prints (https://github.com/docker/docker-credential-helpers)."""

    Username: str
    Secret: str


class _Token(msgspec.Struct, frozen=True):
    """A token server's answer; either name may be used."""

    token: str = ""
    access_token: str = ""


# A manifest must have a config; this says that it has nothing to say (image-spec, manifest.md).
_NOTHING = b"{}"


def parse(text: str) -> Place:
    """The place that `oci://host[:port]/repository[:tag][@sha256:…]` names; UserError for what cannot be one."""

    def refuse(why: str) -> NoReturn:
        raise UserError(f"{shown!r}: no place in a registry: {why}", "write oci://HOST[:PORT]/REPOSITORY[:TAG]")

    shown = web.shown(text)
    if "@" in text.removeprefix("oci://").partition("/")[0] or "…" in shown:
        refuse("it may have no user and no password: docker login keeps them")

    found = _PLACE.fullmatch(text)
    if not found:
        refuse("it needs oci://, a host, a slash and a repository")
    registry, repository, tag, digest = found.groups()
    if not _REGISTRY.fullmatch(registry) or not _port(registry):
        refuse(f"{registry!r} is no host[:port]")
    if not _REPOSITORY.fullmatch(repository) or len(repository) > 255:
        refuse(f"{repository!r} is no repository: those are of a-z and 0-9, with '/', and '.', '_' and '-' inside")
    # A tag and a release's version follow the same rule.
    if tag is not None and not layout.VERSION.fullmatch(tag):
        refuse(f"{tag!r} is no tag")
    if digest is not None and not _DIGEST.fullmatch(digest):
        refuse(f"{digest!r} is no digest such as sha256:{'0' * 64}")
    return Place(registry, repository, tag, digest)


def credentials(config_files: Sequence[Path], registry: str) -> Credentials:
    """What the first of the files that has any says for a registry (host[:port]); `docker login` writes them.

    Of one file: `credHelpers`, then `auths`, then `credsStore`. A missing file and a helper that fails say nothing.
    UserError for a file that cannot be read; entries for parts of a registry (podman's `host/namespace`) are not.
    """
    troubles = []
    for path in config_files:
        if not path.exists():
            continue
        try:
            logins = msgspec.json.decode(path.read_bytes(), type=_Logins)
        except (OSError, msgspec.DecodeError) as error:
            raise UserError(f"{path}: no file of registry credentials: {error}") from error
        try:
            if (found := _login(logins, registry, path)) is not None:
                return found
        except ToolError as error:
            troubles.append(f"; {error.message.splitlines()[0]}")
    looked = ", ".join(map(str, config_files)) or "no file"
    return Credentials(origin=f"no credentials for {registry} in {looked}{''.join(troubles)}")


def publish(
    release: layout.Release, place: Place, credentials: Credentials, say: Callable[[str], None]
) -> layout.Published:
    """Bring a release into a repository; what is there already is not sent again, so a repeat finishes what is missing.

    The artifact is of type ARTIFACT, with a layer for each file and its name as title; what REFERRERS names gets a
    manifest of its own type beside it. The tag comes after all of that: a tagged version is whole. Then `latest` moves.
    `where` of the answer has tag and digest, and can be parsed; blobs, manifests and tags are counted.
    UserError: the tag has other content, the repository holds something else, the registry does not allow it.
    ToolError: the registry or the way to it failed; the same may succeed on another day.
    """
    version = release.facts.version
    if place.digest or place.tag not in (None, version):
        raise UserError(f"{place}: a release's tag is its version, {version}", "name the repository without a tag")
    # Such tags list referrers, and `latest` moves: neither can be a version's.
    if version == LATEST or version.startswith("sha256-"):
        raise UserError(f"{release.folder}: version {version!r} cannot be a tag in a registry", "use another version")
    registry = _Registry(place, credentials, "pull,push")
    manifest = render(release)
    subject = Descriptor(MANIFEST, digest_of(manifest), len(manifest), ARTIFACT)
    where = Place(place.registry, place.repository, version, subject.digest)
    _check_latest(registry, release)
    if not _tagged(registry, version, manifest):
        say(f"{where}: sending what is not there")

    sent = [registry.put_blob(digest_of(_NOTHING), _NOTHING)]
    # Files of the same content are one blob.
    for item in {item.sha256: item for item in release.items}.values():
        sent.append(registry.put_blob(f"sha256:{item.sha256}", release.folder / item.name))
        if sent[-1] is not None:
            say(f"{item.name}: {item.size / 1e6:.2f} MB sent")
    sent.append(None if registry.has_manifest(subject.digest) else registry.put_manifest(subject.digest, manifest)[0])
    sent += _put_referrers(registry, release, subject)
    # Looked at again, as another run may have been faster: no registry promises to take a tag only if it is new.
    for tag in (version, LATEST):
        sent.append(None if _tagged(registry, tag, manifest) else registry.put_manifest(tag, manifest)[0])
    new = [size for size in sent if size is not None]
    return layout.Published(str(where), len(new), sum(new), len(sent) - len(new))


def render(release: layout.Release) -> bytes:
    """The release's manifest; it follows from the release alone, so the same release has the same digest.

    Licences are not annotated: a release has several, and its SBOM says which file has which.
    """
    facts = release.facts
    annotations = {
        TITLE: facts.name,
        "org.opencontainers.image.version": facts.version,
        "org.opencontainers.image.description": f"guest {facts.guest}: linux {facts.kernel}, firmware {facts.firmware}",
        "vnd.minguest.kernel": facts.kernel,
        "vnd.minguest.firmware": facts.firmware,
        "vnd.minguest.line": facts.line,
        "vnd.minguest.signed": "true" if facts.signed else "false",
    }
    return _artifact(ARTIFACT, release.items, None, annotations)


def digest_of(content: bytes) -> str:
    """`sha256:` and the hash in hex."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Remote:
    """A published release, to be read; nothing is asked of the registry before the first file is.

    Every method raises UserError: nothing there, no release of minguest, damaged, not allowed; and ToolError: the
    registry or the way to it failed, or what came is not what the manifest says.
    """

    def __init__(self, place: Place, credentials: Credentials) -> None:
        """`place` without tag and digest means its `latest`."""
        place = place if place.tag or place.digest else Place(place.registry, place.repository, LATEST)
        self.where = str(place)
        self.wanted = place.tag if place.tag != LATEST and not place.digest else None
        self.newest = f"the tag {LATEST}" if place.tag == LATEST and not place.digest else ""
        self._reference = place.digest or place.tag or LATEST
        self._registry = _Registry(place, credentials, "pull")

    def read(self, name: str, limit: int) -> bytes | None:
        """A small file, or None if the release has none of that name; UserError if it is of more than `limit` bytes."""
        layer = self._layers.get(name)
        if layer is None:
            return None
        if layer.size > limit:
            raise UserError(f"{self.where}: {name} has {layer.size} bytes, more than the {limit} that it may have")
        content = io.BytesIO()
        self._registry.get_blob(layer, content)
        return content.getvalue()

    def save(self, name: str, sha256: str, size: int | None, limit: int, target: Path) -> None:
        """Write a file of that name and hash (hex) to `target`, which is to be a temporary name; it has `size` bytes
        or, where that is not known, at most `limit`."""
        layer = self._layers.get(name)
        if layer is None:
            raise UserError(f"{self.where}: has no {name}", "publish the release again")
        if layer.digest != f"sha256:{sha256}":
            raise UserError(f"{self.where}: its {name} is not the file that {layout.SUMS} names")
        if layer.size > limit if size is None else layer.size != size:
            right = f"may have {limit} at most" if size is None else f"has {size}"
            raise UserError(f"{self.where}: offers {layer.size} bytes of {name}, which {right}")
        with files.disk_errors(target), target.open("w+b") as file:
            self._registry.get_blob(layer, file)

    @functools.cached_property
    def _layers(self) -> dict[str, Descriptor]:
        content = self._registry.get_manifest(self._reference)
        if content is None:
            raise UserError(f"{self.where}: the registry has nothing of that name", "check repository and version")
        layers: dict[str, Descriptor] = {}
        for layer in _read(content, self.where).layers:
            name = (layer.annotations or {}).get(TITLE, "")
            if not layout.NAME.fullmatch(name) or name in layers:
                raise UserError(f"{self.where}: damaged: {name!r} twice, or no name that a file may have")
            layers[name] = layer
        return layers


class _Registry:
    """One repository's API. `actions`: what a token shall allow, `pull` or `pull,push`."""

    def __init__(self, place: Place, credentials: Credentials, actions: str) -> None:
        self.place = place
        self._credentials = credentials
        self._actions = actions
        loopback = _loopback(urlsplit(f"//{place.registry}").hostname)
        host = HUB_API if place.registry == HUB else place.registry
        self._base = f"{'http' if loopback else 'https'}://{host}/v2/{place.repository}/"
        self._authorization: str | None = None
        self._session = web.session()
        # web.call returns as soon as it knows an answer's status, and the body is ours to read.

    def has_blob(self, digest: str) -> bool:
        """Whether the repository has a blob."""
        return self._has(f"blobs/{digest}")

    def has_manifest(self, digest: str) -> bool:
        """Whether the repository has a manifest, tagged or not."""
        return self._has(f"manifests/{digest}")

    def put_blob(self, digest: str, content: bytes | Path) -> int | None:
        """Send a blob; returns its bytes, or None if it was there."""
        failure: ToolError | None = None
        for _ in _tries():
            # Again each time: what was sent may have arrived, and only the answer to it not.
            if self.has_blob(digest):
                return None if failure is None else _size(content)
            begun = self._call("POST", "blobs/uploads/", wanted=(202,))
            url = _location(begun)
            if url is None:  # or cut within its headers, which http.client takes for their end
                failure = ToolError(f"{web.shown(begun.url)}: does not say where to upload to")
                continue
            url, headers = _with_query(url, digest=digest), {"Content-Type": "application/octet-stream"}
            try:
                self._call("PUT", url, headers=headers, body=content, wanted=(201,))
            except web.HttpError as error:
                if error.status not in UPLOAD_LOST:
                    raise
                failure = error
            else:
                return _size(content)
        assert failure is not None
        raise failure

    def put_manifest(self, reference: str, content: bytes, kind: str = MANIFEST) -> tuple[int, bool]:
        """Send a manifest; returns its bytes, and whether the registry lists it as a referrer by itself."""
        headers = {"Content-Type": kind}
        answer = self._call("PUT", f"manifests/{reference}", headers=headers, body=content, wanted=(201,))
        self._check_told(answer, content)
        return len(content), "OCI-Subject" in answer.headers

    def get_manifest(self, reference: str) -> bytes | None:
        """A manifest by tag or digest, or None. Its digest is checked, against the registry's own word for a tag."""
        failure: MinguestError | None = None
        for _ in _tries():
            content = io.BytesIO()
            try:
                with self._call(
                    "GET", f"manifests/{reference}", headers={"Accept": ACCEPT}, wanted=(200, 404), stream=True
                ) as answer:
                    if answer.status_code == 404:
                        return None
                    _receive(answer, content, MANIFEST_LIMIT, web.WHOLE_S)
            except _CUTS as error:
                failure = ToolError(f"{self._base}manifests/{reference}: {web.why(error)}", "try again later")
                continue
            self._check_told(answer, content.getvalue())
            if _DIGEST.fullmatch(reference) and digest_of(content.getvalue()) != reference:
                raise ToolError(f"{web.shown(answer.url)}: damaged: not the content of that digest")
            return content.getvalue()
        assert failure is not None
        raise failure

    def get_blob(self, layer: Descriptor, file: _Both) -> None:
        """Write a blob to an empty file that can be read too, going on where an answer was cut."""
        where = f"{self._base}blobs/{layer.digest}"
        why = ""
        for _ in _tries():
            start = file.tell()
            try:
                start = self._get_more(layer, file)
            except _CUTS as error:
                why = web.why(error)
                continue
            if file.tell() < layer.size:
                why = f"cut short at {file.tell()} of {layer.size} bytes"
                continue
            file.seek(0)
            if f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == layer.digest:
                return
            why = "damaged: not the content of that digest"
            if start == 0:
                break  # it came in one piece, and would again
            _empty(file)
        raise ToolError(f"{where}: {why}", "try again later")

    def lists_referrers(self, digest: str) -> bool:
        """Whether the registry has the referrers API."""
        answer = self._call("GET", f"referrers/{digest}", wanted=(200, 400, 404, 405))
        return answer.status_code == 200 and answer.headers.get("Content-Type", "").startswith(INDEX)

    def _get_more(self, layer: Descriptor, file: _Both) -> int:
        """One request for what the file lacks; returns where in the file its answer starts."""
        start = file.tell()
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self._call("GET", f"blobs/{layer.digest}", headers=headers, wanted=(200, 206, 416), stream=True) as answer:
            resumed = answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
            if answer.status_code != 206 or not resumed:
                start = _empty(file)
            if answer.status_code == 200 or resumed:
                _receive(answer, file, layer.size)
        return start

    def _has(self, target: str) -> bool:
        # A registry that keeps its blobs elsewhere redirects to those that it has.
        answer = self._call(
            "HEAD", target, headers={"Accept": ACCEPT}, wanted=(200, 302, 303, 307, 404), redirects=False
        )
        return answer.status_code != 404

    def _call(
        self,
        method: str,
        target: str,
        *,
        wanted: Collection[int],
        headers: Mapping[str, str] | None = None,
        body: bytes | Path | None = None,
        stream: bool = False,
        redirects: bool = True,
    ) -> requests.Response:
        """One request below the repository's URL, or to a URL, with authorization if it goes to the registry."""
        url = urljoin(self._base, target)
        own = _origin(self._base)
        for last in (False, True):
            answer = web.call(
                self._session,
                method,
                url,
                headers=headers,
                body=body,
                wanted=(*wanted, 401, 403),
                auth=_Authorization(self._authorization if _origin(url) == own else None),
                redirects=redirects,
                stream=stream,
                limit=MANIFEST_LIMIT,
            )
            if answer.status_code not in (401, 403):
                return answer
            # Another host, to which the registry sent us, is not told who we are.
            if last or answer.status_code == 403 or _origin(answer.url) != own or not self._authenticate(answer):
                break
            answer.close()
        raise self._denied(answer)

    def _authenticate(self, answer: requests.Response) -> bool:
        """Make the authorization that a 401 asks for (RFC 9110, 11.6.1); False if there is nothing to make it of."""
        challenge = answer.headers.get("WWW-Authenticate", "")
        if bearer := re.search(r"\bBearer\s+(.*)", challenge, re.IGNORECASE):
            fields = dict(re.findall(r'(\w+)="([^"]*)"', bearer[1]))
            self._authorization = f"Bearer {self._token(fields.get('realm', ''), fields.get('service', ''))}"
        elif re.search(r"\bBasic\b", challenge, re.IGNORECASE) and self._credentials.basic:
            self._authorization = self._credentials.basic
        else:
            return False
        return True

    def _token(self, realm: str, service: str) -> str:
        """A token server's token; without credentials, the one for anybody."""
        try:
            place = urlsplit(realm)
        except ValueError as error:
            raise ToolError(f"{self.place.registry}: wants a login at {web.shown(realm)!r}: {error}") from error
        # The registry names it, and it is told the password.
        if place.scheme != "https" and not (self._base.startswith("http:") and _loopback(place.hostname)):
            raise ToolError(f"{self.place.registry}: wants a login at {web.shown(realm)!r}, which is not https")
        asked = {"service": service, "scope": f"repository:{self.place.repository}:{self._actions}"}
        known = self._credentials
        if known.token:
            form = {"grant_type": "refresh_token", "refresh_token": known.token, "client_id": "minguest", **asked}
            answer = web.call(
                self._session,
                "POST",
                realm,
                headers={"Content-Type": "application/x-www-form-urlencoded"},
                body=urlencode(form).encode(),
                wanted=(200, 400, 401, 403),
                auth=_Authorization(None),
                redirects=False,
                limit=TOKEN_LIMIT,
            )
        else:
            answer = web.call(
                self._session,
                "GET",
                _with_query(realm, **asked),
                wanted=(200, 401, 403),
                auth=_Authorization(known.basic),
                limit=TOKEN_LIMIT,
            )
        if answer.status_code != 200:
            raise self._denied(answer)
        try:
            given = strictjson.decode(answer.content, _Token)
        except ValueError:
            given = _Token()
        token = given.token or given.access_token
        if not _TOKEN.fullmatch(token):  # and it is not shown: it may be one all the same
            what = "a token with characters that no header takes" if token else "no token"
            raise ToolError(f"{web.shown(realm)}: gives {what}", "ask who keeps the registry")
        return token

    def _denied(self, answer: requests.Response) -> UserError:
        host, doing = self.place.registry, "publish to" if "push" in self._actions else "read"
        return UserError(
            f"{host}: may not {doing} {self.place.repository} ({self._credentials.origin})\n"
            f"  {web.refusal(answer).message}",
            f"docker login {host}, or oras login {host}, as a user who may; and check the repository's name",
        )

    def _check_told(self, answer: requests.Response, content: bytes) -> None:
        """Compare a manifest with the digest that the registry gives for it, if it does."""
        told = answer.headers.get("Docker-Content-Digest", "")
        if _DIGEST.fullmatch(told) and told != digest_of(content):
            raise ToolError(f"{web.shown(answer.url)}: damaged: the registry calls it {told}, and it is not")


class _Authorization(requests.auth.AuthBase):
    """Sets the header, or none; that it is there at all keeps requests from taking a login out of ~/.netrc."""

    def __init__(self, header: str | None) -> None:
        self._header = header

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._header is not None:
            request.headers["Authorization"] = self._header
        return request


def _check_latest(registry: _Registry, release: layout.Release) -> None:
    """Keep the releases of one name to their own repository, and out of anything else's."""
    content = registry.get_manifest(LATEST)
    if content is None:
        return
    where = str(Place(registry.place.registry, registry.place.repository, LATEST))
    name = (_read(content, where).annotations or {}).get(TITLE)
    if name != release.facts.name:
        raise UserError(
            f"{where}: is a release of {name!r}, not of {release.facts.name!r}",
            "give each name a repository of its own",
        )


def _tagged(registry: _Registry, tag: str, manifest: bytes) -> bool:
    """Whether a tag is on this manifest already; UserError if it is a version's, and on another one."""
    there = registry.get_manifest(tag)
    if there is not None and there != manifest and tag != LATEST:
        raise UserError(
            f"{tag} is published already with other content, {digest_of(there)}: a published version never changes",
            "make a new version",
        )
    return there == manifest


def _put_referrers(registry: _Registry, release: layout.Release, subject: Descriptor) -> list[int | None]:
    """Send a manifest for each file that speaks of the release, and see that they can be found by it."""
    sent: list[int | None] = []
    listed: bool | None = None
    referrers = []
    for name, kind in REFERRERS.items():
        item = release.item(name)
        if item is None:
            continue
        manifest = _artifact(kind, (item,), Descriptor(subject.media_type, subject.digest, subject.size), None)
        referrers.append(Descriptor(MANIFEST, digest_of(manifest), len(manifest), kind))
        if registry.has_manifest(referrers[-1].digest):
            sent.append(None)
        else:
            size, listed = registry.put_manifest(referrers[-1].digest, manifest)
            sent.append(size)
    if not referrers:
        return sent
    if listed is None:  # all were there, so no answer said it
        listed = registry.lists_referrers(subject.digest)
    return sent if listed else [*sent, _list_referrers(registry, subject, referrers)]


def _list_referrers(registry: _Registry, subject: Descriptor, referrers: Sequence[Descriptor]) -> int | None:
    """Add to the list under the tag `sha256-…`, for registries without the API (distribution-spec, "Referrers Tag
    Schema"); returns the bytes sent, or None if all are in it. What others put there stays."""
    tag = subject.digest.replace(":", "-")
    there = registry.get_manifest(tag)
    index: Any = {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
    try:
        index = index if there is None else msgspec.json.decode(there)
        known = {each["digest"] for each in index["manifests"]}
    except (msgspec.DecodeError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"tag {tag}: is no index of referrers: {error!r}", "remove it from the repository") from error
    missing = [msgspec.to_builtins(each) for each in referrers if each.digest not in known]
    if not missing:
        return None
    content = msgspec.json.encode({**index, "manifests": [*index["manifests"], *missing]})
    return registry.put_manifest(tag, content, INDEX)[0]


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
    """A release's manifest; UserError says what else it is, or where it is damaged."""
    try:
        kind = strictjson.decode(content, _Kind)
        found = kind.artifact_type or kind.config.get("mediaType") or kind.media_type
        if found != ARTIFACT:
            raise UserError(f"{where}: is no release of minguest but {found or 'of no type'}", "check the repository")
        return msgspec.json.decode(content, type=Manifest)
    except ValueError as error:
        raise UserError(f"{where}: damaged: {error}") from error


def _login(logins: _Logins, registry: str, path: Path) -> Credentials | None:
    """What one file says for a registry; ToolError: its helper failed."""
    if helper := logins.credHelpers.get(registry):
        return _ask_helper(helper, registry)
    for name, login in logins.auths.items():
        if _host(name) != registry or not (login.auth or login.identitytoken):
            continue
        try:
            user, _, password = base64.b64decode(login.auth, validate=True).decode().partition(":")
        except ValueError:
            raise UserError(
                f"{path}: auth of {name} is not Base64 of user:password", f"docker login {registry}"
            ) from None
        return Credentials(user, password, login.identitytoken, f"as {user or 'the owner of a token'}, {path}")
    return _ask_helper(logins.credsStore, registry) if logins.credsStore else None


def _ask_helper(helper: str, registry: str) -> Credentials | None:
    program = f"docker-credential-{helper}"
    with tempfile.TemporaryFile() as question:
        question.write((HUB_LOGIN if registry == HUB else registry).encode())
        question.seek(0)
        status, said = run([program, "get"], stdin=question, deadline=HELPER_S, check=False)
    if status != 0:
        return None  # so it says that it knows nothing, among other things
    try:
        # Warnings may stand around it.
        found = msgspec.json.decode(said[said.index("{") : said.rindex("}") + 1], type=_Helped)
    except (ValueError, msgspec.DecodeError):
        raise ToolError(f"{program}: answers no credentials") from None  # what it says may be secret
    if found.Username == "<token>":
        return Credentials(token=found.Secret, origin=f"as the owner of a token, {program}")
    return Credentials(found.Username, found.Secret, "", f"as {found.Username}, {program}")


def _host(name: str) -> str:
    """The registry that a key of `auths` is for: older ones are URLs."""
    if name == HUB_LOGIN:
        return HUB
    return urlsplit(name).netloc if "://" in name else name


def _port(registry: str) -> bool:
    try:
        return urlsplit(f"//{registry}").port != 0
    except ValueError:
        return False


def _loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _origin(url: str) -> tuple[str, str | None, int]:
    """Scheme, host and port (RFC 6454); ValueError for no port."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _location(answer: requests.Response) -> str | None:
    """Where an answer says to go on: a URL, or one relative to its own."""
    try:
        url = urljoin(answer.url, answer.headers["Location"])
        return url if _origin(url) else None
    except (KeyError, ValueError):
        return None


def _with_query(url: str, **more: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(more)}"


def _size(content: bytes | Path) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _tries() -> Iterator[None]:
    """Once, and once more after each of web's pauses."""
    for pause in (0.0, *web.PAUSES):
        time.sleep(pause)
        yield


def _receive(answer: requests.Response, file: _Both, limit: int, seconds: float = math.inf) -> None:
    """Append an answer's body; ToolError if that makes more than `limit` bytes, takes more than `seconds` or trickles,
    one of _CUTS if it ends too early."""
    pace, end = web.Pace(), time.monotonic() + seconds
    try:
        # Not iter_content, which loses the part of a chunk that came before a cut.
        while chunk := web.more(answer, web.SILENCE_S):
            if file.tell() + len(chunk) > limit:
                raise ToolError(f"{web.shown(answer.url)}: gives more than the {limit} bytes that it may have")
            file.write(chunk)
            slow = f"not done after {seconds:g} s" if time.monotonic() > end else pace.count(len(chunk))
            if slow:
                raise ToolError(f"{web.shown(answer.url)}: {slow}", "try again later")
    except web.DeadlineError as error:
        raise ToolError(f"{web.shown(answer.url)}: {error}", "try again later") from error


def _empty(file: _Both) -> int:
    file.seek(0)
    return file.truncate()
