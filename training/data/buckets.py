"""Buckets in training: the one shape in frames and pixels that all clips of a bucket are made to (report, section 5.3).

A clip goes to its nearest bucket and is truncated: a bucket of d seconds holds clips from d - 0.5 s on, and all of them
are trained on at the length that the shortest can have. No clip is too short for its bucket, and none is stretched.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import inf, log

from models.codec import MODEL_MULTIPLE, SPATIAL_FACTOR, TEMPORAL_FACTOR, latent_shape
from training.recipe import Recipe

ASPECTS = {"16x9": 16 / 9, "3x2": 3 / 2, "4x3": 4 / 3, "1x1": 1.0, "3x4": 3 / 4, "2x3": 2 / 3, "9x16": 9 / 16}
NEAREST = 0.5  # seconds that a clip may be shorter than its bucket says
PATCH = MODEL_MULTIPLE // SPATIAL_FACTOR


@dataclass(frozen=True, order=True)
class Bucket:
    """As in the manifest: nearest aspect ratio and nearest number of whole seconds, 0 of an image."""

    duration_s: int
    aspect: str

    def __str__(self) -> str:
        return f"{self.aspect} {self.duration_s} s" if self.duration_s else f"{self.aspect} image"


@dataclass(frozen=True, order=True)
class Shape:
    """Frames and pixels of a sample; frames are 4k + 1, sides multiples of 16."""

    frames: int
    height: int
    width: int

    @property
    def latent(self) -> tuple[int, int, int]:
        return latent_shape(self.frames, self.height, self.width)

    @property
    def tokens(self) -> int:
        """Tokens of the transformer: patches of 2 x 2 latent pixels."""
        frames, height, width = self.latent
        return frames * (height // PATCH) * (width // PATCH)

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


def shape_of(bucket: Bucket, recipe: Recipe) -> Shape:
    """The shape in which the recipe trains on a bucket.

    ValueError: the bucket is none of the seven aspect ratios, or its clips are shorter than one frame.
    """
    if bucket.aspect not in ASPECTS:
        raise ValueError(f"aspect ratio {bucket.aspect!r} is none of {', '.join(ASPECTS)}")
    height, width = sides(bucket.aspect, recipe.height, recipe.width)
    return Shape(frames(bucket.duration_s, recipe), height, width)


def frames(duration_s: int, recipe: Recipe) -> int:
    """The most frames, 4k + 1, that every clip of such buckets has at the recipe's rate, and the recipe allows."""
    if not duration_s:
        return 1
    shortest = int((duration_s - NEAREST) * recipe.fps)
    if shortest < 1:
        raise ValueError(f"clips of {duration_s} s have no frame to train on")
    return min(recipe.frames, (shortest - 1) // TEMPORAL_FACTOR * TEMPORAL_FACTOR + 1)


@lru_cache
def sides(aspect: str, height: int, width: int) -> tuple[int, int]:
    """Height and width of the aspect ratio, multiples of 16, with at most the area of ``height`` x ``width``.

    Of all such pairs the one nearest to the ratio and to the area: a ratio that is off by 1 % cuts away 1 % of every
    clip, an area that is 1 % less saves 1 % of the work, so the ratio weighs double.
    """
    most = (height // MODEL_MULTIPLE) * (width // MODEL_MULTIPLE)
    best, found = inf, (0, 0)
    for rows in range(1, most + 1):
        for columns in range(1, most // rows + 1):
            off = 2 * abs(log(columns / rows / ASPECTS[aspect])) + log(most / (rows * columns))
            if off < best - 1e-9:
                best, found = off, (rows * MODEL_MULTIPLE, columns * MODEL_MULTIPLE)
    return found
