"""Overlays: watermarks and logos, found by what stays fixed while the picture moves; and black borders, cropped.

The report (section 3.1) removes watermarks, logos and black borders with an internal detector. Here the evidence is
gathered over the whole source: an overlay's edges are the same in every sample, the scene's are not. Where the camera
stands still everything is the same, so nothing can be told and nothing is said; samples of several shots, or a moving
camera, tell.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tasks import storage
from tasks.crop import Box, around, content_box, covered, crop_of, cut_out, largest_rectangle, merged, padded, scaled
from tasks.frame_store import Image, shrink
from tasks.step import Row, StepConfig, by_source, fields_of, frames_of, is_live, result_uri, side_by_side, step_task
from tasks.step import with_columns

VERSION = 1
SIDE = 480  # longest side of the pictures in which overlays are sought
GRID = 5  # a frame is split into GRID x GRID cells to tell whether the picture moves


class OverlayConfig(StepConfig):
    samples: int = Field(16, ge=3, description="Most sampled frames of a source that are compared")
    min_edge: float = Field(4.0, gt=0, description="Least mean gradient of a fixed edge, levels of luma a pixel")
    min_share: float = Field(0.8, ge=0, le=1, description="Least share of the samples in which a fixed edge is seen")
    max_area: float = Field(0.1, ge=0, le=1, description="Largest fraction of the frame that one overlay takes")
    margin: float = Field(0.25, ge=0, le=0.5, description="Overlays lie this near an edge, as a fraction of the frame")
    min_crop_area: float = Field(0.6, ge=0, le=1, description="A crop without overlays keeps this much of the picture")


def gradient(image: Image) -> NDArray[np.float32]:
    """The gradient of luma [H, W, 2], levels a pixel."""
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.stack([cv2.Sobel(luma, cv2.CV_32F, dx, 1 - dx, scale=0.25) for dx in (1, 0)], axis=-1)


def fixed_edges(gradients: Sequence[NDArray[np.float32]], config: OverlayConfig) -> NDArray[np.bool_]:
    """Where an edge is the same in nearly all pictures; the gradients are [H, W, 2], the result [H, W]."""
    mean = np.mean(gradients, axis=0)
    strength = np.einsum("hwc,hwc->hw", mean, mean)
    like = np.zeros(strength.shape, np.float32)
    for one in gradients:
        difference = one - mean
        like += np.einsum("hwc,hwc->hw", difference, difference) < strength / 4
    return (strength > config.min_edge**2) & (like >= config.min_share * len(gradients))


def moving_cells(gradients: Sequence[NDArray[np.float32]], fixed: NDArray[np.bool_]) -> NDArray[np.float32]:
    """For each cell of a GRID x GRID split the share of its edges that move; NaN where a cell has hardly any."""
    energy = np.mean([np.abs(one).max(axis=-1) > 8 for one in gradients], axis=0)
    moving = np.full((GRID, GRID), np.nan, np.float32)
    height, width = fixed.shape
    for row in range(GRID):
        for column in range(GRID):
            cell = np.s_[
                row * height // GRID : (row + 1) * height // GRID, column * width // GRID : (column + 1) * width // GRID
            ]
            typical = float(energy[cell].sum())
            if typical > 0.01 * energy[cell].size:
                moving[row, column] = 1 - min(1.0, float(fixed[cell].sum()) / typical)
    return moving


def find_overlays(images: Sequence[Image], config: OverlayConfig) -> list[Box]:
    """Watermarks and logos in pictures of one source: RGB [H, W, 3] of one size, over a longer time."""
    if len(images) < 3:
        return []
    height, width = images[0].shape[:2]
    frame = Box(0, 0, width, height)
    gradients = [gradient(image) for image in images]
    fixed = fixed_edges(gradients, config)
    moving = moving_cells(gradients, fixed)
    rim = np.ones_like(moving, bool)
    rim[1:-1, 1:-1] = False
    rim_moving = moving[rim]
    # A camera that moves, moves the rim of the picture, too; a subject alone does not.
    if np.nansum(rim_moving > 0.7) < 0.4 * rim.sum():
        return []
    mask = cv2.morphologyEx(fixed.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((9, 15), np.uint8))
    found = []
    for x, y, w, h, _ in cv2.connectedComponentsWithStats(mask)[2][1:]:
        box = Box(int(x), int(y), int(w), int(h))
        edge_pixels = int(fixed[y : y + h, x : x + w].sum())
        if edge_pixels < 12 or min(w, h) < 4 or box.area > config.max_area * frame.area:
            continue
        inset_x, inset_y = round(width * config.margin), round(height * config.margin)
        if box.meet(padded(frame, -inset_x, -inset_y, frame)).area > box.area / 2:
            continue
        found.append(padded(box, 3, 3, frame))
    return merged(found)


def crop_overlays(crop: Box, content: Box, overlays: Sequence[Box], min_area: float) -> Box:
    """``crop`` without borders, and without overlays if that keeps ``min_area`` of the content."""
    picture = crop.meet(content) if crop.meet(content).area else crop
    if not any(box.meet(picture).area for box in overlays):
        return picture
    rest = largest_rectangle(picture, overlays)
    return rest if rest.area >= min_area * content.area else picture


def score_source(rows: Sequence[Row], images: Sequence[Image], config: OverlayConfig) -> None:
    """Set the overlay columns and the crop of all clips of one source, given pictures from all over it."""
    width, height = rows[0]["width"], rows[0]["height"]
    frame = Box(0, 0, width, height)

    def in_source(box: Box, size: tuple[int, ...]) -> Box:
        return scaled(box, width / size[1], height / size[0]).meet(frame)

    inner = content_box(images)
    content = in_source(inner, images[0].shape)
    small = [shrink(cut_out(image, inner, image.shape[1], image.shape[0]), SIDE) for image in images]
    factor = inner.w / small[0].shape[1]
    overlays = []
    for box in find_overlays(small, config):
        part = scaled(box, factor, factor)
        overlays.append(in_source(Box(part.x + inner.x, part.y + inner.y, part.w, part.h), images[0].shape))
    for row in rows:
        crop = crop_overlays(crop_of(row), content, overlays, config.min_crop_area)
        row |= {"crop_x": crop.x, "crop_y": crop.y, "crop_w": crop.w, "crop_h": crop.h}
        row["overlay_area"] = covered(overlays, frame)
        row["overlay_area_kept"] = covered(overlays, crop)
        row["overlay_boxes"] = [box.__dict__ for box in overlays]
        row["border_area"] = 1 - content.area / frame.area


@step_task("overlays")
def overlays(table: str, config: OverlayConfig = OverlayConfig()) -> str:
    """Find the watermarks, logos and borders of every source of a shard, and crop them away.

    Returns the URI of the new table. A source that cannot be measured ends as ``error`` in the rows of its clips.
    """
    result = result_uri(table, "overlays", config, VERSION)
    if storage.exists(result):
        return result
    old = storage.read_table(table)
    rows = old.to_pylist()

    def try_source(clips: list[Row]) -> None:
        try:
            with frames_of(table, clips[0]) as store:
                images = [frame.image for frame in store.frames(-np.inf, np.inf, config.samples)]
            score_source(clips, images, config)
        except (ArithmeticError, LookupError, ValueError, RuntimeError, cv2.error) as problem:
            for row in clips:
                row["error"] = f"overlays: {problem}"
                row["rejected_by"] = [*row["rejected_by"], "error"]

    list(side_by_side(try_source, by_source([row for row in rows if is_live(row)])))
    changed = [old.schema.field(name) for name in ("error", "rejected_by", "crop_x", "crop_y", "crop_w", "crop_h")]
    storage.write_table(with_columns(old, rows, [*changed, *fields_of("overlays")]), result)
    return result
