"""The sampler: from noise to latents along the flow that the transformer has learned (report, section 5.1).

First-order Euler in sigma with classifier-free guidance. The convention is that of the SD3 weights: ``x = (1 - sigma)
* data + sigma * noise``, the transformer predicts ``noise - data``, and its time input is ``1000 * sigma``. The report
counts the other way: its ``t`` is ``1 - sigma``, its velocity ``data - noise``.

Sigmas, latents and the guided velocity are float32 whatever precision the transformer computes in: near the noise, a
step of shift 17 moves sigma by 0.001, which bfloat16 cannot tell from nothing.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.text_encoders import TextEmbedding

TIME_SCALE = 1000.0

# Called after each step with the number of steps that are done, and of all.
Progress = Callable[[int, int], None]


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """The flow shift ``s * sigma / (1 + (s - 1) * sigma)`` (Esser et al., SD3): above 1, more steps near the noise."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def flow_sigmas(steps: int, shift: float = 17.0) -> Tensor:
    """The noise levels of a sampling run, float32 [steps + 1], from 1 (noise) to 0 (data).

    ``steps`` evenly spaced levels, each shifted once, and the 0 at which the last step arrives. ValueError where
    ``steps`` or ``shift`` is not positive.
    """
    if steps < 1 or not shift > 0:
        raise ValueError(f"sampling needs at least one step and a positive shift, not {steps} steps and shift {shift}")
    even = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return shift_sigma(even, shift).to(torch.float32)


def seeded_noise(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Gaussian noise, float32 [len(seeds), *shape] on the CPU; each sample is drawn from a generator of its own seed.

    So the noise of a video is the same bits on every device, whatever batch it is in.
    """
    noise = [torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise)


def guided_velocity(
    transformer: Callable[..., Tensor],
    latents: Tensor,
    sigma: Tensor,
    text: TextEmbedding,
    negative: TextEmbedding | None,
    guidance: float,
) -> Tensor:
    """The velocity ``uncond + guidance * (cond - uncond)`` at noise level ``sigma``, float32 like ``latents``.

    The transformer reads latents in the dtype of ``text``, and its time in float32. With guidance 1 there is nothing to
    guide away from, and ``negative`` is not looked at. The two predictions are made one after the other: joined
    into one batch they are the same work, in twice the memory.
    """
    timestep = (TIME_SCALE * sigma).to(latents.device, torch.float32).expand(len(latents))
    seen = latents.to(text.tokens.dtype)

    def predict(condition: TextEmbedding) -> Tensor:
        return transformer(
            hidden_states=seen,
            encoder_hidden_states=condition.tokens,
            pooled_projections=condition.pooled,
            timestep=timestep,
        ).to(torch.float32)

    conditional = predict(text)
    if guidance == 1.0:
        return conditional
    if negative is None:
        raise ValueError(f"guidance {guidance} needs the embedding of a negative prompt (it may be of an empty one)")
    unconditional = predict(negative)
    return unconditional + guidance * (conditional - unconditional)


def euler(
    velocity: Callable[[Tensor, Tensor], Tensor], latents: Tensor, sigmas: Tensor, progress: Progress | None = None
) -> Tensor:
    """Follow ``velocity(latents, sigma)`` from noise at ``sigmas[0]`` to ``sigmas[-1]``, one Euler step an interval."""
    steps = len(sigmas) - 1
    for step in range(steps):
        latents = latents + (sigmas[step + 1] - sigmas[step]).item() * velocity(latents, sigmas[step])
        if progress:
            progress(step + 1, steps)
    return latents


@torch.no_grad()
def sample(
    transformer: Callable[..., Tensor],
    text: TextEmbedding,
    negative: TextEmbedding | None,
    shape: Sequence[int],
    *,
    seeds: Sequence[int],
    steps: int = 50,
    shift: float = 17.0,
    guidance: float = 6.0,
    progress: Progress | None = None,
) -> Tensor:
    """Latents [B, *shape], float32, for B prompts and their seeds.

    Args:
        transformer: Called as ``ContentVTransformer``; a wrapped or sharded one will do.
        text: The prompts' embedding, batch B, on the device and in the dtype that the transformer works in.
        negative: What to guide away from, batch 1 or B; None only with guidance 1.
        shape: Of one sample: (16, T, H/8, W/8), as ``latent_shape`` gives it.
        seeds: One a prompt. The same seed starts from the same noise in whatever batch.
        progress: Called after each step.

    Raises ValueError where batch sizes do not agree.
    """
    batch = len(seeds)
    if len(text.tokens) != batch:
        raise ValueError(f"{len(text.tokens)} prompts and {batch} seeds: each prompt needs a seed of its own")
    if negative is not None:
        if len(negative.tokens) not in (1, batch):
            raise ValueError(f"{len(negative.tokens)} negative prompts for {batch} prompts: give one, or one each")
        negative = TextEmbedding(
            negative.tokens.expand(batch, -1, -1).contiguous(), negative.pooled.expand(batch, -1).contiguous()
        )
    latents = seeded_noise(shape, seeds).to(text.tokens.device)

    def velocity(at: Tensor, sigma: Tensor) -> Tensor:
        return guided_velocity(transformer, at, sigma, text, negative, guidance)

    return euler(velocity, latents, flow_sigmas(steps, shift), progress)
