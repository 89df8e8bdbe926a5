"""The report's histograms, as inline SVG whose colours come from the page's style sheet."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from math import ceil, floor, log10

import numpy as np
from numpy.typing import NDArray

from tasks.tables.limit import Limit

BINS = 48
DECADES = 6  # of a log axis at most; what lies below is counted in its first bin
WIDTH, HEIGHT = 560, 190
LEFT, RIGHT, TOP, BOTTOM = 12, 12, 22, 24
UNIT_SCORES = {"crop_area"}


@dataclass
class Spread:
    """How one score is spread: its range first, then, on a second pass, the counts in the bins laid over it.

    ``log``: it spreads over decades, with most values near zero.
    """

    column: str
    limits: Sequence[Limit]
    log: bool = False
    low: float = np.inf
    high: float = -np.inf
    low_positive: float = np.inf
    edges: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    inside: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    outside: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    below: dict[float, int] = field(default_factory=dict)
    above: dict[float, int] = field(default_factory=dict)
    zeros: int = 0
    zeros_outside: int = 0
    measured: int = 0

    @property
    def bounds(self) -> list[float]:
        """The thresholds, ascending."""
        return sorted({bound for limit in self.limits for bound in (limit.low, limit.high) if bound is not None})

    def see(self, values: NDArray[np.float64]) -> None:
        """First pass: widen the range."""
        values = values[np.isfinite(values)]
        if len(values):
            self.low, self.high = min(self.low, values.min()), max(self.high, values.max())
            self.low_positive = min(self.low_positive, values[values > 0].min(initial=np.inf))

    def lay_bins(self) -> None:
        """Between the passes: bins over the range and the thresholds, one edge on the first threshold."""
        bounds = [bound for bound in self.bounds if bound > 0 or not self.log]
        ends = [*bounds, self.low_positive if self.log else self.low, self.high if not self.log else max(self.high, 0)]
        ends = [end for end in ends if np.isfinite(end) and (end > 0 or not self.log)]
        if self.column in UNIT_SCORES:
            ends += [0.0, 1.0]
        low, high = (min(ends), max(ends)) if ends else (1e-3, 1.0) if self.log else (0.0, 1.0)
        if self.log:
            low, high = max(log10(low), log10(high) - DECADES), log10(high)
        if high - low < 1e-9:
            low, high = low - 0.5, high + 0.5
        step = (high - low) / (BINS - 2)
        anchor = (log10(bounds[0]) if self.log else bounds[0]) if bounds else low
        first = anchor - max(1 if bounds else 0, ceil((anchor - low) / step - 1e-9)) * step
        last = anchor + (floor((high - anchor) / step + 1e-9) + 1) * step
        places = np.linspace(first, last, round((last - first) / step) + 1)
        self.edges = 10**places if self.log else places
        for bound in bounds:
            # Exactly on the edge, so that no bar straddles the line.
            nearest = int(np.argmin(np.abs(self.edges - bound)))
            if abs(self.edges[nearest] - bound) < 1e-6 * abs(bound):
                self.edges[nearest] = bound
        self.inside = np.zeros(len(self.edges) - 1, np.int64)
        self.outside = np.zeros(len(self.edges) - 1, np.int64)
        self.below = {limit.low: 0 for limit in self.limits if limit.low is not None}
        self.above = {limit.high: 0 for limit in self.limits if limit.high is not None}

    def count(self, values: NDArray[np.float64]) -> None:
        """Second pass: count."""
        values = values[np.isfinite(values)]
        out = np.zeros(len(values), bool)
        for low in self.below:
            out |= values < low
            self.below[low] += int((values < low).sum())
        for high in self.above:
            out |= values > high
            self.above[high] += int((values > high).sum())
        self.measured += len(values)
        at_zero = values <= 0 if self.log else np.zeros(len(values), bool)
        self.zeros += int(at_zero.sum())
        self.zeros_outside += int((at_zero & out).sum())
        clipped = np.clip(values, self.edges[0], self.edges[-1])
        self.inside += np.histogram(clipped[~out & ~at_zero], self.edges)[0]
        self.outside += np.histogram(clipped[out & ~at_zero], self.edges)[0]


def number(value: float | None, against: Sequence[float] = ()) -> str:
    """A score for people: three significant digits, or as many as tell it from the thresholds ``against``."""
    if value is None or not np.isfinite(value):
        return "-"
    for digits in range(3, 9):
        text = _rounded(value, digits)
        if all(text != _rounded(bound, digits) or np.isclose(value, bound, rtol=1e-7, atol=0) for bound in against):
            break
    return text


def _rounded(value: float, digits: int) -> str:
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return np.format_float_positional(value, precision=digits, unique=False, fractional=False, trim="-")


def ticks(edges: NDArray[np.float64], log: bool) -> list[float]:
    """Round numbers inside the axis, about five of them."""
    low, high = float(edges[0]), float(edges[-1])
    if log:
        decades = range(floor(log10(low)), ceil(log10(high)) + 1)
        span = log10(high / low)
        steps = (1, 2, 5) if span < 2 else (1, 3) if span < 3 else (1,)
        found = [10.0**decade * step for decade in decades for step in steps]
    else:
        raw = (high - low) / 5
        unit = 10.0 ** floor(log10(raw))
        step = min((m * unit for m in (1, 2, 2.5, 5, 10)), key=lambda candidate: abs(candidate - raw))
        found = [k * step for k in range(ceil(low / step), floor(high / step) + 1)]
    return [tick for tick in found if low <= tick * (1 + 1e-9) and tick <= high * (1 + 1e-9)]


def histogram(spread: Spread) -> str:
    """The SVG: what the thresholds keep and reject in two colours, the rejected range shaded, thresholds labelled."""
    log, edges = spread.log, spread.edges
    zero_width = 26 if log and spread.zeros else 0
    x0, x1, y0, y1 = LEFT + zero_width + (10 if zero_width else 0), WIDTH - RIGHT, TOP, HEIGHT - BOTTOM
    places = np.log10(edges) if log else edges

    def x(value: float) -> float:
        if log and value <= 0:
            return LEFT + zero_width + 5.0
        place = log10(value) if log else value
        share = (place - places[0]) / (places[-1] - places[0])
        return round(float(x0 + np.clip(share, 0, 1) * (x1 - x0)), 1)

    total = spread.inside + spread.outside
    # One bar that towers over all others would flatten them: it is drawn broken, its count above it.
    counts = np.sort([*total, spread.zeros])
    tallest = int(max(1, counts[-1] if counts[-1] <= 5 * counts[-2] or not counts[-2] else 1.5 * counts[-2]))
    neutral = "" if spread.bounds else " plain"
    parts = []
    shaded = [(LEFT, x(low) - LEFT) for low in spread.below] + [(x(high), x1 - x(high)) for high in spread.above]
    for left, width in shaded:
        if width > 0:
            parts.append(f'<rect class="out" x="{left}" y="{y0}" width="{width:.1f}" height="{y1 - y0}"/>')

    def bar(left: float, width: float, inside: int, outside: int) -> None:
        base, count = float(y1), inside + outside
        for part, kind in ((inside, "in"), (outside, "ex")):
            if part:
                tall = max(1.0, part / max(tallest, count) * (y1 - y0 - 4))
                base -= tall
                place = f'x="{left:.1f}" y="{base:.1f}" width="{width:.1f}" height="{tall:.1f}"'
                parts.append(f'<rect class="{kind}{neutral}" {place}/>')
        if count > tallest:
            parts.append(f'<path class="gap" d="M{left - 3:.1f} {y0 + 26}l{width + 6:.1f} -8"/>')
            middle, anchor = (left + width, "end") if left > WIDTH / 2 else (left, "start")
            parts.append(f'<text class="count" x="{middle:.1f}" y="{y0 - 6}" text-anchor="{anchor}">{count:,}</text>')

    for i in range(len(total)):
        left = x(edges[i])
        bar(left + 0.5, max(0.8, x(edges[i + 1]) - left - 1), int(spread.inside[i]), int(spread.outside[i]))
    if zero_width:
        bar(LEFT + 1, zero_width - 2, spread.zeros - spread.zeros_outside, spread.zeros_outside)
        parts.append(f'<text class="tick" x="{LEFT + zero_width / 2}" y="{HEIGHT - 8}" text-anchor="middle">0</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {y1 + 0.5}H{x1}"/>')
    for tick in ticks(edges, log):
        at = x(tick)
        if zero_width and at < x0 + 16:
            continue  # it would run into the 0
        label = f'<text class="tick" x="{at}" y="{HEIGHT - 8}" text-anchor="middle">{number(tick)}</text>'
        parts += [f'<path class="axis" d="M{at} {y1}v4"/>', label]
    for bound, word in [*((b, "min") for b in spread.below), *((b, "max") for b in spread.above)]:
        at = x(bound)
        leftward = (word == "min" and at > 70) or at > WIDTH - 80
        place = f'x="{at - 5 if leftward else at + 5}" y="{y0 - 7}" text-anchor="{"end" if leftward else "start"}"'
        parts.append(f'<path class="bound" d="M{at} {y0 - 16}V{y1}"/>')
        parts.append(f'<text class="boundtext" {place}>{word} {number(bound)}</text>')
    said = f"Histogram of {escape(spread.column)}, {spread.measured:,} clips" + (
        f", thresholds {', '.join(map(number, spread.bounds))}" if spread.bounds else ""
    )
    return f'<svg class="hist" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{"".join(parts)}</svg>'
