"""Pictures of any size and content are measured: nothing raises, no number is out of its range, no crop is empty."""

import math
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest

from tasks.curation import aesthetics, blur, motion, text
from tasks.curation.embed import SIDE, embedding_of, film_of
from tasks.curation.overlays import OverlayConfig, score_source
from tasks.tables.borders import content_box
from tasks.tables.crop import Box, crop_of, cut_out
from tasks.tables.frame_store import FramePair
from tasks.tables.picture import Image, at_side, resized, shrink
from tests.tasks.curation.test_text import clip_of

SIZES = [
    (1, 1),
    (1, 7),
    (7, 1),
    (2, 3),
    (3, 2),
    (5, 5),
    (2, 640),
    (640, 2),
    (9000, 40),
    (40, 3000),
    (728, 90),
    (33, 17),
]


def drawn(rng: np.random.Generator, width: int, height: int) -> Iterator[tuple[str, list[Image]]]:
    """Some samples of one size of every odd kind; what differs between the samples and where things lie is drawn."""
    count = int(rng.integers(1, 7))
    shape = height, width, 3
    noise = [rng.integers(0, 256, shape).astype(np.uint8) for _ in range(count)]
    yield "black", [np.zeros(shape, np.uint8)] * count
    yield "white", [np.full(shape, 255, np.uint8)] * count
    yield "noise", noise
    yield "black, then noise", [np.zeros(shape, np.uint8), *noise]
    yield "dark noise", [image // 6 for image in noise]
    rows, columns = sorted(rng.integers(0, height + 1, 2)), sorted(rng.integers(0, width + 1, 2))
    for name, part in (("bar", np.s_[rows[0] : rows[1]]), ("column", np.s_[:, columns[0] : columns[1]])):
        for level in (255, None):
            images = [np.zeros(shape, np.uint8) for _ in noise]
            for image, other in zip(images, noise, strict=True):
                image[part] = other[part] if level is None else level
            yield f"{name} on black", images
            yield f"black {name}", [255 - image for image in images]
    thin = np.zeros(shape, np.uint8)
    thin[height // 2 : height // 2 + 3] = 250
    yield "thin bar on black", [thin] * count


def cases() -> Iterator[Any]:
    for seed, (width, height) in enumerate(SIZES):
        for name, images in drawn(np.random.default_rng(seed), width, height):
            yield pytest.param(images, id=f"{name}, {width}x{height}")


def row_of(width: int, height: int, crop: Box) -> dict[str, Any]:
    places = {"crop_x": crop.x, "crop_y": crop.y, "crop_w": crop.w, "crop_h": crop.h}
    return {"width": width, "height": height} | places


@pytest.mark.parametrize("images", list(cases()))
def test_every_measure_takes_any_picture(images: list[Image]) -> None:
    height, width = images[0].shape[:2]
    frame = Box(0, 0, width, height)
    box = content_box(images)
    assert box.area > 0
    assert box.meet(frame) == box
    assert film_of(images).shape == (len(images), SIDE, SIDE)
    assert np.isfinite(embedding_of(film_of(images))).all()
    assert blur.laplacian_variance(images[0]) >= 0
    assert 0 <= aesthetics.lite(images[0]) <= 10
    speeds = motion.clip_speeds([FramePair(0.0, 1 / 15, shrink(images[0], 448), shrink(images[-1], 448))])
    assert all(math.isfinite(speed) and speed >= 0 for speed in speeds)
    source = row_of(width, height, frame)
    source |= score_source([source], [shrink(image, 640) for image in images], OverlayConfig())[0]
    assert crop_of(source).area > 0
    assert 0 <= source["border_area"] < 1


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_text_is_sought_in_any_picture(size: tuple[int, int]) -> None:
    for name, images in list(drawn(np.random.default_rng(sum(size)), *size))[::3]:
        clip = clip_of(images)
        clip.row.update(row_of(*size, Box(0, 0, *size)))
        row = text.score(clip, text.TextConfig())
        assert 0 <= row["text_area"] <= 1, name
        assert crop_of(row).area > 0, name


@pytest.mark.parametrize("crop", [Box(0, 0, 0, 0), Box(30, 20, 0, 5), Box(64, 36, 0, 0), Box(63, 35, 1, 1)], ids=str)
def test_a_crop_without_area_still_shows_a_pixel(crop: Box) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (36, 64, 3)).astype(np.uint8)
    part = cut_out(image, crop, 64, 36)
    assert min(part.shape) >= 1
    assert blur.laplacian_variance(part) >= 0
    assert 0 <= aesthetics.lite(part) <= 10
    clip = clip_of([image] * 4)
    clip.row.update(row_of(64, 36, crop))
    assert text.score(clip, text.TextConfig())["text_area_kept"] >= 0
    row = row_of(64, 36, crop)
    row |= score_source([row], [image] * 4, OverlayConfig())[0]
    assert crop_of(row).area >= 0


def test_interpolation_is_that_of_the_scale() -> None:
    stripes = np.zeros((40, 400, 3), np.uint8)
    stripes[:, ::2] = 200
    small = resized(stripes, 100, 10)
    assert abs(small.astype(int) - 100).max() <= 1  # every pixel counts
    assert resized(stripes, 0, 0).shape == (1, 1, 3)
    assert resized(stripes, 400, 40) is stripes
    assert shrink(stripes, 800) is stripes
    assert at_side(stripes, 800).shape == (80, 800, 3)
    assert at_side(np.asarray(cv2.cvtColor(stripes, cv2.COLOR_RGB2GRAY), np.uint8), 5).shape == (1, 5)
