"""The frame store: the sparse sampled frames of one source, as one Parquet file.

One row a sample, in order of time::

    time_s          float64   presentation time of the sampled frame
    jpeg            binary    the frame, upright, square pixels, longest side at most SAMPLE_SIDE
    partner_time_s  float64   presentation time of its partner, about PAIR_GAP_S later; null at the end of a source
    partner_jpeg    binary    the partner, longest side at most PAIR_SIDE: what optical flow compares the sample with

Row groups are short, so a reader of one clip fetches only that clip's seconds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import cv2
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.tables.picture import Image, shrink

SAMPLE_SIDE = 640
PAIR_SIDE = 448
PAIR_GAP_S = 1 / 15  # 24, 25, 30, 50 and 60 frames per second have one gap, also at half the rate
ROWS_PER_GROUP = 16
GROUPS_HELD = 4

_SCHEMA = pa.schema(
    [
        ("time_s", pa.float64()),
        ("jpeg", pa.binary()),
        ("partner_time_s", pa.float64()),
        ("partner_jpeg", pa.binary()),
    ]
)


@dataclass(frozen=True)
class Frame:
    """A sampled frame: ``image`` is RGB uint8 [H, W, 3]."""

    time_s: float
    image: Image


@dataclass(frozen=True)
class FramePair:
    """Two frames ``gap_s`` apart, for optical flow: RGB uint8 [h, w, 3] each, of one size."""

    time_s: float
    gap_s: float
    first: Image
    second: Image


def encode_jpeg(image: Image, quality: int = 90) -> bytes:
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[
        1
    ].tobytes()


def decode_jpeg(jpeg: bytes) -> Image:
    """RGB uint8 [H, W, 3]."""
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)  # type: ignore[return-value]


class FrameStoreWriter:
    """Appends samples to a frame store, a row group at a time, so that an hour of video is never in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        # JPEG does not compress further: leave the bytes as they are.
        self._writer = pq.ParquetWriter(file, _SCHEMA, compression="none")
        self._rows: list[dict[str, object]] = []

    def add(self, time_s: float, image: Image, partner_time_s: float | None, partner: Image | None) -> None:
        """Store a sample and its partner; both are full-size pictures, scaled down here by the same filter."""
        sample = shrink(image, SAMPLE_SIDE)
        small = None if partner is None else encode_jpeg(shrink(shrink(partner, SAMPLE_SIDE), PAIR_SIDE))
        row = {"time_s": time_s, "jpeg": encode_jpeg(sample), "partner_time_s": partner_time_s, "partner_jpeg": small}
        self._rows.append(row)
        if len(self._rows) == ROWS_PER_GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=_SCHEMA))
            self._rows = []


class FrameStore:
    """Reads the samples of one source by time. Not for use by several threads at once: open one each."""

    def __init__(self, file: IO[bytes]) -> None:
        self._parquet = pq.ParquetFile(file)
        times = self._parquet.read(columns=["time_s", "partner_time_s"])
        self.times_s: NDArray[np.float64] = times["time_s"].to_numpy()
        self._partner_times_s = times["partner_time_s"].to_numpy()  # NaN where there is none
        self._groups: dict[tuple[int, str], list[bytes]] = {}

    def frames(self, start_s: float, end_s: float, limit: int | None = None) -> list[Frame]:
        """The samples with ``start_s <= time_s < end_s``; at most ``limit`` of them, evenly spread."""
        rows = _spread(self._rows(start_s, end_s), limit)
        return [Frame(float(self.times_s[row]), decode_jpeg(self._jpeg(row, "jpeg"))) for row in rows]

    def pairs(self, start_s: float, end_s: float, limit: int | None = None) -> list[FramePair]:
        """The pairs that lie inside ``[start_s, end_s)`` whole; at most ``limit`` of them, evenly spread."""
        rows = [row for row in self._rows(start_s, end_s) if self._partner_times_s[row] < end_s]
        return [self._pair(row) for row in _spread(rows, limit)]

    def jpegs(self, start_s: float, end_s: float, limit: int | None = None) -> list[bytes]:
        """The samples of ``frames`` as they are stored."""
        return [self._jpeg(row, "jpeg") for row in _spread(self._rows(start_s, end_s), limit)]

    def _pair(self, row: int) -> FramePair:
        time_s = float(self.times_s[row])
        first = shrink(decode_jpeg(self._jpeg(row, "jpeg")), PAIR_SIDE)
        second = decode_jpeg(self._jpeg(row, "partner_jpeg"))
        return FramePair(time_s, float(self._partner_times_s[row]) - time_s, first, second)

    def _rows(self, start_s: float, end_s: float) -> list[int]:
        first, last = np.searchsorted(self.times_s, [start_s, end_s])
        return list(range(first, last))

    def _jpeg(self, row: int, column: str) -> bytes:
        group, offset = divmod(row, ROWS_PER_GROUP)
        if (group, column) not in self._groups:
            if len(self._groups) >= GROUPS_HELD:
                self._groups.pop(next(iter(self._groups)))
            self._groups[group, column] = self._parquet.read_row_group(group, columns=[column])[column].to_pylist()
        return self._groups[group, column][offset]


def _spread(rows: list[int], limit: int | None) -> list[int]:
    """At most ``limit`` of the rows: the middles of ``limit`` equal parts."""
    if limit is None or len(rows) <= limit:
        return rows
    return [rows[int((i + 0.5) * len(rows) / limit)] for i in range(limit)]


@contextmanager
def open_frames(uri: str) -> Iterator[FrameStore]:
    with fsspec.open(uri, "rb") as file:
        yield FrameStore(file)
