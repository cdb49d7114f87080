# SPDX-License-Identifier: Apache-2.0
"""Reads signed or untrusted JSON, with one meaning for every reader, and in bounded memory.

RFC 8259 (section 4) does not define what a duplicate name in an object means: one reader takes the first value, another
the last. A signed document must have one meaning, so a document with a duplicate name is refused.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

T = TypeVar("T")

# Bytes of a document: the largest of a release has about 100 KB. A list of empty lists takes 24 times its size in
# memory.
LIMIT = 4 << 20


def loads(content: bytes) -> Any:
    """The document's value. ValueError: more than LIMIT bytes, not JSON in UTF-8, too deep, or a duplicate name."""
    if len(content) > LIMIT:
        raise ValueError(f"{len(content)} bytes, more than the limit of {LIMIT}")
    try:
        # From text: json.loads() would also accept bytes in UTF-16 and UTF-32, which other readers do not.
        return json.loads(content.decode(), object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def decode(content: bytes, kind: type[T], schema: int | None = None) -> T:
    """The document as `kind`; its `schema` must be the given one, if any.

    ValueError as for `loads`, for another schema, and with msgspec's message for what does not fit.
    """
    found = loads(content)
    if schema is not None and isinstance(found, dict) and found.get("schema") != schema:
        raise ValueError(f"schema {str(found.get('schema'))[:20]}, this minguest knows {schema}")
    return msgspec.json.decode(content, type=kind)


def read(path: Path, limit: int = LIMIT) -> bytes:
    """A file of at most `limit` bytes; ValueError if it has more, OSError if it is unreadable."""
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"more than the limit of {limit} bytes")
    return content


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"has the name {name[:80]!r} twice")
        found[name] = value
    return found


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number in JSON")
