"""Line charts of the page: curves scaled to the units of an SVG, and round numbers for axes."""

import math
from dataclasses import dataclass

WIDTH, HEIGHT = 440, 260  # of a chart, in units of its SVG
LEFT, RIGHT, TOP, BOTTOM = 58, 414, 12, 218  # edges of the plot in it


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its place in SVG units, and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """A curve in SVG units. marks: (x, y, text) of its points, where there are few; first and last: of its values."""

    name: str
    path: str
    marks: list[tuple[float, float, str]]
    first: str
    last: str
    lost: int  # values that are not finite and are not drawn


@dataclass(frozen=True)
class Chart:
    """A chart as the page draws it; without lines if there is nothing to draw."""

    title: str
    unit: str
    x: list[Tick]
    y: list[Tick]
    lines: list[Line]


def chart(title: str, unit: str, curves: dict[str, list[tuple[int, float]]], *, logarithmic: bool = False) -> Chart:
    """Scale the curves, lists of (step, value), to a chart. Values that have no place on it are counted, not drawn."""
    drawn = {
        name: [(step, value) for step, value in points if math.isfinite(value) and (value > 0 or not logarithmic)]
        for name, points in curves.items()
    }
    values = [value for points in drawn.values() for _, value in points]
    if not values:
        return Chart(title, unit, [], [], [])
    end = max(1, *(step for points in drawn.values() for step, _ in points))
    on_axis = math.log10 if logarithmic else float
    low, high = on_axis(min(values)), on_axis(max(values))
    least = 0.02 if logarithmic else 0.001 * abs(high) or 1.0  # a constant has an axis too
    margin = max(0.05 * (high - low), least)
    low, high = low - margin, high + margin

    def x(step: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * step / end, 2)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (on_axis(value) - low) / (high - low), 2)

    lines = []
    for name, points in drawn.items():
        if not points:
            continue
        path = " ".join(f"{x(step)},{y(value)}" for step, value in points)
        few = points if len(points) <= 40 else []
        marks = [(x(step), y(value), f"step {step:,}: {number(value)}") for step, value in few]
        first, last = (f"{number(value)} at step {step:,}" for step, value in (points[0], points[-1]))
        lines.append(Line(name, path, marks, first, last, lost=len(curves[name]) - len(points)))
    levels = log_ticks(10**low, 10**high) if logarithmic else ticks(low, high, 7)
    steps = [Tick(x(step), f"{step:,.0f}") for step in ticks(0, end, min(5, end))]
    return Chart(title, unit, steps, [Tick(y(value), number(value, 9)) for value in levels], lines)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from low to high, in up to `most` steps."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    return [float(f"{i * step:.9g}") for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from low to high, with their 2- and 5-fold if there are few, and any round numbers if there are none."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        found = [factor * 10.0**power for power in powers for factor in factors]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) >= 3:
            return found
    return ticks(low, high, 7)


def number(value: float, digits: int = 4) -> str:
    """The number with up to `digits` digits, and with a power of ten if it is very small or large."""
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    if -3 <= int(power) < digits:
        return f"{float(f'{mantissa}e{power}'):,.{digits}g}".replace("-", "−")
    exponent = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{float(mantissa):.{digits}g}·10{exponent}".replace("-", "−")
