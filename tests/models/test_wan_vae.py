"""The Wan2.1 codec: diffusers' results, the normalisation of training, and a bound on memory that holds."""

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.wan_vae import DECODE_FLOATS, ENCODE_FLOATS, WanCodec, load_wan_codec
from tests.models.tiny_checkpoints import write_vae

# NUMERICS 4, as published
MEAN = [-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508]
MEAN += [0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921]
STD = [2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743]
STD += [3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside it and still alive: ``peak`` is the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        inputs = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known | inputs:
                self._known.add(storage._cdata)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return result

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("wan")
    write_vae(path)
    return path / "vae"


@pytest.fixture
def codec(folder) -> WanCodec:
    return load_wan_codec(folder)


def smooth(frames: int, height: int, width: int, samples: int = 1) -> Tensor:
    """Random video that is smooth in space and time."""
    coarse = torch.rand(samples, 3, 2, 4, 5, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return interpolate(coarse, size=(frames, height, width), mode="trilinear", align_corners=True)


def normalised(latents: Tensor) -> Tensor:
    shape = (1, 16, 1, 1, 1)
    return (latents - torch.tensor(MEAN).view(shape)) / torch.tensor(STD).view(shape)


@pytest.mark.parametrize("frames", [1, 9])
def test_encode_is_the_posteriors_mode_in_the_normalisation_of_training(codec, frames):
    video = smooth(frames, 32, 48, samples=2)
    latents = codec.encode(video)
    assert latents.shape == (2, 16, 1 + (frames - 1) // 4, 4, 6)
    assert torch.equal(latents, normalised(codec.vae.encode(video).latent_dist.mode()))


@pytest.mark.parametrize("frames", [1, 9])
def test_decode_is_that_of_diffusers(codec, frames):
    latents = codec.encode(smooth(frames, 32, 48, samples=2)) * 3
    z = latents * torch.tensor(STD).view(1, 16, 1, 1, 1) + torch.tensor(MEAN).view(1, 16, 1, 1, 1)
    video = codec.decode(latents)
    assert video.shape == (2, 3, frames, 32, 48)
    assert torch.equal(video, codec.vae.decode(z).sample)


def test_an_image_is_the_first_frame_of_its_video(codec):
    video = smooth(5, 32, 32)
    assert torch.equal(codec.encode(video[:, :, :1]), codec.encode(video)[:, :, :1])


def test_samples_of_the_posterior_follow_their_generator(codec):
    video = smooth(1, 32, 32)
    draws = [codec.encode(video, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], codec.encode(video))


@pytest.mark.parametrize("tiled", [False, True])
def test_the_first_frame_decodes_alone_to_the_same_pixels_and_gradients(codec, tiled):
    if tiled:
        codec.memory_bytes = codec.tile_bytes(16, 16, DECODE_FLOATS)
    latents = torch.randn(1, 16, 2, 20, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    first, video = codec.decode_first_frame(latents), codec.decode(latents)
    assert torch.equal(first, video[:, :, :1])
    alone = torch.autograd.grad(first.square().sum(), latents)[0]
    whole = torch.autograd.grad(video[:, :, :1].square().sum(), latents)[0]
    assert alone[:, :, 0].abs().max() > 0 and not alone[:, :, 1:].any()
    torch.testing.assert_close(alone, whole)


def test_gradients_of_a_whole_video_are_those_of_diffusers(codec):
    latents = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ours = torch.autograd.grad(codec.decode(latents).square().sum(), latents)[0]
    z = latents * torch.tensor(STD).view(1, 16, 1, 1, 1) + torch.tensor(MEAN).view(1, 16, 1, 1, 1)
    theirs = torch.autograd.grad(codec.vae.decode(z).sample.square().sum(), latents)[0]
    assert torch.equal(ours, theirs)
    assert not any(parameter.requires_grad for parameter in codec.parameters()) and not codec.vae.training


def test_tiles_stay_within_the_bound_and_close_to_the_whole(codec):
    video = smooth(5, 144, 208)
    latents = codec.encode(video)
    decoded = codec.decode(latents)
    codec.memory_bytes = codec.tile_bytes(16, 16, DECODE_FLOATS)
    with LiveBytes() as encoding:
        tiled_latents = codec.encode(video)
    with LiveBytes() as decoding:
        tiled = codec.decode(latents)
    assert encoding.peak < codec.memory_bytes + 2 * tiled_latents.nbytes
    assert decoding.peak < codec.memory_bytes + tiled.nbytes
    # Weights are random, and so is how far they see; trained ones are more local.
    assert (tiled_latents - latents).abs().mean() < 0.05 * latents.std()
    assert (tiled - decoded).abs().mean() < 0.1 * decoded.std()


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (32, 32), (54, 96), (90, 160)])
def test_the_published_size_stays_within_the_bound_and_near_it(rows, columns):
    """On the meta device, where tensors have sizes and no values."""
    with torch.device("meta"):
        codec = WanCodec(AutoencoderKLWan())
        video = torch.empty(1, 3, 13, 8 * rows, 8 * columns)
        latents = torch.empty(1, 16, 4, rows, columns)
        with LiveBytes() as encoding:
            for chunk in codec._encode_chunks(video):
                del chunk
        with LiveBytes() as decoding:
            for chunk in codec._decode_chunks(latents):
                del chunk
    for counted, floats in ((encoding, ENCODE_FLOATS), (decoding, DECODE_FLOATS)):
        assert 0.6 < counted.peak / codec.tile_bytes(rows, columns, floats) < 1


def test_as_many_samples_as_fit_run_together(codec):
    video = smooth(1, 32, 32, samples=5)
    whole = codec.encode(video)
    codec.memory_bytes = 2 * codec.tile_bytes(4, 4, ENCODE_FLOATS)
    together = [(part.samples.start, part.samples.stop) for part in codec._parts(5, 4, 4, ENCODE_FLOATS, 1)]
    assert together == [(0, 2), (2, 4), (4, 6)]
    torch.testing.assert_close(codec.encode(video), whole, rtol=1e-5, atol=1e-5)


def test_a_bound_too_small_for_any_tile_says_what_is_needed(codec):
    codec.memory_bytes = 1000
    with pytest.raises(ValueError, match=r"memory_bytes is 1,000, and the smallest tile takes .*: give at least that"):
        codec.decode(torch.zeros(1, 16, 1, 32, 32))


def test_statistics_come_from_the_configuration(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "vae")
    config = json.loads((copy / "config.json").read_text())
    assert config["latents_mean"] == MEAN and config["latents_std"] == STD
    (copy / "config.json").write_text(json.dumps({**config, "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}))
    codec = load_wan_codec(copy)
    video = smooth(1, 32, 32)
    assert torch.equal(codec.encode(video), codec.vae.encode(video).latent_dist.mode())
    (copy / "config.json").write_text(json.dumps({**config, "latents_std": [1.0] * 4}))
    with pytest.raises(ValueError, match="latents_mean and latents_std are not 16"):
        load_wan_codec(copy)


def test_missing_files_and_keys_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/config.json, .*nowhere/diffusion_pytorch_model.safetensors"):
        load_wan_codec(tmp_path / "nowhere")
    copy = shutil.copytree(folder, tmp_path / "vae")
    weights = load_file(copy / "diffusion_pytorch_model.safetensors")
    del weights["decoder.conv_in.weight"]
    save_file(weights, copy / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=r"decoder\.conv_in\.weight"):
        load_wan_codec(copy)


def test_wan22s_vae_is_refused():
    with torch.device("meta"), pytest.raises(ValueError, match=r"48 latent channels .*: is it Wan2.2's?"):
        WanCodec(AutoencoderKLWan(base_dim=8, z_dim=48, latents_mean=[0.0] * 48, latents_std=[1.0] * 48))


def test_wrong_shapes_are_named(codec):
    with pytest.raises(ValueError, match=r"3 frames .* the nearest is 1 or 5"):
        codec.encode(torch.zeros(1, 3, 3, 16, 16))
    with pytest.raises(ValueError, match="latents are"):
        codec.decode_first_frame(torch.zeros(1, 3, 3, 16, 16))
