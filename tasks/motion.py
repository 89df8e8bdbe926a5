"""Motion: speed of the background and of what moves against it (report, section 3.1, motion dynamics).

Dense optical flow; a perspective transform fitted to it is the motion of the background; what is left is the
foreground's. Speeds are in frame diagonals per second, so that resolution and frame rate do not matter.

``motion_bg`` is the mean over the frame of the speed of the fitted transform. ``motion_fg`` is the speed of what
moves, not its mean over the frame: a small subject that runs is as fast as a large one. Flow alone cannot be trusted
with that, as it is a guess on a clear sky and at the edges of the frame. So a pixel is foreground only where the
picture itself says so: the background's motion fails to predict the second frame there, and the flow predicts it.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tasks.frame_store import FramePair, Image
from tasks.step import Clip, Row, StepConfig, score_clips, step_task

VERSION = 1

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Homography = NDArray[np.float64]

STRIDE = 3  # every third pixel, each way, is judged
FIT_STRIDE = 4  # the transform is fitted to every fourth of those
NOISE_MIN = 0.5  # grey levels squared: what JPEG leaves between two equal pictures
SLACK = 0.2  # pixels: what flow and fit leave on a background
SLACK_OF_SPEED = 0.05  # and per pixel of the background's own motion
POINTS_MIN = 12
CELLS = 8  # the transforms that were found are compared in this many by this many cells
SPECK = 0.004  # fraction of the frame: a smaller foreground counts in proportion
NEGLIGIBLE = 0.08  # of the background's speed: a foreground below is an error of the fit


class MotionConfig(StepConfig):
    pairs_max: int = Field(8, ge=1, description="Frame pairs measured per clip, evenly spread")
    working_side: int = Field(384, ge=64, description="Longest side at which flow is computed, pixels")


def working_picture(image: Image, side: int) -> Image:
    """Grey uint8 [h, w] with a longest side of ``side``: what is small in pixels is then equally small everywhere."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    scale = side / max(grey.shape)
    size = max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale))
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 0.6 else cv2.INTER_LINEAR)  # type: ignore[return-value]


def dense_flow(first: Image, second: Image) -> Array:
    """Optical flow [h, w, 2] (x, y; pixels) from ``first`` to ``second``, grey uint8 [h, w] both.

    DIS (Kroeger et al., ECCV 2016), which follows a tenth of a frame between two pictures.
    """
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    return np.asarray(estimator.calc(first, second, None), np.float32)  # type: ignore[call-overload]


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
        weight = tukey(error, max(2 * SLACK, 3 * float(np.median(error))))
        if np.count_nonzero(weight) < POINTS_MIN:
            break
        weighted = rows * np.concatenate([weight, weight])
        solution = np.linalg.lstsq(weighted @ rows.T, weighted @ target, rcond=1e-12)[0]
        transform = unit @ np.append(solution, 1).reshape(3, 3) @ np.linalg.inv(unit)
    return transform


def aligned(transform: Homography, values: Array, grid: Array, second: Array, steps: int = 2) -> Homography:
    """The transform aligned to the grey levels themselves, which is finer than flow: Gauss-Newton (Lucas-Kanade).

    ``values`` [n, m] are the first picture's at ``grid`` [n, m, 2]; ``second`` is [h, w].
    """
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


def candidates(here: Array, there: Array) -> list[Homography]:
    """Transforms that may be the background's: no motion, the most common one, and the most common of the rest.

    These are affine, which needs few matches to be stable; what is kept becomes perspective when it is refitted.
    """
    found = [np.eye(3)]
    left = np.ones(len(here), bool)
    while len(found) < 3 and np.count_nonzero(left) >= max(POINTS_MIN, len(here) / 10):
        every = 1 + np.count_nonzero(left) // 300
        transform, inliers = cv2.estimateAffine2D(
            np.ascontiguousarray(here[left][::every]),
            np.ascontiguousarray(there[left][::every]),
            method=cv2.RANSAC,
            ransacReprojThreshold=5 * SLACK,
            maxIters=300,
            confidence=0.99,
            refineIters=2,
        )
        if transform is None or np.count_nonzero(inliers) < POINTS_MIN:
            break
        found.append(np.vstack([transform, (0.0, 0.0, 1.0)]))
        left &= np.hypot(*(transformed(here, found[-1]) - there).T) > 1
    return found


def fit_background(here: Array, there: Array, values: Array, grid: Array, second: Array) -> Homography:
    """The perspective transform of the background, from reliable matches ``here`` to ``there`` [n, 2].

    A transform is judged by how well it predicts ``second`` [h, w] from the samples ``values`` at ``grid``, part by
    part of the frame, not by its number of matches: a rich subject before a plain wall has most of those. Parts at
    the border count twice. Motion that shows in one patch only is a subject's, and the camera stands still.
    """
    found = candidates(here, there)
    if len(found) == 1:
        return found[0]
    shape = second.shape
    cell = (grid * (CELLS / shape[1], CELLS / shape[0])).astype(int) @ (1, CELLS)
    places = [transformed(grid, transform) for transform in found]
    seen = np.logical_and.reduce([within(place, shape) for place in places])
    count = np.bincount(cell[seen], minlength=CELLS**2)

    def by_cell(error: Array) -> NDArray[np.float64]:
        return np.bincount(cell[seen], error[seen] ** 2, CELLS**2) / np.maximum(count, 1)

    differences = [difference(values, second, place, seen) for place in places]
    errors = np.stack([by_cell(error) for error in differences])
    known, least = count > 0, errors.min(0)
    noise = max(0.2, float(np.median(least[known]))) if known.any() else 1.0
    border = np.pad(np.ones((CELLS - 2, CELLS - 2)), 1, constant_values=2).ravel()
    votes = ((errors <= 1.15 * least + 0.2 * noise) & known) @ border
    for k in np.argsort(-votes[1:], kind="stable") + 1:
        # Where the two predict different pictures, the one that is wrong is off by as much as they differ.
        apart = by_cell(differences[k] - differences[0])
        gain = np.where(apart > 0.3 * noise, (errors[0] - errors[k]) / np.maximum(apart, 1e-6), 0)
        favour, oppose = gain > 0.3, gain < -0.3
        if border[favour].sum() > 3 * border[oppose].sum() and spread(favour, known):
            transform = refitted(found[k], here, there, max(shape))
            return aligned(transform, values[::2, ::2], grid[::2, ::2], second)
    return found[0]


def spread(moving: Mask, seen: Mask) -> bool:
    """Whether the cells that move lie about those seen [CELLS * CELLS] as a background does, rather than in a patch."""
    rows, columns = (np.flatnonzero(seen.reshape(CELLS, CELLS).any(axis)) for axis in (1, 0))
    if not len(rows):
        return False
    cells = moving.reshape(CELLS, CELLS)[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    top, bottom, left, right = (bool(side.any()) for side in (cells[0], cells[-1], cells[:, 0], cells[:, -1]))
    corner, share = bool(cells[:: max(1, len(cells) - 1), :: max(1, cells.shape[1] - 1)].any()), cells.mean()
    around = corner and top + bottom + left + right >= 3
    return bool(around or share > 0.7 or (left and right and share > 0.15))


def visible_length(vectors: Array, picture: Image) -> tuple[Array, Array]:
    """Lengths of vectors [h, w, 2] as far as the texture of ``picture`` under them shows them; its squared gradient.

    Along an edge a motion cannot be seen. With S the structure tensor, the length is ``sqrt(2 v'Sv / trace S)``: the
    true one where gradients point every way, and on average over all directions of a motion.
    """
    gx = cv2.Sobel(picture, cv2.CV_32F, 1, 0, scale=1 / 8)[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
    gy = cv2.Sobel(picture, cv2.CV_32F, 0, 1, scale=1 / 8)[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
    xx, yy, xy = (cv2.blur(product, (3, 3)) for product in (gx * gx, gy * gy, gx * gy))
    x, y = vectors[..., 0], vectors[..., 1]
    form = np.maximum(2 * (xx * x * x + yy * y * y + 2 * xy * x * y), 0)
    return np.sqrt(form / (xx + yy + 4 * NOISE_MIN)), xx + yy


def pair_speeds(pair: FramePair, config: MotionConfig = MotionConfig()) -> tuple[float, float]:
    """Speeds of background and foreground in one pair, frame diagonals per second."""
    first, second = (working_picture(image, config.working_side) for image in (pair.first, pair.second))
    target = second.astype(np.float32)
    sampled = (slice(STRIDE // 2, None, STRIDE),) * 2
    flow, values = dense_flow(first, second)[sampled], first[sampled].astype(np.float32)
    h, w = first.shape
    grid = np.stack(np.meshgrid(*(np.arange(STRIDE // 2, n, STRIDE, dtype=np.float32) for n in (w, h))), -1)

    matched = grid + flow
    seen = within(matched, first.shape, 1)
    error = cv2.blur(difference(values, target, matched, seen) ** 2, (3, 3))
    noise = max(NOISE_MIN, float(np.median(error[seen]))) if seen.any() else NOISE_MIN
    texture = cv2.blur(values * values, (5, 5)) - cv2.blur(values, (5, 5)) ** 2
    reliable = seen & (texture > 4 * noise) & (error < 0.5 * texture)
    thin = (slice(FIT_STRIDE // 2, None, FIT_STRIDE),) * 2
    points = reliable[thin]
    transform = fit_background(grid[thin][points], matched[thin][points], values, grid, target)

    predicted = transformed(grid, transform)
    background = np.hypot(*np.moveaxis(predicted - grid, -1, 0))
    still_seen = within(predicted, first.shape)
    unpredicted = cv2.blur(difference(values, target, predicted, still_seen) ** 2, (3, 3))
    judged = cv2.erode((seen & still_seen).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    residual, gradient = visible_length(matched - predicted, first)
    moving = judged & (unpredicted > error + 4 * noise + SLACK**2 * gradient) & (error < 0.5 * unpredicted)
    weight = np.where(moving, np.clip(residual / (SLACK + SLACK_OF_SPEED * background) - 1, 0, 1), 0)
    # Weighted by the residual itself: the limbs of a slow body count for more than the body, and no threshold decides.
    mass = float((weight * residual).sum())
    foreground = float((weight * residual**2).sum()) / mass if mass else 0.0
    foreground *= min(1.0, float(weight.mean()) / SPECK)
    camera = float(background.mean())
    foreground *= float(np.clip(foreground / max(NEGLIGIBLE * camera, 1e-9) - 1, 0, 1))
    per_second = 1 / (float(np.hypot(h, w)) * pair.gap_s)
    return camera * per_second, foreground * per_second


def clip_speeds(pairs: Sequence[FramePair], config: MotionConfig = MotionConfig()) -> tuple[float, float]:
    """Speeds of background and foreground over a clip: means over its pairs, of five or more without the extremes."""
    speeds = np.sort([pair_speeds(pair, config) for pair in pairs], axis=0)
    background, foreground = (speeds[1:-1] if len(speeds) >= 5 else speeds).mean(0).tolist()
    return background, foreground


def score(clip: Clip, config: MotionConfig) -> Row:
    pairs = clip.pairs(config.pairs_max)
    if not pairs:
        return {"motion_bg": None, "motion_fg": None, "motion": None}
    background, foreground = clip_speeds(pairs, config)
    return {"motion_bg": background, "motion_fg": foreground, "motion": (background + foreground) / 2}


@step_task("motion")
def motion(table: str, config: MotionConfig = MotionConfig()) -> str:
    """Measure the motion of every live clip of a shard; returns the URI of the shard's table with its speeds."""
    return score_clips(table, "motion", config, lambda clip: score(clip, config), VERSION)
