# SPDX-License-Identifier: Apache-2.0
"""Publishing to Debian's docker-registry and reading back, over a proxy that breaks things."""

import base64
import hashlib
import itertools
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import msgspec
import oras.provider  # type: ignore[import-untyped]
import pytest
import requests

from minguest.publish import credentials, oci
from minguest.publish.credentials import Credentials
from minguest.publish.oci import Remote
from minguest.publish.registry import ACCEPT, INDEX, MANIFEST, Place, Repository, digest_of
from minguest.release import layout
from minguest.util import files, web
from minguest.util.errors import MinguestError, ToolError, UserError
from tests import registry as registries
from tests.damage import Damage, each_way
from tests.faults import Answer, Fault, Proxy, Seen, proxy

NOBODY = Credentials()
LOGIN = Credentials(registries.USER, registries.PASSWORD)
RANDOM = random.Random(11)
SMALL = {"bzImage": RANDOM.randbytes(3000), layout.SBOM: b'{"bomFormat": "CycloneDX"}'}
WHOLE = {
    **SMALL,
    "bzImage": RANDOM.randbytes(5_000_000),
    "initrd.img": RANDOM.randbytes(9000),
    "OVMF_CODE.fd": RANDOM.randbytes(4000),
    "empty": b"",
    "copy": b"twice",
    "other": b"twice",
    layout.PROVENANCE: b'{"payloadType": "provenance"}',
    layout.EVIDENCE: b'{"payloadType": "evidence"}',
}
NUMBER = itertools.count()
SESSION = requests.Session()
# A registry by its proxy.
DIRECT: dict[str, str] = {}


def release(
    folder: Path, contents: dict[str, bytes] = SMALL, version: str = "1.0", name: str = "guest-6.12"
) -> layout.Release:
    """A release whose files have that content; signed with something."""
    folder.mkdir()
    facts = layout.Facts(2, name, version, True, "guest", "6.12", "6.12.94", "2025.02-8", "0.1.0", None)
    contents = {**contents, layout.FACTS: msgspec.json.encode(facts)}
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    sums = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
    (folder / layout.SUMS).write_text(layout.render_sums(sums))
    (folder / layout.SIGNATURE).write_text("-----BEGIN SSH SIGNATURE-----\n")
    return layout.load(folder)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registries.registry(tmp_path_factory.mktemp("registry")) as made:
        yield made


@pytest.fixture(scope="module")
def front(address: str) -> Iterator[Proxy]:
    with proxy(address) as made:
        DIRECT[made.address] = address
        yield made


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "PAUSES", (0.0, 0.0, 0.0, 0.0))
    if "front" in request.fixturenames:
        request.getfixturevalue("front").reset()


@pytest.fixture
def place(front: Proxy) -> Place:
    """A repository that nobody used yet."""
    return new_place(front.address)


def new_place(address: str) -> Place:
    return Place(address, f"tests/guest-{next(NUMBER)}")


def publish(what: layout.Release, where: Place, who: Credentials = NOBODY) -> layout.Published:
    return oci.publish(what, where, who, lambda line: None)


def get(where: Place, path: str) -> requests.Response:
    """What the registry itself says, past the proxy."""
    url = f"http://{DIRECT[where.registry]}/v2/{where.repository}/{path}"
    return SESSION.get(url, headers={"Accept": ACCEPT}, timeout=10)


def tags(where: Place) -> set[str]:
    return set(get(where, "tags/list").json().get("tags") or ())


def same(what: layout.Release, remote: Remote, folder: Path) -> bool:
    """Whether all of a release comes back as it is."""
    folder.mkdir()
    for item in what.items:
        remote.save(item.name, item.sha256, item.size, 0, folder / item.name)
    return all((folder / item.name).read_bytes() == (what.folder / item.name).read_bytes() for item in what.items)


def whole(what: layout.Release, where: Place) -> bool:
    """Whether a registry has all of a release under its version, and all that refers to it."""
    manifest = get(where, f"manifests/{what.facts.version}").json()
    digest = digest_of(oci.render(what))
    listed = get(where, f"manifests/{digest.replace(':', '-')}").json()["manifests"]
    wanted = [kind for name, kind in oci.REFERRERS.items() if what.item(name)]
    referrers = [get(where, f"manifests/{each['digest']}").json() for each in listed]
    blobs = [manifest["config"], *manifest["layers"], *(layer for each in referrers for layer in each["layers"])]
    return (
        sorted(each["artifactType"] for each in listed) == sorted(wanted)
        and all(each["subject"]["digest"] == digest for each in referrers)
        and all(digest_of(get(where, f"blobs/{blob['digest']}").content) == blob["digest"] for blob in blobs)
    )


def at(number: int, kind: Fault) -> Callable[[int, Seen], Fault | None]:
    return lambda now, seen: kind if now == number else None


def since(number: int, kind: Fault) -> Callable[[int, Seen], Fault | None]:
    return lambda now, seen: kind if now >= number else None


def on(pattern: str, kind: Fault, times: int = 1) -> Callable[[int, Seen], Fault | None]:
    """A fault for the first so many requests like that, `METHOD path`."""
    left = itertools.count()

    def fault(number: int, seen: Seen) -> Fault | None:
        return kind if re.match(pattern, line(seen)) and next(left) < times else None

    return fault


def line(seen: Seen) -> str:
    return f"{seen.method} {seen.path}"


# Places and logins


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("oci://ghcr.io/owner/guest-4.12", Place("ghcr.io", "owner/guest-4.12")),
        ("oci://localhost:5000/guest:1.0", Place("localhost:5000", "guest", "1.0")),
        ("oci://[::1]:5000/a/b/c_d__e", Place("[::1]:5000", "a/b/c_d__e")),
        (f"oci://h/r@sha256:{'a' * 64}", Place("h", "r", None, f"sha256:{'a' * 64}")),
        (f"oci://h/r:t@sha256:{'a' * 64}", Place("h", "r", "t", f"sha256:{'a' * 64}")),
    ],
)
def test_a_place_is_parsed_and_written_the_same(text: str, place: Place) -> None:
    assert oci.parse(text) == place
    assert str(place) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ghcr.io/owner/guest", "it needs oci://"),
        ("oci://ghcr.io", "it needs oci://"),
        ("oci:///guest", "'' is not host"),
        ("oci://user@host/guest", "no user and no password"),
        ("oci://host:99999/guest", "'host:99999' is not host"),
        ("oci://host:0/guest", "'host:0' is not host"),
        ("oci://host/", "'' is not a repository"),
        ("oci://host/Guest", "'Guest' is not a repository"),
        ("oci://host/a//b", "'a//b' is not a repository"),
        ("oci://host/a/../b", "is not a repository"),
        (f"oci://host/{'a' * 256}", "is not a repository"),
        ("oci://host/guest:", "'' is not a tag"),
        ("oci://host/guest:a/b", "'a/b' is not a tag"),
        ("oci://host/guest@sha256:abc", "'sha256:abc' is not a digest"),
        ("oci://host/guest\n", "is not a repository"),
    ],
)
def test_what_is_no_place(text: str, why: str) -> None:
    with pytest.raises(UserError, match=re.escape(why)):
        oci.parse(text)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def config(path: Path, **content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_logins_are_found_in_files(tmp_path: Path) -> None:
    docker = config(
        tmp_path / "docker.json",
        auths={
            "host:5000": {"auth": encoded("me:with:colon")},
            "https://old.io/v1/": {"auth": encoded("old:secret")},
            "https://index.docker.io/v1/": {"auth": encoded("hub:secret")},
            "azure.io": {"auth": encoded("0000:"), "identitytoken": "opaque"},
            "nothing.io": {},
        },
        HttpHeaders={"User-Agent": "unknown keys are others' business"},
    )
    podman = config(tmp_path / "podman.json", auths={"host:5000": {"auth": encoded("second:x")}, "nothing.io": {}})
    places = [tmp_path / "missing.json", docker, podman]
    assert credentials.find(places, "host:5000") == Credentials("me", "with:colon", "", f"as me, {docker}")
    assert credentials.find([podman, docker], "host:5000").user == "second"
    assert credentials.find(places, "old.io").password == "secret"
    assert credentials.find(places, "docker.io").user == "hub"
    assert credentials.find(places, "azure.io").token == "opaque"
    assert "secret" not in repr(credentials.find(places, "old.io"))
    nobody = credentials.find(places, "nothing.io")
    assert (nobody.user, nobody.password, nobody.token, nobody.basic) == ("", "", "", None)
    assert nobody.origin == f"no credentials for nothing.io in {', '.join(map(str, places))}"


def test_logins_that_a_file_gives_wrongly(tmp_path: Path) -> None:
    path = config(tmp_path / "config.json", auths={"host": {"auth": "no base64 and secret"}})
    with pytest.raises(UserError, match="auth of host is not Base64") as refused:
        credentials.find([path], "host")
    assert "secret" not in str(refused.value)
    path.write_text('{"auths": [}')
    with pytest.raises(UserError, match=r"config\.json: not a file of registry credentials"):
        credentials.find([path], "host")


def test_logins_of_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def helper(name: str, script: str) -> None:
        path = tmp_path / f"docker-credential-{name}"
        path.write_text(f"#!/bin/sh\n{script}")
        path.chmod(0o755)

    helper("named", 'read host; echo "a warning" >&2; echo "{\\"Username\\": \\"$1\\", \\"Secret\\": \\"for $host\\"}"')
    helper("token", 'echo \'{"ServerURL": "x", "Username": "<token>", "Secret": "opaque"}\'')
    helper("empty", "echo credentials not found in native keychain; exit 1")
    helper("broken", "echo secret")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    path = config(
        tmp_path / "config.json",
        auths={"host": {"auth": encoded("file:x")}},
        credHelpers={"helped": "named", "tokens": "token", "gone": "missing", "bad": "broken"},
        credsStore="empty",
    )
    found = credentials.find([path], "helped")
    assert (found.user, found.password, found.origin) == ("get", "for helped", "as get, docker-credential-named")
    assert credentials.find([path], "tokens").token == "opaque"
    assert credentials.find([path], "host").user == "file"
    assert credentials.find([path], "other").origin == f"no credentials for other in {path}"
    assert "docker-credential-missing: no such program" in credentials.find([path], "gone").origin
    bad = credentials.find([path], "bad").origin
    assert "docker-credential-broken: its answer has no credentials" in bad
    assert "secret" not in bad
    assert (
        credentials.find([config(tmp_path / "store", credsStore="named")], "docker.io").password
        == f"for {credentials.HUB_LOGIN}"
    )


# The whole trip


def test_a_release_goes_there_and_comes_back(tmp_path: Path, front: Proxy, place: Place) -> None:
    what = release(tmp_path / "release", WHOLE)
    said: list[str] = []
    published = oci.publish(what, place, NOBODY, said.append)
    blobs = {item.sha256: item.size for item in what.items}
    manifests = [len(seen.sent) for seen in front.seen if seen.method == "PUT" and "/manifests/" in seen.path]
    # The release and four referrers; their list; two tags. One blob more is the empty config.
    assert len(manifests) == 1 + 4 + 1 + 2
    assert published.uploaded == len(blobs) + 1 + len(manifests)
    assert published.uploaded_bytes == sum(blobs.values()) + 2 + sum(manifests)
    assert published.kept == 0
    assert any(line.startswith("bzImage: 5.00 MB") for line in said)
    assert tags(place) >= {"1.0", "latest"}
    assert whole(what, place)

    assert oci.parse(published.where).tag == "1.0"
    for number, where in enumerate([place, Place(place.registry, place.repository, "1.0"), oci.parse(published.where)]):
        assert same(what, Remote(where, NOBODY), tmp_path / str(number))
    remote = Remote(place, NOBODY)
    assert remote.where == f"{place}:latest"
    assert remote.read("copy", 5) == b"twice"
    assert remote.read("empty", 0) == b""
    assert remote.read("missing", 5) is None
    with pytest.raises(UserError, match=r"bzImage has 5000000 bytes, more than the limit of 1000"):
        remote.read("bzImage", 1000)
    with pytest.raises(UserError, match="has no missing"):
        remote.save("missing", "0" * 64, 1, 0, tmp_path / "missing")
    with pytest.raises(UserError, match="its copy is not the file that SHA256SUMS names"):
        remote.save("copy", "0" * 64, 1, 0, tmp_path / "missing")
    copy = hashlib.sha256(WHOLE["copy"]).hexdigest()
    with pytest.raises(UserError, match="offers 5 bytes of copy instead of 4"):
        remote.save("copy", copy, 4, 0, tmp_path / "missing")
    with pytest.raises(UserError, match="offers 5 bytes of copy instead of at most 4"):
        remote.save("copy", copy, None, 4, tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


def test_the_manifest_follows_from_the_release(tmp_path: Path) -> None:
    one, two = release(tmp_path / "one"), release(tmp_path / "two")
    assert oci.render(one) == oci.render(two)
    manifest = json.loads(oci.render(one))
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["artifactType"] == "application/vnd.minguest.release.v1+json"
    # The descriptor that image-spec gives for it.
    assert manifest["config"] == {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "size": 2,
    }
    assert [layer["annotations"] for layer in manifest["layers"]] == [{oci.TITLE: item.name} for item in one.items]
    assert manifest["annotations"] == {
        "org.opencontainers.image.title": "guest-6.12",
        "org.opencontainers.image.version": "1.0",
        "org.opencontainers.image.description": "guest guest: linux 6.12.94, firmware 2025.02-8",
        "vnd.minguest.kernel": "6.12.94",
        "vnd.minguest.firmware": "2025.02-8",
        "vnd.minguest.series": "6.12",
        "vnd.minguest.signed": "true",
    }


def test_oras_pulls_it(tmp_path: Path, place: Place) -> None:
    what = release(tmp_path / "release", WHOLE)
    publish(what, place)
    client = oras.provider.Registry(hostname=place.registry, insecure=True, tls_verify=False)
    target = tmp_path / "oras"
    client.pull(f"{place.registry}/{place.repository}:1.0", outdir=str(target))
    assert {path.name for path in target.iterdir()} == {item.name for item in what.items}
    assert all(files.sha256(target / item.name) == item.sha256 for item in what.items)


def test_the_tag_comes_after_all_that_it_needs(tmp_path: Path, front: Proxy, place: Place) -> None:
    what = release(tmp_path / "release")
    publish(what, place)
    digest = digest_of(oci.render(what))
    puts = [seen.path.rsplit("/", 1)[-1] for seen in front.seen if seen.method == "PUT"]
    order = [puts.index(name) for name in (digest, digest.replace(":", "-"), "1.0", "latest")]
    assert order == sorted(order)
    assert order[-1] == len(puts) - 1
    # Blobs first; then the release, two referrers, their list, two tags.
    assert order[0] == len(puts) - 6


def test_publishing_again_sends_nothing(tmp_path: Path, front: Proxy, place: Place) -> None:
    what = release(tmp_path / "release", WHOLE)
    first = publish(what, place)
    front.reset()
    again = publish(what, place)
    assert front.uploads() == []
    assert again == layout.Published(first.where, 0, 0, first.uploaded)


def test_a_new_version_sends_what_is_new_and_moves_latest(tmp_path: Path, front: Proxy, place: Place) -> None:
    old = release(tmp_path / "old", WHOLE)
    publish(old, place)
    front.reset()
    new = release(tmp_path / "new", {**WHOLE, "initrd.img": b"another"}, "1.1")
    publish(new, place)
    # The initrd, release.json and SHA256SUMS; the signature is the same here.
    assert len([seen for seen in front.uploads() if "/blobs/" in seen.path and seen.method == "PUT"]) == 3
    assert get(place, "manifests/latest").content == oci.render(new)
    assert get(place, "manifests/1.0").content == oci.render(old)


# Refusals


def test_a_version_never_changes(tmp_path: Path, front: Proxy, place: Place) -> None:
    what = release(tmp_path / "release")
    publish(what, place)
    front.reset()
    with pytest.raises(UserError, match=r"(?s)1\.0 is already published with other content.*make a new version"):
        publish(release(tmp_path / "other", {**SMALL, "bzImage": b"other"}), place)
    assert front.uploads() == []
    assert get(place, "manifests/1.0").content == oci.render(what)


def test_a_version_that_another_run_was_faster_with(tmp_path: Path, front: Proxy, place: Place) -> None:
    first, second = release(tmp_path / "first"), release(tmp_path / "second", {"bzImage": b"other"})
    direct = Place(front.behind, place.repository)

    def race(number: int, seen: Seen) -> Fault | None:
        if seen.method == "PUT" and "/manifests/" in seen.path and not front_ran:
            front_ran.append(True)
            publish(first, direct)
        return None

    front_ran: list[bool] = []
    front.fault = race
    with pytest.raises(UserError, match="already published"):
        publish(second, place)
    assert get(place, "manifests/1.0").content == oci.render(first)


@pytest.mark.parametrize("version", ["latest", "sha256-0"])
def test_versions_that_are_no_tags(tmp_path: Path, version: str) -> None:
    with pytest.raises(UserError, match="cannot be a tag"):
        publish(release(tmp_path / "release", version=version), Place("127.0.0.1:1", "x"))


def test_only_the_version_is_a_releases_tag(tmp_path: Path, front: Proxy, place: Place) -> None:
    what = release(tmp_path / "release")
    for wrong in (Place("127.0.0.1:1", "x", "2.0"), Place("127.0.0.1:1", "x", None, f"sha256:{'a' * 64}")):
        with pytest.raises(UserError, match=r"a release's tag is its version, 1\.0"):
            publish(what, wrong)
    publish(what, Place(place.registry, place.repository, "1.0"))
    assert tags(place) >= {"1.0", "latest"}


def test_a_repository_is_for_one_name(tmp_path: Path, front: Proxy, place: Place) -> None:
    publish(release(tmp_path / "release"), place)
    front.reset()
    with pytest.raises(UserError, match=r"is a release of 'guest-6\.12', not of 'other'"):
        publish(release(tmp_path / "other", version="2.0", name="other"), place)
    assert front.uploads() == []


def test_something_else_is_neither_read_nor_written_over(tmp_path: Path, front: Proxy, place: Place) -> None:
    what = release(tmp_path / "release")
    publish(what, place)
    image = {**json.loads(oci.render(what)), "artifactType": None}
    image["config"]["mediaType"] = "application/vnd.oci.image.config.v1+json"
    del image["artifactType"]
    requests.put(
        f"http://{place.registry}/v2/{place.repository}/manifests/latest",
        data=json.dumps(image),
        headers={"Content-Type": MANIFEST},
        timeout=10,
    ).raise_for_status()
    front.reset()
    for act in (lambda: Remote(place, NOBODY).read("x", 1), lambda: publish(what, place)):
        with pytest.raises(UserError, match=r"not a release of minguest, but application/vnd\.oci\.image\.config"):
            act()
    assert front.uploads() == []


def test_what_is_not_there(place: Place) -> None:
    with pytest.raises(UserError, match=rf"{place}:7: the registry has nothing of that name"):
        Remote(Place(place.registry, place.repository, "7"), NOBODY).read("x", 1)
    with pytest.raises(ToolError, match="Connection refused"):
        Remote(Place("127.0.0.1:1", "x"), NOBODY).read("x", 1)


# Referrers


def test_referrers_are_listed_once_and_others_stay(tmp_path: Path, front: Proxy, place: Place) -> None:
    what = release(tmp_path / "release")
    publish(what, place)
    tag = digest_of(oci.render(what)).replace(":", "-")
    index = get(place, f"manifests/{tag}").json()
    assert [each["artifactType"] for each in index["manifests"]] == [
        "application/vnd.minguest.sshsig",
        "application/vnd.cyclonedx+json",
    ]
    # As another tool would leave it: one of ours is not in it, one of its own is, with fields that are new to us.
    theirs = {**index["manifests"][1], "artifactType": "application/x-theirs", "new": {"field": 1}}
    index = {**index, "manifests": [{**theirs, "digest": get(place, "manifests/1.0").headers["Docker-Content-Digest"]}]}
    index["annotations"] = {"a": "b"}
    requests.put(
        f"http://{place.registry}/v2/{place.repository}/manifests/{tag}",
        data=json.dumps(index),
        headers={"Content-Type": INDEX},
        timeout=10,
    ).raise_for_status()
    front.reset()
    assert publish(what, place).uploaded == 1
    listed = get(place, f"manifests/{tag}").json()
    assert listed["annotations"] == {"a": "b"}
    assert listed["manifests"][0] == index["manifests"][0]
    assert len({each["digest"] for each in listed["manifests"]}) == len(listed["manifests"]) == 3


def test_a_registry_that_lists_referrers_by_itself(tmp_path: Path, front: Proxy, place: Place) -> None:
    """A fake of that part: docker-registry 2.8 does not know it."""

    def change(seen: Seen, answer: Answer) -> Answer:
        if seen.method == "PUT" and "/manifests/sha256:" in seen.path:
            return msgspec.structs.replace(answer, headers={**answer.headers, "OCI-Subject": "sha256:x"})
        if "/referrers/" in seen.path:
            return Answer(200, {"Content-Type": INDEX}, b'{"schemaVersion": 2, "manifests": []}')
        return answer

    what = release(tmp_path / "release")
    front.change = change
    publish(what, place)
    assert tags(place) == {"1.0", "latest"}
    # No answer on the way reports it now, so the API is used.
    assert publish(what, place).uploaded == 0
    assert tags(place) == {"1.0", "latest"}
    assert [seen.path for seen in front.seen if "/referrers/" in seen.path] == [
        f"/v2/{place.repository}/referrers/{digest_of(oci.render(what))}"
    ]


def test_a_list_of_referrers_that_is_none(tmp_path: Path, front: Proxy, place: Place) -> None:
    what = release(tmp_path / "release")
    publish(what, place)
    front.change = lambda seen, answer: (
        Answer(200, {}, b'{"manifests": 5}') if "/manifests/sha256-" in seen.path else answer
    )
    with pytest.raises(UserError, match="not an index of referrers"):
        publish(what, place)


def test_a_release_that_nothing_refers_to(tmp_path: Path, place: Place) -> None:
    what = release(tmp_path / "release", {"bzImage": b"x"})
    (what.folder / layout.SIGNATURE).unlink()
    publish(layout.load(what.folder), place)
    assert tags(place) == {"1.0", "latest"}


# Faults

# Each request meets one of them: all with all would take minutes.
ONCE: tuple[Fault, ...] = ("no server", "half an answer", 503, "no answer", "half a request", 429, 500)
EVER: tuple[Fault, ...] = ("no server", 403, "no answer", 503, "half a request", 401, "half an answer")
TINY: dict[str, bytes] = {"bzImage": b"kernel"}


def requests_of(what: layout.Release, front: Proxy) -> int:
    """How many requests it takes to publish it."""
    publish(what, new_place(front.address))
    count = len(front.seen)
    front.reset()
    return count


def test_one_fault_anywhere_is_overcome(tmp_path: Path, front: Proxy) -> None:
    what = release(tmp_path / "release", TINY)
    count = requests_of(what, front)
    assert count > 25
    for number in range(count):
        where = new_place(front.address)
        front.reset()
        front.fault = at(number, ONCE[number % len(ONCE)])
        publish(what, where)
        assert whole(what, where), number
        assert tags(where) >= {"1.0", "latest"}


@pytest.mark.parametrize("kind", ONCE)
def test_every_fault_of_what_changes_something_is_overcome(
    tmp_path: Path, front: Proxy, place: Place, kind: Fault
) -> None:
    what = release(tmp_path / "release", TINY)
    wanted = ("POST .*/uploads/", "PUT .*/uploads/", "PUT .*/manifests/sha256:", "PUT .*/sha256-", r"PUT .*/1\.0$")
    faults = [on(each, kind) for each in wanted]
    front.fault = lambda number, seen: next(filter(None, (fault(number, seen) for fault in faults)), None)
    publish(what, place)
    # Each was met, and came again; of the answer to these, the status is enough.
    times = 1 if kind == "half an answer" else 2
    assert [sum(bool(re.match(each, line(seen))) for seen in front.seen) for each in wanted[3:]] == [times, times]
    assert whole(what, place)
    assert get(place, "manifests/1.0").content == oci.render(what)


def test_a_fault_that_stays_leaves_nothing_by_halves(
    tmp_path: Path, front: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "PAUSES", (0.0,))
    what = release(tmp_path / "release", TINY)
    count = requests_of(what, front)
    for number in range(count):
        where = new_place(front.address)
        front.reset()
        kind = EVER[number % len(EVER)]
        front.fault = since(number, kind)
        try:
            publish(what, where)
        except MinguestError:
            pass
        else:  # an answer's status had come before the cut, and was all that was wanted of it
            assert kind == "half an answer"
            assert tags(where) >= {"1.0", "latest"}
        if "1.0" in tags(where):
            assert whole(what, where), number
            tagged = [seen.method == "PUT" and seen.path.endswith("/1.0") for seen in front.seen].index(True)
            assert tagged < number or kind in ("no answer", "half an answer")  # those that the server does not feel
        front.reset()
        publish(what, where)
        assert whole(what, where), number
        assert tags(where) >= {"1.0", "latest"}


def test_half_a_head_that_says_accepted_is_not_the_end(tmp_path: Path, front: Proxy, place: Place) -> None:
    what = release(tmp_path / "release", TINY)
    front.fault = on("POST", Answer(202), 3)
    publish(what, place)
    assert whole(what, place)
    front.change = lambda seen, answer: Answer(202, {"Location": "http://h:x/"}) if seen.method == "POST" else answer
    with pytest.raises(ToolError, match="its answer has no address to upload to"):
        publish(what, new_place(front.address))


def test_a_file_that_changes_while_it_is_sent(tmp_path: Path, front: Proxy, place: Place) -> None:
    what = release(tmp_path / "release", TINY)
    (what.folder / "bzImage").write_bytes(b"change")
    with pytest.raises(ToolError, match=r"HTTP 400 Bad Request.*DIGEST_INVALID"):
        publish(what, place)
    assert get(place, "tags/list").status_code == 404


@pytest.mark.parametrize("kind", ONCE)
def test_one_fault_in_reading_is_overcome(tmp_path: Path, front: Proxy, place: Place, kind: Fault) -> None:
    what = release(tmp_path / "release")
    publish(what, place)
    for number in range(1 + len(what.items)):
        front.reset()
        front.fault = at(number, kind)
        assert same(what, Remote(place, NOBODY), tmp_path / str(number))


def test_a_fault_in_reading_that_stays(tmp_path: Path, front: Proxy, place: Place) -> None:
    what = release(tmp_path / "release")
    publish(what, place)
    front.fault = since(0, "half an answer")
    with pytest.raises(ToolError, match="IncompleteRead"):
        Remote(place, NOBODY).read("bzImage", 3000)
    front.reset()
    front.fault = on("GET .*/blobs/", "no answer", 99)
    with pytest.raises(ToolError, match=r"(?s)/blobs/sha256:.*tried 5 times.*remedy: try again later"):
        Remote(place, NOBODY).read("bzImage", 3000)


# Reading what cannot be trusted


@pytest.mark.parametrize(
    ("status", "cuts", "ranges"),
    [
        (206, 2, [None, "bytes=2500000-", "bytes=3750000-"]),
        # A server that does not know ranges, and one that refuses this one.
        (200, 1, [None, "bytes=2500000-"]),
        (416, 1, [None, "bytes=2500000-", None]),
    ],
)
def test_a_cut_file_is_gone_on_with(
    tmp_path: Path, front: Proxy, place: Place, status: int, cuts: int, ranges: list[str | None]
) -> None:
    what = release(tmp_path / "release", WHOLE)
    item = what.item("bzImage")
    assert item is not None
    publish(what, place)
    front.reset()
    front.fault = on(f"GET .*{item.sha256}", "half an answer", cuts)
    others = {206: None, 200: Answer(200, {}, WHOLE["bzImage"]), 416: Answer(416)}
    front.change = lambda seen, answer: (others[status] or answer) if answer.status == 206 else answer
    target = tmp_path / "target"
    target.write_bytes(b"left by another run")
    Remote(place, NOBODY).save("bzImage", item.sha256, item.size, 0, target)
    assert files.sha256(target) == item.sha256
    assert [seen.headers.get("range") for seen in front.seen if item.sha256 in seen.path] == ranges


def test_a_changed_blob_is_refused(tmp_path: Path, front: Proxy, place: Place) -> None:
    what = release(tmp_path / "release")
    publish(what, place)
    item = what.item("bzImage")
    assert item is not None
    for change, why in (
        (lambda body: body[:-1] + bytes([body[-1] ^ 1]), "damaged: the content does not match the digest"),
        (lambda body: body + b"x", "sends more than the limit of 3000 bytes"),
        (lambda body: body[:-1], "cut short at 2999 of 3000 bytes"),
    ):
        front.change = lambda seen, answer, change=change: (  # type: ignore[misc]
            Answer(200, {}, change((what.folder / "bzImage").read_bytes())) if item.sha256 in seen.path else answer
        )
        with pytest.raises(ToolError, match=why):
            Remote(place, NOBODY).read("bzImage", 3000)
        with pytest.raises(ToolError, match=why):
            Remote(place, NOBODY).save("bzImage", item.sha256, item.size, 0, tmp_path / "target")


def test_pieces_that_do_not_fit_are_thrown_away(tmp_path: Path, front: Proxy, place: Place) -> None:
    what = release(tmp_path / "release")
    publish(what, place)
    front.fault = on("GET .*/blobs/", "half an answer")
    front.change = lambda seen, answer: Answer(206, answer.headers, bytes(1500)) if answer.status == 206 else answer
    assert Remote(place, NOBODY).read("bzImage", 3000) == SMALL["bzImage"]
    assert [seen.headers.get("range") for seen in front.seen][-3:] == [None, "bytes=1500-", None]


def test_a_changed_manifest_is_refused(tmp_path: Path, front: Proxy, place: Place) -> None:
    published = publish(release(tmp_path / "release"), place)

    def read(change: Callable[[bytes], bytes], where: Place, keep: bool = False) -> bytes | None:
        front.change = lambda seen, answer: (
            Answer(200, dict(answer.headers) if keep else {}, change(answer.body))
            if "/manifests/" in seen.path
            else answer
        )
        return Remote(where, NOBODY).read("bzImage", 3000)

    with pytest.raises(ToolError, match="damaged: the registry reports another digest, sha256:"):
        read(lambda body: body + b" ", place, keep=True)
    with pytest.raises(ToolError, match="damaged: the content does not match the digest"):
        read(lambda body: body + b" ", oci.parse(published.where))
    with pytest.raises(ToolError, match="sends more than the limit of 4194304 bytes"):
        read(lambda body: body + bytes(4 << 20), place)
    for old, new, why in (
        (b'"bzImage"', b'"../bzImage"', r"damaged: '\.\./bzImage' occurs twice, or is not a valid"),
        (b'"bzImage"', b'"sbom.cdx.json"', "damaged: 'sbom.cdx.json' occurs twice, or is not a valid"),
        (b'"size":3000', b'"size":-1', "damaged: .*>= 0"),
        (b'"size":3000', b'"size":5000000000', "damaged: .*<= "),
        (b'"digest":"sha256:', b'"digest":"sha256:../', "damaged: .*matching regex"),
        (b"vnd.minguest.release.v1", b"vnd.other", r"not a release of minguest, but application/vnd\.other\+json"),
        (b"{", b"[", "damaged: "),
    ):
        with pytest.raises(UserError, match=why):
            read(lambda body, old=old, new=new: body.replace(old, new), place)  # type: ignore[misc]
    # Without anything to compare with, a tag is believed, and SHA256SUMS' signature decides.
    assert read(lambda body: body + b" ", place) == SMALL["bzImage"]


# Logins


def test_a_registry_with_passwords(tmp_path: Path) -> None:
    what = release(tmp_path / "release")
    with registries.registry(tmp_path / "registry", htpasswd=True) as address:
        place = Place(address, "tests/guest")
        for who, shown in (
            (Credentials(origin="no credentials for it in /config.json"), "no credentials for it in /config.json"),
            (Credentials(registries.USER, "wrong secret", "", "as publisher, /config.json"), "as publisher"),
            (Credentials(token="opaque", origin="as the owner of a token"), "as the owner"),
        ):
            with pytest.raises(UserError) as refused:
                publish(what, place, who)
            refusal = f"{address}: no permission to publish to tests/guest ({shown}"
            for part in (refusal, "HTTP 401", f"docker login {address}"):
                assert part in str(refused.value)
            assert "secret" not in str(refused.value)
            with pytest.raises(UserError, match=r"no permission to read tests/guest"):
                Remote(place, who).read("bzImage", 1)
        publish(what, place, LOGIN)
        assert same(what, Remote(place, LOGIN), tmp_path / "back")


class Tokens:
    """A token server and a registry that wants its tokens, before the open one behind the proxy: a fake."""

    def __init__(self, front: Proxy) -> None:
        self.front = front
        self.valid = "none yet"
        self.uses = 10**6
        """Of each token."""
        self.requested: list[Seen] = []
        self.field = "token"
        self.realm = f"http://{front.address}/token"

    def __call__(self, number: int, seen: Seen) -> Fault | None:
        if urlsplit(seen.path).path == "/token":
            self.requested.append(seen)
            fields = parse_qs(seen.sent.decode() or urlsplit(seen.path).query)
            known = fields.get("refresh_token") == ["opaque"] or seen.headers.get("authorization") == LOGIN.basic
            if not known and "push" in fields["scope"][0]:
                return 401
            self.valid, self.left = f"token-{len(self.requested)}", self.uses
            return Answer(200, {}, json.dumps({self.field: self.valid}).encode())
        self.left = getattr(self, "left", 0) - 1
        if seen.headers.get("authorization") == f"Bearer {self.valid}" and self.left >= 0:
            return None
        return Answer(401, {"WWW-Authenticate": f'Bearer realm="{self.realm}",service="here",scope="other"'})


def test_tokens(tmp_path: Path, front: Proxy, place: Place) -> None:
    what = release(tmp_path / "release")
    tokens = Tokens(front)
    front.fault = tokens
    with pytest.raises(UserError, match=r"no permission to publish to .*\(no credentials\)\n  GET .*/token: HTTP 401"):
        publish(what, place)
    publish(what, place, LOGIN)
    assert whole(what, place)
    # Once for all requests; with the right to both from the start.
    requested = parse_qs(urlsplit(tokens.requested[-1].path).query)
    assert requested == {"service": ["here"], "scope": [f"repository:{place.repository}:pull,push"]}
    assert len(tokens.requested) == 2

    tokens.field = "access_token"
    assert same(what, Remote(place, NOBODY), tmp_path / "anonymous")
    assert "authorization" not in tokens.requested[-1].headers
    assert parse_qs(urlsplit(tokens.requested[-1].path).query)["scope"] == [f"repository:{place.repository}:pull"]

    tokens.field = "other"
    with pytest.raises(ToolError, match="/token: gives no token"):
        Remote(place, NOBODY).read("bzImage", 3000)


def test_tokens_for_a_token(tmp_path: Path, front: Proxy, place: Place) -> None:
    what = release(tmp_path / "release")
    tokens = Tokens(front)
    front.fault = tokens
    publish(what, place, Credentials(token="opaque"))
    assert tokens.requested[0].method == "POST"
    assert "opaque" not in tokens.requested[0].path
    assert parse_qs(tokens.requested[0].sent.decode())["grant_type"] == ["refresh_token"]
    assert whole(what, place)


def test_tokens_that_soon_expire(tmp_path: Path, front: Proxy, place: Place) -> None:
    what = release(tmp_path / "release")
    tokens = Tokens(front)
    tokens.uses = 3
    front.fault = tokens
    publish(what, place, LOGIN)
    assert whole(what, place)
    assert len(tokens.requested) > 5


def test_a_password_goes_to_no_token_server_without_https(front: Proxy, place: Place) -> None:
    tokens = Tokens(front)
    tokens.realm = "http://example.com/token?x=secret"
    front.fault = tokens
    with pytest.raises(ToolError, match=r"requires a login at 'http://example\.com/token', which is not https"):
        Remote(place, LOGIN).read("x", 1)


def test_another_host_gets_no_credentials(tmp_path: Path, address: str, front: Proxy, place: Place) -> None:
    """Uploads that go to storage of its own, and downloads that come from a CDN."""
    what = release(tmp_path / "release")
    tokens = Tokens(front)
    with proxy(address) as other:

        def elsewhere(seen: Seen, answer: Answer) -> Answer:
            if seen.method == "POST":
                location = answer.headers["Location"].replace(front.address, other.address)
                return Answer(202, {"Location": location})
            if seen.method in ("GET", "HEAD") and "/blobs/" in seen.path and answer.status == 200:
                return Answer(307, {"Location": f"http://{other.address}{seen.path}"})
            return answer

        front.fault, front.change = tokens, elsewhere
        publish(what, place, LOGIN)
        assert publish(what, place, LOGIN).uploaded == 0
        assert same(what, Remote(place, LOGIN), tmp_path / "back")
        assert {seen.method for seen in other.seen} == {"PUT", "GET"}
        assert all("authorization" not in seen.headers for seen in other.seen)
        assert len(tokens.requested) == 3

        # Nor does it get a password by asking for one.
        challenge = {"WWW-Authenticate": f'Bearer realm="http://{other.address}/token"'}
        other.fault = lambda number, seen: Answer(401, challenge)
        with pytest.raises(UserError, match="no permission to read"):
            Remote(place, LOGIN).read("bzImage", 3000)
        assert all("authorization" not in seen.headers and "/token" not in seen.path for seen in other.seen)


def test_an_upload_to_a_relative_place(tmp_path: Path, front: Proxy, place: Place) -> None:
    what = release(tmp_path / "release")
    front.change = lambda seen, answer: (
        Answer(202, {"Location": answer.headers["Location"].rsplit("/", 1)[1]}) if seen.method == "POST" else answer
    )
    publish(what, place)
    assert whole(what, place)


def test_a_login_in_netrc_is_nothing_here(
    tmp_path: Path, front: Proxy, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login other password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    publish(release(tmp_path / "release"), place)
    assert all("authorization" not in seen.headers for seen in front.seen)


def test_only_loopback_is_asked_without_https() -> None:
    for host, scheme in (
        ("localhost:5000", "http"),
        ("127.0.0.2", "http"),
        ("[::1]:5000", "http"),
        ("127.example.com", "https"),
        ("ghcr.io", "https"),
        ("192.168.1.1:5000", "https"),
        ("docker.io", "https"),
    ):
        assert Repository(Place(host, "x"), NOBODY, "pull")._base.startswith(f"{scheme}://"), host


@each_way
def test_a_damaged_file_of_logins_is_named(damage: Damage, tmp_path: Path) -> None:
    path = config(tmp_path / "config.json", auths={"host": {"auth": encoded("me:x")}})
    assert credentials.find([path], "host").user == "me"
    damage(path)
    with pytest.raises(UserError, match=r"config\.json: not a file of registry credentials"):
        credentials.find([path], "host")


@pytest.mark.parametrize("answer", [r"{\377}", r'{"\377": "x"}', r'{"Username": "}', "[]"])
def test_a_damaged_answer_of_a_helper_is_named(answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "docker-credential-odd"
    program.write_text(f"#!/bin/sh\nprintf '{answer}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = credentials.find([config(tmp_path / "config.json", credsStore="odd")], "host")
    assert (found.user, found.password) == ("", "")
    assert "docker-credential-odd: its answer has no credentials" in found.origin
