"""Which clips the report shows, and their previews.

A threshold is judged at its edge: the strips show the clips nearest to it on both sides, and a few at random. Random
means by ``clip_id``, which is a hash, so the same tables give the same page. Memory is bounded by the pools, whatever
the number of clips.
"""

import heapq
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Sequence
from io import BytesIO
from math import inf
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image as Pillow

from tasks.tables.clip import frames_of
from tasks.tables.keys import key_of, root_of
from tasks.tables.step import Row

POOL = 32
PER_SOURCE = 2
PREVIEW_SIZE = (284, 160)
PREVIEW_FRAMES = 8
PREVIEW_MS = 250
STILL_SIZE = (114, 64)

Place = tuple[int, int]  # (table, row)
Candidate = tuple[float, str, str, Place]  # distance, id, source, place: compared in this order


class Pool:
    """The POOL candidates of least distance; ties go by id."""

    def __init__(self, size: int = POOL) -> None:
        self.size = size
        self.best: list[Candidate] = []

    def add(
        self,
        number: int,
        rows: NDArray[np.bool_],
        distance: NDArray[np.float64],
        ids: Sequence[str],
        sources: Sequence[str],
    ) -> None:
        """Offer the marked rows of table ``number``."""
        places = np.flatnonzero(rows)
        if len(places) > self.size:
            cut = np.partition(distance[places], self.size - 1)[self.size - 1]
            places = places[distance[places] <= cut]
        new = ((float(distance[row]), ids[row], sources[row], (number, row)) for row in places.tolist())
        self.best = heapq.nsmallest(self.size, [*self.best, *new])


def choose(nearest: Iterable[Candidate], random: Iterable[Candidate], near: int, far: int) -> list[Place]:
    """``near`` of the nearest, at most PER_SOURCE from one source while there are others, and ``far`` of the random."""
    chosen: list[Place] = []
    for candidates, count in ((list(nearest), near), (list(random), near + far)):
        taken: Counter[str] = Counter()
        later: list[Place] = []
        for _, _, source, place in candidates:
            if place in chosen or len(chosen) >= count:
                continue
            if taken[source] < PER_SOURCE:
                chosen.append(place)
                taken[source] += 1
            else:
                later.append(place)
        chosen += later[: max(0, count - len(chosen))]
    return chosen


def ids_of(table: pa.Table) -> list[str]:
    """What orders rows at random: ``clip_id``, or a hash of the source's URI where there is no clip."""
    pairs = zip(table["clip_id"].to_pylist(), table["source_uri"].to_pylist(), strict=True)
    return [clip or key_of(source) for clip, source in pairs]


class Preview(NamedTuple):
    """Data URIs: the animation, and the still for print and for those who asked for less motion."""

    moving: str
    still: str


def preview(table: str, row: Row, most: int) -> Preview | None:
    """The clip as an animated WebP of about ``most`` bytes; None where the frame store is gone or cannot be read."""
    frames = _pictures(table, row, PREVIEW_FRAMES, PREVIEW_SIZE)
    if not frames:
        return None
    for quality, count in ((60, PREVIEW_FRAMES), (40, PREVIEW_FRAMES), (30, 4), (20, 1)):
        kept = frames[:: max(1, len(frames) // count)][:count]
        duration = PREVIEW_MS * len(frames) // len(kept)
        data = _webp(kept, quality, duration)
        if len(data) <= most:
            break
    return Preview(_uri(data), _uri(_webp(frames[len(frames) // 2 :][:1], 50, 0)))


def still(table: str, row: Row) -> str | None:
    """The middle frame of the clip, small, as a data URI; None as for ``preview``."""
    frames = _pictures(table, row, 1, STILL_SIZE)
    return _uri(_webp(frames, 50, 0)) if frames else None


def _pictures(table: str, row: Row, count: int, size: tuple[int, int]) -> list[Pillow.Image]:
    if not row["frames_uri"] or row["start_s"] is None:
        return []
    end_s = row["end_s"] if row["duration_s"] else inf
    try:
        with frames_of(root_of(table), row) as store:
            jpegs = store.jpegs(row["start_s"], end_s, count)
        pictures = [Pillow.open(BytesIO(jpeg)) for jpeg in jpegs]
        for picture in pictures:
            picture.thumbnail(size, Pillow.Resampling.LANCZOS)
    except (OSError, ValueError, pa.ArrowException):
        return []
    return list(pictures)


def _webp(frames: list[Pillow.Image], quality: int, duration: int) -> bytes:
    out = BytesIO()
    more = {"save_all": True, "append_images": frames[1:], "duration": duration, "loop": 0} if len(frames) > 1 else {}
    frames[0].save(out, "WEBP", quality=quality, method=2, **more)
    return out.getvalue()


def _uri(data: bytes) -> str:
    return "data:image/webp;base64," + b64encode(data).decode()
