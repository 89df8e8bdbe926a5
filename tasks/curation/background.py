"""The motion of the background between the two frames of a pair: a perspective transform (report, section 3.1).

Matches that optical flow is sure of suggest transforms: that of the largest part that moves as one, and that of the
largest part of the rest. Which of them is the camera's, and whether the camera moves at all, is not a matter of
counting matches, as a rich subject before a plain wall has most of those. It is asked of the picture part by part:
which transform predicts the second frame there, and do the parts that move lie about the frame as a background does,
or in a patch as a subject does? Where one pair cannot tell, as a slow pan over a soft picture is below its noise, all
pairs of the clip are asked together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Cells = NDArray[np.float64]
Homography = NDArray[np.float64]

STILL: Homography = np.eye(3)
NOISE_MIN = 0.5  # grey levels squared: what JPEG leaves between two equal pictures
REACH_PX = 1.0  # a match this far from a transform is not explained by it
POINTS_MIN = 12
CELLS = 8  # transforms are compared in this many by this many parts of the frame
TELLING = 0.3  # of the noise: how far two predictions must be apart in a cell before it can tell which is right
BORDER = np.pad(np.ones((CELLS - 2, CELLS - 2)), 1, constant_values=2).ravel()  # a background reaches the border


@dataclass(frozen=True)
class Matches:
    """What is known of one pair: reliable matches, and samples of the first picture to be found in the second."""

    here: Array  # [n, 2], pixels
    there: Array  # [n, 2]
    values: Array  # [h, w] grey levels of the first picture
    grid: Array  # [h, w, 2] where they were sampled
    second: Array  # [H, W] the second picture


@dataclass(frozen=True)
class Moving:
    """The transform that most of a pair moves by, and what speaks for it in each cell, in units of the noise."""

    transform: Homography
    gain: Cells  # [CELLS * CELLS] squared error of a still camera less that of this transform
    apart: (
        Cells  # [CELLS * CELLS] squared difference of the two predictions: the gain if it is right, minus it if wrong
    )


def backgrounds(pairs: Sequence[Matches]) -> list[Homography]:
    """The perspective transform of the background of every pair of one clip."""
    moving = [most_moving(pair) for pair in pairs]
    return [
        refined(each.transform, pair) if each and moves else STILL
        for pair, each, moves in zip(pairs, moving, decisions(moving), strict=True)
    ]


def decisions(moving: Sequence[Moving | None]) -> list[bool]:
    """Whether the camera moves in each pair of a clip: by its own evidence, or else by that of all pairs together, or
    else as in the other pairs, if half of all can tell."""
    alone = [None if each is None else camera_moves(each.gain, each.apart) for each in moving]
    together = camera_moves(*in_common([each for each in moving if each]))
    if together is None:
        together = alone.count(True) >= len(moving) / 2
    return [together if each is None else each for each in alone]


def in_common(moving: Sequence[Moving]) -> tuple[Cells, Cells]:
    """Gain and distance per cell that the pairs of a clip share: what passes through a cell once does not count.

    The noise of a median of n is less than that of one by the root of n, and so much more is telling.
    """
    if not moving:
        return np.zeros(CELLS**2), np.zeros(CELLS**2)
    finer = np.sqrt(len(moving))
    gain, apart = (np.median([getattr(each, name) for each in moving], 0) for name in ("gain", "apart"))
    return gain * finer, apart * finer


def camera_moves(gain: Cells, apart: Cells) -> bool | None:
    """Whether the camera moves, by the evidence in every cell; None where it does not suffice for either answer."""
    telling = apart > TELLING
    share = np.where(telling, gain / np.maximum(apart, 1e-6), 0)
    favour, oppose = share > 0.3, share < -0.3
    if BORDER[favour].sum() > 3 * BORDER[oppose].sum() and spread(favour):
        return True
    return False if BORDER[oppose].sum() > 3 * BORDER[favour].sum() and spread(oppose) else None


def spread(cells: Mask) -> bool:
    """Whether cells [CELLS * CELLS] lie about the frame as a background does, rather than in a patch."""
    frame = cells.reshape(CELLS, CELLS)
    top, bottom, left, right = (bool(side.any()) for side in (frame[0], frame[-1], frame[:, 0], frame[:, -1]))
    corner, share = bool(frame[:: CELLS - 1, :: CELLS - 1].any()), frame.mean()
    around = corner and top + bottom + left + right >= 3
    return bool(around or share > 0.7 or (left and right and share > 0.15))


def most_moving(pair: Matches) -> Moving | None:
    """The transform, of those that parts of a pair move by, that predicts most of the frame; None if nothing moves."""
    found = candidates(pair.here, pair.there)
    if not found:
        return None
    height, width = pair.second.shape
    cell = (pair.grid * (CELLS / width, CELLS / height)).astype(int) @ (1, CELLS)
    places = [transformed(pair.grid, transform) for transform in (STILL, *found)]
    seen = np.logical_and.reduce([within(place, pair.second.shape) for place in places])
    count = np.bincount(cell[seen], minlength=CELLS**2)

    def by_cell(error: Array) -> Cells:
        return np.bincount(cell[seen], error[seen] ** 2, CELLS**2) / np.maximum(count, 1)

    differences = [difference(pair.values, pair.second, place, seen) for place in places]
    errors = np.stack([by_cell(error) for error in differences])
    least = errors.min(0)
    noise = max(0.2, float(np.median(least[count > 0]))) if count.any() else 1.0
    votes = ((errors[1:] <= 1.15 * least + 0.2 * noise) & (count > 0)) @ BORDER
    best = int(np.argmax(votes))
    gain, apart = errors[0] - errors[best + 1], by_cell(differences[best + 1] - differences[0])
    return Moving(found[best], gain / noise, apart / noise)


def candidates(here: Array, there: Array) -> list[Homography]:
    """The most common transform from points [n, 2] to points [n, 2], and the most common one of the rest.

    These are affine, which needs few matches to be stable; what is kept becomes perspective when it is refined.
    """
    found: list[Homography] = []
    left = np.ones(len(here), bool)
    while len(found) < 2 and np.count_nonzero(left) >= max(POINTS_MIN, len(here) / 10):
        every = 1 + np.count_nonzero(left) // 300
        transform, inliers = cv2.estimateAffine2D(
            np.ascontiguousarray(here[left][::every]),
            np.ascontiguousarray(there[left][::every]),
            method=cv2.RANSAC,
            ransacReprojThreshold=REACH_PX,
            maxIters=300,
            confidence=0.99,
            refineIters=2,
        )
        if transform is None or np.count_nonzero(inliers) < POINTS_MIN:
            break
        found.append(np.vstack([transform, (0.0, 0.0, 1.0)]))
        left &= np.hypot(*(transformed(here, found[-1]) - there).T) > REACH_PX
    return found


def refined(transform: Homography, pair: Matches) -> Homography:
    """The transform fitted as a perspective one, to the matches it explains and then to the grey levels themselves."""
    return aligned(refitted(transform, pair.here, pair.there, max(pair.second.shape)), pair)


def refitted(transform: Homography, here: Array, there: Array, side: int) -> Homography:
    """The transform fitted again to the pairs of points [n, 2] that it explains, by reweighted least squares."""
    x, y = (here / side).T.astype(np.float64)
    u, v = (there / side).T.astype(np.float64)
    o, i = np.zeros_like(x), np.ones_like(x)
    along = np.stack([x, y, i, o, o, o, -x * u, -y * u]), np.stack([o, o, o, x, y, i, -x * v, -y * v])
    rows, target = np.hstack(along), np.concatenate([u, v])
    unit = np.diag([side, side, 1.0])
    for _ in range(2):
        error = np.hypot(*(transformed(here, transform) - there).T)
        weight = tukey(error, max(0.4 * REACH_PX, 3 * float(np.median(error))))
        if np.count_nonzero(weight) < POINTS_MIN:
            break
        weighted = rows * np.concatenate([weight, weight])
        solution = np.linalg.lstsq(weighted @ rows.T, weighted @ target, rcond=1e-12)[0]
        transform = unit @ np.append(solution, 1).reshape(3, 3) @ np.linalg.inv(unit)
    return transform


def aligned(transform: Homography, pair: Matches, steps: int = 2) -> Homography:
    """The transform aligned to the grey levels themselves, which is finer than flow: Gauss-Newton (Lucas-Kanade)."""
    values, grid, second = pair.values[::2, ::2], pair.grid[::2, ::2], pair.second
    side = max(second.shape)
    unit = np.diag([side, side, 1.0])
    slopes = [cv2.Sobel(second, cv2.CV_32F, *axis, scale=side / 8) for axis in ((1, 0), (0, 1))]
    for _ in range(steps):
        there = transformed(grid, transform)
        seen = within(there, second.shape)
        error = difference(values, second, there, seen)[seen].astype(np.float64)
        if error.size < POINTS_MIN:
            break
        gx, gy = (cv2.remap(slope, there, None, cv2.INTER_LINEAR)[seen].astype(np.float64) for slope in slopes)  # type: ignore[call-overload]
        (x, y), (u, v) = (grid[seen] / side).T.astype(np.float64), (there[seen] / side).T.astype(np.float64)
        small = np.linalg.inv(unit) @ transform @ unit
        depth = small[2, 0] * x + small[2, 1] * y + small[2, 2]
        pull = -(gx * u + gy * v)
        rows = np.stack([gx * x, gx * y, gx, gy * x, gy * y, gy, pull * x, pull * y]) / depth
        weighted = rows * tukey(error, 6 * max(NOISE_MIN, float(np.median(np.abs(error)))))
        change = np.linalg.lstsq(weighted @ rows.T, weighted @ error, rcond=1e-9)[0]
        transform = unit @ (small / small[2, 2] + np.append(change, 0).reshape(3, 3)) @ np.linalg.inv(unit)
    return transform


def tukey(error: NDArray[np.floating], reach: float) -> NDArray[np.floating]:
    """Weights of Tukey's biweight: 1 where there is no error, 0 beyond ``reach``."""
    return np.clip(1 - (error / reach) ** 2, 0, None) ** 2


def transformed(points: Array, transform: Homography) -> Array:
    """Where points [..., 2] go under a perspective transform."""
    flat = points.reshape(1, -1, 2)
    return np.asarray(cv2.perspectiveTransform(flat, transform), np.float32).reshape(points.shape)


def within(points: Array, shape: tuple[int, ...], margin: int = 2) -> Mask:
    """Which of the points [..., 2] lie inside a picture of ``shape``, at least ``margin`` pixels from its edge."""
    x, y = points[..., 0], points[..., 1]
    return (x >= margin) & (x <= shape[1] - 1 - margin) & (y >= margin) & (y <= shape[0] - 1 - margin)


def difference(values: Array, second: Array, there: Array, seen: Mask) -> Array:
    """Samples [n, m] less ``second`` [h, w] at ``there`` [n, m, 2], grey levels; 0 where not ``seen``.

    A slow change of brightness is no difference: its local mean is taken out.
    """
    found = values - cv2.remap(second, there, None, cv2.INTER_LINEAR)  # type: ignore[call-overload]
    found[~seen] = 0
    found -= cv2.blur(found, (7, 7)) / np.maximum(cv2.blur(seen.astype(np.float32), (7, 7)), 1e-3)
    found[~seen] = 0
    return np.asarray(found, np.float32)
