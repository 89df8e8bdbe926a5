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

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tasks.tables import storage
from tasks.tables.clip import by_source, is_live
from tasks.tables.guard import Faults, guarded
from tasks.tables.keys import root_of
from tasks.tables.rows import joined, narrow
from tasks.tables.schema import fields_of
from tasks.tables.step import Made, Row, StepConfig, kept, side_by_side, step_task

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
    table = storage.read_table(storage.join(root, rows[0]["frames_uri"], "track.parquet"), ["time_s", "thumbnail"])
    pixels = np.frombuffer(b"".join(table["thumbnail"].to_pylist()), np.uint8)
    side = int((len(pixels) / max(len(table), 1) / 3) ** 0.5)
    thumbnails = pixels.reshape(len(table), 3, side, side)
    spans = [np.searchsorted(table["time_s"].to_numpy(), [row["start_s"], row["end_s"]]) for row in rows]
    return [thumbnails[first:last].astype(np.float32) for first, last in spans]


@step_task("dedup clips")
def dedup_clips(tables: list[str], config: DedupClipsConfig = DedupClipsConfig()) -> list[str]:
    """Mark every clip that repeats another of its source; returns ``tables`` and the one with the outcome."""

    def make() -> Made:
        faults = Faults()
        rows = [row for row in joined(tables) if row["clip_id"]]

        def mark(clips: list[Row]) -> list[Row]:
            marked = {row["clip_id"]: {"error": None, "source_uri": row["source_uri"]} for row in clips}
            with guarded(list(marked.values()), "dedup clips", faults):
                tracks = tracks_of(clips, root_of(tables[0]))
                for gone, stays in find_duplicates(clips, tracks, config.max_difference).items():
                    marked[gone] |= {"duplicate_of": stays, "rejected_by": ["duplicate_clip"]}
            return [{"clip_id": clip_id} | row for clip_id, row in marked.items()]

        groups = [clips for clips in by_source([row for row in rows if is_live(row)]) if len(clips) > 1]
        found = {row["clip_id"]: row for marked in side_by_side(mark, groups) for row in marked}
        outcome = [found.get(row["clip_id"], {"clip_id": row["clip_id"]}) for row in rows]
        return Made(narrow(outcome, fields_of("dedup clips")), finished=not faults.passed)

    return [*tables, kept(tables, "dedup clips", [VERSION, config], make)]
