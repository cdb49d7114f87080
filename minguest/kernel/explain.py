# SPDX-License-Identifier: Apache-2.0
"""Why a kernel option is not what was requested: the unmet dependency, followed down to its roots.

Kconfig (`make olddefconfig`) decides; this module only explains its answer. kconfiglib reads the tree's Kconfig files,
but every value comes from the final .config, so that the two cannot disagree.

kconfiglib takes its settings from the environment, and the tree's macros (`$(cc-option,…)`, since 4.18) run shell
commands that leave files in the current folder. So it runs in its own process, in a temporary folder:
`python -m minguest.kernel.explain OPTION...` reads `config` there and writes `answers.json`.
"""

import io
import json
import operator
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import kconfiglib

from minguest import paths
from minguest.kernel.kconfig import parse_config
from minguest.util import scratch
from minguest.util.errors import ToolError
from minguest.util.run import run

# Depth to which a dependency is followed, and lines after which an explanation is cut.
DEPTH = 8
LINES = 16
# How many of the options that could select one, or of the alternatives of an "or", are named.
NAMES = 5
# Seconds; 6.12 takes about four, nearly all of it in the compiler tests of its macros.
DEADLINE = 120.0

RELATIONS = {
    kconfiglib.EQUAL: operator.eq,
    kconfiglib.UNEQUAL: operator.ne,
    kconfiglib.LESS: operator.lt,
    kconfiglib.LESS_EQUAL: operator.le,
    kconfiglib.GREATER: operator.gt,
    kconfiglib.GREATER_EQUAL: operator.ge,
}
# The child's first argument where `needed` asks.
NEEDED = "--needed"
LEVELS = {"n": 0, "m": 1, "y": 2}


def explain(tree: Path, config_text: str, symbol: str, tools: Mapping[str, str] | None = None) -> str:
    """Why `symbol` (without CONFIG_) has the value that it has in a final .config of `tree`; see `explain_all`."""
    return explain_all(tree, config_text, [symbol], tools)[symbol]


def explain_all(
    tree: Path, config_text: str, symbols: Iterable[str], tools: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Explain several options of one .config with one reading of the tree.

    `tools` are make's variables if they are not the usual ones ({"CC": "gcc-12"}). It never raises: if the tree cannot
    be read, the answer is "not explained: …" for each option.
    """
    wanted = list(symbols)
    answers = _asked(tree, config_text, wanted, tools)
    if isinstance(answers, str):
        return dict.fromkeys(wanted, f"not explained: {answers}")
    return {symbol: str(answers[symbol]) for symbol in wanted}


def needed(
    tree: Path, config_text: str, symbols: Iterable[str], tools: Mapping[str, str] | None = None
) -> dict[str, dict[str, str]]:
    """Which other options of a final .config of `tree` have to change so that each of `symbols` can be y, and to what.

    Of alternatives, the one with the fewest changes. ToolError where the tree cannot be read.
    """
    wanted = list(symbols)
    answers = _asked(tree, config_text, [NEEDED, *wanted] if wanted else [], tools)
    if isinstance(answers, str):
        raise ToolError(f"{tree}: {answers}", "name the tree that the kernel is built from")
    return {symbol: dict(answers[symbol]) for symbol in wanted}


def _asked(tree: Path, config_text: str, argv: list[str], tools: Mapping[str, str] | None) -> dict[str, Any] | str:
    """What the child answers, by option; or why it does not."""
    if not argv:
        return {}
    try:
        with scratch.folder("explain") as folder:
            (folder / "config").write_text(config_text, encoding="utf-8")
            status, output = run(
                [sys.executable, "-m", "minguest.kernel.explain", *argv],
                cwd=folder,
                env=_environment(tree.absolute(), tools or {}),
                deadline=DEADLINE,
                check=False,
                bare=True,  # as make had it
            )
            if status == 0:
                answers: dict[str, Any] = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
                return answers
            last = next((line for line in reversed(output.splitlines()) if line.strip()), f"exit status {status}")
            return f"kconfiglib cannot read {tree}: {last.strip()}"
    except (ToolError, OSError, ValueError) as error:
        return str(error).splitlines()[0]


def _environment(tree: Path, tools: Mapping[str, str]) -> dict[str, str]:
    """The variables that the kernel's Makefile exports on an x86 host and its Kconfig files use."""
    return {
        "srctree": str(tree),
        # As `make` without ARCH= sets it on x86-64; with ARCH=x86_64, CONFIG_64BIT would lose its prompt.
        "ARCH": "x86",
        "SRCARCH": "x86",
        "SUBARCH": "x86",
        "KERNELVERSION": "",
        "CONFIG_": "CONFIG_",
        "CC": "gcc",
        "HOSTCC": "gcc",
        "LD": "ld",
        "AR": "ar",
        "NM": "nm",
        "OBJCOPY": "objcopy",
        "PAHOLE": "pahole",
        "RUSTC": "rustc",
        "BINDGEN": "bindgen",
        "PYTHON3": "python3",
        "CLANG_FLAGS": "",
        "CC_VERSION_TEXT": "",
        "RUSTC_VERSION_TEXT": "",
        **tools,
        # The child runs in a temporary folder and must find this package.
        "PYTHONPATH": str(paths.PACKAGE.resolve().parent),
    }


# The child process


class _Kconfig(kconfiglib.Kconfig):  # type: ignore[misc]
    """kconfiglib 14.1.0 with the one keyword that it lacks."""

    __slots__ = ()

    def _open(self, filename: str, mode: str) -> IO[str]:
        file: IO[str] = super()._open(filename, mode)
        with file:
            text = file.read()
        # `option modules` became plain `modules` in Linux 5.13 (6dd85ff178cd).
        return io.StringIO(re.sub(r"^(\s+)modules[ \t]*$", r"\1option modules", text, flags=re.MULTILINE))


def _main(argv: list[str]) -> None:
    """The child: read the tree of $srctree and ./config, write ./answers.json."""
    config = parse_config(Path("config").read_text(encoding="utf-8"))
    kconf = _Kconfig("Kconfig", warn=False)
    answers: dict[str, Any]
    if argv[1] == NEEDED:
        answers = {name: _needed(kconf.syms.get(name), config) for name in argv[2:]}
    else:
        answers = {name: _answer(kconf.syms.get(name), name, config) for name in argv[1:]}
    Path("answers.json").write_text(json.dumps(answers), encoding="utf-8")


def _answer(symbol: Any, name: str, config: Mapping[str, str]) -> str:
    """The whole explanation of one option; `symbol` is kconfiglib's, None if the tree has none."""
    if symbol is None or not symbol.nodes:
        return f"{name} is not in this tree"
    lines = _on(symbol, config) if _value(symbol, config) in ("m", "y") else _off(symbol, config, 0, set())
    return "\n".join(lines if len(lines) <= LINES else [*lines[: LINES - 1], f"… and {len(lines) - LINES + 1} more"])


def _needed(symbol: Any, config: Mapping[str, str]) -> dict[str, str]:
    """What else has to change so that an option can be y."""
    now = dict(config)
    changes: dict[str, str] = {}
    pending = [symbol] if symbol is not None else []
    while pending:
        each = pending.pop()
        for leaf in _simplest([*_lacking(each.direct_dep, now), *(_hidden(each, now) or [])]):
            expression, want, _ = leaf
            if not isinstance(expression, kconfiglib.Symbol) or not expression.nodes or expression.name in changes:
                continue
            changes[expression.name] = now[expression.name] = "y" if want else "n"
            if want:
                pending.append(expression)
    return changes


def _simplest(lacking: list[Any]) -> list[Any]:
    """The leaves to change, with the shortest of each alternative."""
    leaves: list[Any] = []
    for each in lacking:
        if isinstance(each, list):
            ways: list[list[Any]] = [_simplest(part) for part in each if not any(map(_undefined, part))]
            leaves += sorted(ways, key=len)[0] if ways else []
        else:
            leaves.append(each)
    return leaves


def _on(symbol: Any, config: Mapping[str, str]) -> list[str]:
    """Why a bool or tristate is y or m."""
    value = _value(symbol, config)
    limits = _lacking(symbol.direct_dep, config, level=2) if value == "m" else []
    if limits:
        return [f"{symbol.name} is held at m by {_conditions(limits, config)}"]
    selecting = [term for term in kconfiglib.split_expr(symbol.rev_dep, kconfiglib.OR) if _tri(term, config) > 0]
    if selecting:
        return [f"{symbol.name} is {value}: selected by {_names(_selectors(selecting), config)}"]
    if symbol.orig_type is kconfiglib.TRISTATE and config.get("MODULES", "n") == "n":
        return [f"{symbol.name} is y, not m: m needs MODULES=y (is n)"]
    hidden = _hidden(symbol, config)
    if hidden is None:
        return [f"{symbol.name} is {value} by default or by another request; nothing selects it, so it can be unset"]
    if not any(node.prompt for node in symbol.nodes):
        return [f"{symbol.name} cannot be set (it has no prompt): {value} is its default"]
    return [f"{symbol.name} is {value} by default, and can only be set with {_conditions(hidden, config)}"]


def _off(symbol: Any, config: Mapping[str, str], depth: int, seen: set[str]) -> list[str]:
    """Why an option is n or not the requested value, one line each; its dependencies are indented below."""
    seen.add(symbol.name)
    indent = "  " * depth
    lacking = _lacking(symbol.direct_dep, config)
    if lacking:
        return [f"{indent}{symbol.name} needs {_conditions(lacking, config)}", *_follow(lacking, config, depth, seen)]
    hidden = _hidden(symbol, config)
    if hidden is not None and any(node.prompt for node in symbol.nodes):
        text = (
            f"{indent}{symbol.name} can only be set with {_conditions(hidden, config)}; its default is used until then"
        )
        return [text, *_follow(hidden, config, depth, seen)]
    if hidden is not None:
        return _promptless(symbol, config, depth, seen)
    chosen = [each.name for each in getattr(symbol.choice, "syms", ()) if config.get(each.name) == "y"]
    if chosen:
        return [f"{indent}{symbol.name} is one of a choice, and {', '.join(chosen)} is selected: unset that"]
    if symbol.orig_type not in (kconfiglib.BOOL, kconfiglib.TRISTATE):
        return [f"{indent}{symbol.name} is {config.get(symbol.name, 'not set')}{_range(symbol, config)}"]
    return [f"{indent}{symbol.name} can be set: its dependencies are met"]


def _promptless(symbol: Any, config: Mapping[str, str], depth: int, seen: set[str]) -> list[str]:
    """Why an option without a prompt is n: its defaults, and the options that could select it."""
    indent = "  " * depth
    head = f"{indent}{symbol.name} cannot be set (it has no prompt)"
    selectors = _selectors(kconfiglib.split_expr(symbol.rev_dep, kconfiglib.OR))
    if selectors:
        return [f"{head}: it is selected by {_names(selectors, config)}"]
    for value, condition in symbol.defaults:
        lacking = _lacking((kconfiglib.AND, value, condition), config)
        if lacking:
            return [
                f"{head}: its default sets it with {_conditions(lacking, config)}",
                *_follow(lacking, config, depth, seen),
            ]
    return [f"{head}, and nothing selects it"]


def _follow(lacking: list[Any], config: Mapping[str, str], depth: int, seen: set[str]) -> list[str]:
    """The reasons for the options that should be on and are off."""
    if depth + 1 >= DEPTH:
        return []
    lines = []
    for condition in lacking:
        for symbol in _wanted_on(condition):
            if symbol.name not in seen:
                lines += _off(symbol, config, depth + 1, seen)
    return lines


# Expressions. In kconfiglib, one is a symbol, a choice, or a tuple (operator, operand, operand?).


def _value(symbol: Any, config: Mapping[str, str]) -> str:
    """A symbol's value in the final config; strings without their quotes."""
    if symbol.is_constant or not symbol.nodes:
        return str(symbol.name)  # a literal; for Kconfig, an undefined name is its own text
    if symbol.env_var is not None and symbol.defaults:
        return str(symbol.defaults[0][0].name)  # `option env=`, up to 4.17; read from the environment by kconfiglib
    absent = "n" if symbol.orig_type in (kconfiglib.BOOL, kconfiglib.TRISTATE) else ""
    value = config.get(symbol.name, absent)
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value


def _tri(expression: Any, config: Mapping[str, str]) -> int:
    """An expression's value: 0 is n, 1 is m, 2 is y."""
    if isinstance(expression, tuple):
        sign, *operands = expression
        if sign is kconfiglib.AND:
            return min(_tri(each, config) for each in operands)
        if sign is kconfiglib.OR:
            return max(_tri(each, config) for each in operands)
        if sign is kconfiglib.NOT:
            return 2 - _tri(operands[0], config)
        left, right = (_value(each, config) for each in operands)
        try:
            return 2 * int(RELATIONS[sign](int(left, 0), int(right, 0)))
        except ValueError:
            return 2 * int(RELATIONS[sign](left, right))
    if isinstance(expression, kconfiglib.Choice):
        return _tri(expression.direct_dep, config)
    if not expression.is_constant and not expression.nodes:
        return 0
    return LEVELS.get(_value(expression, config), 0)


def _lacking(expression: Any, config: Mapping[str, str], level: int = 1, want: bool = True) -> list[Any]:
    """The parts of an expression that hold it below `level` (or, with `want` false, above n).

    Each is a leaf as (expression, want, value) or, for an "or", a list of such lists: one of them must become true.
    """
    value = _tri(expression, config)
    if (value >= level) if want else (value == 0):
        return []
    if isinstance(expression, kconfiglib.Choice):
        return _lacking(expression.direct_dep, config, level, want)
    if isinstance(expression, tuple):
        sign, *operands = expression
        if sign is kconfiglib.NOT:
            return _lacking(operands[0], config, level, not want)
        if sign in (kconfiglib.AND, kconfiglib.OR):
            parts = [
                _lacking(each, config, level, want) for each in dict.fromkeys(kconfiglib.split_expr(expression, sign))
            ]
            # "not (A or B)" wants both off: De Morgan.
            if (sign is kconfiglib.AND) == want:
                return [leaf for part in parts for leaf in part]
            return [parts]
    return [(expression, want, value)]


def _conditions(lacking: list[Any], config: Mapping[str, str]) -> str:
    """`A=y (is n) and (one of B=y (is n), C=y (is n))`."""
    texts = list(dict.fromkeys(_condition(each, config) for each in lacking))
    if len(texts) == 1:
        return texts[0]
    return " and ".join(f"({text})" if text.startswith("one of ") else text for text in texts)


def _condition(lacking: Any, config: Mapping[str, str]) -> str:
    if isinstance(lacking, list):
        # An option that the tree does not define is another architecture's: not named unless it is the only one.
        possible = [part for part in lacking if not any(_undefined(each) for each in part)] or lacking
        if len(possible) == 1:
            return _conditions(possible[0], config)
        alternatives = [_conditions(each, config) for each in possible]
        more = [f"{len(alternatives) - NAMES} others"] if len(alternatives) > NAMES else []
        return "one of " + ", ".join(f"({each})" if " and " in each else each for each in alternatives[:NAMES] + more)
    expression, want, value = lacking
    if isinstance(expression, tuple):
        text = kconfiglib.expr_str(expression)
        defined = [each for each in expression[1:] if not each.is_constant and each.nodes]
        values = ", ".join(f"{each.name} is {_value(each, config) or 'not set'}" for each in defined)
        return (text if want else f"not ({text})") + (f" ({values})" if values else "")
    if expression.is_constant:
        return "a test of the compiler or another tool, which failed here (or the tree sets a plain n)"
    if _undefined(lacking):
        return f"{expression.name}, which this tree does not define"
    return f"{expression.name}={'y' if want else 'n'} (is {'nmy'[value]})"


def _undefined(lacking: Any) -> bool:
    """Whether a leaf names an option that this tree does not define."""
    if isinstance(lacking, list):
        return False
    expression = lacking[0]
    return isinstance(expression, kconfiglib.Symbol) and not expression.is_constant and not expression.nodes


def _wanted_on(lacking: Any) -> list[Any]:
    """The symbols that should be y, in all alternatives."""
    if isinstance(lacking, list):
        return [symbol for part in lacking for each in part for symbol in _wanted_on(each)]
    expression, want, _ = lacking
    return [expression] if want and isinstance(expression, kconfiglib.Symbol) and expression.nodes else []


def _hidden(symbol: Any, config: Mapping[str, str]) -> list[Any] | None:
    """The conditions that hide the option's prompt: None if it is visible, an empty list if there is no prompt."""
    conditions = [_lacking(node.prompt[1], config) for node in symbol.nodes if node.prompt]
    if not all(conditions):
        return None
    return min(conditions, key=len, default=[])


def _selectors(terms: Iterable[Any]) -> list[Any]:
    """The selecting options of `SELECTOR && condition` terms."""
    first = [kconfiglib.split_expr(term, kconfiglib.AND)[0] for term in terms]
    return [each for each in dict.fromkeys(first) if isinstance(each, kconfiglib.Symbol) and each.nodes]


def _names(symbols: list[Any], config: Mapping[str, str]) -> str:
    shown = [f"{each.name} (is {_value(each, config)})" for each in symbols[:NAMES]]
    return ", ".join(shown) + (f" and {len(symbols) - NAMES} others" if len(symbols) > NAMES else "")


def _range(symbol: Any, config: Mapping[str, str]) -> str:
    for low, high, condition in symbol.ranges:
        if _tri(condition, config):
            return f"; allowed here: {_value(low, config)} to {_value(high, config)}"
    return "; it has no range: check its type and spelling"


if __name__ == "__main__":
    _main(sys.argv)
