# SPDX-License-Identifier: Apache-2.0
"""Do the tests of a module notice when it is wrong? Changes it in one place at a time, and looks.

    python -m tests.mutants minguest/boottest/verdict.py --tests tests/unit/boottest/test_verdict.py

A mutant is the module with one small fault: another comparison, a negated condition, a changed number, operator or
key, a statement or a call left out, a branch removed. Docstrings, messages and types stay. The mutants are spread over
the module, and the same for the same seed. Nothing in the checkout changes: the tests run in a copy of it.
"""

import argparse
import ast
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import ROOT

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
# Calls that can be left out: what they are given, or called on, stands for what they return.
OF_ARGUMENT = ("sorted", "min", "max", "abs", "bool")
OF_OBJECT = ("strip", "rstrip", "lstrip", "lower", "upper", "absolute", "resolve", "expanduser", "removeprefix",
             "removesuffix")  # fmt: skip
# What is looked up by a string.
LOOK_UPS = ("get", "record", "all", "pop")
# Subscripts and calls that are types.
TYPES = ("Literal", "TypeVar", "cast", "NewType", "Annotated")
# A test run may take so many times what it takes on the right module, and so many seconds more.
SLACK, MORE = 4, 20.0


@dataclass(frozen=True)
class Place:
    """A fault that can be made in a tree."""

    line: int
    kind: str
    what: str
    make: Callable[[], None]


def places(tree: ast.Module) -> list[Place]:
    """Every fault that can be made in this tree, by line; the same for the same source."""
    found = [place for node in _values(tree) for place in (*_of_value(node), *_of_statements(node))]
    return sorted(found, key=lambda place: (place.line, place.kind, place.what))


def _values(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that say what is done, and not what is of which type."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        if name == "keywords" and isinstance(node, ast.ClassDef):
            continue  # what kind of class it is: frozen, for one
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, ast.AST) and not _is_text(each) and not _is_type(each):
                yield from _values(each)


def _is_text(node: ast.AST) -> bool:
    """A docstring, or the string below a field that explains it."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_type(node: ast.AST) -> bool:
    named = node.value if isinstance(node, ast.Subscript) else node.func if isinstance(node, ast.Call) else None
    return isinstance(named, ast.Name) and named.id in TYPES


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 60 else text[:57] + "..."


def _place(node: ast.AST, kind: str, make: Callable[[], None], changed: ast.AST | None = None) -> Place:
    """`changed` is what `make` puts the fault in: shown before and after it; None: it is gone altogether."""
    line = getattr(node, "lineno", 0)
    if changed is None:
        return Place(line, kind, f"{kind}: {_short(node)}", make)
    before = {name: getattr(changed, name) for name in changed._fields}
    copied = {name: list(value) if isinstance(value, list) else value for name, value in before.items()}
    old = _short(changed)
    make()
    new = _short(changed)
    for name, value in copied.items():
        setattr(changed, name, value)
    return Place(line, kind, f"{kind}: {old}  ->  {new}", make)


def _of_value(node: ast.AST) -> Iterator[Place]:
    if isinstance(node, ast.Compare):
        for at, op in enumerate(node.ops):
            if other := COMPARISONS.get(type(op)):

                def compare(node: ast.Compare = node, at: int = at, other: type[ast.cmpop] = other) -> None:
                    node.ops = [other() if n == at else each for n, each in enumerate(node.ops)]

                yield _place(node, "comparison", compare, node)
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):

        def negate(node: ast.If | ast.IfExp | ast.While = node, test: ast.expr = node.test) -> None:
            node.test = ast.UnaryOp(ast.Not(), test)

        yield Place(node.lineno, "negated condition", f"negated condition: {_short(node.test)}", negate)
    if isinstance(node, ast.comprehension):
        for at, test in enumerate(node.ifs):

            def unfilter(node: ast.comprehension = node, at: int = at) -> None:
                del node.ifs[at]

            yield Place(test.lineno, "dropped filter", f"dropped filter: if {_short(test)}", unfilter)
    if isinstance(node, ast.BinOp) and (swapped := OPERATORS.get(type(node.op))) and not _of_strings(node):

        def operate(node: ast.BinOp = node, swapped: type[ast.operator] = swapped) -> None:
            node.op = swapped()

        yield _place(node, "operator", operate, node)
    if isinstance(node, ast.BoolOp):

        def join(node: ast.BoolOp = node) -> None:
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()

        yield _place(node, "operator", join, node)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):

        def count(node: ast.Constant = node, value: object = node.value) -> None:
            node.value = (not value) if isinstance(value, bool) else value + 1  # type: ignore[operator]

        yield _place(node, "constant", count, node)
    for key in _keys(node):

        def rename(key: ast.Constant = key, value: str = str(key.value)) -> None:
            key.value = value + "-other"

        yield _place(key, "string key", rename, key)


def _of_strings(node: ast.BinOp) -> bool:
    """Strings that are put together: a message, or a TypeError at once."""
    return any(isinstance(each, (ast.JoinedStr, ast.List, ast.Tuple)) or (isinstance(each, ast.Constant)
               and isinstance(each.value, str)) for each in (node.left, node.right))  # fmt: skip


def _keys(node: ast.AST) -> list[ast.Constant]:
    """Strings by which something is looked up or distinguished."""
    found: list[ast.expr | None] = []
    if isinstance(node, ast.Subscript):
        found = [node.slice]
    elif isinstance(node, ast.Dict):
        found = list(node.keys)
    elif isinstance(node, ast.Compare):
        found = [node.left, *node.comparators]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOOK_UPS:
        found = list(node.args[:1])
    return [each for each in found if isinstance(each, ast.Constant) and isinstance(each.value, str)]


def _of_statements(node: ast.AST) -> Iterator[Place]:
    for name, value in ast.iter_fields(node):
        if isinstance(value, ast.Call) and (rest := _without(value)) is not None:

            def shorten(node: ast.AST = node, name: str = name, rest: ast.expr = rest) -> None:
                setattr(node, name, rest)

            yield Place(value.lineno, "dropped call", f"dropped call: {_short(value)}  ->  {_short(rest)}", shorten)
        if not isinstance(value, list) or name not in ("body", "orelse", "finalbody"):
            continue
        for at, each in enumerate(value):
            if isinstance(each, (ast.Expr, ast.AugAssign, ast.Raise)) and not _is_text(each):

                def drop(value: list[ast.stmt] = value, at: int = at) -> None:
                    value[at] = ast.Pass()

                yield _place(each, "dropped statement", drop)
            if isinstance(each, ast.If):

                def cut(value: list[ast.stmt] = value, at: int = at, each: ast.If = each) -> None:
                    value[at : at + 1] = each.orelse or [ast.Pass()]

                yield Place(each.lineno, "removed branch", f"removed branch: if {_short(each.test)}", cut)


def _without(call: ast.Call) -> ast.expr | None:
    """What is left where a call is left out."""
    if isinstance(call.func, ast.Name) and call.func.id in OF_ARGUMENT and call.args:
        return call.args[-1]
    if isinstance(call.func, ast.Attribute) and call.func.attr in OF_OBJECT:
        return call.func.value
    return None


def chosen(source: str, count: int, seed: int) -> list[int]:
    """Which of a module's places get their fault: one of each of `count` parts of it, its kind first."""
    found, dice = places(ast.parse(source)), random.Random(seed)
    picked = []
    for part in range(count):
        within = range(len(found) * part // count, len(found) * (part + 1) // count)
        if not within:
            continue
        kind = dice.choice(sorted({found[at].kind for at in within}))
        picked.append(dice.choice([at for at in within if found[at].kind == kind]))
    return picked


def mutated(source: str, at: int) -> tuple[Place, str]:
    """The module with the fault of place number `at`."""
    tree = ast.parse(source)
    place = places(tree)[at]
    place.make()
    return place, ast.unparse(ast.fix_missing_locations(tree))


def copy(target: Path) -> None:
    """What git knows of the checkout, and what it would take: no outputs."""
    names = subprocess.run(
        ["git", "ls-files", "-zco", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    ).stdout.split(b"\0")
    for name in map(os.fsdecode, filter(None, names)):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name, follow_symlinks=False)


def holds(folder: Path, tests: Sequence[str], deadline: float) -> tuple[bool, str]:
    """Whether the tests pass in `folder`, within so many seconds; else the first that does not."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=no", *tests]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        text, _ = process.communicate(timeout=deadline)
    except subprocess.TimeoutExpired:
        return False, f"{deadline:.0f} s are over"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode not in (0, 1, 2):
        # 2: a test file that cannot be imported, as it is where the module cannot.
        sys.exit(f"pytest ended with {process.returncode}:\n{text}")
    failed = next((line for line in text.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
    return process.returncode == 0, failed.partition("::")[2].partition(" - ")[0] or failed


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("module", help="from the project's root, such as minguest/boottest/verdict.py")
    parser.add_argument("--tests", nargs="+", required=True, help="files or names of tests, as pytest takes them")
    parser.add_argument("--count", type=int, default=22, help="how many mutants (default: 22)")
    parser.add_argument("--seed", type=int, default=11, help="another number makes other mutants (default: 11)")
    parser.add_argument("--least", type=int, default=18, help="fail if fewer are noticed (default: 18)")
    options = parser.parse_args()
    source = (ROOT / options.module).read_text()
    noticed = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        copy(folder)
        module = folder / options.module
        start = time.monotonic()
        right, why = holds(folder, options.tests, 600)
        took = time.monotonic() - start
        if not right:
            sys.exit(f"the tests fail on the module as it is: {why}")
        module.write_text("raise ImportError\n")
        if holds(folder, options.tests, 600)[0]:
            sys.exit(f"the tests pass without {options.module}: they are of something else")
        picked = chosen(source, options.count, options.seed)
        for at in picked:
            place, text = mutated(source, at)
            module.write_text(text)
            right, why = holds(folder, options.tests, took * SLACK + MORE)
            noticed.append(not right)
            print(f"{options.module}:{place.line}: {place.what}: {'NOT noticed' if right else f'noticed ({why})'}",
                  flush=True)  # fmt: skip
    print(f"{sum(noticed)} of {len(noticed)} noticed, at least {options.least} are wanted (seed {options.seed})")
    return 0 if sum(noticed) >= options.least else 1


if __name__ == "__main__":
    sys.exit(main())
