"""Rectangles in a frame."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.tables.picture import Image


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels: columns ``x`` to ``x + w``, rows ``y`` to ``y + h``."""

    x: int
    y: int
    w: int
    h: int

    @property
    def area(self) -> int:
        return max(0, self.w) * max(0, self.h)

    def meet(self, other: "Box") -> "Box":
        """What both cover; of area 0 where they do not touch."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        w = min(self.x + self.w, other.x + other.w) - x
        h = min(self.y + self.h, other.y + other.h) - y
        return Box(x, y, max(0, w), max(0, h))


def crop_of(row: dict[str, Any]) -> Box:
    """The crop of a clip's row, in source pixels."""
    return Box(row["crop_x"], row["crop_y"], row["crop_w"], row["crop_h"])


def cut_out(image: Image, box: Box, width: int, height: int) -> Image:
    """The part of ``image`` under ``box``, in pixels of a picture of ``width`` x ``height``; at least one pixel."""
    h, w = image.shape[:2]
    left, right = round(box.x * w / width), round((box.x + box.w) * w / width)
    top, bottom = round(box.y * h / height), round((box.y + box.h) * h / height)
    left, top = min(max(left, 0), w - 1), min(max(top, 0), h - 1)
    return image[top : max(bottom, top + 1), left : max(right, left + 1)]


def covered(boxes: Sequence[Box], within: Box) -> float:
    """The fraction of ``within`` that lies under any of ``boxes``."""
    if not within.area:
        return 0.0
    mask = np.zeros((within.h, within.w), np.uint8)
    for box in boxes:
        part = box.meet(within)
        mask[part.y - within.y : part.y - within.y + part.h, part.x - within.x : part.x - within.x + part.w] = 1
    return float(mask.mean())


def merged(boxes: Sequence[Box]) -> list[Box]:
    """Boxes that overlap replaced by the box around them, until none overlap; sorted from top left."""
    rest, done = list(boxes), list[Box]()
    while rest:
        box = rest.pop()
        touching = [other for other in rest + done if box.meet(other).area]
        if not touching:
            done.append(box)
            continue
        rest = [other for other in rest if other not in touching]
        done = [other for other in done if other not in touching]
        rest.append(around([box, *touching]))
    return sorted(done, key=lambda box: (box.y, box.x))


def around(boxes: Sequence[Box]) -> Box:
    """The smallest box around ``boxes``."""
    x, y = min(box.x for box in boxes), min(box.y for box in boxes)
    return Box(x, y, max(box.x + box.w for box in boxes) - x, max(box.y + box.h for box in boxes) - y)


def padded(box: Box, dx: int, dy: int, within: Box) -> Box:
    """The box with ``dx`` more columns left and right and ``dy`` more rows above and below, inside ``within``."""
    return Box(box.x - dx, box.y - dy, box.w + 2 * dx, box.h + 2 * dy).meet(within)


def scaled(box: Box, x: float, y: float) -> Box:
    """The box in a picture ``x`` times as wide and ``y`` times as high, rounded outwards."""
    left, top = math.floor(box.x * x), math.floor(box.y * y)
    return Box(left, top, math.ceil((box.x + box.w) * x) - left, math.ceil((box.y + box.h) * y) - top)


def largest_rectangle(within: Box, avoid: Sequence[Box]) -> Box:
    """The largest rectangle inside ``within`` that touches none of ``avoid``; of area 0 where there is none.

    Exact: a rectangle that cannot grow has its top and bottom at edges of boxes or of ``within``, and between those
    spans a gap between the boxes in its rows.
    """
    boxes = sorted((part for box in avoid if (part := box.meet(within)).area), key=lambda box: box.x)
    tops = sorted({within.y} | {box.y + box.h for box in boxes})
    bottoms = sorted({within.y + within.h} | {box.y for box in boxes}, reverse=True)
    best = Box(within.x, within.y, 0, 0)
    for top in tops:
        for bottom in bottoms:
            if (bottom - top) * within.w <= best.area:
                break
            left = within.x
            for box in [*boxes, Box(within.x + within.w, within.y, 0, within.h)]:
                if box.y < bottom and box.y + box.h > top:
                    if (box.x - left) * (bottom - top) > best.area:
                        best = Box(left, top, box.x - left, bottom - top)
                    left = max(left, box.x + box.w)
    return best
