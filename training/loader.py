"""The loader: the micro-batches of each step, from the plan of batches and the feed that encodes them."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.codec import LATENT_CHANNELS
from training.data.buckets import Bucket, Shape
from training.data.parts import parts
from training.data.plan import BatchPlan, Sample
from training.distributed.parallel import Parallel
from training.encode.encoder import Encoded, Feed
from training.encode.reading import BadClip
from training.objectives.flow_matching import logit_normal_sigma
from training.recipe import Recipe


@dataclass(frozen=True)
class MicroBatch:
    """Samples of one shape that a device takes at once. Tensors are on the device, ``sigma`` on the CPU.

    Attributes:
        samples: on the rank that brings the batch with the clips that are really in it, elsewhere as they were planned.
        bad: of each sample, the clips that were to be here and could not be read; on the rank that brings the batch.
        cut: captions with tokens beyond T5's window, and beyond CLIP's; on the rank that brings the batch.
        latents, noise: [B, 16, T, h, w].
        sigma: noise levels [B].
        tokens: text tokens [B, S, width].
        pooled: pooled text [B, width].
        last: whether it is the last of its step on this rank; all ranks have as many.
    """

    samples: Sequence[Sample]
    bad: Sequence[tuple[BadClip, ...]]
    cut: tuple[int, int]
    latents: Tensor
    noise: Tensor
    sigma: Tensor
    tokens: Tensor
    pooled: Tensor
    last: bool

    @property
    def buckets(self) -> list[Bucket]:
        """The bucket of each sample: two buckets may have one shape."""
        return [sample.bucket for sample in self.samples]

    @property
    def shape(self) -> Shape:
        return self.samples[0].shape


class Loader:
    """The steps of a run as one rank sees them.

    Args:
        feed: of the rank that leads its sequence group; the others have None.
        at_once: for each number of frames, how many samples a device takes; the same on all ranks.
        steps: those that are left to train.

    Attributes:
        waited_s: seconds for which this rank has waited for its feed so far.
    """

    def __init__(
        self, plan: BatchPlan, feed: Feed | None, parallel: Parallel, at_once: Mapping[int, int], steps: range
    ) -> None:
        self.steps, self.plan, self.waited_s = steps, plan, 0.0
        self._feed, self._parallel, self._at_once = feed, parallel, at_once

    def values(self, step: int) -> int:
        """Latent numbers of a step's whole batch, over all ranks: what its loss is the mean over."""
        return self.plan.values(step)

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """This rank's samples of a step. Waits for the feed, and raises what it raises, before the first."""
        began = time.perf_counter()
        encoded = self._feed.batch(step) if self._feed else None
        self.waited_s += time.perf_counter() - began
        parallel = self._parallel
        own = parts(self.plan, step, parallel.data_rank, parallel.layout.data_ranks, self._at_once)
        for number, part in enumerate(own, start=1):
            yield assemble(part, encoded, self.plan, parallel, last=number == len(own))


def assemble(
    samples: Sequence[Sample], encoded: Sequence[Encoded] | None, plan: BatchPlan, parallel: Parallel, last: bool
) -> MicroBatch:
    """A micro-batch on this rank's device. The leader of a sequence group brings what was encoded; the others get it.

    Noise and noise levels come from the samples' own seeds, which a clip that replaces another leaves as they are: the
    same on all ranks that share a sample, others on all that do not.
    """
    data = None
    bad: list[tuple[BadClip, ...]] = [() for _ in samples]
    cut = 0, 0
    if encoded is not None:
        by_index = {each.index: each for each in encoded}
        own = [by_index[sample.index] for sample in samples]
        data = [_stacked([getattr(each, name) for each in own], parallel) for name in ("latents", "tokens", "pooled")]
        bad = [each.bad for each in own]
        cut = sum(each.cut_t5 > 0 for each in own), sum(each.cut_clip > 0 for each in own)
        samples = [plan.replacement(s, len(b)) if b else s for s, b in zip(samples, bad, strict=True)]
    latents, tokens, pooled = parallel.share(data)
    sigmas, noises = zip(*(draws(sample, plan.job.recipe) for sample in samples), strict=True)
    noise = _stacked(noises, parallel).to(parallel.device, non_blocking=True)
    return MicroBatch(samples, bad, cut, latents, noise, torch.cat(sigmas), tokens, pooled, last)


def draws(sample: Sample, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """A sample's noise level [1] and noise [16, T, h, w], float32 on the CPU, from its seed alone."""
    generator = torch.Generator().manual_seed(sample.seed)
    sigma = logit_normal_sigma(1, generator, recipe.flow_shift)
    return sigma, torch.randn(LATENT_CHANNELS, *sample.shape.latent, generator=generator)


def _stacked(tensors: Sequence[Tensor], parallel: Parallel) -> Tensor:
    """The tensors as one, in pinned memory where a device reads it: from pageable memory no copy is asynchronous."""
    first = tensors[0]
    pinned = parallel.device.type != "cpu"
    return torch.stack(
        list(tensors), out=torch.empty((len(tensors), *first.shape), dtype=first.dtype, pin_memory=pinned)
    )
