"""The lite codec is an orthonormal projection, frame by latent frame, and keeps pictures recognisable."""

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.codec import Moments, psnr, read_clip
from benchmarks.sample_library import Scene, scenes
from models.dct_codec import FIRST_FRAME, LATER_FRAMES, DctCodec, dct_basis, from_blocks, to_blocks


@pytest.fixture(scope="module")
def codec() -> DctCodec:
    return DctCodec()


def clip_of(scene: Scene, frames: int) -> Tensor:
    """Frames of a scene as footage of 128 lines looks, which is scaled down: [1, 3, frames, 128, 224]."""
    images = [cv2.resize(scene.frame(2 + i / 24), (224, 128), interpolation=cv2.INTER_AREA) for i in range(frames)]
    return torch.from_numpy(np.stack(images)).permute(3, 0, 1, 2)[None] / 127.5 - 1


@pytest.fixture(scope="module")
def footage() -> Tensor:
    """A scene in which the camera pans and one in which a subject moves: [2, 3, 9, 128, 224]."""
    cast = {scene.name: scene for scene in scenes()}
    return torch.cat([clip_of(cast[name], 9) for name in ("skyline-day", "lake-day")])


@pytest.mark.parametrize(("frames", "kept"), [(1, FIRST_FRAME), (4, LATER_FRAMES)])
def test_the_basis_is_orthonormal(frames, kept):
    basis = dct_basis(frames, kept).double()
    torch.testing.assert_close(basis.T @ basis, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-6)


def test_blocks_hold_the_pixels_of_their_place():
    video = torch.arange(2 * 3 * 8 * 16 * 24).view(2, 3, 8, 16, 24)
    blocks = to_blocks(video, 4)
    assert torch.equal(blocks[1, 1, 0, 2].view(3, 4, 8, 8), video[1, :, 4:, :8, 16:])
    assert torch.equal(from_blocks(blocks, 4), video)


def test_image_and_video_have_the_shapes_of_the_contract(codec, footage):
    assert codec.encode(footage).shape == (2, 16, 3, 16, 28)
    assert codec.decode(codec.encode(footage)).shape == footage.shape
    assert codec.encode(footage[:, :, :1]).shape == (2, 16, 1, 16, 28)


def test_the_first_frame_decodes_alone_to_the_same_pixels(codec, footage):
    latents = codec.encode(footage)
    assert torch.equal(codec.decode_first_frame(latents), codec.decode(latents)[:, :, :1])
    assert torch.equal(codec.decode(latents[:, :, :1]), codec.decode(latents)[:, :, :1])


def test_a_latent_frame_holds_its_own_frames_alone(codec, footage):
    changed = footage.clone()
    changed[:, :, 5:] *= -1
    same = codec.encode(changed) == codec.encode(footage)
    assert same[:, :, :2].all() and not same[:, :, 2].all()


def test_static_footage_is_the_same_in_every_latent_frame(codec, footage):
    latents = codec.encode(footage[:, :, :1].expand(-1, -1, 9, -1, -1))
    torch.testing.assert_close(latents[:, :15, 0], latents[:, :15, 1], rtol=0, atol=1e-4)
    torch.testing.assert_close(latents[:, 15, 1], torch.zeros_like(latents[:, 15, 1]), rtol=0, atol=1e-4)


def test_what_the_codec_shows_it_keeps(codec, footage):
    shown = codec.decode(codec.encode(footage / 4))  # far from the ends of the range, where nothing is clamped
    torch.testing.assert_close(codec.decode(codec.encode(shown)), shown, rtol=0, atol=1e-5)


def test_gradients_reach_the_latents_and_only_those_of_the_first_frame(codec, footage):
    latents = codec.encode(footage / 4).requires_grad_()
    codec.decode_first_frame(latents).square().sum().backward()
    assert latents.grad[:, :, 0].abs().min() > 0 and not latents.grad[:, :, 1:].any()
    assert not any(parameter.requires_grad for parameter in codec.parameters())


def test_pictures_stay_recognisable_and_no_linear_code_of_this_size_is_much_better(codec):
    """Over all scenes of the sample library, as images and as the four frames after the first."""
    images, groups, errors = Moments(1), Moments(4), []
    for scene in scenes():
        clip = clip_of(scene, 5)
        images.add(clip[:, :, :1])
        groups.add(clip[:, :, 1:])
        squared = (codec.decode(codec.encode(clip)) - clip).square()
        errors.append([float(squared[:, :, :1].mean()), float(squared[:, :, 1:].mean())])
    image, group = (psnr(sum(column) / len(errors)) for column in zip(*errors, strict=True))
    assert image > 24 and image > psnr(images.klt_error()) - 0.3
    assert group > 23 and group > psnr(groups.klt_error()) - 0.5


def test_on_real_footage_latents_have_unit_variance_and_lose_little_more_than_the_klt(codec, media):
    moments, errors, power = Moments(4), [], torch.zeros(16)
    for path in sorted(media.glob("*.mp4")):
        clip = read_clip(path, 17, 128)
        latents = codec.encode(clip)
        moments.add(clip[:, :, 1:])
        errors.append(float((codec.decode(latents) - clip)[:, :, 1:].square().mean()))
        power += latents[:, :, 1:].square().mean((0, 2, 3, 4))
    assert psnr(sum(errors) / len(errors)) > psnr(moments.klt_error()) - 0.3
    deviation = (power / len(errors)).sqrt()
    assert deviation.min() > 0.75 and deviation.max() < 1.25


def test_wrong_shapes_are_named(codec):
    with pytest.raises(ValueError, match=r"3 frames .* the nearest is 1 or 5"):
        codec.encode(torch.zeros(1, 3, 3, 16, 16))
    with pytest.raises(ValueError, match="latents are"):
        codec.decode(torch.zeros(1, 3, 3, 16, 16))
