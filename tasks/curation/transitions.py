"""Transitions between shots, from a row of thumbnails: cuts, dissolves, fades and wipes.

A gradual transition replaces the old picture A by the new picture B, each place going straight from one to the other:
all places at once and little by little in a dissolve (a fade is a dissolve to or from a flat picture), one place after
the other in a wipe. So every frame X of it lies inside the ball whose diameter is AB:

    |X - A|^2 + |X - B|^2 <= |A - B|^2      (equal in a wipe, and down to a half in the middle of a dissolve)

Camera and subject motion leave that ball: pictures in between are as far from A and from B as those are from each
other. Distances between frames are therefore all that finding candidates takes; the few that are found are then looked
at as pictures. B must not be A moved or lit differently, A must not come back, and a wipe must sweep the frame.

Pictures are thumbnails float32 [T, 3, SIDE, SIDE] of luma, Cb and Cr; a distance is root mean square, in luma levels.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from tasks.curation.jumps import is_loop, is_restless, unsteadiness
from tasks.curation.thumbnails import SIDE, Floats, changed_share, contrasts, distance, novelty, weighted

GradualKind = Literal["dissolve", "fade", "wipe"]
Kind = Literal["cut"] | GradualKind

SCALES = (5, 7, 10, 14, 20, 28, 40, 56)  # steps from the last frame of A to the first of B
REACH = 96  # frames that a decision may look ahead: the longest scale and what must stay steady, or away, after it


class ShotConfig(BaseModel):
    """What counts as a transition between shots."""

    model_config = ConfigDict(frozen=True)

    least_change: float = Field(20.0, description="least distance between two shots, RMS in levels of 255")
    least_spread: float = Field(0.3, description="least share of the frame over which the change is spread")
    least_novelty: float = Field(
        0.12, description="least share of a picture that the other one, moved, does not explain"
    )
    cut_content: float = Field(15.0, description="least PySceneDetect content value of a cut, 0 to 255")
    cut_ratio: float = Field(1.8, description="a cut's content value against the second largest within 0.25 s")
    cut_ratio_alike: float = Field(4.0, description="the same, where the two pictures look alike")
    loop_s: float = Field(
        3.0, ge=0, description="a loop of at most this period, seconds, is not cut where it jumps back"
    )
    loop_alike: float = Field(0.15, description="most distance of two turns of a loop, as a share of its jump")
    restless: float = Field(
        0.3, description="least correlation across jumps, three and more within a second, for none to be a cut"
    )
    off_path: float = Field(0.08, description="most squared distance of a dissolve from its straight path, as a share")
    drift: float = Field(
        0.5, description="most squared drift of the shots beside a transition, as a share of the change"
    )
    wipe_evidence: float = Field(0.75, description="least sum of a wipe's sweep along one edge and of its novelty")
    flat_contrast: float = Field(0.15, description="contrast of a flat picture, as a share of the contrast near it")
    flicker: float = Field(
        2.2, ge=0, description="unsteadiness, 0 to 4, from which a fade is none: its light flickers all the way"
    )
    margin_frames: int = Field(1, ge=0, description="frames taken away on either side of a gradual transition")


@dataclass(frozen=True)
class Transition:
    """Frames with ``start_s <= time < end_s`` belong to no shot; a cut has none: both are its first new frame."""

    kind: Kind
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Span:
    """A gradual transition: the last frame before it and the first frame after it."""

    kind: GradualKind
    before: int
    after: int


def find_cuts(content: Floats, pictures: Floats, fps: float, config: ShotConfig) -> list[int]:
    """Indices of the first frames after hard cuts.

    A cut stands out of the content values around it (the second largest within 0.25 s, so that repeated frames and one
    other cut nearby do not matter), and the old picture does not come back as it does after a flash. The jumps of a
    loop are no cuts, nor are those of footage that jumps all the time (tasks.curation.jumps).
    """
    cuts = []
    contrast = contrasts(pictures)
    around = max(2, round(fps / 4))
    for i in map(int, np.flatnonzero(content[1:] >= config.cut_content) + 1):
        others = np.concatenate([content[max(1, i - around) : i], content[i + 1 : i + 1 + around]])
        second = np.sort(others)[-2] if len(others) > 1 else 0.0
        ratio = content[i] / max(second, 1e-3)
        if ratio < config.cut_ratio:
            continue
        old, new = pictures[i - 1], pictures[i]
        if all(contrast[k] < 0.3 * contrast[max(0, i - around) : i + around].max() for k in (i - 1, i)):
            continue  # the middle of a fade
        change = distance(old, new)
        brief = max(2, round(fps / 6))
        returns = min(
            distance(old, pictures[i : i + brief]).min(), distance(new, pictures[max(0, i - brief) : i]).min()
        )
        if change < config.least_change or returns < 0.7 * change:
            continue
        if ratio < config.cut_ratio_alike and novelty(old[None], new[None])[0] < config.least_novelty:
            continue
        if is_loop(content, pictures, i, fps, config.loop_s, config.cut_ratio, config.loop_alike):
            continue
        if not is_restless(content, pictures, i, fps, config.cut_ratio, config.restless):
            cuts.append(i)
    return cuts


def find_gradual(pictures: Floats, cuts: list[int], config: ShotConfig) -> list[Span]:
    """The gradual transitions of a row of frames at no more than about 30 a second, in order."""
    found: list[Span] = []
    edges = [0, *cuts, len(pictures)]
    for first, last in itertools.pairwise(edges):
        run = pictures[first:last]
        if len(run) > SCALES[0]:
            found += [Span(s.kind, s.before + first, s.after + first) for s in _find_in_run(run, config)]
    return found


def _find_in_run(pictures: Floats, config: ShotConfig) -> list[Span]:
    near = Distances(pictures)
    tables = [_windows(near, steps) for steps in SCALES if steps < near.count]
    spans = list(_fades(pictures, tables, config))
    for span in _replacements(pictures, near, tables, config):
        if all(span.after <= s.before or span.before >= s.after for s in spans):
            spans.append(span)
    return sorted(spans, key=lambda s: s.before)


class Distances:
    """Squared distances between each frame and the REACH after it."""

    def __init__(self, pictures: Floats) -> None:
        flat = weighted(pictures).reshape(len(pictures), -1)
        self.count = len(flat)
        self._band = np.full((self.count, REACH + 1), np.inf, np.float32)
        norm = (flat * flat).sum(1)
        for first in range(0, self.count, 256):
            rows = np.arange(first, min(first + 256, self.count))
            block = flat[first : first + 256 + REACH]
            squared = norm[rows, None] + norm[None, first : first + len(block)] - 2 * flat[rows] @ block.T
            for lag in range(min(REACH + 1, len(block))):
                diagonal = np.diagonal(squared, lag)
                self._band[first : first + len(diagonal), lag] = np.maximum(diagonal, 0)

    def __call__(self, earlier: NDArray[np.intp], later: NDArray[np.intp]) -> Floats:
        """Squared distances of frame pairs; an index beyond its end of the run is that of the end."""
        a, b = np.maximum(earlier, 0), np.minimum(later, self.count - 1)
        return self._band[a, b - a]


@dataclass
class _Windows:
    """For every window (before, after) of one scale: arrays of its measures."""

    before: NDArray[np.intp]
    after: NDArray[np.intp]
    change: Floats  # squared distance of A and B
    off_path: NDArray[np.floating]  # mean squared distance from the path, as a share: dissolve 0, wipe 1/6
    outside: Floats  # largest (|X-A|^2 + |X-B|^2) / |A-B|^2: more than 1 is outside the ball
    drift_before: Floats  # squared drift of A's shot just before, as a share of change
    drift_after: Floats


def _windows(near: Distances, steps: int) -> _Windows:
    before = np.arange(near.count - steps)
    after = before + steps
    change = near(before, after) + 1e-6
    off_path, outside = np.zeros_like(change), np.zeros_like(change)
    inside = np.unique(np.linspace(0, steps, 9).round().astype(int))[1:-1]
    for k in inside:
        to_a, to_b, r = near(before, before + k), near(before + k, after), k / steps
        off_path += ((1 - r) * to_a + r * to_b) / change - r * (1 - r)
        outside = np.maximum(outside, (to_a + to_b) / change)
    drift_before, drift_after = np.zeros_like(change), np.zeros_like(change)
    for k in {max(1, round(steps * share)) for share in (0.15, 0.3, 0.45)}:
        drift_before = np.maximum(drift_before, near(before - k, before) / change)
        drift_after = np.maximum(drift_after, near(after, after + k) / change)
    return _Windows(before, after, change, off_path / len(inside), outside, drift_before, drift_after)


def _replacements(pictures: Floats, near: Distances, tables: list[_Windows], config: ShotConfig) -> Iterator[Span]:
    """Dissolves and wipes, the clearest first; they may overlap."""
    candidates: list[tuple[float, int, int, float]] = []  # score, a, b, off_path
    for w in tables:
        steps = int(w.after[0] - w.before[0])
        drift = np.maximum(w.drift_before, w.drift_after)
        fits = (w.change >= config.least_change**2) & (w.off_path < 0.3) & (w.outside < 1.4) & (drift < config.drift)
        score = np.where(fits, np.sqrt(w.change) * (1 - 2 * w.off_path - (w.drift_before + w.drift_after)), 0)
        peaks = np.flatnonzero(fits & (score >= _running_max(score, max(1, steps // 4))))
        candidates += [(float(score[i]), i, i + steps, float(w.off_path[i])) for i in peaks.tolist()]
    if not candidates:
        return
    candidates.sort(reverse=True)
    old, new = pictures[[a for _, a, _, _ in candidates]], pictures[[b for _, _, b, _ in candidates]]
    contrast = contrasts(pictures)
    novel, wide = novelty(old, new), changed_share(old, new) >= config.least_spread
    for i in np.flatnonzero(wide & (novel >= config.least_novelty)).tolist():
        _, a, b, off_path = candidates[i]
        if _returns(near, a, b):
            continue
        before, after = _bounds(pictures, a, b)
        if off_path < config.off_path:
            # The less straight the path, the more likely it is that motion made it.
            if novel[i] >= config.least_novelty + 1.5 * off_path:
                flat = contrast[[a, b]].min() < max(3.0, 0.25 * contrast[[a, b]].max())
                yield _span("fade" if flat else "dissolve", before, after, pictures, config)
            continue
        edge = sweep(pictures[a : b + 1])
        if edge is not None and edge.strength + novel[i] >= config.wipe_evidence:
            slack = (b - a) // 2
            enters, leaves = max(a + edge.enters, a - slack), min(a + edge.leaves, b + slack)
            yield _span("wipe", min(before, enters), max(after, leaves), pictures, config)


def _returns(near: Distances, before: int, after: int) -> bool:
    """Whether the old picture comes back soon after, or the new one was there shortly before: something passed by."""
    lags = np.arange(1, REACH - (after - before))[:36]
    change = near(np.array([before]), np.array([after]))[0]
    later = near(np.full(len(lags), before), after + lags).min()
    earlier = near(before - lags, np.full(len(lags), after)).min()
    return bool(min(later, earlier) < 0.25 * change)


def _fades(pictures: Floats, tables: list[_Windows], config: ShotConfig) -> Iterator[Span]:
    """Stretches of flat frames together with the ramps to and from them."""
    contrast = contrasts(pictures)
    reach = SCALES[-1]
    around = np.lib.stride_tricks.sliding_window_view(np.pad(contrast, reach), reach + 1).max(-1)
    flat = contrast < np.maximum(3.0, config.flat_contrast * np.minimum(around[:-reach], around[reach:]))
    turns = np.flatnonzero(np.diff(np.concatenate([[0], flat.astype(np.int8), [0]])))
    for first, end in zip(turns[::2].tolist(), turns[1::2].tolist(), strict=True):
        last = end - 1
        out = _best_ramp(tables, first, config.off_path, config, out=True)
        into = _best_ramp(tables, last, config.off_path, config, out=False)
        if out is None and into is None:
            continue
        # One clear ramp makes it a fade; then the other may be less clear.
        out = _best_ramp(tables, first, 0.3, config, out=True) if out is None else out
        into = _best_ramp(tables, last, 0.3, config, out=False) if into is None else into
        before = _bounds(pictures, out, first)[0] if out is not None else first - 1
        after = _bounds(pictures, last, into)[1] if into is not None else last + 1
        if unsteadiness(pictures[max(0, before) : after + 1]) >= config.flicker:
            continue
        yield _span("fade", before, after, pictures, config)


def _span(kind: GradualKind, before: int, after: int, pictures: Floats, config: ShotConfig) -> Span:
    last = len(pictures) - 1
    return Span(kind, max(0, before - config.margin_frames), min(last, after + config.margin_frames))


def _best_ramp(tables: list[_Windows], flat: int, off_path: float, config: ShotConfig, out: bool) -> int | None:
    """Where the straight path to (``out``) or from the flat frame begins or ends; None: there is none."""
    best: tuple[float, int] | None = None
    for w in tables:
        steps = int(w.after[0] - w.before[0])
        i = flat - steps if out else flat
        if not 0 <= i < len(w.before):
            continue
        drift = float(w.drift_before[i] if out else w.drift_after[i])
        if w.change[i] < config.least_change**2 or w.off_path[i] > off_path or drift > config.drift:
            continue
        score = float(np.sqrt(w.change[i]) * (1 - 2 * w.off_path[i] - drift))
        if best is None or score > best[0]:
            best = score, i if out else i + steps
    return None if best is None else best[1]


def _bounds(pictures: Floats, a: int, b: int) -> tuple[int, int]:
    """The last frame before the change from picture a to picture b and the first after it, as its path tells.

    Where the path leaves A for good and where it has reached B, or where a straight ramp through its middle would:
    whichever is wider. At most half the length of (a, b) is added on either side.
    """
    slack = (b - a) // 2
    first, last = max(0, a - slack), min(len(pictures) - 1, b + slack)
    flat = weighted(pictures[first : last + 1]).reshape(last - first + 1, -1)
    old, new = flat[a - first], flat[b - first]
    way = (flat - old) @ (new - old) / max(float(((new - old) ** 2).sum()), 1e-6)
    middle = int(np.flatnonzero(way[a - first : b - first + 1] >= 0.5)[0]) + a - first

    def leaves(level: float) -> int:
        return int(max(np.flatnonzero(way[:middle] <= level), default=a - first))

    def reaches(level: float) -> int:
        return middle + int(min(np.flatnonzero(way[middle:] >= level), default=b - first - middle))

    fifth = (reaches(0.8) - leaves(0.2)) / 3
    before = max(0, min(leaves(0.04), math.floor(leaves(0.2) - fifth)))
    after = min(last - first, max(reaches(0.96), math.ceil(reaches(0.8) + fifth)))
    return first + before, first + after


@dataclass(frozen=True)
class Edge:
    """A straight edge that crosses the frame: ``strength`` 1 if all change happens along it, 0 if none more than usual.

    ``enters`` and ``leaves`` are the last frame before it and the first after it, counted from the first picture.
    """

    strength: float
    enters: int
    leaves: int


def sweep(pictures: Floats) -> Edge | None:
    """The straight edge along which the first picture becomes the last; None if it hardly moves."""
    waypoints = np.unique(np.linspace(0, len(pictures) - 1, 17).round().astype(int))
    steps = len(waypoints) - 1
    x = weighted(pictures[waypoints])
    change = x[-1] - x[0]
    weight = (change**2).sum(0)
    way = ((x - x[0]) * change).sum(1) / (weight + 0.1 * weight.mean() + 1e-6)
    turns = np.clip(1 - way, 0, 1)[1:-1].sum(0)  # the step during which a place turns from old to new
    ys, xs = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1) - 0.5
    plane = np.stack([np.ones(SIDE * SIDE), xs.ravel(), ys.ravel()], 1)
    trust = np.sqrt(np.minimum(weight, 4 * np.median(weight))).ravel()
    fit, *_ = np.linalg.lstsq(plane * trust[:, None], turns.ravel() * trust, rcond=None)
    if np.hypot(fit[1], fit[2]) < 0.35 * steps:
        return None
    arrival = (plane @ fit).reshape(SIDE, SIDE)
    moved = (np.diff(x, axis=0) ** 2).sum(1)
    along = np.abs(np.arange(steps)[:, None, None] - arrival) <= max(1, 0.12 * steps)
    usual = along.mean()
    strength = float(((moved * along).sum() / (moved.sum() + 1e-6) - usual) / (1 - usual + 1e-6))
    frames_per_step = (len(pictures) - 1) / steps
    enters, leaves = math.floor(arrival.min() * frames_per_step), math.ceil((arrival.max() + 1) * frames_per_step)
    return Edge(strength, enters, leaves)


def _running_max(values: NDArray[np.floating], reach: int) -> NDArray[np.floating]:
    padded = np.pad(values, reach)
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1).max(-1)
