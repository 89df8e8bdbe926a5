"""Cut: sources become clips (report, section 3.1, video segmentation).

Shots are found in the track that the scan recorded, so another threshold needs no decoding. Each shot is split into
clips of 3 to 6 s that begin and end where frames do; the frames of a gradual transition belong to none, and no clip
reaches over a hole in time or a change of picture size. A shot too short for a clip is a row as well.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, model_validator

from tasks.curation.shots import CLOCK_S, Shot, ShotConfig, Transition, detect_transitions, split_shot
from tasks.curation.views import moved_view
from tasks.tables import storage
from tasks.tables.frame_store import FrameStore, open_frames
from tasks.tables.guard import Faults, guarded
from tasks.tables.keys import key_of, root_of
from tasks.tables.rows import joined, narrow
from tasks.tables.schema import fields_of
from tasks.tables.step import Made, Row, StepConfig, kept, side_by_side, step_task

VERSION = 3
ONE_PICTURE = "a video of a single picture: nothing moves, and an image would be stored as one"


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


def pans_among(
    transitions: Sequence[Transition], store: FrameStore, starts_s: Sequence[float] = ()
) -> list[Transition]:
    """The suspected dissolves and wipes during which the camera only moved, by the samples on either side.

    ``starts_s`` are where segments start, seconds in order: samples of two segments show nothing of a camera.
    """

    def is_pan(change: Transition) -> bool:
        before, after = np.searchsorted(store.times_s, [change.start_s, change.end_s])
        if change.kind not in ("dissolve", "wipe") or before == 0 or after == len(store.times_s):
            return False
        times = store.times_s[[before - 1, after]]
        if np.ptp(np.searchsorted(starts_s, times, "right")):
            return False
        first, second = (store.frames(time_s, np.nextafter(time_s, np.inf))[0].image for time_s in times)
        return moved_view(first, second)

    return [change for change in transitions if is_pan(change)]


def join_over(pans: Sequence[Transition], shots: Sequence[Shot]) -> list[Shot]:
    """The shots, made one again where only a pan parts them."""
    joined: list[Shot] = []
    for shot in shots:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.segment == shot.segment
            and any(last.end_s <= pan.start_s and pan.end_s <= shot.start_s for pan in pans)
        ):
            joined[-1] = Shot(last.start_s, shot.end_s, shot.segment)
        else:
            joined.append(shot)
    return joined


def clips_of(source: Row, root: str, config: CutConfig) -> list[Row]:
    """The rows that one source becomes: its clips, or itself where there is nothing to cut.

    The source's ``segments`` are its stretches without a hole in time and of one picture size, each a dict of
    ``start_s``, ``end_s``, ``width`` and ``height`` (as displayed); without them it is one such stretch.
    """
    segments = source.get("segments") or [source]
    source = {name: value for name, value in source.items() if name != "segments"}
    if source["rejected_by"]:
        return [source]
    if not source["fps"] and not source["duration_s"]:
        return [clip_row(source, source["start_s"], source["start_s"])]
    folder = storage.join(root, source["frames_uri"])
    with storage.open_read(storage.join(folder, "track.parquet")) as file:
        track = pq.ParquetFile(file)
        times_s = track.read(columns=["time_s"])["time_s"].to_numpy()
        if len(times_s) < 2:
            return [source | {"error": ONE_PICTURE, "rejected_by": ["error"]}]
        shots, transitions = detect_transitions(track.iter_batches(), config.shots)
    with open_frames(storage.join(folder, "samples.parquet")) as store:
        starts_s = [segment["start_s"] for segment in segments]
        shots = join_over(pans_among(transitions, store, starts_s), shots)
        samples_s = store.times_s
    rows = []
    for shot in shots:
        size = {name: segments[shot.segment][name] for name in ("width", "height")}
        for start_s, end_s in split_shot(shot, times_s, config.clip_min_s, config.clip_max_s):
            row = clip_row(source | size, start_s, end_s)
            if end_s - start_s < config.clip_min_s - CLOCK_S:
                row["rejected_by"] = ["too_short"]
            elif _count(times_s, start_s, end_s) < 2:
                row |= {"error": f"one picture that stands for {end_s - start_s:.1f} s", "rejected_by": ["error"]}
            elif not _count(samples_s, start_s, end_s):
                row |= {"error": "no sampled frame in it: sample more of them in a second", "rejected_by": ["error"]}
            rows.append(row)
    return rows or [source | {"error": "no shot found: all of it is a transition", "rejected_by": ["error"]}]


def _count(times_s: NDArray[np.float64], start_s: float, end_s: float) -> int:
    """How many of the times, in order, are at or after ``start_s`` and before ``end_s``."""
    return int(np.diff(np.searchsorted(times_s, [start_s, end_s]))[0])


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
