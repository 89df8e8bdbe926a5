"""A data rank's samples of a step in parts that a device takes at once: each of one shape, and as many on all ranks."""

from collections.abc import Mapping, Sequence

import numpy as np

from training.data.buckets import Shape
from training.data.plan import BatchPlan, Sample


def parts(
    plan: BatchPlan, step: int, data_rank: int, data_ranks: int, at_once: Mapping[int, int]
) -> list[list[Sample]]:
    """The samples that one data rank trains on in a step, in parts.

    Samples of equal shape are put together wherever they stand in the batch, also of different buckets. A part is a
    collective of all ranks, so a rank with fewer shapes makes as many parts as the one that needs most.

    Args:
        at_once: for each number of frames, how many samples a device takes; the same on all ranks.
    """
    samples = plan.samples(step, data_rank, data_ranks)
    most = at_once[samples[0].shape.frames]  # all samples of a step have as many frames
    count = number_of_parts(plan.shapes(step), plan.run(step), data_ranks, most)
    groups: dict[Shape, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.shape, []).append(sample)
    shares = divided([len(group) for group in groups.values()], most, count)
    return [
        group[len(group) * part // share : len(group) * (part + 1) // share]
        for group, share in zip(groups.values(), shares, strict=True)
        for part in range(share)
    ]


def number_of_parts(shapes: Sequence[Shape], run: int, data_ranks: int, most: int) -> int:
    """Parts that every rank makes of its share of a batch: what the rank that needs most does.

    Args:
        shapes: of the batch's runs of ``run`` samples each, in order.
    """
    _, numbers = np.unique([str(shape) for shape in shapes], return_inverse=True)
    of_rank = np.repeat(numbers, run).reshape(data_ranks, -1)
    needed = sum(-(-np.count_nonzero(of_rank == number, axis=1) // most) for number in range(numbers.max() + 1))
    return int(np.max(needed))


def divided(sizes: Sequence[int], most: int, count: int) -> list[int]:
    """Into how many parts each of the groups is cut, so that none has more than ``most`` and there are ``count``.

    The group whose parts are largest is cut once more until there are enough.
    """
    shares = [-(-size // most) for size in sizes]
    while sum(shares) < count:
        largest = max(range(len(sizes)), key=lambda group: sizes[group] / shares[group])
        shares[largest] += 1
    return shares
