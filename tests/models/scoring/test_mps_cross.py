"""The cross model of MPS alone: the published output, and what the mask and the positions do."""

from pathlib import Path

import numpy as np
import torch

from models.scoring.mps_cross import CrossModel
from tests.models.weights import fill

DATA = Path(__file__).parents[2] / "data"


def test_the_published_cross_model_gives_the_same_tokens() -> None:
    golden = {name: torch.from_numpy(array) for name, array in np.load(DATA / "mps_cross_public.npz").items()}
    network = fill(CrossModel(64, 2, 4))
    with torch.no_grad():
        out = network(golden["image"], golden["text"], golden["mask"])
        every_row = network(golden["image"], golden["text"], golden["mask"].repeat(1, 17, 1))
    assert (out - golden["out"]).abs().max() < 1e-5
    assert torch.equal(out, every_row)


def test_words_that_are_masked_have_no_influence() -> None:
    network = fill(CrossModel(32, 2, 2, dim_head=16))
    image, text = torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    mask = torch.zeros(2, 1, 7)
    mask[:, :, 3] = -torch.inf
    changed = text.clone()
    changed[:, 3] += 5
    with torch.no_grad():
        assert torch.equal(network(image, text, mask), network(image, changed, mask))
        assert (network(image, text) - network(image, changed)).abs().max() > 1e-3


def test_frequencies_are_not_rounded_with_the_weights() -> None:
    network = CrossModel(32, 1, 2, dim_head=16)
    before = network.layers[0][1].fn.rotary_emb.inv_freq.clone()
    network.to(torch.bfloat16)
    assert torch.equal(network.layers[0][1].fn.rotary_emb.inv_freq, before)
    assert network.double().layers[0][1].fn.rotary_emb.inv_freq.dtype == torch.float64
