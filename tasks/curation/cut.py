"""Cut: sources become clips (report, section 3.1, video segmentation).

Shots are found in the track that the scan recorded, so another threshold needs no decoding. Each shot is split into
clips of 3 to 6 s; the frames of a gradual transition belong to none. A shot too short for a clip is a row as well.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from tasks.curation.shots import Shot, ShotConfig, Transition, detect_transitions, split_shot
from tasks.curation.views import moved_view
from tasks.tables import storage
from tasks.tables.frame_store import FrameStore, open_frames
from tasks.tables.guard import Faults, guarded
from tasks.tables.keys import key_of, root_of
from tasks.tables.rows import joined, narrow
from tasks.tables.schema import fields_of
from tasks.tables.step import Made, Row, StepConfig, kept, side_by_side, step_task

VERSION = 1


class CutConfig(StepConfig):
    shots: ShotConfig = Field(ShotConfig(), description="How cuts and gradual transitions are recognised")
    clip_min_s: float = Field(3.0, gt=0, description="Shots shorter than this, in seconds, yield no clip")
    clip_max_s: float = Field(
        6.0, gt=0, description="Longer shots are split evenly into clips of at most this, seconds"
    )

    @model_validator(mode="after")
    def _some_clip_is_possible(self) -> "CutConfig":
        if self.clip_max_s < self.clip_min_s:
            raise ValueError(f"clip_max_s ({self.clip_max_s:g} s) is less than clip_min_s ({self.clip_min_s:g} s)")
        return self


def clip_row(source: Row, start_s: float, end_s: float) -> Row:
    """The row of one clip of a source, its crop still the whole frame."""
    clip_id = key_of(source["source_id"], round(start_s, 3), round(end_s, 3))
    whole = {"crop_x": 0, "crop_y": 0, "crop_w": source["width"], "crop_h": source["height"]}
    times = {"start_s": start_s, "end_s": end_s, "duration_s": end_s - start_s}
    return source | {"clip_id": clip_id} | times | whole


def pans_among(transitions: Sequence[Transition], store: FrameStore) -> list[Transition]:
    """The suspected dissolves and wipes during which the camera only moved, by the samples on either side."""

    def is_pan(change: Transition) -> bool:
        before, after = np.searchsorted(store.times_s, [change.start_s, change.end_s])
        if change.kind not in ("dissolve", "wipe") or before == 0 or after == len(store.times_s):
            return False
        times = store.times_s[[before - 1, after]]
        first, second = (store.frames(time_s, np.nextafter(time_s, np.inf))[0].image for time_s in times)
        return moved_view(first, second)

    return [change for change in transitions if is_pan(change)]


def join_over(pans: Sequence[Transition], shots: Sequence[Shot]) -> list[Shot]:
    """The shots, made one again where only a pan parts them."""
    joined: list[Shot] = []
    for shot in shots:
        if joined and any(joined[-1].end_s <= pan.start_s and pan.end_s <= shot.start_s for pan in pans):
            joined[-1] = Shot(joined[-1].start_s, shot.end_s)
        else:
            joined.append(shot)
    return joined


def clips_of(source: Row, root: str, config: CutConfig) -> list[Row]:
    """The rows that one source becomes: its clips, or itself where there is nothing to cut."""
    if source["rejected_by"]:
        return [source]
    if not source["fps"] and not source["duration_s"]:
        return [clip_row(source, source["start_s"], source["start_s"])]
    folder = storage.join(root, source["frames_uri"])
    with storage.open_read(storage.join(folder, "track.parquet")) as file:
        shots, transitions = detect_transitions(pq.ParquetFile(file).iter_batches(), config.shots)
    with open_frames(storage.join(folder, "samples.parquet")) as store:
        shots = join_over(pans_among(transitions, store), shots)
    spans = [span for shot in shots for span in split_shot(shot, config.clip_min_s, config.clip_max_s)]
    rows = [clip_row(source, *span) for span in spans]
    for row in rows:
        # Half a millisecond of grace: 3 s of 29.97 fps video are 2.9997 s by the clock.
        if row["duration_s"] < config.clip_min_s - 0.5e-3:
            row["rejected_by"] = ["too_short"]
    return rows or [source | {"error": "no shot found", "rejected_by": ["error"]}]


@step_task("cut")
def cut(tables: list[str], config: CutConfig = CutConfig()) -> list[str]:
    """Cut every source of a shard into clips; returns ``tables`` (those of the scan and of dedup sources) and the table
    of clips."""

    def make() -> Made:
        faults = Faults()

        def cut_one(source: Row) -> list[Row]:
            own = {"source_uri": source["source_uri"], "error": None}
            if not source["rejected_by"]:
                with guarded([own], "cut", faults):
                    return clips_of(source, root_of(tables[0]), config)
            return [own]

        rows = [row for part in side_by_side(cut_one, joined(tables)) for row in part]
        return Made(narrow(rows, fields_of("cut")), finished=not faults.passed)

    return [*tables, kept(tables, "cut", [VERSION, config], make)]
