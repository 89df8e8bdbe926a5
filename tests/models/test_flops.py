import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.checkpoint import read_config
from models.codec import LATENT_CHANNELS, latent_shape
from models.flops import forward_flops, parameters, recomputed_flops
from models.recompute import Recompute
from models.transformer import ContentVTransformer, TransformerConfig, token_grid
from tests.models.weights import SMALL, inputs

# The report's Table 2: frames, height, width and what they come to; then the largest shape that it speaks of.
SHAPES = {
    "VAE adaptation": ((1, 288, 288), (1, 18, 18), 324),
    "stage 1": ((29, 288, 288), (8, 18, 18), 2_592),
    "stage 2": ((125, 288, 288), (32, 18, 18), 10_368),
    "stage 3": ((125, 432, 768), (32, 27, 48), 41_472),
    "SFT": ((125, 432, 768), (32, 27, 48), 41_472),
    "720p": ((125, 720, 1280), (32, 45, 80), 115_200),
}


@pytest.mark.parametrize("stage", SHAPES)
def test_tokens_of_the_reports_shapes(stage: str) -> None:
    shape, grid, tokens = SHAPES[stage]
    latents = torch.empty(1, LATENT_CHANNELS, *latent_shape(*shape), device="meta")
    assert token_grid(latents, 2) == grid
    assert token_grid(latents, 2).tokens == tokens


def test_parameters_of_the_8b_model() -> None:
    assert parameters(TransformerConfig()) == 8_056_627_520


@pytest.mark.parametrize("change", [{}, {"num_layers": 1}, {"in_channels": 48, "out_channels": 32, "patch_size": 4}])
def test_parameters_are_those_of_the_model(change: dict[str, int]) -> None:
    with torch.device("meta"):
        model = ContentVTransformer(**{**SMALL, **change})
    assert parameters(model.config) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("stage", "published", "share"), [("stage 1", 18.92, 16.7), ("stage 2", 100.03, 42.3), ("stage 3", 871.54, 74.1)]
)
def test_flops_of_the_8b_model(stage: str, published: float, share: float) -> None:
    """The published figures leave the patch projection out."""
    config = read_config("8b")
    tokens = SHAPES[stage][2]
    flops = forward_flops(config, tokens)
    patch_projection = 2 * tokens * 64 * config.inner_dim
    assert (flops.total - patch_projection) / 1e12 == pytest.approx(published, abs=0.005)
    assert 100 * flops.attention / flops.total == pytest.approx(share, abs=0.05)


def test_the_closed_form_is_what_a_counter_counts() -> None:
    with torch.device("meta"):
        model = ContentVTransformer()
        arguments = torch.empty(1, 16, 8, 36, 36), torch.empty(1, 333, 4096), torch.empty(1, 2048), torch.empty(1)
    with FlopCounterMode(display=False) as counter:
        model(*arguments)
    assert counter.get_total_flops() == forward_flops(model.config, 2_592).total


def test_a_backward_pass_is_two_forward_passes() -> None:
    """But for the gradients of the inputs, which nobody asks for: of latents, texts and the sinusoid of time."""
    config = TransformerConfig(**SMALL)
    with torch.device("meta"):
        model = ContentVTransformer(**SMALL)
        arguments = {name: tensor.to("meta") for name, tensor in inputs(batch=1).items()}
        with FlopCounterMode(display=False) as counter:
            model(**arguments).square().mean().backward()
    unasked = 2 * config.inner_dim * (72 * 64 + 7 * 24 + 256 + 20)
    assert counter.get_total_flops() == forward_flops(config, 72, 7).training() - unasked


@pytest.mark.parametrize(("every", "expected"), [(1, [3, 3.26, 4]), (2, [3, 3.13, 3.5]), (38, [3, 3.007, 3.027])])
def test_recomputation_makes_three_passes_of_training_into_nearly_four(every: int, expected: list[float]) -> None:
    config = read_config("8b")
    flops = forward_flops(config, 41_472)
    policies = [Recompute(), Recompute("attention", every), Recompute("full", every)]
    again = [recomputed_flops(config, policy, 41_472) for policy in policies]
    assert [(flops.training() + more) / flops.total for more in again] == pytest.approx(expected, abs=0.005)
