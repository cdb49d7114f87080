# SPDX-License-Identifier: Apache-2.0
"""What the store remembers of a cell: a record for each result that its inputs ever gave.

    cells/KEY/RESULT    KEY: a hash of the inputs and of what made it; RESULT: of what it came to

The same cell twice is one record. A second record below one KEY is another result of the same inputs: somebody lies, or
the cell is not a function of its inputs.
"""

import hashlib
import time
from collections.abc import Mapping

import msgspec

from minguest.scale.orders import SCHEMA, Made, Order, Setting, code
from minguest.scale.store import Poisoned, Store


class Record(msgspec.Struct, frozen=True):
    """One result of one cell."""

    cell: str
    """Its name: KIND GUEST ID."""
    result: str
    """right, wrong, a kind of a certificate's row, …"""
    facts: Mapping[str, str]
    """What a history compares: series, kernel, OVMF, QEMU, accelerator, compiler, minguest, bundle."""
    worker: str
    seconds: float
    at: float
    """When, in seconds since 1970."""
    files: Mapping[str, str]
    """SHA-256 by name."""


def key(order: Order, made: Made, accel: str) -> str:
    """Of all that a cell's result depends on. `accel`: kvm or tcg."""
    parts = [SCHEMA, order.setting, order.kind, order.id, bytes(order.what).decode(), code(), made, accel]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def keep(
    store: Store, order: Order, setting: Setting, made: Made, accel: str, result: str, worker: str, seconds: float,
    files: Mapping[str, str],
) -> list[str]:  # fmt: skip
    """Record a result; gives a line for each other result that these inputs gave before. ToolError: it is not kept."""
    folder = f"cells/{key(order, made, accel)}"
    about = {"QEMU": made.qemu, "accelerator": accel, "compiler": made.compiler}
    facts = {**setting.facts, **about, "code": code()[:12], "inputs": setting.key[:12]}
    record = Record(f"{order.kind} {order.id}", result, facts, worker, round(seconds, 2), time.time(), files)
    name = f"{folder}/{hashlib.sha256(result.encode()).hexdigest()[:16]}"
    others, said = [each for each in store.records(f"{folder}/") if each != name], []
    for each in others:
        try:
            other = store.record(each, Record)
        except Poisoned as error:
            said.append(error.message)
            continue
        if other is not None:
            said.append(
                f"{order.id}: {worker} has {result}, but {other.worker} had {other.result} for the same inputs: "
                f"one of them is not to be trusted, or the cell is not steady; both are in {store}/{folder}"
            )
    try:
        if store.record(name, Record) is not None:
            return said
    except Poisoned as error:
        said.append(f"{error.message}; it is replaced")
    store.put_record(name, record)
    return said
