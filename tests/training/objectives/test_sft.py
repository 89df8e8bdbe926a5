"""The KL penalty of fine-tuning: the divergence of two Gaussians from their velocities, and what gets a gradient."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from training.objectives.flow_matching import logit_normal_sigma
from training.objectives.sft import KLPenalty, kl_weight, logit_normal_density

GOLDEN = json.loads((Path(__file__).parents[2] / "data" / "sft_kl_gaussian_public.json").read_text())


def velocity(x: Tensor, t: Tensor, mean: float, deviation: float) -> Tensor:
    """The report's velocity of the flow from a standard normal to a normal, in closed form."""
    variance = (1 - t) ** 2 + (t * deviation) ** 2
    slope = (t * deviation**2 - (1 - t)) / variance
    return mean + slope * (x - t * mean)


def squared_apart(golden: dict, t: Tensor, penalty: KLPenalty) -> Tensor:
    """The penalty at each time, its mean over samples of p taken exactly (Gauss-Hermite)."""
    nodes, weights = (torch.from_numpy(array) for array in np.polynomial.hermite_e.hermegauss(8))
    mean, deviation = golden["p"]
    x = t[:, None] * mean + ((1 - t) ** 2 + (t * deviation) ** 2).sqrt()[:, None] * nodes
    v, u = (velocity(x, t[:, None], *golden[name]) for name in "pq")
    scale = (weights / weights.sum()).sqrt()
    return penalty(v * scale, u * scale, 1 - t)


@pytest.mark.parametrize("golden", GOLDEN)
def test_velocities_and_weights_are_the_published_ones(golden) -> None:
    t = torch.tensor(golden["t"], dtype=torch.float64)
    x = torch.tensor(golden["x"], dtype=torch.float64)
    for name in "pq":
        found = velocity(x, t[:, None], *golden[name])
        assert (found - torch.tensor(golden[f"v_{name}"], dtype=torch.float64)).abs().max() < 1e-12
    assert (kl_weight(1 - t, cap=math.inf) - torch.tensor(golden["weight"], dtype=torch.float64)).abs().max() < 1e-12
    apart = squared_apart(golden, t, KLPenalty(1.0))
    assert (apart - torch.tensor(golden["mean_sq_dv_under_p"], dtype=torch.float64)).abs().max() < 1e-12


@pytest.mark.parametrize("golden", GOLDEN)
def test_the_integral_of_the_penalty_is_the_divergence(golden) -> None:
    nodes, weights = np.polynomial.legendre.leggauss(200)
    t, weight = torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)
    integral = (weight * squared_apart(golden, t, KLPenalty(1.0, "kl", cap=math.inf))).sum()
    assert abs(float(integral) - golden["kl_closed"]) < 1e-9
    assert abs(golden["kl_velocity_integral"] - golden["kl_closed"]) < 1e-8


@pytest.mark.parametrize("golden", GOLDEN)
def test_taken_literally_it_estimates_the_divergence_from_a_batch(golden) -> None:
    sigma = logit_normal_sigma(200_000, torch.Generator().manual_seed(0)).double()
    values = squared_apart(golden, 1 - sigma, KLPenalty(1.0, "kl", cap=1e6, literal=True))
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - golden["kl_closed"]) < 5 * error < 0.1 * golden["kl_closed"]


def test_the_density_is_that_of_the_draws() -> None:
    sigma = logit_normal_sigma(200_000, torch.Generator().manual_seed(0))
    edges = torch.linspace(0.05, 0.95, 10)
    share = torch.histogram(sigma, bins=edges).hist / len(sigma) / 0.1
    assert (share - logit_normal_density((edges[1:] + edges[:-1]) / 2)).abs().max() < 0.05


def test_the_weight_is_capped_where_it_would_be_infinite() -> None:
    sigma = torch.tensor([1.0, 0.5, 0.1, 1e-4, 0.0])
    assert torch.allclose(kl_weight(sigma), torch.tensor([0.0, 1.0, 9.0, 10.0, 10.0]))
    v, u = torch.randn(5, 3), torch.randn(5, 3)
    one = KLPenalty(2.0)(v, u, sigma)
    assert torch.allclose(one, 2 * (v - u).square().sum(1))
    assert torch.allclose(KLPenalty(2.0, "kl")(v, u, sigma), one * kl_weight(sigma))


def test_only_the_model_gets_a_gradient() -> None:
    v, u = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    KLPenalty(0.5)(v, u, torch.tensor([0.3, 0.7])).sum().backward()
    assert u.grad is None
    assert v.grad is not None and torch.allclose(v.grad, v.detach() - u.detach())


def test_bfloat16_is_compared_in_float32() -> None:
    v, u = torch.randn(2, 4).bfloat16(), torch.randn(2, 4).bfloat16()
    penalty = KLPenalty(1.0)(v, u, torch.tensor([0.3, 0.7]))
    assert penalty.dtype == torch.float32
    assert torch.equal(penalty, (v.float() - u.float()).square().sum(1))


@pytest.mark.parametrize(
    ("v", "u", "sigma"),
    [((2, 3), (2, 1), (2,)), ((2, 3), (2, 3), (1,)), ((2, 3), (2, 3), (2, 1))],
)
def test_shapes_that_would_broadcast_are_refused(v, u, sigma) -> None:
    with pytest.raises(ValueError, match="one shape"):
        KLPenalty(1.0)(torch.zeros(v), torch.zeros(u), torch.full(sigma, 0.5))


@pytest.mark.parametrize(
    "values", [{"beta": -1.0}, {"beta": math.nan}, {"beta": 1.0, "cap": 0.0}, {"beta": 1.0, "weight": "two"}]
)
def test_settings_that_mean_nothing_are_refused(values) -> None:
    with pytest.raises(ValueError, match="beta >= 0"):
        KLPenalty(**values)
    with pytest.raises(ValueError, match="cap"):
        kl_weight(torch.ones(1), 0.0)
