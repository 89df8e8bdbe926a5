"""Thumbnails of frames and how far two of them are apart: what transitions are recognised by.

Thumbnails are float32 [T, 3, SIDE, SIDE] of luma, Cb and Cr, 0 to 255; a distance is root mean square, in luma levels.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SIDE = 12  # places per row and column of a thumbnail
CHROMA_WEIGHT = 2.0  # chroma spans about half of luma's range


def contrasts(pictures: Floats) -> NDArray[np.floating]:
    """Root mean square deviation of each picture from its mean colour [T]."""
    return np.sqrt((weighted(pictures - pictures.mean((2, 3), keepdims=True)) ** 2).sum((1, 2, 3)))


def _normalised(pictures: Floats) -> NDArray[np.floating]:
    """Each picture with its planes' means removed, and of unit energy; nearly flat ones are left nearly 0."""
    centred = weighted(pictures - pictures.mean((2, 3), keepdims=True))
    energy = (centred**2).sum((1, 2, 3), keepdims=True)
    return centred / np.sqrt(np.maximum(energy, 1.0))


def weighted(pictures: Floats) -> Floats:
    """Scaled so that a sum of squares is a mean square in luma levels."""
    weights = np.array([1, CHROMA_WEIGHT, CHROMA_WEIGHT], np.float32) / SIDE
    return (pictures * weights[:, None, None]).astype(np.float32, copy=False)


def distance(one: Floats, other: Floats) -> NDArray[np.floating]:
    """Root mean square distance of pictures that stand opposite each other, in luma levels."""
    return np.sqrt((weighted(one - other) ** 2).sum((-3, -2, -1)))


def novelty(first: Floats, second: Floats) -> NDArray[np.floating]:
    """How much of the second pictures the first ones do not explain [N], 0 to about 1; pictures are [N, 3, SIDE, SIDE].

    Explained is what 3x3 blocks of the first one, each moved by up to 3 places, make of it. Mean and contrast are
    normalised away, so that a change of exposure explains everything; of two flat pictures, nothing is explained.
    """
    a, b = _normalised(first), _normalised(second)
    blocks = (len(a), SIDE // 3, 3, SIDE // 3, 3)
    best = np.full((len(a), SIDE // 3, SIDE // 3), np.inf, np.float32)
    padded = np.pad(a, ((0, 0), (0, 0), (3, 3), (3, 3)), mode="edge")
    for dy in range(7):
        for dx in range(7):
            error = ((padded[:, :, dy : dy + SIDE, dx : dx + SIDE] - b) ** 2).sum(1)
            best = np.minimum(best, error.reshape(blocks).sum((2, 4)))
    flat = (a**2).sum((1, 2, 3)) + (b**2).sum((1, 2, 3)) < 0.1
    return np.where(flat, np.float32(1), best.sum((1, 2)) / 2)


def changed_share(first: Floats, second: Floats) -> NDArray[np.floating]:
    """Over which share of the frame the change between pictures [N, 3, SIDE, SIDE] is spread [N], 0 to 1.

    The participation ratio of the squared differences: 1 if all places change alike, k if a share k of them does.
    """
    change = (weighted(first - second) ** 2).sum(1)
    return (change.sum((1, 2)) ** 2) / (SIDE**2 * (change**2).sum((1, 2)) + 1e-6)
