"""A picture in memory, and the one way in which it is brought to another size."""

import cv2
import numpy as np
from numpy.typing import NDArray

from media.display import fit

Image = NDArray[np.uint8]  # RGB [H, W, 3], or one plane [H, W]


def resized(image: Image, width: int, height: int) -> Image:
    """The picture at another size; both sides are at least one pixel, whatever is asked.

    Below one half, where two-tap interpolation would leave pixels out and alias, pixels are averaged over areas; from
    there to the picture's own size two taps leave none out and are ten times faster; a picture that grows is
    interpolated smoothly.
    """
    size = max(1, width), max(1, height)
    if size == image.shape[1::-1]:
        return image
    scale = min(size[0] / image.shape[1], size[1] / image.shape[0])
    method = cv2.INTER_AREA if scale < 0.5 else cv2.INTER_LINEAR if scale <= 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=method), np.uint8)


def shrink(image: Image, longest: int) -> Image:
    """The picture scaled down, without aliasing, to at most ``longest`` on its longest side."""
    return resized(image, *fit(image.shape[1], image.shape[0], longest))


def at_side(image: Image, longest: int) -> Image:
    """The picture scaled down or up to ``longest`` on its longest side, so that one threshold suits every size."""
    height, width = image.shape[:2]
    scale = longest / max(width, height)
    return resized(image, round(width * scale), round(height * scale))
