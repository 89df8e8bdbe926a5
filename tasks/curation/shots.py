"""Shots: from a compact track of every frame, recorded by the single decoding pass, to stretches without a transition.

Recording and deciding are apart, so that a threshold can change without decoding. The track has one row a frame::

    time_s       float64     presentation time
    content_val  float32     PySceneDetect's content value: mean HSV distance to the frame before, 0 to 255
    thumbnail    binary 432  the picture squeezed to 12x12: luma, Cb, Cr, a byte each

Method of the report's section 3.1: PySceneDetect's score for cuts, and a temporal pattern of the thumbnails for
gradual transitions.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scenedetect import FrameTimecode
from scenedetect.detectors import ContentDetector

from tasks.curation.transitions import SIDE, Kind, ShotConfig, Transition, find_cuts, find_gradual
from tasks.tables.picture import Image

FRAMES_PER_BLOCK = 4096
OVERLAP = 512  # more than any transition with what is around it, at 60 frames a second
MAX_FPS = 36.0  # of what gradual transitions are looked for in

TRACK_SCHEMA = pa.schema(
    [("time_s", pa.float64()), ("content_val", pa.float32()), ("thumbnail", pa.binary(3 * SIDE * SIDE))]
)


class FrameTrack:
    """Records the track of one source, a block at a time, so that hours of video are never in memory."""

    def __init__(self) -> None:
        self._detector = ContentDetector(min_scene_len=0)
        self._time = FrameTimecode(0, fps=25.0)  # the content value does not depend on time
        self._rows: list[tuple[float, float, bytes]] = []

    def add(self, time_s: float, image: Image) -> None:
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


def _halve(image: Image) -> Image:
    """Means of 2x2 pixels, an odd last row or column left out: the one area reduction that is nearly free."""
    height, width = image.shape[0] // 2, image.shape[1] // 2
    if not height or not width:
        return image
    return cv2.resize(image[: height * 2, : width * 2], (width, height), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def _thumbnail(image: Image) -> bytes:
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    luma, red, blue = cv2.split(cv2.cvtColor(small, cv2.COLOR_RGB2YCrCb))
    return luma.tobytes() + blue.tobytes() + red.tobytes()


@dataclass(frozen=True)
class Shot:
    """A stretch of a source between two transitions; ``end_s`` is the time of the first frame after it."""

    start_s: float
    end_s: float


def detect_shots(track: Iterable[pa.RecordBatch] | pa.Table, config: ShotConfig) -> list[Shot]:
    """The shots of a source, in order."""
    return detect_transitions(track, config)[0]


def detect_transitions(
    track: Iterable[pa.RecordBatch] | pa.Table, config: ShotConfig
) -> tuple[list[Shot], list[Transition]]:
    """The shots of a source and the transitions between them, in order."""
    spans: list[_Span] = []
    times = np.empty(0)
    for block in _blocks(track):
        times = np.concatenate([times, block.times_s[len(times) - block.first :]])
        spans += _spans(block, config)
    if not len(times):
        return [], []
    interval = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    edges = np.append(times, times[-1] + interval)
    transitions = [Transition(kind, float(edges[a]), float(edges[b])) for kind, a, b in _merged(spans)]
    starts = [float(edges[0])] + [t.end_s for t in transitions]
    ends = [t.start_s for t in transitions] + [float(edges[-1])]
    return [Shot(a, b) for a, b in zip(starts, ends, strict=True) if b > a], transitions


_Span = tuple[Kind, int, int]  # first frame of a transition, first frame after it


@dataclass(frozen=True)
class _Block:
    """A stretch of the track from frame ``first``; ``ends`` says whether the track ends with it."""

    first: int
    ends: bool
    times_s: NDArray[np.float64]
    content: NDArray[np.float32]
    pictures: NDArray[np.float32]  # [T, 3, SIDE, SIDE]

    @classmethod
    def of(cls, first: int, ends: bool, table: pa.Table) -> "_Block":
        pictures = np.frombuffer(b"".join(table["thumbnail"].to_pylist()), np.uint8).astype(np.float32)
        shape = len(table), 3, SIDE, SIDE
        return cls(first, ends, table["time_s"].to_numpy(), table["content_val"].to_numpy(), pictures.reshape(shape))


def _blocks(track: Iterable[pa.RecordBatch] | pa.Table) -> Iterator[_Block]:
    """The track in stretches that overlap by OVERLAP."""
    first, waiting = 0, TRACK_SCHEMA.empty_table()
    for batch in track.to_batches() if isinstance(track, pa.Table) else track:
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch])])
        while len(waiting) > FRAMES_PER_BLOCK + OVERLAP:
            yield _Block.of(first, False, waiting[: FRAMES_PER_BLOCK + OVERLAP])
            waiting, first = waiting[FRAMES_PER_BLOCK:], first + FRAMES_PER_BLOCK
    if len(waiting):
        yield _Block.of(first, True, waiting)


def _spans(block: _Block, config: ShotConfig) -> list[_Span]:
    """The transitions of a block; not those near a seam, whose surroundings only the neighbouring block sees whole."""
    times = block.times_s
    fps = 1 / max(float(np.median(np.diff(times))), 1e-3) if len(times) > 1 else MAX_FPS
    cuts = find_cuts(block.content, block.pictures, fps, config)
    kept = _thinned(times, set(cuts))
    gradual = find_gradual(block.pictures[kept], np.searchsorted(kept, cuts).tolist(), config)
    spans: list[_Span] = [("cut", i, i) for i in cuts]
    spans += [(s.kind, int(kept[s.before]) + 1, int(kept[s.after])) for s in gradual]
    seam = OVERLAP // 4
    first = seam if block.first else 0
    last = len(times) if block.ends else len(times) - seam
    return [(kind, a + block.first, b + block.first) for kind, a, b in spans if a >= first and b <= last]


def _thinned(times: NDArray[np.float64], needed: set[int]) -> NDArray[np.intp]:
    """Indices of frames at no more than MAX_FPS, and those that are needed."""
    kept, last = [], -np.inf
    for i, time in enumerate(times.tolist()):
        if time - last >= 1 / MAX_FPS or i in needed:
            kept.append(i)
            last = time
    return np.array(kept)


def _merged(spans: list[_Span]) -> list[_Span]:
    """In order, with those that two blocks saw, or that touch, as one; a cut inside a gradual transition goes."""
    merged: list[_Span] = []
    for kind, a, b in sorted(spans, key=lambda s: (s[1], -s[2])):
        if merged and a <= merged[-1][2]:
            last, start, end = merged[-1]
            merged[-1] = (kind if last == "cut" else last, start, max(end, b))
        else:
            merged.append((kind, a, b))
    return merged


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
