"""Black borders around a picture: letterbox and pillarbox."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import cv2
import numpy as np

from tasks.tables.crop import Box
from tasks.tables.picture import Image

# A border is this dark (0 to 255), and what lies next to it is lighter than it by at least BORDER_EDGE.
BORDER_LEVEL = 32
BORDER_EDGE = 12


def content_box(images: Sequence[Image]) -> Box:
    """The part of RGB pictures of one size [H, W, 3] that is no black border, in their pixels.

    A border is dark and without detail in every picture, ends in a straight edge, and has a like one on the opposite
    side (or none there). A scene that is dark altogether has no borders.
    """
    lightest = reduce(cv2.max, [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images])
    height, width = lightest.shape
    top, bottom = _borders(lightest)
    left, right = _borders(lightest[top : height - bottom].T)
    return Box(left, top, width - left - right, height - top - bottom)


def _borders(lightest: Any) -> tuple[int, int]:
    """Rows of border at the top and the bottom of a picture [rows, columns] of the lightest value of each pixel."""
    # A few bright pixels are compression noise around the edge, or a subtitle in the border.
    level = np.percentile(lightest, 90, axis=1).astype(int)
    light = np.flatnonzero(level > BORDER_LEVEL)
    if not len(light):
        return 0, 0
    rows = len(level)

    def depth(level: Any) -> int:
        black = int(np.median(level[:2]))
        first = int(np.flatnonzero(level > BORDER_LEVEL)[0])
        edge = next((row for row in range(first) if level[row] > black + 4), first)
        sharp = level[min(edge + 3, rows - 1)] >= black + BORDER_EDGE
        return min(edge + 2, rows) if edge >= 2 and sharp else 0

    return depth(level), depth(level[::-1])
