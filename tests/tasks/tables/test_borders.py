"""Facts about borders: what is dark, even and straight, and a blurred copy of the picture; nothing else is one."""

import cv2
import numpy as np
import pytest

from tasks.tables.borders import content_box
from tasks.tables.crop import Box
from tasks.tables.picture import Image


def scene(rng: np.random.Generator, level: float = 120, height: int = 90, width: int = 160) -> Image:
    return np.clip(rng.normal(level, 30, (height, width, 3)), 0, 255).astype(np.uint8)


def landscape(seed: int, width: int, height: int, samples: int = 4) -> list[Image]:
    """Blobs of colour of many sizes, over which a camera pans."""
    rng = np.random.default_rng(seed)
    plate = np.zeros((height, width + 40 * samples, 3), np.float32)
    for cell, contrast in ((60, 60), (20, 40), (6, 30)):
        grid = rng.normal(0, contrast, (height // cell + 2, plate.shape[1] // cell + 2, 3)).astype(np.float32)
        plate += cv2.resize(grid, plate.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    images = (plate + 120).clip(0, 255).astype(np.uint8)
    return [np.ascontiguousarray(images[:, 40 * i : 40 * i + width]) for i in range(samples)]


def between_copies(image: Image, width: int, zoom: float, gain: float) -> Image:
    """The picture in the middle of a wider frame that a blurred, enlarged copy of it fills."""
    height, own = image.shape[:2]
    scale = zoom * width / own
    large = cv2.resize(image, (round(own * scale), round(height * scale)), interpolation=cv2.INTER_LINEAR)
    y, x = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    frame = cv2.GaussianBlur(large[y : y + height, x : x + width], (0, 0), width / 45) * gain
    left = (width - own) // 2
    frame[:, left : left + own] = image
    return frame.astype(np.uint8)


def turned(images: list[Image]) -> list[Image]:
    return [np.ascontiguousarray(image.transpose(1, 0, 2)) for image in images]


def test_letterbox_is_found_through_compression_noise() -> None:
    rng = np.random.default_rng(1)
    images = []
    for _ in range(3):
        image = scene(rng)
        image[:12] = image[-12:] = rng.integers(0, 6, (12, 160, 3))
        images.append(image)
    box = content_box(images)
    assert (box.x, box.w) == (0, 160)
    assert 12 <= box.y <= 15
    assert 12 <= 90 - box.y - box.h <= 15


def test_bars_of_one_side_and_of_lifted_brightness_are_found() -> None:
    images = landscape(1, 160, 90)
    for image in images:
        image[:, :40] = image[:20] = 60
    box = content_box(images)
    assert 40 <= box.x <= 44
    assert 20 <= box.y <= 24
    assert (box.x + box.w, box.y + box.h) == (160, 90)


def test_dark_scenes_and_fades_are_not_borders() -> None:
    rng = np.random.default_rng(2)
    assert content_box([np.zeros((90, 160, 3), np.uint8)] * 3) == Box(0, 0, 160, 90)
    assert content_box([np.zeros((90, 160, 3), np.uint8), scene(rng)]) == Box(0, 0, 160, 90)
    dusk = (np.linspace(0, 1, 90)[:, None, None] * np.full((90, 160, 3), 90)).astype(np.uint8)
    assert content_box([dusk]) == Box(0, 0, 160, 90)


@pytest.mark.parametrize("size", [0.6, 1.4])
def test_a_title_on_black_has_no_borders(size: float) -> None:
    title = np.zeros((90, 160, 3), np.uint8)
    cv2.putText(title, "THE END", (round(80 - 65 * size), 50), cv2.FONT_HERSHEY_SIMPLEX, size, (255,) * 3, 2)
    assert content_box([title]) == Box(0, 0, 160, 90)


def test_a_band_of_deep_colour_is_no_black_bar() -> None:
    images = landscape(2, 160, 90)
    for image in images:
        image[70:] = (180, 20, 25)
    assert content_box(images) == Box(0, 0, 160, 90)


def test_a_mark_inside_a_bar_is_part_of_it() -> None:
    images = landscape(3, 320, 180)
    for image in images:
        image[:36] = image[-36:] = 0
        cv2.putText(image, "CH 7", (240, 26), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (200, 200, 200), 2)
    box = content_box(images)
    assert 36 <= box.y <= 40
    assert 36 <= 180 - box.y - box.h <= 40
    assert box.w == 320


def test_subtitles_that_change_inside_a_bar_are_part_of_it() -> None:
    images = landscape(4, 320, 180, 12)
    for i, image in enumerate(images):
        image[:30] = image[-30:] = 0
        words = ["Nobody lives here", "since that long winter", "we should leave before", "the rain begins"][i // 3]
        cv2.putText(image, words, (30 + 5 * (i // 3), 172), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255,) * 3, 2)
    box = content_box(images)
    assert 30 <= box.y <= 34
    assert 30 <= 180 - box.y - box.h <= 34


def test_a_letterboxed_trailer_that_goes_full_frame_has_no_borders() -> None:
    images = landscape(5, 160, 90, 12)
    for image in images[:10]:
        image[:15] = image[-15:] = 0
    assert content_box(images) == Box(0, 0, 160, 90)


@pytest.mark.parametrize("upright", [True, False], ids=["side bars", "top and bottom bars"])
@pytest.mark.parametrize(("own", "zoom", "gain"), [(100, 1.0, 1.0), (180, 1.3, 0.6), (240, 1.0, 0.8)])
def test_blurred_copies_beside_the_picture_are_borders(own: int, zoom: float, gain: float, upright: bool) -> None:
    images = [between_copies(image, 320, zoom, gain) for image in landscape(own, own, 180)]
    box = content_box(images if upright else turned(images))
    start, length = (box.x, box.w) if upright else (box.y, box.h)
    left = (320 - own) // 2
    assert left <= start <= left + 3
    assert left + own - 3 <= start + length <= left + own


@pytest.mark.parametrize("seed", range(6))
def test_soft_sides_that_are_no_copy_are_part_of_the_picture(seed: int) -> None:
    images = landscape(seed, 320, 180)
    others = landscape(seed + 100, 320, 180)
    for image, other in zip(images, others, strict=True):
        sides = np.r_[0:80, 240:320]
        image[:, sides] = cv2.GaussianBlur(other, (0, 0), 8)[:, sides]
    assert content_box(images) == Box(0, 0, 320, 180)


def test_what_borders_leave_is_a_picture_or_there_are_none() -> None:
    bar = np.zeros((90, 728, 3), np.uint8)
    bar[40:50] = np.random.default_rng(6).integers(60, 255, (10, 728, 3))
    assert content_box([bar]).area
    thin = np.zeros((180, 320, 3), np.uint8)
    thin[90:93] = 250
    assert content_box([thin] * 5) == Box(0, 0, 320, 180)
