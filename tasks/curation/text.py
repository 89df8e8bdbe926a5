"""Text: how much of a clip lies under text, where, and whether it stands still; subtitles are cropped away.

The report (section 3.1) locates text with PaddleOCR; ``text_detector`` runs its detection network, and ``text_regions``
tells where it has to look. One sample is looked at whole, for text that moves with the scene.
"""

from collections.abc import Sequence
from dataclasses import asdict

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from tasks.curation.edges import EDGE, Edges
from tasks.curation.text_moving import PASSES, camera_stands, find_moving, passing_edges, share_inside
from tasks.curation.text_regions import Line, Region, finest, fitting, look_at, new_regions
from tasks.tables.borders import content_box
from tasks.tables.clip import Clip
from tasks.tables.crop import Box, covered, largest_rectangle, merged, padded, scaled
from tasks.tables.picture import Image, resized
from tasks.tables.schema import BOX
from tasks.tables.score import Column, Score, Threshold, plain
from tasks.tables.step import Row, StepConfig

CUE = 0.5  # edges are sought at this fraction of the samples' size
PASSING_SCORE = 0.6  # text that is not known to stand still has to look more like text
ALONE = 0.6  # share of the edges that pass, in text beside which hardly anything moves
NEAR_S = 1.1  # text within this of a clip's ends may reach into it between two samples
FINE = 0.7  # scale at which the network reads small and see-through text that it misses at 0.45


class TextConfig(StepConfig):
    samples: int = Field(20, ge=1, description="Most sampled frames of a clip that are searched for text")
    look_side: int = Field(256, ge=64, description="Longest side of a whole frame as the detector sees it, pixels")
    region_pixels: int = Field(60_000, gt=0, description="Most pixels a clip in which the detector seeks lasting text")
    min_score: float = Field(0.5, ge=0, le=1, description="Least mean probability of a text box")
    max_height: float = Field(0.25, gt=0, le=1, description="Largest height of a line of text, in frame heights")
    min_crop_area: float = Field(0.75, ge=0, le=1, description="A crop without the text keeps at least this fraction")


def find_text(images: Sequence[Image], config: TextConfig) -> tuple[list[Line], NDArray[np.bool_]]:
    """Text in consecutive samples of a clip: RGB, one size.

    Returns the lines and in which samples each is to be seen: bool [lines, samples].
    """
    height, width = images[0].shape[:2]
    frame = Box(0, 0, width, height)
    edges = [Edges.of(resized(image, round(width * CUE), round(height * CUE))) for image in images]
    regions = [Region(region.sample, scaled(region.box, 1 / CUE, 1 / CUE).meet(frame)) for region in new_regions(edges)]
    whole = Region(len(images) // 2, frame)
    look_scale = min(1.0, config.look_side / max(width, height))
    # What a still camera sees is all lasting: then the first sample is looked at nearly whole, and finer.
    still = len(edges) > 1 and edges[0].same(edges[1]).sum() > 0.5 * (edges[0].square > EDGE**2).sum()
    least = look_scale**2
    budget = config.region_pixels + (frame.area * least if still else 0)
    dense, rest = fitting(regions, budget / FINE**2)
    if rest:  # a busy scene: its densest regions are still looked at finely, others as finely as they can be
        dense, rest = fitting(regions, budget / 2 / FINE**2)
        rest, _ = fitting(rest, budget / 2 / least)
    lines = [
        line
        for part, pixels in ((dense, budget / 2 if rest else budget), (rest, budget / 2))
        for line in look_at(images, part, finest(part, pixels), config.min_score)
    ]
    seen = [[_is_seen(line, edges, sample) for sample in range(len(edges))] for line in lines]
    # Edges of a moving texture may coincide, and look like text; but then they do not last.
    lines = [line for line, row in zip(lines, seen, strict=True) if sum(row) > 1 or len(row) == 1]
    lines += look_at_ends(images, lines, edges, look_scale, config)
    passing = [] if still else look_at(images, [whole], look_scale, config.min_score)
    highest = config.max_height * height
    lines, passing = ([line for line in found if line.box.h <= highest] for found in (lines, passing))
    lines += [line for line in passing if line.score >= PASSING_SCORE]
    seen = [[_is_seen(line, edges, sample) for sample in range(len(edges))] for line in lines]
    if len(edges) >= PASSES:
        passes = passing_edges(edges)
        # Credits on black are all that moves: then nothing else tells whether the camera does.
        alone = share_inside([scaled(line.box, CUE, CUE) for line in passing], passes[whole.sample]) > ALONE
        if alone or camera_stands(edges):
            pixels = max(config.region_pixels / 2, frame.area * least)
            moving, shown = find_moving(images, edges, passes, pixels, config.min_score, highest)
            lines += moving
            seen += shown.tolist()
    return lines, np.array(seen, np.bool_).reshape(len(lines), len(edges))


def look_at_ends(
    images: Sequence[Image], lines: Sequence[Line], edges: Sequence[Edges], scale: float, config: TextConfig
) -> list[Line]:
    """Text in the first and last sample, where lines were found that change: it may be there for one sample only."""
    frame = Box(0, 0, images[0].shape[1], images[0].shape[0])
    last = len(edges) - 1
    changing = [line.box for line in lines if not (_is_seen(line, edges, 0) and _is_seen(line, edges, last))]
    bands = merged([padded(box, frame.w, round(1.3 * box.h), frame) for box in changing])
    if not bands or covered(bands, frame) > 0.5:
        return []
    known = {line.sample for line in lines if line.box in changing}
    regions = [Region(sample, band) for sample in (0, last) for band in bands if sample not in known]
    highest = 3 * max(box.h for box in changing)
    found = look_at(images, regions, 1.25 * scale, config.min_score)
    return [line for line in found if line.box.h < highest]


def _is_seen(line: Line, edges: Sequence[Edges], sample: int) -> bool:
    """Whether most edges of a line are in that sample, too."""
    box = scaled(line.box, CUE, CUE)
    own = edges[line.sample].inside(box)
    return sample == line.sample or own.same(edges[sample].inside(box)).sum() > 0.5 * (own.square > EDGE**2).sum()


def measure(lines: Sequence[Line], seen: NDArray[np.bool_], frame: Box) -> tuple[float, float]:
    """``text_area`` and ``text_static`` inside ``frame``."""
    if not lines:
        return 0.0, 0.0
    there = [[line.box for line, now in zip(lines, column, strict=True) if now] for column in seen.T]
    area = float(np.mean([covered(boxes, frame) for boxes in there]))
    still = [line.box for line, row in zip(lines, seen, strict=True) if row.mean() >= 0.9]
    return area, min(1.0, covered(still, frame) / area) if area else 0.0


def crop_text(crop: Box, picture: Box, boxes: Sequence[Box], min_area: float) -> Box:
    """``crop`` without as many of the boxes as can go, the first ones first, while ``min_area`` of ``picture`` stays.

    ``picture`` is the crop without black borders. What cannot go is for the verdict to judge.
    """
    avoided: list[Box] = []
    rest = crop
    for box in boxes:
        # The detector saw the text small, and other lines of the same subtitles may be a little higher or longer.
        wide = padded(box, round(0.6 * box.h), round(min(0.35 * box.h, 0.04 * picture.h)), picture)
        for tried in (wide, box):
            smaller = largest_rectangle(picture, [*avoided, tried]) if tried.meet(rest).area else rest
            if smaller == rest or smaller.area >= min_area * picture.area:
                avoided.append(tried)
                rest = smaller
                break
    return rest


def near_frames(clip: Clip, limit: int) -> list[Image]:
    """The samples of a clip and, where they belong to the same shot, the two before and after."""
    start_s, end_s = clip.span
    images = [frame.image for frame in clip.store.frames(start_s, end_s, limit)]
    if not clip.row["duration_s"]:
        return images
    before = [frame.image for frame in clip.store.frames(start_s - NEAR_S, start_s)]
    after = [frame.image for frame in clip.store.frames(end_s, end_s + NEAR_S)]
    for image in reversed(before):
        if not _alike(image, images[0]):
            break
        images.insert(0, image)
    for image in after:
        if not _alike(image, images[-1]):
            break
        images.append(image)
    return images


def _alike(a: Image, b: Image) -> bool:
    """Whether two pictures may be of one shot."""
    return float(np.mean(cv2.absdiff(resized(a, 16, 16), resized(b, 16, 16)))) < 16


def score(clip: Clip, config: TextConfig) -> Row:
    """The text columns of a clip, and its crop."""
    images = near_frames(clip, config.samples)
    width, height = clip.row["width"], clip.row["height"]
    frame = Box(0, 0, width, height)
    x_scale, y_scale = width / images[0].shape[1], height / images[0].shape[0]
    found, seen = find_text(images, config)
    lines = [Line(line.sample, scaled(line.box, x_scale, y_scale).meet(frame), line.score) for line in found]
    # What is burned in goes first, the largest before the rest; then text that passes with the scene.
    ends = (0, len(images) - 1)
    burned = [row.sum() != 1 or line.sample in ends for line, row in zip(lines, seen, strict=True)]
    order = sorted(range(len(lines)), key=lambda i: (not burned[i], -lines[i].box.area))
    picture = scaled(content_box(images), x_scale, y_scale).meet(clip.crop)
    crop = crop_text(clip.crop, picture, [lines[i].box for i in order], config.min_crop_area)
    area, static = measure(lines, seen, frame)
    return {
        "text_area": area,
        "text_area_kept": measure(lines, seen, crop)[0],
        "text_static": static,
        "text_boxes": [asdict(box) for box in merged([line.box for line in lines])],
        "crop_x": crop.x,
        "crop_y": crop.y,
        "crop_w": crop.w,
        "crop_h": crop.h,
    }


TEXT = Score(
    "text",
    config=TextConfig,
    columns=(
        Column("text_area", "fraction of the frame under text, mean over the sampled frames", log=True),
        Column(
            *("text_area_kept", "fraction of the crop under text, mean over the sampled frames"),
            log=True,
            drawn=True,
            label="text",
        ),
        Column("text_static", "fraction of the text area that stands still all through the clip"),
        Column("text_boxes", "where text lives: merged boxes, pixels", pa.list_(BOX)),
    ),
    limits=(
        Threshold(
            *("text", "text_area_kept", "text_area_max", "high", 0.01),
            description="Largest fraction of the crop under text",
            largest=1,
            words="Too much of the crop lies under text.",
            boxes=("text_boxes",),
            legend="text in yellow, the crop in white",
        ),
    ),
    scorers={"lite": plain(score)},
    moves_crop=True,
    version=3,
)
