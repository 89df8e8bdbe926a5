"""The loss of a run as a picture: an SVG of its own, small enough to travel inside an artifact."""

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 760, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 34, 40  # margins
POINTS = 600  # at most: neighbours are averaged
SMOOTH = 0.03  # of all points, that a point of the smoothed line looks back on,
SMOOTH_LEAST = 5  # or so many
TICKS = 6


def loss_curve(steps: Sequence[int], losses: Sequence[float], title: str) -> str:
    """An SVG of losses over steps, and smoothed, on linear axes. Losses that are no numbers are left out."""
    finite = [(step, loss) for step, loss in zip(steps, losses, strict=True) if math.isfinite(loss)]
    points = thinned(finite)
    x_ticks = ticks(0, max((step for step, _ in points), default=1))
    y_ticks = ticks(min((loss for _, loss in points), default=0), max((loss for _, loss in points), default=1))

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])

    def y(loss: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (loss - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    def line(of: Sequence[tuple[float, float]], style: str) -> str:
        path = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in of)
        return f'<polyline points="{path}" fill="none" {style}/>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12" fill="#444">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="20" font-size="14" fill="#111">{escape(title)}</text>',
    ]
    for tick in y_ticks:
        parts.append(f'<path d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in x_ticks:
        parts.append(f'<path d="M{x(tick):.1f} {HEIGHT - BOTTOM}v5" stroke="#888"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{number(tick)}</text>')
    parts += [
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="#888"/>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">step</text>',
        f'<text transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">loss</text>',
        line(points, 'stroke="#9ec5e8" stroke-width="1"'),
        line(smoothed(points), 'stroke="#0b62a8" stroke-width="2"'),
    ]
    parts += [f'<circle cx="{x(s):.1f}" cy="{y(v):.1f}" r="2.5" fill="#0b62a8"/>' for s, v in points[-1:]]
    return "\n".join([*parts, "</svg>"])


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``POINTS`` of them: means of as many neighbours each."""
    size = math.ceil(len(points) / POINTS) or 1
    groups = [points[first : first + size] for first in range(0, len(points), size)]
    return [(sum(s for s, _ in group) / len(group), sum(v for _, v in group) / len(group)) for group in groups]


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The exponential mean at each point, over what came before; the first are means of the few there are."""
    keep = 1 - 1 / max(SMOOTH_LEAST, SMOOTH * len(points))
    total = weight = 0.0
    line = []
    for step, loss in points:
        total, weight = keep * total + loss, keep * weight + 1
        line.append((step, total / weight))
    return line


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, evenly apart, the first at most ``low`` and the last at least ``high``."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / TICKS))
    apart = next(power * factor for factor in (1, 2, 5, 10) if power * factor * TICKS >= span * (1 - 1e-9))
    first, last = math.floor(low / apart + 1e-9), math.ceil(high / apart - 1e-9)
    return [place * apart for place in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """A number as people write it: 0.25, 40k."""
    return f"{value / 1000:g}k" if value and not value % 1000 else f"{value:.6g}"
