"""GMFlow: the published numbers, and what must hold of any optical flow on pictures of any size."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from models.checkpoint import CheckpointError
from models.scoring.gmflow import GMFlow, load_gmflow, padding_of
from models.scoring.matching import match_everywhere, match_nearby, propagate_nearby, warp
from tests.models.scoring.goldens import golden
from tests.models.weights import fill

NAMES = {1: "gmflow", 2: "gmflow_refine"}


def pictures(height: int, width: int, samples: int = 1, seed: int = 0) -> Tensor:
    """Smooth random RGB pictures, 0 to 255."""
    coarse = torch.rand(samples, 3, 6, 8, generator=torch.Generator().manual_seed(seed)) * 255
    return F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True).round()


@pytest.fixture(scope="module", params=[1, 2])
def network(request) -> GMFlow:
    return fill(GMFlow(request.param)).eval()


def test_the_published_program_gives_the_same_flow(network):
    found = np.load(golden(f"{NAMES[network.num_scales]}_public.npz"))
    image0, image1 = (torch.from_numpy(found[name]).permute(2, 0, 1)[None].float() for name in ("image0", "image1"))
    expected = torch.from_numpy(found["flow"])
    flow = network.flow(image0, image1)[0]
    assert (flow - expected).norm() < 1e-4 * expected.norm()
    assert (flow - expected).abs().max() < 1e-4 * expected.abs().max()
    if "pad" in found:
        assert padding_of(*expected.shape[1:], 32) == tuple(found["pad"])


def test_keys_and_shapes_are_the_published_ones(network):
    with torch.device("meta"):
        model = GMFlow(network.num_scales)
    published = json.loads(golden(f"{NAMES[network.num_scales]}_keys.json").read_text())
    assert {key: list(tensor.shape) for key, tensor in model.state_dict().items()} == published


@pytest.mark.parametrize(("scales", "parameters", "tensors"), [(1, 4_680_288, 123), (2, 4_716_720, 124)])
def test_it_has_as_many_parameters_as_the_published_one(scales, parameters, tensors):
    with torch.device("meta"):
        model = GMFlow(scales)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == tensors


@pytest.mark.parametrize(("height", "width"), [(1, 1), (17, 40), (31, 97), (64, 33)])
def test_pictures_of_any_size_have_a_flow_of_their_size(network, height, width):
    flow = network.flow(pictures(height, width), pictures(height, width, seed=1))
    assert flow.shape == (1, 2, height, width)
    assert flow.dtype == torch.float32
    assert flow.isfinite().all()


def test_padding_repeats_edges_on_both_sides_alike(network):
    image0, image1 = pictures(45, 70), pictures(45, 70, seed=1)
    multiple = 16 if network.num_scales == 1 else 32
    left, right, top, bottom = padding_of(45, 70, multiple)
    assert (left <= right <= left + 1) and (top <= bottom <= top + 1)
    assert (45 + top + bottom) % multiple == 0 and (70 + left + right) % multiple == 0
    by_hand = [F.pad(image, (left, right, top, bottom), mode="replicate") for image in (image0, image1)]
    whole = network.flow(*by_hand)
    assert torch.allclose(network.flow(image0, image1), whole[:, :, top : top + 45, left : left + 70], atol=1e-3)


def test_batches_do_not_mix(network):
    image0, image1 = pictures(48, 64, samples=3), pictures(48, 64, samples=3, seed=1)
    together = network.flow(image0, image1)
    alone = network.flow(image0[1:2], image1[1:2])
    assert (together[1:2] - alone).norm() < 1e-3 * alone.norm()


def test_bytes_and_floats_are_one(network):
    image0, image1 = pictures(32, 32), pictures(32, 32, seed=1)
    assert torch.equal(network.flow(image0, image1), network.flow(image0.byte(), image1.byte()))


def test_bfloat16_gives_float32_flow_in_pixels(network):
    rounded = fill(GMFlow(network.num_scales)).eval().bfloat16()
    flow = rounded.flow(pictures(32, 64), pictures(32, 64, seed=1))
    assert flow.dtype == torch.float32
    assert flow.isfinite().all()


@pytest.mark.parametrize(
    ("one", "other"), [((1, 3, 32, 32), (1, 3, 32, 48)), ((3, 32, 32), (3, 32, 32)), ((1, 1, 32, 32), (1, 1, 32, 32))]
)
def test_what_are_no_two_batches_of_pictures_is_refused(network, one, other):
    with pytest.raises(ValueError, match=r"two batches of RGB pictures"):
        network.flow(torch.zeros(one), torch.zeros(other))


def test_matching_everywhere_finds_where_each_place_went():
    features = 30 * F.normalize(torch.randn(1, 64, 12, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    moved = features.roll((2, -3), (2, 3))
    flow = match_everywhere(features, moved)
    inside = flow[:, :, :10, 3:]  # the others come in on the other side
    assert torch.allclose(inside, torch.tensor([-3.0, 2.0]).view(1, 2, 1, 1).expand_as(inside), atol=1e-3)


def test_matching_nearby_sees_no_further_than_its_radius_and_not_beyond_the_border():
    features = 30 * F.normalize(torch.randn(1, 64, 12, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    inside = match_nearby(features, features.roll((1, -2), (2, 3)), 4)[:, :, :11, 2:]
    assert torch.allclose(inside, torch.tensor([-2.0, 1.0]).view(1, 2, 1, 1).expand_as(inside), atol=1e-3)
    far = match_nearby(features, features.roll(7, 3), 4)
    assert far.abs().max() < 4.001
    corner = match_nearby(torch.zeros(1, 4, 9, 9), torch.zeros(1, 4, 9, 9), 2)[0, :, 0, 0]
    assert torch.allclose(corner, torch.tensor([1.0, 1.0]))  # the mean of 0, 1 and 2: what lies outside has no weight


def test_propagation_counts_a_flow_of_zero_beyond_the_border():
    ones = torch.ones(1, 2, 5, 5)
    flow = propagate_nearby(torch.zeros(1, 4, 5, 5), torch.zeros(1, 4, 5, 5), ones, 1)
    assert torch.allclose(flow[0, 0, 2, 2], torch.tensor(1.0))
    assert torch.allclose(flow[0, 0, 0, 0], torch.tensor(4 / 9))


def test_warping_takes_features_from_where_the_flow_leads():
    features = torch.arange(12.0).view(1, 1, 3, 4)
    right = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 3, 4)
    assert torch.allclose(warp(features, right)[..., :3], features[..., 1:])
    assert not warp(features, right)[..., 3].any()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_official_checkpoints_load(tmp_path: Path, network, suffix, wrapped):
    file, state = tmp_path / f"weights{suffix}", network.state_dict()
    if suffix == ".pth":
        torch.save({"model": state, "optimizer": {"state": {}}, "step": 100_000} if wrapped else state, file)
    else:
        save_file(state, file)
    loaded = load_gmflow(file)
    assert loaded.num_scales == network.num_scales
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    image0, image1 = pictures(32, 40), pictures(32, 40, seed=1)
    flow = network.flow(image0, image1)
    assert (loaded.flow(image0, image1) - flow).norm() < 1e-4 * flow.norm()  # weights in a file are aligned otherwise
    assert load_gmflow(file, dtype=torch.bfloat16).upsampler[0].weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backbone.conv1.weight": None}, "1 missing: backbone.conv1.weight"),
        ({"refine.weight": torch.zeros(1)}, "1 unexpected: refine.weight"),
        ({"backbone.conv2.bias": torch.zeros(64)}, "1 of another shape: backbone.conv2.bias is [64]"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_with_what_differs(tmp_path, network, change, words):
    state = {key: tensor for key, tensor in (network.state_dict() | change).items() if tensor is not None}
    torch.save({"model": state}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError) as error:
        load_gmflow(tmp_path / "weights.pth")
    assert words in str(error.value)
