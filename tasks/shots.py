"""Shots: from a compact track of every frame, recorded by the single decoding pass, to stretches without a transition.

Recording and deciding are apart, so that a threshold can change without decoding. The track has one row a frame::

    time_s       float64     presentation time
    content_val  float32     PySceneDetect's content value: mean HSV distance to the frame before, 0 to 255
    thumbnail    binary 864  24x24 luma, then 12x12 Cb and 12x12 Cr, bytes; squeezed square, whatever the shape

Method of the report's section 3.1: PySceneDetect's score for cuts, and a temporal pattern of the thumbnails for
gradual transitions.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scenedetect import FrameTimecode
from scenedetect.detectors import ContentDetector

LUMA_SIDE = 24
CHROMA_SIDE = 12
THUMBNAIL_BYTES = LUMA_SIDE**2 + 2 * CHROMA_SIDE**2
FRAMES_PER_BLOCK = 4096

TRACK_SCHEMA = pa.schema(
    [("time_s", pa.float64()), ("content_val", pa.float32()), ("thumbnail", pa.binary(THUMBNAIL_BYTES))]
)


class FrameTrack:
    """Records the track of one source, a block at a time, so that hours of video are never in memory."""

    def __init__(self) -> None:
        self._detector = ContentDetector(min_scene_len=0)
        self._time = FrameTimecode(0, fps=25.0)  # the content value does not depend on time
        self._rows: list[tuple[float, float, bytes]] = []

    def add(self, time_s: float, image: NDArray[np.uint8]) -> None:
        """Record the next frame: RGB uint8 [h, w, 3], longest side about 256."""
        small = _halve(_halve(image))
        self._detector.process_frame(self._time, cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        self._rows.append((time_s, self._detector._frame_score or 0.0, _thumbnail(small)))

    def take_block(self) -> pa.Table | None:
        """The frames recorded since the last block, once they are FRAMES_PER_BLOCK; until then None."""
        return self.flush() if len(self._rows) >= FRAMES_PER_BLOCK else None

    def flush(self) -> pa.Table:
        """The frames recorded since the last block; there may be none."""
        columns = list(zip(*self._rows, strict=True)) or [(), (), ()]
        self._rows = []
        return pa.table([pa.array(c, t) for c, t in zip(columns, TRACK_SCHEMA.types, strict=True)], schema=TRACK_SCHEMA)


def _halve(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Means of 2x2 pixels, an odd last row or column left out: the one area reduction that is nearly free."""
    height, width = image.shape[0] // 2, image.shape[1] // 2
    if not height or not width:
        return image
    return cv2.resize(image[: height * 2, : width * 2], (width, height), interpolation=cv2.INTER_AREA)


def _thumbnail(image: NDArray[np.uint8]) -> bytes:
    small = cv2.resize(image, (LUMA_SIDE, LUMA_SIDE), interpolation=cv2.INTER_AREA)
    luma, red, blue = cv2.split(cv2.cvtColor(small, cv2.COLOR_RGB2YCrCb))
    chroma = (cv2.resize(c, (CHROMA_SIDE, CHROMA_SIDE), interpolation=cv2.INTER_AREA) for c in (blue, red))
    return b"".join(plane.tobytes() for plane in (luma, *chroma))


class ShotConfig(BaseModel):
    """What counts as a transition between shots."""

    model_config = ConfigDict(frozen=True)

    cut_ratio: float = Field(3.0, description="a cut's content value, against the mean of two frames either side")
    cut_content: float = Field(15.0, description="least content value of a cut, 0 to 255")


@dataclass(frozen=True)
class Shot:
    """A stretch of a source between two transitions; ``end_s`` is the time of the first frame after it."""

    start_s: float
    end_s: float


@dataclass(frozen=True)
class Transition:
    """Frames with ``start_s <= time < end_s`` belong to no shot; a cut has none: both are its first new frame."""

    kind: Literal["cut", "dissolve", "fade", "wipe"]
    start_s: float
    end_s: float


def detect_shots(track: Iterable[pa.RecordBatch] | pa.Table, config: ShotConfig) -> list[Shot]:
    """The shots of a source, in order."""
    return detect_transitions(track, config)[0]


def detect_transitions(
    track: Iterable[pa.RecordBatch] | pa.Table, config: ShotConfig
) -> tuple[list[Shot], list[Transition]]:
    """The shots of a source and the transitions between them, in order."""
    table = track if isinstance(track, pa.Table) else pa.Table.from_batches(track, schema=TRACK_SCHEMA)
    times = table["time_s"].to_numpy()
    score = table["content_val"].to_numpy()
    if not len(times):
        return [], []
    padded = np.pad(score, 2)
    around = (padded[:-4] + padded[1:-3] + padded[3:-1] + padded[4:]) / 4
    cuts = np.flatnonzero((score >= config.cut_content) & (score >= config.cut_ratio * around))
    transitions = [Transition("cut", float(times[i]), float(times[i])) for i in cuts]
    interval = float(np.median(np.diff(times))) if len(times) > 1 else 0.04
    starts = [float(times[0])] + [t.end_s for t in transitions]
    ends = [t.start_s for t in transitions] + [float(times[-1]) + interval]
    return [Shot(a, b) for a, b in zip(starts, ends, strict=True) if b > a], transitions


def split_shot(shot: Shot, min_s: float = 3.0, max_s: float = 6.0) -> list[tuple[float, float]]:
    """The shot as the fewest equal clips (start_s, end_s) of at most ``max_s``.

    A shot under ``min_s`` is one clip, for the caller to reject. No clip of a longer one is under ``min_s`` while
    ``max_s >= 2 * min_s``.
    """
    length = shot.end_s - shot.start_s
    count = max(1, math.ceil(length / max_s - 1e-9))
    if length < min_s:
        count = 1
    edges = np.linspace(shot.start_s, shot.end_s, count + 1).tolist()
    return list(itertools.pairwise(edges))
