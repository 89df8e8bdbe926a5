"""The loop: what one step of training is, from a batch to new weights (report, sections 5 and 7)."""

from collections.abc import Callable

import torch
from torch import Tensor

from models.transformer import ContentVTransformer
from training.checkpoint.checkpoints import State
from training.data.plan import BatchPlan
from training.distributed.parallel import Parallel, SharedFlag
from training.garbage import collect_after
from training.loader import Loader, MicroBatch
from training.objectives.flow_matching import noised, squared_errors, timestep_of
from training.observe.metrics import NotFinite
from training.observe.observer import Observer
from training.recipe import Recipe

NAMED_IN_ERRORS = 8


class TrainingDiverged(ArithmeticError):
    """A step's gradient was no number, and would be so again; the message names the step's clips."""


def train(
    state: State,
    loader: Loader,
    parallel: Parallel,
    recipe: Recipe,
    observer: Observer,
    stop_asked: Callable[[], bool],
) -> int:
    """Train the model of ``state`` on the loader's steps, or on fewer where any rank is asked to stop.

    Returns the number of the step that would be next.

    TrainingDiverged: the gradient of a step was no number.
    """
    model = state.model
    parameters = list(model.parameters())
    stopping = SharedFlag(parallel)
    for step in loader.steps:
        last = stopping.exchange(stop_asked()) or step == loader.steps[-1]

        values = loader.values(step)
        loss = torch.zeros((), device=parallel.device)
        for batch in loader.micro_batches(step):
            parallel.micro_step(model, last=batch.last)
            errors = sample_errors(model, batch, parallel)
            share = errors.sum() / values
            share.backward()
            loss += share.detach()
            observer.micro_batch(step, batch, errors)

        norm = parallel.clip_grad_norm(parameters, recipe.clip_norm)
        for group in state.optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step)
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.ema.update()

        observer.step(step, loss, norm, loader.waited_s)
        try:
            observer.after(step + 1, last)
        except NotFinite as problem:
            raise TrainingDiverged(_diverged(loader.plan, problem.step)) from problem
        collect_after(step + 1)
        if last:
            return step + 1
    return loader.steps.stop


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
        "Look at these clips; or go on from an earlier checkpoint with a lower learning rate or clip_norm, as a branch "
        "(branch_from)"
    )
