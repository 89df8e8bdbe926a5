"""Facts about text that moves by itself: found whatever its direction and speed, where the camera stands still."""

from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont
from sklearn.datasets import load_sample_image

from tasks.curation.edges import Edges
from tasks.curation.text import TextConfig, score
from tasks.curation.text_moving import camera_stands, find_moving, passing_edges
from tasks.tables.crop import Box, covered, crop_of
from tasks.tables.picture import Image
from tests.tasks.curation.test_text import HEIGHT, WIDTH, boxes_of, clip_of, scenery

SAMPLES = 9
WORDS = "HARBOUR NEWS  NOBODY HAS LIVED HERE SINCE THAT LONG WINTER  RAIN TOMORROW AND WIND FROM THE WEST  "
CREDITS = ["Maria Keller", "Sound and light", "Peter Lindholm", "Costumes", "Anna Moretti", "Local people", "Thanks to"]


def crawling(images: list[Image], y: int, step: float, plate: tuple[int, int, int] | None, size: int = 20) -> None:
    """A line of text that moves by ``step`` pixels to the left (right, if negative) a sample."""
    font = ImageFont.load_default(size)
    start = 0 if step > 0 else round(step * len(images))
    for i, image in enumerate(images):
        picture = Pillow.fromarray(image)
        draw = ImageDraw.Draw(picture)
        if plate:
            draw.rectangle((0, y - 8, WIDTH, y + size + 12), fill=plate)
        stroke = 0 if plate else 2
        draw.text((start - i * step, y), WORDS * 3, (255, 255, 255), font, stroke_width=stroke, stroke_fill=(0, 0, 0))
        image[:] = np.asarray(picture)


def rolling(images: list[Image], step: float, size: int = 20) -> None:
    """Centred lines of text that move by ``step`` pixels up (down, if negative) a sample."""
    font = ImageFont.load_default(size)
    start = 0 if step > 0 else step * len(images)
    for i, image in enumerate(images):
        picture = Pillow.fromarray(image)
        draw = ImageDraw.Draw(picture)
        for line in range(40):
            words = CREDITS[line % len(CREDITS)]
            x = (WIDTH - font.getlength(words)) / 2
            draw.text((x, start + line * 2 * size - i * step), words, (255, 255, 255), font, stroke_width=1)
        image[:] = np.asarray(picture)


def still(samples: int = SAMPLES) -> list[Image]:
    return scenery(samples, 0.0, blob=10, levels=200)


@pytest.mark.parametrize("step", [6.0, 45.0, 120.0, -30.0])
@pytest.mark.parametrize(("y", "plate"), [(232, (180, 20, 25)), (16, (10, 20, 90)), (235, None)])
def test_a_crawl_under_a_still_camera_is_found_and_cropped(step: float, y: int, plate: Any) -> None:
    images = still()
    crawling(images, y, step, plate)
    row = score(clip_of(images), TextConfig())
    line = Box(0, y + 4, WIDTH, 14)
    assert row["text_area"] >= 0.02
    assert covered(boxes_of(row), line) > 0.7
    assert not line.meet(crop_of(row)).area or row["text_area_kept"] > 0.01
    assert row["text_static"] < 0.5


@pytest.mark.parametrize("step", [15.0, 70.0, -40.0])
def test_rolling_credits_on_black_cannot_be_cropped_and_stay_counted(step: float) -> None:
    images = [np.zeros((HEIGHT, WIDTH, 3), np.uint8) for _ in range(SAMPLES)]
    rolling(images, step)
    row = score(clip_of(images), TextConfig())
    assert row["text_area"] > 0.05
    assert row["text_area_kept"] > 0.02


def test_credits_that_roll_over_a_still_scene_are_found_along_their_whole_way() -> None:
    images = scenery(SAMPLES, 0.0, blob=30)
    rolling(images, 33)
    row = score(clip_of(images), TextConfig())
    assert row["text_area"] > 0.03
    assert covered(boxes_of(row), Box(WIDTH // 2 - 30, 20, 60, HEIGHT - 40)) > 0.9


def test_subjects_that_move_before_a_still_camera_are_no_text() -> None:
    photo = cv2.resize(load_sample_image("china.jpg"), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    images = [np.asarray(photo, np.uint8).copy() for _ in range(SAMPLES)]
    rng = np.random.default_rng(3)
    ys, xs = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    for i, image in enumerate(images):
        sway = [cv2.resize(rng.normal(0, 8, (6, 8)).astype(np.float32), (WIDTH, HEIGHT)) * (xs < 180) for _ in "xy"]
        image[:] = cv2.remap(image, xs + sway[0], ys + sway[1], cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT)
        x = 200 + 20 * i
        cv2.circle(image, (x, 150), 40, (200, 160, 140), -1)
        cv2.line(image, (x - 30, 150), (x + 30, 220), (20, 20, 20), 6)
    row = score(clip_of(images), TextConfig())
    assert row["text_area"] == 0
    assert crop_of(row) == Box(0, 0, WIDTH, HEIGHT)


def test_a_camera_that_pans_does_not_stand_and_one_with_a_crawl_does() -> None:
    images = still()
    crawling(images, 120, 40.0, (180, 20, 25))
    assert camera_stands([Edges.of(image) for image in images])
    assert not camera_stands([Edges.of(image) for image in scenery(SAMPLES, 13.0, blob=10, levels=200)])


def test_a_subtitle_that_stands_is_not_among_what_moves() -> None:
    images = still()
    font = ImageFont.load_default(24)
    for i, image in enumerate(images):
        picture = Pillow.fromarray(image)
        ImageDraw.Draw(picture).text((60, 230), CREDITS[i // 3], (255, 255, 255), font, stroke_width=3, stroke_fill=0)
        image[:] = np.asarray(picture)
    edges = [Edges.of(image[::2, ::2]) for image in images]
    lines, seen = find_moving(images, edges, passing_edges(edges), 60_000, 0.5, HEIGHT / 4)
    assert lines == []
    assert seen.shape == (0, SAMPLES)
