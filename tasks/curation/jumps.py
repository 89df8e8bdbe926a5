"""Jumps of the picture that part no shots: those of a loop, and those of footage that jumps all the time.

A cut is an event: what was there before is gone, and its neighbourhood is calmer than it is. A loop (an animated GIF, a
few pictures played again and again) jumps back to pictures that were there one period ago and then goes the same way
again. Stop motion, footage at a few pictures a second and a timelapse jump as far all the time, and what they show
stays in common to the pictures on either side.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

from tasks.curation.thumbnails import Floats, distance, weighted

RESTLESS_S = 1.0  # how far on either side of a jump others are looked for
RESTLESS_JUMPS = 3  # as many within that as tell of footage that jumps all the time: pieces of half a second
LIT = 24.0  # luma of a place that is no border of a picture on black
STROBE_S = 2.0  # a period within which any number of jumps may repeat; a longer one has only its jump back


def is_loop(
    content: Floats, pictures: Floats, i: int, fps: float, longest_s: float, ratio: float, alike: float
) -> bool:
    """Whether the jump to frame ``i`` is one of a loop of at most ``longest_s``: back to where it begins, or within it.

    Two periods that follow each other and meet at ``i``, or end there, or begin there after the same jump, must be the
    same picture by picture, within ``alike`` of the jump. Where a period has other jumps, from 1/``ratio`` of that at
    ``i`` on, it is of at most STROBE_S and must come three times in a row: two views in turn are parted by cuts, which
    may chance to be as far apart once, while flicker and strobes are one shot.
    """
    old, new = pictures[i - 1], pictures[i]
    limit = alike * float(distance(old, new))
    longest = round(longest_s * fps)
    sides = content[i - 1 : max(0, i - longest) : -1], content[i + 1 : i + longest]
    calm = [int(np.argmax(np.append(side, np.inf) >= content[i] / ratio)) + 1 for side in sides]
    reach = [min(longest, max(round(STROBE_S * fps), quiet)) for quiet in calm]

    earlier = np.flatnonzero(distance(pictures[max(0, i - reach[0]) : i - 1][::-1], new) <= limit) + 2
    later = distance(pictures[i + 2 : i + 1 + reach[1]], new) <= limit
    same_jump = later & (distance(pictures[i + 1 : i + reach[1]][: len(later)], old) <= limit)
    for side, periods, turns in ((0, earlier, (-2, -1, 0, 1)), (1, np.flatnonzero(same_jump) + 2, (1, 2))):
        for period in map(int, periods):
            again = [_repeats(pictures, i + turn * period, period, limit) for turn in turns]
            if period <= calm[side] and any(again[1:3] if side == 0 else again[:1]):
                return True
            if any(one and other for one, other in itertools.pairwise(again)):
                return True
    return False


def _repeats(pictures: Floats, start: int, period: int, limit: float) -> bool:
    """Whether the ``period`` frames from ``start`` on are those of the period before, give or take a frame."""
    if start < period or start + period > len(pictures):
        return False
    now, before = pictures[start : start + period], pictures[start - period : start]
    nearest = distance(now, before)
    nearest[1:] = np.minimum(nearest[1:], distance(now[1:], before[:-1]))
    nearest[:-1] = np.minimum(nearest[:-1], distance(now[:-1], before[1:]))
    nearest[-1] = min(nearest[-1], float(distance(now[-1], now[0])))  # the next period has begun
    return bool(nearest.max() <= limit)


def is_restless(content: Floats, pictures: Floats, i: int, fps: float, ratio: float, shared: float) -> bool:
    """Whether footage jumps all the time around frame ``i``, over pictures that have much in common.

    Jumps count from 1/``ratio`` of that at ``i``, on both sides of it unless the run ends there. In common is what the
    pictures before and after a jump correlate by: ``shared`` or more at ``i`` and on average, as a montage of cuts is
    as restless.
    """
    around = round(RESTLESS_S * fps)
    first, end = max(1, i - around), min(len(content), i + around + 1)
    jumps = first + np.flatnonzero(content[first:end] >= content[i] / ratio)
    before, after = int((jumps < i).sum()), int((jumps > i).sum())
    starts, ends = i <= around, i + around >= len(content)
    if before + after < RESTLESS_JUMPS - (starts or ends) or not (before or starts) or not (after or ends):
        return False
    common = _common(pictures, first, end, jumps)
    return bool(min(common.mean(), common[jumps == i][0]) >= shared)


def _common(pictures: Floats, first: int, end: int, jumps: NDArray[np.intp]) -> NDArray[np.floating]:
    """The correlation of the pictures before and after each jump, over all places but borders that stay black."""
    lit = pictures[first - 1 : end, 0].max(0) > LIT
    lit = lit if lit.any() else ~lit
    old, new = (weighted(pictures[at])[..., lit] for at in (jumps - 1, jumps))
    old, new = (part - part.mean(2, keepdims=True) for part in (old, new))
    energy = np.sqrt((old**2).sum((1, 2)) * (new**2).sum((1, 2)))
    return (old * new).sum((1, 2)) / np.maximum(energy, 1e-3)


def unsteadiness(pictures: Floats) -> float:
    """How much the way of the pictures turns back from frame to frame: 0 where it is straight and even, at most 4.

    The mean square of its second differences against that of its steps: 2 where steps have nothing to do with each
    other, or where each picture is shown several times, and 3 where pictures scatter around one, as in flicker.
    """
    steps = np.diff(weighted(pictures), axis=0)
    if len(steps) < 2:
        return 0.0
    return float((np.diff(steps, axis=0) ** 2).sum((1, 2, 3)).mean() / max((steps**2).sum((1, 2, 3)).mean(), 1e-6))
