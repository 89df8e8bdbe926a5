"""RLHF by the gradient of a reward through k steps of the sampler (report, section 6.2, equation 3 and Figure 8).

Equation 3 writes a sample as a sum, ``x1 = x0 + sum_i dt_i v(sg(x_i), t_i)``, with the gradient stopped on the model's
input at every step and kept in the model only at k chosen ones. So no gradient runs from step to step, and ::

    dR/dtheta = sum over chosen i of  dt_i (dv/dtheta at (x_i, t_i))^T dR/dx1

is computed in two passes: sample without a graph and keep the k inputs; take dR/dx1 of the finished sample; run each
chosen step again with a graph, alone, and send ``dt_i dR/dx1`` back through it. What is held is k inputs and the graph
of one step, whatever N and k are. The result is what autograd gives on the sum, without the graphs of k steps.

Time is the report's: 0 is noise, 1 is data, and the velocity is ``data - noise``. ``report_velocity`` turns a velocity
in the sign of the SD3 weights into it. Nothing is rescaled by N / k: in expectation over random choices the gradient is
k / N of that of all steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.codec import VideoCodec
from models.sampler import shift_sigma

Velocity = Callable[[Tensor, Tensor], Tensor]
Choice = Literal["random", "last", "tail", "uniform"]

TAIL = 0.25  # the share of the steps that "tail" draws from


@dataclass(frozen=True)
class Rollout:
    """A sample and its reward: ``x1`` as the sampler gives it, and ``reward`` [B] (or a scalar), without a graph."""

    x1: Tensor
    reward: Tensor


def sampling_times(steps: int, shift: float = 17.0) -> Tensor:
    """The times of a sampling run, float64 [steps + 1], from 0 (noise) to 1: evenly spaced sigmas, each shifted once.

    ValueError where ``steps`` or ``shift`` is not positive.
    """
    if steps < 1 or not shift > 0:
        raise ValueError(f"sampling needs at least one step and a positive shift, not {steps} steps and shift {shift}")
    return 1 - shift_sigma(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)


def report_velocity(predict: Velocity) -> Velocity:
    """The report's velocity of a model in the sign of SD3, which ``predict(x, sigma)`` calls: ``sigma = 1 - t``."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return -predict(x, 1 - t)

    return velocity


def chosen_steps(choice: Choice, steps: int, count: int, generator: torch.Generator | None = None) -> list[int]:
    """Which of the sampler's steps carry a gradient, ascending.

    Args:
        choice: "random" draws among all (the report's); "last" takes the last ones (DRaFT-K); "tail" draws among the
            last quarter, or the last ``count`` where that is more (as ReFL does); "uniform" takes equal intervals.
        generator: draws; every rank that works on one sample needs the same state.

    Raises:
        ValueError: there are not so many steps.
    """
    if not 1 <= count <= steps:
        raise ValueError(f"of {steps} steps between 1 and {steps} can carry a gradient, not {count}")
    if choice == "uniform":
        return [(2 * i + 1) * steps // (2 * count) for i in range(count)]
    if choice == "last":
        return list(range(steps - count, steps))
    if choice not in ("random", "tail"):
        raise ValueError(f"steps are chosen at random, last, tail or uniform, not {choice!r}")
    among = steps if choice == "random" else max(count, round(TAIL * steps))
    drawn = torch.randperm(among, generator=generator)[:count]
    return sorted(steps - among + int(step) for step in drawn)


def reward_gradient(
    velocity: Velocity,
    noise: Tensor,
    times: Sequence[float] | Tensor,
    chosen: Sequence[int],
    reward: Callable[[Tensor], Tensor],
    *,
    weight: float = 1.0,
    micro_step: Callable[[bool], None] | None = None,
) -> Rollout:
    """Sample, judge, and add the gradient of ``weight * sum(reward)`` to the ``.grad`` of what ``velocity`` depends on.

    An optimiser descends, so training gives a negative ``weight``: -1 / the samples of the whole step, over all ranks.

    Args:
        velocity: ``velocity(x, t)`` in the report's sign, of the shape of ``x``; ``t`` is a number between 0 and 1 as a
            tensor without axes. It is called N times without a graph, then once with one for each chosen step.
        noise: where sampling starts, x0, of any shape and floating-point dtype, in which the sample is summed up.
        times: N + 1 of them, ascending (see ``sampling_times``).
        chosen: which of the N steps carry a gradient.
        reward: the reward of the finished sample, [B] or a scalar, differentiable; larger is better.
        micro_step: called before each backward pass with whether it is the last, for what shards gradients.

    Raises:
        ValueError: chosen steps are not distinct steps of the sampler, or the reward does not depend on the sample.
    """
    times = torch.as_tensor(times, dtype=torch.float64).cpu()
    steps = len(times) - 1
    if len(set(chosen)) != len(chosen) or not set(chosen) <= set(range(steps)):
        raise ValueError(f"the chosen steps {list(chosen)} are not distinct steps of 0 to {steps - 1}")
    exact = torch.promote_types(noise.dtype, torch.float32)
    at = times.to(exact).to(noise.device)  # not every device knows float64
    kept: dict[int, Tensor] = {}
    x1 = noise.detach()
    with torch.no_grad():
        for step in range(steps):
            if step in chosen:
                kept[step] = x1
            x1 = x1 + float(times[step + 1] - times[step]) * velocity(x1, at[step]).to(x1.dtype)
    rewards, towards = _judged(x1, reward)
    for number, step in enumerate(sorted(kept), start=1):
        if micro_step:
            micro_step(number == len(kept))
        moved = velocity(kept[step], at[step])
        moved.backward((weight * float(times[step + 1] - times[step]) * towards).to(moved.dtype))
        del moved  # before the next step makes its graph
    return Rollout(x1, rewards)


def first_frame_reward(codec: VideoCodec, reward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A reward of latents from one of pictures: only the first frame is decoded, from the first latent frame alone.

    Args:
        reward: takes RGB pictures [B, 3, H, W] in [0, 1].
    """

    def of_latents(latents: Tensor) -> Tensor:
        frame = codec.decode_first_frame(latents[:, :, :1])[:, :, 0]
        return reward((frame + 1) / 2)

    return of_latents


def _judged(x1: Tensor, reward: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The rewards of a sample, and the gradient of their sum with respect to it."""
    with torch.enable_grad():
        leaf = x1.detach().requires_grad_()
        rewards = reward(leaf)
        if not rewards.requires_grad:
            raise ValueError("the reward does not depend on the sample in a way that has a gradient")
        (towards,) = torch.autograd.grad(rewards.sum(), leaf)
    return rewards.detach(), towards
