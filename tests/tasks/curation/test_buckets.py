import pytest

from tasks.curation.buckets import ASPECTS, bucket, nearest_aspect
from tests.tasks.rows import clip


@pytest.mark.parametrize(
    ("width", "height", "name"),
    [
        (1920, 1080, "16x9"),
        (854, 365, "16x9"),
        (720, 480, "3x2"),
        (640, 480, "4x3"),
        (500, 512, "1x1"),
        (480, 640, "3x4"),
        (480, 720, "2x3"),
        (362, 640, "9x16"),
        (544, 1280, "9x16"),
    ],
)
def test_the_nearest_of_the_seven_aspect_ratios(width, height, name):
    assert nearest_aspect(width, height) == name


def test_a_ratio_and_its_inverse_fall_into_mirrored_buckets():
    for width, height in ((1000, 617), (1000, 710), (1000, 860)):
        wide, tall = nearest_aspect(width, height), nearest_aspect(height, width)
        assert ASPECTS[wide] == pytest.approx(1 / ASPECTS[tall])


def test_the_crop_decides_not_the_frame():
    assert bucket(clip(crop_w=360))["bucket_aspect"] == "1x1"


@pytest.mark.parametrize(("seconds", "whole"), [(3.0, 3), (3.4, 3), (3.6, 4), (6.0, 6), (0.0, 0)])
def test_durations_go_to_the_nearest_whole_second_and_images_to_zero(seconds, whole):
    assert bucket(clip(duration_s=seconds))["bucket_duration_s"] == whole


def test_what_is_not_kept_has_no_bucket():
    assert bucket(clip(keep=False)) == {}
