"""Filters of the user's own: one file, a score per clip, its allowed range in the verdict's config.

A filter is a ``Filter`` in any importable module, named in the flow's parameters as ``module:name``::

    # my_filters.py
    from tasks.curation.filter import Filter
    from tasks.tables.step import Clip

    def saturation(clip: Clip) -> float:
        frames = [frame.image for frame in clip.frames(4)]
        return float(np.mean([np.ptp(image, axis=2).mean() for image in frames]) / 255)

    colourful = Filter(column="saturation", meaning="mean channel range, 0 to 1", score=saturation)

    # in the run's parameters
    {"config": {"verdict": {"filters": [{"filter": "my_filters:colourful", "low": 0.1}]}}}

The column is in OUT/clips and in the manifest, and the report draws its histogram. Another limit scores nothing again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import pyarrow as pa

from tasks.tables.schema import COLUMNS
from tasks.tables.step import Clip, StepConfig, score_clips, step_task


@dataclass(frozen=True)
class Filter:
    """A score of the user's own. Raise ``version`` when ``score`` changes, so that old scores are not taken for new."""

    column: str
    meaning: str
    score: Callable[[Clip], float]
    version: int = 1


class FilterRef(StepConfig):
    """What ``apply_filter`` depends on besides the clips."""

    filter: str


def load_filter(name: str) -> Filter:
    """The filter that ``module:name`` stands for; ValueError says what is wrong with it."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as problem:
        raise ValueError(f"filter {name!r} cannot be loaded: {problem}") from problem
    if not isinstance(found, Filter):
        raise ValueError(f"filter {name!r} is a {type(found).__name__}, not a tasks.curation.filter.Filter")
    if any(found.column == column for columns in COLUMNS.values() for column, _, _ in columns):
        raise ValueError(f"filter {name!r} would overwrite the column {found.column!r}")
    return found


@step_task("filter")
def apply_filter(table: str, name: str) -> str:
    """Score every live clip of a shard with the filter ``name``; returns the URI of the shard's table."""
    own = load_filter(name)
    field = pa.field(own.column, pa.float32(), metadata={"meaning": own.meaning})
    step = f"filter {own.column}"
    return score_clips(
        table, step, FilterRef(filter=name), lambda clip: {own.column: own.score(clip)}, own.version, fields=[field]
    )
