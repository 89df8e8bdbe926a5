"""Dedup clips: of clips of one source that show the same, the best stays (report, section 3.1)."""

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from tasks import storage
from tasks.embed import Film, film_of
from tasks.step import (
    Clip,
    Row,
    StepConfig,
    by_source,
    fields_of,
    frames_of,
    is_live,
    result_uri,
    side_by_side,
    step_task,
    with_columns,
)

VERSION = 1


class DedupClipsConfig(StepConfig):
    max_difference: float = Field(2.0, ge=0, description="Clips that differ less are duplicates; grey levels, 0 to 255")
    frames: int = Field(12, gt=0, description="Sampled frames compared per clip, at most")


def difference(a: Film, b: Film) -> float:
    """How much of clip ``b`` [T, S, S] clip ``a`` does not show, grey levels.

    Each frame of ``b`` is held against the frame of ``a`` most like it, so that a loop that starts elsewhere is still
    the same; the frame and the part of the picture that differ most count.
    """
    gap = a[:, None].astype(np.float32) - b[None].astype(np.float32)
    side = gap.shape[-1] // 4
    blocks = np.sqrt((gap**2).reshape(*gap.shape[:2], 4, side, 4, side).mean(axis=(3, 5)).max(axis=(2, 3)))
    return float(blocks.min(axis=0).max())


def find_duplicates(films: Sequence[Film], rows: Sequence[Row], max_difference: float) -> dict[str, str]:
    """Which clip of a source repeats which: ``clip_id`` of each that goes to that of the one that stays."""
    order = sorted(range(len(rows)), key=lambda i: (-round(rows[i]["duration_s"], 2), rows[i]["start_s"]))
    stay: list[int] = []
    copies = {}
    for i in order:
        best = next((k for k in stay if difference(films[k], films[i]) <= max_difference), None)
        if best is None:
            stay.append(i)
        else:
            copies[rows[i]["clip_id"]] = rows[best]["clip_id"]
    return copies


@step_task("dedup clips")
def dedup_clips(table: str, config: DedupClipsConfig = DedupClipsConfig()) -> str:
    """Mark every clip that repeats another of its source; returns the URI of the shard's table with the outcome."""
    result = result_uri(table, "dedup clips", config, VERSION)
    if storage.exists(result):
        return result
    old = storage.read_table(table)
    rows = old.to_pylist()

    def mark(clips: list[Row]) -> None:
        with frames_of(table, clips[0]) as store:
            films = [film_of([f.image for f in Clip(row, store).frames(config.frames)]) for row in clips]
        copies = find_duplicates(films, clips, config.max_difference)
        for row in clips:
            if stays := copies.get(row["clip_id"]):
                row["duplicate_of"] = stays
                row["rejected_by"] = [*row["rejected_by"], "duplicate_clip"]

    list(side_by_side(mark, by_source([row for row in rows if is_live(row)])))
    fields = [old.schema.field("rejected_by"), *fields_of("dedup sources")]
    storage.write_table(with_columns(old, rows, fields), result)
    return result
