"""The gradient of a reward through the sampler: equation 3 of the report, and the memory that it takes."""

import gc
import json
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from training.objectives.rlhf import (
    chosen_steps,
    first_frame_reward,
    report_velocity,
    reward_gradient,
    sampling_times,
)

GOLDEN = json.loads((Path(__file__).parents[2] / "data" / "rlhf_linear_public.json").read_text())


class Linear:
    """``v = W x + b t`` in float64, of any batch."""

    def __init__(self, golden: dict) -> None:
        self.W, self.b = (torch.tensor(golden[name], dtype=torch.float64, requires_grad=True) for name in ("W", "b"))

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return x @ self.W.T + self.b * t


@pytest.mark.parametrize("case", GOLDEN)
@pytest.mark.parametrize("every", [False, True])
def test_gradients_are_those_of_equation_3(case: str, every: bool) -> None:
    golden = GOLDEN[case]
    velocity = Linear(golden)
    towards = torch.tensor(golden["reward_weights"], dtype=torch.float64)
    chosen = range(golden["N"]) if every else golden["chosen_steps"]
    noise = torch.tensor(golden["x0"], dtype=torch.float64)
    rollout = reward_gradient(velocity, noise, golden["t"], chosen, lambda x: towards @ x)
    assert (rollout.x1 - torch.tensor(golden["x1"], dtype=torch.float64)).abs().max() < 1e-10
    assert abs(float(rollout.reward) - golden["reward"]) < 1e-10
    suffix = "_all_steps" if every else ""
    for parameter, name in ((velocity.W, "grad_W"), (velocity.b, "grad_b")):
        assert (parameter.grad - torch.tensor(golden[name + suffix], dtype=torch.float64)).abs().max() < 1e-10
        wrong = torch.tensor(golden[f"wrong_full_backprop_{name}"])
        assert (parameter.grad - wrong).abs().max() > 1e-3


@pytest.mark.parametrize(("case", "shift"), [("uniform", 1.0), ("shift17", 17.0)])
def test_times_are_those_of_the_sampler(case: str, shift: float) -> None:
    golden = GOLDEN[case]
    assert (sampling_times(golden["N"], shift) - torch.tensor(golden["t"], dtype=torch.float64)).abs().max() < 1e-15
    for steps, shift in ((0, 17.0), (3, 0.0)):
        with pytest.raises(ValueError, match="positive shift"):
            sampling_times(steps, shift)


class Network(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(width + 1, 16), nn.Tanh(), nn.Linear(16, width))
        self.double()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(torch.cat([x, t.expand(len(x), 1)], dim=1))


def test_any_network_gets_the_gradient_that_autograd_gives_on_the_sum() -> None:
    network, noise, times = Network(), torch.randn(3, 6, dtype=torch.float64), sampling_times(8, 5.0)
    target = torch.randn(6, dtype=torch.float64)

    def reward(x: Tensor) -> Tensor:
        return -(x - target).square().sum(1)

    chosen, flags = [1, 4, 7], []
    rollout = reward_gradient(network, noise, times, chosen, reward, weight=-0.25, micro_step=flags.append)
    two_pass = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()

    x, total = noise, noise
    for step in range(8):
        moved = (times[step + 1] - times[step]) * network(x.detach(), times[step])
        total = total + (moved if step in chosen else moved.detach())
        x = (x + moved).detach()
    (-0.25 * reward(total).sum()).backward()
    assert (rollout.x1 - total).abs().max() < 1e-12
    assert (rollout.reward - reward(total)).abs().max() < 1e-12 and rollout.reward.shape == (3,)
    for parameter, gradient in zip(network.parameters(), two_pass, strict=True):
        assert (parameter.grad - gradient).abs().max() < 1e-12
    assert flags == [False, False, True]
    assert not rollout.x1.requires_grad and not rollout.reward.requires_grad


def most_saved(steps: int, count: int) -> int:
    """The largest number of tensors that the graph holds at once, for ``count`` of ``steps``."""
    alive = most = 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def pack(tensor: Tensor) -> Saved:
        nonlocal alive, most
        saved = Saved(tensor)
        weakref.finalize(saved, gone)
        alive += 1
        most = max(most, alive)
        return saved

    network, noise = Network(), torch.randn(3, 6, dtype=torch.float64)
    gc.collect()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        reward_gradient(network, noise, sampling_times(steps), range(steps - count, steps), lambda x: x.square().sum(1))
    return most


def test_the_graph_is_of_one_step_whatever_the_number_of_steps_and_of_those_chosen() -> None:
    one = most_saved(4, 1)
    assert 0 < one <= 8
    assert {most_saved(steps, count) for steps in (4, 20) for count in (1, 2, 4)} == {one}


def test_the_model_sees_each_chosen_step_once_more_and_no_step_with_a_graph_before() -> None:
    network, graphs = Network(), []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        graphs.append(torch.is_grad_enabled())
        assert not x.requires_grad
        return network(x, t)

    reward_gradient(velocity, torch.randn(2, 6, dtype=torch.float64), sampling_times(5), [0, 3], lambda x: x.sum(1))
    assert graphs == [False] * 5 + [True] * 2


def test_steps_are_chosen_as_named() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [chosen_steps("random", 10, 3, generator) for _ in range(400)]
    assert all(steps == sorted(set(steps)) and len(steps) == 3 for steps in drawn)
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=10)
    assert counts.min() > 80 and counts.max() < 160  # 120 are expected
    again = torch.Generator().manual_seed(0)
    assert chosen_steps("random", 10, 3, again) == drawn[0]
    assert chosen_steps("last", 10, 3) == [7, 8, 9]
    assert chosen_steps("uniform", 12, 3) == [2, 6, 10]
    assert chosen_steps("uniform", 5, 5) == [0, 1, 2, 3, 4]
    tails = {step for _ in range(200) for step in chosen_steps("tail", 40, 2, generator)}
    assert tails == set(range(30, 40))
    assert chosen_steps("tail", 4, 3) == [1, 2, 3]
    for count in (0, 11):
        with pytest.raises(ValueError, match="between 1 and 10"):
            chosen_steps("random", 10, count)
    with pytest.raises(ValueError, match="'first'"):
        chosen_steps("first", 10, 1)  # type: ignore[arg-type]


def test_a_random_choice_gives_k_of_n_of_the_gradient_of_all_steps_on_average() -> None:
    golden = GOLDEN["uniform"]
    towards = torch.tensor(golden["reward_weights"], dtype=torch.float64)
    noise, sums = torch.tensor(golden["x0"], dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
    choices = [[i, j] for i in range(6) for j in range(i)]
    for chosen in choices:
        velocity = Linear(golden)
        reward_gradient(velocity, noise, golden["t"], chosen, lambda x: towards @ x)
        sums += velocity.W.grad
    expected = torch.tensor(golden["grad_W_all_steps"], dtype=torch.float64) * 2 / 6
    assert (sums / len(choices) - expected).abs().max() < 1e-12


def test_a_model_in_the_sign_of_sd3_is_turned_around() -> None:
    seen = []

    def predict(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(float(sigma))
        return x * 2

    assert torch.equal(report_velocity(predict)(torch.ones(3), torch.tensor(0.25)), torch.full((3,), -2.0))
    assert seen == [0.75]


def test_only_the_first_latent_frame_is_decoded() -> None:
    shapes = []

    def decode(latents: Tensor) -> Tensor:
        shapes.append(list(latents.shape))
        return latents[:, :3, :1].repeat_interleave(8, 3).repeat_interleave(8, 4)

    codec = SimpleNamespace(decode_first_frame=decode)
    latents = torch.randn(2, 16, 8, 2, 2, requires_grad=True)
    first_frame_reward(codec, lambda pictures: pictures.mean((1, 2, 3)))(latents).sum().backward()
    assert shapes == [[2, 16, 1, 2, 2]]
    assert latents.grad is not None and (latents.grad[:, :, 1:] == 0).all() and (latents.grad[:, :3, 0] != 0).all()


@pytest.mark.parametrize(
    ("chosen", "reward", "message"),
    [
        ([1, 1], lambda x: x.sum(1), "distinct"),
        ([5], lambda x: x.sum(1), "of 0 to 4"),
        ([-1], lambda x: x.sum(1), "of 0 to 4"),
        ([1], lambda x: x.detach().sum(1), "does not depend"),
    ],
)
def test_what_has_no_gradient_is_refused(chosen, reward, message) -> None:
    with pytest.raises(ValueError, match=message):
        reward_gradient(Network(), torch.randn(2, 6, dtype=torch.float64), sampling_times(5), chosen, reward)
