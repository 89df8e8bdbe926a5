"""Reading a sample's clip before it is encoded; a clip that cannot be read is replaced by the next of its bucket.

Who reads does not matter: the plan says which clip comes next, so a trainer and every encode server replace alike.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from training.data.clips import ClipError
from training.data.plan import BatchPlan, Sample

WORDS = 500  # characters that are kept of why a clip cannot be read


@dataclass(frozen=True)
class BadClip:
    """A clip of the manifest that could not be read, and why."""

    clip_id: str
    source_uri: str
    words: str


@dataclass(frozen=True)
class Read:
    """A sample that can be encoded.

    Attributes:
        sample: the plan's sample, or the one that replaces it, with another clip of the same bucket.
        bad: the clips that were tried before, in order, and could not be read; empty for nearly all samples.
        data: pixels, uint8 RGB [frames, height, width, 3], or the clip's latents where the encoder still knows them.
    """

    sample: Sample
    bad: tuple[BadClip, ...]
    data: Tensor


def read_or_replace(sample: Sample, plan: BatchPlan, read: Callable[[Sample], Tensor]) -> Read:
    """The first clip that ``read`` can read: the sample's own, then those of ``plan.replacement``.

    ClipError: no clip of the bucket can be read. What else ``read`` raises, such as SourceUnavailable where storage is
    at fault and not the clip, is raised as it is.
    """
    bad: list[BadClip] = []
    tried = sample
    while True:
        try:
            return Read(tried, tuple(bad), read(tried))
        except ClipError as problem:
            words = str(problem)[:WORDS].encode(errors="replace").decode()
            bad.append(BadClip(tried.clip.clip_id, tried.clip.source_uri, words))
        try:
            tried = plan.replacement(sample, len(bad))
        except IndexError:
            raise ClipError(
                f"none of the {len(bad)} clips of bucket {sample.bucket} can be read; the first: {bad[0].words}; "
                f"the last: {bad[-1].words}"
            ) from None
