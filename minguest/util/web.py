# SPDX-License-Identifier: Apache-2.0
"""One HTTP request, repeated while that can help: for uploads and small answers.

`fetch` is for downloads that are resumed.
"""

import contextlib
import queue
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import requests
import requests.auth
import urllib3

from minguest.util.errors import ToolError, UserError, redacted, shown_url

T = TypeVar("T")
_TO_THE_END = re.compile(r"[A-Za-z0-9+.-]*:?//.*", re.DOTALL)

# Seconds until a connection must be open, and of silence on an open one.
CONNECT_S = 10
SILENCE_S = 60
# Pauses in seconds before the second and each later try; Retry-After can make them longer, up to RETRY_AFTER_S.
PAUSES = (0.5, 1.0, 2.0, 4.0)
RETRY_AFTER_S = 20
# The service is busy or broken at the moment (RFC 9110, RFC 6585); 408: the request was too slow on its way.
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
# Bytes of an answer's body that an error shows, and bytes that are read for it.
SHOWN = 300
SHOWN_MAX = 64 << 10
# Most bytes of an answer, unless the caller gives a limit.
LIMIT = 1 << 30
# Seconds for the whole of an answer's body.
WHOLE_S = 120
# Seconds from the request to the end of the answer's headers: name lookup, connection, TLS and redirects included. With
# a limit on silence alone, a server could send one byte of a header now and then without end.
ANSWER_S = 120
# A download slower than this, for this long, is given up: a kernel would need two days. A request with a body has the
# time that the body takes at this speed.
SLOW_BYTES_PER_S = 1000
SLOW_S = 60
# Most redirects, one after the other.
REDIRECTS = 10
CHUNK = 1 << 16
LOGIN = "write https://HOST/PATH; in a user's name or password write %40 for @, %2F for /, %3F for ?, %23 for #"
# Errors that another try does not change: the address or a header that was sent is wrong.
NEVER = (
    ValueError,
    TypeError,  # from requests, for a proxy's address without a host
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
    requests.exceptions.TooManyRedirects,
)


class HttpError(ToolError):
    """An unexpected answer of a service; `status` is None if there was no answer."""

    def __init__(self, message: str, status: int | None, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.status = status


class DeadlineError(Exception):
    """An answer's headers did not come in time; the message gives that time."""


class _Session(requests.Session):
    """Does not read the body of a redirect: requests would read all of it, of any size."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        target = super().get_redirect_target(resp)
        if target and not resp._content_consumed:  # type: ignore[attr-defined]
            resp.raw.close()
            resp._content = b""
            resp._content_consumed = True  # type: ignore[attr-defined]
        return target


def session() -> requests.Session:
    """A session that identifies itself and requests bytes without an encoding."""
    made = _Session()
    made.max_redirects = REDIRECTS
    made.headers["User-Agent"] = "minguest"
    made.headers["Accept-Encoding"] = "identity"
    return made


def login(url: str) -> tuple[str, requests.auth.AuthBase | None]:
    """A URL without its user name and password, and these (RFC 7617; None if it has none).

    A URL without a password cannot print it, and cannot send it where a redirect leads. UserError for what is not a URL
    of a web server; it shows only a part of it.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"{shown(url)}: not the address of a web server", LOGIN) from error
    name, at, place = parts.netloc.rpartition("@")
    if not host or "@" in parts.path + parts.query + parts.fragment or not url.isprintable() or " " in url:
        raise UserError(f"{shown(url)}: not the address of a web server", LOGIN)
    if not at:
        return url, None
    user, _, password = name.partition(":")
    # As bytes: requests knows Latin-1 only.
    auth = requests.auth.HTTPBasicAuth(unquote(user).encode(), unquote(password).encode())
    return parts._replace(netloc=place).geturl(), auth


def within(seconds: float, request: Callable[[], T]) -> T:
    """What `request` returns or raises; DeadlineError if it has done neither after `seconds`.

    It runs in its own thread: a name lookup, a TLS handshake and the reading of headers have no limit for the whole. A
    late thread is abandoned; it ends with the program at the latest.
    """
    done: queue.SimpleQueue[tuple[T, None] | tuple[None, Exception]] = queue.SimpleQueue()

    def work() -> None:
        try:
            done.put((request(), None))
        except Exception as error:
            done.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        result, error = done.get(timeout=max(0.0, seconds))
    except queue.Empty:
        raise DeadlineError(f"no complete answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


class Pace:
    """Detects a trickle: each read is in time, and the end never comes."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._bytes = 0

    def count(self, length: int) -> str:
        """Count bytes that have come; returns what is wrong if they were too few for too long, else an empty string."""
        self._bytes += length
        elapsed = time.monotonic() - self._since
        if elapsed < SLOW_S:
            return ""
        if self._bytes < SLOW_BYTES_PER_S * elapsed:
            return f"too slow: {self._bytes} bytes in {elapsed:.0f} s"
        self._since += elapsed
        self._bytes = 0
        return ""


class Authorization(requests.auth.AuthBase):
    """Sets the header, or none; a session with any auth does not take a login from ~/.netrc."""

    def __init__(self, header: str | None) -> None:
        self._header = header

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._header is not None:
            request.headers["Authorization"] = self._header
        return request


def tries() -> Iterator[None]:
    """Yield once, and again after each of PAUSES."""
    for pause in (0.0, *PAUSES):
        time.sleep(pause)
        yield


def call(
    using: requests.Session,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | Path | None = None,
    wanted: Collection[int] = (200,),
    auth: requests.auth.AuthBase | None = None,
    redirects: bool = True,
    stream: bool = False,
    limit: int = LIMIT,
) -> requests.Response:
    """Send a request and return its whole answer if its status is one of `wanted`; `stream` leaves its body unread.

    After a failed or cut connection, and after a status in TRANSIENT, it is sent again: the request must be safe to
    repeat. A Path as `body` is streamed. Raises HttpError, which names the URL and quotes the service's answer; also if
    the answer has more than `limit` bytes or takes more than WHOLE_S.
    """
    failure: HttpError | None = None
    pause = 0.0
    for following in (*PAUSES, None):
        time.sleep(pause)
        try:
            answer = _send(using, method, url, headers, body, auth, redirects)
            if not stream or answer.status_code not in wanted:
                _read(answer, limit, whole=answer.status_code in wanted)
        except DeadlineError as error:
            raise HttpError(f"{method} {shown(url)}: {error}", None, "try again later") from error
        except NEVER as error:
            raise HttpError(f"{method} {shown(url)}: {why(error)}", None, "check the address") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            failure, pause = (
                HttpError(f"{method} {shown(url)}: {why(error)}", None, "try again later"),
                following or 0.0,
            )
            continue
        if answer.status_code in wanted:
            return answer
        failure = refusal(answer)
        if answer.status_code not in TRANSIENT:
            raise failure
        pause = max(following or 0.0, min(retry_after(answer) or 0.0, RETRY_AFTER_S))
    assert failure is not None
    raise HttpError(f"{failure.message} (tried {len(PAUSES) + 1} times)", failure.status, "try again later")


def more(answer: requests.Response, seconds: float) -> bytes:
    """The bytes of a body that have come; waits only if there are none. Empty at its end. Not decoded: some servers
    label a .tar.gz as gzip *encoding*.

    DeadlineError if nothing came within `seconds`: a server that sends the body in chunks (RFC 9112, 7.1) may send the
    line before a chunk one byte now and then, so that no single read of its socket is late.
    """

    # read1: read() would wait for a full chunk, and hide a trickle.
    def read() -> bytes:
        return answer.raw.read1(CHUNK, decode_content=False) or b""

    return _reading(answer, seconds, read) if getattr(answer.raw, "chunked", False) else read()


def _reading(answer: requests.Response, seconds: float, read: Callable[[], T]) -> T:
    """`within`, for reading a body. A late thread is woken up, because closing the answer would wait for it."""
    try:
        return within(seconds, read)
    except DeadlineError:
        with contextlib.suppress(ValueError, RuntimeError, OSError):  # the end came at last
            answer.raw.shutdown()
        raise


def _read(answer: requests.Response, limit: int, *, whole: bool) -> None:
    """Read an answer's body, up to `limit`; of an error's body (not `whole`) only the beginning."""
    limit = limit if whole else SHOWN_MAX
    content = bytearray()

    def read() -> None:
        while len(content) <= limit and (chunk := answer.raw.read1(CHUNK, decode_content=True)):
            content.extend(chunk)

    late = False
    try:
        _reading(answer, WHOLE_S, read)
    except DeadlineError:
        late = True
    if late or len(content) > limit:
        answer.close()
        if whole:
            what = f"not done after {WHOLE_S} s" if late else f"more than {limit} bytes"
            raise HttpError(f"{answer.request.method} {shown(answer.url)}: {what}", None)
    length = answer.headers.get("Content-Length", "")
    if not late and answer.request.method != "HEAD" and length.isdigit() and len(content) < min(int(length), limit):
        raise requests.ConnectionError(f"cut short at {len(content)} of {length} bytes")
    answer._content = bytes(content)
    answer._content_consumed = True  # type: ignore[attr-defined]


def refusal(answer: requests.Response) -> HttpError:
    """An answer as an error: its request, status and the beginning of its body."""
    said = redacted(" ".join(answer.content.decode("utf-8", "replace")[:SHOWN].split()))
    request = f"{answer.request.method} {shown(answer.request.url or '')}"
    reason = f"HTTP {answer.status_code} {answer.reason or ''}".rstrip()
    return HttpError(f"{request}: {reason}{f': {said}' if said else ''}", answer.status_code)


def retry_after(answer: requests.Response) -> float | None:
    """Seconds that an answer asks to wait (RFC 9110, 10.2.3); None if it does not ask, or gives a date."""
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else None


def shown(url: str) -> str:
    """A URL without the parts that may be secret: see errors.shown_url."""
    return shown_url(url)


def why(error: Exception, connect_s: float = CONNECT_S, silence_s: float = SILENCE_S) -> str:
    """One short line from the nested messages of requests and urllib3, without secrets. `connect_s`, `silence_s`: the
    limits of the request."""
    if isinstance(error, requests.ConnectTimeout | urllib3.exceptions.ConnectTimeoutError):
        return f"no connection within {connect_s:g} s"
    if isinstance(error, requests.ReadTimeout | urllib3.exceptions.ReadTimeoutError):
        return f"silent for {silence_s:g} s"
    if isinstance(error, requests.exceptions.InvalidHeader | UnicodeError):
        # Their messages quote what was to be sent, which may be a token.
        return f"cannot be sent or decoded: {type(error).__name__}"
    cause = error.args[0] if error.args else error
    reason = getattr(cause, "reason", None) or cause
    if isinstance(reason, urllib3.exceptions.ReadTimeoutError):
        return f"silent for {silence_s:g} s"
    if isinstance(error, TypeError):
        return "its address, or a proxy's, is malformed"
    if isinstance(error, requests.exceptions.InvalidURL | urllib3.exceptions.LocationParseError):
        # It may be a proxy's, with blanks in its password: the rest of the text is redacted as one URL.
        return _TO_THE_END.sub(lambda found: shown_url(found[0]), str(error))
    # `HTTPConnection(host='…', port=1): Failed to establish a new connection: [Errno 111] Connection refused`
    return redacted(" ".join(str(reason).split(": ", 1)[-1].split())) or type(error).__name__


def _send(
    using: requests.Session,
    method: str,
    url: str,
    headers: Mapping[str, str] | None,
    body: bytes | Path | None,
    auth: requests.auth.AuthBase | None,
    redirects: bool,
) -> requests.Response:
    send = partial(
        using.request,
        method,
        url,
        headers=headers,
        timeout=(CONNECT_S, SILENCE_S),
        auth=auth,
        allow_redirects=redirects,
        stream=True,
    )
    if isinstance(body, Path) and body.stat().st_size == 0:
        body = b""  # as a file it would go out in chunks and with no length, which S3 and some registries refuse
    if isinstance(body, Path):
        with body.open("rb") as file:
            return within(ANSWER_S + body.stat().st_size / SLOW_BYTES_PER_S, lambda: send(data=file))
    return within(ANSWER_S + len(body or b"") / SLOW_BYTES_PER_S, lambda: send(data=body))
