"""Verdict: what the thresholds make of the scores (report, section 3.1; the pre-training filter is meant to be loose).

Nothing is measured here, so a changed threshold costs a pass over a table. Every reason is kept, not only the first.
docs/curation.md argues the defaults.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pydantic import Field, create_model

from tasks.curation.filter import OwnFilter, declared
from tasks.curation.scores import SCORES
from tasks.tables.clip import is_live
from tasks.tables.guard import Faults, guarded
from tasks.tables.limit import Limit
from tasks.tables.rows import joined, narrow
from tasks.tables.schema import fields_of
from tasks.tables.score import Score, Threshold
from tasks.tables.step import Made, Row, StepConfig, kept, step_task

VERSION = 3

# What the scan measured of the source; off unless the user asks for it.
OF_SOURCE = (
    Threshold(
        *("width", "width", "width_min", "low", None),
        description="Smallest width of the source, pixels",
        words="The source is too narrow.",
    ),
    Threshold(
        *("height", "height", "height_min", "low", None),
        description="Smallest height of the source, pixels",
        words="The source is too low.",
    ),
    Threshold(
        *("fps", "fps", "fps_min", "low", None),
        description="Smallest mean frame rate of a video, frames per second",
        words="The source has too few frames a second.",
    ),
)


class FilterLimit(StepConfig):
    """The allowed range of a filter of the user's own (tasks/curation/filter.py)."""

    filter: str = Field(description="The filter as module:name")
    column: str | None = Field(None, description="Which of its columns, where it has several; empty: its first")
    low: float | None = Field(None, description="Smallest value that is kept")
    high: float | None = Field(None, description="Largest value that is kept")


THRESHOLDS = (*(limit for score in SCORES for limit in score.limits), *OF_SOURCE)


def _setting(threshold: Threshold) -> Any:
    bounds = {"ge": 0} if threshold.largest is None else {"ge": 0, "le": threshold.largest}
    return float | None, Field(threshold.default, description=threshold.description, **bounds)


VerdictConfig = create_model(
    "VerdictConfig",
    __base__=StepConfig,
    __doc__="Thresholds; an empty field switches its test off.",
    __module__=__name__,
    **{threshold.setting: _setting(threshold) for threshold in THRESHOLDS},
    filters=(tuple[FilterLimit, ...], Field((), description="Filters of your own, run before the verdict")),
)


def limits(config: StepConfig, own: Sequence[OwnFilter]) -> list[Limit]:
    """The thresholds in the order of the funnel; ``own`` are the filters that ``config`` names.

    ValueError: a limit is on a column that its filter does not have, or that holds no numbers.
    """
    found = [threshold.at(getattr(config, threshold.setting)) for threshold in THRESHOLDS]
    # A limit on the source that nobody asked for is no stage of the funnel.
    found = [limit for limit in found if not (limit.off and limit.reason in {each.reason for each in OF_SOURCE})]
    scores = {each.name: score for each, score in zip(own, declared(own), strict=True)}
    return found + [_own_limit(asked, scores[asked.filter]) for asked in config.filters]  # type: ignore[attr-defined]


def _own_limit(asked: FilterLimit, score: Score) -> Limit:
    """The limit on a column of a filter. ValueError: it has no such column, or one that holds no numbers."""
    names = [column.name for column in score.columns]
    name = asked.column or names[0]
    if name not in names:
        raise ValueError(f"the filter {asked.filter!r} has no column {name!r}: it has {', '.join(names)}")
    kind = score.columns[names.index(name)].type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ValueError(f"the column {name!r} of the filter {asked.filter!r} holds no numbers: {kind}")
    reason = f"{asked.filter} {name}" if asked.column else asked.filter
    return Limit(reason, name, asked.low, asked.high, f"Your own filter {reason} says so.")


def judge(row: Row, allowed: Sequence[Limit]) -> Row:
    """``keep`` and the reasons of a clip. What an earlier step ruled out (error, duplicate, too short) stays out, and a
    score that is not a number is an error."""
    if not is_live(row):
        return {"keep": False, "rejected_by": []}
    senseless = [limit.column for limit in allowed if limit.senseless(row)]
    if senseless:
        return {"keep": False, "rejected_by": [], "error": f"verdict: not a number: {', '.join(senseless)}"}
    reasons = list(dict.fromkeys(limit.reason for limit in allowed if limit.rejects(row)))
    return {"keep": not reasons, "rejected_by": reasons}


@step_task("verdict")
def verdict(tables: list[str], config: StepConfig, own: list[OwnFilter]) -> list[str]:
    """Judge every clip of a shard by all its ``tables``; returns them and that of the verdict."""

    def make() -> Made:
        allowed, faults, judged = limits(config, own), Faults(), []
        for row in joined(tables):
            if row["clip_id"]:
                found = {"clip_id": row["clip_id"], "source_uri": row["source_uri"], "keep": False, "error": None}
                with guarded([found], "verdict", faults):
                    found |= judge(row, allowed)
                judged.append(found)
        return Made(narrow(judged, fields_of("verdict")), finished=not faults.passed)

    return [*tables, kept(tables, "verdict", [VERSION, config], make)]
