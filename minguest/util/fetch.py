# SPDX-License-Identifier: Apache-2.0
"""Downloads, kept by their SHA-256: `cache/sha256/<digest>` is a file that was complete when it got that name.

Beside it may be `<digest>.part` (begun, to be resumed) and `<digest>.lock` (empty; kept, because removing a lock file
would let two runs each hold one). A killed run leaves nothing else.
"""

import hashlib
import os
import queue
import re
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

from minguest.model import Source
from minguest.util import files, web
from minguest.util.errors import ToolError, UserError
from minguest.util.progress import Download

# Seconds to a connection: a lost SYN is sent again after 1, 3 and 7 s, so three chances.
CONNECT_S = 10
# Seconds of silence on an open connection: a mirror that first gets the file from its origin may need some.
SILENCE_S = 30
# Seconds from the request to the end of the answer's headers, with RETRIES and redirects: a mirror that sends one byte
# of a header now and then is never silent.
ANSWER_S = 180
# How often one request is repeated, with pauses of 0, 2 and 4 s, or those of Retry-After up to RETRY_AFTER_S: there are
# other mirrors, and a user waits.
RETRIES = 3
BACKOFF_S = 1
RETRY_AFTER_S = 20
# How often a download is resumed from one mirror that cut the file short.
RESUMES = 5
# Most bytes of a file whose source gives no size: more than any kernel has, too few to fill a disk.
UNKNOWN_SIZE = 4 << 30
# Bytes read at a time.
CHUNK = 1 << 16
# Seconds for the whole download of a small file.
SMALL_S = 60


class _MirrorError(Exception):
    """This mirror failed, and why; the next one may succeed."""


class _CutError(Exception):
    """The connection ended before the file did, and how; the download can be resumed."""


class _Wanted(NamedTuple):
    """The arguments of one call of fetch()."""

    source: Source
    name: str
    unsized: int
    """Most bytes of the file if the source gives no size."""
    auth: AuthBase | None

    @property
    def limit(self) -> int:
        return self.source.size if self.source.size is not None else self.unsized


def fetch(
    source: Source,
    name: str,
    cache: Path,
    say: Callable[[str], None],
    *,
    limit: int | None = None,
    auth: AuthBase | None = None,
) -> Path:
    """The source's file in the cache, downloaded if it is not there; `name` is for messages, `say` takes them.

    A file in the cache is read and hashed at each call. Mirrors are tried in the source's order, each is resumed
    a few times; a file counts only if its size and SHA-256 are right. Two runs at the same time download once. `limit`:
    most bytes of the file if the source gives no size. `auth` is sent to the mirrors, and not where they redirect.
    Raises ToolError: no mirror gave the file (with a line for each), or the cache's disk is full or not writable.
    """
    whole = _place(source, cache)
    try:
        with files.disk_errors(whole.parent):
            # Without the lock first: a cache that is whole may be read-only.
            if whole.exists() and not _spoiled(whole, source):
                files.used(whole)
                return whole
            with files.lock(
                whole.with_name(f"{whole.name}.lock"),
                lambda: say(f"{name}: another run is downloading it; waiting for that run"),
            ):
                return _fetch_locked(_Wanted(source, name, UNKNOWN_SIZE if limit is None else limit, auth), whole, say)
    except OSError as error:
        raise ToolError(
            f"{error.filename or whole}: the cache cannot be used: {error.strerror}",
            "fix the permissions of the cache, or give it another folder",
        ) from error


def cached(source: Source, cache: Path) -> bool:
    """Whether the cache has the file, by name and size; its content is not read."""
    try:
        size = _place(source, cache).stat().st_size
    except OSError:
        return False
    return source.size in (None, size)


def reachable(source: Source, deadline_s: float) -> str | None:
    """The first of the source's URLs that answers with success, or None if none did within `deadline_s` seconds.

    All are requested at the same time, for their headers only.
    """
    answers: queue.Queue[str | None] = queue.Queue()

    def request(url: str) -> None:
        answers.put(url if _answers(url, deadline_s) else None)

    end = time.monotonic() + deadline_s
    for url in source.urls:
        # A daemon: a name lookup cannot be interrupted, and must not delay the end of the program.
        threading.Thread(target=request, args=(url,), daemon=True).start()
    for _ in source.urls:
        try:
            answer = answers.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            return None
        if answer is not None:
            return answer
    return None


def fetch_small(urls: Sequence[str], limit: int = 64 << 10) -> bytes:
    """The content of a small file (a signature), from the first URL that gives it; it is not cached.

    Raises ToolError, with a line for each URL, when none gives a file of at most `limit` bytes.
    """
    failures = []
    with _session() as session:
        for url in urls:
            content = bytearray()
            end = time.monotonic() + SMALL_S
            try:
                with _get(session, url, {}) as response:
                    if response.status_code != 200:
                        raise _MirrorError(_status(response))
                    while chunk := _read(response):
                        content += chunk
                        if len(content) > limit:
                            raise _MirrorError(f"more than {limit} bytes, too many for such a file")
                        if time.monotonic() > end:
                            raise _MirrorError(f"not done after {SMALL_S} s")
                return bytes(content)
            except (_MirrorError, _CutError) as error:
                failures.append(f"\n  {web.shown(url)}: {error}")
    name = web.shown(urls[0]).rsplit("/", 1)[-1] if urls else "a small file"
    raise ToolError(
        f"{name}: none of {len(urls)} mirrors gave it{''.join(failures)}",
        "check the network, or try again later",
    )


def _place(source: Source, cache: Path) -> Path:
    """Where the file is or will be."""
    digest = source.sha256.lower()
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise UserError(
            f"sha256 = {source.sha256!r}: not a SHA-256, which has 64 hexadecimal digits",
            "correct it in the file that names the source (configs/sources.toml)",
        )
    return cache / "sha256" / digest


def _spoiled(whole: Path, source: Source) -> str:
    """Why the file in the cache is damaged, or an empty string."""
    size = whole.stat().st_size
    if source.size is not None and size != source.size:
        return f"it has {size} bytes instead of {source.size}"
    return "" if files.sha256(whole) == whole.name else "its SHA-256 is wrong"


def _fetch_locked(wanted: _Wanted, whole: Path, say: Callable[[str], None]) -> Path:
    """fetch(), in the process that holds the lock."""
    source, name = wanted.source, wanted.name
    if whole.exists():
        why = _spoiled(whole, source)
        if not why:
            return whole  # another run has just made it
        say(f"{name}: the copy in the cache is damaged ({why}); removing it and downloading it again")
        whole.unlink()
    part = whole.with_name(f"{whole.name}.part")
    _check_room(source, part)
    failures = []
    with _session(wanted.auth) as session:
        for url in source.urls:
            try:
                _from_mirror(session, url, wanted, part, Download(name, source.size, say))
            except _MirrorError as error:
                say(f"{name}: {web.shown(url)}: {error}")
                failures.append(f"\n  {web.shown(url)}: {error}")
            else:
                part.chmod(0o444)  # so that nobody changes it by mistake
                with part.open("rb") as file:
                    os.fsync(file.fileno())
                part.replace(whole)
                return whole
    raise ToolError(
        f"{name}: none of {len(source.urls)} mirrors gave it{''.join(failures)}",
        f"check the network and run the same command again; or save a file with this SHA-256 as {whole}",
    )


def _check_room(source: Source, part: Path) -> None:
    """Raise ToolError before the download if the disk has no room for it."""
    if source.size is None:
        return
    needed = source.size - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise ToolError(
            f"{part.parent}: the download needs {needed / 1e6:.0f} MB more, and {free / 1e6:.0f} MB are free",
            "free some space there, or give the cache another folder",
        )


def _from_mirror(session: requests.Session, url: str, wanted: _Wanted, part: Path, progress: Download) -> None:
    """Complete `part` from one mirror, from where it ends. Raises _MirrorError when this mirror fails."""
    source = wanted.source
    cuts = 0
    while True:
        try:
            pure, digest = _stream(session, url, wanted, part, progress)
        except _CutError as error:
            cuts += 1
            if cuts > RESUMES:
                raise _MirrorError(f"{error}, {cuts} times") from error
            continue
        if digest == source.sha256.lower():
            return
        part.unlink()  # a later request must not append to it
        if pure:
            raise _MirrorError(f"wrong content (SHA-256 {digest}, expected {source.sha256.lower()})")
        # The wrong bytes may be another mirror's or an earlier run's: request all of it from this one. The loop ends,
        # because one answer from zero to the end is pure, and cuts are counted.
        cuts += 1
        if cuts > RESUMES:
            raise _MirrorError(f"wrong content, downloaded in {cuts} pieces")


def _stream(session: requests.Session, url: str, wanted: _Wanted, part: Path, progress: Download) -> tuple[bool, str]:
    """One request: append its answer to `part`, up to the end. Returns whether all of `part` is from this request, and
    its SHA-256. Raises _CutError when the end is missing, _MirrorError when the answer is not the file."""
    source, limit = wanted.source, wanted.limit
    start, digest = _begun(part)
    if digest.hexdigest() == source.sha256.lower():
        return False, digest.hexdigest()  # killed just before the rename
    if start >= limit:  # full and wrong
        start, digest = 0, hashlib.sha256()

    response = _get(session, url, _range(start))
    if start and (response.status_code == 416 or (response.status_code == 206 and _starts(response) != start)):
        response.close()
        start = 0
        response = _get(session, url, {})
    with response:
        if response.status_code == 200:
            start = 0
        elif response.status_code != 206 or not start:
            raise _MirrorError(_status(response))
        length = _length(response)
        offered = _whole_length(response)
        if offered is not None and (offered > limit or source.size not in (None, offered)):
            right = f"{source.size}" if source.size is not None else f"at most {limit}"
            raise _MirrorError(f"offers {offered} bytes instead of {right}")
        if not start:
            digest = hashlib.sha256()

        position = start
        pace = web.Pace()
        begun = time.monotonic()
        with part.open("ab" if start else "wb") as file, progress.over(start, url) as report:
            while chunk := _read(response):
                if position + len(chunk) > limit:
                    part.unlink()
                    raise _MirrorError(f"sends more than {limit} bytes, the most that the file may have")
                file.write(chunk)
                digest.update(chunk)
                position += len(chunk)
                report(position)
                if slow := pace.count(len(chunk)):
                    raise _MirrorError(slow)
        end = source.size if source.size is not None else (start + length if length is not None else position)
        if position < end:
            raise _CutError(f"cut short at {position} of {end} bytes")
        progress.done(position - start, time.monotonic() - begun)
    return start == 0, digest.hexdigest()


def _begun(part: Path) -> tuple[int, "hashlib._Hash"]:
    """How many bytes an earlier request left, and the hash over them."""
    digest = hashlib.sha256()
    if not part.exists():
        return 0, digest
    size = part.stat().st_size
    if not size:
        return 0, digest
    with part.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return size, digest


def _range(start: int) -> dict[str, str]:
    return {"Range": f"bytes={start}-"} if start else {}


def _starts(response: requests.Response) -> int | None:
    """Where a partial answer starts (RFC 9110, 14.4), or None if its header is missing or malformed."""
    match = re.match(r"bytes (\d+)-\d+/", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _whole_length(response: requests.Response) -> int | None:
    """Bytes of the whole file that the answer gives, or gives a part of; None if it does not say."""
    if response.status_code == 200:
        return _length(response)
    match = re.search(r"/(\d+)$", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _length(response: requests.Response) -> int | None:
    """Bytes that the answer announces, or None."""
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def _status(response: requests.Response) -> str:
    return f"HTTP {response.status_code} {response.reason or ''}".rstrip()


def _session(auth: AuthBase | None = None) -> requests.Session:
    retry = urllib3.Retry(
        total=RETRIES,
        connect=1,  # a dead mirror costs CONNECT_S each time, and there are others
        read=1,
        status_forcelist=(429, 500, 502, 503, 504),
        allowed_methods=("GET", "HEAD"),
        backoff_factor=BACKOFF_S,
        retry_after_max=RETRY_AFTER_S,
        raise_on_status=False,  # the last answer has the message
    )
    # The file itself is hashed, so no server may compress it on the way.
    session = web.session()
    session.auth = auth
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _get(session: requests.Session, url: str, headers: dict[str, str]) -> requests.Response:
    """Request a URL and return when its headers have come. Raises _MirrorError."""
    timeout = (CONNECT_S, SILENCE_S)
    try:
        return web.within(ANSWER_S, lambda: session.get(url, headers=headers, stream=True, timeout=timeout))
    except web.DeadlineError as error:
        raise _MirrorError(str(error)) from error
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, *web.NEVER) as error:
        raise _MirrorError(web.why(error, CONNECT_S, SILENCE_S)) from error


def _read(response: requests.Response) -> bytes:
    """The bytes that have come; waits only if there are none. Empty at the end. Raises _CutError."""
    try:
        return web.more(response, SILENCE_S)
    except web.DeadlineError as error:
        raise _MirrorError(str(error)) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _CutError(web.why(error, CONNECT_S, SILENCE_S)) from error


def _answers(url: str, deadline_s: float) -> bool:
    """Whether a URL answers with success. A server may refuse HEAD or hang up; then one byte is requested."""
    for method, headers in (("HEAD", {}), ("GET", {"Range": "bytes=0-0"})):
        try:
            with (
                web.session() as session,
                session.request(method, url, headers=headers, stream=True, timeout=deadline_s) as response,
            ):
                if 200 <= response.status_code < 300:
                    return True
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError):
            continue
    return False
