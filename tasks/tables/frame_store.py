"""The frame store: the sparse sampled frames of one source, as one Parquet file.

One row a sample, in order of time::

    time_s          float64   presentation time of the sampled frame
    jpeg            binary    the frame, upright, square pixels, longest side at most SAMPLE_SIDE
    partner_time_s  float64   presentation time of its partner, PAIR_GAP_S or more later; null at the end of a source
    gap_s           float64   time between the first appearances of what the two show: footage may be held
    partner_jpeg    binary    the partner, longest side at most PAIR_SIDE: what optical flow compares the sample with

All times stand in the file's footer, too (key-value metadata ``times_s``, ``partner_times_s`` and ``gaps_s``: base64
of little-endian float64, NaN where there is none), and row groups are short. So opening a store reads the footer alone,
and a clip the row groups of its own seconds: what a clip costs does not depend on the length of its source.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import IO

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from media.output_error import output_errors
from media.range_file import RangeFile
from tasks.tables import storage
from tasks.tables.picture import Image, shrink

SAMPLE_SIDE = 640
PAIR_SIDE = 448
PAIR_GAP_S = 1 / 15  # 24, 25, 30, 50 and 60 frames per second have one gap, also at half the rate
ROWS_PER_GROUP = 16
GROUPS_HELD = 16  # of one column each: about a megabyte
PICTURES_HELD_BYTES = 64 << 20  # about 90 samples: those of a few clips, which one score after the other looks at

_SCHEMA = pa.schema(
    [
        ("time_s", pa.float64()),
        ("jpeg", pa.binary()),
        ("partner_time_s", pa.float64()),
        ("gap_s", pa.float64()),
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
    """Two frames for optical flow: RGB uint8 [h, w, 3] each, of one size.

    ``gap_s`` is the time in which the one became the other, also where footage is held.
    """

    time_s: float
    gap_s: float
    first: Image
    second: Image


def encode_jpeg(image: Image, quality: int = 90) -> bytes:
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[
        1
    ].tobytes()


def decode_jpeg(jpeg: bytes) -> Image:
    """RGB uint8 [H, W, 3]. ValueError for bytes that are no picture."""
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise ValueError("the stored picture cannot be decoded")
    return image  # type: ignore[return-value]


class FrameStoreWriter:
    """Appends samples to a frame store, a row group at a time, so that an hour of video is never in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        # JPEG does not compress further, and no two frames are one: leave the bytes as they are.
        self._writer = pq.ParquetWriter(
            file, _SCHEMA, compression="none", use_dictionary=False, write_statistics=["time_s", "partner_time_s"]
        )
        self._rows: list[dict[str, object]] = []
        self._times_s: list[float] = []
        self._partner_times_s: list[float] = []
        self._gaps_s: list[float] = []

    def add(
        self,
        time_s: float,
        image: Image,
        partner_time_s: float | None,
        partner: Image | None,
        gap_s: float | None = None,
    ) -> None:
        """Store a sample, later than all before, and its partner; both are full-size pictures, scaled down here.

        ``gap_s`` is the time in which what the sample shows became what the partner shows; None: that between them.
        """
        sample = shrink(image, SAMPLE_SIDE)
        small = None if partner is None else encode_jpeg(shrink(shrink(partner, SAMPLE_SIDE), PAIR_SIDE))
        if gap_s is None and partner_time_s is not None:
            gap_s = partner_time_s - time_s
        row = {
            "time_s": time_s,
            "jpeg": encode_jpeg(sample),
            "partner_time_s": partner_time_s,
            "gap_s": gap_s,
            "partner_jpeg": small,
        }
        self._rows.append(row)
        self._times_s.append(time_s)
        self._partner_times_s.append(np.nan if partner_time_s is None else partner_time_s)
        self._gaps_s.append(np.nan if gap_s is None else gap_s)
        if len(self._rows) == ROWS_PER_GROUP:
            self._flush()

    def close(self) -> None:
        """Write what is left, and the footer. A store that was not closed cannot be read."""
        self._flush()
        times = {"times_s": self._times_s, "partner_times_s": self._partner_times_s, "gaps_s": self._gaps_s}
        self._writer.add_key_value_metadata({name: _as_text(of) for name, of in times.items()})
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=_SCHEMA))
            self._rows = []


class FrameStore:
    """Reads the samples of one source by time. Several threads may use it at once.

    Row groups that were read last are kept, and two threads that want the same one read it once. Raises OutputError
    where the store cannot be read: it is a file of OUT, so that is no error of a clip.
    """

    def __init__(self, file: IO[bytes] | RangeFile, uri: str = "frame store") -> None:
        self._file, self._uri = RangeFile.of(file), uri
        with output_errors(uri):
            self._footer = pq.read_metadata(self._file)
            self.times_s = _as_times(self._footer.metadata[b"times_s"])  # [N] seconds, ascending
            self.partner_times_s = _as_times(self._footer.metadata[b"partner_times_s"])  # [N] seconds, NaN: none
            self.gaps_s = _as_times(self._footer.metadata[b"gaps_s"])  # [N] seconds, NaN: no partner
        self._held: dict[tuple[int, str], Future[list[bytes]]] = {}
        self._pictures: dict[tuple[int, str], Image] = {}
        self._pictures_bytes = 0
        self._lock = Lock()

    def frames(self, start_s: float, end_s: float, limit: int | None = None) -> list[Frame]:
        """The samples with ``start_s <= time_s < end_s``; at most ``limit`` of them, evenly spread."""
        rows = _spread(self._rows(start_s, end_s), limit)
        return [Frame(float(self.times_s[row]), self._image(row, "jpeg")) for row in rows]

    def pairs(self, start_s: float, end_s: float, limit: int | None = None) -> list[FramePair]:
        """The pairs that lie inside ``[start_s, end_s)`` whole; at most ``limit`` of them, evenly spread."""
        rows = [row for row in self._rows(start_s, end_s) if self.partner_times_s[row] < end_s]
        return [self._pair(row) for row in _spread(rows, limit)]

    def jpegs(self, start_s: float, end_s: float, limit: int | None = None) -> list[bytes]:
        """The samples of ``frames`` as they are stored, not decoded."""
        return [self._jpeg(row, "jpeg") for row in _spread(self._rows(start_s, end_s), limit)]

    def _pair(self, row: int) -> FramePair:
        time_s = float(self.times_s[row])
        first = shrink(self._image(row, "jpeg"), PAIR_SIDE)
        return FramePair(time_s, float(self.gaps_s[row]), first, self._image(row, "partner_jpeg"))

    def _rows(self, start_s: float, end_s: float) -> list[int]:
        first, last = np.searchsorted(self.times_s, [start_s, end_s])
        return list(range(first, last))

    def _image(self, row: int, column: str) -> Image:
        """A picture, from those that are held or decoded. It is shared, so nobody may write into it."""
        key = row, column
        with self._lock:
            if key in self._pictures:
                self._pictures[key] = self._pictures.pop(key)  # last, as the one that was used last
                return self._pictures[key]
        jpeg = self._jpeg(row, column)
        with output_errors(self._uri):
            image = decode_jpeg(jpeg)
        image.flags.writeable = False
        with self._lock:
            self._pictures_bytes += image.nbytes - (self._pictures[key].nbytes if key in self._pictures else 0)
            self._pictures[key] = image
            while self._pictures_bytes > PICTURES_HELD_BYTES:
                self._pictures_bytes -= self._pictures.pop(next(iter(self._pictures))).nbytes
        return image

    def _jpeg(self, row: int, column: str) -> bytes:
        group, offset = divmod(row, ROWS_PER_GROUP)
        return self._group(group, column)[offset]

    def _group(self, group: int, column: str) -> list[bytes]:
        """One column of a row group, from those that are held or with one read of the file."""
        key = group, column
        with self._lock:
            mine = key not in self._held
            held = self._held.pop(key) if not mine else Future()
            self._held[key] = held  # last, as the one that was used last
            if len(self._held) > GROUPS_HELD:
                self._held.pop(next(iter(self._held)))
        if mine:
            try:
                held.set_result(self._read(group, column))
            except BaseException as problem:
                with self._lock:
                    self._held.pop(key, None)
                held.set_exception(problem)
        return held.result()

    def _read(self, group: int, column: str) -> list[bytes]:
        # A reader of its own shares the footer and costs no read; one reader is not made for several threads.
        with output_errors(self._uri):
            reader = pq.ParquetFile(self._file.view(), metadata=self._footer)
            return reader.read_row_group(group, columns=[column])[column].to_pylist()


def _as_text(times_s: Sequence[float]) -> str:
    return b64encode(np.asarray(times_s, "<f8").tobytes()).decode()


def _as_times(text: bytes) -> NDArray[np.float64]:
    return np.frombuffer(b64decode(text), "<f8").astype(np.float64)


def _spread(rows: list[int], limit: int | None) -> list[int]:
    """At most ``limit`` of the rows: the middles of ``limit`` equal parts."""
    if limit is None or len(rows) <= limit:
        return rows
    return [rows[int((i + 0.5) * len(rows) / limit)] for i in range(limit)]


@contextmanager
def open_frames(uri: str) -> Iterator[FrameStore]:
    """Open a frame store: once for all clips of its source. Raises OutputMissing where it was deleted."""
    with storage.open_read(uri) as file:
        yield FrameStore(file, uri)
