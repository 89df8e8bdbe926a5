"""Facts about overlays: what stays while the picture moves is one, what stays with the scene is not."""

from typing import Any

import cv2
import numpy as np
import pytest

from tasks.curation.overlays import OverlayConfig, different_views, find_overlays, score_source
from tasks.tables.crop import Box, covered, crop_of
from tasks.tables.picture import Image
from tests.tasks.curation.test_text import scenery

WIDTH, HEIGHT = 480, 270
FRAME = Box(0, 0, WIDTH, HEIGHT)


def textured(samples: int, step: float = 13.0, seed: int = 0) -> list[Image]:
    return scenery(samples, step, seed, blob=10, levels=230)


def stamp(image: Image, x: int, y: int, opacity: float = 1.0) -> Box:
    """A ring with a bar, 40 pixels wide."""
    over = image.copy()
    cv2.circle(over, (x + 20, y + 20), 18, (250, 250, 250), 5, cv2.LINE_AA)
    cv2.rectangle(over, (x + 12, y + 17), (x + 28, y + 23), (250, 250, 250), -1)
    image[:] = cv2.addWeighted(over, opacity, image, 1 - opacity, 0)
    return Box(x, y, 40, 40)


def row_of() -> dict[str, Any]:
    return {"width": WIDTH, "height": HEIGHT, "crop_x": 0, "crop_y": 0, "crop_w": WIDTH, "crop_h": HEIGHT}


@pytest.mark.parametrize("opacity", [1.0, 0.6])
@pytest.mark.parametrize(("x", "y"), [(420, 15), (15, 215)])
def test_mark_over_a_moving_scene_is_found_and_cropped(x: int, y: int, opacity: float) -> None:
    images = textured(10)
    for image in images:
        box = stamp(image, x, y, opacity)
    row = row_of()
    row |= score_source([row], images, OverlayConfig())[0]
    found = [Box(**part) for part in row["overlay_boxes"]]
    assert covered(found, box) > 0.9
    assert row["overlay_area"] < 3 * box.area / FRAME.area
    assert row["overlay_area_kept"] == 0
    assert not box.meet(crop_of(row)).area
    assert crop_of(row).area > 0.75 * FRAME.area


def test_moving_scene_has_no_overlays() -> None:
    assert find_overlays(textured(10), OverlayConfig()) == []


def test_still_camera_tells_nothing() -> None:
    images = textured(10, 0.0)
    for i, image in enumerate(images):
        cv2.circle(image, (100 + 25 * i, 140), 40, (200, 30, 30), -1)
        stamp(image, 420, 15)
    assert different_views(images) == [0]
    assert find_overlays(images, OverlayConfig()) == []


def test_shots_of_still_cameras_tell_together() -> None:
    images = [image for seed in range(5) for image in textured(3, 0.0, seed)]
    for image in images:
        box = stamp(image, 420, 15)
    assert covered(find_overlays(images, OverlayConfig()), box) > 0.9


def test_frozen_picture_has_no_overlays() -> None:
    image = textured(1)[0]
    stamp(image, 420, 15)
    assert find_overlays([image] * 10, OverlayConfig()) == []


def test_horizon_that_stays_level_is_no_overlay() -> None:
    images = textured(10)
    for image in images:
        image[60:70, :] = 255
    assert find_overlays(images, OverlayConfig()) == []


def test_pillarbox_is_cropped_and_the_mark_beside_it_found() -> None:
    images = textured(10)
    for image in images:
        box = stamp(image, 370, 15)
        image[:, :60] = image[:, -60:] = 0
    row = row_of()
    row |= score_source([row], images, OverlayConfig())[0]
    assert row["border_area"] == pytest.approx(0.25, abs=0.02)
    crop = crop_of(row)
    assert crop.x >= 60
    assert crop.x + crop.w <= WIDTH - 60
    assert not box.meet(crop).area


def test_an_image_has_borders_at_most() -> None:
    image = textured(1)[0]
    image[:30] = image[-30:] = 0
    row = row_of()
    row |= score_source([row], [image], OverlayConfig())[0]
    assert row["overlay_boxes"] == []
    assert crop_of(row).h <= HEIGHT - 60


def test_crop_of_text_is_kept_within() -> None:
    row = row_of() | {"crop_h": 220}
    row |= score_source([row], textured(6), OverlayConfig())[0]
    assert crop_of(row) == Box(0, 0, WIDTH, 220)
    assert np.isclose(row["border_area"], 0)


def test_a_see_through_mark_over_busy_texture_is_found_by_many_views() -> None:
    images = textured(16, 29.0)
    for image in images:
        box = stamp(image, 420, 15, 0.3)
    assert covered(find_overlays(images, OverlayConfig()), box) > 0.5
    assert find_overlays(textured(16, 29.0), OverlayConfig()) == []


def test_a_mark_inside_a_black_bar_is_no_overlay_and_is_cropped_with_it() -> None:
    images = textured(10)
    for image in images:
        image[:60] = image[-60:] = 0
        box = stamp(image, 420, 10)
    row = row_of()
    (found,) = score_source([row], images, OverlayConfig())
    row |= found
    assert row["overlay_boxes"] == []
    assert not box.meet(crop_of(row)).area
    assert row["border_area"] == pytest.approx(120 / HEIGHT, abs=0.03)
