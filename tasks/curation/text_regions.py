"""Where in a clip's samples the text detector has to look, and one run of it over all those parts.

The network costs 80 ms for a picture of 320 x 180 on one core, more than decoding a small video. So it does not look
at every sample, but at what may be new text in it:

- Burned-in text stands still for a second and more, so its edges are the same in two samples that follow each other.
  Edges that begin at a sample and last to the next are *new edges*; where they are dense, the network has to look.
  With a moving camera that is hardly more than the subtitles, with a still one the first sample and what changes.
- Those regions of all samples are packed into one picture, and the network runs once over it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from tasks.curation.edges import Edges
from tasks.curation.text_detector import STRIDE, detect
from tasks.tables.crop import Box, padded, scaled
from tasks.tables.picture import Image, resized

GAP = 12  # pixels between regions that are packed into one picture


@dataclass(frozen=True)
class Region:
    """A part of sample number ``sample``; its box is in pixels of the samples."""

    sample: int
    box: Box


@dataclass(frozen=True)
class Line(Region):
    """Text found in a sample; ``score`` is its mean probability."""

    score: float


def new_regions(edges: Sequence[Edges]) -> list[Region]:
    """Where samples may show text that the ones before did not, the most densely edged first, in pixels of the edges.

    Edges that begin at a sample and last to the next, where they are dense, in lines rather than columns.
    """
    regions: list[tuple[float, Region]] = []
    before = np.zeros(edges[0].x.shape, np.uint8)
    for sample in range(len(edges) - 1):
        lasting = edges[sample].same(edges[sample + 1])
        new = lasting & (cv2.dilate(before, np.ones((3, 3), np.uint8)) == 0)
        if sample:
            new &= ~edges[0].same(edges[sample])
        before = lasting.astype(np.uint8)
        density = cv2.boxFilter(new.astype(np.float32), -1, (21, 7), borderType=cv2.BORDER_CONSTANT)
        dense = cv2.dilate((density > 0.12).astype(np.uint8), np.ones((7, 21), np.uint8))
        height, width = dense.shape
        for x, y, w, h, _ in cv2.connectedComponentsWithStats(dense)[2][1:].tolist():
            box = padded(Box(x, y, w, h), 4, 3, Box(0, 0, width, height))
            regions.append((float(density[y : y + h, x : x + w].max()), Region(sample, box)))
    return [region for _, region in sorted(regions, key=lambda item: -item[0])]


def pack(sizes: Sequence[tuple[int, int]], width: int) -> tuple[list[tuple[int, int]], int]:
    """Places (x, y) for pictures of ``sizes`` (w, h) on a canvas ``width`` wide, in rows; also the canvas's height."""
    places: dict[int, tuple[int, int]] = {}
    x = y = row_height = 0
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index][1]):
        w, h = sizes[index]
        if x + w > width:
            x, y, row_height = 0, y + row_height + GAP, 0
        places[index] = x, y
        x, row_height = x + w + GAP, max(row_height, h)
    return [places[index] for index in range(len(sizes))], y + row_height


def look_at(images: Sequence[Image], regions: Sequence[Region], scale: float, min_score: float) -> list[Line]:
    """Text in the regions of the pictures (one size), scaled, by one run of the detector over all of them."""
    if not regions:
        return []
    parts = []
    for region in regions:
        box = region.box
        part = images[region.sample][box.y : box.y + box.h, box.x : box.x + box.w]
        parts.append(resized(part, max(1, round(box.w * scale)), max(1, round(box.h * scale))))
    sizes = [(part.shape[1], part.shape[0]) for part in parts]
    width = max(round(images[0].shape[1] * scale), max(w for w, _ in sizes))
    places, height = pack(sizes, width)
    canvas = np.full((math.ceil(height / STRIDE) * STRIDE, math.ceil(width / STRIDE) * STRIDE, 3), 127, np.uint8)
    for part, (x, y) in zip(parts, places, strict=True):
        canvas[y : y + part.shape[0], x : x + part.shape[1]] = part
    lines = []
    for found, score in detect(canvas, min_score):
        for region, (x, y), (w, h) in zip(regions, places, sizes, strict=True):
            part_box = found.meet(Box(x, y, w, h))
            if part_box.area > found.area / 4 and min(part_box.w, part_box.h) >= 4:
                back = scaled(Box(part_box.x - x, part_box.y - y, part_box.w, part_box.h), 1 / scale, 1 / scale)
                moved = Box(back.x + region.box.x, back.y + region.box.y, back.w, back.h).meet(region.box)
                lines.append(Line(region.sample, moved, score))
    return lines


def fitting(regions: Sequence[Region], area: float) -> tuple[list[Region], list[Region]]:
    """The first regions that have room in ``area`` pixels, and the others."""
    chosen: list[Region] = []
    others: list[Region] = []
    for region in regions:
        fits = sum(each.box.area for each in chosen) + region.box.area <= area
        (chosen if fits else others).append(region)
    return chosen, others


def finest(regions: Sequence[Region], pixels: float) -> float:
    """The scale, at most 1, at which regions have that many pixels."""
    return min(1.0, math.sqrt(pixels / max(1, sum(region.box.area for region in regions))))
