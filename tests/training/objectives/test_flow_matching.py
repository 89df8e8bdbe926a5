"""Flow matching is the report's equation 1 in the sign of the SD3 weights."""

import math

import pytest
import torch

from models.sampler import euler, flow_sigmas
from training.objectives.flow_matching import logit_normal_sigma, noised, squared_errors, timestep_of


def draws(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator), torch.randn(*shape, generator=generator)


def test_it_is_the_reports_equation_with_time_turned_round() -> None:
    data, noise = draws(3, 4, 2, 5, 5)
    t = torch.tensor([0.1, 0.5, 0.9])
    by_report = (1 - t.view(-1, 1, 1, 1, 1)) * noise + t.view(-1, 1, 1, 1, 1) * data
    assert torch.allclose(noised(data, noise, 1 - t), by_report, atol=1e-6)
    velocity = torch.randn_like(data)  # as the report counts: data - noise
    loss = squared_errors(-velocity, noise - data).mean() / data[0].numel()
    assert loss.item() == pytest.approx((velocity - (data - noise)).square().mean().item(), rel=1e-6)


def test_ends_are_exactly_data_and_noise() -> None:
    data, noise = draws(2, 16, 1, 4, 4)
    assert torch.equal(noised(data, noise, torch.zeros(2)), data)
    assert torch.equal(noised(data, noise, torch.ones(2)), noise)


def test_the_velocity_without_loss_is_what_sampling_follows_to_the_data() -> None:
    data, noise = draws(2, 16, 2, 4, 4)
    velocity = noise - data
    assert not squared_errors(velocity, noise - data).any()
    arrived = euler(lambda latents, sigma: velocity, noise, flow_sigmas(7))
    assert torch.allclose(arrived, data, atol=1e-5)


def test_noise_levels_are_logit_normal() -> None:
    sigma = logit_normal_sigma(200_000, torch.Generator().manual_seed(1))
    assert sigma.dtype == torch.float32
    logit = torch.logit(sigma.double())
    assert logit.mean().abs() < 0.01
    assert logit.std().item() == pytest.approx(1, abs=0.01)
    shifted = torch.logit(logit_normal_sigma(200_000, torch.Generator().manual_seed(1), shift=17.0).double())
    assert (shifted - logit).mean().item() == pytest.approx(math.log(17), abs=1e-3)


def test_time_keeps_what_bfloat16_would_lose() -> None:
    sigma = torch.tensor([1.0, 0.998801, 0.997555])
    assert timestep_of(sigma).tolist() == pytest.approx([1000, 998.801, 997.555])
    data, noise = (tensor.bfloat16() for tensor in draws(3, 4))
    assert noised(data, noise, sigma).dtype == torch.float32


def test_every_number_weighs_the_same_on_ranks_with_unequal_buckets() -> None:
    data, noise = draws(5, 4, 2, 2, 2)
    prediction = torch.randn_like(data)
    whole = squared_errors(prediction, noise - data).sum() / data.numel()
    ranks = [slice(0, 1), slice(1, 5)]
    parts = [squared_errors(prediction[r], (noise - data)[r]).sum() / data.numel() for r in ranks]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-6)


def test_shapes_that_would_broadcast_are_refused() -> None:
    data, _ = draws(2, 4, 1, 2, 2)
    with pytest.raises(ValueError, match="one shape"):
        squared_errors(data[:1], data)
