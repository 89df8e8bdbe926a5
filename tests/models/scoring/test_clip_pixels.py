"""CLIP's preprocessing with gradients, against what the published one makes of the same pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.scoring.clip_pixels import CLIP_MEAN, CLIP_STD, clip_pixels

DATA = Path(__file__).parents[2] / "data"


@pytest.mark.parametrize("name", ["wide", "tall", "small"])
def test_pixels_are_near_those_of_the_published_preprocessing(name: str) -> None:
    golden = np.load(DATA / "clip_preprocess_224_public.npz")
    picture = torch.from_numpy(golden[name]).permute(2, 0, 1)[None] / 255
    pixels = clip_pixels(picture)[0]
    assert pixels.shape == (3, 224, 224)
    assert np.abs(pixels[:, ::9, ::9].numpy() - golden[f"{name}_pixels_slice"]).max() < 0.017
    assert abs(float(pixels.double().sum()) / float(golden[f"{name}_sum"][0]) - 1) < 0.002


def test_a_picture_of_this_size_is_only_normalised() -> None:
    picture = torch.rand(2, 3, 20, 20)
    mean, std = torch.tensor(CLIP_MEAN).view(3, 1, 1), torch.tensor(CLIP_STD).view(3, 1, 1)
    assert torch.equal(clip_pixels(picture, 20), (picture - mean) / std)


def test_gradients_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    picture = (0.25 + 0.5 * torch.rand(1, 3, 33, 50, generator=generator, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: clip_pixels(x, 12).square().sum(), picture)


def test_what_the_crop_cuts_off_has_no_gradient() -> None:
    picture = torch.full((1, 3, 32, 96), 0.5, requires_grad=True)
    clip_pixels(picture, 16).sum().backward()
    assert picture.grad is not None
    assert (picture.grad[..., :24] == 0).all() and (picture.grad[..., 40:56] != 0).all()


def test_half_precision_is_resized_in_float32() -> None:
    picture = torch.rand(1, 3, 40, 40).to(torch.bfloat16)
    assert clip_pixels(picture, 20).dtype == torch.bfloat16
    assert (clip_pixels(picture, 20).float() - clip_pixels(picture.float(), 20)).abs().max() < 0.03


@pytest.mark.parametrize("picture", [torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 8, 8).byte()])
def test_only_batches_of_rgb_pictures_in_floating_point(picture) -> None:
    with pytest.raises(ValueError, match="images are float"):
        clip_pixels(picture)


@pytest.mark.parametrize("value", [-1.0, 255.0, float("nan")])
def test_values_outside_of_0_to_1_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"images lie in \[0, 1\]"):
        clip_pixels(torch.full((1, 3, 8, 8), value))
