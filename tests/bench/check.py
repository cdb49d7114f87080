# SPDX-License-Identifier: Apache-2.0
"""bench check: the last figures against configs/budget.toml. Pure, but for reading the file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from minguest import settings
from minguest.util.errors import UserError
from tests import ROOT
from tests.bench.record import Part, Rows, Value

BUDGETS = ROOT / "configs/budget.toml"
State = Literal["reached", "missed", "NOT RUN"]


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The most that a figure may be: configs/budget.toml describes the fields."""

    name: str
    part: Literal["boot", "build", "size", "growth"]
    subject: str
    measure: str
    most: float
    against: str = ""
    of: str = ""
    """Of `against`; empty: the same measure."""
    cores: int = 0
    limit: str = ""


class Budgets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    budget: tuple[Budget, ...] = ()


class Found(msgspec.Struct, frozen=True):
    """What became of one budget."""

    budget: Budget
    state: State
    figure: float | None
    why: str


def load(path: Path = BUDGETS) -> tuple[Budget, ...]:
    """UserError for a budget that cannot be checked, such as an unknown key, part, or an `of` without `against`."""
    found = settings.decode(path, Budgets).budget
    names = [each.name for each in found]
    for each in found:
        where = f"{path}: budget {each.name!r}"
        if names.count(each.name) > 1:
            raise UserError(f"{where}: there are two of that name", "rename one")
        if each.of and not each.against:
            raise UserError(f"{where}: has of = {each.of!r} and no against", "name the subject that has it")
        if each.against == each.subject and each.of in ("", each.measure):
            raise UserError(
                f"{where}: is against itself: always 1", "name another `against`, or another figure with of"
            )
        if each.most <= 0:
            raise UserError(f"{where}: most = {each.most:g}", "a number above 0")
    if not found:
        raise UserError(f"{path}: has no [[budget]]", "without one nothing can be checked")
    return found


def held(budgets: Sequence[Budget], parts: Mapping[str, Part | None]) -> list[Found]:
    """Each budget against the figures of its part."""
    return [_held(budget, parts.get(budget.part)) for budget in budgets]


def _held(budget: Budget, part: Part | None) -> Found:
    try:
        return _judged(budget, _figure(budget, part))
    except LookupError as error:
        return Found(budget, "NOT RUN", None, str(error.args[0]))


def _judged(budget: Budget, figure: float) -> Found:
    if figure <= budget.most:
        return Found(budget, "reached", figure, "")
    by = f"by {figure - budget.most:.2g}, {figure / budget.most - 1:.1%}"
    return Found(budget, "missed", figure, f"{by}: {budget.limit}" if budget.limit else by)


def _figure(budget: Budget, part: Part | None) -> float:
    """LookupError says what is missing."""
    if part is None:
        raise LookupError(f"no out/bench/{budget.part}.json: `doit bench {budget.part}` was not run")
    if part.cores < budget.cores:
        raise LookupError(f"the machine has {part.cores} CPUs, {budget.cores} are needed")
    value = _value(part, budget.subject, budget.measure)
    if not budget.against:
        return value.median
    against = _value(part, budget.against, budget.of or budget.measure)
    if value.unit != against.unit or not against.median:
        raise LookupError(f"{value.unit} against {against.median:g} {against.unit}: no ratio")
    return value.median / against.median


def _value(part: Part, name: str, measure: str) -> Value:
    subject = part.subjects.get(name)
    if subject is None:
        raise LookupError(f"{name} was not in that run; there were {', '.join(part.subjects) or 'none'}")
    # A figure from before a problem is none: the problem may be why it is as it is.
    if why := subject.problem or subject.noisy:
        raise LookupError(f"{name}: {why}")
    if measure not in subject.values:
        raise LookupError(f"{name}: {measure} was not measured")
    return subject.values[measure]


def table(found: Sequence[Found]) -> Rows:
    """A row a budget."""
    rows = [["budget", "against", "most", "is", "", ""]]
    for each in found:
        budget = each.budget
        against = " ".join(filter(None, (budget.against, f"({budget.of})" if budget.of else "")))
        figure = "" if each.figure is None else f"{each.figure:.3f}"
        rows.append([budget.name, against, f"{budget.most:.2f}", figure, each.state, each.why])
    return rows


def status(found: Sequence[Found]) -> int:
    """0: all are reached; 1: one is missed; 2: none is missed, but not all were measured."""
    states = {each.state for each in found}
    return 1 if "missed" in states else 2 if "NOT RUN" in states else 0
