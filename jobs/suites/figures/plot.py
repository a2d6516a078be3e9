"""Plots as SVG: curves, points and bars, which browsers and LaTeX take as they are."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from jobs.report.charts import number, ticks

WIDTH, HEIGHT = 560, 320
LEFT, TOP, BOTTOM = 66, 34, 270
COLOURS = ("#1f5fae", "#b4510a", "#2b8a3e", "#8e44ad", "#c0392b", "#16a085", "#7f6000", "#555555")


class Series(NamedTuple):
    """Points (x, y) under a name. joined: as a curve; otherwise as points, with their labels where there are any."""

    name: str
    points: Sequence[tuple[float, float]]
    joined: bool = True
    labels: Sequence[str] = ()
    colour: str | None = None


def _span(values: Sequence[float], least: float | None) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    if least is not None:
        low = min(low, least)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return (low if least is not None and low == least else low - margin), high + margin


def plot(title: str, x_label: str, y_label: str, series: Sequence[Series], *, zero: bool = False) -> str:
    """An SVG of curves and points on common axes. zero: the y axis begins at 0. Points that are not finite are not drawn."""
    xs, ys = ([point[i] for each in series for point in each.points] for i in (0, 1))
    (x_low, x_high), (y_low, y_high) = _span(xs, None), _span(ys, 0.0 if zero else None)
    right = WIDTH - 16 - (150 if len(series) > 1 else 0)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = LEFT + (right - LEFT) * (point[0] - x_low) / (x_high - x_low)
        return round(x, 2), round(BOTTOM - (BOTTOM - TOP) * (point[1] - y_low) / (y_high - y_low), 2)

    parts = _axes(title, x_label, y_label, right)
    for value in ticks(y_low, y_high, 6):
        _, y = place((x_low, value))
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{escape(number(value, 6))}</text>')
    for value in ticks(x_low, x_high, 6):
        x, _ = place((value, y_low))
        parts.append(f'<line x1="{x}" x2="{x}" y1="{BOTTOM}" y2="{BOTTOM + 4}" stroke="#888"/>')
        parts.append(f'<text x="{x}" y="{BOTTOM + 17}" text-anchor="middle">{escape(number(value, 6))}</text>')
    for i, each in enumerate(series):
        colour = each.colour or COLOURS[i % len(COLOURS)]
        placed = [place(point) for point in each.points if all(map(math.isfinite, point))]
        if each.joined:
            line = " ".join(f"{x},{y}" for x, y in placed)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        else:
            parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}" fill-opacity="0.8"/>' for x, y in placed]
            parts += [
                f'<text x="{x + 6}" y="{y - 5}">{escape(label)}</text>'
                for (x, y), label in zip(placed, each.labels, strict=False)
            ]
        if len(series) > 1:
            y = TOP + 8 + 17 * i
            parts.append(f'<rect x="{right + 10}" y="{y - 5}" width="12" height="4" fill="{colour}"/>')
            parts.append(f'<text x="{right + 28}" y="{y}">{escape(each.name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def bars(title: str, y_label: str, groups: Sequence[str], kinds: Mapping[str, Sequence[float]]) -> str:
    """An SVG of bars: for each group one bar of each kind, which has a value for each group (NaN: no bar)."""
    high = max((v for values in kinds.values() for v in values if math.isfinite(v)), default=1.0) or 1.0
    right = WIDTH - 166
    parts = _axes(title, "", y_label, right)
    for value in ticks(0, high, 5):
        y = BOTTOM - (BOTTOM - TOP) * value / high
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(number(value))}</text>')
    room = (right - LEFT) / len(groups)
    wide = 0.8 * room / len(kinds)
    for k, (name, values) in enumerate(kinds.items()):
        colour = COLOURS[k % len(COLOURS)]
        for g, value in enumerate(values):
            if math.isfinite(value):
                x, tall = LEFT + room * (g + 0.1) + wide * k, (BOTTOM - TOP) * value / high
                parts.append(
                    f'<rect x="{x:.1f}" y="{BOTTOM - tall:.1f}" width="{wide:.1f}" height="{tall:.1f}" fill="{colour}"/>'
                )
        y = TOP + 8 + 17 * k
        parts.append(f'<rect x="{right + 10}" y="{y - 7}" width="12" height="8" fill="{colour}"/>')
        parts.append(f'<text x="{right + 28}" y="{y}">{escape(name)}</text>')
    for g, name in enumerate(groups):
        parts.append(
            f'<text x="{LEFT + room * (g + 0.5):.1f}" y="{BOTTOM + 17}" text-anchor="middle">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _axes(title: str, x_label: str, y_label: str, right: int) -> list[str]:
    middle, centre = (TOP + BOTTOM) / 2, (LEFT + right) / 2
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#333">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>',
        f'<text x="{centre}" y="{BOTTOM + 38}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>',
        f'<line x1="{LEFT}" x2="{right}" y1="{BOTTOM}" y2="{BOTTOM}" stroke="#888"/>',
    ]
