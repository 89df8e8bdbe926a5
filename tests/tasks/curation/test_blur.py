"""Facts about the sharpness of frames."""

from itertools import pairwise

import cv2
import numpy as np
from sklearn.datasets import load_sample_image

from tasks.curation.blur import laplacian_variance
from tasks.tables.picture import Image


def photograph(name: str = "china.jpg") -> Image:
    return np.asarray(load_sample_image(name), np.uint8)


def defocused(image: Image, sigma: float) -> Image:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)


def test_more_defocus_scores_lower() -> None:
    for name in ("china.jpg", "flower.jpg"):
        scores = [laplacian_variance(defocused(photograph(name), sigma)) for sigma in (0.1, 1, 2, 4, 8)]
        assert all(sharper > 2 * softer for sharper, softer in pairwise(scores))


def test_size_of_the_picture_does_not_matter() -> None:
    whole = photograph()
    half = np.asarray(cv2.resize(whole, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8)
    assert 0.7 < laplacian_variance(half) / laplacian_variance(whole) < 1.4


def test_sharp_subject_before_a_blurred_background_is_sharp() -> None:
    image = defocused(photograph(), 8)
    image[150:300, 200:450] = photograph()[150:300, 200:450]
    assert laplacian_variance(image) > 20 * laplacian_variance(defocused(photograph(), 8))


def test_clear_sky_does_not_make_a_picture_blurred() -> None:
    image = photograph().copy()
    image[:280] = (200, 215, 230)
    assert laplacian_variance(image) > 0.3 * laplacian_variance(photograph())


def test_flat_picture_has_no_sharpness() -> None:
    assert laplacian_variance(np.full((90, 160, 3), 128, np.uint8)) == 0
