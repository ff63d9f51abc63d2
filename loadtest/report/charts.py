"""Charts as inline SVG: lines, dots and stacked areas over two linear axes. No script, no network.

Colours are CSS classes (c0, c1, ...) that the page defines for light and dark; every series is
named beside the chart, and lines differ in dashes too, so that colour is never alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 10, 40
COLOURS = 8
FEW = 16  # points that are shown themselves, and not only the line through them

Format = Callable[[float], str]
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Series:
    """Points rising in x. ``dots`` draws them apart instead of joined."""

    name: str
    points: Points
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Axes:
    x_title: str
    y_title: str
    x_format: Format = "{:g}".format
    y_format: Format = "{:g}".format
    y_least: float = 0.0  # the y axis reaches at least so far
    x_marks: tuple[float, ...] = ()  # places to name instead of round ones


@dataclass(frozen=True, slots=True)
class _Scale:
    """Data to picture."""

    x_low: float
    x_high: float
    y_high: float

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - value / self.y_high * (HEIGHT - TOP - BOTTOM)


def line_chart(title: str, axes: Axes, series: Sequence[Series]) -> str:
    """Series over common axes that begin at 0 in y; a figure without points says so."""
    series = [one for one in series if one.points]
    if not series:
        return _figure(title, "<p>no values</p>", ())
    scale = _scale([point for one in series for point in one.points], axes)
    marks = [_marks(one, place, scale) for place, one in enumerate(series)]
    return _figure(title, _svg(title, axes, scale, marks), [one.name for one in series])


def stacked_chart(title: str, axes: Axes, series: Sequence[Series]) -> str:
    """Areas on top of each other. All series have the same x values, in the same order."""
    series = [one for one in series if one.points]
    if not series:
        return _figure(title, "<p>no values</p>", ())
    xs = [x for x, _ in series[0].points]
    floor = [0.0] * len(xs)
    areas: list[tuple[int, list[float], list[float]]] = []
    for place, one in enumerate(series):
        top = [low + y for low, (_, y) in zip(floor, one.points, strict=True)]
        areas.append((place, floor, top))
        floor = top
    scale = _scale(list(zip(xs, floor, strict=True)), axes)
    marks = []
    for place, low, high in areas:
        there = [(x, y) for x, y in zip(xs, high, strict=True)]
        back = [(x, y) for x, y in zip(reversed(xs), reversed(low), strict=True)]
        path = " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in there + back)
        marks.append(f'<polygon class="f{place % COLOURS}" points="{path}"/>')
    return _figure(title, _svg(title, axes, scale, marks), [one.name for one in series])


def nice_step(span: float, about: int) -> float:
    """A step of 1, 2 or 5 times a power of ten that divides ``span`` into about so many parts."""
    rough = max(span, 1e-12) / about
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= rough * 0.999)


def _scale(points: Points, axes: Axes) -> _Scale:
    xs = [x for x, _ in points]
    low, high = min(xs), max(xs)
    most = max(axes.y_least, *(y for _, y in points), 1e-9)
    step = nice_step(most, 4)
    return _Scale(low, high if high > low else low + 1.0, math.ceil(most / step - 1e-9) * step)


def _marks(series: Series, place: int, scale: _Scale) -> str:
    places = [(scale.x(x), scale.y(y)) for x, y in series.points]
    if series.dots:
        return _circles(places, place, 2.0)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    line = f'<polyline class="l{place % COLOURS}" points="{path}"/>'
    return line + (_circles(places, place, 3.0) if len(places) <= FEW else "")


def _circles(places: Points, place: int, radius: float) -> str:
    return "".join(
        f'<circle class="d{place % COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>'
        for x, y in places
    )


def _svg(title: str, axes: Axes, scale: _Scale, marks: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        + _grid(axes, scale)
        + "".join(marks)
        + "</svg>"
    )


def _grid(axes: Axes, scale: _Scale) -> str:
    parts = []
    bottom = HEIGHT - BOTTOM
    step = nice_step(scale.y_high, 4)
    for number in range(round(scale.y_high / step) + 1):
        y = scale.y(number * step)
        label = escape(axes.y_format(number * step))
        parts.append(
            f'<line class="g" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for value in axes.x_marks or _round_places(scale.x_low, scale.x_high):
        x = scale.x(value)
        label = escape(axes.x_format(value))
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{label}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="t" x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(axes.x_title)}</text>"
    )
    parts.append(
        f'<text class="t" transform="translate(12 {HEIGHT / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(axes.y_title)}</text>'
    )
    return "".join(parts)


def _round_places(low: float, high: float) -> list[float]:
    step = nice_step(high - low, 6)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-6)
    return [number * step for number in range(first, last + 1)]


def _figure(title: str, body: str, names: Sequence[str]) -> str:
    keys = "".join(
        f'<li><i class="k{place % COLOURS}"></i>{escape(name)}</li>'
        for place, name in enumerate(names)
    )
    legend = f"<ul>{keys}</ul>" if keys else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{body}{legend}</figure>"
