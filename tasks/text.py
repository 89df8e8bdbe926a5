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
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import rapidocr
from numpy.typing import NDArray
from pydantic import Field

from tasks.crop import Box, content_box, covered, largest_rectangle, merged, padded, scaled
from tasks.frame_store import Image, shrink
from tasks.step import Clip, Row, StepConfig, score_clips, step_task

VERSION = 1
MODEL = Path(rapidocr.__file__).parent / "models" / "PP-OCRv6_det_small.onnx"
STRIDE = 32  # the network takes sides that are multiples of this


class TextConfig(StepConfig):
    samples: int = Field(16, ge=1, description="Most sampled frames of a clip that are searched for text")
    detection_side: int = Field(320, ge=64, description="Longest side of a frame as the detector sees it, pixels")
    min_score: float = Field(0.6, ge=0, le=1, description="Least mean probability of a text box")
    max_regions: float = Field(1.5, gt=0, description="Most frame areas a clip that the detector sees of new edges")
    min_crop_area: float = Field(0.75, ge=0, le=1, description="A crop without the text keeps at least this fraction")


@dataclass(frozen=True)
class Line:
    """Text found in sample number ``sample``; the box is in pixels of the picture the detector saw."""

    sample: int
    box: Box
    score: float


@dataclass(frozen=True)
class Region:
    """A part of sample number ``sample`` in which text may begin, in pixels of the picture the detector sees."""

    sample: int
    box: Box


@cache
def _session() -> onnxruntime.InferenceSession:
    """The detection network; one a process, as its runs may overlap. Clips run side by side, so it has one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])


def detect(image: Image, min_score: float) -> list[tuple[Box, float]]:
    """Text lines in an RGB picture [H, W, 3], with their scores (mean probability inside the line).

    Post-processing as of Differentiable Binarization (Liao et al., 2020) with upright boxes: the network marks the
    kernels of text lines, which are then grown by the distance by which its training labels were shrunk.
    """
    height, width = (max(STRIDE, round(side / STRIDE) * STRIDE) for side in image.shape[:2])
    pixels = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)[..., ::-1]
    pixels = (pixels.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None]
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


def edges(image: Image) -> NDArray[np.float32]:
    """The gradient of luma [H, W, 2], in levels a pixel."""
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.stack([cv2.Sobel(luma, cv2.CV_32F, dx, 1 - dx, scale=0.25) for dx in (1, 0)], axis=-1)


def same(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where two gradients [H, W, 2] are one edge: strong in both, and differing by less than half of it."""
    strong = np.minimum((a * a).sum(-1), (b * b).sum(-1))
    difference = a - b
    return (strong > EDGE**2) & ((difference * difference).sum(-1) < strong / 4)


def new_regions(gradients: Sequence[NDArray[np.float32]]) -> list[Region]:
    """Where samples may show text that the ones before did not, the densest first.

    ``gradients`` are those of consecutive samples, [H, W, 2] each.
    """
    regions: list[tuple[float, Region]] = []
    last = None
    for sample in range(len(gradients) - 1):
        lasting = same(gradients[sample], gradients[sample + 1])
        new = lasting.astype(np.uint8)
        if last is not None:
            new[cv2.dilate(last, np.ones((3, 3), np.uint8)) > 0] = 0
            new[same(gradients[0], gradients[sample])] = 0
        last = lasting.astype(np.uint8)
        density = cv2.boxFilter(new.astype(np.float32), -1, (21, 7), borderType=cv2.BORDER_CONSTANT)
        dense = cv2.dilate((density > 0.12).astype(np.uint8), np.ones((9, 25), np.uint8))
        height, width = dense.shape
        for x, y, w, h, _ in cv2.connectedComponentsWithStats(dense)[2][1:]:
            box = padded(Box(int(x), int(y), int(w), int(h)), 6, 4, Box(0, 0, width, height))
            regions.append((float(density[y : y + h, x : x + w].max()), Region(sample, box)))
    return [region for _, region in sorted(regions, key=lambda item: -item[0])]


def pack(regions: Sequence[Region], width: int) -> tuple[list[Box], int]:
    """Places for the regions on a canvas ``width`` pixels wide, row by row; also the height of the canvas."""
    places: dict[int, Box] = {}
    x = y = row_height = 0
    for index in sorted(range(len(regions)), key=lambda index: -regions[index].box.h):
        box = regions[index].box
        if x + box.w > width:
            x, y, row_height = 0, y + row_height, 0
        places[index] = Box(x, y, box.w, box.h)
        x, row_height = x + box.w, max(row_height, box.h)
    return [places[index] for index in range(len(regions))], y + row_height


def look_at(images: Sequence[Image], regions: Sequence[Region], min_score: float) -> list[Line]:
    """Text in the regions of the pictures (one size), by one run of the detector over all of them."""
    if not regions:
        return []
    width = images[0].shape[1]
    places, height = pack(regions, width)
    canvas = np.full((math.ceil(height / STRIDE) * STRIDE, math.ceil(width / STRIDE) * STRIDE, 3), 127, np.uint8)
    for region, place in zip(regions, places, strict=True):
        box = region.box
        canvas[place.y : place.y + place.h, place.x : place.x + place.w] = images[region.sample][
            box.y : box.y + box.h, box.x : box.x + box.w
        ]
    lines = []
    for found, score in detect(canvas, min_score):
        for region, place in zip(regions, places, strict=True):
            part = found.meet(place)
            if part.area > found.area / 4 and min(part.w, part.h) >= 4:
                moved = Box(part.x - place.x + region.box.x, part.y - place.y + region.box.y, part.w, part.h)
                lines.append(Line(region.sample, moved, score))
    return lines


def find_text(images: Sequence[Image], config: TextConfig) -> tuple[list[Line], NDArray[np.bool_]]:
    """Text in consecutive samples of a clip (RGB, one size, as small as the detector is to see them).

    Returns the lines and where they are to be seen: bool [lines, samples].
    """
    gradients = [edges(image) for image in images]
    height, width = images[0].shape[:2]
    whole = len(images) // 2
    regions, left = [], config.max_regions * height * width
    for region in new_regions(gradients):
        if region.box.area <= left:
            regions.append(region)
            left -= region.box.area
    lines = look_at(images, regions, config.min_score)
    lines += look_at(images, [Region(whole, Box(0, 0, width, height))], config.min_score)
    seen = np.zeros((len(lines), len(images)), np.bool_)
    for line, row in zip(lines, seen, strict=True):
        box = line.box
        cut = np.s_[box.y : box.y + box.h, box.x : box.x + box.w]
        own = gradients[line.sample][cut]
        strength = max(float((own * own).sum()), 1.0)
        for sample, gradient in enumerate(gradients):
            difference = gradient[cut] - own
            row[sample] = float((difference * difference).sum()) < 0.5 * strength
    return lines, seen


def measure(lines: Sequence[Line], seen: NDArray[np.bool_], frame: Box) -> tuple[float, float]:
    """``text_area`` and ``text_static`` of lines whose boxes are in the pixels of ``frame``."""
    areas = [covered([line.box for line, there in zip(lines, seen[:, s], strict=True) if there], frame) for s in
             range(seen.shape[1])]  # fmt: skip
    area = float(np.mean(areas)) if areas else 0.0
    still = [line.box for line, row in zip(lines, seen, strict=True) if row.mean() >= 0.9]
    return area, min(1.0, covered(still, frame) / area) if area else 0.0


def crop_text(crop: Box, picture: Box, boxes: Sequence[Box], min_area: float) -> Box:
    """``crop`` without the text, if that keeps ``min_area`` of ``picture``, the crop without black borders."""
    if not any(box.meet(crop).area for box in boxes):
        return crop
    rest = largest_rectangle(picture, boxes)
    return rest if rest.area >= min_area * picture.area else crop


def score(clip: Clip, config: TextConfig) -> Row:
    """The text columns of a clip, and its crop."""
    start_s, end_s = clip.span
    images = [frame.image for frame in clip.store.frames(start_s, end_s, config.samples)]
    width, height = clip.row["width"], clip.row["height"]
    frame = Box(0, 0, width, height)
    small = [shrink(image, config.detection_side) for image in images]
    lines, seen = find_text(small, config)
    x_scale, y_scale = width / small[0].shape[1], height / small[0].shape[0]
    lines = [Line(line.sample, scaled(line.box, x_scale, y_scale), line.score) for line in lines]
    area, static = measure(lines, seen, frame)
    margins = [padded(line.box, round(0.5 * line.box.h), round(0.3 * line.box.h), frame) for line in lines]
    content = content_box(images)
    picture = scaled(content, width / images[0].shape[1], height / images[0].shape[0]).meet(clip.crop)
    crop = crop_text(clip.crop, picture, margins, config.min_crop_area)
    inside = [Line(line.sample, line.box.meet(crop), line.score) for line in lines]
    kept = measure(inside, seen, frame)[0] * frame.area / crop.area
    return {
        "text_area": area,
        "text_area_kept": kept,
        "text_static": static,
        "text_boxes": [box.__dict__ for box in merged([line.box for line in lines])],
        "crop_x": crop.x,
        "crop_y": crop.y,
        "crop_w": crop.w,
        "crop_h": crop.h,
    }


@step_task("text")
def text(table: str, config: TextConfig = TextConfig()) -> str:
    """Measure the text of every live clip of a shard and crop subtitles away; returns the URI of the new table."""
    return score_clips(table, "text", config, lambda clip: score(clip, config), VERSION)
