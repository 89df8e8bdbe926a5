"""Dedup clips: of clips of one source that show the same, the best stays (report, section 3.1).

The report computes pairwise similarities of a source's clips and discards the highly similar ones. Here one is
discarded only if it shows nothing that the other does not: a frozen picture, a loop, an intro that returns, a
locked-off camera before which nothing moves. All frames of the scan's track are compared, so that a repeat is
recognised wherever in time it starts.

The threshold, measured on the clips of 14 real videos (12 x 12 pixels, the worst sixteenth of the worst frame): a still
take repeats itself to within 1 grey level; the closest clips of one take in which people talk are 19 apart, those of
dj_video4 (still camera, two people moving) 47. At 5, coding noise goes and what moves stays.
"""

from collections.abc import Sequence

import fsspec
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from tasks.tables import storage
from tasks.tables.step import (
    Row,
    StepConfig,
    by_source,
    fields_of,
    is_live,
    result_uri,
    root_of,
    side_by_side,
    step_task,
    with_columns,
)

COMPARED = 12  # frames of the clip that may go, evenly spread
PARTS = 4  # along a side

VERSION = 1

Track = NDArray[np.float32]  # [T, 3, S, S]: thumbnails, luma and chroma


class DedupClipsConfig(StepConfig):
    max_difference: float = Field(
        5.0, ge=0, description="Clips that nowhere differ by more are duplicates; grey levels, 0 to 255"
    )


def difference(a: Track, b: Track) -> float:
    """How far clip ``b`` shows what clip ``a`` does not: grey levels, root mean square.

    Frames of ``b`` are held against the frames of ``a`` that are most like them, in any order; the frame that differs
    most counts, and in it the part of the picture that does.
    """
    b = b[np.unique(np.linspace(0, len(b) - 1, COMPARED).astype(int))]
    flat_a, flat_b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    squares = (flat_a**2).sum(axis=1)[:, None] - 2 * flat_a @ flat_b.T
    gap = a[squares.argmin(axis=0)] - b
    side = gap.shape[-1] // PARTS
    parts = (gap**2).reshape(len(b), -1, PARTS, side, PARTS, side).mean(axis=(3, 5))
    return float(np.sqrt(parts.max()))


def find_duplicates(rows: Sequence[Row], tracks: Sequence[Track], max_difference: float) -> dict[str, str]:
    """Which clip of a source repeats which: ``clip_id`` of each that goes to that of the one that stays.

    The longest stays, then the earliest; each that goes has been compared with what stays for it.
    """
    longest_first = sorted(range(len(rows)), key=lambda i: (-round(rows[i]["duration_s"], 2), rows[i]["start_s"]))
    stay: list[int] = []
    copies = {}
    for i in longest_first:
        same = next((k for k in stay if difference(tracks[k], tracks[i]) <= max_difference), None)
        if same is None:
            stay.append(i)
        else:
            copies[rows[i]["clip_id"]] = rows[same]["clip_id"]
    return copies


def tracks_of(rows: Sequence[Row], root: str) -> list[Track]:
    """The thumbnails of every frame of each clip of one source."""
    with fsspec.open(storage.join(root, rows[0]["frames_uri"], "track.parquet"), "rb") as file:
        table = pq.read_table(file, columns=["time_s", "thumbnail"])
    pixels = np.frombuffer(b"".join(table["thumbnail"].to_pylist()), np.uint8)
    side = int((len(pixels) / max(len(table), 1) / 3) ** 0.5)
    thumbnails = pixels.reshape(len(table), 3, side, side)
    spans = [np.searchsorted(table["time_s"].to_numpy(), [row["start_s"], row["end_s"]]) for row in rows]
    return [thumbnails[first:last].astype(np.float32) for first, last in spans]


@step_task("dedup clips")
def dedup_clips(table: str, config: DedupClipsConfig = DedupClipsConfig()) -> str:
    """Mark every clip that repeats another of its source; returns the URI of the shard's table with the outcome."""
    result = result_uri(table, "dedup clips", config, VERSION)
    if storage.exists(result):
        return result
    old = storage.read_table(table)
    rows = old.to_pylist()

    def mark(clips: list[Row]) -> None:
        copies = find_duplicates(clips, tracks_of(clips, root_of(table)), config.max_difference)
        for row in clips:
            if row["clip_id"] in copies:
                row["duplicate_of"] = copies[row["clip_id"]]
                row["rejected_by"] = [*row["rejected_by"], "duplicate_clip"]

    list(side_by_side(mark, [clips for clips in by_source([row for row in rows if is_live(row)]) if len(clips) > 1]))
    fields = [old.schema.field("rejected_by"), *fields_of("dedup sources")]
    storage.write_table(with_columns(old, rows, fields), result)
    return result
