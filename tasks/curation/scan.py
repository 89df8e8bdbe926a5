"""Scan: the one decoding pass over a source (report, section 3.1, before everything else).

Every frame goes, small, to the shot track; sparse frames go to the frame store, each with the partner that optical
flow needs. Times are presentation times as the container stores them, so variable frame rates and streams that do
not start at zero need no special case downstream.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import cv2
import fsspec
import numpy as np
import pyarrow.parquet as pq
from av.video.reformatter import Interpolation, VideoReformatter
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from pydantic import Field

from tasks.curation.shots import TRACK_SCHEMA, FrameTrack
from tasks.tables import storage
from tasks.tables.frame_store import PAIR_GAP_S, SAMPLE_SIDE, FrameStoreWriter
from tasks.tables.picture import Image, fit
from tasks.tables.schema import table as schema_table
from tasks.tables.step import Row, StepConfig, key_of, result_uri, root_of, side_by_side, step_task

TRACK_SIDE = 256
# A stream that ends this much before its header says has lost its tail, not just a few frames.
TRUNCATED_BELOW = 0.9

VERSION = 1


class ScanConfig(StepConfig):
    samples_per_s: float = Field(2.0, gt=0, le=30, description="Sampled frames per second of video kept in the store")


class BadSource(Exception):
    """A source that cannot be used; the message says why, in words for the report."""


@dataclass(frozen=True)
class Geometry:
    """How decoded frames become displayed ones: square pixels, then turned upright."""

    width: int
    height: int
    quarter_turns: int  # counter-clockwise

    @classmethod
    def of(cls, frame: av.VideoFrame, sample_aspect: Fraction | None) -> "Geometry":
        wide = frame.width * float(sample_aspect or 1)
        return cls(max(1, round(wide)), frame.height, round(frame.rotation / 90) % 4)

    @property
    def displayed(self) -> tuple[int, int]:
        """Width and height as displayed, pixels."""
        return (self.height, self.width) if self.quarter_turns % 2 else (self.width, self.height)


class Picture:
    """Decoded frames as small upright RGB pictures. One scaler context per size, reused from frame to frame."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._track = VideoReformatter()
        self._sample = VideoReformatter()

    def track(self, frame: av.VideoFrame) -> Image:
        """Longest side TRACK_SIDE, as decoded: what is compared with its like need not be upright."""
        width, height = fit(frame.width, frame.height, TRACK_SIDE)
        small = self._track.reformat(frame, width, height, "rgb24", interpolation=Interpolation.FAST_BILINEAR)
        return np.asarray(small.to_ndarray(), np.uint8)

    def sample(self, frame: av.VideoFrame) -> Image:
        """Longest side SAMPLE_SIDE, square pixels, upright."""
        width, height = fit(self._geometry.width, self._geometry.height, SAMPLE_SIDE)
        small = self._sample.reformat(frame, width, height, "rgb24", interpolation=Interpolation.AREA)
        return np.ascontiguousarray(np.rot90(small.to_ndarray(), self._geometry.quarter_turns))


def frames_in_time(container: Any, stream: Any) -> Iterator[tuple[float, av.VideoFrame]]:
    """Decoded frames with their presentation times in seconds, strictly increasing.

    A packet that cannot be decoded is passed over, as players do; whether too much is missing, ``check_whole`` says.
    """
    last = -np.inf
    step = float(1 / stream.average_rate) if stream.average_rate else 1 / 25
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            continue
        for frame in frames:
            time_s = frame.time if frame.time is not None else max(last, -step) + step
            if time_s > last:
                last = time_s
                yield time_s, frame


def record(frames: Iterator[tuple[float, av.VideoFrame]], stream: Any, config: ScanConfig, folder: str) -> Row:
    """Write the frame store and the shot track of one source; return what is known of it."""
    with ExitStack() as stack:
        store_file = stack.enter_context(storage.writing(storage.join(folder, "samples.parquet")))
        track_file = stack.enter_context(storage.writing(storage.join(folder, "track.parquet")))
        store = stack.enter_context(closing(FrameStoreWriter(store_file)))
        tracks = stack.enter_context(pq.ParquetWriter(track_file, TRACK_SCHEMA, compression="zstd"))
        track = FrameTrack()
        picture = geometry = None
        first_s = last_s = next_sample_s = 0.0
        waiting: tuple[float, Image] | None = None
        count = 0
        for time_s, frame in frames:
            if picture is None or geometry is None:
                geometry = Geometry.of(frame, stream.sample_aspect_ratio)
                picture = Picture(geometry)
                first_s = next_sample_s = time_s
            if waiting and time_s >= waiting[0] + PAIR_GAP_S - 0.005:
                store.add(*waiting, time_s, picture.sample(frame))
                waiting = None
            if time_s >= next_sample_s and waiting is None:
                waiting = time_s, picture.sample(frame)
                next_sample_s += (1 + int((time_s - next_sample_s) * config.samples_per_s)) / config.samples_per_s
            track.add(time_s, picture.track(frame))
            if (block := track.take_block()) is not None:
                tracks.write_table(block)
            last_s = time_s
            count += 1
        if geometry is None:
            raise BadSource("no video frame could be decoded")
        if waiting:
            store.add(*waiting, None, None)
        tracks.write_table(track.flush())
        fps = (count - 1) / (last_s - first_s) if count > 1 else 0.0
        end_s = last_s + (1 / fps if fps else float(1 / stream.average_rate) if stream.average_rate else 0.0)
        width, height = geometry.displayed
        check_whole(stream, count, end_s - first_s)
        return {
            "start_s": first_s,
            "end_s": end_s,
            "duration_s": end_s - first_s,
            "fps": fps,
            "width": width,
            "height": height,
        }


def check_whole(stream: Any, frames: int, seconds: float) -> None:
    """Raise BadSource where the file holds clearly less video than its own header promises."""
    if stream.frames and frames < TRUNCATED_BELOW * stream.frames:
        raise BadSource(f"truncated: {frames} of {stream.frames} frames could be decoded")
    promised = float(stream.duration * stream.time_base) if stream.duration else 0.0
    if not stream.frames and seconds < TRUNCATED_BELOW * promised - 1:
        raise BadSource(f"truncated: {seconds:.1f} of {promised:.1f} s could be decoded")


def is_image(container: Any) -> bool:
    return container.format.name == "image2" or container.format.name.endswith("_pipe")


def scan_source(uri: str, folder: str, config: ScanConfig) -> Row:
    """Decode one source once into ``folder``; return its row, ``error`` set where it is no usable video or image."""
    fs, path = url_to_fs(uri)
    size = fs.size(path)
    row: Row = {"source_uri": uri, "error": None, "rejected_by": [], "bit_rate": None}
    try:
        if size == 0:
            raise BadSource("the file is empty")
        with ExitStack() as stack:
            file = path if isinstance(fs, LocalFileSystem) else stack.enter_context(fsspec.open(uri, "rb"))
            container = stack.enter_context(av.open(file))
            if not container.streams.video:
                raise BadSource("no video stream in the file")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # sources are decoded side by side
            row |= record(frames_in_time(container, stream), stream, config, folder)
            if is_image(container):
                row |= {"fps": 0.0, "end_s": row["start_s"], "duration_s": 0.0}
        row["bit_rate"] = int(size * 8 / (row["duration_s"] or 1))
    except (BadSource, av.FFmpegError, UnicodeDecodeError, ValueError, cv2.error) as problem:
        row["error"] = str(problem) if isinstance(problem, BadSource) else f"cannot be decoded: {problem}"
        row["rejected_by"] = ["error"]
    return row


def scan_once(uri: str, root: str, config: ScanConfig) -> Row:
    """``scan_source``, unless the same bytes were scanned before: a source is known by its content, not its name."""
    try:
        source_id = storage.content_hash(uri)
    except OSError as problem:
        return {"source_uri": uri, "error": f"cannot be read: {problem}", "rejected_by": ["error"]}
    frames_uri = f"frames/{source_id}-{key_of(VERSION, config.model_dump())[:6]}"
    folder = storage.join(root, frames_uri)
    record_uri = storage.join(folder, "source.json")
    if storage.exists(record_uri):
        with fsspec.open(record_uri, "r") as file:
            row: Row = json.load(file)
    else:
        row = scan_source(uri, folder, config)
        with storage.writing(record_uri) as out:
            out.write(json.dumps(row).encode())
    return row | {"source_uri": uri, "source_id": source_id, "frames_uri": frames_uri}


@step_task("scan")
def scan(table: str, config: ScanConfig = ScanConfig()) -> str:
    """Decode every source of the shard ``table`` once; returns the URI of the shard's table, one row a source."""
    result = result_uri(table, "scan", config, VERSION)
    if not storage.exists(result):
        # The largest first, so that no thread is left alone with one at the end.
        listed = storage.read_table(table).to_pylist()
        largest_first = sorted(listed, key=lambda source: -source["bytes"])
        uris = [source["source_uri"] for source in largest_first]
        rows = side_by_side(lambda uri: scan_once(uri, root_of(table), config), uris)
        storage.write_table(schema_table(sorted(rows, key=lambda row: row["source_uri"]), "scan"), result)
    return result
