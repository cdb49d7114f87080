# SPDX-License-Identifier: Apache-2.0
"""A mutant differs from its module in what it does, never in what it says of itself."""

import ast

from tests import mutants

SOURCE = '''"""A module that is one thing."""
from typing import Literal

Kind = Literal["a", "b"]

class Box(Base, frozen=True):
    """It holds 1."""

    size: Literal[1] = 3
    """At least 2."""

def of(box: "Box", kind: Kind = "a") -> dict[str, int]:
    """0 or more."""
    found = {}
    if box.size > 2 and kind == "a":
        found["size"] = sorted([n for n in range(box.size) if n])[0]
        found.update(more=box.size + 1)
    else:
        raise ValueError("not 4")
    return found
'''


def test_each_place_is_one_fault_that_compiles() -> None:
    right = ast.unparse(ast.parse(SOURCE))
    kinds = set()
    for at in range(len(mutants.places(ast.parse(SOURCE)))):
        place, text = mutants.mutated(SOURCE, at)
        compile(text, "mutant", "exec")
        lines = {line for line in text.splitlines() if line not in right.splitlines()}
        assert text != right and len(lines) <= 2, place.what
        kinds.add(place.kind)
        for kept in ("A module that is one thing.", "It holds 1.", "At least 2.", "0 or more.", "size: Literal[1]",
                     "frozen=True", "Literal['a', 'b']", "kind: Kind", "dict[str, int]"):  # fmt: skip
            assert kept in text, (kept, place.what)
    assert kinds == {
        "comparison", "negated condition", "constant", "operator", "dropped statement", "dropped call",
        "dropped filter", "removed branch", "string key",
    }  # fmt: skip


def test_the_same_seed_makes_the_same_mutants_all_over_the_module() -> None:
    places = mutants.places(ast.parse(SOURCE))
    picked = mutants.chosen(SOURCE, 6, 1)
    assert picked == mutants.chosen(SOURCE, 6, 1) != mutants.chosen(SOURCE, 6, 2)
    assert [place * 6 // len(places) for place in picked] == list(range(6))
    assert len(mutants.chosen(SOURCE, 1000, 1)) == len(places)
