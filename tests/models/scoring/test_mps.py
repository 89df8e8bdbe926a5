"""MPS: the published scores and gradients, each sample on its own, and weights that fit or are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.checkpoint import CheckpointError
from models.scoring.mps import CONDITION, MPS, WEIGHTS, CrossSize, MPSConfig, kept_words, load_mps, write_config
from tests.models.weights import fill

DATA = Path(__file__).parents[2] / "data"
KEYS = json.loads((DATA / "mps_full_tiny_keys.json").read_text())
TINY = MPSConfig(KEYS["config"], CrossSize(**KEYS["cross"]))


def tiny(dtype: torch.dtype = torch.float64) -> MPS:
    """The network of the golden: its token embeddings are large, so that the threshold really drops words."""
    network = fill(MPS(TINY).to(dtype)).eval()
    network.model.text_model.embeddings.token_embedding.weight.data *= 30
    return network


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in np.load(DATA / "mps_full_tiny_public.npz").items()}


def images(golden: dict[str, Tensor], dtype: torch.dtype = torch.float64) -> Tensor:
    return golden["pixels_uint8"].to(dtype) / 255


def test_scores_and_gradients_are_the_published_ones(golden) -> None:
    pictures = images(golden).requires_grad_()
    score = tiny().score(pictures, golden["prompt_ids"], golden["condition_ids"])
    assert (score - golden["score"]).abs().max() < 1e-7
    (gradient,) = torch.autograd.grad(score.sum(), pictures)
    assert (gradient.flatten(1).norm(dim=1) / golden["grad_norm"] - 1).abs().max() < 1e-6
    at = gradient[tuple(golden["grad_pos"].T)]
    assert (at - golden["grad_at_pos"]).abs().max() < 1e-7
    assert (gradient.mean((2, 3)) - golden["grad_mean_per_channel"]).abs().max() < 1e-9


def test_float32_is_as_close(golden) -> None:
    score = tiny(torch.float32).score(images(golden, torch.float32), golden["prompt_ids"], golden["condition_ids"])
    assert score.dtype == torch.float32
    assert (score - golden["score"]).abs().max() < 1e-6


def test_a_score_does_not_depend_on_the_rest_of_the_batch(golden) -> None:
    network, pictures = tiny(), images(golden)
    together = network.score(pictures, golden["prompt_ids"], golden["condition_ids"].repeat(3, 1))
    alone = [
        network.score(pictures[i : i + 1], golden["prompt_ids"][i : i + 1], golden["condition_ids"]) for i in range(3)
    ]
    assert (together - torch.cat(alone)).abs().max() < 1e-12
    wrong = golden["score_if_batch_max"]  # what dividing by the batch's largest similarity gives
    assert (together - wrong).abs().max() > 1e-3


def test_the_words_that_stay_are_the_published_ones(golden) -> None:
    network = tiny()
    words, _ = network._text(golden["prompt_ids"])
    condition, _ = network._text(golden["condition_ids"])
    kept = kept_words(words, condition)
    assert torch.equal(kept, golden["kept"])
    assert kept[:, 0].all()  # the start token is the same in both texts
    assert kept.sum(1).tolist() == [71, 62, 31]


def test_words_stay_by_their_share_of_their_own_prompts_largest() -> None:
    words = torch.tensor([[[1.0], [0.5], [0.2]], [[100.0], [29.0], [31.0]]])
    assert kept_words(words, torch.tensor([[[0.1], [1.0]]])).tolist() == [[True, True, False], [True, False, True]]


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.03), (torch.float16, 0.01)])
def test_half_precision_scores_are_float32_and_close(golden, dtype, error) -> None:
    network = tiny(torch.float32)
    exact = network.score(images(golden, torch.float32), golden["prompt_ids"], golden["condition_ids"])
    score = network.to(dtype).score(images(golden, torch.float32), golden["prompt_ids"], golden["condition_ids"])
    assert score.dtype == torch.float32 and score.isfinite().all()
    assert (score - exact).abs().max() < error


def test_other_sizes_of_pictures_are_resized_and_keep_their_gradients(golden) -> None:
    pictures = torch.rand(2, 3, 90, 61, generator=torch.Generator().manual_seed(0)).requires_grad_()
    score = tiny(torch.float32).score(pictures, golden["prompt_ids"][:2], golden["condition_ids"])
    score.sum().backward()
    assert pictures.grad is not None and pictures.grad.isfinite().all()
    assert (pictures.grad[:, :, 45] != 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, p, c: (x, p[:2], c), "3 images want as many prompts, not 2"),
        (lambda x, p, c: (x, p, c.repeat(2, 1)), "one condition or as many, not 2"),
        (lambda x, p, c: (x * 2 - 1, p, c), r"images lie in \[0, 1\]"),
        (lambda x, p, c: (x, p.clamp(max=500), c), "end token"),
    ],
)
def test_what_does_not_fit_is_refused(golden, change, message) -> None:
    arguments = change(images(golden), golden["prompt_ids"], golden["condition_ids"])
    with pytest.raises(ValueError, match=message):
        tiny().score(*arguments)


def test_the_published_network_has_the_published_keys_and_shapes() -> None:
    with torch.device("meta"):
        network = MPS()
    state = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    assert state == json.loads((DATA / "mps_full_keys.json").read_text())
    assert sum(parameter.numel() for parameter in network.model.parameters()) == 986_109_441
    activations = {network.model.config.text_config.hidden_act, network.model.config.vision_config.hidden_act}
    assert activations == {"gelu"}  # not CLIP-L's quick_gelu
    assert len(CONDITION.split(",")) == 22


def test_a_folder_loads_with_exactly_its_keys(tmp_path, golden) -> None:
    network = tiny(torch.float32)
    write_config(TINY, tmp_path / "config.json")
    with pytest.raises(FileNotFoundError, match="convert-mps"):
        load_mps(tmp_path)
    save_file(network.state_dict(), tmp_path / WEIGHTS)
    arguments = images(golden, torch.float32), golden["prompt_ids"], golden["condition_ids"]
    loaded = load_mps(tmp_path)
    assert torch.equal(loaded.score(*arguments), network.score(*arguments))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    half = load_mps(tmp_path, dtype=torch.bfloat16)
    assert half.model.visual_projection.weight.dtype == torch.bfloat16
    assert half.cross_model.layers[0][1].fn.rotary_emb.inv_freq.dtype == torch.float32

    state = load_file(tmp_path / WEIGHTS)
    removed = state.pop("cross_model.layers.0.1.fn.rotary_emb.inv_freq")
    save_file(state, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"1 missing: .*inv_freq"):
        load_mps(tmp_path)
    save_file(
        state | {"cross_model.layers.0.1.fn.rotary_emb.inv_freq": removed, "more": removed.clone()}, tmp_path / WEIGHTS
    )
    with pytest.raises(CheckpointError, match="1 unexpected: more"):
        load_mps(tmp_path)
