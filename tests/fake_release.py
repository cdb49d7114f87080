# SPDX-License-Identifier: Apache-2.0
"""A release of five small files, for the tests of what publishes one."""

import hashlib
import random
from collections.abc import Mapping
from pathlib import Path

import msgspec

from minguest.release import layout

NOTES = "# default-4.12 1.0\n\nThe first one, with an ü.\n"


def make(folder: Path, version: str = "1.0", changes: Mapping[str, bytes] | None = None) -> layout.Release:
    """Write a release and load it; `changes` adds files, or puts other content into them."""
    facts = layout.Facts(
        schema=layout.SCHEMA,
        name="default-4.12",
        version=version,
        signed=True,
        guest="default",
        series="4.12",
        kernel="4.12.14",
        firmware="2025.02-8+deb13u1",
        minguest="0.1.0",
        previous=None,
    )
    contents = {
        "bzImage": random.Random(version).randbytes(100_000),
        layout.NOTES: NOTES.encode(),
        layout.FACTS: msgspec.json.encode(facts),
        **(changes or {}),
    }
    sums = layout.render_sums({name: hashlib.sha256(content).hexdigest() for name, content in contents.items()})
    folder.mkdir(parents=True)
    for name, content in {layout.SIGNATURE: b"signed " + sums.encode(), **contents}.items():
        (folder / name).write_bytes(content)
    (folder / layout.SUMS).write_text(sums)
    return layout.load(folder)
