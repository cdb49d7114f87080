# SPDX-License-Identifier: Apache-2.0
"""Publishing to a real store on loopback: OpenStack Swift with its S3 interface (PyPI's `swift`).

Swift checks the SHA-256 of what it is sent, but does not give it back; that half is answered by the tests.
"""

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import botocore.retries.standard  # type: ignore[import-untyped]
import msgspec
import pytest

from minguest.publish import s3, versions
from minguest.release import layout
from minguest.util.errors import ToolError, UserError
from tests import ROOT, fake_release, faults

BUCKET = "releases"
NEW_SESSION = boto3.session.Session
# A session reads a large description of S3 from the disk: once is enough.
SESSION = boto3.session.Session("test:tester", "testing", region_name="us-east-1")
# A release has five files; its publication writes two pointers too.
FILES, ALL = 5, 7
# Of a first publication: two listings, and whether its sums and the pointers are there.
REQUESTS = ALL + 5


def error(status: int, code: str) -> faults.Answer:
    """An error as S3 writes it."""
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>for the test</Message></Error>"
    return faults.Answer(status, {"Content-Type": "application/xml"}, text.encode())


FAULTS: dict[str, faults.Fault] = {
    "no server": "no server",
    "no answer": "no answer",
    "half an answer": "half an answer",
    "half a request": "half a request",
    "500": error(500, "InternalError"),
    "503": error(503, "SlowDown"),
}
# Half an answer is enough to a PUT, so it does not stop a publication.
STAYS = {name: fault for name, fault in FAULTS.items() if name != "half an answer"} | {
    "403": error(403, "AccessDenied"),
    "404": error(404, "NoSuchBucket"),
}


class Store:
    """Swift's bucket, a fresh prefix in it, and the proxy that publications go through."""

    def __init__(self, port: int, proxy: faults.Proxy, place: s3.Place) -> None:
        self.proxy = proxy
        self.place = place
        self.direct: Any = SESSION.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
        self.said: list[str] = []

    def publish(self, release: layout.Release) -> layout.Published:
        return s3.publish(release, self.place, self.said.append, f"http://{self.proxy.address}")

    def calm(self) -> None:
        """No faults from now on, and what was seen is forgotten."""
        self.proxy.seen.clear()
        self.proxy.fault = lambda number, seen: None

    def at(self, key: str) -> dict[str, str]:
        return {"Bucket": BUCKET, "Key": f"{self.place.prefix}default-4.12/{key}"}

    def put(self, key: str, content: bytes) -> None:
        self.direct.put_object(**self.at(key), Body=content)

    def read_json(self, key: str) -> Any:
        return json.loads(self.direct.get_object(**self.at(key))["Body"].read())

    def md5s(self) -> dict[str, str]:
        """What is there, by key; an ETag is the MD5 here."""
        found = self.direct.list_objects_v2(Bucket=BUCKET, Prefix=self.place.prefix).get("Contents", ())
        return {each["Key"].removeprefix(self.at("")["Key"]): each["ETag"].strip('"') for each in found}

    def holds(self, release: layout.Release) -> bool:
        """Whether a release and the two pointers are there, and no more."""
        there = self.md5s()
        pointers = [there.pop("latest.json", ""), there.pop("index.json", "")]
        wanted = {
            f"{release.facts.version}/{item.name}": hashlib.md5((release.folder / item.name).read_bytes()).hexdigest()
            for item in release.items
        }
        return all(pointers) and there == wanted

    def requests(self, method: str) -> list[str]:
        return [seen.path for seen in self.proxy.seen if seen.method == method]


@pytest.fixture(scope="module")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("swift")
    with (folder / "stderr").open("wb") as stderr:
        command = [sys.executable, "-W", "ignore", str(ROOT / "tests" / "swift_server.py"), str(folder)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr) as program:
            assert program.stdin and program.stdout
            port = program.stdout.readline()
            assert port, (folder / "stderr").read_text()
            SESSION.client("s3", endpoint_url=f"http://127.0.0.1:{int(port)}").create_bucket(Bucket=BUCKET)
            yield int(port)
            program.stdin.close()


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test:tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(botocore.retries.standard.ExponentialBackoff, "delay_amount", lambda *_: 0)
    monkeypatch.setattr(boto3.session, "Session", lambda: SESSION)


@pytest.fixture
def store(swift: int, request: pytest.FixtureRequest) -> Iterator[Store]:
    prefix = re.sub(r"\W", "-", request.node.name)
    with faults.proxy(f"127.0.0.1:{swift}") as proxy:
        yield Store(swift, proxy, s3.Place(BUCKET, f"{prefix}/"))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> layout.Release:
    return fake_release.make(tmp_path_factory.mktemp("release") / "1.0")


def test_a_release_is_published(store: Store, release: layout.Release) -> None:
    published = store.publish(release)
    assert store.holds(release)
    assert (published.where, published.uploaded, published.kept) == (f"{store.place}default-4.12/1.0", ALL, 0)
    assert published.uploaded_bytes > sum(item.size for item in release.items)
    assert store.read_json("latest.json") == {"version": "1.0"}
    wanted = {"schema": 1, "name": "default-4.12", "latest": "1.0", "versions": ["1.0"]}
    assert store.read_json("index.json") == wanted
    assert [path.rsplit("/", 1)[1] for path in store.requests("PUT")][-4:] == [
        "SHA256SUMS.sig",
        "SHA256SUMS",
        "latest.json",
        "index.json",
    ]


def test_media_types(store: Store, release: layout.Release) -> None:
    store.publish(release)
    assert {
        key.removeprefix("1.0/"): store.direct.head_object(**store.at(key))["ContentType"] for key in store.md5s()
    } == {
        **{item.name: item.media_type for item in release.items},
        versions.LATEST: "application/json",
        versions.INDEX: "application/json",
    }


def test_the_same_again_sends_nothing(store: Store, release: layout.Release) -> None:
    store.publish(release)
    store.calm()
    published = store.publish(release)
    assert (published.uploaded, published.uploaded_bytes, published.kept) == (0, 0, ALL)
    assert store.requests("PUT") == store.requests("DELETE") == []


def test_other_content_under_the_same_version_is_refused(store: Store, release: layout.Release, tmp_path: Path) -> None:
    store.publish(release)
    store.calm()
    other = fake_release.make(tmp_path / "other", changes={"bzImage": b"another kernel"})
    with pytest.raises(UserError, match=r"1\.0 is already published with other content(?s:.*)make a new version"):
        store.publish(other)
    assert store.requests("PUT") == store.requests("DELETE") == []
    assert store.holds(release)


def test_another_signature_is_refused_too(store: Store, release: layout.Release, tmp_path: Path) -> None:
    store.publish(release)
    other = fake_release.make(tmp_path / "other")
    (other.folder / layout.SIGNATURE).write_bytes(b"of another key")
    with pytest.raises(UserError, match=r"other content \(SHA256SUMS\.sig differs\)"):
        store.publish(layout.load(other.folder))
    assert store.holds(release)


def test_what_another_run_left_is_replaced_and_removed(store: Store, release: layout.Release, tmp_path: Path) -> None:
    unfinished = fake_release.make(tmp_path / "other", changes={"bzImage": b"another kernel", "more": b"?"})
    store.publish(unfinished)
    store.direct.delete_object(**store.at("1.0/SHA256SUMS"))
    published = store.publish(release)
    assert store.holds(release)
    assert published.kept == 2 + 2  # what is equal in both, and the pointers
    assert any("1.0/more: removed: another run left it" in line for line in store.said)


def test_a_signature_of_another_run_does_not_stay_with_an_unsigned_release(
    store: Store, release: layout.Release, tmp_path: Path
) -> None:
    store.put("1.0/SHA256SUMS.sig", b"of other sums")
    unsigned = fake_release.make(tmp_path / "unsigned")
    (unsigned.folder / layout.SIGNATURE).unlink()
    unsigned = layout.load(unsigned.folder)
    store.publish(unsigned)
    assert store.holds(unsigned)


def test_a_published_signature_stays_where_the_folder_lost_it(
    store: Store, release: layout.Release, tmp_path: Path
) -> None:
    store.publish(release)
    unsigned = fake_release.make(tmp_path / "unsigned")
    (unsigned.folder / layout.SIGNATURE).unlink()
    assert store.publish(layout.load(unsigned.folder)).uploaded == 0
    assert store.holds(release)


def test_a_damaged_file_of_a_published_version_is_mended(store: Store, release: layout.Release) -> None:
    store.publish(release)
    store.put("1.0/bzImage", bytes(100_000))
    store.direct.delete_object(**store.at("1.0/NOTES.md"))
    assert store.publish(release).uploaded == 2
    assert store.holds(release)


def test_a_copy_by_another_program_counts(store: Store, release: layout.Release) -> None:
    for item in release.items:
        store.put(f"1.0/{item.name}", (release.folder / item.name).read_bytes())
    assert store.publish(release).kept == FILES


def test_the_index_has_what_is_whole_and_the_latest_is_the_newest(store: Store, tmp_path: Path) -> None:
    for version in ("1.9", "1.10", "1.2", "2.0rc1"):
        store.publish(fake_release.make(tmp_path / version, version))
    store.put("3.0/SHA256SUMS.sig", b"of an unfinished one")
    store.put("4.0/deeper/SHA256SUMS", b"of something else")
    store.publish(fake_release.make(tmp_path / "1.3", "1.3"))
    assert store.read_json("latest.json") == {"version": "1.10"}
    assert store.read_json("index.json")["versions"] == ["1.2", "1.3", "1.9", "1.10", "2.0rc1"]


def test_many_versions_are_listed_in_pages(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PAGE", 3)
    for version in ("1.0", "1.1"):
        store.publish(fake_release.make(tmp_path / version, version))
    assert store.read_json("index.json")["versions"] == ["1.0", "1.1"]
    assert any("continuation-token" in path for path in store.requests("GET"))


def test_a_checksum_that_the_store_keeps_is_believed_before_the_metadata(store: Store, release: layout.Release) -> None:
    store.publish(release)
    # As Amazon S3 answers where x-amz-checksum-mode is ENABLED; Swift does not.
    checksum = base64.b64encode(bytes(32)).decode()
    store.proxy.change = lambda seen, answer: (
        msgspec.structs.replace(answer, headers={**answer.headers, "x-amz-checksum-sha256": checksum})
        if seen.headers.get("x-amz-checksum-mode") == "ENABLED"
        else answer
    )
    with pytest.raises(UserError, match=r"SHA256SUMS differs"):
        store.publish(release)


def test_the_store_is_given_the_sum_and_checks_it(store: Store, release: layout.Release, tmp_path: Path) -> None:
    changed = fake_release.make(tmp_path / "changed")
    (changed.folder / "bzImage").write_bytes(bytes(100_000))  # after it was loaded
    with pytest.raises(ToolError, match="BadDigest"):
        store.publish(changed)
    assert "1.0/SHA256SUMS" not in store.md5s()


def test_an_empty_answer_is_no_empty_listing(store: Store, release: layout.Release) -> None:
    store.proxy.change = lambda seen, answer: faults.Answer(200) if seen.method == "GET" else answer
    with pytest.raises(ToolError, match="the store's listing is cut short"):
        store.publish(release)


def nth(kinds: dict[str, faults.Fault], at: int) -> faults.Fault:
    """One kind for each request, for the time that all would take; the next test has every kind at every request."""
    return list(kinds.values())[at % len(kinds)]


@pytest.mark.parametrize("at", range(REQUESTS))
def test_a_fault_at_any_request_is_got_over(store: Store, release: layout.Release, at: int) -> None:
    store.proxy.fault = lambda number, seen: nth(FAULTS, at) if number == at else None
    published = store.publish(release)
    assert len(store.proxy.seen) > REQUESTS or nth(FAULTS, at) == "half an answer"
    assert (published.uploaded, published.kept) == (ALL, 0)
    assert store.holds(release)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_at_every_first_try_is_got_over(store: Store, release: layout.Release, name: str) -> None:
    store.proxy.fault = lambda number, seen: FAULTS[name] if number % 2 == 0 else None
    published = store.publish(release)
    assert (published.uploaded, published.kept) == (ALL, 0)
    assert store.holds(release)


@pytest.mark.parametrize("at", range(REQUESTS))
def test_a_fault_that_stays_leaves_nothing_half_visible(
    store: Store, release: layout.Release, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "ATTEMPTS", 2)
    store.proxy.fault = lambda number, seen: nth(STAYS, at) if number >= at else None
    with pytest.raises((ToolError, UserError)):
        store.publish(release)
    there = store.md5s()
    assert "1.0/SHA256SUMS" not in there or len(there) >= FILES
    store.calm()
    published = store.publish(release)
    assert (published.uploaded, published.kept) == (ALL - len(there), len(there))
    assert store.holds(release)


def test_what_is_refused_says_what_is_needed(store: Store, release: layout.Release) -> None:
    store.proxy.fault = lambda number, seen: 403
    with pytest.raises(UserError, match=r"s3://releases/.*the store refuses(?s:.*)these permissions: s3:ListBucket on"):
        store.publish(release)


def test_no_such_bucket(store: Store, release: layout.Release) -> None:
    store.place = s3.parse("s3://no-such-bucket")
    with pytest.raises(UserError, match="s3://no-such-bucket/: there is no bucket 'no-such-bucket'"):
        store.publish(release)


def test_wrong_keys_are_said_and_not_shown(
    store: Store, release: layout.Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "h0neyp0t")
    monkeypatch.setattr(boto3.session, "Session", NEW_SESSION)
    with pytest.raises(UserError, match=r"the store does not accept these keys(?s:.*)AWS_ACCESS_KEY_ID") as caught:
        store.publish(release)
    assert "h0neyp0t" not in f"{caught.value} {store.said}"


def test_no_keys(store: Store, release: layout.Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setattr(boto3.session, "Session", NEW_SESSION)
    with pytest.raises(UserError, match=r"Unable to locate credentials(?s:.*)set AWS_ACCESS_KEY_ID"):
        store.publish(release)


def test_nobody_answers(release: layout.Release) -> None:
    with pytest.raises(ToolError, match=r'Could not connect to the endpoint URL: "http://127\.0\.0\.1:9/'):
        s3.publish(release, s3.parse("s3://releases"), print, "http://127.0.0.1:9")


def test_an_endpoint_that_is_no_url(release: layout.Release) -> None:
    with pytest.raises(UserError, match=r"Invalid endpoint: 127(?s:.*)set AWS_ENDPOINT_URL to a URL with its scheme"):
        s3.publish(release, s3.parse("s3://releases"), print, "127.0.0.1:9")


def test_without_boto3(release: layout.Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(UserError, match=r"needs boto3(?s:.*)pip install 'minguest\[s3\]'"):
        s3.publish(release, s3.parse("s3://releases"), print)


@pytest.mark.parametrize(
    ("text", "bucket", "prefix"),
    [
        ("s3://releases", "releases", ""),
        ("s3://releases/", "releases", ""),
        ("s3://re.lea-ses/gpu/guests_1/", "re.lea-ses", "gpu/guests_1/"),
    ],
)
def test_places(text: str, bucket: str, prefix: str) -> None:
    assert s3.parse(text) == s3.Place(bucket, prefix)
    assert str(s3.parse(text)) == text.rstrip("/") + "/"


@pytest.mark.parametrize(
    "text", ["s3://", "s3://b", "s3:releases", "s3://Releases", "s3://releases//x", "s3://releases/.."]
)
def test_no_places(text: str) -> None:
    with pytest.raises(UserError, match=r"is not a place in an S3 store(?s:.*)s3://BUCKET"):
        s3.parse(text)
