"""Shots: from a compact track of every frame, recorded by the single decoding pass, to stretches without a transition.

Recording and deciding are apart, so that a threshold can change without decoding. The track has one row a frame::

    time_s       float64     presentation time
    end_s        float64     when it leaves the screen, as media.stamps says; the next frame's time within a segment
    segment      int32       stretch of the source without a hole in time and of one picture size, counted from 0
    content_val  float32     PySceneDetect's content value: mean HSV distance to the frame before, 0 to 255
    thumbnail    binary 432  the picture squeezed to 12x12: luma, Cb, Cr, a byte each

Method of the report's section 3.1: PySceneDetect's score for cuts, and a temporal pattern of the thumbnails for
gradual transitions. No shot reaches over the end of a segment.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.curation.thumbnails import SIDE
from tasks.curation.transitions import Kind, ShotConfig, Transition, find_cuts, find_gradual
from tasks.tables.picture import Image

FRAMES_PER_BLOCK = 4096
OVERLAP = 768  # more than any transition with what is around it, at 60 frames a second
SEAM = OVERLAP // 3  # frames of surroundings that a transition needs: a loop goes round twice in them
MAX_FPS = 36.0  # of what gradual transitions are looked for in
CLOCK_S = 0.5e-3  # grace of lengths: 3 s of 29.97 fps video are 2.9997 s by a container's clock

TRACK_SCHEMA = pa.schema(
    [
        ("time_s", pa.float64()),
        ("end_s", pa.float64()),
        ("segment", pa.int32()),
        ("content_val", pa.float32()),
        ("thumbnail", pa.binary(3 * SIDE * SIDE)),
    ]
)


class FrameTrack:
    """Records the track of one source, a block at a time, so that hours of video are never in memory."""

    def __init__(self) -> None:
        self._before: tuple[int, Image] | None = None  # segment and HSV picture of the frame before
        self._rows: list[tuple[float, float, int, float, bytes]] = []

    def add(self, time_s: float, end_s: float, segment: int, image: Image) -> None:
        """Record the next frame: RGB uint8 [h, w, 3], longest side about 256, of one size within a segment."""
        small = _halve(_halve(image))
        hsv = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2HSV), np.uint8)
        same = self._before is not None and self._before[0] == segment
        content = content_value(hsv, self._before[1]) if self._before and same else 0.0
        self._before = segment, hsv
        self._rows.append((time_s, end_s, segment, content, _thumbnail(small)))

    def take_block(self) -> pa.Table | None:
        """The frames recorded since the last block, once they are FRAMES_PER_BLOCK; until then None."""
        return self.flush() if len(self._rows) >= FRAMES_PER_BLOCK else None

    def flush(self) -> pa.Table:
        """The frames recorded since the last block; there may be none."""
        columns = list(zip(*self._rows, strict=True)) or [()] * len(TRACK_SCHEMA)
        self._rows = []
        return pa.table([pa.array(c, t) for c, t in zip(columns, TRACK_SCHEMA.types, strict=True)], schema=TRACK_SCHEMA)


def content_value(hsv: Image, before: Image) -> float:
    """PySceneDetect's content value of two HSV pictures uint8 [h, w, 3]: their mean absolute distance, 0 to 255.

    Its own detector gives it away only together with an edge detection that nobody asked for, at 25 times the cost.
    """
    return sum(cv2.mean(cv2.absdiff(hsv, before))[:3]) / 3


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
    """A stretch of a source between two transitions, inside one segment.

    ``end_s`` is the end of its last frame, which is the time of the first frame after it where one follows at once.
    """

    start_s: float
    end_s: float
    segment: int = 0


def detect_shots(track: Iterable[pa.RecordBatch] | pa.Table, config: ShotConfig) -> list[Shot]:
    """The shots of a source, in order."""
    return detect_transitions(track, config)[0]


def detect_transitions(
    track: Iterable[pa.RecordBatch] | pa.Table, config: ShotConfig
) -> tuple[list[Shot], list[Transition]]:
    """The shots of a source and the transitions between them, in order.

    Where a segment ends so does a shot, without a transition: nothing is there that could be recognised.
    """
    shots: list[Shot] = []
    transitions: list[Transition] = []
    for segment, rows in itertools.groupby(_slices(track), key=lambda part: part[0]):
        found = _transitions_within((batch for _, batch in rows), config)
        starts = [found.start_s] + [t.end_s for t in found.transitions]
        ends = [t.start_s for t in found.transitions] + [found.end_s]
        shots += [Shot(a, b, segment) for a, b in zip(starts, ends, strict=True) if b > a]
        transitions += found.transitions
    return shots, transitions


def _slices(track: Iterable[pa.RecordBatch] | pa.Table) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The track cut where segments end: (segment, rows), in order."""
    for batch in track.to_batches() if isinstance(track, pa.Table) else track:
        segments = batch["segment"].to_numpy()
        edges = [0, *(np.flatnonzero(np.diff(segments)) + 1).tolist(), len(segments)]
        for first, end in itertools.pairwise(edges):
            if end > first:
                yield int(segments[first]), batch.slice(first, end - first)


@dataclass(frozen=True)
class _Found:
    """The transitions of one segment, which lasts from ``start_s`` to ``end_s``."""

    start_s: float
    end_s: float
    transitions: list[Transition]


def _transitions_within(rows: Iterable[pa.RecordBatch], config: ShotConfig) -> _Found:
    """The transitions of one segment, of which there is at least one frame."""
    spans: list[_Span] = []
    times = np.empty(0)
    end_s = 0.0
    for block in _blocks(rows):
        times = np.concatenate([times, block.times_s[len(times) - block.first :]])
        spans += _spans(block, config)
        end_s = block.end_s
    edges = np.append(times, end_s)
    transitions = [Transition(kind, float(edges[a]), float(edges[b])) for kind, a, b in _merged(spans)]
    return _Found(float(edges[0]), end_s, transitions)


_Span = tuple[Kind, int, int]  # first frame of a transition, first frame after it


@dataclass(frozen=True)
class _Block:
    """A stretch of a segment from its frame ``first`` on; ``ends`` says whether the segment ends with it."""

    first: int
    ends: bool
    times_s: NDArray[np.float64]
    end_s: float  # of its last frame
    content: NDArray[np.float32]
    pictures: NDArray[np.float32]  # [T, 3, SIDE, SIDE]

    @classmethod
    def of(cls, first: int, ends: bool, table: pa.Table) -> "_Block":
        pictures = np.frombuffer(b"".join(table["thumbnail"].to_pylist()), np.uint8).astype(np.float32)
        shape = len(table), 3, SIDE, SIDE
        times_s, content = table["time_s"].to_numpy(), table["content_val"].to_numpy()
        return cls(first, ends, times_s, table["end_s"][-1].as_py(), content, pictures.reshape(shape))


def _blocks(rows: Iterable[pa.RecordBatch]) -> Iterator[_Block]:
    """The frames of a segment in stretches that overlap by OVERLAP."""
    first, waiting = 0, TRACK_SCHEMA.empty_table()
    for batch in rows:
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
    first = SEAM if block.first else 0
    last = len(times) if block.ends else len(times) - SEAM
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


def split_shot(
    shot: Shot, times_s: NDArray[np.float64], min_s: float = 3.0, max_s: float = 6.0
) -> list[tuple[float, float]]:
    """The shot as the fewest clips (start_s, end_s) of ``min_s`` to ``max_s``, as equal as its frames allow.

    A clip begins where a frame does: ``times_s`` are the times of the source's frames, in order. A shot under ``min_s``
    is one clip, for the caller to reject. Where no choice of frames makes every clip fit (``max_s`` under twice
    ``min_s``, or frames held for seconds), clips are as near to equal as can be, and may be shorter or longer.
    """
    length = shot.end_s - shot.start_s
    inside = times_s[(times_s > shot.start_s) & (times_s < shot.end_s)]
    fewest = max(1, math.ceil((length - CLOCK_S) / max_s))
    if length < min_s or not len(inside):
        return [(shot.start_s, shot.end_s)]
    for count in range(fewest, int((length + CLOCK_S) / min_s) + 1):
        edges = _edges(shot, inside, count, min_s - CLOCK_S, max_s + CLOCK_S)
        if edges:
            return list(itertools.pairwise(edges))
    even = np.linspace(shot.start_s, shot.end_s, fewest + 1)[1:-1]
    nearest = sorted({float(inside[np.abs(inside - point).argmin()]) for point in even})
    return list(itertools.pairwise([shot.start_s, *nearest, shot.end_s]))


def _edges(shot: Shot, times_s: NDArray[np.float64], count: int, min_s: float, max_s: float) -> list[float] | None:
    """Where ``count`` clips begin and end; None where these frames, ``times_s``, allow none of ``min_s`` to ``max_s``.

    Each edge is the frame nearest to the even split, of those from which the rest of the shot can be cut.
    """
    usable = [np.array([shot.end_s])]  # for 0, 1, 2 ... clips that follow: the frames from which they can
    for left in range(1, count):
        low = max(shot.end_s - left * max_s, shot.start_s + (count - left) * min_s)
        high = min(shot.end_s - left * min_s, shot.start_s + (count - left) * max_s)
        fit = times_s[np.searchsorted(times_s, low) : np.searchsorted(times_s, high, "right")]
        following = usable[-1]
        usable.append(
            fit[np.searchsorted(following, fit + max_s, "right") > np.searchsorted(following, fit + min_s, "left")]
        )
    edges = [shot.start_s]
    for left in range(count - 1, -1, -1):
        fit = usable[left][(usable[left] >= edges[-1] + min_s) & (usable[left] <= edges[-1] + max_s)]
        if not len(fit):
            return None
        even = shot.end_s - (shot.end_s - shot.start_s) * left / count
        edges.append(float(fit[np.abs(fit - even).argmin()]))
    return edges
