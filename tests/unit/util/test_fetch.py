# SPDX-License-Identifier: Apache-2.0
"""Downloads from a real server on loopback that misbehaves in every way that mirrors do."""

import contextlib
import hashlib
import os
import pty
import random
import re
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from minguest.model import Source
from minguest.util import fetch, progress, web
from minguest.util.errors import ToolError, UserError
from tests import ROOT, small_disk

CONTENT = random.Random(4).randbytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2


class Request(BaseHTTPRequestHandler):
    """One request; the server's routes say what to do with it."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.seen.append((self.command, self.path, self.headers.get("Range")))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client goes away in some tests
            self.server.routes[self.path](self)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def start(self) -> int:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(match[1]) if match else 0


Route = Callable[[Request], None]


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.routes: dict[str, Route] = {"/good": good}
        self.seen: list[tuple[str, str, str | None]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def requested(self, path: str) -> list[str | None]:
        """The Range of each GET for a path."""
        return [wanted for method, at, wanted in self.seen if method == "GET" and at == path]


def good(request: Request, content: bytes = CONTENT, stop: int | None = None) -> None:
    """A server as it should be; `stop` closes the connection at that byte of the file."""
    start = request.start()
    if start >= len(content):
        request.head(416, Content_Range=f"bytes */{len(content)}", Content_Length=0)
        return
    headers: dict[str, object] = {"Content_Length": len(content) - start}
    if start:
        headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    request.head(206 if start else 200, **headers)
    request.wfile.write(content[start:stop])


def plain(content: bytes, **headers: object) -> Route:
    """Ignores Range and, unless it is among the headers, gives no length."""

    def route(request: Request) -> None:
        request.head(200, **headers)
        request.wfile.write(content)

    return route


def status(code: int, **headers: object) -> Route:
    return lambda request: request.head(code, **{"Content_Length": 0, **headers})


def in_turn(*routes: Route) -> Route:
    """A route for each request, the last one for all that follow."""
    left = list(routes)

    def route(request: Request) -> None:
        now = left.pop(0) if len(left) > 1 else left[0]
        now(request)

    return route


def stall(request: Request) -> None:
    request.head(200, Content_Length=len(CONTENT))
    request.wfile.write(CONTENT[:1000])
    time.sleep(5)


def trickle(request: Request) -> None:
    request.head(200, Content_Length=len(CONTENT))
    for byte in CONTENT:
        request.wfile.write(bytes([byte]))
        time.sleep(0.02)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "BACKOFF_S", 0.01)
    monkeypatch.setattr(fetch, "SILENCE_S", 0.3)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


class Cache:
    """A cache folder, a server's routes as mirrors, and what was said."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder = folder
        self.server = server
        self.whole = folder / "sha256" / DIGEST
        self.part = folder / "sha256" / f"{DIGEST}.part"
        self.said: list[str] = []

    def source(self, *routes: Route, size: int | None = len(CONTENT)) -> Source:
        paths = []
        for number, route in enumerate(routes):
            self.server.routes[f"/{number}"] = route
            paths.append(self.server.url(f"/{number}"))
        return Source(version="1", urls=tuple(paths), sha256=DIGEST, licence="MIT", size=size)

    def fetch(self, *routes: Route, size: int | None = len(CONTENT)) -> Path:
        path = fetch.fetch(self.source(*routes, size=size), "thing", self.folder, self.said.append)
        assert path == self.whole and path.read_bytes() == CONTENT and not self.part.exists()
        return path

    def begin(self, content: bytes) -> None:
        self.part.parent.mkdir(parents=True, exist_ok=True)
        self.part.write_bytes(content)

    def requested(self, number: int = 0) -> list[str | None]:
        return self.server.requested(f"/{number}")


@pytest.fixture
def cache(tmp_path: Path, server: Server) -> Cache:
    return Cache(tmp_path / "cache", server)


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_file_is_fetched_once(cache: Cache, size: int | None) -> None:
    path = cache.fetch(good, size=size)
    assert path.stat().st_mode & 0o777 == 0o444
    assert re.fullmatch(r"thing: 0\.3 MB in \d+\.\d s \(\d+\.\d MB/s\)", cache.said[-1])
    cache.fetch(good, size=size)
    assert cache.requested() == [None]


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_part_is_resumed(cache: Cache, size: int | None) -> None:
    cache.begin(CONTENT[:HALF])
    cache.fetch(good, size=size)
    assert cache.requested() == [f"bytes={HALF}-"]
    assert "going on at 0.1 MB" in cache.said[0]


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_part_that_is_whole_asks_nobody(cache: Cache, size: int | None) -> None:
    cache.begin(CONTENT)
    cache.fetch(good, size=size)
    assert cache.requested() == []


def test_range_ignored_starts_from_zero(cache: Cache) -> None:
    cache.begin(CONTENT[:HALF])
    cache.fetch(plain(CONTENT, Content_Length=len(CONTENT)))
    assert cache.requested() == [f"bytes={HALF}-"]


@pytest.mark.parametrize("claim", [f"bytes 7-{len(CONTENT) - 1}/{len(CONTENT)}", "nonsense", None])
def test_a_range_that_starts_elsewhere_starts_from_zero(cache: Cache, claim: str | None) -> None:
    def elsewhere(request: Request) -> None:
        if not request.start():
            good(request)
            return
        request.head(206, Content_Length=len(CONTENT) - 7, **({"Content_Range": claim} if claim else {}))
        request.wfile.write(CONTENT[7:])

    cache.begin(CONTENT[:HALF])
    cache.fetch(elsewhere)
    assert cache.requested() == [f"bytes={HALF}-", None]


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_416_starts_from_zero(cache: Cache, size: int | None) -> None:
    def never_satisfied(request: Request) -> None:
        (status(416) if request.start() else good)(request)

    cache.begin(CONTENT[:HALF])
    cache.fetch(never_satisfied, size=size)
    assert cache.requested() == [f"bytes={HALF}-", None]


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_part_with_wrong_bytes_costs_one_more_download_not_a_mirror(cache: Cache, size: int | None) -> None:
    cache.begin(b"?" * HALF)
    cache.fetch(good, size=size)
    assert cache.requested() == [f"bytes={HALF}-", None]


@pytest.mark.parametrize("excess", [0, 1000])
def test_a_part_that_is_full_or_more_and_wrong_starts_from_zero(cache: Cache, excess: int) -> None:
    cache.begin(b"?" * (len(CONTENT) + excess))
    cache.fetch(good)
    assert cache.requested() == [None]


def test_cut_short_is_resumed_with_the_same_mirror(cache: Cache) -> None:
    cache.fetch(in_turn(lambda request: good(request, stop=HALF), good), good)
    assert cache.requested(0) == [None, f"bytes={HALF}-"]
    assert cache.requested(1) == []


def test_cut_short_without_a_length_is_resumed_too(cache: Cache) -> None:
    cache.fetch(in_turn(plain(CONTENT[:HALF]), good))
    assert cache.requested() == [None, f"bytes={HALF}-"]


def test_always_cut_short_goes_to_the_next_mirror_which_goes_on(cache: Cache) -> None:
    cache.fetch(lambda request: good(request, stop=max(HALF, request.start())), good)
    assert len(cache.requested(0)) == fetch.RESUMES + 1
    assert cache.requested(1) == [f"bytes={HALF}-"]


def test_too_many_bytes_stop_at_once(cache: Cache) -> None:
    sent: list[int] = []

    def endless(request: Request) -> None:
        request.head(200)
        for _ in range(2000):
            sent.append(request.wfile.write(CONTENT[:100_000]))

    cache.fetch(endless, good)
    assert sum(sent) < 20_000_000  # what fits in the sockets' buffers, of 200 MB
    assert cache.requested(1) == [None]  # nothing is built on that
    assert any("sends more than 300000 bytes" in line for line in cache.said)


def test_an_unknown_size_is_bounded_too(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "UNKNOWN_SIZE", 1000)
    with pytest.raises(
        ToolError, match=r"(?s)/0: sends more than 1000 bytes.*/1: offers 300000 bytes instead of at most"
    ):
        cache.fetch(plain(CONTENT), good, size=None)


def test_a_wrong_content_drops_the_part_and_asks_the_next(cache: Cache) -> None:
    wrong = bytes(len(CONTENT))
    cache.fetch(lambda request: good(request, wrong), good)
    assert (cache.requested(0), cache.requested(1)) == ([None], [None])
    assert any("wrong content" in line and DIGEST in line for line in cache.said)


def test_wrong_bytes_of_a_cut_mirror_are_not_the_next_ones_fault(cache: Cache) -> None:
    wrong = bytes(len(CONTENT))
    cache.fetch(in_turn(lambda request: good(request, wrong, HALF), status(404)), good)
    assert cache.requested(1) == [f"bytes={HALF}-", None]


@pytest.mark.parametrize("length", [len(CONTENT) - 1, len(CONTENT) + 1, 5 << 30])
def test_a_length_that_disagrees_is_refused_before_a_byte_is_kept(cache: Cache, length: int) -> None:
    cache.begin(CONTENT[:HALF])
    cache.fetch(plain(CONTENT, Content_Length=length), good)
    assert cache.requested(1) == [f"bytes={HALF}-"]
    assert any(f"offers {length} bytes instead of 300000" in line for line in cache.said)


def test_a_range_of_another_file_is_refused(cache: Cache) -> None:
    cache.begin(CONTENT[:HALF])
    cache.fetch(lambda request: good(request, CONTENT + b"more"), good)
    assert cache.requested(1) == [f"bytes={HALF}-"]


def test_content_that_is_labelled_as_gzip_is_kept_as_it_is(cache: Cache) -> None:
    cache.fetch(plain(CONTENT, Content_Length=len(CONTENT), Content_Encoding="gzip"))


def test_chunks(cache: Cache) -> None:
    def chunked(request: Request) -> None:
        request.head(200, Transfer_Encoding="chunked")
        for at in range(0, len(CONTENT), 70_000):
            piece = CONTENT[at : at + 70_000]
            request.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        request.wfile.write(b"0\r\n\r\n")

    cache.fetch(chunked, size=None)


def test_404_asks_the_next_at_once(cache: Cache) -> None:
    cache.fetch(status(404), good)
    assert len(cache.requested(0)) == 1


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_a_passing_trouble_is_asked_again(cache: Cache, code: int) -> None:
    cache.fetch(in_turn(status(code), status(code), good))
    assert len(cache.requested()) == 3


def test_retry_after_is_kept_to_within_reason(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = time.monotonic()
    cache.fetch(in_turn(status(429, Retry_After=1), good))
    assert 1 <= time.monotonic() - begun < 5
    cache.whole.unlink()
    monkeypatch.setattr(fetch, "RETRY_AFTER_S", 0.1)
    cache.fetch(in_turn(status(503, Retry_After=86400), good))
    assert time.monotonic() - begun < 10


def test_silence_ends_and_is_resumed(cache: Cache) -> None:
    cache.fetch(in_turn(stall, good))
    assert cache.requested() == [None, "bytes=1000-"]


def test_silence_before_the_headers_asks_the_next(cache: Cache) -> None:
    cache.fetch(lambda request: time.sleep(3), good)
    assert any(line.endswith("silent for 0.3 s") for line in cache.said)


def test_a_trickle_ends(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "SLOW_S", 0.4)
    begun = time.monotonic()
    cache.fetch(trickle, good)
    assert time.monotonic() - begun < 4
    assert any("too slow: " in line for line in cache.said)
    assert re.fullmatch(r"bytes=[1-9]\d*-", cache.requested(1)[0] or "")  # what trickled is kept


def test_redirects_are_followed_and_a_loop_ends(cache: Cache) -> None:
    cache.fetch(status(302, Location="/0"), status(302, Location="/good"))
    assert any("Exceeded 10 redirects" in line for line in cache.said)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
        assert isinstance(port, int)
        return port


def test_all_failed_says_why_for_each_and_what_to_do(cache: Cache) -> None:
    source = cache.source(status(404), status(500), lambda request: good(request, b"?" * len(CONTENT)))
    refused = f"http://127.0.0.1:{free_port()}/x"
    unknown = "http://no.such.host.invalid/x"
    source = Source(
        version="1", urls=(*source.urls, refused, unknown, "nonsense"), sha256=DIGEST, licence="MIT", size=len(CONTENT)
    )
    with pytest.raises(ToolError) as caught:
        fetch.fetch(source, "linux 9", cache.folder, cache.said.append)
    lines = str(caught.value).splitlines()
    assert lines[0] == "linux 9: none of 6 mirrors gave it"
    assert [line.split(": ", 1)[0].strip() for line in lines[1:7]] == list(source.urls)
    for line, why in zip(
        lines[1:7],
        ("HTTP 404 Not Found", "HTTP 500 Internal", "wrong content", "refused", "resolve", "No scheme supplied"),
        strict=True,
    ):
        assert why in line
    assert lines[7].startswith("  remedy: ") and lines[7].endswith(str(cache.whole))
    assert not cache.whole.exists() and not cache.part.exists()


def test_a_digest_that_is_none_is_the_users_mistake(tmp_path: Path) -> None:
    source = Source(version="1", urls=(), sha256="../../x", licence="MIT")
    with pytest.raises(UserError, match="not a SHA-256"):
        fetch.fetch(source, "thing", tmp_path, print)


@pytest.mark.parametrize("spoil", [b"?" * len(CONTENT), b"short", b""])
def test_a_damaged_copy_in_the_cache_is_reported_and_replaced(cache: Cache, spoil: bytes) -> None:
    cache.fetch(good)
    cache.whole.chmod(0o644)
    cache.whole.write_bytes(spoil)
    assert fetch.cached(cache.source(good), cache.folder) == (len(spoil) == len(CONTENT))
    with pytest.raises(ToolError):
        cache.fetch(status(404))
    assert any("damaged" in line for line in cache.said)
    assert not cache.whole.exists()
    cache.fetch(good)


def test_cached(cache: Cache) -> None:
    assert not fetch.cached(cache.source(good), cache.folder)
    cache.fetch(good)
    assert fetch.cached(cache.source(good), cache.folder)
    assert fetch.cached(cache.source(good, size=None), cache.folder)


def test_a_cache_that_is_whole_may_be_read_only_and_one_that_is_not_a_folder_is_named(cache: Cache) -> None:
    cache.fetch(good)
    (cache.folder / f"sha256/{DIGEST}.lock").unlink()
    cache.fetch(good)
    assert not (cache.folder / f"sha256/{DIGEST}.lock").exists()
    (cache.folder / "file").touch()
    with pytest.raises(ToolError, match=r"file.*: the cache cannot be used: "):
        fetch.fetch(cache.source(good), "thing", cache.folder / "file", print)


# A real second process: what fetch() says goes to its stdout.
FETCH = """
import sys
from pathlib import Path
from minguest.util import fetch, web
from minguest.model import Source
source = Source(version="1", urls=(sys.argv[1],), sha256=sys.argv[2], licence="MIT", size=int(sys.argv[3]))
print(fetch.fetch(source, "thing", Path(sys.argv[4]), lambda line: print(line, flush=True)), flush=True)
"""


def other_process(cache: Cache, path: str, stderr: int | None = None) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", FETCH, cache.server.url(path), DIGEST, str(len(CONTENT)), os.fspath(cache.folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.fspath(ROOT), *sys.path])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment)


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_killed_while_it_downloads_leaves_a_part_that_is_resumed(cache: Cache) -> None:
    go_on = threading.Event()

    def half_then_wait(request: Request) -> None:
        request.head(200, Content_Length=len(CONTENT))
        request.wfile.write(CONTENT[:HALF])
        go_on.wait(20)

    cache.server.routes["/slow"] = half_then_wait
    with other_process(cache, "/slow") as process:
        # A file's buffer holds some of the last bytes back.
        wait_for(lambda: cache.part.exists() and cache.part.stat().st_size >= HALF // 2)
        process.send_signal(signal.SIGKILL)
    go_on.set()
    begun = cache.part.read_bytes()
    assert CONTENT.startswith(begun) and not cache.whole.exists()
    assert not fetch.cached(cache.source(good), cache.folder)
    cache.fetch(good)
    assert cache.requested() == [f"bytes={len(begun)}-"]


def test_two_processes_download_once(cache: Cache) -> None:
    go_on = threading.Event()

    def when_released(request: Request) -> None:
        go_on.wait(20)
        good(request)

    cache.server.routes["/slow"] = when_released
    with other_process(cache, "/slow") as first:
        wait_for(lambda: bool(cache.server.requested("/slow")))
        with other_process(cache, "/slow") as second:
            assert second.stdout is not None and first.stdout is not None
            assert "another run is downloading it" in second.stdout.readline()
            go_on.set()
            assert second.stdout.read() == f"{cache.whole}\n"
            assert first.stdout.read().endswith(f"{cache.whole}\n")
    assert cache.server.requested("/slow") == [None]


def test_a_disk_that_is_too_small_is_named_before_the_download(cache: Cache) -> None:
    source = Source(version="1", urls=(cache.server.url("/good"),), sha256=DIGEST, licence="MIT", size=1 << 60)
    with pytest.raises(ToolError, match=r"needs 1152921504607 MB more, and \d+ MB are free"):
        fetch.fetch(source, "thing", cache.folder, print)
    assert cache.server.seen == []


def test_a_disk_that_fills_up_is_named(cache: Cache) -> None:
    # /dev/full gives the real ENOSPC, for every user.
    cache.part.parent.mkdir(parents=True)
    cache.part.symlink_to("/dev/full")
    with pytest.raises(ToolError, match=r"(?s)No space left on device.*remedy: free some space"):
        cache.fetch(good)
    assert not cache.whole.exists()


# No size, so that the check before the download cannot see it.
FULL = """
from minguest.util import fetch, web
from minguest.model import Source
source = Source(version="1", urls=(sys.argv[3],), sha256=sys.argv[4], licence="MIT")
try:
    fetch.fetch(source, "thing", folder, print)
except ToolError as error:
    print(error)
print({path.suffix: path.stat().st_size for path in (folder / "sha256").iterdir()})
"""


def test_a_disk_that_fills_up_keeps_the_part(cache: Cache) -> None:
    said = small_disk.run(FULL, cache.folder, "128k", cache.server.url("/good"), DIGEST)
    assert "No space left on device" in said and "remedy: free some space" in said
    assert re.search(r"'\.part': 1[0-9]{5}\b", said) and "''" not in said


def test_lines_of_progress_are_few(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def pieces(request: Request) -> None:
        request.head(200, Content_Length=len(CONTENT))
        for at in range(0, len(CONTENT), 3000):
            request.wfile.write(CONTENT[at : at + 3000])
            time.sleep(0.001)

    cache.fetch(pieces)
    assert len(cache.said) == 2  # begin and end: all was there within LINE_S
    cache.whole.unlink()
    cache.said.clear()
    monkeypatch.setattr(progress, "LINE_S", 0)
    cache.fetch(pieces)
    between = [line for line in cache.said[1:-1] if re.fullmatch(r"thing: 0\.\d of 0\.3 MB \(\d+ %\)", line)]
    assert 3 <= len(between) == len(cache.said) - 2 <= 10


def test_a_terminal_gets_a_bar(cache: Cache) -> None:
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 80))
    os.set_blocking(terminal, False)
    with other_process(cache, "/good", stderr=end) as process:
        assert process.wait(20) == 0
    try:
        assert re.search(rb"thing: +\d+%", os.read(terminal, 10_000))
    finally:
        os.close(end)
        os.close(terminal)


def test_reachable(cache: Cache) -> None:
    server = cache.server

    def no_head(request: Request) -> None:
        (status(405) if request.command == "HEAD" else status(206, Content_Range="bytes 0-0/9"))(request)

    refused = f"http://127.0.0.1:{free_port()}/x"
    source = cache.source(status(404), status(503), status(302, Location="/good"))

    def hangs_up_on_head(request: Request) -> None:
        if request.command == "GET":
            status(200)(request)

    assert fetch.reachable(source, 5) == server.url("/2")
    assert fetch.reachable(cache.source(hangs_up_on_head), 5) == server.url("/0")
    assert fetch.reachable(cache.source(no_head), 5) == server.url("/0")
    assert server.requested("/0")[-1] == "bytes=0-0"
    nobody = cache.source(status(404), status(500))
    nobody = Source(version="1", urls=(*nobody.urls, refused, "nonsense"), sha256=DIGEST, licence="MIT")
    assert fetch.reachable(nobody, 5) is None
    assert fetch.reachable(cache.source(), 5) is None


def test_reachable_takes_the_first_and_never_longer_than_its_deadline(cache: Cache) -> None:
    def late(request: Request) -> None:
        for byte in b"HTTP/1.1 200 OK but slow":  # each in time, so only a deadline over all helps
            request.wfile.write(bytes([byte]))
            time.sleep(0.1)

    begun = time.monotonic()
    assert fetch.reachable(cache.source(late, late, status(200)), 1.5) == cache.server.url("/2")
    assert time.monotonic() - begun < 1
    begun = time.monotonic()
    assert fetch.reachable(cache.source(late, late), 0.3) is None
    assert time.monotonic() - begun < 0.6


def test_a_small_file(cache: Cache) -> None:
    urls = cache.source(status(404), plain(b"x" * 1001), plain(b"signed", Content_Length=6)).urls
    assert fetch.fetch_small(urls, 1000) == b"signed"
    with pytest.raises(
        ToolError, match=r"(?s)^0: none of 2 mirrors.*/0: HTTP 404 Not Found\n.*/1: more than 1000 bytes"
    ):
        fetch.fetch_small(urls[:2], 1000)
    with pytest.raises(ToolError, match="none of 0"):
        fetch.fetch_small([])


def test_a_small_file_that_trickles_or_is_cut(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "SMALL_S", 0.3)
    urls = cache.source(trickle, plain(b"part", Content_Length=100)).urls
    with pytest.raises(ToolError, match=r"(?s)/0: not done after 0\.3 s.*/1: IncompleteRead"):
        fetch.fetch_small(urls)
