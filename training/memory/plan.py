"""The memory plan of a stage: what of each bucket fits on a device at once, and what would, where it does not.

A launch that cannot fit is refused here, with what would fit, instead of after hours in a queue. A device's GB are
10^9 bytes; GiB are 2^30.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from models.flops import TEXT_TOKENS, forward_flops, recomputed_flops
from training.data.buckets import ASPECTS, Bucket, Shape, shape_of
from training.distributed.layout import Layout
from training.memory.step import (
    MODES,
    Setup,
    StateBytes,
    Tokens,
    device_bytes,
    gathered,
    peak,
    state,
)
from training.recipe import Recipe

DURATIONS_S = (3, 4, 5, 6)  # what the curation cuts (report, section 3)
ALL_BUCKETS = [Bucket(duration, aspect) for duration in (0, *DURATIONS_S) for aspect in ASPECTS]
GB, GIB = 1e9, 2**30
MOST_SEQUENCE_RANKS = 64
NAMED_IN_ERRORS = 3


class DoesNotFit(ValueError):
    """A launch needs more memory than a device has; says of which buckets, how much, and what would fit."""


@dataclass(frozen=True)
class BucketPlan:
    """What a bucket's samples take.

    Attributes:
        tokens: of the video of a sample, all ranks together.
        rank_tokens: of video and text that one rank holds of it, padding included.
        forward_flops: of a sample.
        model_flops: of a sample in training, three forward passes: what MFU counts.
        training_flops: with what is computed again.
        sample_bytes: of a device's memory, for the activations of one sample at its peak.
        micro_batch: samples at once that fit; 0: none.
        peak_bytes: of a device with that many, or with one where none fits.
    """

    bucket: Bucket
    shape: Shape
    tokens: int
    text_tokens: int
    rank_tokens: int
    forward_flops: int
    model_flops: int
    training_flops: int
    sample_bytes: int
    micro_batch: int
    peak_bytes: int


@dataclass(frozen=True)
class MemoryPlan:
    """What a recipe takes on these devices.

    Attributes:
        memory_bytes: of a device.
        other_bytes: of it that something else takes, say the encoders of a trainer without encode servers.
        state: that stays from step to step.
        gathered_bytes: of weights in the dtype of computing, besides the state.
        buckets: images first, then videos by duration.
    """

    recipe: Recipe
    setup: Setup
    memory_bytes: int
    other_bytes: int
    state: StateBytes
    gathered_bytes: int
    buckets: tuple[BucketPlan, ...]

    @cached_property
    def at_once(self) -> dict[int, int]:
        """For each number of frames the samples at once that fit whatever the aspect ratio; 0: none."""
        classes: dict[int, int] = {}
        for each in self.buckets:
            frames = each.shape.frames
            classes[frames] = min(each.micro_batch, classes.get(frames, each.micro_batch))
        return classes

    def micro_batch(self, shape: Shape) -> int:
        """Samples at once for buckets of as many frames as ``shape``. KeyError: the recipe has none."""
        return self.at_once[shape.frames]

    @property
    def costliest(self) -> tuple[BucketPlan, ...]:
        """The bucket that takes most, for each duration."""
        most: dict[int, BucketPlan] = {}
        for each in self.buckets:
            known = most.setdefault(each.bucket.duration_s, each)
            if each.tokens > known.tokens:
                most[each.bucket.duration_s] = each
        return tuple(most.values())

    @property
    def fits(self) -> bool:
        return all(each.micro_batch for each in self.buckets)


def plan_memory(
    recipe: Recipe,
    setup: Setup,
    memory_bytes: float,
    *,
    text_tokens: int = TEXT_TOKENS,
    other_bytes: int = 0,
    buckets: Sequence[Bucket] | None = None,
) -> MemoryPlan:
    """What the recipe takes of devices with so much memory. It may not fit: ``check`` raises then.

    Args:
        buckets: those that the data have; by default all that curation makes.

    ValueError: a step's batch does not divide among the data ranks.
    """
    known = ALL_BUCKETS if buckets is None else buckets
    plans = (_bucket_plan(b, recipe, setup, int(memory_bytes), text_tokens, other_bytes) for b in used(recipe, known))
    return MemoryPlan(recipe, setup, int(memory_bytes), other_bytes, state(setup), gathered(setup), tuple(plans))


def used(recipe: Recipe, buckets: Sequence[Bucket]) -> Iterator[Bucket]:
    """The buckets that the recipe's phases may draw from."""
    kinds = {phase.data for phase in recipe.phases}
    images, videos = bool(kinds & {"images", "balanced"}), bool(kinds & {"videos", "balanced"})
    return (bucket for bucket in buckets if (videos if bucket.duration_s else images))


def _bucket_plan(
    bucket: Bucket, recipe: Recipe, setup: Setup, memory_bytes: int, text_tokens: int, other_bytes: int
) -> BucketPlan:
    shape = shape_of(bucket, recipe)
    flops = forward_flops(setup.config, shape.tokens, text_tokens)
    one = Tokens(1, shape.tokens, text_tokens)
    fitting = largest_micro_batch(setup, one, memory_bytes, samples_of_rank(bucket, recipe, setup.layout), other_bytes)
    ranks = setup.layout.sequence
    return BucketPlan(
        bucket,
        shape,
        shape.tokens,
        text_tokens,
        -(-shape.tokens // ranks) + -(-text_tokens // ranks),
        flops.total,
        flops.training(),
        flops.training() + recomputed_flops(setup.config, setup.recomputation, shape.tokens, text_tokens),
        peak(setup, one) - peak(setup, replace(one, samples=0)),
        fitting,
        device_bytes(setup, replace(one, samples=max(1, fitting)), memory_bytes) + other_bytes,
    )


def samples_of_rank(bucket: Bucket, recipe: Recipe, layout: Layout) -> int:
    """The samples of a step that the ranks of one sequence group train on. ValueError: they are not as many on all."""
    batch = batch_of(recipe, bucket)
    if batch % layout.data_ranks:
        kind = "videos" if bucket.duration_s else "images"
        raise ValueError(f"a batch of {batch} {kind} does not divide among {layout.data_ranks} data ranks")
    return batch // layout.data_ranks


def largest_micro_batch(setup: Setup, one: Tokens, memory_bytes: int, most: int, other_bytes: int = 0) -> int:
    """The most samples like ``one`` that a device takes at once, up to ``most``; 0 where not even one fits."""
    fits, fails = 0, most + 1
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if device_bytes(setup, replace(one, samples=middle), memory_bytes) + other_bytes <= memory_bytes:
            fits = middle
        else:
            fails = middle
    return fits


def check(planned: MemoryPlan) -> None:
    """DoesNotFit where a bucket of the plan does not fit: names it, by how much, and what would make all fit."""
    failing = [each for each in planned.buckets if not each.micro_batch]
    if not failing:
        return
    failing.sort(key=lambda each: -each.peak_bytes)
    worst, memory = failing[0], planned.memory_bytes
    named = ", ".join(
        f"{each.bucket} by {(each.peak_bytes - memory) / GIB:.1f} GiB" for each in failing[:NAMED_IN_ERRORS]
    )
    more = f" and {len(failing) - NAMED_IN_ERRORS} more buckets" if len(failing) > NAMED_IN_ERRORS else ""
    setup = planned.setup
    found = remedies(planned)
    help_ = (
        "What fits: " + "; or ".join(_said(setup, other.setup) for other in found)
        if found
        else f"No layout of {setup.layout.world} ranks fits, recomputing all or not"
    )
    raise DoesNotFit(
        f"recipe {planned.recipe.name} does not fit devices of {memory / GB:g} GB ({memory / GIB:.1f} GiB): "
        f"too large are {named}{more}. {worst.bucket} takes {worst.peak_bytes / GIB:.1f} GiB with one sample, of which "
        f"{planned.state.total / GIB:.1f} are the state, with {setting(setup)}. {help_}"
    )


def remedies(planned: MemoryPlan) -> list[MemoryPlan]:
    """Plans with the fewest changes of recomputation, shard group and sequence group that fit, each by the least."""
    setup, world = planned.setup, planned.setup.layout.world
    divisors = [n for n in range(1, world + 1) if world % n == 0]
    now = setup.recompute, setup.recompute_every
    policies = [now, *((mode, 1) for mode in MODES[MODES.index(setup.recompute) :] if (mode, 1) != now)]
    shards = [n for n in divisors if n >= setup.layout.shard]
    sequences = [n for n in divisors if n == setup.layout.sequence or setup.layout.sequence < n <= MOST_SEQUENCE_RANKS]
    found: dict[tuple[bool, ...], MemoryPlan] = {}
    choices = sorted(
        product(range(len(policies)), range(len(shards)), range(len(sequences))), key=lambda c: (sum(c), c)
    )
    for choice in choices:
        changed = tuple(step > 0 for step in choice)
        if any(all(here or not there for here, there in zip(changed, known, strict=True)) for known in found):
            continue  # fewer of the same changes do
        (mode, every), shard, sequence = policies[choice[0]], shards[choice[1]], sequences[choice[2]]
        with suppress(ValueError):  # groups that cross, or a batch that does not divide
            layout = Layout(world, shard, sequence)
            other = replace(setup, layout=layout, recompute=mode, recompute_every=every)
            if not _fits(planned, other):
                continue
            found[changed] = plan_memory(
                planned.recipe,
                other,
                planned.memory_bytes,
                text_tokens=planned.buckets[0].text_tokens,
                other_bytes=planned.other_bytes,
                buckets=[each.bucket for each in planned.buckets],
            )
    fewest = min((sum(changed) for changed in found), default=0)
    return [other for changed, other in found.items() if sum(changed) == fewest]


def _fits(planned: MemoryPlan, setup: Setup) -> bool:
    """Whether one sample of each of the plan's buckets fits with another setup."""
    free = planned.memory_bytes - planned.other_bytes
    ones = {Tokens(1, each.tokens, each.text_tokens) for each in planned.buckets}
    return all(device_bytes(setup, one, planned.memory_bytes) <= free for one in ones)


def _said(before: Setup, after: Setup) -> str:
    changes = {
        f"recompute {after.recompute}": before.recomputation != after.recomputation,
        f"shard groups of {after.layout.shard}": before.layout.shard != after.layout.shard,
        f"sequence groups of {after.layout.sequence}": before.layout.sequence != after.layout.sequence,
    }
    return " with ".join(change for change, made in changes.items() if made)


def setting(setup: Setup) -> str:
    layout = setup.layout
    return (
        f"{layout.world} ranks, shard groups of {layout.shard}, sequence groups of {layout.sequence}, {setup.dtype}, "
        f"recompute {setup.recompute}{f' every {setup.recompute_every} blocks' if setup.recompute_every > 1 else ''}"
    )


def batch_of(recipe: Recipe, bucket: Bucket) -> int:
    """The samples of a step, over all ranks, that has such buckets."""
    return (recipe.video_batch if bucket.duration_s else recipe.image_batch) or 0
