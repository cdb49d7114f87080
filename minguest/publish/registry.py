# SPDX-License-Identifier: Apache-2.0
"""One repository of an OCI registry: its blobs and manifests, sent and read back without trusting the registry.

Formats: OCI distribution-spec 1.1; Docker's token authentication,
https://distribution.github.io/distribution/spec/auth/token. oras-py (0.2.43) does not do: it sets no time limits,
does not retry after 429 and has no referrers.
"""

import hashlib
import io
import ipaddress
import math
import re
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from urllib.parse import urlencode, urljoin, urlsplit

import msgspec
import requests
import requests.auth
import urllib3

from minguest.publish.credentials import HUB, Credentials
from minguest.util import strictjson, web
from minguest.util.errors import MinguestError, ToolError, UserError

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
# All types of a manifest: if the right one is missing, a registry converts the manifest, or answers 404.
ACCEPT = f"{MANIFEST}, {INDEX}, " + ", ".join(
    f"application/vnd.docker.distribution.manifest.{kind}+json" for kind in ("v2", "list.v2")
)
# Most bytes of a manifest, as the specification lets a registry limit it, and of a token server's answer.
MANIFEST_LIMIT = 4 << 20
TOKEN_LIMIT = 64 << 10
# Answers to the end of an upload that the registry does not know, or that has another part already: start again.
UPLOAD_LOST = (400, 404, 405, 409, 416)
# The host of Docker Hub's API.
HUB_API = "registry-1.docker.io"

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# RFC 6750 (2.1) allows less; it only has to be one field of a header.
_TOKEN = re.compile(r"[!-~]+")
# Errors of an answer's body that ends too early.
_CUTS = (requests.RequestException, urllib3.exceptions.HTTPError)
# A file that is written and then read.
_Both = io.BytesIO | io.BufferedRandom


class Place(msgspec.Struct, frozen=True):
    """A repository, and a tag in it or (for reading only) a digest, which wins."""

    registry: str
    """host[:port]"""
    repository: str
    tag: str | None = None
    digest: str | None = None
    """sha256:…"""

    def __str__(self) -> str:
        tag, digest = f":{self.tag}" if self.tag else "", f"@{self.digest}" if self.digest else ""
        return f"oci://{self.registry}/{self.repository}{tag}{digest}"


class _Token(msgspec.Struct, frozen=True):
    """A token server's answer; either name may be used."""

    token: str = ""
    access_token: str = ""


class Repository:
    """A repository's API. `actions`: what a token must allow, `pull` or `pull,push`."""

    def __init__(self, place: Place, credentials: Credentials, actions: str) -> None:
        self.place = place
        self._credentials = credentials
        self._actions = actions
        loopback = _loopback(urlsplit(f"//{place.registry}").hostname)
        host = HUB_API if place.registry == HUB else place.registry
        self._base = f"{'http' if loopback else 'https'}://{host}/v2/{place.repository}/"
        self._authorization: str | None = None
        self._session = web.session()

    def has_blob(self, digest: str) -> bool:
        """Whether the repository has a blob."""
        return self._has(f"blobs/{digest}")

    def has_manifest(self, digest: str) -> bool:
        """Whether the repository has a manifest, tagged or not."""
        return self._has(f"manifests/{digest}")

    def put_blob(self, digest: str, content: bytes | Path) -> int | None:
        """Send a blob; returns its bytes, or None if it was there."""
        failure: ToolError | None = None
        for _ in web.tries():
            # Check each time: the blob may have arrived although its answer was lost.
            if self.has_blob(digest):
                return None if failure is None else _size(content)
            begun = self._call("POST", "blobs/uploads/", wanted=(202,))
            url = _location(begun)
            if url is None:  # or cut in its headers, which http.client takes for their end
                failure = ToolError(f"{web.shown(begun.url)}: its answer has no address to upload to")
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
        """Send a manifest; returns its bytes, and whether the registry itself lists it as a referrer."""
        headers = {"Content-Type": kind}
        answer = self._call("PUT", f"manifests/{reference}", headers=headers, body=content, wanted=(201,))
        self._check_digest(answer, content)
        return len(content), "OCI-Subject" in answer.headers

    def get_manifest(self, reference: str) -> bytes | None:
        """A manifest by tag or digest, or None. Its digest is checked; for a tag, the one that the registry reports."""
        failure: MinguestError | None = None
        for _ in web.tries():
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
            self._check_digest(answer, content.getvalue())
            if DIGEST.fullmatch(reference) and digest_of(content.getvalue()) != reference:
                raise ToolError(f"{web.shown(answer.url)}: damaged: the content does not match the digest")
            return content.getvalue()
        assert failure is not None
        raise failure

    def get_blob(self, digest: str, size: int, file: _Both) -> None:
        """Write a blob of `size` bytes to an empty, readable file, and resume where an answer was cut."""
        where = f"{self._base}blobs/{digest}"
        why = ""
        for _ in web.tries():
            start = file.tell()
            try:
                start = self._get_more(digest, size, file)
            except _CUTS as error:
                why = web.why(error)
                continue
            if file.tell() < size:
                why = f"cut short at {file.tell()} of {size} bytes"
                continue
            file.seek(0)
            if f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == digest:
                return
            why = "damaged: the content does not match the digest"
            if start == 0:
                break  # one answer had all of it, and would again
            _empty(file)
        raise ToolError(f"{where}: {why}", "try again later")

    def lists_referrers(self, digest: str) -> bool:
        """Whether the registry has the referrers API."""
        answer = self._call("GET", f"referrers/{digest}", wanted=(200, 400, 404, 405))
        return answer.status_code == 200 and answer.headers.get("Content-Type", "").startswith(INDEX)

    def _get_more(self, digest: str, size: int, file: _Both) -> int:
        """One request for the rest of the file; returns the offset at which its answer starts."""
        start = file.tell()
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self._call("GET", f"blobs/{digest}", headers=headers, wanted=(200, 206, 416), stream=True) as answer:
            resumed = answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
            if answer.status_code != 206 or not resumed:
                start = _empty(file)
            if answer.status_code == 200 or resumed:
                _receive(answer, file, size)
        return start

    def _has(self, target: str) -> bool:
        # A registry that stores its blobs elsewhere redirects to those that exist.
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
        """One request below the repository's URL, or to a URL; only the registry gets the authorization."""
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
                auth=web.Authorization(self._authorization if _origin(url) == own else None),
                redirects=redirects,
                stream=stream,
                limit=MANIFEST_LIMIT,
            )
            if answer.status_code not in (401, 403):
                return answer
            # Another host, to which the registry redirected, gets no credentials.
            if last or answer.status_code == 403 or _origin(answer.url) != own or not self._authenticate(answer):
                break
            answer.close()
        raise self._denied(answer)

    def _authenticate(self, answer: requests.Response) -> bool:
        """Set the authorization that a 401 requires (RFC 9110, 11.6.1); False if there are no credentials for it."""
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
        """A token server's token; without credentials, an anonymous one."""
        try:
            place = urlsplit(realm)
        except ValueError as error:
            raise ToolError(f"{self.place.registry}: requires a login at {web.shown(realm)!r}: {error}") from error
        # The registry names this server, which gets the password.
        if place.scheme != "https" and not (self._base.startswith("http:") and _loopback(place.hostname)):
            raise ToolError(f"{self.place.registry}: requires a login at {web.shown(realm)!r}, which is not https")
        requested = {"service": service, "scope": f"repository:{self.place.repository}:{self._actions}"}
        known = self._credentials
        if known.token:
            form = {"grant_type": "refresh_token", "refresh_token": known.token, "client_id": "minguest", **requested}
            answer = web.call(
                self._session,
                "POST",
                realm,
                headers={"Content-Type": "application/x-www-form-urlencoded"},
                body=urlencode(form).encode(),
                wanted=(200, 400, 401, 403),
                auth=web.Authorization(None),
                redirects=False,
                limit=TOKEN_LIMIT,
            )
        else:
            answer = web.call(
                self._session,
                "GET",
                _with_query(realm, **requested),
                wanted=(200, 401, 403),
                auth=web.Authorization(known.basic),
                limit=TOKEN_LIMIT,
            )
        if answer.status_code != 200:
            raise self._denied(answer)
        try:
            given = strictjson.decode(answer.content, _Token)
        except ValueError:
            given = _Token()
        token = given.token or given.access_token
        if not _TOKEN.fullmatch(token):  # not shown: it may be a valid one
            what = "a token with characters that a header cannot have" if token else "no token"
            raise ToolError(f"{web.shown(realm)}: gives {what}", "ask the operator of the registry")
        return token

    def _denied(self, answer: requests.Response) -> UserError:
        host, doing = self.place.registry, "publish to" if "push" in self._actions else "read"
        return UserError(
            f"{host}: no permission to {doing} {self.place.repository} ({self._credentials.origin})\n"
            f"  {web.refusal(answer).message}",
            f"log in as a permitted user: docker login {host}, or oras login {host}; and check the repository's name",
        )

    def _check_digest(self, answer: requests.Response, content: bytes) -> None:
        """Compare a manifest with the digest that the registry reports, if any."""
        reported = answer.headers.get("Docker-Content-Digest", "")
        if DIGEST.fullmatch(reported) and reported != digest_of(content):
            raise ToolError(f"{web.shown(answer.url)}: damaged: the registry reports another digest, {reported}")


def digest_of(content: bytes) -> str:
    """`sha256:` and the hash in hex."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _origin(url: str) -> tuple[str, str | None, int]:
    """Scheme, host and port (RFC 6454); ValueError for an invalid port."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _location(answer: requests.Response) -> str | None:
    """The URL that an answer redirects to, absolute or relative; None if it has none."""
    try:
        url = urljoin(answer.url, answer.headers["Location"])
        return url if _origin(url) else None
    except (KeyError, ValueError):
        return None


def _with_query(url: str, **more: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(more)}"


def _size(content: bytes | Path) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _receive(answer: requests.Response, file: _Both, limit: int, seconds: float = math.inf) -> None:
    """Append an answer's body; ToolError for more than `limit` bytes, more than `seconds` or a trickle, one of _CUTS if
    it ends too early."""
    pace, end = web.Pace(), time.monotonic() + seconds
    try:
        # iter_content would lose the part of a chunk that came before a cut.
        while chunk := web.more(answer, web.SILENCE_S):
            if file.tell() + len(chunk) > limit:
                raise ToolError(f"{web.shown(answer.url)}: sends more than the limit of {limit} bytes")
            file.write(chunk)
            slow = f"not done after {seconds:g} s" if time.monotonic() > end else pace.count(len(chunk))
            if slow:
                raise ToolError(f"{web.shown(answer.url)}: {slow}", "try again later")
    except web.DeadlineError as error:
        raise ToolError(f"{web.shown(answer.url)}: {error}", "try again later") from error


def _empty(file: _Both) -> int:
    file.seek(0)
    return file.truncate()
