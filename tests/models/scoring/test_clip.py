"""CLIP's image tower: open_clip's vectors, CLIP's preprocessing to the bit, and no activation but the trained one."""

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from models.checkpoint import CheckpointError
from models.scoring.clip import check_activation, load_clip, middle_of
from models.scoring.clip_pixels import CLIP_MEAN, CLIP_STD
from tests.models.scoring.goldens import golden
from tests.models.scoring.tiny_networks import CLIP_SIDE, CLIP_WIDTH, write_clip


def pictures(count: int = 3, height: int = 90, width: int = 120) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (height, width, 3), np.uint8) for _ in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    write_clip(path)
    return path


@pytest.mark.parametrize("name", ["wide", "tall", "small"])
def test_preprocessing_is_clips_to_the_bit(name):
    found = np.load(golden("clip_preprocess_224_public.npz"))
    pixels = torch.from_numpy(middle_of(found[name], 224)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    pixels = (pixels - mean) / std
    assert torch.allclose(pixels[:, ::9, ::9], torch.from_numpy(found[f"{name}_pixels_slice"]), atol=1e-6)
    assert pixels.double().sum().item() == pytest.approx(found[f"{name}_sum"].item(), rel=1e-6)


@pytest.mark.parametrize(("height", "width"), [(90, 121), (301, 181), (20, 20), (57, 56), (900, 30), (1, 1)])
def test_vectors_are_those_of_open_clip_with_its_own_preprocessing(folder, height, width):
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    clip = load_clip(folder)
    images = pictures(2, height, width)
    with torch.no_grad():
        batch = torch.stack([preprocess(Image.fromarray(image)) for image in images])
        expected = model.eval().encode_image(batch, normalize=True)
    vectors = clip.embed(torch.stack([clip.prepare(image) for image in images]))
    assert vectors.shape == (2, CLIP_WIDTH) and vectors.dtype == torch.float32
    assert (vectors - expected).abs().max() < 1e-6


def test_vectors_are_unit_and_batches_do_not_mix(folder):
    clip = load_clip(folder)
    pixels = torch.stack([clip.prepare(image) for image in pictures(5)])
    vectors = clip.embed(pixels)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(5))
    assert torch.allclose(clip.embed(pixels[3:4]), vectors[3:4], atol=1e-6)


def test_pickled_weights_in_opens_clips_other_file_are_the_same(tmp_path, folder):
    write_clip(tmp_path, safetensors=False)
    clip, other = load_clip(folder), load_clip(tmp_path)
    pixels = torch.stack([clip.prepare(image) for image in pictures(2)])
    assert torch.equal(clip.embed(pixels), other.embed(pixels))


def test_in_bfloat16_vectors_stay_float32_and_near(folder):
    clip, rounded = load_clip(folder), load_clip(folder, dtype=torch.bfloat16)
    pixels = torch.stack([clip.prepare(image) for image in pictures(2)])
    vectors = rounded.embed(pixels)
    assert vectors.dtype == torch.float32
    assert (vectors - clip.embed(pixels)).abs().max() < 0.03


@pytest.mark.parametrize("quick_gelu", [False, None])
def test_the_wrong_activation_is_refused_in_words(tmp_path, quick_gelu):
    write_clip(tmp_path, quick_gelu=quick_gelu)
    with pytest.raises(CheckpointError, match=r"image tower with GELU.*trained with QuickGELU.*ViT-L-14-quickgelu"):
        load_clip(tmp_path)


def test_the_wrong_activation_would_give_other_vectors(tmp_path, folder):
    """The reason for the refusal: the same weights load into both, and open_clip says nothing."""
    exact = write_clip(tmp_path, quick_gelu=False)
    clip = load_clip(folder)
    pixels = torch.stack([clip.prepare(image) for image in pictures(2)])
    right = clip.embed(pixels)
    clip.tower = exact.visual
    assert (clip.embed(pixels) - right).abs().max() > 1e-4


def test_the_real_architecture_has_quick_gelu_and_its_namesake_has_not():
    with torch.device("meta"):
        right = open_clip.CLIP(**open_clip.get_model_config("ViT-L-14-quickgelu"))
        wrong = open_clip.CLIP(**open_clip.get_model_config("ViT-L-14"))
    check_activation(right.visual, "ViT-L-14-quickgelu")
    with pytest.raises(CheckpointError, match="ViT-L-14 makes an image tower with GELU"):
        check_activation(wrong.visual, "ViT-L-14")


def test_a_file_of_weights_is_taken_for_the_published_architecture(tmp_path, folder):
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_clip(folder / "open_clip_model.safetensors")


@pytest.mark.parametrize("name", ["open_clip_config.json", "open_clip_model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    write_clip(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_clip(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_cfg": {"embed_dim": 24}}, "has no model_cfg with embed_dim, vision_cfg and text_cfg"),
        ({"preprocess_cfg": {"interpolation": "bilinear"}}, "interpolation is bilinear, and bicubic where CLIP"),
        ({"preprocess_cfg": {"resize_mode": "squash"}}, "resize_mode is squash, and shortest where CLIP"),
    ],
)
def test_a_config_of_another_kind_is_refused(tmp_path, change, words):
    write_clip(tmp_path)
    file = tmp_path / "open_clip_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=words):
        load_clip(tmp_path)


def test_a_resnet_is_refused(tmp_path):
    write_clip(tmp_path)
    file = tmp_path / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["vision_cfg"]["layers"] = [1, 1, 1, 1]
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="is not of a CLIP with a ViT of its own"):
        load_clip(tmp_path)


def test_pictures_that_were_not_prepared_are_refused(folder):
    clip = load_clip(folder)
    for wrong in (torch.zeros(1, 3, 50, 50, dtype=torch.uint8), torch.zeros(1, 3, CLIP_SIDE, CLIP_SIDE)):
        with pytest.raises(ValueError, match=r"pictures are uint8 \[B, 3, 56, 56\]"):
            clip.embed(wrong)
