"""Facts about black borders."""

import numpy as np

from tasks.tables.borders import content_box
from tasks.tables.crop import Box


def scene(rng: np.random.Generator, level: float = 120) -> np.ndarray:
    return np.clip(rng.normal(level, 30, (90, 160, 3)), 0, 255).astype(np.uint8)


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


def test_dark_scenes_and_fades_are_not_borders() -> None:
    rng = np.random.default_rng(2)
    assert content_box([np.zeros((90, 160, 3), np.uint8)] * 3) == Box(0, 0, 160, 90)
    assert content_box([np.zeros((90, 160, 3), np.uint8), scene(rng)]) == Box(0, 0, 160, 90)
    dusk = (np.linspace(0, 1, 90)[:, None, None] * np.full((90, 160, 3), 90)).astype(np.uint8)
    assert content_box([dusk]) == Box(0, 0, 160, 90)
