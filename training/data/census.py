"""What a stage trains on, counted: clips, what is left out and why, what has no words, and what is blown up."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from training.data.buckets import Bucket, shape_of
from training.data.local_copy import BLANK
from training.data.plan import BatchPlan


@dataclass(frozen=True)
class BucketCount:
    """What a stage takes of one bucket.

    Attributes:
        clips: those that are trained on.
        left_out: why others are not, and how many.
        without_caption: clips whose caption, the recipe's, says nothing.
        enlarged: clips whose crop is smaller than the shape that it is made to.
        most_enlarged: by how much at most, as a factor; 1 where none is.
    """

    bucket: Bucket
    clips: int
    left_out: dict[str, int]
    without_caption: int
    enlarged: int
    most_enlarged: float


def census(plan: BatchPlan) -> list[BucketCount]:
    """Counts of every bucket that the recipe's phases draw from, images first. Reads the index alone, no row."""
    wanted = plan.job.recipe.kinds
    return [
        _counted(plan, bucket)
        for bucket in plan.manifest.rows
        if ("videos" if bucket.duration_s else "images") in wanted
    ]


def _counted(plan: BatchPlan, bucket: Bucket) -> BucketCount:
    manifest, recipe = plan.manifest, plan.job.recipe
    kept = plan.rows.get(bucket, np.zeros(0, np.int64))
    places = np.searchsorted(manifest.rows[bucket], kept)  # both ascend
    blank = manifest.column("blank", bucket)[places] & BLANK[recipe.caption]
    shape = shape_of(bucket, recipe)
    height, width = (manifest.column(name, bucket)[places] for name in ("crop_h", "crop_w"))
    scale = np.maximum(shape.height / height, shape.width / width)
    return BucketCount(
        bucket,
        len(kept),
        plan.selection.left_out.get(bucket, {}),
        int(np.count_nonzero(blank)),
        int(np.count_nonzero(scale > 1)),
        float(scale.max(initial=1.0)),
    )


def described(plan: BatchPlan) -> str:
    """The counts in words: a line for the clips, and one for each thing that a user should know of some of them."""
    counts = census(plan)
    clips = ", ".join(f"{each.bucket} {each.clips}" for each in counts if each.clips)
    return "\n".join([f"  clips: {sum(each.clips for each in counts)} ({clips})", *_remarks(plan, counts)])


def _remarks(plan: BatchPlan, counts: list[BucketCount]) -> Iterator[str]:
    if repeated := plan.manifest.repeated:
        yield f"  counted once: {repeated} rows repeat a clip of another row"
    left_out = {(reason, str(each.bucket)): count for each in counts for reason, count in each.left_out.items()}
    for reason in dict.fromkeys(reason for reason, _ in left_out):
        own = {bucket: count for (why, bucket), count in left_out.items() if why == reason}
        named = ", ".join(f"{bucket} {count}" for bucket, count in own.items())
        yield f"  left out, {reason}: {sum(own.values())} ({named})"
    if blank := sum(each.without_caption for each in counts):
        yield f"  without a word of {plan.job.recipe.caption}: {blank} clips, which teach guidance alone"
    enlarged = [each for each in counts if each.enlarged]
    if enlarged:
        named = ", ".join(f"{each.bucket} {each.enlarged} by up to {each.most_enlarged:.2f}" for each in enlarged)
        yield f"  blown up to their shape: {sum(each.enlarged for each in enlarged)} clips ({named})"
    if plan.unvisited:
        yield f"  too few steps for all buckets; not trained on: {', '.join(map(str, plan.unvisited))}"
