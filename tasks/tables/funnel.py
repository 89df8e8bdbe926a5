"""The funnel: how many sources and clips each step let through, and what it cost in hours of video.

A clip is lost once, at the first stage that rejects it, so a stage's losses add up to what was cut. How many clips a
stage would reject on its own is counted beside it: that is what a changed threshold would bring back at most.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks.tables import storage

Mask = NDArray[np.bool_]

# What earlier steps rule out, in the order they do it: (reason, what is left called).
SOURCE_STAGES = [("error", "readable"), ("duplicate_source", "unique sources")]
CLIP_STAGES = [("too_short", "long enough"), ("duplicate_clip", "unique clips"), ("error", "measured")]


@dataclass(frozen=True)
class Stage:
    """One bar of the funnel. ``reason`` is None where rows are only counted: sources found, clips cut, kept.

    ``rejected`` counts the rows that the reason applies to at all; ``lost`` those it was the first to reject. Seconds
    are those of clips; they are None for sources, whose clips, not themselves, have a duration in the table.
    """

    name: str
    unit: str
    reason: str | None
    entered: int
    lost: int
    rejected: int
    entered_s: float | None
    lost_s: float | None

    @property
    def left(self) -> int:
        return self.entered - self.lost

    @property
    def left_s(self) -> float | None:
        return None if self.entered_s is None or self.lost_s is None else max(0.0, self.entered_s - self.lost_s)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the fields, with ``left`` and ``left_s``."""
        return asdict(self) | {"left": self.left, "left_s": self.left_s}


def reason_masks(table: pa.Table) -> dict[str, Mask]:
    """For every reason in ``rejected_by``, which rows it applies to: bool [rows]."""
    column = table["rejected_by"].combine_chunks()
    rows = pc.list_parent_indices(column).to_numpy()
    reasons = pc.list_flatten(column).to_numpy(zero_copy_only=False)
    masks: dict[str, Mask] = {}
    for reason in sorted(set(reasons)):
        masks[reason] = np.zeros(len(table), bool)
        masks[reason][rows[reasons == reason]] = True
    return masks


class _Tally:
    """Sums over shards of what enters, and of what each reason rejects, for one unit."""

    def __init__(self) -> None:
        self.entered = 0
        self.entered_s = 0.0
        self.lost: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.lost_s: defaultdict[str, float] = defaultdict(float)

    def add(self, rows: Mask, masks: dict[str, Mask], seconds: NDArray[np.float64], order: Sequence[str]) -> None:
        self.entered += int(rows.sum())
        self.entered_s += float(seconds[rows].sum())
        alive = rows.copy()
        for reason in [*order, *sorted(set(masks) - set(order))]:
            if reason in masks:
                lost = alive & masks[reason]
                self.rejected[reason] += int((rows & masks[reason]).sum())
                self.lost[reason] += int(lost.sum())
                self.lost_s[reason] += float(seconds[lost].sum())
                alive &= ~lost

    def stages(self, unit: str, first: str, named: Sequence[tuple[str, str]], timed: bool) -> list[Stage]:
        """The stages in order; a reason that nobody announced comes last under its own name."""
        known = {reason for reason, _ in named}
        named = [*named, *((reason, reason) for reason in sorted(self.rejected) if reason not in known)]
        entered, entered_s = self.entered, self.entered_s
        stages = [Stage(first, unit, None, entered, 0, 0, entered_s if timed else None, 0.0 if timed else None)]
        for reason, name in named:
            if self.rejected[reason] or reason in known:
                lost, lost_s = self.lost[reason], float(self.lost_s[reason])
                seconds = (entered_s, lost_s) if timed else (None, None)
                stages.append(Stage(name, unit, reason, entered, lost, self.rejected[reason], *seconds))
                entered, entered_s = entered - lost, max(0.0, entered_s - lost_s)
        return stages


def funnel(tables: Sequence[str], reasons: Sequence[str]) -> list[Stage]:
    """The stages from sources found to clips kept, over all shards, one shard in memory at a time.

    ``reasons`` are those of the verdict, in its order. A source lies in one shard whole.
    """
    measured = [(reason, reason) for reason in reasons if reason not in dict(CLIP_STAGES)]
    clip_stages = [*CLIP_STAGES, *measured]
    sources, clips, found = _Tally(), _Tally(), 0
    for uri in tables:
        table = storage.read_table(uri, ["source_uri", "clip_id", "duration_s", "rejected_by"])
        masks = reason_masks(table)
        is_clip = table["clip_id"].is_valid().to_numpy()
        seconds = np.nan_to_num(table["duration_s"].to_numpy())
        found += pc.count_distinct(table["source_uri"]).as_py()
        sources.add(~is_clip, {r: mask & ~is_clip for r, mask in masks.items()}, seconds, [r for r, _ in SOURCE_STAGES])
        clips.add(is_clip, {r: mask & is_clip for r, mask in masks.items()}, seconds, [r for r, _ in clip_stages])
    sources.entered = found
    stages = sources.stages("sources", "sources found", SOURCE_STAGES, timed=False)
    stages += clips.stages("clips", "clips cut", clip_stages, timed=True)
    last = stages[-1]
    return [*stages, Stage("kept", "clips", None, last.left, 0, 0, last.left_s, 0.0)]


def worst(stages: Sequence[Stage]) -> Stage | None:
    """The stage that lost most; where clips were cut, among those that judge clips. None: nothing was lost."""
    unit = "clips" if any(stage.unit == "clips" and stage.entered for stage in stages) else "sources"
    losing = [stage for stage in stages if stage.unit == unit and stage.lost]
    return max(losing, key=lambda stage: stage.lost, default=None)


def table_of(stages: Sequence[Stage]) -> list[dict[str, str]]:
    """The funnel as rows of text, for a terminal or a table on a page. Percentages are of the unit's first stage."""
    first = {stage.unit: stage.entered for stage in reversed(stages)}
    return [
        {
            "stage": stage.name,
            "unit": stage.unit,
            "left": f"{stage.left:,}",
            "of all": f"{stage.left / first[stage.unit]:.1%}" if first[stage.unit] else "",
            "lost": f"{stage.lost:,}" if stage.reason else "",
            "rejected at all": f"{stage.rejected:,}" if stage.reason else "",
            "video left": "" if stage.left_s is None else video_time(stage.left_s),
        }
        for stage in stages
    ]


def as_text(stages: Sequence[Stage]) -> str:
    """The funnel as an aligned table for the terminal."""
    rows = table_of(stages)
    names = list(rows[0])
    width = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}

    def line(cells: dict[str, str]) -> str:
        return "  ".join(
            cells[name].ljust(width[name]) if name in ("stage", "unit") else cells[name].rjust(width[name])
            for name in names
        ).rstrip()

    return "\n".join([line({name: name for name in names}), *map(line, rows)])


def video_time(seconds: float) -> str:
    """Seconds for people: ``42 s``, ``12.5 min``, ``1,234.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
