"""Blur: the variance of the Laplacian (report, section 3.1, blur detection; Pech-Pacheco et al., ICPR 2000).

Low values mean defocus or camera shake. The variance depends on the size of the picture, so every frame is first
brought to one working size, and on what is in it, so it is taken where the frame is sharpest: a sharp subject before
a blurred background is sharp, and a clear sky does not make a picture blurred.
"""

import cv2
import numpy as np
from pydantic import Field

from tasks.tables.picture import Image, at_side
from tasks.tables.step import Clip, Row, StepConfig, score_clips, step_task

VERSION = 2


class BlurConfig(StepConfig):
    frames_max: int = Field(5, ge=1, description="Frames measured per clip, evenly spread")
    working_side: int = Field(320, ge=64, description="Longest side at which frames are measured, pixels")
    tiles: int = Field(8, ge=1, description="The frame is measured in this many by this many tiles")
    tile_quantile: float = Field(
        0.9, ge=0, le=1, description="Which tile speaks for the frame; 0.9: a tenth is sharper"
    )


def laplacian_variance(image: Image, config: BlurConfig = BlurConfig()) -> float:
    """Variance of the Laplacian of the sharp part of a picture, RGB uint8 [H, W, 3]; grey levels squared.

    Grey, resized to ``working_side``; the 3x3 Laplacian; its variance in each of ``tiles`` x ``tiles`` tiles; of those
    the quantile ``tile_quantile``.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    laplacian = cv2.Laplacian(at_side(np.asarray(grey, np.uint8), config.working_side), cv2.CV_32F)
    rows = np.array_split(laplacian, config.tiles, axis=0)
    variances = [tile.var() for row in rows for tile in np.array_split(row, config.tiles, axis=1) if tile.size]
    return float(np.quantile(variances, config.tile_quantile))


def score(clip: Clip, config: BlurConfig) -> Row:
    values = [laplacian_variance(frame.image, config) for frame in clip.frames(config.frames_max)]
    return {"blur": float(np.median(values)) if values else None}


@step_task("blur")
def blur(table: str, config: BlurConfig = BlurConfig()) -> str:
    """Measure the blur of every live clip of a shard; returns the URI of the shard's table with ``blur``."""
    return score_clips(table, "blur", config, lambda clip: score(clip, config), VERSION)
