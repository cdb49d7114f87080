# SPDX-License-Identifier: Apache-2.0
"""docs/necessity.md, written from certificates. Pure."""

import itertools
from collections.abc import Mapping, Sequence

from minguest.boottest.certify import MEANING, by_chance, summary
from minguest.boottest.records import CERTIFICATE_SCHEMA, Certificate, Row
from minguest.util import templates

HEAD = """\
# Why each option is there

`doit certify` leaves out each option that a fragment asks for, builds the kernel, and starts it until something is
missing in two boots in succession: by the guest's own launch, with one CPU and counted instructions, on pc with 8 CPUs,
with CPUs and memory that are plugged in, with the power button, with two NUMA nodes, with eight cards of 128 GiB, and
with a root whose init ([userland.c](../initd/userland/userland.c)) tries what programs ask of the kernel. What only one
of two boots shows is chance: its row says it, and it does not count.
`doit necessity-page` generates this page and [necessity.json](necessity.json) from `out/certify/`. The next
`doit certify` takes the rows of that file which are of the same bundle, requests, tools, pits and code.

An option that is on is left out by switching it off; one that is switched off, by not naming it. **With it** names
the other options that then went too. Bytes are of the compressed kernel: neither the code that unpacks it nor the EFI
stub, which is part of that code, is counted. Instructions are those from its first clock to the start of initd, with
one CPU.
"""
UNASKED = """\
Kconfig switches these on by itself, and each can be switched off alone; what costs most comes first. What guards the
guest against others stays on, though no test here attacks it: mitigations, page-table isolation, stacks with guard
pages, random addresses, cleared stacks. Of the others in 6.12 that no boot shows, what costs 256 bytes or more is asked
for by a fragment, with its reason, or switched off.

The first certificate of 6.12 switched off INITRAMFS_PRESERVE_MTIME, CPU_ISOLATION, X86_INTEL_MEMORY_PROTECTION_KEYS and
the big tables of CRC32: its bzImage went from 2,962,432 bytes to 2,937,856. The boot took 139.6 million instructions
before and 140.1 after: no difference, as two boots of one kernel differ by 2 %.
"""


def together(made: Sequence[Certificate], published: Sequence[Certificate], order: Sequence[str]) -> list[Certificate]:
    """The certificates that were made here, and what was published of other series, in this order of series."""
    by_series = {each.series: each for each in (*published, *made) if each.schema == CERTIFICATE_SCHEMA}
    return [by_series[series] for series in order if series in by_series]


def page(certificates: Sequence[Certificate]) -> str:
    """The page; a column for each series, a table for each fragment."""
    parts = [HEAD, *(_about(each) for each in certificates)]
    parts.append(
        "\n".join(["| word | means |", "| --- | --- |", *(f"| {kind} | {MEANING[kind]} |" for kind in MEANING)])
    )
    rows = {each.series: {row.option: row for row in each.rows} for each in certificates}
    named = dict.fromkeys((row.fragment, row.option) for each in certificates for row in each.rows)
    ordered = sorted(named, key=lambda pair: pair[0])
    for fragment, options in itertools.groupby(filter(all, ordered), key=lambda pair: pair[0]):
        parts.append(_table(fragment, [option for _, option in options], rows))
    asked = {option for fragment, option in named if fragment}
    free = [option for fragment, option in named if not fragment and option not in asked]
    if free:
        costly = sorted(free, key=lambda option: _bytes(option, rows))
        parts += [_table("On where nobody asks", costly, rows), UNASKED]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _bytes(option: str, rows: Mapping[str, Mapping[str, Row]]) -> int:
    """How much larger the kernel is without it, where that is least."""
    return min(each[option].bytes or 0 for each in rows.values() if option in each)


def _about(certificate: Certificate) -> str:
    left = "" if certificate.whole else " **Not every option was tried yet.**"
    count = "" if certificate.instructions is None else f", {certificate.instructions:.1f} million instructions"
    return (
        f"**{certificate.series}**: linux {certificate.version}, {certificate.compiler}, QEMU {certificate.qemu}; with "
        f"all options {certificate.bytes:,} bytes compressed{count}. {len(certificate.rows)} options: "
        f"{summary(certificate)}.{left}"
    )


def _table(fragment: str, options: Sequence[str], rows: Mapping[str, Mapping[str, Row]]) -> str:
    lines = [f"## {fragment}", "", f"| option | {' | '.join(f'without it, {series}' for series in rows)} | what for |"]
    lines.append("| --- " * (len(rows) + 2) + "|")
    for option in options:
        found = [each.get(option) for each in rows.values()]
        # Another series may have it on where nobody asks.
        first = min((row for row in found if row is not None), key=lambda row: not row.fragment)
        cells = " | ".join(_cell(row) if row is not None else "" for row in found)
        lines.append(f"| `{option}={first.value}` | {cells} | {templates.cell(first.reason)} |")
    return "\n".join(lines)


def _cell(row: Row) -> str:
    # What a comment states is in the column beside it.
    what = f"{row.kind}: {row.seen}" if row.seen and row.kind != "stated" else row.kind
    parts = [f"{what} ({row.probe})" if row.probe and row.seen else what]
    if row.gone:
        parts.append(f"with it {', '.join(row.gone)}")
    if row.bytes is not None:
        parts.append(f"{row.bytes:+,} bytes")
    if row.instructions is not None:
        parts.append(f"{row.instructions:+.1f} M instructions")
    parts += map(by_chance, row.once)
    return templates.cell("; ".join(parts))
