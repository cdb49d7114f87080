# SPDX-License-Identifier: Apache-2.0
"""Publishes a release at GitHub: as a draft that is filled, read back, and only then made public.

Interface: GitHub's REST API, version 2022-11-28 (https://docs.github.com/en/rest/releases), of github.com or of an
Enterprise Server. NOT RUN against github.com: the tests' server follows its published description.

GitHub makes the tag when the release becomes public, at the head of the default branch, if there is no such tag yet.
A draft is visible only to users with write access to the repository.
"""

import hashlib
import re
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import msgspec
import requests
import urllib3

from minguest.publish import versions
from minguest.release import layout
from minguest.util import web
from minguest.util.errors import MinguestError, ToolError, UserError

T = TypeVar("T")

API = "https://api.github.com"
# https://docs.github.com/en/rest/about-the-rest-api/api-versions
VERSION = "2022-11-28"
# Entries in one answer of a list: the most that GitHub gives.
PAGE = 100
# How often one file is sent, each time after the rest of a cut upload was removed.
ROUNDS = 4
# Most seconds of one wait for a rate limit, and most waits; and the wait that GitHub requires if an answer gives none.
# https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api#exceeding-the-rate-limit
LIMIT_S = 120
LIMITS = 3
UNSAID_S = 60
# Redirects: to a storage for downloads, else to a repository's new name.
MOVED = (301, 302, 303, 307, 308)
AGAIN = "run the same command again; files that are already there are not sent again"
PERMISSION = (
    "give the token permission to write contents: a fine-grained one `Contents: Read and write` for this repository,"
    " a classic one `repo` (`public_repo` for a public one), a job in GitHub Actions `permissions: contents: write`"
)


class Place(msgspec.Struct, frozen=True):
    """A repository."""

    owner: str
    repo: str

    def __str__(self) -> str:
        return f"github:{self.owner}/{self.repo}"


class _Release(msgspec.Struct, frozen=True):
    """The used fields of the schema `release`."""

    id: int
    tag_name: str
    draft: bool
    upload_url: str
    html_url: str


class _Asset(msgspec.Struct, frozen=True):
    """The used fields of the schema `release-asset`; `size` in bytes."""

    id: int
    name: str
    state: str
    """`uploaded`; `starter` after an upload that was cut."""
    size: int
    digest: str | None = None
    """`sha256:` and hex digits; older servers and older assets have none."""


def parse(text: str) -> Place:
    """`github:OWNER/REPO`; UserError for anything else."""
    found = re.fullmatch(r"github:([A-Za-z0-9][A-Za-z0-9-]{0,38})/([A-Za-z0-9._-]{1,100})", text)
    if not found or found[2] in (".", ".."):
        raise UserError(f"{text!r} is not a repository at GitHub", "write github:OWNER/REPO")
    return Place(found[1], found[2])


def publish(
    release: layout.Release, place: Place, token: str | None, api: str, say: Callable[[str], None]
) -> layout.Published:
    """Fill the draft of this version's tag, which is created if missing, check it, and make it public.

    `api` is the API's URL (`API`, or an Enterprise Server's). UserError: the version is public with other content, or
    the token is missing or lacks a permission. ToolError: GitHub did not answer, or lacks what was sent to it.
    """
    if not token:
        raise UserError(f"{place}: no token to publish with", f"set GITHUB_TOKEN; {PERMISSION}")
    if not re.fullmatch(r"[!-~]+", token):
        # Not shown: it may be a valid token with a line end.
        raise UserError(f"{place}: the token has blanks, line ends or characters that a header cannot have", PERMISSION)
    with web.session() as session:
        repository = _Repository(session, place, token, api.rstrip("/"))
        found, public = _begin(repository, release, say)
        if not found.draft:
            _check_same(repository, release, found, place)
            return layout.Published(found.html_url, 0, 0, len(release.items))
        sent = _fill(repository, release, found, say)
        _check_draft(repository, release, found, place)
        version = release.facts.version
        latest = not versions.prerelease(version) and versions.latest([*public, version]) == version
        repository.update(found, {**_text(release), "draft": False, "make_latest": "true" if latest else "false"})
    count, size = len(sent), sum(item.size for item in sent)
    return layout.Published(_address(found, release), count, size, len(release.items) - count)


class _Repository:
    """A repository's releases over the REST API."""

    def __init__(self, session: requests.Session, place: Place, token: str, api: str) -> None:
        self._session = session
        self._place = place
        self._auth = web.Authorization(f"Bearer {token}")
        self._no_auth = web.Authorization(None)
        self._url = f"{api}/repos/{place.owner}/{place.repo}/releases"

    def releases(self) -> list[_Release]:
        """All of them; no other list has the drafts."""
        return self._list(self._url, _Release)

    def assets(self, found: _Release) -> list[_Asset]:
        """The files of a release, complete or not."""
        return self._list(f"{self._url}/{found.id}/assets", _Asset)

    def create(self, text: dict[str, object]) -> str:
        """Request a new draft, once; returns why that may have failed, else "". Look for the draft in any case."""
        try:
            answer = self._session.post(
                self._url,
                data=msgspec.json.encode(text),
                headers=_headers(),
                auth=self._auth,
                timeout=(web.CONNECT_S, web.SILENCE_S),
                allow_redirects=False,
            )
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            return web.why(error)
        seconds = _limit(answer)
        if answer.status_code == 201:
            return ""
        if (seconds is None and answer.status_code not in web.TRANSIENT) or (seconds or 0) > LIMIT_S:
            raise self._explained(answer)
        time.sleep(seconds or 0)
        return web.refusal(answer).message

    def upload(self, found: _Release, item: layout.Item, path: Path) -> bool:
        """Send a file; False if there is one of that name."""
        # A URI template (RFC 6570): https://uploads.github.com/repos/…/assets{?name,label}
        url = f"{found.upload_url.split('{', 1)[0]}?name={quote(item.name)}"
        answer = self._call("POST", url, body=path, content=item.media_type, wanted=(201, 422))
        if answer.status_code == 422 and "already_exists" not in answer.text:
            raise self._explained(answer)
        return answer.status_code == 201

    def download(self, asset: _Asset) -> bytes:
        """A file's content."""
        url = f"{self._url}/assets/{asset.id}"
        why = "cut short"
        for _ in web.tries():
            answer = self._call("GET", url, accept="application/octet-stream", wanted=(200, *MOVED))
            if answer.status_code in MOVED:
                # A redirect to a store with a signed, temporary URL: do not send the token there.
                try:
                    answer = web.call(self._session, "GET", answer.headers.get("Location", ""), auth=self._no_auth)
                except web.HttpError as error:
                    why = error.message
            if len(answer.content) == asset.size:
                return answer.content
        raise ToolError(f"{self._place}: {asset.name} cannot be read back: {why}", AGAIN)

    def remove(self, asset: _Asset) -> None:
        """Delete a file; 404 is the answer to a repeated request."""
        self._call("DELETE", f"{self._url}/assets/{asset.id}", wanted=(204, 404))

    def update(self, found: _Release, changes: dict[str, object]) -> None:
        """Change a release."""
        self._call("PATCH", f"{self._url}/{found.id}", body=msgspec.json.encode(changes), wanted=(200,))

    def _list(self, url: str, kind: type[T]) -> list[T]:
        entries: list[T] = []
        page = 1
        while True:
            found, more = self._page(f"{url}?per_page={PAGE}&page={page}", kind)
            entries += found
            if not more:
                return entries
            page += 1

    def _page(self, url: str, kind: type[T]) -> tuple[list[T], bool]:
        """One page of a list, and whether there is another."""
        for _ in (*web.PAUSES, None):
            answer = self._call("GET", url, wanted=(200,))
            try:
                return msgspec.json.decode(answer.content, type=list[kind]), "next" in answer.links  # type: ignore[valid-type]
            except (msgspec.DecodeError, RecursionError) as error:
                # An answer that was cut in its header looks empty.
                why = error
        raise ToolError(f"{url}: not an answer of GitHub's API: {why}", "check the API's URL, or try again later")

    def _call(
        self,
        method: str,
        url: str,
        *,
        wanted: Collection[int],
        body: bytes | Path | None = None,
        content: str = "application/json",
        accept: str = "application/vnd.github+json",
    ) -> requests.Response:
        """web.call with the token; it also waits for rate limits and explains a refusal."""
        for _ in range(LIMITS):
            answer = web.call(
                self._session,
                method,
                url,
                headers=_headers(content if body is not None else None, accept),
                body=body,
                wanted={*wanted, *MOVED, 401, 403, 404, 422, 429},
                auth=self._auth,
                redirects=False,
            )
            if answer.status_code in wanted:
                return answer
            seconds = _limit(answer)
            if seconds is None or seconds > LIMIT_S:
                break
            time.sleep(seconds)
        raise self._explained(answer)

    def _explained(self, answer: requests.Response) -> MinguestError:
        why = web.refusal(answer).message
        if _limit(answer) is not None:
            return ToolError(f"{self._place}: a rate limit: {why}", f"in {_limit(answer):.0f} s, {AGAIN}")
        match answer.status_code:
            case 401:
                return UserError(f"{self._place}: GitHub does not accept the token: {why}", PERMISSION)
            case status if status in MOVED:
                return UserError(f"{self._place}: has moved: {why}", "use its new name")
            case 403:
                return UserError(f"{self._place}: the token lacks a permission: {why}", PERMISSION)
            case 404:
                return UserError(f"{self._place}: no such repository, or the token cannot read it: {why}", PERMISSION)
        return web.refusal(answer)


def _headers(content: str | None = "application/json", accept: str = "application/vnd.github+json") -> dict[str, str]:
    return {"Accept": accept, "X-GitHub-Api-Version": VERSION} | ({"Content-Type": content} if content else {})


def _limit(answer: requests.Response) -> float | None:
    """Seconds to wait if an answer says that a rate limit was exceeded, else None."""
    if answer.status_code not in (403, 429):
        return None
    if (after := web.retry_after(answer)) is not None:
        return after
    reset = answer.headers.get("X-RateLimit-Reset", "")
    if answer.headers.get("X-RateLimit-Remaining") == "0" and reset.isascii() and reset.isdigit():
        return max(0.0, float(reset) - time.time())
    return UNSAID_S if answer.status_code == 429 or "secondary rate limit" in answer.text else None


def _tag(release: layout.Release) -> str:
    return f"{release.facts.name}-{release.facts.version}"


def _text(release: layout.Release) -> dict[str, object]:
    """The fields of a release at GitHub, without its files."""
    notes = release.item(layout.NOTES)
    return {
        "tag_name": _tag(release),
        "name": _tag(release),
        "body": (release.folder / notes.name).read_text(encoding="utf-8") if notes else "",
        "prerelease": versions.prerelease(release.facts.version),
    }


def _begin(repository: _Repository, release: layout.Release, say: Callable[[str], None]) -> tuple[_Release, list[str]]:
    """The release of this tag, public or a draft, created if missing; and the public versions of this name."""
    tag, start = _tag(release), f"{release.facts.name}-"
    for pause in (0.0, *web.PAUSES, 0.0):
        time.sleep(pause)
        every = repository.releases()
        # A public one first, then the oldest draft.
        found = sorted((each for each in every if each.tag_name == tag), key=lambda each: (each.draft, each.id))
        if found:
            for other in found[1:]:
                say(f"{other.html_url}: another draft of {tag}, not used; delete it")
            public = [each.tag_name for each in every if each.tag_name.startswith(start) and not each.draft]
            return found[0], [each.removeprefix(start) for each in public]
        # The next round looks for it in any case: the draft may exist although its answer was lost.
        why = repository.create({**_text(release), "draft": True}) or "it is not in the list of releases"
    raise ToolError(f"{tag}: GitHub created no draft: {why}", AGAIN)


def _fill(
    repository: _Repository, release: layout.Release, found: _Release, say: Callable[[str], None]
) -> list[layout.Item]:
    """Give a draft the files of the release; returns those that were sent."""
    there = {asset.name: asset for asset in repository.assets(found)}
    sent = []
    for item in release.items:
        asset = there.pop(item.name, None)
        if asset and _right(repository, asset, item):
            continue
        if asset:
            repository.remove(asset)
        _send(repository, release, found, item)
        say(f"{_tag(release)}: {item.name}: {item.size} bytes")
        sent.append(item)
    for asset in there.values():
        say(f"{_tag(release)}: {asset.name}: removed: another run left it")
        repository.remove(asset)
    return sent


def _send(repository: _Repository, release: layout.Release, found: _Release, item: layout.Item) -> None:
    """Upload one file, also after a cut upload of it."""
    for _ in range(ROUNDS):
        if repository.upload(found, item, release.folder / item.name):
            return
        # Perhaps only the answer was cut, and the upload is complete.
        for asset in repository.assets(found):
            if asset.name == item.name:
                if _right(repository, asset, item):
                    return
                repository.remove(asset)
    raise ToolError(
        f"{_tag(release)}: {item.name}: GitHub reported {ROUNDS} times that it exists, but it does not", AGAIN
    )


def _right(repository: _Repository, asset: _Asset, item: layout.Item) -> bool:
    """Whether a file at GitHub is right, by the digest that GitHub reports; without one, the file is downloaded."""
    if asset.state != "uploaded" or asset.size != item.size:
        return False
    return (asset.digest or f"sha256:{_sha256(repository, asset)}") == f"sha256:{item.sha256}"


def _sha256(repository: _Repository, asset: _Asset) -> str:
    return hashlib.sha256(repository.download(asset)).hexdigest()


def _check_same(repository: _Repository, release: layout.Release, found: _Release, place: Place) -> None:
    """UserError if a public release has other files."""
    there = {asset.name: asset for asset in repository.assets(found)}
    wanted = {item.name: item for item in release.items}
    other = there.keys() ^ wanted.keys() or {
        name for name, item in wanted.items() if not _right(repository, there[name], item)
    }
    if other:
        raise UserError(
            f"{place}: {release.facts.version} is already published with other content ({', '.join(sorted(other))})",
            "make a new version: a published one never changes",
        )


def _check_draft(repository: _Repository, release: layout.Release, found: _Release, place: Place) -> None:
    """Read every file back. ToolError if one differs from what was sent; the next run sends it again."""
    there = {asset.name: asset for asset in repository.assets(found)}
    for item in release.items:
        asset = there.get(item.name)
        digest = _sha256(repository, asset) if asset else "missing"
        if digest != item.sha256:
            if asset:
                repository.remove(asset)
            raise ToolError(
                f"{place}: {item.name} is not as it was sent (SHA-256 {digest}, expected {item.sha256}); the"
                " release stays a draft",
                AGAIN,
            )


def _address(found: _Release, release: layout.Release) -> str:
    """The page of the public release: the draft's page has another address, which disappears with the draft."""
    return f"{found.html_url.rsplit('/tag/', 1)[0]}/tag/{_tag(release)}"
