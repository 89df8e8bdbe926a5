"""The loop: what one step of training is, from a batch to new weights (report, sections 5 and 7)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from models.codec import LATENT_CHANNELS
from models.transformer import ContentVTransformer
from training.checkpoint.checkpoints import State
from training.data.buckets import Bucket, Shape
from training.data.plan import BatchPlan, Sample
from training.distributed.parallel import Parallel, SharedFlag
from training.encode.encoder import Encoded, Feed
from training.objectives.flow_matching import logit_normal_sigma, noised, squared_errors, timestep_of
from training.observe.lineage import Lineage
from training.observe.metrics import Metrics, NotFinite
from training.recipe import Recipe

NAMED_IN_ERRORS = 8


class TrainingDiverged(ArithmeticError):
    """A step's gradient was no number, and would be so again; the message names the step's clips."""


@dataclass(frozen=True)
class MicroBatch:
    """Samples of one bucket that a device takes at once. Tensors are on the device, ``sigma`` on the CPU."""

    bucket: Bucket
    shape: Shape
    latents: Tensor
    noise: Tensor
    sigma: Tensor
    tokens: Tensor
    pooled: Tensor


def train(
    state: State,
    steps: range,
    plan: BatchPlan,
    feed: Feed | None,
    parallel: Parallel,
    at_once: Mapping[int, int],
    metrics: Metrics,
    lineage: Lineage,
    stop_asked: Callable[[], bool],
    after_step: Callable[[int, bool], None],
) -> int:
    """Train the model of ``state`` on ``steps`` of the plan, or fewer where any rank is asked to stop.

    Returns the number of the step that would be next.

    Args:
        feed: of the rank that leads its sequence group; the others have None.
        at_once: for each number of frames, how many samples a device takes.
        after_step: told the number of finished steps, and whether they are the last, to log, to save and to sample.

    Raises:
        TrainingDiverged: the gradient of a step was no number.
    """
    recipe, model = plan.job.recipe, state.model
    parameters = list(model.parameters())
    stopping = SharedFlag(parallel)
    for step in steps:
        last = stopping.exchange(stop_asked()) or step == steps[-1]

        with metrics.waiting():
            encoded = feed.batch(step) if feed else None
        samples = plan.samples(step, parallel.data_rank, parallel.layout.data_ranks)
        parts = list(micro_batches(samples, recipe.bucket_run, at_once))
        values = plan.values(step)

        loss = torch.zeros((), device=parallel.device)
        for number, part in enumerate(parts, start=1):
            batch = assemble(part, encoded, parallel, recipe)
            parallel.micro_step(model, last=number == len(parts))
            errors = sample_errors(model, batch, parallel)
            share = errors.sum() / values
            share.backward()
            loss += share.detach()
            metrics.add(batch.bucket, batch.shape, batch.sigma, batch.tokens.shape[1], errors)
            lineage.add(step, part, batch.sigma)

        norm = parallel.clip_grad_norm(parameters, recipe.clip_norm)
        for group in state.optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step)
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.ema.update()

        metrics.end_step(step, loss, norm)
        try:
            after_step(step + 1, last)
        except NotFinite as problem:
            raise TrainingDiverged(_diverged(plan, problem.step)) from problem
        if last:
            return step + 1
    return steps.stop


def micro_batches(samples: Sequence[Sample], run: int, at_once: Mapping[int, int]) -> Iterator[list[Sample]]:
    """A rank's samples, a run from one bucket after the other, as many at once as fit; every rank has as many parts."""
    for _, same in groupby(samples, key=lambda sample: sample.index // run):
        together = list(same)
        most = at_once[together[0].shape.frames]
        for first in range(0, len(together), most):
            yield together[first : first + most]


def assemble(
    samples: Sequence[Sample], encoded: Sequence[Encoded] | None, parallel: Parallel, recipe: Recipe
) -> MicroBatch:
    """A micro-batch on this rank's device, of a sequence group's leader, who alone has what was encoded.

    Noise and noise levels come from the samples' own seeds: the same on all ranks that share a sample, others on all
    that do not.
    """
    data = None
    if encoded is not None:
        by_index = {each.index: each for each in encoded}
        own = [by_index[sample.index] for sample in samples]
        data = [torch.stack([getattr(each, name) for each in own]) for name in ("latents", "tokens", "pooled")]
    latents, tokens, pooled = parallel.share(data)
    sigmas, noises = zip(*(draws(sample, recipe) for sample in samples), strict=True)
    noise = torch.stack(noises).to(parallel.device, non_blocking=True)
    return MicroBatch(samples[0].bucket, samples[0].shape, latents, noise, torch.cat(sigmas), tokens, pooled)


def draws(sample: Sample, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """A sample's noise level [1] and noise [16, T, h, w], float32 on the CPU, from its seed alone."""
    generator = torch.Generator().manual_seed(sample.seed)
    sigma = logit_normal_sigma(1, generator, recipe.flow_shift)
    return sigma, torch.randn(LATENT_CHANNELS, *sample.shape.latent, generator=generator)


def sample_errors(model: ContentVTransformer, batch: MicroBatch, parallel: Parallel) -> Tensor:
    """Each sample's summed squared error of the predicted velocity, over this rank's tokens: float32 [B]."""
    sigma = batch.sigma.to(parallel.device, non_blocking=True)
    noisy = noised(batch.latents, batch.noise, sigma)
    prediction = parallel.predict(model, noisy, batch.tokens, batch.pooled, timestep_of(sigma))
    return squared_errors(prediction, parallel.own(batch.noise - batch.latents))


def _diverged(plan: BatchPlan, step: int) -> str:
    samples = plan.samples(step)
    named = [f"{s.clip.clip_id} ({s.bucket}, {s.clip.source_uri})" for s in samples[:NAMED_IN_ERRORS]]
    more = f" and {len(samples) - len(named)} more" if len(samples) > len(named) else ""
    return (
        f"the gradient of step {step} is not finite, so training cannot go on; it trained on {', '.join(named)}{more}. "
        "Look at these clips, or lower the learning rate"
    )
