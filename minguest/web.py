# SPDX-License-Identifier: Apache-2.0
"""One HTTP request, tried again while trying can help: for services that are written to, and small answers.

`fetch` is for downloads that are resumed.
"""

import time
from collections.abc import Collection, Mapping
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
# Bytes of an answer's body that an error shows.
SHOWN = 300


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
) -> requests.Response:
    """Send a request and return its whole answer, if its status is one of `wanted`.

    A connection that fails or is cut, and an answer in TRANSIENT, are tried again; so the request must be one that may
    arrive twice. A Path as `body` is streamed. Raises HttpError, which names the URL and shows what the service said.
    """
    failure: HttpError | None = None
    pause = 0.0
    for following in (*PAUSES, None):
        time.sleep(pause)
        try:
            answer = _send(using, method, url, headers, body, auth, redirects)
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


def refusal(answer: requests.Response) -> HttpError:
    """An answer as an error: its request, status and what its body says."""
    said = " ".join(answer.text[:SHOWN].split())
    request = f"{answer.request.method} {shown(answer.request.url or '')}"
    reason = f"HTTP {answer.status_code} {answer.reason or ''}".rstrip()
    return HttpError(f"{request}: {reason}{f': {said}' if said else ''}", answer.status_code)


def shown(url: str) -> str:
    """A URL without its query: a signed one carries a secret there."""
    return url.split("?", 1)[0]


def why(error: Exception) -> str:
    """One short line out of the nested words of requests and urllib3."""
    if isinstance(error, requests.ConnectTimeout | urllib3.exceptions.ConnectTimeoutError):
        return f"no connection within {CONNECT_S} s"
    if isinstance(error, requests.ReadTimeout | urllib3.exceptions.ReadTimeoutError):
        return f"silent for {SILENCE_S} s"
    cause = error.args[0] if error.args else error
    reason = getattr(cause, "reason", None) or cause
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
    timeout = (CONNECT_S, SILENCE_S)
    if isinstance(body, Path) and body.stat().st_size == 0:
        body = b""  # as a file it would go out in chunks and with no length, which S3 and some registries refuse
    if isinstance(body, Path):
        with body.open("rb") as file:
            return using.request(
                method, url, headers=headers, data=file, timeout=timeout, auth=auth, allow_redirects=redirects
            )
    return using.request(method, url, headers=headers, data=body, timeout=timeout, auth=auth, allow_redirects=redirects)


def _retry_after(answer: requests.Response) -> float:
    text = answer.headers.get("Retry-After", "")
    return min(float(text), RETRY_AFTER_S) if text.isascii() and text.isdigit() else 0.0
