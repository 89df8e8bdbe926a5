"""Text that moves by itself while the camera stands still: crawls, tickers and rolling credits, in any direction.

Its edges are never the same in two samples, so it is not among what lasts. But where it passes there are dense edges
again and again, and the detector reads text there in sample after sample, which it does not in leaves or in a crowd.
Where it goes between the samples does not matter, so neither do direction and speed.
"""

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from tasks.curation.edges import EDGE, Edges
from tasks.curation.text_regions import Line, Region, finest, look_at
from tasks.tables.crop import Box, around, merged, padded, scaled
from tasks.tables.picture import Image

Mask = NDArray[np.bool_]

CELLS = 8  # a frame is split into CELLS x CELLS to tell whether the camera stands still
LASTING, STANDING = 0.4, 0.3  # shares of a cell's edges that last, and of such cells, where the camera stands still
DENSE = 0.12  # least density of passing edges where text may pass
PASSES = 3  # least number of samples in which a place is passed, and text is read in it
SURE = 0.6  # least score of the clearest line in a sample: moving texture is taken for poor text, again and again
LOOKS = 5  # most samples of a clip in which text that moves is read
FINEST = 0.7  # larger pictures of the samples are not looked at: crawls are made to be read


def camera_stands(edges: Sequence[Edges]) -> bool:
    """Whether the edges of most samples last to the next in a good part of the frame, wherever text may pass."""
    shares = []
    for one, other in pairwise(edges):
        edged, lasting = (_cells(mask) for mask in (one.square > EDGE**2, one.same(other)))
        shares.append(float((lasting >= LASTING * edged)[edged > 0.01].mean()) if (edged > 0.01).any() else 1.0)
    return bool(np.median(shares) >= STANDING)


def _cells(mask: Mask) -> NDArray[np.float32]:
    return np.asarray(cv2.resize(mask.astype(np.float32), (CELLS, CELLS), interpolation=cv2.INTER_AREA), np.float32)


def passing_edges(edges: Sequence[Edges]) -> list[Mask]:
    """The edges [H, W] of every sample that neither the sample before nor the next one has."""
    lasting = [one.same(other) for one, other in pairwise(edges)]
    masks = []
    for sample, own in enumerate(edges):
        passing = own.square > EDGE**2
        for pair in (sample - 1, sample):
            if 0 <= pair < len(lasting):
                passing &= ~lasting[pair]
        masks.append(passing)
    return masks


def share_inside(boxes: Sequence[Box], mask: Mask) -> float:
    """The share of a mask [H, W] that lies in boxes; 0 where it is empty."""
    inside = np.zeros_like(mask)
    for box in boxes:
        inside[box.y : box.y + box.h, box.x : box.x + box.w] = True
    return float((mask & inside).sum() / max(1, mask.sum()))


def dense(mask: Mask) -> Mask:
    """Where edges [H, W] are dense, in lines rather than columns."""
    return np.asarray(cv2.boxFilter(mask.astype(np.float32), -1, (21, 7), borderType=cv2.BORDER_CONSTANT) > DENSE)


def passed_places(masks: Sequence[Mask]) -> list[Box]:
    """Boxes in pixels of the masks around the places that are dense in several samples, the largest first."""
    # Between the lines of credits there is room: a place is passed also where they pass beside it.
    near = [cv2.dilate(mask.astype(np.uint8), np.ones((15, 21), np.uint8)) for mask in masks]
    often = (np.sum(near, axis=0) >= max(PASSES, len(masks) / 5)).astype(np.uint8)
    height, width = often.shape
    boxes = [Box(x, y, w, h) for x, y, w, h, _ in cv2.connectedComponentsWithStats(often)[2][1:].tolist()]
    # Without what is around it, anything looks like text.
    boxes = [padded(box, max(4, 40 - box.w // 2), max(8, 20 - box.h // 2), Box(0, 0, width, height)) for box in boxes]
    return sorted(merged(boxes), key=lambda box: -box.area)


def clear(lines: Sequence[Line]) -> list[int]:
    """The samples in which a line is surely text."""
    return sorted({line.sample for line in lines if line.score >= SURE})


def find_moving(
    images: Sequence[Image],
    edges: Sequence[Edges],
    passing: Sequence[Mask],
    pixels: float,
    min_score: float,
    highest: float,
) -> tuple[list[Line], Mask]:
    """Text that moves, in consecutive samples of a still camera: RGB of one size, their edges, and which of those pass.

    ``pixels`` bounds what the detector sees of each sample that is looked at; text has at least ``min_score``, and
    lines at most ``highest`` pixels. Returns lines and in which samples each is to be seen, bool [lines, samples]: what
    is read in one sample stands for the samples around it. A line that is seen in none is all that a text has swept.
    """
    masks = [dense(mask) for mask in passing]
    scale = images[0].shape[1] / masks[0].shape[1], images[0].shape[0] / masks[0].shape[0]
    frame = Box(0, 0, images[0].shape[1], images[0].shape[0])
    lines: list[Line] = []
    seen: list[Mask] = []

    def passes(line: Line) -> bool:
        """Whether its edges pass: a subtitle that is there in two samples has been found by others."""
        box = scaled(line.box, 1 / scale[0], 1 / scale[1])
        cut = np.s_[box.y : box.y + box.h, box.x : box.x + box.w]
        own = edges[line.sample].square[cut] > EDGE**2
        return bool(passing[line.sample][cut].sum() > 0.5 * own.sum())

    for place in passed_places(masks)[:4]:
        region = scaled(place, *scale).meet(frame)
        passed = np.array([mask[place.y : place.y + place.h, place.x : place.x + place.w].mean() for mask in masks])
        there = np.flatnonzero(passed >= passed.max() / 3)
        fine = min(FINEST, finest([Region(0, region)], pixels))

        def lines_in(samples: Sequence[int], region: Box = region, fine: float = fine) -> list[Line]:
            found = look_at(images, [Region(sample, region) for sample in samples], fine, min_score)
            return [line for line in found if line.box.h <= highest and passes(line)]

        # One look tells most scenes without text; only where it finds some is more looked at.
        first = int(passed.argmax())
        read = lines_in([first])
        if not clear(read) or len(there) < PASSES:
            continue
        others = [int(sample) for sample in there if sample != first]
        others = [others[i] for i in np.unique(np.linspace(0, len(others) - 1, LOOKS - 1).round().astype(int))]
        read += lines_in(others)
        looked = clear(read)
        if len(looked) < max(PASSES, 0.6 * (1 + len(others))):
            continue
        read = [line for line in read if line.sample in looked]
        nearest = np.abs(np.arange(len(images))[:, None] - looked).argmin(axis=1)
        present = np.isin(np.arange(len(images)), there)
        lines += read
        seen += [present & (nearest == looked.index(line.sample)) for line in read]
        lines.append(Line(first, around([line.box for line in read]), 1.0))
        seen.append(np.zeros(len(images), np.bool_))
    return lines, np.array(seen, np.bool_).reshape(len(lines), len(images))
