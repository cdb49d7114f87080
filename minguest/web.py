# SPDX-License-Identifier: Apache-2.0
"""One HTTP request, tried again while trying can help: for services that are written to, and small answers.

`fetch` is for downloads that are resumed.
"""

import time
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

import requests
import urllib3

from minguest.errors import ToolError

# Seconds to a connection, and of silence on an open one.
CONNECT_S = 10
SILENCE_S = 60
# Pauses in seconds before the second and each later try, unless Retry-After says longer, up to RETRY_AFTER_S.
PAUSES = (0.5, 1.0, 2.0, 4.0)
RETRY_AFTER_S = 20
# The service is busy or broken at the moment (RFC 9110, RFC 6585); 408 says the same of the request's way to it.
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
# Bytes of an answer's body that an error shows, and that are read for it.
SHOWN = 300
SHOWN_MAX = 64 << 10
# Bytes of an answer that is wanted, where its caller knows nothing better.
LIMIT = 1 << 30
# Seconds for the whole of an answer's body.
WHOLE_S = 120
CHUNK = 1 << 16
# What another try cannot mend: the address is wrong.
NEVER = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
    requests.exceptions.TooManyRedirects,
)


class HttpError(ToolError):
    """A service's answer that is not what was wanted; `status` is None where there was no answer."""

    def __init__(self, message: str, status: int | None, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.status = status


def session() -> requests.Session:
    """A session that identifies itself and asks for bytes as they are."""
    made = requests.Session()
    made.headers["User-Agent"] = "minguest"
    made.headers["Accept-Encoding"] = "identity"
    return made


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
    """Send a request and return its whole answer, if its status is one of `wanted`; `stream` leaves its body unread.

    A connection that fails or is cut, and an answer in TRANSIENT, are tried again; so the request must be one that may
    arrive twice. A Path as `body` is streamed. Raises HttpError, which names the URL and shows what the service said;
    also where the answer has more than `limit` bytes or takes more than WHOLE_S.
    """
    failure: HttpError | None = None
    pause = 0.0
    for following in (*PAUSES, None):
        time.sleep(pause)
        try:
            answer = _send(using, method, url, headers, body, auth, redirects)
            if not stream or answer.status_code not in wanted:
                _read(answer, limit, whole=answer.status_code in wanted)
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
        pause = max(following or 0.0, _retry_after(answer))
    assert failure is not None
    raise HttpError(f"{failure.message} (tried {len(PAUSES) + 1} times)", failure.status, "try again later")


def _read(answer: requests.Response, limit: int, *, whole: bool) -> None:
    """Read an answer's body, as much as it may have; of an error's (not `whole`) the beginning will do."""
    limit = limit if whole else SHOWN_MAX
    content = bytearray()
    end = time.monotonic() + WHOLE_S
    # read1, as read() would wait for a full chunk, and a trickle could not be seen.
    while chunk := answer.raw.read1(CHUNK, decode_content=True):
        content += chunk
        if len(content) > limit or time.monotonic() > end:
            answer.close()
            if not whole:
                break
            what = f"more than {limit} bytes" if len(content) > limit else f"not done after {WHOLE_S} s"
            raise HttpError(f"{answer.request.method} {shown(answer.url)}: {what}", None)
    length = answer.headers.get("Content-Length", "")
    if answer.request.method != "HEAD" and length.isdigit() and len(content) < min(int(length), limit):
        raise requests.ConnectionError(f"cut short at {len(content)} of {length} bytes")
    answer._content = bytes(content)
    answer._content_consumed = True  # type: ignore[attr-defined]


def refusal(answer: requests.Response) -> HttpError:
    """An answer as an error: its request, status and what its body says."""
    said = " ".join(answer.content.decode("utf-8", "replace")[:SHOWN].split())
    request = f"{answer.request.method} {shown(answer.request.url or '')}"
    reason = f"HTTP {answer.status_code} {answer.reason or ''}".rstrip()
    return HttpError(f"{request}: {reason}{f': {said}' if said else ''}", answer.status_code)


def shown(url: str) -> str:
    """A URL without what may be a secret: its query, and a user's name and password."""
    scheme, separator, rest = url.split("?", 1)[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def why(error: Exception, connect_s: float = CONNECT_S, silence_s: float = SILENCE_S) -> str:
    """One short line out of the nested words of requests and urllib3; seconds that the request was given."""
    if isinstance(error, requests.ConnectTimeout | urllib3.exceptions.ConnectTimeoutError):
        return f"no connection within {connect_s:g} s"
    if isinstance(error, requests.ReadTimeout | urllib3.exceptions.ReadTimeoutError):
        return f"silent for {silence_s:g} s"
    cause = error.args[0] if error.args else error
    reason = getattr(cause, "reason", None) or cause
    if isinstance(reason, urllib3.exceptions.ReadTimeoutError):
        return f"silent for {silence_s:g} s"
    # `HTTPConnection(host='…', port=1): Failed to establish a new connection: [Errno 111] Connection refused`
    return " ".join(str(reason).split(": ", 1)[-1].split()) or type(error).__name__


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
            return send(data=file)
    return send(data=body)


def _retry_after(answer: requests.Response) -> float:
    text = answer.headers.get("Retry-After", "")
    return min(float(text), RETRY_AFTER_S) if text.isascii() and text.isdigit() else 0.0
