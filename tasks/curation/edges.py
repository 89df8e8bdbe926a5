"""The edges of a picture, and which of them another has too: what is burned in keeps its edges while all else moves."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tasks.tables.crop import Box
from tasks.tables.picture import Image

Plane = NDArray[np.float32]
EDGE = 24.0  # least step of luma over a pixel, as Sobel / 4, of what counts as an edge


@dataclass(frozen=True)
class Edges:
    """The gradient of luma of a picture, levels a pixel, and its square: float32 [H, W] each."""

    x: Plane
    y: Plane
    square: Plane

    @classmethod
    def of(cls, image: Image) -> "Edges":
        luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        x, y = (np.asarray(cv2.Sobel(luma, cv2.CV_32F, dx, 1 - dx, scale=0.25), np.float32) for dx in (1, 0))
        return cls(x, y, x * x + y * y)

    def inside(self, box: Box) -> "Edges":
        cut = np.s_[box.y : box.y + box.h, box.x : box.x + box.w]
        return Edges(self.x[cut], self.y[cut], self.square[cut])

    def same(self, other: "Edges", least: float = EDGE) -> NDArray[np.bool_]:
        """Where both have one edge: of at least ``least`` in both, and differing by less than half of it."""
        x, y = self.x - other.x, self.y - other.y
        weaker = np.minimum(self.square, other.square)
        return (weaker > least**2) & (x * x + y * y < weaker / 4)
