# SPDX-License-Identifier: Apache-2.0
"""JSON that somebody signed or a stranger sent, read so that every reader understands the same, and in bounded memory.

RFC 8259 (section 4) leaves it open what a name means that an object has twice: one reader takes the first, another the
last. What is signed must have one meaning, so such a document is refused.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

T = TypeVar("T")

# Bytes of a document: a release's largest has about 100 KB. A list of empty lists takes 24 times its size in memory.
LIMIT = 4 << 20


def loads(content: bytes) -> Any:
    """The document's value. ValueError: more than LIMIT bytes, no JSON in UTF-8, too deep, or a name is there twice."""
    if len(content) > LIMIT:
        raise ValueError(f"{len(content)} bytes, more than the {LIMIT} that it may have")
    try:
        # From text, as json.loads() would take bytes of UTF-16 and UTF-32 too, which other readers do not.
        return json.loads(content.decode(), object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deep") from None


def decode(content: bytes, kind: type[T], schema: int | None = None) -> T:
    """The document as `kind`, which must say that it is of `schema` where one is given.

    ValueError as for `loads`, for another schema, and in msgspec's own words for what does not fit.
    """
    found = loads(content)
    if schema is not None and isinstance(found, dict) and found.get("schema") != schema:
        raise ValueError(f"schema {str(found.get('schema'))[:20]}, this minguest knows {schema}")
    return msgspec.json.decode(content, type=kind)


def read(path: Path, limit: int = LIMIT) -> bytes:
    """A file of at most `limit` bytes; ValueError where it has more, OSError where it cannot be read."""
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"more than the {limit} bytes that it may have")
    return content


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"has {name[:80]!r} twice")
        found[name] = value
    return found


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number in JSON")
