"""Motion: speed of the background and of what moves against it (report, section 3.1, motion dynamics).

Dense optical flow; a perspective transform fitted to it is the motion of the background; what is left is the
foreground's. Speeds are in frame diagonals per second, so that resolution and frame rate do not matter.

``motion_bg`` is the mean over the frame of the speed of the fitted transform. ``motion_fg`` is the speed of what
moves, not its mean over the frame: a small subject that runs is as fast as a large one. Flow alone cannot be trusted
with that, as it is a guess on a clear sky and at the edges of the frame. So a pixel is foreground only where the
picture itself says so: the background's motion fails to predict the second frame there, and the flow predicts it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tasks.curation.background import NOISE_MIN, Homography, Matches, backgrounds, difference, transformed, within
from tasks.tables.clip import Clip
from tasks.tables.frame_store import FramePair
from tasks.tables.picture import Image, at_side
from tasks.tables.score import Column, Score, Scorer, Threshold, plain
from tasks.tables.step import Row, StepConfig

Array = NDArray[np.float32]

GMFLOW = "gmflow"  # as the registry of weights calls it
FLOW_SIDE = 48  # pixels, least side of a picture that flow is computed in: below 32 OpenCV gives NaN, or crashes
SMOOTHING = 0.9  # pixels, standard deviation
STRIDE = 3  # every third pixel, each way, is judged
FIT_STRIDE = 4  # the transform is fitted to every fourth of those
SLACK = 0.2  # pixels: what flow and fit leave on a background
SLACK_OF_SPEED = 0.05  # and per pixel of the background's own motion
SPECK = 0.004  # fraction of the frame: a smaller foreground counts in proportion
NEGLIGIBLE = 0.08  # of the background's speed: a foreground below is an error of the fit


class MotionConfig(StepConfig):
    scorer: Literal["lite", "gmflow"] = Field(
        "lite", description="Whose optical flow: lite: DIS, no weights; gmflow: GMFlow, at one scale"
    )
    pairs_max: int = Field(8, ge=1, description="Frame pairs measured per clip, evenly spread")
    working_side: int = Field(384, ge=64, description="Longest side at which flow is computed, pixels")


def working_picture(image: Image, side: int) -> Image:
    """Grey uint8 [h, w] with a longest side of ``side``: what is small in pixels is then equally small everywhere.

    A strip of fewer than FLOW_SIDE lines is continued by its last line: flow is computed in no smaller picture.
    """
    grey = at_side(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8), side)
    missing = [(0, max(0, FLOW_SIDE - lines)) for lines in grey.shape]
    return np.pad(grey, missing, mode="edge") if np.any(missing) else grey


def smoothed(picture: Image) -> Array:
    return np.asarray(cv2.GaussianBlur(picture.astype(np.float32), (0, 0), SMOOTHING), np.float32)


def dense_flow(first: Image, second: Image) -> Array:
    """Optical flow [h, w, 2] (x, y; pixels) from ``first`` to ``second``, grey uint8 [h, w] both.

    DIS (Kroeger et al., ECCV 2016), which follows a tenth of a frame between two pictures.
    """
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    return np.asarray(estimator.calc(first, second, None), np.float32)  # type: ignore[call-overload]


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


@dataclass(frozen=True)
class Flow:
    """Dense flow of one pair at the points that are judged, all [h, w]."""

    first: Image  # the first picture, whole
    matches: Matches
    matched: Array  # [h, w, 2] where flow puts each point
    seen: NDArray[np.bool_]  # it lies inside the second picture
    error: Array  # squared grey levels: how far the second picture differs there
    noise: float


def flow_of(pair: FramePair, config: MotionConfig, dense: Array | None = None) -> Flow:
    """Dense flow between the frames of a pair, and the matches among it that can be relied on.

    ``dense`` [h, w, 2] is the flow between the working pictures, where another network than DIS has found it.
    """
    first, second = (working_picture(image, config.working_side) for image in (pair.first, pair.second))
    # What interpolation does to noise and to the finest detail differs with the fraction of a pixel: smooth that first.
    smooth, target = (smoothed(picture) for picture in (first, second))
    sampled = (slice(STRIDE // 2, None, STRIDE),) * 2
    dense = dense_flow(first, second) if dense is None else dense
    flow, values = dense[sampled], smooth[sampled]
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
    matches = Matches(grid[thin][points], matched[thin][points], values, grid, target)
    return Flow(first, matches, matched, seen, np.asarray(error, np.float32), noise)


def speeds_against(flow: Flow, transform: Homography) -> tuple[float, float]:
    """Speeds of background and foreground of one pair, given the background's transform; diagonals per pair."""
    matches, error = flow.matches, flow.error
    predicted = transformed(matches.grid, transform)
    background = np.hypot(*np.moveaxis(predicted - matches.grid, -1, 0))
    still_seen = within(predicted, flow.first.shape)
    unpredicted = cv2.blur(difference(matches.values, matches.second, predicted, still_seen) ** 2, (3, 3))
    judged = cv2.erode((flow.seen & still_seen).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    residual, gradient = visible_length(flow.matched - predicted, flow.first)
    moving = judged & (unpredicted > error + 4 * flow.noise + SLACK**2 * gradient) & (error < 0.5 * unpredicted)
    weight = np.where(moving, np.clip(residual / (SLACK + SLACK_OF_SPEED * background) - 1, 0, 1), 0)
    # Weighted by the residual itself: the limbs of a slow body count for more than the body, and no threshold decides.
    mass = float((weight * residual).sum())
    foreground = float((weight * residual**2).sum()) / mass if mass else 0.0
    foreground *= min(1.0, float(weight.mean()) / SPECK)
    diagonal = float(np.hypot(*flow.first.shape))
    return float(background.mean()) / diagonal, foreground / diagonal


def clip_speeds(pairs: Sequence[FramePair], config: MotionConfig = MotionConfig()) -> tuple[float, float]:
    """Speeds of background and foreground over a clip, frame diagonals per second: means over its pairs, of five or
    more without the extremes."""
    return speeds_of([flow_of(pair, config) for pair in pairs], [pair.gap_s for pair in pairs])


def speeds_of(flows: Sequence[Flow], gaps_s: Sequence[float]) -> tuple[float, float]:
    """``clip_speeds`` of the flows of its pairs, and the seconds between the frames of each."""
    transforms = backgrounds([flow.matches for flow in flows])
    speeds = np.array([speeds_against(flow, transform) for flow, transform in zip(flows, transforms, strict=True)])
    speeds = np.sort(speeds / np.array(gaps_s)[:, None], axis=0)
    background, foreground = (speeds[1:-1] if len(speeds) >= 5 else speeds).mean(0).tolist()
    foreground *= float(np.clip(foreground / max(NEGLIGIBLE * background, 1e-9) - 1, 0, 1))
    return background, foreground


def score(clip: Clip, config: MotionConfig) -> Row:
    pairs = clip.pairs(config.pairs_max)
    return row_of(clip_speeds(pairs, config) if pairs else None)


def row_of(speeds: tuple[float, float] | None) -> Row:
    """The row of a clip with these speeds of background and foreground; null where it has no pairs."""
    if speeds is None:
        return {"motion_bg": None, "motion_fg": None, "motion": None}
    background, foreground = speeds
    return {"motion_bg": background, "motion_fg": foreground, "motion": (background + foreground) / 2}


def gmflow_scorer(config: MotionConfig) -> Scorer:
    """The scorer of the report's network."""
    from tasks.curation.motion_gmflow import MotionScorer  # torch takes seconds, and lite never needs it

    return MotionScorer(config)


MOTION = Score(
    "motion",
    needs=("overlays",),
    config=MotionConfig,
    columns=(
        Column("motion_bg", "speed of the background, frame diagonals per second", log=True, drawn=True, label="bg"),
        Column(
            *("motion_fg", "speed of the foreground against the background, frame diagonals per second"),
            log=True,
            drawn=True,
            label="fg",
        ),
        Column("motion", "mean of motion_bg and motion_fg", log=True, drawn=True),
    ),
    limits=(
        Threshold(
            *("motion_low", "motion", "motion_min", "low", 0.002),
            description="Smallest motion, frame diagonals per second: below, the picture stands still",
            words="The picture stands still.",
        ),
        Threshold(
            *("motion_high", "motion", "motion_max", "high", 1.0),
            description="Largest motion, frame diagonals per second: above, the picture is a blur",
            words="The picture moves too fast to be seen.",
        ),
    ),
    scorers={"lite": plain(score), "gmflow": gmflow_scorer},
    checkpoints={"gmflow": (GMFLOW,)},
    version=3,
)
