# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, and who has to act.

Every message names what was wanted, what was found and why it matters; `remedy` says what to do.
All of them are shown without a traceback.
"""

import re

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_LOGIN = re.compile(r"//[^\s/@'\"<>]*:[^\s/@'\"<>]*@")
_DIGEST = re.compile(r"@sha256:[0-9a-f]*\Z")


def printable(text: str, keep: str = "") -> str:
    """Text for a terminal: what could move its cursor or reverse its text (control, format and line-break characters)
    is written as an escape, except the characters in `keep`."""
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def shown_url(url: str) -> str:
    """A URL without the parts that may be secret: user name and password, query, fragment.

    A password should have its `/`, `?` and `#` written as %2F, %3F and %23. If it does not, its beginning cannot be
    found, and only the scheme is shown.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    digest = _DIGEST.search(rest)  # of oci://HOST/REPOSITORY@sha256:…
    rest = rest[: digest.start()] if digest else rest
    place, *_ = re.split(r"[?#]", rest, maxsplit=1)
    login, at, place_after = rest.rpartition("@")
    if at and not (re.fullmatch(r"[^:@]+", place) and "@" not in place):
        if re.search(r"[/?#\\\s]", login):
            return f"{scheme}{separator}…"
        place, *_ = re.split(r"[?#]", place_after, maxsplit=1)
    return f"{scheme}{separator}{place}{digest[0] if digest else ''}"


def redacted(text: str) -> str:
    """Text with each URL in it as `shown_url` shows it: a message of a library or a server may quote one."""

    def shown(found: re.Match[str]) -> str:
        url = found[0].rstrip(":;,.)")
        return shown_url(url) + found[0][len(url) :]

    return _LOGIN.sub("//", _URL.sub(shown, text))


class MinguestError(Exception):
    """The base: `str(error)` is the message, with the remedy on a line of its own.

    A message may quote an untrusted server or file, and a URL with a password: see `printable`, `redacted`.
    """

    exit_status = 1
    """The exit status of a command that it ends."""

    def __init__(self, message: str, remedy: str = "") -> None:
        message = redacted(printable(message, keep="\n\t"))
        super().__init__(message if not remedy else f"{message}\n  remedy: {remedy}")
        self.message = message
        self.remedy = remedy


class UserError(MinguestError):
    """The user requested something impossible: a wrong key, a wrong value, a contract that is not met."""


class ToolError(MinguestError):
    """A host tool, the network or the disk failed: the same command may succeed later."""


class GuestError(MinguestError):
    """The guest did not pass."""


class GuestFailed(GuestError):
    """The guest's report is complete, and something in it is wrong."""


class GuestLost(GuestError):
    """The guest's report has no end: it panicked, hung, rebooted or never reported."""
