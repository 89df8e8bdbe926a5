"""The shape contract of codecs, and what it says of shapes that do not fit."""

import pytest
import torch

from models.codec import check_latents, check_video, latent_shape


@pytest.mark.parametrize(
    ("frames", "height", "width", "latent"),
    [
        (1, 288, 288, (1, 36, 36)),
        (29, 288, 288, (8, 36, 36)),
        (125, 288, 288, (32, 36, 36)),
        (125, 432, 768, (32, 54, 96)),
        (125, 720, 1280, (32, 90, 160)),
    ],
)
def test_shapes_of_the_reports_training_stages(frames, height, width, latent):
    assert latent_shape(frames, height, width) == latent


@pytest.mark.parametrize(
    ("frames", "nearest"), [(0, "1"), (-4, "1"), (2, "1"), (3, "1 or 5"), (4, "5"), (120, "121"), (127, "125 or 129")]
)
def test_frames_that_do_not_fill_the_groups_name_the_nearest_that_do(frames, nearest):
    with pytest.raises(ValueError, match=rf"^{frames} frames .* the nearest is {nearest}$"):
        latent_shape(frames, 288, 288)


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [
        (440, 768, "height 440 is not a multiple of 16 pixels; the nearest is 432 or 448"),
        (432, 765, "width 765 is not a multiple of 16 pixels; the nearest is 768"),
        (432, 3, "width 3 is not a multiple of 16 pixels; the nearest is 16"),
        (0, 768, "height 0 is not a multiple of 16 pixels; the nearest is 16"),
    ],
)
def test_sides_that_do_not_fit_name_the_nearest_that_do(height, width, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        latent_shape(29, height, width)


def test_a_codec_alone_takes_sides_of_8_pixels():
    check_video(torch.zeros(1, 3, 1, 8, 24))
    with pytest.raises(ValueError, match="width 20 is not a multiple of 8 pixels; the nearest is 16 or 24"):
        check_video(torch.zeros(1, 3, 1, 8, 20))


def test_what_is_no_video_is_said_to_be_none():
    with pytest.raises(ValueError, match=r"\[batch, 3, frames, height, width\], not \[3, 5, 16, 16\]"):
        check_video(torch.zeros(3, 5, 16, 16))
    with pytest.raises(ValueError, match=r"not \[1, 5, 3, 16, 16\]"):
        check_video(torch.zeros(1, 5, 3, 16, 16))
    with pytest.raises(ValueError, match=r"floats in \[-1, 1\], not torch.uint8; bytes become that as x / 127.5 - 1"):
        check_video(torch.zeros(1, 3, 1, 16, 16, dtype=torch.uint8))


def test_what_is_no_latent_is_said_to_be_none():
    with pytest.raises(ValueError, match=r"latents are \[batch, 16, .*\], not \[1, 4, 1, 8, 8\]"):
        check_latents(torch.zeros(1, 4, 1, 8, 8))
    with pytest.raises(ValueError, match=r"not torch\.int64"):
        check_latents(torch.zeros(1, 16, 1, 8, 8, dtype=torch.int64))
