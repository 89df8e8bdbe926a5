import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from tasks.curation.views import moved_view

CHINA, FLOWER = load_sample_image("china.jpg"), load_sample_image("flower.jpg")


def view(image: np.ndarray, x: int, y: int) -> np.ndarray:
    return np.ascontiguousarray(image[y : y + 300, x : x + 400])


def test_a_pan_over_a_photograph_shows_one_view():
    assert moved_view(view(CHINA, 0, 60), view(CHINA, 120, 90))


def test_two_photographs_are_two_views():
    assert not moved_view(view(CHINA, 0, 60), view(FLOWER, 0, 60))


def test_a_camera_that_stands_still_explains_no_change():
    assert not moved_view(view(CHINA, 0, 60), view(CHINA, 0, 60))


def test_views_that_do_not_overlap_are_not_taken_for_one():
    assert not moved_view(view(CHINA, 0, 60)[:, :200], view(CHINA, 240, 60)[:, :200])


@pytest.mark.parametrize("level", [0, 128])
def test_flat_pictures_are_no_view(level):
    flat = np.full((300, 400, 3), level, np.uint8)
    assert not moved_view(flat, flat)
    assert not moved_view(view(CHINA, 0, 0), flat)


def test_a_caption_that_stays_makes_no_view_of_two():
    first, second = view(CHINA, 0, 60), view(FLOWER, 0, 60)
    caption = view(CHINA, 240, 127)[:40]
    first[-40:], second[-44:-4] = caption, caption
    assert not moved_view(first, second)
