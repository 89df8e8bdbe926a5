"""Verdict: what the thresholds make of the scores (report, section 3.1; the pre-training filter is meant to be loose).

Nothing is measured here, so a changed threshold costs a pass over a table. Every reason is kept, not only the first.
docs/thresholds.md argues the defaults.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from tasks.curation.filter import load_filter
from tasks.tables.step import Row, StepConfig, derive_rows, is_live, step_task

VERSION = 1


class FilterLimit(StepConfig):
    """The allowed range of a filter of the user's own (tasks/curation/filter.py)."""

    filter: str = Field(description="The filter as module:name")
    low: float | None = Field(None, description="Smallest value that is kept")
    high: float | None = Field(None, description="Largest value that is kept")


class VerdictConfig(StepConfig):
    """Thresholds; an empty field switches its test off."""

    text_area_max: float | None = Field(0.01, ge=0, le=1, description="Largest fraction of the crop under text")
    overlay_area_max: float | None = Field(
        0.0005, ge=0, le=1, description="Largest fraction of the crop under watermarks and logos"
    )
    crop_area_min: float | None = Field(
        0.5, ge=0, le=1, description="Smallest fraction of the frame that cropping may leave"
    )
    blur_min: float | None = Field(60.0, ge=0, description="Smallest variance of the Laplacian")
    motion_min: float | None = Field(
        0.002, ge=0, description="Smallest motion, frame diagonals per second: below, the picture stands still"
    )
    motion_max: float | None = Field(
        1.0, ge=0, description="Largest motion, frame diagonals per second: above, the picture is a blur"
    )
    aesthetic_min: float | None = Field(1.5, ge=0, description="Smallest aesthetic score")
    filters: tuple[FilterLimit, ...] = Field((), description="Filters of your own, run before the verdict")


@dataclass(frozen=True)
class Limit:
    """A score's allowed range: a clip whose ``column`` lies outside ``[low, high]`` is rejected by ``reason``."""

    reason: str
    column: str
    low: float | None = None
    high: float | None = None

    def rejects(self, row: Row) -> bool:
        value = measure(row, self.column)
        if value is None:
            # An image has no motion to speak of; a video that could not be measured cannot be vouched for.
            return bool(row["duration_s"]) and (self.low is not None or self.high is not None)
        return (self.low is not None and value < self.low) or (self.high is not None and value > self.high)


def measure(row: Row, column: str) -> float | None:
    """A score of a row; ``crop_area`` (fraction of the frame that the crop keeps) is derived, not stored."""
    if column == "crop_area":
        return row["crop_w"] * row["crop_h"] / (row["width"] * row["height"])
    value: float | None = row[column]
    return value


def limits(config: VerdictConfig) -> list[Limit]:
    """The thresholds in the order of the funnel."""
    return [
        Limit("text", "text_area_kept", high=config.text_area_max),
        Limit("overlay", "overlay_area_kept", high=config.overlay_area_max),
        Limit("crop", "crop_area", low=config.crop_area_min),
        Limit("blur", "blur", low=config.blur_min),
        Limit("motion_low", "motion", low=config.motion_min),
        Limit("motion_high", "motion", high=config.motion_max),
        Limit("aesthetic", "aesthetic", low=config.aesthetic_min),
        *(Limit(own.filter, load_filter(own.filter).column, own.low, own.high) for own in config.filters),
    ]


def judge(row: Row, allowed: Sequence[Limit]) -> Row:
    """``keep`` and ``rejected_by`` of a row. What an earlier step ruled out (error, duplicate, too short) stays out."""
    reasons = list(row["rejected_by"])
    if is_live(row):
        reasons += [limit.reason for limit in allowed if limit.rejects(row)]
    return {"keep": row["clip_id"] is not None and not reasons, "rejected_by": reasons}


@step_task("verdict")
def verdict(table: str, config: VerdictConfig = VerdictConfig()) -> str:
    """Judge every clip of a shard; returns the URI of the shard's table with ``keep`` and ``rejected_by``."""
    allowed = limits(config)
    return derive_rows(table, "verdict", config, lambda row: judge(row, allowed), VERSION, changes=["rejected_by"])
