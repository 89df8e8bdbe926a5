"""Facts about the weight-free aesthetic score."""

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from tasks.curation.aesthetics import colourfulness, lite
from tasks.tables.picture import Image


@pytest.fixture(params=["china.jpg", "flower.jpg"])
def photograph(request: pytest.FixtureRequest) -> Image:
    return np.asarray(load_sample_image(request.param), np.uint8)


def test_black_and_flat_frames_are_worth_nothing() -> None:
    for level in (0, 128, 255):
        assert lite(np.full((90, 160, 3), level, np.uint8)) == pytest.approx(0, abs=0.01)


def test_photograph_is_worth_much(photograph: Image) -> None:
    assert 5 < lite(photograph) <= 10


def test_every_obvious_degradation_costs(photograph: Image) -> None:
    grey = np.repeat(cv2.cvtColor(photograph, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
    for worse in (
        photograph * 0.25,
        photograph * 0.25 + 180,
        photograph * 0.4 + 80,
        grey,
        cv2.GaussianBlur(photograph, (0, 0), 4),
    ):
        assert lite(np.asarray(worse, np.uint8)) < 0.95 * lite(photograph)


def test_grey_has_no_colour(photograph: Image) -> None:
    grey = np.repeat(cv2.cvtColor(photograph, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
    assert colourfulness(np.asarray(grey, np.uint8)) == pytest.approx(0, abs=1e-3)
    assert colourfulness(photograph) > 10
