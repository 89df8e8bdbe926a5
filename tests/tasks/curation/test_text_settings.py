"""What each setting of the search for text decides, on a panning scene with words in it."""

from collections.abc import Callable
from typing import Any

import pytest

from tasks.curation.text import TextConfig, score
from tasks.tables.picture import Image
from tests.tasks.curation.test_text import WIDTH, clip_of, scenery, write


def subtitled(samples: int, shown: range) -> list[Image]:
    images = scenery(samples)
    for sample in shown:
        write(images[sample], "Nobody lives here", 120, 258)
    return images


def sign() -> list[Image]:
    """A small sign in the scene, which moves with it."""
    images = scenery(6)
    for sample, image in enumerate(images):
        write(image, "Town hall", 400 - 26 * sample, 120, 0.5)
    return images


def title() -> list[Image]:
    """Letters a third of the frame high."""
    images = scenery(6)
    for image in images:
        write(image, "GRAND", 40, 200, 4.0)
    return images


def row(images: list[Image], **settings: float) -> dict[str, Any]:
    return score(clip_of(images), TextConfig.model_validate(settings))


# A setting, the pictures, a value with which their text is found, and one with which it is not.
DECIDES: list[tuple[str, Callable[[], list[Image]], float, float]] = [
    ("samples", lambda: subtitled(12, range(4, 7)), 20, 2),  # neither of the two shows it
    ("look_side", sign, 256, 64),
    ("region_pixels", lambda: subtitled(8, range(1, 3)), 60_000, 500),
    ("min_score", lambda: subtitled(6, range(6)), 0.5, 0.99),
    ("max_height", title, 0.5, 0.25),
]


@pytest.mark.parametrize(("name", "pictures", "finds", "misses"), DECIDES, ids=[name for name, *_ in DECIDES])
def test_a_setting_decides_which_text_is_found(
    name: str, pictures: Callable[[], list[Image]], finds: float, misses: float
) -> None:
    images = pictures()
    with_text, without = row(images, **{name: finds}), row(images, **{name: misses})
    assert with_text["text_area"] > 0.01 and with_text["text_boxes"]
    assert without["text_area"] == 0 and not without["text_boxes"]


def test_text_is_cropped_away_only_where_enough_is_left() -> None:
    images = subtitled(6, range(6))
    cropped, kept = row(images, min_crop_area=0.75), row(images, min_crop_area=0.95)
    assert cropped["text_area"] == kept["text_area"] == kept["text_area_kept"] > 0
    assert cropped["text_area_kept"] == 0 and 0.75 * 270 <= cropped["crop_h"] < 0.95 * 270
    assert (kept["crop_w"], kept["crop_h"]) == (WIDTH, 270)


def test_every_setting_is_in_a_test_here() -> None:
    assert {name for name, *_ in DECIDES} | {"min_crop_area"} == set(TextConfig.model_fields)
