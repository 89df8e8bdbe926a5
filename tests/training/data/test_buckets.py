"""Buckets: no clip is too short for its bucket's shape, and no shape costs more than the recipe's largest."""

from math import log

import pytest

from training.data.buckets import ASPECTS, Bucket, frames, shape_of, sides
from training.recipe import load_recipe

DURATIONS = range(1, 8)


@pytest.mark.parametrize("name", ["stage1", "stage2", "stage3"])
@pytest.mark.parametrize("aspect", ASPECTS)
def test_a_shape_fits_codec_and_recipe_and_is_near_the_aspect_ratio(name: str, aspect: str) -> None:
    recipe = load_recipe(name)
    height, width = sides(aspect, recipe.height, recipe.width)
    assert height % 16 == width % 16 == 0
    assert 0.9 < height * width / (recipe.height * recipe.width) <= 1
    assert abs(log(width / height / ASPECTS[aspect])) < 0.03


@pytest.mark.parametrize("duration_s", DURATIONS)
def test_every_clip_of_a_bucket_has_its_frames(duration_s: int) -> None:
    recipe = load_recipe("stage2")
    count = frames(duration_s, recipe)
    assert count % 4 == 1
    shortest_s = duration_s - 0.5  # curation gives a clip its nearest whole second
    assert count <= shortest_s * recipe.fps
    assert count == recipe.frames or count + 4 > shortest_s * recipe.fps


def test_the_largest_shapes_are_the_reports() -> None:
    assert str(shape_of(Bucket(6, "16x9"), load_recipe("stage3"))) == "125x432x768"
    assert str(shape_of(Bucket(6, "1x1"), load_recipe("stage2"))) == "125x288x288"
    assert shape_of(Bucket(6, "16x9"), load_recipe("stage3")).tokens == 41_472
    assert str(shape_of(Bucket(0, "1x1"), load_recipe("vae-adaptation"))) == "1x288x288"


def test_upright_is_wide_turned() -> None:
    for wide, upright in (("16x9", "9x16"), ("3x2", "2x3"), ("4x3", "3x4")):
        assert sides(wide, 432, 768) == sides(upright, 432, 768)[::-1]


def test_an_unknown_aspect_ratio_is_refused() -> None:
    with pytest.raises(ValueError, match="'21x9' is none of 16x9"):
        shape_of(Bucket(5, "21x9"), load_recipe("stage1"))
