"""Which clips are trained on in which step: a pure function of manifest, recipe and seed (report, section 5.3).

Nothing is drawn as training goes, so there is no state to save: a run that is resumed, on however many ranks, goes on
with the very samples it would have had, an encode server on another machine knows them too, and so does the lineage.

- A step trains on images or on videos, as its phase says, and on one *cost class*: buckets of as many frames, whose
  tokens differ by the rounding of sides alone. So no rank waits for another that has the longer video.
- A cost class has its share of the steps in proportion to its clips, at least one where there are steps enough. Its
  clips are drawn without replacement, epoch after epoch, in runs from one bucket, each of which a rank can batch. The
  last run of a bucket in an epoch is filled up with clips of the same bucket: no bucket is too small to be trained on.
- Clips that the recipe does not take, too small or too short, are in no step (``selection``).
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
from pydantic import BaseModel, ConfigDict

from models.codec import LATENT_CHANNELS
from training.data.buckets import Bucket, Shape, shape_of
from training.data.manifest import Clip, Manifest, ManifestError, Rows
from training.data.permutation import permuted
from training.data.selection import select
from training.recipe import Kind, Recipe, Seed

DRAWS = 2**64

_log = logging.getLogger(__name__)


class Job(BaseModel):
    """What decides a run's batches: two parties that agree on it agree on every sample."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Recipe
    seed: Seed
    manifest: str


@dataclass(frozen=True)
class Sample:
    """One clip as one sample of one step, and all that decides its tensors.

    Attributes:
        index: place in the step's whole batch, over all ranks.
        caption: empty where it was dropped, for guidance.
        seed: of the sample's noise and timestep, 63 bits.
        row: number of the clip's row in the manifest.
    """

    index: int
    clip: Clip
    bucket: Bucket
    shape: Shape
    caption: str
    seed: int
    row: int

    @property
    def key(self) -> str:
        """Hash of all that decides the sample's pixels at one frame rate: source, clip, span, crop, sizes and shape.

        Two manifests may name one clip and crop it differently, so ``clip_id`` alone says less than this.
        """
        clip = replace(self.clip, caption_short="", caption_detailed="")  # text decides no pixel
        return hashlib.sha256(repr((astuple(clip), astuple(self.shape))).encode()).hexdigest()[:32]


class CostClass:
    """The buckets of as many frames, and the order in which their clips are drawn.

    The order is a permutation of which any place can be asked for, so an epoch of a hundred million clips begins as
    fast as one of a hundred, and takes no memory.
    """

    def __init__(self, rows: dict[Bucket, Rows], run: int, key: Sequence[int]) -> None:
        self.buckets = list(rows)
        self.clips = sum(map(len, rows.values()))
        self._rows, self._run, self._key = list(rows.values()), run, key
        self._ends = np.cumsum([-(-len(own) // run) for own in self._rows])  # of each bucket's runs in an epoch
        self.runs_in_epoch = int(self._ends[-1])

    def runs(self, first: int, count: int) -> Iterator[tuple[Bucket, Rows]]:
        """``count`` runs of the endless sequence, from number ``first``: a bucket and rows of it each."""
        for epoch, bucket, nth in self._drawn(first, count):
            rows = self._rows[bucket]
            places = np.arange(nth * self._run, (nth + 1) * self._run) % len(rows)  # repeats the first to fill up
            key = _hashed(*self._key, epoch, str(self.buckets[bucket]))
            yield self.buckets[bucket], rows[permuted(places, len(rows), key)]

    def buckets_of(self, first: int, count: int) -> list[Bucket]:
        """The buckets of the same runs."""
        return [self.buckets[bucket] for _, bucket, _ in self._drawn(first, count)]

    def _drawn(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """For each run its epoch, its bucket's number, and its number among the bucket's runs of the epoch."""
        while count:
            epoch, place = divmod(first, self.runs_in_epoch)
            here = min(count, self.runs_in_epoch - place)
            numbers = permuted(np.arange(place, place + here), self.runs_in_epoch, _hashed(*self._key, epoch))
            buckets = np.searchsorted(self._ends, numbers, side="right")
            for bucket, number in zip(buckets.tolist(), numbers.tolist(), strict=True):
                yield epoch, bucket, number - (int(self._ends[bucket - 1]) if bucket else 0)
            first, count = first + here, count - here


class BatchPlan:
    """The samples of every step of a run.

    Attributes:
        selection: the clips that the recipe takes, and what it leaves out.
        rows: for each bucket the numbers of the rows that it takes, ascending.
        unvisited: buckets that no step draws from, as there are more cost classes than steps; empty in real runs.

    Raises:
        ManifestError: the recipe trains on images or on videos, and the manifest has none that it takes.
    """

    def __init__(self, manifest: Manifest, job: Job) -> None:
        if manifest.fingerprint != job.manifest:
            raise ManifestError(f"the job is for manifest {job.manifest}, and this is {manifest.fingerprint}")
        self.job, self.manifest, self.selection = job, manifest, select(manifest, job.recipe)
        self.rows = self.selection.rows
        self._kinds = [_kind_of_step(phase.data, i) for phase in job.recipe.phases for i in range(phase.steps)]
        places: dict[Kind, int] = {"images": 0, "videos": 0}
        self._places = np.zeros(len(self._kinds), np.int64)  # of a step among those of its kind
        for step, kind in enumerate(self._kinds):
            self._places[step] = places[kind]
            places[kind] += 1
        self._classes: dict[Kind, list[CostClass]] = {}
        self._order: dict[Kind, tuple[Rows, Rows]] = {}
        self.unvisited: list[Bucket] = []
        for number, (kind, steps) in enumerate(places.items()):
            if steps:
                self._classes[kind] = self._cost_classes(kind, number)
                self._order[kind] = self._class_of_steps(kind, steps, number)
        if self.unvisited:
            _log.warning("too few steps for all buckets; not trained on: %s", ", ".join(map(str, self.unvisited)))

    @property
    def steps(self) -> int:
        return len(self._kinds)

    def batch_size(self, step: int) -> int:
        """Samples of a step over all ranks."""
        return self.job.recipe.batch(self._kinds[step])

    def run(self, step: int) -> int:
        """Samples in a row of a step's batch that come from one bucket."""
        return self.job.recipe.run(self._kinds[step])

    def samples(self, step: int, data_rank: int = 0, data_ranks: int = 1) -> list[Sample]:
        """The samples of a step that one data rank trains on, in order; every rank has as many.

        Raises:
            ValueError: the batch does not divide among so many ranks (``check_ranks`` says so for the whole run).
        """
        run, share = self.run(step), _share(self.batch_size(step), data_ranks)
        first, last = data_rank * share // run, -(-(data_rank + 1) * share // run)
        chosen, before = self._place(step)
        drawn = [(bucket, row) for bucket, rows in chosen.runs(before + first, last - first) for row in rows.tolist()]
        skipped = data_rank * share - first * run
        own = drawn[skipped : skipped + share]
        return [self._sample(step, index, *one) for index, one in enumerate(own, start=data_rank * share)]

    def shapes(self, step: int) -> list[Shape]:
        """The shape of each run of the whole batch of a step, in its order."""
        chosen, before = self._place(step)
        buckets = chosen.buckets_of(before, self.batch_size(step) // self.run(step))
        return [shape_of(bucket, self.job.recipe) for bucket in buckets]

    def replacement(self, sample: Sample, attempt: int) -> Sample:
        """The sample with another clip, for one that cannot be read: of the same bucket, shape, place and seed.

        A pure function: every rank and every encode server takes the same clip instead. Attempts 1, 2, ... take the
        bucket's clips in the order of their rows, from the sample's own on and on from the first after the last.

        Raises:
            IndexError: the bucket has no clip that was not tried before.
            ValueError: ``attempt`` is less than 1, or the sample's clip is none of its bucket.
        """
        if attempt < 1:
            raise ValueError(f"attempts are counted from 1, and this is {attempt}")
        rows = self.rows.get(sample.bucket, np.zeros(0, np.int64))
        place = int(np.searchsorted(rows, sample.row))
        if place == len(rows) or rows[place] != sample.row:
            raise ValueError(f"clip {sample.clip.clip_id} is none of bucket {sample.bucket}")
        if attempt >= len(rows):
            raise IndexError(f"bucket {sample.bucket} has {len(rows)} clips, and {attempt} of them cannot be read")
        row = int(rows[(place + attempt) % len(rows)])
        clip, name = self.manifest.clip(row), self.job.recipe.caption
        caption = getattr(clip, name) if sample.caption == getattr(sample.clip, name) else ""  # else it was dropped
        return replace(sample, clip=clip, caption=caption, row=row)

    def values(self, step: int) -> int:
        """Latent numbers of the whole batch of a step: what its loss is the mean over."""
        return self.run(step) * sum(map(values, self.shapes(step)))

    def check_ranks(self, data_ranks: int) -> None:
        """ValueError unless the recipe's batches divide among so many data ranks."""
        for kind in self.job.recipe.kinds:
            _share(self.job.recipe.batch(kind), data_ranks)

    def _place(self, step: int) -> tuple[CostClass, int]:
        """The cost class of a step, and how many runs earlier steps took of it."""
        kind, recipe = self._kinds[step], self.job.recipe
        order, earlier = self._order[kind]
        place = self._places[step]
        return self._classes[kind][order[place]], int(earlier[place]) * (recipe.batch(kind) // recipe.run(kind))

    def _sample(self, step: int, index: int, bucket: Bucket, row: int) -> Sample:
        recipe, clip = self.job.recipe, self.manifest.clip(row)
        dropped = _hashed(self.job.seed, step, index, "caption") < recipe.caption_drop * DRAWS
        caption = "" if dropped else getattr(clip, recipe.caption)
        seed = _hashed(self.job.seed, step, index, "noise") >> 1
        return Sample(index, clip, bucket, shape_of(bucket, recipe), caption, seed, row)

    def _cost_classes(self, kind: Kind, number: int) -> list[CostClass]:
        recipe = self.job.recipe
        by_frames: dict[int, dict[Bucket, Rows]] = {}
        for bucket, rows in self.rows.items():
            if bool(bucket.duration_s) == (kind == "videos"):
                by_frames.setdefault(shape_of(bucket, recipe).frames, {})[bucket] = rows
        if not by_frames:
            reasons = self.selection.reasons(videos=kind == "videos")
            said = ": " + ", ".join(f"{count} are {reason}" for reason, count in reasons.items()) if reasons else ""
            raise ManifestError(f"recipe {recipe.name} trains on {kind}, and the manifest has none that it takes{said}")
        return [CostClass(own, recipe.run(kind), (self.job.seed, number, f)) for f, own in sorted(by_frames.items())]

    def _class_of_steps(self, kind: Kind, steps: int, number: int) -> tuple[Rows, Rows]:
        """For every step of a kind its cost class, and how many earlier ones have the same."""
        classes = self._classes[kind]
        shares = quotas(steps, [each.clips for each in classes])
        self.unvisited += [b for each, share in zip(classes, shares, strict=True) if not share for b in each.buckets]
        order = np.repeat(np.arange(len(classes)), shares)
        order = order[np.random.default_rng([self.job.seed, number]).permutation(steps)]
        earlier = np.zeros(steps, np.int64)
        for chosen in range(len(classes)):
            own = order == chosen
            earlier[own] = np.arange(np.count_nonzero(own))
        return order, earlier


def values(shape: Shape) -> int:
    """Numbers in the latents of a sample."""
    frames, height, width = shape.latent
    return LATENT_CHANNELS * frames * height * width


def quotas(steps: int, sizes: Sequence[int]) -> list[int]:
    """``steps`` shared out in proportion to ``sizes``, at least one each where there are enough; the sum is exact."""
    least = 1 if steps >= len(sizes) else 0
    exact = [(steps - least * len(sizes)) * size / sum(sizes) for size in sizes]
    shares = [least + int(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (int(exact[i]) - exact[i], i))
    for i in by_remainder[: steps - sum(shares)]:
        shares[i] += 1
    return shares


def _kind_of_step(data: str, step: int) -> Kind:
    """What step number ``step`` of a phase, from 0, trains on: balanced phases begin with videos and take turns."""
    if data == "balanced":
        return "images" if step % 2 else "videos"
    return "images" if data == "images" else "videos"


def _share(size: int, data_ranks: int) -> int:
    """A rank's samples of a step; all ranks have as many."""
    share, rest = divmod(size, data_ranks)
    if rest:
        raise ValueError(
            f"a batch of {size} samples does not divide evenly among {data_ranks} ranks of data; change the number of "
            "ranks, or the recipe's batch sizes"
        )
    return share


def _hashed(*key: int | str) -> int:
    """64 bits, the same for the same key everywhere."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big")
