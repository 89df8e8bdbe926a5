"""The decoding pass over one source, as a function that runs in a process of its own (it imports no Prefect).

Every picture goes, small, to the shot track; sparse pictures go to the frame store, each with the partner that optical
flow needs. Times are those of the container's clock, so that variable frame rates and streams that do not start at
zero need no special case downstream.
"""

import math
import os
from contextlib import ExitStack, closing
from typing import IO, Any

import av
import cv2
import pyarrow as pa
import pyarrow.parquet as pq

from media.display import Display, Image
from media.image import is_image, read_image
from media.source import BadSource
from media.video import Shown, Video, open_video
from tasks.curation.pairs import Pairing, change
from tasks.curation.shots import TRACK_SCHEMA, FrameTrack
from tasks.tables.faults import in_words
from tasks.tables.frame_store import SAMPLE_SIDE, FrameStoreWriter

SAMPLES, TRACK = "samples.parquet", "track.parquet"

TRACK_SIDE = 256
ROUNDING = 1e-6  # of the time between two samples
HEAD_BYTES = 4096  # what tells an image from a video

Row = dict[str, Any]

cv2.setNumThreads(1)  # sources are decoded side by side
pa.array([0])  # pyarrow imports pandas with its first array, where it is installed: a second that each fork would need


def decode(path: str, folder: str, samples_per_s: float) -> Row:
    """Decode the local file ``path`` once; write SAMPLES and TRACK into ``folder``.

    Returns its columns of the scan, or only ``error``, in words, where it is no usable video or image. Raises OSError
    and MemoryError where this machine is to blame, and not what the file holds.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
        if not head:
            raise BadSource("the file is empty")
        row = _image(path, folder) if is_image(head) else _video(path, folder, samples_per_s)
        return row | {"bit_rate": int(os.path.getsize(path) * 8 / (row["duration_s"] or 1))}
    except BadSource as problem:
        return {"error": str(problem)}
    except av.FFmpegError as problem:  # of the file's content; some are OSErrors as well, by their numbers
        return {"error": f"cannot be decoded: {in_words(problem)}"}
    except (OSError, MemoryError):
        raise
    except Exception as problem:
        return {"error": f"cannot be decoded: {in_words(problem)}"}


def _image(path: str, folder: str) -> Row:
    image = read_image(path)
    height, width = image.shape[:2]
    with ExitStack() as stack:
        store, _ = _writers(stack, folder)
        store.add(0.0, image, None, None)
    return _row(0.0, 0.0, 0.0, [{"start_s": 0.0, "end_s": 0.0, "width": width, "height": height}])


def _video(path: str, folder: str, samples_per_s: float) -> Row:
    with ExitStack() as stack:
        video = stack.enter_context(open_video(path))
        store, tracks = _writers(stack, folder)
        recorder = _Recorder(video, store, tracks, samples_per_s)
        for shown in video.shown():
            recorder.add(shown)
        recorder.end()
        video.check_whole()
        segments = recorder.segments
        return _row(segments[0]["start_s"], segments[-1]["end_s"], video.fps, segments)


def _row(start_s: float, end_s: float, fps: float, segments: list[Row]) -> Row:
    """Columns of the scan; the source's size is that of its longest segment."""
    longest = max(segments, key=lambda segment: segment["end_s"] - segment["start_s"])
    return {
        "start_s": start_s,
        "end_s": end_s,
        "duration_s": end_s - start_s,
        "fps": fps,
        "width": longest["width"],
        "height": longest["height"],
        "segments": segments,
    }


def _new(folder: str, name: str) -> IO[bytes]:
    return open(os.path.join(folder, name), "wb")


def _writers(stack: ExitStack, folder: str) -> tuple[FrameStoreWriter, pq.ParquetWriter]:
    store = stack.enter_context(closing(FrameStoreWriter(stack.enter_context(_new(folder, SAMPLES)))))
    return store, stack.enter_context(pq.ParquetWriter(os.path.join(folder, TRACK), TRACK_SCHEMA, compression="zstd"))


class _Recorder:
    """Takes the pictures of one video as they are shown, and writes its shot track and its frame store."""

    def __init__(self, video: Video, store: FrameStoreWriter, tracks: pq.ParquetWriter, samples_per_s: float) -> None:
        self._video, self._store, self._tracks, self._rate = video, store, tracks, samples_per_s
        self._track, self._pairing = FrameTrack(), Pairing()
        self._display: Display | None = None
        self._before: Image | None = None  # the small picture before, of the same segment
        self._next_sample_s = -math.inf
        self.segments: list[Row] = []

    def add(self, shown: Shown) -> None:
        frame, time_s = shown.frame, shown.time_s
        if shown.segment == len(self.segments):
            self._begin(shown)
        display = self._display
        assert display is not None
        small = display.small(frame, TRACK_SIDE)
        self._track.add(time_s, shown.end_s, shown.segment, small)
        if (block := self._track.take_block()) is not None:
            self._tracks.write_table(block)
        late = (time_s - self._next_sample_s) * self._rate + ROUNDING
        if late >= 0:
            self._next_sample_s += (1 + int(late)) / self._rate
        changed = 0.0 if self._before is None else change(self._before, small)
        self._pairing.add(time_s, changed, late >= 0, lambda: display.picture(frame, SAMPLE_SIDE))
        self._store_finished()
        self._before = small
        self.segments[-1]["end_s"] = shown.end_s

    def _begin(self, shown: Shown) -> None:
        """Begin a segment: a hole in time or another picture size lies before it."""
        self._pairing.begin()
        self._before = None
        self._next_sample_s = shown.time_s
        if self._display is None or self._display.stored != (shown.frame.width, shown.frame.height):
            self._display = Display.of(shown.frame, self._video.stream.sample_aspect_ratio)
        size = {"width": self._display.width, "height": self._display.height}
        self.segments.append({"start_s": shown.time_s, "end_s": shown.end_s, **size})

    def end(self) -> None:
        """The last picture was taken. Raises BadSource where there was none."""
        if not self.segments:
            raise BadSource("no video frame could be decoded")
        self._pairing.begin()
        self._store_finished()
        self._tracks.write_table(self._track.flush())

    def _store_finished(self) -> None:
        for pair in self._pairing.finished():
            self._store.add(pair.time_s, pair.image, pair.partner_time_s, pair.partner, pair.gap_s)
