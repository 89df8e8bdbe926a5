"""Text: how much of a clip lies under text, where, and whether it stands still; subtitles are cropped away.

The report (section 3.1) locates text with PaddleOCR. Its detection network (PP-OCR, in the wheel of rapidocr, run by
onnxruntime) costs 80 ms for a picture of 320 x 180 on one core, more than decoding a small video. So it does not look
at every sample, but at what may be new text in it:

- Burned-in text stands still for a second and more, so its edges are the same in two samples that follow each other.
  Edges that begin at a sample and last to the next are *new edges*; where they are dense, the network has to look.
  With a moving camera that is hardly more than the subtitles, with a still one the first sample and what changes.
- Those regions of all samples are packed into one picture, and the network runs once over it.
- One sample is looked at whole, for text that moves with the scene.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pyarrow as pa
import rapidocr
from numpy.typing import NDArray
from pydantic import Field

from tasks.curation.denormals import denormals_as_zero
from tasks.tables.clip import Clip
from tasks.tables.crop import Box, content_box, covered, largest_rectangle, merged, padded, scaled
from tasks.tables.frame_store import Image
from tasks.tables.schema import BOX
from tasks.tables.score import Column, Score, Threshold, plain
from tasks.tables.step import Row, StepConfig

MODEL = Path(rapidocr.__file__).parent / "models" / "PP-OCRv6_det_small.onnx"
Plane = NDArray[np.float32]
STRIDE = 32  # the network takes sides that are multiples of this


class TextConfig(StepConfig):
    samples: int = Field(20, ge=1, description="Most sampled frames of a clip that are searched for text")
    look_side: int = Field(256, ge=64, description="Longest side of a whole frame as the detector sees it, pixels")
    region_pixels: int = Field(60_000, gt=0, description="Most pixels a clip in which the detector seeks lasting text")
    min_score: float = Field(0.5, ge=0, le=1, description="Least mean probability of a text box")
    max_height: float = Field(0.25, gt=0, le=1, description="Largest height of a line of text, in frame heights")
    min_crop_area: float = Field(0.75, ge=0, le=1, description="A crop without the text keeps at least this fraction")


@dataclass(frozen=True)
class Region:
    """A part of sample number ``sample``; its box is in pixels of the samples."""

    sample: int
    box: Box


@dataclass(frozen=True)
class Line(Region):
    """Text found in a sample; ``score`` is its mean probability."""

    score: float


@cache
def _session() -> onnxruntime.InferenceSession:
    """The detection network; one a process, as its runs may overlap. Clips run side by side, so it has one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])


def resized(image: Image, width: int, height: int) -> Image:
    """The picture at another size, averaged over areas."""
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def detect(image: Image, min_score: float) -> list[tuple[Box, float]]:
    """Text lines in an RGB picture [H, W, 3], with their scores (mean probability inside the line).

    Post-processing as of Differentiable Binarization (Liao et al., 2020) with upright boxes: the network marks the
    kernels of text lines, which are then grown by the distance by which its training labels were shrunk.
    """
    height, width = (max(STRIDE, round(side / STRIDE) * STRIDE) for side in image.shape[:2])
    small = resized(image, width, height)[..., ::-1]
    pixels = (small.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None]
    with denormals_as_zero():
        probability = _session().run(None, {"x": pixels})[0][0, 0]
    kernels = cv2.dilate((probability > 0.3).astype(np.uint8), np.ones((2, 2), np.uint8))
    x_scale, y_scale = image.shape[1] / width, image.shape[0] / height
    found = []
    for contour in cv2.findContours(kernels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:
        corners = cv2.boxPoints(cv2.minAreaRect(contour))
        x, y, w, h = cv2.boundingRect(contour)
        mask = np.zeros((h, w), np.uint8)
        cv2.fillPoly(mask, [np.round(corners - (x, y)).astype(np.int32)], 1)
        score = cv2.mean(probability[y : y + h, x : x + w], mask)[0]
        if min(w, h) < 3 or score < min_score:
            continue
        grow = 1.6 * cv2.contourArea(corners) / max(1.0, cv2.arcLength(corners, True))
        line = padded(Box(x, y, w, h), round(grow), round(grow), Box(0, 0, width, height))
        found.append((scaled(line, x_scale, y_scale), score))
    return found


EDGE = 24.0  # least step of luma over a pixel, as Sobel / 4, of what counts as an edge
CUE = 0.5  # edges are sought at this fraction of the samples' size
PASSING_SCORE = 0.6  # text that is not known to stand still has to look more like text
NEAR_S = 1.1  # text within this of a clip's ends may reach into it between two samples
FINE = 0.7  # scale at which the network reads small and see-through text that it misses at 0.45
GAP = 12  # pixels between regions that are packed into one picture


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
    if not still:
        lines += look_at(images, [whole], look_scale, max(config.min_score, PASSING_SCORE))
    lines = [line for line in lines if line.box.h <= config.max_height * height]
    return lines, np.array([[_is_seen(line, edges, s) for s in range(len(edges))] for line in lines], np.bool_)


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
    burned = [row.sum() > 1 or line.sample in ends for line, row in zip(lines, seen, strict=True)]
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
