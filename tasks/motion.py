"""Motion: speed of the background and of what moves against it (report, section 3.1, motion dynamics).

Dense optical flow; a perspective transform fitted to it is the motion of the background; what is left is the
foreground's. Speeds are in frame diagonals per second, so that resolution and frame rate do not matter.
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tasks.frame_store import FramePair, Image
from tasks.step import Clip, Row, StepConfig, score_clips, step_task

VERSION = 1

Flow = NDArray[np.float32]


class MotionConfig(StepConfig):
    pairs_max: int = Field(12, ge=1, description="Frame pairs measured per clip, evenly spread")


def dense_flow(first: Image, second: Image) -> Flow:
    """Optical flow [h, w, 2] (x, y; pixels) from ``first`` to ``second``, grey uint8 [h, w]: DIS (Kroeger, ECCV 2016)."""
    estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    return np.asarray(estimator.calc(first, second, None), np.float32)


def pair_speeds(pair: FramePair) -> tuple[float, float]:
    """Speeds of background and foreground in one pair, frame diagonals per second."""
    first, second = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (pair.first, pair.second))
    flow = dense_flow(np.asarray(first), np.asarray(second))
    h, w = flow.shape[:2]
    ys, xs = np.mgrid[4:h:8, 4:w:8]
    here = np.stack([xs, ys], -1).reshape(-1, 2).astype(np.float32)
    there = here + flow[ys, xs].reshape(-1, 2)
    transform, _ = cv2.findHomography(here, there, cv2.RANSAC, 1.0)
    background = (cv2.perspectiveTransform(here[None], transform)[0] if transform is not None else here) - here
    residual = np.hypot(*(there - here - background).T)
    moving = residual > 0.5
    scale = 1 / (np.hypot(h, w) * pair.gap_s)
    foreground = float(residual[moving].mean()) if moving.mean() > 0.005 else 0.0
    return float(np.hypot(*background.T).mean() * scale), foreground * float(scale)


def score(clip: Clip, config: MotionConfig) -> Row:
    pairs = clip.pairs(config.pairs_max)
    if not pairs:
        return {"motion_bg": None, "motion_fg": None, "motion": None}
    background, foreground = np.mean([pair_speeds(pair) for pair in pairs], axis=0).tolist()
    return {"motion_bg": background, "motion_fg": foreground, "motion": (background + foreground) / 2}


@step_task("motion")
def motion(table: str, config: MotionConfig = MotionConfig()) -> str:
    """Measure the motion of every live clip of a shard; returns the URI of the shard's table with its speeds."""
    return score_clips(table, "motion", config, lambda clip: score(clip, config), VERSION)
