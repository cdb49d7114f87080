# SPDX-License-Identifier: Apache-2.0
"""The boot tests that a release lists: one is run, and what it came to is said, not raised."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import msgspec

from minguest.boottest import runner
from minguest.model import Launch
from minguest.util.errors import GuestError, UserError

Ending = Literal["passed", "failed", "refused", "no room"]


class Ended(msgspec.Struct, frozen=True):
    """How one boot test ended; its record is in the bench's evidence."""

    test: str
    ending: Ending
    """`refused`: it cannot be run at all. `no room`: not on this machine, which its record says too."""
    why: str = ""


Doer = Callable[[runner.Bench, Sequence[runner.Test], Launch], Iterator[Ended]]
"""Runs each test, in any order: here, or on other machines (minguest/scale)."""


def one_by_one(say: Callable[[str], None]) -> Doer:
    """The Doer of this process."""

    def does(bench: runner.Bench, tests: Sequence[runner.Test], wanted: Launch) -> Iterator[Ended]:
        return (one(bench, test, wanted, say) for test in tests)

    return does


def one(bench: runner.Bench, test: runner.Test, wanted: Launch, say: Callable[[str], None]) -> Ended:
    """Run one test. ToolError where QEMU did not start."""
    try:
        if why := runner.without_room(bench, test, wanted):
            return Ended(test.name, "no room", why)
        runner.run(bench, test.options, wanted, say)
        return Ended(test.name, "passed")
    except GuestError as error:
        return Ended(test.name, "failed", str(error))
    except UserError as error:
        return Ended(test.name, "refused", str(error))


def line(ended: Ended) -> str:
    """What is said of a test that did not pass; empty for one that did."""
    match ended.ending:
        case "no room":
            return f"{ended.test} is not run: {ended.why}"
        case "refused":
            return f"{ended.test} cannot be run: {ended.why}"
        case _:
            return ended.why
