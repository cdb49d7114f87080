# SPDX-License-Identifier: Apache-2.0
"""What a server may do to who reads from it: take his time, his disk and his password, or answer with nonsense."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minguest.model import Source
from minguest.publish import oci, pull
from minguest.publish.credentials import Credentials
from minguest.publish.registry import MANIFEST
from minguest.release import layout
from minguest.util import fetch, web
from minguest.util.errors import MinguestError, ToolError, UserError, redacted, shown_url
from tests import drip, workshop

DEEP = b"[" * 60_000
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def server() -> Iterator[drip.Server]:
    with drip.serve() as made:
        yield made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Limits of a second."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(web, "PAUSES", (0.0,))
    monkeypatch.setattr(web, "ANSWER_S", 1, raising=False)
    monkeypatch.setattr(web, "WHOLE_S", 1)
    monkeypatch.setattr(web, "SILENCE_S", 1)
    monkeypatch.setattr(fetch, "ANSWER_S", 1, raising=False)
    monkeypatch.setattr(fetch, "SILENCE_S", 1)
    monkeypatch.setattr(fetch, "BACKOFF_S", 0)


def remote(server: drip.Server, path: str = "/1.0") -> pull.Remote:
    return pull.remote(f"http://{server.address}{path}", Path("cache").absolute(), [], workshop.quiet)


def registry(server: drip.Server) -> oci.Remote:
    return oci.Remote(oci.parse(f"oci://{server.address}/r/guest:1.0"), Credentials())


def whole_registry(server: drip.Server, layer: bytes) -> None:
    """A manifest with one layer, bzImage, whose blob is another route's."""
    digest = hashlib.sha256(layer).hexdigest()
    manifest = {
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": oci.ARTIFACT,
        "config": {"mediaType": "x", "digest": "sha256:" + "0" * 64, "size": 2},
        "layers": [{"mediaType": "x", "digest": f"sha256:{digest}", "size": len(layer),
                    "annotations": {oci.TITLE: "bzImage"}}],
    }  # fmt: skip
    server.routes["/v2/r/guest/manifests/"] = drip.at_once("200 OK", body=json.dumps(manifest).encode())


# ── time ──

SLOW: dict[str, Callable[[], Iterator[bytes]]] = {
    "headers": drip.slowly(OK + b"X: ", b"x"),
    "many headers": drip.slowly(OK, b"X: y\r\n"),
    "status": drip.slowly(b"HTTP/1.1 200 O", b"K"),
    "continues": drip.slowly(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body": drip.slowly(OK + b"Content-Length: 1000\r\n\r\n", b"x"),
    "chunk": drip.slowly(CHUNKED + b"1", b"0"),
    "chunks": drip.slowly(CHUNKED, b"1\r\nx\r\n"),
    "zipped": drip.slowly(OK + b"Content-Encoding: gzip\r\n\r\n\x1f\x8b\x08\x10" + bytes(6), b"x"),
    "an error's body": drip.slowly(b"HTTP/1.1 500 no\r\nContent-Length: 1000\r\n\r\n", b"x"),
}


@pytest.mark.timeout(18)
@pytest.mark.parametrize("name", SLOW)
def test_a_small_answer_that_drips_ends(server: drip.Server, name: str) -> None:
    server.routes["/1.0/SHA256SUMS"] = SLOW[name]
    begun = time.monotonic()
    with pytest.raises(ToolError, match=r"SHA256SUMS: (no complete answer within 1 s|not done after 1 s|HTTP 500)"):
        remote(server)
    assert time.monotonic() - begun < 8


@pytest.mark.timeout(18)
def test_redirects_that_drip_count_as_one(server: drip.Server) -> None:
    for number in range(9):
        server.routes[f"/{number}.0/"] = drip.at_once("302 Found", f"Location: /{number + 1}.0/x", after=0.4)
    with pytest.raises(ToolError, match="no complete answer within 1 s"):
        remote(server, "/1.0")
    assert len(server.seen) < 5


@pytest.mark.timeout(18)
def test_the_body_of_a_redirect_is_not_read(server: drip.Server) -> None:
    server.routes["/1.0/SHA256SUMS"] = drip.slowly(
        b"HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 99999999999\r\n\r\n", b"x" * (1 << 20)
    )
    server.routes["/other"] = drip.at_once("200 OK", body=b"here")
    begun = time.monotonic()
    assert remote(server).read(layout.SUMS, 100) == b"here"
    assert time.monotonic() - begun < 5


@pytest.mark.timeout(18)
@pytest.mark.parametrize("name", ["headers", "many headers", "status", "continues", "chunk", "body", "chunks"])
def test_a_download_that_drips_ends(
    server: drip.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(web if hasattr(web, "SLOW_S") else fetch, "SLOW_S", 1)
    server.routes["/file"] = SLOW[name]
    source = Source(version="", urls=(f"http://{server.address}/file",), sha256="0" * 64, licence="", size=1000)
    begun = time.monotonic()
    with pytest.raises(ToolError, match=r"no complete answer within 1 s|too slow: \d+ bytes"):
        fetch.fetch(source, "file", tmp_path / "cache", workshop.quiet)
    assert time.monotonic() - begun < 8


@pytest.mark.timeout(18)
@pytest.mark.parametrize("name", ["headers", "chunk", "body", "chunks"])
@pytest.mark.parametrize("what", ["manifest", "blob", "token"])
def test_a_registry_that_drips_ends(
    server: drip.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str
) -> None:
    monkeypatch.setattr(web, "SLOW_S", 1, raising=False)
    layer = b"x" * 1000
    if what == "token":
        realm = f'Bearer realm="http://{server.address}/token"'
        server.routes["/v2/"] = drip.at_once("401 Unauthorized", f"WWW-Authenticate: {realm}")
        server.routes["/token"] = SLOW[name]
    else:
        if what == "blob":
            whole_registry(server, layer)
        server.routes["/v2/"] = SLOW[name]
    begun = time.monotonic()
    with pytest.raises(ToolError, match=r"no complete answer within 1 s|not done after 1 s|too slow: \d+ bytes"):
        registry(server).save("bzImage", hashlib.sha256(layer).hexdigest(), 1000, 0, tmp_path / "blob")
    assert time.monotonic() - begun < 8


# ── nonsense ──


@pytest.mark.parametrize(
    ("status", "header", "why"),
    [
        ("302 Found", "Location: http://[::1", "Invalid IPv6 URL"),
        ("302 Found", "Location: http://[::1]:99999999/", "."),
        ("302 Found", "Location: http://\xff\xfe/", "."),
        ("302 Found", "Location: \xff\xfe", "."),
        ("302 Found", "Location: file:///etc/passwd", "No connection adapters"),
        ("302 Found", "Location: ", "HTTP 302"),
        ("302 Found", "Location: http://" + "a." * 200 + "/", "."),
        ("302 Found", "Location: http://a..b/", "."),
        ("200 OK", "Content-Encoding: gzip", "."),
        ("200 OK", "Transfer-Encoding: chunked", "."),
    ],
)
def test_a_nonsensical_answer_is_named(server: drip.Server, tmp_path: Path, status: str, header: str, why: str) -> None:
    server.routes["/"] = drip.at_once(status, header, body=b"no gzip, no chunk")
    with pytest.raises(ToolError, match=why):
        remote(server)
    source = Source(version="", urls=(f"http://{server.address}/file",), sha256="0" * 64, licence="", size=1000)
    with pytest.raises(ToolError):
        fetch.fetch(source, "file", tmp_path / "cache", workshop.quiet)
    with pytest.raises(MinguestError):
        registry(server).read(layout.SUMS, 1000)


@pytest.mark.parametrize(
    "content", [DEEP, b'{"x": ' + DEEP, b'{"version": "1.0", "version": "2.0"}', b'{"version": 1e999999}', b"\xff"]
)
def test_a_latest_that_is_none_is_named(server: drip.Server, content: bytes) -> None:
    server.routes["/latest.json"] = drip.at_once("200 OK", body=content)
    with pytest.raises(UserError, match=r"latest\.json: damaged"):
        remote(server, "")


@pytest.mark.parametrize("content", [DEEP, b'{"artifactType": "' + oci.ARTIFACT.encode() + b'", "x": ' + DEEP])
def test_a_manifest_that_is_none_is_named(server: drip.Server, content: bytes) -> None:
    server.routes["/v2/"] = drip.at_once("200 OK", body=content)
    with pytest.raises(UserError, match="damaged: nested too deep"):
        registry(server).read(layout.SUMS, 1000)


@pytest.mark.parametrize(
    "realm", ["http://[::1", "nonsense", "", "http:", "http://", "https://[", "http://[::1]:x/", "http://localhost:x/"]
)
def test_a_realm_that_is_no_address_is_named(server: drip.Server, realm: str) -> None:
    server.routes["/v2/"] = drip.at_once("401 Unauthorized", f'WWW-Authenticate: Bearer realm="{realm}"')
    with pytest.raises(MinguestError):
        registry(server).read(layout.SUMS, 1000)


@pytest.mark.parametrize(
    "token", ["geheim\r\nX-Evil: 1", "geheim\n", "geheim ", "geheim\u20ac", "geheim\xe9", "\0geheim"]
)
def test_a_token_that_no_header_can_have_is_reported_and_not_shown(server: drip.Server, token: str) -> None:
    realm = f'Bearer realm="http://{server.address}/token"'
    server.routes["/v2/"] = drip.at_once("401 Unauthorized", f"WWW-Authenticate: {realm}")
    server.routes["/token"] = drip.at_once("200 OK", body=json.dumps({"token": token}).encode())
    with pytest.raises(ToolError, match="gives a token with characters that a header cannot have") as found:
        registry(server).read(layout.SUMS, 1000)
    assert "geheim" not in str(found.value)


@pytest.mark.parametrize("content", [DEEP, b'{"x": ' + DEEP, b"{}", b"x" * (1 << 20), b'{"token": 5}'])
def test_a_token_server_without_a_token_is_named(server: drip.Server, content: bytes) -> None:
    realm = f'Bearer realm="http://{server.address}/token"'
    server.routes["/v2/"] = drip.at_once("401 Unauthorized", f"WWW-Authenticate: {realm}")
    server.routes["/token"] = drip.at_once("200 OK", body=content)
    with pytest.raises(ToolError, match=r"gives no token|more than \d+ bytes"):
        registry(server).read(layout.SUMS, 1000)


# ── passwords ──


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:geheim@host/x", "https://host/x"),
        ("https://geheim@host/x", "https://host/x"),
        ("https://user:geh@eim@host/x", "https://host/x"),
        ("https://user:ge/heim@host/x", "https://…"),
        ("https://user:ge?heim@host/x", "https://…"),
        ("https://user:ge#heim@host/x", "https://…"),
        ("https://host/x?X-Amz-Signature=geheim", "https://host/x"),
        ("https://host/x#geheim", "https://host/x"),
        ("https://host/x?id=a@b.org&Signature=geheim", "https://host/x"),
        ("https://user:geheim@[::1]:8080/x", "https://[::1]:8080/x"),
        (f"oci://user:geheim@host/r:1@sha256:{'a' * 64}", f"oci://host/r:1@sha256:{'a' * 64}"),
        (f"oci://host:5000/r@sha256:{'a' * 64}", f"oci://host:5000/r@sha256:{'a' * 64}"),
        ("https://host:443/x", "https://host:443/x"),
        ("folder/x", "folder/x"),
    ],
)
def test_a_url_is_shown_without_secrets(url: str, shown: str) -> None:
    assert shown_url(url) == shown
    assert redacted(f"see '{url}', or {url}: no") == f"see '{shown}', or {shown}: no"
    assert str(UserError(f"{url}: no")) == f"{shown}: no"


@pytest.mark.parametrize(
    "source",
    [
        "https://user:ge/heim@host/x", "https://user:ge?heim@host/x", "https://user:ge#heim@host/x",
        "https://user:ge heim@host/x", "https://user:geheim@/x", "https://user:geheim@[::1/x",
        "https://user:geheim@host:port/x", "https://user:geheim@host/x?y=geheim", "ftp://user:geheim@host/x",
        "oci://user:geheim@host/x", "oci://user:ge/heim@host/x", "oci://geheim@host/x:1.0", "HTTPS://user:ge\nheim@h/x",
    ],
)  # fmt: skip
def test_an_address_that_cannot_be_is_not_shown_whole(tmp_path: Path, source: str) -> None:
    with pytest.raises(UserError) as found:
        pull.remote(source, tmp_path, [], workshop.quiet)
    assert "heim" not in str(found.value) and "user:" not in str(found.value)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "proxy",
    [
        "http://user:geheim@127.0.0.1:1", "http://user:ge heim@127.0.0.1:1", "http://user:geheim@127.0.0.1:port",
        "user:geheim@127.0.0.1:1", "socks9://user:geheim@127.0.0.1:1", "http://user:ge/heim@127.0.0.1:1",
        "http://user:geheim@[::1", "http://user:geheim@",
    ],
)  # fmt: skip
def test_a_proxys_password_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, proxy: str
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(f"{scheme}_proxy", proxy)
    said: list[str] = []
    with pytest.raises(ToolError) as found:
        pull.remote(f"{scheme}://203.0.113.1/x", tmp_path, [], said.append)
    source = Source(version="", urls=(f"{scheme}://203.0.113.1/x",), sha256="0" * 64, licence="", size=1)
    with pytest.raises(ToolError) as fetched:
        fetch.fetch(source, "file", tmp_path / "cache", said.append)
    assert "heim" not in f"{found.value}{fetched.value}{said}"


@pytest.mark.parametrize(
    "location",
    [
        "http://user:geheim@127.0.0.1:1/x", "http://127.0.0.1:1/x?X-Amz-Signature=geheim", "http://[geheim",
        "http://127.0.0.1:port/x?X-Amz-Signature=geheim", "ftp://127.0.0.1/x?X-Amz-Signature=geheim",
        "/again?X-Amz-Signature=geheim", "/refused?X-Amz-Signature=geheim", "http://user:geheim@[::1/x",
        "http://user:ge heim@127.0.0.1:1/x",
    ],
)  # fmt: skip
def test_where_a_redirect_led_is_shown_without_secrets(server: drip.Server, tmp_path: Path, location: str) -> None:
    said: list[str] = []
    server.routes["/refused"] = drip.at_once(
        "401 no", body=b"<Error>no http://user:geheim@host/x?Signature=geheim</Error>"
    )
    server.routes["/"] = drip.at_once("302 Found", f"Location: {location}")
    with pytest.raises(ToolError) as found:
        remote(server)
    source = Source(version="", urls=(f"http://{server.address}/x?t=geheim",), sha256="0" * 64, licence="", size=1)
    with pytest.raises(ToolError) as fetched:
        fetch.fetch(source, "file", tmp_path / "cache", said.append)
    with pytest.raises(MinguestError) as registered:
        registry(server).read(layout.SUMS, 1000)
    assert "heim" not in f"{found.value}{fetched.value}{registered.value}{said}".replace("http://[geheim", "")
