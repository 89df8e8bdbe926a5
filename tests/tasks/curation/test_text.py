"""Facts about text in clips: burned-in lines are found and cropped away, scenes without text are left alone."""

from io import BytesIO
from typing import Any

import cv2
import numpy as np
import pytest

from tasks.curation.edges import Edges
from tasks.curation.text import TextConfig, crop_text, find_text, measure, score
from tasks.curation.text_detector import detect
from tasks.curation.text_regions import Line, Region, finest, fitting, new_regions, pack
from tasks.tables.clip import Clip
from tasks.tables.crop import Box, covered, crop_of
from tasks.tables.frame_store import FrameStore, FrameStoreWriter
from tasks.tables.picture import Image

WIDTH, HEIGHT = 480, 270
FRAME = Box(0, 0, WIDTH, HEIGHT)


def scenery(samples: int, step: float = 13.0, seed: int = 0, blob: int = 30, levels: int = 140) -> list[Image]:
    """Blobs of colour, ``blob`` pixels wide, under a camera that pans by ``step`` pixels a sample."""
    rng = np.random.default_rng(seed)
    plate = 20 + rng.uniform(0, levels, (HEIGHT // blob, (WIDTH + 600) // blob, 3)).astype(np.float32)
    plate = cv2.resize(plate, (WIDTH + 600, HEIGHT), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
    return [np.ascontiguousarray(plate[:, round(i * step) : round(i * step) + WIDTH]) for i in range(samples)]


def write(image: Image, words: str, x: int, y: int, size: float = 0.7) -> None:
    """Burn white words with a black outline into a picture; ``y`` is their base line."""
    for colour, thickness in ((0, 5), (255, 2)):
        cv2.putText(image, words, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, (colour,) * 3, thickness, cv2.LINE_AA)


def clip_of(images: list[Image]) -> Clip:
    """A clip of samples half a second apart."""
    file = BytesIO()
    writer = FrameStoreWriter(file)
    for i, image in enumerate(images):
        writer.add(i / 2, image, None, None)
    writer.close()
    end_s = len(images) / 2
    row: dict[str, Any] = {"start_s": 0.0, "end_s": end_s, "duration_s": end_s, "width": WIDTH, "height": HEIGHT}
    row |= {"crop_x": 0, "crop_y": 0, "crop_w": WIDTH, "crop_h": HEIGHT}
    return Clip(row, FrameStore(BytesIO(file.getvalue())))


def boxes_of(row: dict[str, Any]) -> list[Box]:
    return [Box(**box) for box in row["text_boxes"]]


@pytest.mark.parametrize("pan", [0.0, 13.0], ids=["still camera", "moving camera"])
def test_every_subtitle_is_found_though_each_is_short(pan: float) -> None:
    images = scenery(10, pan)
    for i, image in enumerate(images):
        if 2 <= i < 5:
            write(image, "Nobody lives here", 120, 258)
        elif i >= 7:
            write(image, "since that winter", 110, 232)
    row = score(clip_of(images), TextConfig())
    assert covered(boxes_of(row), Box(122, 245, 170, 12)) > 0.9
    assert covered(boxes_of(row), Box(112, 219, 165, 12)) > 0.9
    crop = crop_of(row)
    assert (crop.x, crop.y, crop.w) == (0, 0, WIDTH)
    assert 0.75 * HEIGHT <= crop.h < 215
    assert row["text_area_kept"] <= row["text_area"]


def test_subtitle_that_leaves_enough_is_cropped_away_and_changes() -> None:
    images = scenery(10)
    for i, image in enumerate(images):
        write(image, ["Nobody lives here", "since that winter"][i // 5], 120, 255)
    row = score(clip_of(images), TextConfig())
    assert row["text_area_kept"] == 0
    assert row["crop_h"] >= 0.75 * HEIGHT
    assert row["crop_h"] < 240
    assert row["text_static"] < 0.5


def test_line_that_stays_through_the_clip_is_static() -> None:
    images = scenery(8)
    for image in images:
        write(image, "Channel Seven", 20, 25)
    row = score(clip_of(images), TextConfig())
    assert row["text_static"] > 0.9
    assert row["text_area_kept"] == 0
    assert row["crop_y"] >= 26


def test_text_all_over_cannot_be_cropped_and_stays_counted() -> None:
    images = scenery(8)
    for image in images:
        for y in range(40, HEIGHT, 45):
            write(image, "Summer sale half price", 60, y, 0.9)
    row = score(clip_of(images), TextConfig())
    assert row["text_area"] > 0.1
    assert row["text_area_kept"] > 0.05


@pytest.mark.parametrize("pan", [0.0, 13.0])
def test_scene_without_text_is_left_alone(pan: float) -> None:
    row = score(clip_of(scenery(8, pan)), TextConfig())
    assert row["text_area"] == row["text_area_kept"] == row["text_static"] == 0
    assert row["text_boxes"] == []
    assert crop_of(row) == FRAME


def test_detector_finds_a_line_where_it_is() -> None:
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    write(image, "Nobody lives here", 120, 145)
    ((box, confidence),) = detect(image, 0.5)
    assert confidence > 0.5
    assert covered([box], Box(122, 132, 170, 12)) > 0.9
    assert box.area < 4 * 210 * 25


def test_only_edges_that_last_are_new_and_only_once() -> None:
    images = scenery(6)
    for image in images[2:]:
        write(image, "Nobody lives here", 120, 258)
    regions = new_regions([Edges.of(image) for image in images])
    assert {region.sample for region in regions} == {2}
    assert all(region.box.y > 200 for region in regions)


def test_packed_regions_do_not_overlap() -> None:
    rng = np.random.default_rng(0)
    sizes = [(int(w), int(h)) for w, h in rng.integers(5, 150, (30, 2))]
    places, height = pack(sizes, 320)
    boxes = [Box(x, y, w, h) for (x, y), (w, h) in zip(places, sizes, strict=True)]
    assert all(box.x + box.w <= 320 and box.y + box.h <= height for box in boxes)
    assert not any(a.meet(b).area for i, a in enumerate(boxes) for b in boxes[:i])


def test_area_is_a_mean_over_samples() -> None:
    lines = [Line(0, Box(0, 0, WIDTH, HEIGHT // 10), 0.9)]
    assert measure(lines, np.array([[True, True, False, False]]), FRAME) == (pytest.approx(0.05), 0.0)


def test_what_cannot_go_does_not_keep_the_rest_from_going() -> None:
    subtitle, sign = Box(50, 240, 300, 20), Box(200, 120, 40, 10)
    crop = crop_text(FRAME, FRAME, [subtitle, sign], 0.75)
    assert crop == Box(0, 0, WIDTH, 233)


def test_margin_is_given_up_where_only_the_text_itself_can_go() -> None:
    assert crop_text(FRAME, FRAME, [Box(50, 205, 300, 40)], 0.75) == Box(0, 0, WIDTH, 205)


def test_an_image_is_one_sample() -> None:
    image = scenery(1)[0]
    write(image, "Nobody lives here", 120, 258)
    lines, seen = find_text([image], TextConfig())
    assert seen.shape == (len(lines), 1)
    assert isinstance(lines[0], Region)


def test_the_first_regions_that_have_room_are_looked_at() -> None:
    wide, small = Region(0, Box(0, 0, 100, 10)), Region(1, Box(0, 0, 10, 10))
    assert fitting([small, wide, small], 250) == ([small, small], [wide])
    assert finest([small], 25) == 0.5
    assert finest([small], 1000) == finest([], 1000) == 1
