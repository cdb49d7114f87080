# SPDX-License-Identifier: Apache-2.0
"""The boots of bench boot as a timeline, as bootchart draws it: a row a subject, a bar a phase. Pure: an SVG's text."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from tests.bench import boot, firmware
from tests.bench.record import Part, Subject

# Of middle brightness, to be read on white and on black: an SVG in a page does not know which theme GitHub shows.
FIRMWARE = ("#b36ae2", "#9552c4", "#7d3fab")
GREY = "#848d97"
COLOURS = {
    "firmware": FIRMWARE[0],
    "QEMU": GREY,
    **dict(zip(firmware.PHASES, FIRMWARE, strict=True)),
    "stub": "#e0752d",
    "kernel": "#3b8eea",
    "initd": "#2da44e",
    "report's port": "#bf8700",
}
LEVELS = ("#3b8eea", "#2f9c95")
LEFT, WIDTH, ROW, BAR, HEAD = 170, 800, 26, 18, 44
# A bar that is narrower than this has no text, and a letter of it is about so wide.
TEXT, LETTER = 26, 6.6

Bar = tuple[str, float, str]
"""Name, length, colour."""


def wall(subject: Subject) -> list[Bar]:
    """The phases of the median boot, in seconds."""
    values = subject.values
    before = boot.FIRMWARE if all(name in values for name in firmware.PHASES) else ("firmware",)
    return [(n, values[n].median, COLOURS[n]) for n in (*before, *boot.PHASES[1:]) if n in values]


def counted(subject: Subject) -> list[Bar]:
    """The same in millions of instructions, with the kernel's part in groups of initcalls in the proportions of the
    boot that traced them."""
    values = subject.values
    if "kernel's" not in values:
        return []
    kernel = values["kernel's"].median
    parts = dict(subject.inside.groups) if subject.inside else {"kernel": 1.0}
    total = sum(parts.values()) or 1.0
    inside = [(name, kernel * took / total, LEVELS[n % 2]) for n, (name, took) in enumerate(parts.items())]
    before = [("firmware, stub", values["before the kernel"].median, FIRMWARE[0])]
    if "stub's" in values:
        own = [(name, values[boot.FIRMWARE_COUNTED[name]].median) for name in firmware.PHASES]
        before = [(name, count, COLOURS[name]) for name, count in (*own, ("stub", values["stub's"].median))]
    return [*before, *inside, ("initd", values["initd's"].median, COLOURS["initd"])]


def step(most: float) -> float:
    """The distance of the grid's lines: 1, 2 or 5 times a power of ten, for at most ten of them."""
    power = 10.0 ** math.floor(math.log10(most / 10)) if most > 0 else 1.0
    return next(power * n for n in (1, 2, 5, 10) if most / (power * n) <= 10)


def number(length: float) -> str:
    """Three digits, or all before the point."""
    return f"{length:,.0f}" if length >= 100 else f"{length:.3g}"


def panel(title: str, rows: Mapping[str, Sequence[Bar]], top: float) -> tuple[list[str], float]:
    """One chart, and where it ends."""
    most = max(sum(length for _, length, _ in bars) for bars in rows.values())
    scale = (WIDTH - LEFT - 60) / most
    bottom = top + HEAD + ROW * len(rows)
    drawn = [f'<text x="10" y="{top + 16}" font-size="14">{escape(title)}</text>']
    distance = step(most)
    for n in range(math.floor(most / distance) + 1):
        x = LEFT + n * distance * scale
        drawn.append(f'<path d="M{x:.1f} {top + HEAD - 6}V{bottom}" stroke="{GREY}" stroke-opacity=".35"/>')
        drawn.append(f'<text x="{x:.1f}" y="{top + HEAD - 10}" text-anchor="middle">{n * distance:g}</text>')
    for n, (name, bars) in enumerate(rows.items()):
        y = top + HEAD + ROW * n
        drawn.append(f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        x = float(LEFT)
        for phase, length, colour in bars:
            width = length * scale
            tip = f"<title>{escape(name)}: {escape(phase)} {number(length)}</title>"
            drawn.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.2f}" height="{BAR}" fill="{colour}">{tip}</rect>')
            if width > max(TEXT, len(phase) * LETTER):
                middle = x + width / 2
                drawn.append(
                    f'<text x="{middle:.1f}" y="{y + 13}" text-anchor="middle" fill="#fff">{escape(phase)}</text>'
                )
            x += width
        drawn.append(f'<text x="{x + 5:.1f}" y="{y + 13}">{number((x - LEFT) / scale)}</text>')
    return drawn, bottom + 20


def legend(rows: Mapping[str, Sequence[Bar]], top: float) -> tuple[list[str], float]:
    """What the colours mean, and where that ends."""
    colours = {name: colour for bars in rows.values() for name, _, colour in bars if colour in COLOURS.values()}
    drawn = []
    x = 10.0
    for name, colour in colours.items():
        drawn.append(f'<rect x="{x:.1f}" y="{top}" width="10" height="10" fill="{colour}"/>')
        drawn.append(f'<text x="{x + 15:.1f}" y="{top + 9}">{escape(name)}</text>')
        x += 35 + len(name) * LETTER
    return drawn, top + 26


def svg(part: Part) -> str:
    """Both charts; empty if nothing booted."""
    walls = {name: bars for name, each in part.subjects.items() if not each.problem and (bars := wall(each))}
    counts = {name: bars for name, each in part.subjects.items() if not each.problem and (bars := counted(each))}
    drawn: list[str] = []
    end = 8.0
    if walls:
        more, end = panel("Seconds from QEMU's start to the report, medians", walls, end)
        keys, end = legend(walls, end - 8)
        drawn += more + keys
    if counts:
        more, end = panel("Millions of instructions, one CPU; the kernel by levels of initcalls", counts, end + 6)
        drawn += more
    if not drawn:
        return ""
    body = "\n".join(drawn)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {end:.0f}" font-family="sans-serif" '
        f'font-size="12" fill="{GREY}">\n<title>Boot timeline</title>\n{body}\n</svg>\n'
    )
