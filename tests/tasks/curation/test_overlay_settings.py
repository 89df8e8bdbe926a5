"""What each setting of the search for overlays decides, on panning scenes and still shots that carry a mark."""

from collections.abc import Callable
from typing import Any

import pytest

from tasks.curation.overlays import OverlayConfig, score, score_source
from tasks.tables.crop import Box, covered, crop_of
from tasks.tables.picture import Image
from tests.tasks.curation.test_overlays import FRAME, row_of, stamp, textured
from tests.tasks.curation.test_text import clip_of

CORNER, INNER = (420, 15), (150, 100)


def marked(images: list[Image], at: tuple[int, int] = CORNER) -> list[Image]:
    for image in images:
        stamp(image, *at)
    return images


def five_still_shots() -> list[Image]:
    """A long shot and four of one picture each: samples of all of them are needed to tell a mark from the scene."""
    shots = [textured(1, 0.0, seed)[0] for seed in range(5)]
    return marked([shots[0].copy() for _ in range(12)] + shots[1:])


def row(images: list[Image], **settings: float) -> dict[str, Any]:
    whole = row_of()
    return whole | score_source([whole], images, OverlayConfig.model_validate(settings))[0]


def found(row: dict[str, Any]) -> list[Box]:
    return [Box(**box) for box in row["overlay_boxes"]]


# A setting, the pictures and the place of their mark, a value with which it is found, and one with which it is not.
DECIDES: list[tuple[str, Callable[[], list[Image]], tuple[int, int], float, float]] = [
    ("min_edge", lambda: marked(textured(6)), CORNER, 5, 200),
    ("min_share", lambda: [*marked(textured(6)[:5]), textured(6)[5]], CORNER, 0.8, 0.9),  # in five of six views
    ("max_area", lambda: marked(textured(6)), CORNER, 0.1, 0.005),
    ("margin", lambda: marked(textured(6), INNER), INNER, 0.4, 0.25),
]


@pytest.mark.parametrize(("name", "pictures", "at", "finds", "misses"), DECIDES, ids=[name for name, *_ in DECIDES])
def test_a_setting_decides_what_is_an_overlay(
    name: str, pictures: Callable[[], list[Image]], at: tuple[int, int], finds: float, misses: float
) -> None:
    images, mark = pictures(), Box(*at, 40, 40)
    with_mark, without = row(images, **{name: finds}), row(images, **{name: misses})
    assert covered(found(with_mark), mark) > 0.9 and with_mark["overlay_area"] > 0
    assert found(without) == [] and without["overlay_area"] == 0


def test_samples_are_how_many_pictures_of_a_source_are_compared() -> None:
    seen = clip_of(five_still_shots())
    seen.row["clip_id"] = "a"
    (few,), (many,) = score([seen], OverlayConfig(samples=4)), score([seen], OverlayConfig(samples=16))
    assert found(few) == []
    assert covered(found(many), Box(*CORNER, 40, 40)) > 0.9


def test_overlays_are_cropped_away_only_where_enough_is_left() -> None:
    images = marked(textured(6))
    cropped, kept = row(images, min_crop_area=0.6), row(images, min_crop_area=0.95)
    assert cropped["overlay_area"] == kept["overlay_area"] == kept["overlay_area_kept"] > 0
    assert cropped["overlay_area_kept"] == 0 and 0.6 * FRAME.area <= crop_of(cropped).area < 0.95 * FRAME.area
    assert crop_of(kept) == FRAME


def test_every_setting_is_in_a_test_here() -> None:
    assert {name for name, *_ in DECIDES} | {"samples", "min_crop_area"} == set(OverlayConfig.model_fields)
