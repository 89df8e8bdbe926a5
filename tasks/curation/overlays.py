"""Overlays: watermarks and logos, found by what stays fixed while the picture moves; and black borders, cropped.

The report (section 3.1) removes watermarks, logos and black borders with an internal detector. Here the evidence is
gathered over the whole source: an overlay's edges are the same in every sample, the scene's are not. Where the camera
stands still everything is the same, so nothing can be told and nothing is said; samples of several shots, or a moving
camera, tell.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from tasks.curation.edges import Edges
from tasks.tables.borders import content_box
from tasks.tables.clip import Clip
from tasks.tables.crop import Box, covered, crop_of, cut_out, largest_rectangle, merged, padded, scaled
from tasks.tables.picture import Image, shrink
from tasks.tables.schema import BOX
from tasks.tables.score import Column, Score, Threshold, plain_per_source
from tasks.tables.step import Row, StepConfig

SIDE = 480  # longest side of the pictures in which overlays are sought
GRID = 5  # a frame is split into GRID x GRID cells to tell whether the picture moved
MIN_VIEWS = 4  # fewer different views of a source cannot tell an overlay from the scene
DEVIATION = 0.45  # how far, squared, a view's gradient may be from the mean one: the scene shows through or changes it
SIGNIFICANT = 16.0  # how much stronger, squared, an edge common to many views is than the standard error of their mean
MANY_VIEWS = 8  # fewer do not tell their standard error
MAX_FOUND = 6  # more things that stay fixed are a scene that does


class OverlayConfig(StepConfig):
    samples: int = Field(16, ge=MIN_VIEWS, description="Most sampled frames of a source that are compared")
    min_edge: float = Field(5.0, gt=0, description="Least mean gradient of a fixed edge, levels of luma a pixel")
    min_share: float = Field(0.9, ge=0, le=1, description="Least share of the views in which a fixed edge is seen")
    max_area: float = Field(0.1, ge=0, le=1, description="Largest fraction of the frame that one overlay takes")
    margin: float = Field(0.25, ge=0, le=0.5, description="Overlays lie this near an edge, as a fraction of the frame")
    min_crop_area: float = Field(0.6, ge=0, le=1, description="A crop without overlays keeps this much of the picture")


def cells(counts: NDArray[Any]) -> NDArray[np.float32]:
    """Means over a GRID x GRID split of a picture."""
    return np.asarray(cv2.resize(counts.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA), np.float32)


def moved(a: Edges, b: Edges) -> bool:
    """Whether the picture moved as a whole: in most cells with edges, and in cells at the rim.

    A subject that moves before a still camera leaves the rim as it was.
    """
    edged = cells(a.square > 8**2)
    changed = (edged > 0.01) & (cells(a.same(b, 8)) < 0.4 * edged)
    rim = np.ones_like(changed)
    rim[1:-1, 1:-1] = False
    return bool(changed.sum() >= 0.6 * (edged > 0.01).sum() and changed[rim].sum() >= 5)


def different_views(images: Sequence[Image], limit: int = 16) -> list[int]:
    """Indices of pictures in each of which the whole scene has moved against all others of them."""
    halves = [Edges.of(shrink(image, SIDE // 2)) for image in images]
    views: list[int] = []
    for index, edges in enumerate(halves):
        if len(views) < limit and all(moved(edges, halves[view]) for view in views):
            views.append(index)
    return views


def fixed_edges(edges: Sequence[Edges], config: OverlayConfig) -> NDArray[np.bool_]:
    """Where an edge [H, W] is the same in nearly all of several views, or is what all of them have in common.

    The edges of a see-through mark over busy texture are in no view as they are; but the texture's differ from view to
    view, so that their mean is small, for its standard error, and the mark's is not.
    """
    x, y = np.mean([one.x for one in edges], axis=0), np.mean([one.y for one in edges], axis=0)
    strength = x * x + y * y
    off = [(one.x - x) ** 2 + (one.y - y) ** 2 for one in edges]
    like = sum(each < DEVIATION * strength for each in off) >= config.min_share * len(edges)
    error = np.sum(off, axis=0) / (len(edges) * (len(edges) - 1))
    common = strength > SIGNIFICANT * cv2.blur(error, (3, 3))
    return (strength > config.min_edge**2) & (like | (common if len(edges) >= MANY_VIEWS else False))


def roundness(edges: Edges, where: NDArray[np.bool_]) -> float:
    """How evenly edges run in all directions: 0 for a straight line, as of a horizon, to 1.

    The ratio of the eigenvalues of the structure tensor.
    """
    x, y = edges.x[where], edges.y[where]
    low, high = np.linalg.eigvalsh(np.array([[x @ x, x @ y], [x @ y, y @ y]]))
    return float(low / high) if high > 0 else 0.0


def find_overlays(images: Sequence[Image], config: OverlayConfig) -> list[Box]:
    """Watermarks and logos in pictures from all over one source: RGB [H, W, 3] of one size."""
    views = different_views(images)
    if len(views) < MIN_VIEWS:
        return []
    height, width = images[0].shape[:2]
    frame = Box(0, 0, width, height)
    edges = [Edges.of(images[view]) for view in views]
    fixed = fixed_edges(edges, config)
    inset_x, inset_y = round(width * config.margin), round(height * config.margin)
    middle = padded(frame, -inset_x, -inset_y, frame)
    found = []
    for box in clusters(fixed, 15, config.max_area * frame.area):
        edge_pixels = fixed[box.y : box.y + box.h, box.x : box.x + box.w]
        if edge_pixels.sum() < max(20, 0.04 * box.area) or min(box.w, box.h) < 5:
            continue
        if box.meet(middle).area <= box.area / 2 and roundness(edges[0].inside(box), edge_pixels) > 0.2:
            found.append(padded(box, 4 + box.w // 12, 4 + box.h // 12, frame))
    return merged(found) if len(found) <= MAX_FOUND else []


def clusters(pixels: NDArray[np.bool_], gap: int, max_area: float) -> list[Box]:
    """Boxes around pixels that lie within ``gap`` of each other; smaller gaps part what would be over ``max_area``."""
    mask = cv2.morphologyEx(pixels.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((gap * 3 // 5, gap), np.uint8))
    boxes = []
    for x, y, w, h, _ in cv2.connectedComponentsWithStats(mask)[2][1:].tolist():
        box = Box(x, y, w, h)
        if box.area <= max_area:
            boxes.append(box)
        elif gap > 5:
            part = clusters(pixels[y : y + h, x : x + w], gap - 5, max_area)
            boxes += [Box(x + inner.x, y + inner.y, inner.w, inner.h) for inner in part]
    return boxes


def crop_overlays(crop: Box, content: Box, overlays: Sequence[Box], min_area: float) -> Box:
    """``crop`` without borders, and without overlays if that keeps ``min_area`` of the content."""
    picture = crop.meet(content) if crop.meet(content).area else crop
    if not any(box.meet(picture).area for box in overlays):
        return picture
    rest = largest_rectangle(picture, overlays)
    return rest if rest.area >= min_area * content.area else picture


def score_source(rows: Sequence[Row], images: Sequence[Image], config: OverlayConfig) -> list[Row]:
    """The overlay columns and the crop of all clips of one source, given pictures from all over it."""
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

    def columns(row: Row) -> Row:
        crop = crop_overlays(crop_of(row), content, overlays, config.min_crop_area)
        return {
            "overlay_area": covered(overlays, frame),
            "overlay_area_kept": covered(overlays, crop),
            "overlay_boxes": [asdict(box) for box in overlays],
            "border_area": 1 - content.area / frame.area,
            **{"crop_x": crop.x, "crop_y": crop.y, "crop_w": crop.w, "crop_h": crop.h},
        }

    return [columns(row) for row in rows]


def score(clips: Sequence[Clip], config: OverlayConfig) -> list[Row]:
    """The rows of all clips of a source. Where its picture size changes in mid-stream, each size is looked at apart."""
    found: dict[str, Row] = {}
    sizes = dict.fromkeys((clip.row["width"], clip.row["height"]) for clip in clips)
    samples = [frame.image for frame in clips[0].store.frames(-np.inf, np.inf, config.samples * len(sizes))]
    for size in sizes:
        alike = [clip for clip in clips if (clip.row["width"], clip.row["height"]) == size]
        shape = alike[0].frames(1, cropped=False)[0].image.shape
        rows = score_source([clip.row for clip in alike], [image for image in samples if image.shape == shape], config)
        found |= {clip.row["clip_id"]: row for clip, row in zip(alike, rows, strict=True)}
    return [found[clip.row["clip_id"]] for clip in clips]


OVERLAYS = Score(
    "overlays",
    needs=("text",),
    config=OverlayConfig,
    columns=(
        Column("overlay_area", "fraction of the frame under watermarks and logos", log=True),
        Column(
            *("overlay_area_kept", "fraction of the crop under watermarks and logos"),
            log=True,
            drawn=True,
            label="overlay",
        ),
        Column("overlay_boxes", "watermarks and logos, pixels", pa.list_(BOX)),
        Column("border_area", "fraction of the frame that is border: black bars, or bars of a blurred copy"),
    ),
    limits=(
        Threshold(
            *("overlay", "overlay_area_kept", "overlay_area_max", "high", 0.0005),
            description="Largest fraction of the crop under watermarks and logos",
            largest=1,
            words="Too much of the crop lies under watermarks and logos.",
            boxes=("overlay_boxes",),
            legend="watermarks and logos in pink, the crop in white",
        ),
        Threshold(
            *("crop", "crop_area", "crop_area_min", "low", 0.5),
            description="Smallest fraction of the frame that cropping may leave",
            largest=1,
            words="Cropping away text, logos and borders leaves too little of the frame.",
            boxes=("text_boxes", "overlay_boxes"),
            legend="the crop in white, text in yellow, watermarks and logos in pink",
        ),
    ),
    scorers={"lite": plain_per_source(score)},
    moves_crop=True,
    per_source=True,
    version=2,
)
