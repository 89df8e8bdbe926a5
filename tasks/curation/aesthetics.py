"""Aesthetics: a score of key frames, averaged (report, section 3.1, aesthetic score).

The report uses a predictor learnt on CLIP features: ``clip`` (aesthetics_clip.py), on a scale of about 1 to 10, so its
threshold is another. ``lite`` is no such thing: it is four classic measurements of a photograph (exposure, contrast,
colour, sharpness) and needs no weights. It ranks black, flat, washed-out, grey and blurred frames low; it knows nothing
of subject or composition.
"""

from typing import Literal

import cv2
import numpy as np
from pydantic import Field

from tasks.curation.blur import laplacian_variance
from tasks.tables.clip import Clip
from tasks.tables.picture import Image, shrink
from tasks.tables.score import Column, Score, Scorer, Threshold, plain
from tasks.tables.step import Row, StepConfig

CLIP_CHECKPOINTS = ("clip", "aesthetic")  # as the registry of weights calls them
COLOUR_SIDE = 160  # pixels: the colours of a picture need no more of it


class AestheticsConfig(StepConfig):
    scorer: Literal["lite", "clip"] = Field(
        "lite",
        description="lite: exposure, contrast, colour, sharpness, no weights; clip: LAION's predictor on CLIP ViT-L/14",
    )
    key_frames: int = Field(3, ge=1, description="Key frames scored per clip: the middles of as many equal parts")


def colourfulness(image: Image) -> float:
    """Hasler and Suesstrunk's M (SPIE 2003) of RGB uint8 [H, W, 3]: 0 for grey, about 60 for a colourful photograph."""
    r, g, b = np.moveaxis(shrink(image, COLOUR_SIDE).astype(np.float32), -1, 0)
    rg, yb = r - g, (r + g) / 2 - b
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


def lite(image: Image) -> float:
    """Score of one picture, RGB uint8 [H, W, 3], from 0 (black or flat) to 10."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    mean = float(grey.mean())
    exposure = min(1.0, mean / 0.25, (1 - mean) / 0.25)
    contrast = min(1.0, float(grey.std()) / 0.25)
    colour = min(1.0, colourfulness(image) / 80)
    sharpness = min(1.0, float(np.log10(1 + laplacian_variance(image))) / 4)
    return 10 * contrast**0.5 * (0.3 * exposure + 0.25 * contrast + 0.2 * colour + 0.25 * sharpness)


def score(clip: Clip, config: AestheticsConfig) -> Row:
    values = [lite(frame.image) for frame in clip.frames(config.key_frames)]
    return {"aesthetic": float(np.mean(values)) if values else None}


def clip_scorer(config: AestheticsConfig) -> Scorer:
    """The scorer of the report's network."""
    from tasks.curation.aesthetics_clip import AestheticScorer  # torch takes seconds, and lite never needs it

    return AestheticScorer(config.key_frames)


AESTHETICS = Score(
    "aesthetics",
    needs=("overlays",),
    config=AestheticsConfig,
    columns=(Column("aesthetic", "aesthetic score, mean over key frames", drawn=True),),
    limits=(
        Threshold(
            *("aesthetic", "aesthetic", "aesthetic_min", "low", 1.5),
            description="Smallest aesthetic score",
            words="The picture looks poor.",
        ),
    ),
    scorers={"lite": plain(score), "clip": clip_scorer},
    checkpoints={"clip": CLIP_CHECKPOINTS},
    version=2,
)
