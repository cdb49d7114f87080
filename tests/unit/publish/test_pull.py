# SPDX-License-Identifier: Apache-2.0
"""A release is got from a web server whole and verified, or not at all."""

import base64
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import pytest

from minguest import cli, paths
from minguest.paths import Layout
from minguest.publish import destination, pull
from minguest.release import layout, sshsig
from minguest.util import fetch, files, web
from minguest.util.errors import MinguestError, ToolError, UserError
from tests import ROOT, faults, forgery, small_disk, workshop


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workshop.key(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Layout:
    made = workshop.build(tmp_path_factory.mktemp("work") / "project")
    workshop.tested(made)
    workshop.make(made, key)
    return made


@pytest.fixture
def shelf(at: Layout, tmp_path: Path) -> Path:
    """What `doit publish to=DIR` made."""
    destination.publish(at.release, str(tmp_path / "shelf"), workshop.quiet)
    return tmp_path / "shelf/default-4.12"


@pytest.fixture
def server(shelf: Path) -> Iterator[faults.Proxy]:
    """A web server of the shelf, behind a proxy that can fail."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(shelf))) as real:
        threading.Thread(target=real.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        with faults.proxy(f"127.0.0.1:{real.server_port}") as proxy:
            yield proxy
        real.shutdown()


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty home, and no waiting."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MINGUEST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(web, "PAUSES", (0.0, 0.0))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")


def get(source: str, key: Path, cache: Path, to: Path | None = None) -> Path:
    with sshsig.trusting(key.with_suffix(".pub"), Path("nowhere")) as trusted:
        return pull.pull(source, to, trusted, cache, [], allow_failed=False, say=workshop.quiet)[0]


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("path", ["/1.0", "/1.0/", "/latest", "/", ""])
def test_a_release_comes_from_a_web_server(server: faults.Proxy, key: Path, at: Layout, path: str) -> None:
    assert cli.main(["pull", f"http://{server.address}{path}", "--key", f"{key}.pub"]) == 0
    place = Path.cwd() / "default-4.12-1.0"
    assert left(Path.cwd()) == ["default-4.12-1.0"]
    assert layout.load(place).items == layout.load(at.release).items
    assert (place / paths.RUN_GUEST).stat().st_mode & 0o111


def test_verify_takes_an_address_and_leaves_nothing(
    server: faults.Proxy, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", f"http://{server.address}/latest", "--key", f"{key}.pub"]) == 0
    assert "default-4.12 1.0: holds" in capsys.readouterr().out
    assert left(Path.cwd()) == []


def test_an_unsigned_release_is_not_called_signed(
    server: faults.Proxy, shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = workshop.build(tmp_path / "unsigned")
    workshop.tested(at)
    workshop.make(at, None)
    shutil.rmtree(shelf.parent)
    destination.publish(at.release, str(shelf.parent), workshop.quiet)
    for command in ("pull", "verify"):
        assert cli.main([command, f"http://{server.address}/latest", "--unsigned"]) == 0
        said = capsys.readouterr().out
        assert "/latest: its `latest` chose 1.0. It is unsigned: nothing proves who made it, nor that it is" in said
        assert "It is signed" not in said


def test_pulled_again_it_is_there_already(server: faults.Proxy, key: Path, tmp_path: Path) -> None:
    url = f"http://{server.address}/1.0"
    place = get(url, key, tmp_path / "cache")
    assert get(url, key, tmp_path / "cache") == place
    (place / "bzImage").write_bytes(b"another")
    with pytest.raises(UserError, match="was changed after it was pulled"):
        get(url, key, tmp_path / "cache")
    shutil.rmtree(place)
    place.mkdir()
    with pytest.raises(UserError, match="already exists, and is not a release"):
        get(url, key, tmp_path / "cache")


def test_another_release_in_its_place_is_kept(server: faults.Proxy, key: Path, tmp_path: Path) -> None:
    at = workshop.build(tmp_path / "other", "CONFIG_SMP=y\nCONFIG_NR_CPUS=8\n")
    workshop.tested(at)
    workshop.make(at, key)
    shutil.copytree(at.release, tmp_path / "mine")
    with pytest.raises(UserError, match="another release is there"):
        get(f"http://{server.address}/1.0", key, tmp_path / "cache", tmp_path / "mine")
    assert layout.load(tmp_path / "mine").items == layout.load(at.release).items


def test_a_wrong_key_stops_before_anything_is_got(server: faults.Proxy, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which is not trusted here"):
        get(f"http://{server.address}/1.0", workshop.key(tmp_path), tmp_path / "cache")
    assert {seen.path for seen in server.seen} == {"/1.0/SHA256SUMS", "/1.0/SHA256SUMS.sig"}
    assert left(Path.cwd()) == []


@pytest.mark.parametrize("name", ["bzImage", "SHA256SUMS", "SHA256SUMS.sig", "manifest.json", "index.html"])
def test_a_changed_file_leaves_nothing(server: faults.Proxy, shelf: Path, key: Path, tmp_path: Path, name: str) -> None:
    content = (shelf / "1.0" / name).read_bytes()
    (shelf / "1.0" / name).write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    with pytest.raises(MinguestError):
        get(f"http://{server.address}/1.0", key, tmp_path / "cache")
    assert left(Path.cwd()) == []


@pytest.mark.parametrize("fault", [503, 429, "no server", "no answer", "half an answer"])
def test_every_request_may_fail_once(server: faults.Proxy, key: Path, tmp_path: Path, fault: faults.Fault) -> None:
    # The same path is requested again at once; fetch's own pauses are in its own tests.
    failed: set[str] = set()

    def once(_: int, seen: faults.Seen) -> faults.Fault | None:
        if seen.path in failed or not seen.path.endswith(("SUMS", "SUMS.sig")):
            return None
        failed.add(seen.path)
        return fault

    server.fault = once
    assert get(f"http://{server.address}/1.0", key, tmp_path / "cache").is_dir()
    assert len(failed) == 2


@pytest.mark.parametrize(
    ("path", "fault", "why"),
    [
        ("/1.0", 500, "HTTP 500"),
        ("/1.0", 401, "HTTP 401"),
        ("/1.0", "no answer", "GET http"),
        ("/2.0", None, "not a release: it has no SHA256SUMS"),
    ],
)
def test_a_server_that_does_not_have_it_is_named(
    server: faults.Proxy, key: Path, tmp_path: Path, path: str, fault: faults.Fault | None, why: str
) -> None:
    server.fault = lambda number, seen: fault
    with pytest.raises(ToolError, match=why):
        get(f"http://{server.address}{path}", key, tmp_path / "cache")
    assert left(Path.cwd()) == []


@pytest.mark.parametrize(
    ("latest", "why"),
    [(b"{", "damaged"), (b'{"version": "../x"}', "is not a version"), (b"[" * 70000, "more than 65536 bytes")],
)
def test_a_wrong_latest_is_named(
    server: faults.Proxy, shelf: Path, key: Path, tmp_path: Path, latest: bytes, why: str
) -> None:
    (shelf / "latest.json").write_bytes(latest)
    with pytest.raises(MinguestError, match=why):
        get(f"http://{server.address}/", key, tmp_path / "cache")


@pytest.mark.parametrize("source", ["ftp://host/x", "oci://", "http://", "s3://bucket/x"])
def test_sources_that_cannot_be_are_named(key: Path, tmp_path: Path, source: str) -> None:
    with pytest.raises(MinguestError):
        get(source, key, tmp_path / "cache")
    assert left(Path.cwd()) == []


FULL = """
from minguest.publish import pull
from minguest.release import sshsig
with sshsig.trusting(Path(sys.argv[4]), Path("nowhere")) as trusted:
    try:
        pull.pull(sys.argv[3], folder / "to", trusted, Path(sys.argv[5]), [], allow_failed=False, say=print)
    except ToolError as error:
        print(error)
print(list(folder.iterdir()))
"""


def test_a_full_disk_leaves_nothing(server: faults.Proxy, key: Path, tmp_path: Path) -> None:
    arguments = (f"http://{server.address}/1.0", f"{key}.pub", tmp_path / "cache")
    said = small_disk.run(FULL, tmp_path / "disk", "16k", *arguments)
    assert "No space left on device" in said and "remedy: free some space" in said
    assert said.endswith("[]\n")


def test_an_old_release_under_a_new_address_is_refused(
    server: faults.Proxy, shelf: Path, key: Path, tmp_path: Path
) -> None:
    # Signed and whole, and not what was requested for: NAME/VERSION as it is published, and GitHub's NAME-VERSION.
    for path in ("default-4.12/1.1", "releases/download/default-4.12-1.1"):
        shutil.copytree(shelf / "1.0", shelf / path)
        with pytest.raises(UserError, match=r"is default-4\.12 1\.0, not 1\.1"):
            get(f"http://{server.address}/{path}", key, tmp_path / "cache")
    shutil.copytree(shelf / "1.0", shelf / "default-4.12/1.0")
    assert get(f"http://{server.address}/default-4.12/1.0", key, tmp_path / "cache").is_dir()
    (shelf / "latest.json").write_text('{"version": "1.1"}')
    shutil.copytree(shelf / "1.0", shelf / "1.1")
    shutil.rmtree(Path.cwd() / "default-4.12-1.0")
    with pytest.raises(UserError, match=r"is default-4\.12 1\.0, not 1\.1"):
        get(f"http://{server.address}/", key, tmp_path / "cache")
    assert left(Path.cwd()) == []


def test_a_server_that_never_ends_is_not_waited_for(server: faults.Proxy, key: Path, tmp_path: Path) -> None:
    server.change = lambda seen, answer: faults.Answer(200, body=b"x" * (1 << 20))
    with pytest.raises(MinguestError, match="SHA256SUMS: more than 65536 bytes"):
        get(f"http://{server.address}/1.0", key, tmp_path / "cache")


def test_what_a_stranger_says_does_not_move_the_cursor(
    server: faults.Proxy, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fault = lambda number, seen: faults.Answer(401, body=b"\x1b[2Jdefault-4.12 1.0: holds\x9b\xe2\x80\xae")
    assert cli.main(["verify", f"http://user:secret@{server.address}/1.0", "--key", f"{key}.pub"]) == 1
    said = capsys.readouterr()
    assert "\x1b" not in said.err + said.out and "\u202e" not in said.err + said.out
    assert "secret" not in said.err + said.out


@pytest.mark.parametrize("source", ["https://", "http://host:99999/x", "http://h/x?y=1", "HTTP://127.0.0.1:1/x"])
def test_addresses_that_cannot_be_are_named(key: Path, tmp_path: Path, source: str) -> None:
    with pytest.raises(MinguestError) as found:
        get(source, key, tmp_path / "cache")
    assert "not an address of a release" not in str(found.value)


def test_ended_from_outside_it_leaves_nothing(server: faults.Proxy, key: Path, tmp_path: Path) -> None:
    waiting = threading.Event()
    server.fault = lambda number, seen: waiting.wait(20) and None if seen.path.endswith("bzImage") else None
    argv = [sys.executable, "-m", "minguest.cli", "pull", f"http://{server.address}/1.0", "--key", f"{key}.pub"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        end = time.monotonic() + 20
        while not any(seen.path.endswith("OVMF_VARS.fd") for seen in server.seen) and time.monotonic() < end:
            time.sleep(0.02)
        assert left(Path.cwd()) != []
        process.terminate()
        waiting.set()
        process.communicate(timeout=20)
    assert process.returncode != 0
    assert left(Path.cwd()) == []


# ── passwords ──


@pytest.mark.parametrize("fault", [None, 404, 500, "half an answer", "no server", "wrong"])
@pytest.mark.parametrize("command", ["pull", "verify"])
def test_a_password_in_the_address_is_used_and_never_printed(
    server: faults.Proxy,
    shelf: Path,
    key: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: faults.Fault | Literal["wrong"] | None,
    command: str,
) -> None:
    login = base64.b64encode("us er:ge@héim".encode()).decode()

    def wanted(_: int, seen: faults.Seen) -> faults.Fault | None:
        if seen.headers.get("authorization") != f"Basic {login}":
            return 401
        return fault if fault != "wrong" and seen.path.endswith("bzImage") else None

    monkeypatch.setattr(fetch, "BACKOFF_S", 0)
    server.fault = wanted
    if fault == "wrong":
        (shelf / "1.0/bzImage").write_bytes((shelf / "1.0/bzImage").read_bytes()[::-1])
    source = f"http://us%20er:ge%40h%C3%A9im@{server.address}/1.0"
    assert cli.main([command, source, "--key", f"{key}.pub"]) == (0 if fault is None else 1)
    said = capsys.readouterr()
    for secret in ("ge%40h", "h%C3%A9im", "ge@h", "us%20er", login):
        assert secret not in said.out + said.err
    assert server.address in said.out


def test_a_password_does_not_follow_a_redirect(server: faults.Proxy, key: Path, tmp_path: Path) -> None:
    with faults.proxy(server.behind) as other:
        server.fault = lambda number, seen: faults.Answer(302, {"Location": f"http://{other.address}{seen.path}?s=t"})
        assert get(f"http://user:geheim@{server.address}/1.0", key, tmp_path / "cache").is_dir()
        assert all("authorization" in seen.headers for seen in server.seen)
        assert other.seen and not any("authorization" in seen.headers for seen in other.seen)


# ── sizes ──


def test_no_more_than_the_signed_size_is_taken(
    server: faults.Proxy, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: Layout
) -> None:
    monkeypatch.setattr(fetch, "RESUMES", 0)
    size = (at.release / "bzImage").stat().st_size
    server.change = lambda seen, answer: (
        faults.Answer(200, body=answer.body + b"x" * 100_000) if seen.path.endswith("bzImage") else answer
    )
    with pytest.raises(ToolError, match=f"offers {size + 100_000} bytes instead of {size}"):
        get(f"http://{server.address}/1.0", key, tmp_path / "cache")
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in kept) < 100_000


@pytest.mark.parametrize(
    ("name", "why"), [("SIZES", "is not the file that SHA256SUMS names"), ("gone", "has no SIZES")]
)
def test_sizes_that_nobody_signed_are_refused(
    server: faults.Proxy, shelf: Path, key: Path, tmp_path: Path, name: str, why: str
) -> None:
    if name == "gone":
        (shelf / "1.0/SIZES").unlink()
    else:
        (shelf / "1.0/SIZES").write_bytes(b"9" + (shelf / "1.0/SIZES").read_bytes())
    with pytest.raises(MinguestError, match=why):
        get(f"http://{server.address}/1.0", key, tmp_path / "cache")
    assert not any(seen.path.endswith("bzImage") for seen in server.seen)


def test_a_release_without_sizes_is_pulled_within_a_bound(
    server: faults.Proxy, shelf: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgery.sign_again(shelf / "1.0", key, sized=False)
    place = get(f"http://{server.address}/1.0", key, tmp_path / "cache")
    assert not (place / layout.SIZES).exists()
    shutil.rmtree(place)
    shutil.rmtree(tmp_path / "cache")
    whole = sum(path.stat().st_size for path in (shelf / "1.0").iterdir())
    monkeypatch.setattr(layout, "UNSIZED_MAX", whole - 10_000)
    with pytest.raises(ToolError, match=r"offers \d+ bytes instead of at most \d+"):
        get(f"http://{server.address}/1.0", key, tmp_path / "cache")


def test_what_was_pulled_is_kept_in_a_folder_of_its_own(server: faults.Proxy, key: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    place = get(f"http://{server.address}/1.0", key, cache)
    assert left(cache) == [paths.PULLED] and left(cache / paths.PULLED) == ["sha256"]
    kept = cache / paths.PULLED / "sha256" / files.sha256(place / "bzImage")
    os.utime(kept, (1, 1))
    server.reset()
    get(f"http://{server.address}/1.0", key, cache)
    assert not any(seen.path.endswith("bzImage") for seen in server.seen)
    assert time.time() - kept.stat().st_mtime < 60  # of its last use


# ── which version ──


@pytest.mark.parametrize(
    ("path", "chosen"),
    [
        ("/", "latest.json chose 1.0"),
        ("/latest", "its `latest` chose 1.0"),
        ("/1.0", "the server chose 1.0"),
        ("/default-4.12/1.0", ""),
        ("/download/default-4.12-1.0", ""),
    ],
)
def test_who_chose_the_version_is_said(
    server: faults.Proxy, shelf: Path, key: Path, capsys: pytest.CaptureFixture[str], path: str, chosen: str
) -> None:
    for name in ("default-4.12/1.0", "download/default-4.12-1.0"):
        shutil.copytree(shelf / "1.0", shelf / name)
    assert cli.main(["pull", f"http://{server.address}{path}", "--key", f"{key}.pub"]) == 0
    said = capsys.readouterr().out
    assert (chosen and chosen in said) or (not chosen and " chose " not in said)
    assert ("can hold newer ones back" in said) == bool(chosen)


# ── what a kill leaves ──


def test_what_a_killed_run_left_is_cleared_and_a_running_one_is_not(
    server: faults.Proxy, key: Path, tmp_path: Path
) -> None:
    def begin() -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "minguest.cli", "pull", f"http://{server.address}/1.0", "--key", f"{key}.pub"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
            "MINGUEST_CACHE": str(tmp_path / f"cache-{time.monotonic()}"),
        }
        before = len(server.seen)
        process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        end = time.monotonic() + 20
        while not any(seen.path.endswith("OVMF_VARS.fd") for seen in server.seen[before:]) and time.monotonic() < end:
            time.sleep(0.02)
        return process

    waiting = threading.Event()
    server.fault = lambda number, seen: waiting.wait(20) and None if seen.path.endswith("bzImage") else None
    killed = begin()
    (leftover,) = left(Path.cwd())
    killed.kill()
    killed.communicate()
    assert left(Path.cwd()) == [leftover]
    alive = begin()
    (held,) = left(Path.cwd())
    assert held != leftover
    waiting.set()
    assert get(f"http://{server.address}/1.0", key, tmp_path / "cache", Path.cwd() / "other").is_dir()
    said, _ = alive.communicate(timeout=30)
    assert alive.returncode == 0, said
    assert left(Path.cwd()) == ["default-4.12-1.0", "other"]
