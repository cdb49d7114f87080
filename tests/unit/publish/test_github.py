# SPDX-License-Identifier: Apache-2.0
"""Publishing to GitHub as its REST API is described (tests/fake_github.py), with every fault at every request."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from minguest.publish import github
from minguest.release import layout
from minguest.util import web
from minguest.util.errors import ToolError, UserError
from tests import fake_github, fake_release, faults

PLACE = github.Place("octocat", "guests")
TAG = "default-4.12-1.0"
FILES = 5
# Of a first publication: look, make the draft, look again, list its files, send them, list them, read each back from
# two hosts, publish.
REQUESTS = 4 + FILES + 1 + 2 * FILES + 1

FAULTS: dict[str, faults.Fault] = {
    "no server": "no server",
    "no answer": "no answer",
    "half an answer": "half an answer",
    "half a request": "half a request",
    "500": 500,
    "502": 502,
    "secondary rate limit": faults.Answer(403, {"Retry-After": "0"}, b'{"message": "secondary rate limit"}'),
    "429": faults.Answer(429, {"Retry-After": "0"}),
}


class Hub:
    """The fake GitHub, the proxy that publications go through, and what was said."""

    def __init__(self, server: fake_github.GitHub, proxy: faults.Proxy) -> None:
        self.server = server
        self.proxy = proxy
        self.said: list[str] = []

    def publish(self, release: layout.Release, token: str | None = fake_github.WRITER) -> layout.Published:
        return github.publish(release, PLACE, token, f"http://{self.proxy.address}", self.said.append)

    def calm(self) -> None:
        """No faults from now on, and what was seen is forgotten."""
        self.proxy.seen.clear()
        self.proxy.fault = lambda number, seen: None

    def requests(self, method: str) -> list[str]:
        return [seen.path for seen in self.proxy.seen if seen.method == method]

    def holds(self, release: layout.Release) -> bool:
        """Whether this release is public with its files, and there is nothing else."""
        [only] = self.server.releases
        contents = {item.name: (release.folder / item.name).read_bytes() for item in release.items}
        return not only["draft"] and only["tag_name"] == TAG and self.server.files(only) == contents

    def draft(self, release: layout.Release) -> dict[str, Any]:
        """Have a draft with all of its files."""
        made = self.server.add(TAG, draft=True)
        for item in release.items:
            self.server.attach(made, item.name, (release.folder / item.name).read_bytes(), item.media_type)
        return made


@pytest.fixture
def hub() -> Iterator[Hub]:
    with fake_github.github() as server, faults.proxy(server.address) as proxy:
        yield Hub(server, proxy)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "PAUSES", (0, 0, 0, 0))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> layout.Release:
    return fake_release.make(tmp_path_factory.mktemp("release") / "1.0")


def test_a_release_is_published(hub: Hub, release: layout.Release) -> None:
    published = hub.publish(release)
    assert hub.holds(release)
    assert published == layout.Published(
        f"https://github.com/octocat/guests/releases/tag/{TAG}", FILES, sum(item.size for item in release.items), 0
    )
    [only] = hub.server.releases
    assert (only["name"], only["body"], only["prerelease"]) == (TAG, fake_release.NOTES, False)
    assert {each["name"]: each["content_type"] for each in only["assets"]} == {
        item.name: item.media_type for item in release.items
    }
    assert len(hub.proxy.seen) == REQUESTS
    assert hub.proxy.seen[-1].method == "PATCH"


def test_the_token_goes_to_github_alone_and_is_not_said(hub: Hub, release: layout.Release) -> None:
    hub.publish(release)
    assert {"authorization" in seen.headers for seen in hub.proxy.seen if "/storage/" in seen.path} == {False}
    assert {seen.headers.get("authorization") for seen in hub.proxy.seen if "/storage/" not in seen.path} == {
        f"Bearer {fake_github.WRITER}"
    }
    assert not any(fake_github.WRITER in line for line in hub.said)


def test_netrc_does_not_overrule_the_token(
    hub: Hub, release: layout.Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login octocat password old\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    hub.publish(release)
    assert hub.holds(release)  # the storage also refuses a request with a password


def test_the_same_again_sends_nothing(hub: Hub, release: layout.Release) -> None:
    where = hub.publish(release).where
    hub.calm()
    assert hub.publish(release) == layout.Published(where, 0, 0, FILES)
    assert {seen.method for seen in hub.proxy.seen} == {"GET"}


@pytest.mark.parametrize("digests", [True, False])
def test_other_content_under_the_same_version_is_refused(
    hub: Hub, release: layout.Release, tmp_path: Path, digests: bool
) -> None:
    hub.server.digests = digests
    hub.publish(release)
    hub.calm()
    kernel = (release.folder / "bzImage").read_bytes()
    other = fake_release.make(tmp_path / "other", changes={"bzImage": bytes(len(kernel))})
    with pytest.raises(
        UserError,
        match=r"(?s)1\.0 is already published with other content \(SHA256SUMS, SHA256SUMS\.sig, bzImage\)"
        ".*make a new version: a published one never changes",
    ):
        hub.publish(other)
    assert {seen.method for seen in hub.proxy.seen} == {"GET"}
    assert hub.holds(release)


def test_a_file_more_or_less_is_other_content(hub: Hub, release: layout.Release, tmp_path: Path) -> None:
    hub.publish(release)
    with pytest.raises(UserError, match=r"other content \(SHA256SUMS\.sig\)"):
        (fake_release.make(tmp_path / "unsigned").folder / layout.SIGNATURE).unlink()
        hub.publish(layout.load(tmp_path / "unsigned"))


@pytest.mark.parametrize("digests", [True, False])
def test_a_draft_is_gone_on_with(hub: Hub, release: layout.Release, digests: bool) -> None:
    hub.server.digests = digests
    draft = hub.draft(release)
    for asset in list(draft["assets"]):
        if asset["name"] == "bzImage":  # of another content and the same size
            draft["assets"].remove(asset)
            hub.server.attach(draft, "bzImage", bytes(asset["size"]), asset["content_type"])
        if asset["name"] == "NOTES.md":
            asset["state"] = "starter"
        if asset["name"] == "release.json":
            draft["assets"].remove(asset)
    hub.server.attach(draft, "left", b"of another run", "text/plain")
    published = hub.publish(release)
    assert hub.holds(release)
    assert (published.uploaded, published.kept) == (3, 2)
    assert draft["body"] == fake_release.NOTES
    assert any("left: removed: another run left it" in line for line in hub.said)


def test_one_of_two_drafts_is_used_and_the_other_named(hub: Hub, release: layout.Release) -> None:
    first, second = hub.draft(release), hub.draft(release)
    hub.publish(release)
    assert (first["draft"], second["draft"]) == (False, True)
    assert any(f"{second['id']:020x}: another draft" in line for line in hub.said)


def test_a_draft_on_another_page_is_found(hub: Hub, release: layout.Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(github, "PAGE", 2)
    draft = hub.draft(release)
    for number in range(4):
        hub.server.add(f"v{number}")
    assert hub.publish(release).uploaded == 0
    assert not draft["draft"]
    assert hub.requests("POST") == []


@pytest.mark.parametrize(
    ("version", "others", "prerelease", "latest"),
    [
        ("1.0", [], False, True),
        ("1.0", ["default-4.12-0.9", "default-6.12-2.0", "v3"], False, True),
        ("1.0", ["default-4.12-1.1"], False, False),
        ("1.1rc1", ["default-4.12-1.0"], True, False),
        ("1.1-nightly.1", [], True, False),
    ],
)
def test_prereleases_and_the_latest(
    hub: Hub, tmp_path: Path, version: str, others: list[str], prerelease: bool, latest: bool
) -> None:
    for tag in others:
        hub.server.add(tag)
    hub.publish(fake_release.make(tmp_path / version, version))
    [made] = [each for each in hub.server.releases if each["tag_name"] == f"default-4.12-{version}"]
    assert (made["prerelease"], made["latest"]) == (prerelease, latest)


def nth(at: int) -> faults.Fault:
    """One kind for each request, for the time that all would take; the next test has every kind at every request."""
    return list(FAULTS.values())[at % len(FAULTS)]


@pytest.mark.parametrize("at", range(REQUESTS))
def test_a_fault_at_any_request_is_got_over(hub: Hub, release: layout.Release, at: int) -> None:
    hub.proxy.fault = lambda number, seen: nth(at) if number == at else None
    published = hub.publish(release)
    assert published.uploaded + published.kept == FILES
    assert hub.holds(release)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_at_every_first_try_is_got_over(hub: Hub, release: layout.Release, name: str) -> None:
    tried: set[tuple[str, str]] = set()

    def first(number: int, seen: faults.Seen) -> faults.Fault | None:
        if (seen.method, seen.path) in tried:
            return None
        tried.add((seen.method, seen.path))
        return FAULTS[name]

    hub.proxy.fault = first
    published = hub.publish(release)
    assert published.uploaded + published.kept == FILES
    assert hub.holds(release)


@pytest.mark.parametrize("name", ["no answer", "half an answer"])
def test_a_draft_whose_answer_was_lost_is_not_made_twice(hub: Hub, release: layout.Release, name: str) -> None:
    hub.proxy.fault = lambda number, seen: FAULTS[name] if number == 1 else None
    hub.publish(release)
    assert hub.holds(release)
    assert hub.requests("POST").count(fake_github.REPOSITORY) == 1


def test_a_cut_upload_leaves_nothing(hub: Hub, release: layout.Release) -> None:
    names: list[str] = []

    def once_each(number: int, seen: faults.Seen) -> faults.Fault | None:
        if seen.path.startswith("/uploads") and seen.path not in names:
            names.append(seen.path)
            return "half a request"
        return None

    hub.proxy.fault = once_each
    assert hub.publish(release).uploaded == FILES
    assert len(names) == len(hub.requests("DELETE")) == FILES
    assert hub.holds(release)


@pytest.mark.parametrize("at", range(REQUESTS))
def test_a_fault_that_stays_leaves_nothing_visible(hub: Hub, release: layout.Release, at: int) -> None:
    hub.proxy.fault = lambda number, seen: nth(at) if number >= at else None
    with pytest.raises((ToolError, UserError)):
        hub.publish(release)
    assert hub.server.public() == []
    there = sum(len(hub.server.files(each)) for each in hub.server.releases)
    hub.calm()
    published = hub.publish(release)
    assert published.kept >= there - 1  # the last one may have been cut
    assert hub.holds(release)


def test_a_lost_answer_to_the_publication_itself(hub: Hub, release: layout.Release) -> None:
    hub.proxy.fault = lambda number, seen: "no answer" if seen.method == "PATCH" else None
    with pytest.raises(ToolError, match=r"PATCH .*\(tried 5 times\)"):
        hub.publish(release)
    assert hub.publish(release).uploaded == 0
    assert hub.holds(release)


def test_what_github_damaged_is_found_and_sent_again(hub: Hub, release: layout.Release) -> None:
    hub.proxy.change = lambda seen, answer: (
        msgspec.structs.replace(answer, body=bytes(len(answer.body))) if "/storage/" in seen.path else answer
    )
    digest = hashlib.sha256((release.folder / "NOTES.md").read_bytes()).hexdigest()
    with pytest.raises(ToolError, match=rf"NOTES\.md is not as it was sent .*expected {digest}.*stays a draft"):
        hub.publish(release)
    assert hub.server.public() == []
    hub.proxy.change = lambda seen, answer: answer
    assert hub.publish(release).uploaded == 1
    assert hub.holds(release)


def test_what_is_sent_and_not_listed_is_not_published(hub: Hub, release: layout.Release) -> None:
    hub.proxy.change = lambda seen, answer: (
        msgspec.structs.replace(answer, body=b"[]") if seen.path.partition("?")[0].endswith("/assets") else answer
    )
    with pytest.raises(ToolError, match=r"NOTES\.md is not as it was sent \(SHA-256 missing"):
        hub.publish(release)
    assert hub.server.public() == []


def test_a_name_that_stays_taken_is_given_up(hub: Hub, release: layout.Release) -> None:
    taken = faults.Answer(422, {}, b'{"errors": [{"code": "already_exists"}]}')
    hub.proxy.fault = lambda number, seen: taken if seen.path.startswith("/uploads") else None
    with pytest.raises(ToolError, match=r"NOTES\.md: GitHub reported 4 times that it exists, but it does not"):
        hub.publish(release)


def test_another_422_is_said(hub: Hub, release: layout.Release) -> None:
    hub.proxy.fault = lambda number, seen: faults.Answer(422, {}, b"too big") if seen.method == "POST" else None
    with pytest.raises(ToolError, match=r"HTTP 422 Unprocessable.*: too big"):
        hub.publish(release)
    hub.draft(release)["assets"].pop()
    with pytest.raises(ToolError, match=r"POST http://.*/uploads/.*HTTP 422 Unprocessable.*: too big"):
        hub.publish(release)


@pytest.mark.parametrize(
    ("token", "place", "said"),
    [
        (None, PLACE, r"github:octocat/guests: no token to publish with(?s:.*)GITHUB_TOKEN"),
        ("", PLACE, r"no token to publish with"),
        ("0ld", PLACE, r"GitHub does not accept the token: GET .*HTTP 401.*Bad credentials"),
        (fake_github.READER, PLACE, r"the token lacks a permission: POST .*HTTP 403.*Resource not accessible"),
        (fake_github.WRITER, github.Place("octocat", "none"), r"octocat/none: no such repository, or"),
    ],
)
def test_what_is_refused_says_what_is_needed(
    hub: Hub, release: layout.Release, token: str | None, place: github.Place, said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        github.publish(release, place, token, f"http://{hub.proxy.address}", hub.said.append)
    assert "`permissions: contents: write`" in caught.value.remedy
    assert not token or token not in str(caught.value)
    assert hub.server.releases == []


def test_a_repository_that_moved(hub: Hub, release: layout.Release) -> None:
    hub.proxy.fault = lambda number, seen: faults.Answer(301, {"Location": "http://127.0.0.1:9/"})
    with pytest.raises(UserError, match=r"octocat/guests: has moved(?s:.*)use its new name"):
        hub.publish(release)
    assert len(hub.proxy.seen) == 1


@pytest.mark.parametrize(
    ("answer", "waits"),
    [
        (faults.Answer(429, {"Retry-After": "7"}), 7),
        (faults.Answer(403, {"Retry-After": "7"}), 7),
        (faults.Answer(403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1009"}), 9),
        (faults.Answer(403, {}, b"You have exceeded a secondary rate limit."), 60),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_rate_limit_is_waited_for(
    hub: Hub, release: layout.Release, monkeypatch: pytest.MonkeyPatch, answer: faults.Answer, waits: int, method: str
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setattr("time.time", lambda: 1000.0)
    left = [answer]
    hub.proxy.fault = lambda number, seen: left.pop() if left and seen.method == method else None
    hub.publish(release)
    assert hub.holds(release)
    assert [seconds for seconds in slept if seconds] == [waits]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_long_rate_limit_is_said(hub: Hub, release: layout.Release, method: str) -> None:
    limit = faults.Answer(403, {"Retry-After": "3600"}, b"limited")
    hub.proxy.fault = lambda number, seen: limit if seen.method == method else None
    with pytest.raises(ToolError, match=r"a rate limit: .*limited(?s:.*)in 3600 s, run the same command again"):
        hub.publish(release)


def test_an_address_that_is_not_the_api(hub: Hub, release: layout.Release) -> None:
    hub.proxy.fault = lambda number, seen: faults.Answer(200, {}, b"<html>")
    with pytest.raises(ToolError, match=r"not an answer of GitHub's API(?s:.*)check the API's URL"):
        hub.publish(release)


def test_places() -> None:
    assert github.parse("github:octocat/Hello_World.1") == github.Place("octocat", "Hello_World.1")
    assert str(github.parse("github:octocat/guests")) == "github:octocat/guests"


@pytest.mark.parametrize(
    "text", ["github:", "github:octocat", "github:o/r/s", "github:o/..", "github:-o/r", "github://o/r", "o/r"]
)
def test_no_places(text: str) -> None:
    with pytest.raises(UserError, match=r"is not a repository at GitHub(?s:.*)github:OWNER/REPO"):
        github.parse(text)
