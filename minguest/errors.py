# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, and whose turn it is.

Every message names what was wanted, what was found and why it matters; `remedy` says what to do.
None of these is shown with a traceback.
"""


def printable(text: str, keep: str = "") -> str:
    """Text for a terminal: what could move its cursor or turn its writing (control, format and line-break characters)
    is written as an escape, but for the characters in `keep`."""
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


class MinguestError(Exception):
    """The base: `str(error)` is the message, with the remedy on a line of its own.

    A message may quote a server or a file that nobody trusts: see `printable`.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        message = printable(message, keep="\n\t")
        super().__init__(message if not remedy else f"{message}\n  remedy: {remedy}")
        self.message = message
        self.remedy = remedy


class UserError(MinguestError):
    """The user asked for something that cannot be: a wrong key, a wrong value, a contract that is not met."""


class ToolError(MinguestError):
    """A host tool, the network or the disk failed: the same words may succeed on another day."""


class GuestError(MinguestError):
    """The guest did not pass."""


class GuestFailed(GuestError):
    """The guest spoke to the end, and what it said is wrong."""


class GuestLost(GuestError):
    """The guest stopped speaking: it panicked, hung, rebooted or never spoke."""
