# SPDX-License-Identifier: Apache-2.0
"""JSON has one meaning, or it is refused."""

from pathlib import Path

import msgspec
import pytest

from minguest.util import strictjson


class Kind(msgspec.Struct):
    version: str


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"version": "1", "version": "2"}', "has the name 'version' twice"),
        (b'{"version": "1", "\\u0076ersion": "2"}', "has the name 'version' twice"),
        (b'{"version": "1", "x": [{"y": {"z": 1, "z": 1}}]}', "has the name 'z' twice"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"version": NaN}', "not a number"),
        (b'{"version": -Infinity}', "not a number"),
        ('{"version": "1"}'.encode("utf-16"), "utf-8"),
        ('\ufeff{"version": "1"}'.encode(), "BOM"),
        (b'{"version": "\xff"}', "utf-8"),
        (b'{"version": 1' + b"0" * 5000 + b"}", "digits"),
        (b'{"version": "1"} x', "Extra data"),
        (b"", "Expecting value"),
    ],
)
def test_what_two_readers_may_read_differently_is_refused(content: bytes, why: str) -> None:
    for read in (strictjson.loads, lambda each: strictjson.decode(each, Kind)):
        with pytest.raises(ValueError, match=why):
            read(content)


def test_what_has_one_meaning_is_read() -> None:
    assert strictjson.decode(b'{"version": "1", "x": {"version": 1}, "y": [{"version": 2}]}', Kind) == Kind("1")
    assert strictjson.loads(b'{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}


def test_many_names_take_no_longer(tmp_path: Path) -> None:
    names = ",".join(f'"{number}": 0' for number in range(300_000))
    assert len(strictjson.loads(f"{{{names}}}".encode())) == 300_000
    with pytest.raises(ValueError, match="twice"):
        strictjson.loads(f'{{{names}, "299999": 0}}'.encode())


def test_size_is_looked_at_first(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="more than the limit of 4194304"):
        strictjson.loads(b"[" + b" " * strictjson.LIMIT + b"]")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="more than the limit of 4194304"):
        strictjson.read(tmp_path / "large")
