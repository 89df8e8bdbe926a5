"""A video file as a viewer sees it: the stream that a player shows, its pictures in time, and whether all are there.

The file is given to FFmpeg as bytes without a name, and FFmpeg may read containers of media only. So no name is taken
for a pattern or a protocol, and no text that names other files or addresses (a playlist, a concat script) is followed.
"""

import heapq
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import av
from av.container.core import Flags
from av.stream import Disposition

from media.stamps import HOLE_S, BadSource, Pace, Passed, Shown, Stamped, in_order, on_screen

__all__ = ["HOLE_S", "BadSource", "Shown", "Video", "open_video"]

# Demuxers that read one file of coded pictures; none that follows a text to other files, or takes pictures for video.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpeg,mpegvideo,avi,flv,live_flv,asf,ogg,gif,m4v,h261,h263,h264,hevc,vvc,"
    "vc1,vc1test,ivf,obu,av1,mxf,gxf,dv,rm,nut,nsv,wtv,swf,yuv4mpegpipe,cavsvideo,dirac"
)
# Their headers store no duration; what FFmpeg then gives is a guess from what the file holds.
_NO_PROMISE = {"mpegts", "mpeg", "mpegvideo", "m4v", "h261", "h263", "h264", "hevc", "vvc", "vc1", "obu", "av1", "dv"}
_WHOLE_FILE_ONLY = {"matroska", "flv", "live_flv"}  # a duration in the header of the file, none for each stream
_WHOLE = 0.9  # of what is promised; a little less is a tail that players lose as well
_MOST_LOST = 0.1  # of the packets


class _Nameless:
    """An open file as FFmpeg may see it: bytes, no name."""

    def __init__(self, file: IO[bytes]) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


@dataclass
class _Read:
    """What was met on the way through the packets."""

    packets: int = 0  # with content, from the first picture on
    lost: int = 0  # of these, could not be decoded
    ended_s: float = -float("inf")  # where the last packet of any stream ends
    broken: str = ""  # why reading ended early


class Video:
    """One open video file. Made by ``open_video``; not for use by several threads at once."""

    def __init__(self, container: Any, stream: Any, file: IO[bytes]) -> None:
        self._container, self.stream, self._file = container, stream, file
        self._format: str = container.format.name.split(",")[0]
        self._read = _Read()
        self._passed = Passed()
        self._pace = Pace(_assumed_interval(stream))
        self._first_s = self._last_s = self._end_s = 0.0
        self._moved = self._moving_s = 0.0
        self.count = 0  # pictures shown so far

    @property
    def passed_over(self) -> int:
        """How many pictures were not shown, as their time stamp was far off."""
        return self._passed.count

    @property
    def fps(self) -> float:
        """Mean pictures per second of what was shown so far, holes left out; 0 for a single picture."""
        if self._moving_s:
            return self._moved / self._moving_s
        return (self.count - 1) / (self._last_s - self._first_s) if self.count > 1 else 0.0

    def shown(self, from_s: float | None = None) -> Iterator[Shown]:
        """The pictures in the order and at the times a viewer sees them; times strictly increase.

        With ``from_s``, a time of the container's clock, they begin with a picture that is on screen then or before:
        at the key frame before it, or where the container cannot be searched, at an earlier one. Segments are counted
        from the first picture that is given. BadSource: the time stamps start again in the middle.
        """
        if from_s is not None:
            self._seek(from_s)
        self._read, self._passed = _Read(), Passed()
        self._pace = Pace(_assumed_interval(self.stream))
        self.count, self._moved, self._moving_s = 0, 0.0, 0.0
        ordered = in_order(self._decoded(), self._pace, self._passed, self._promised_end())
        for picture in on_screen(ordered, self._pace, None):
            if not self.count:
                self._first_s = picture.time_s
            self._last_s, self._end_s = picture.time_s, picture.end_s
            self.count += 1
            yield picture

    def _seek(self, from_s: float) -> None:
        self._container.seek(int(from_s / self.stream.time_base), stream=self.stream, backward=True)

    def _promised_end(self) -> float | None:
        return None

    def check_whole(self) -> None:
        """To be called after the last picture: BadSource where pictures that should be shown could not be."""

    def _decoded(self) -> Iterator[Stamped]:
        """Pictures as they are decoded. What cannot be decoded is counted and passed over, as players do.

        A container that stores no times of presentation (AVI) has times of decoding: the same times, in another order.
        As pictures come in order, the earliest that is left is the picture's.
        """
        base, read, unused = float(self.stream.time_base), self._read, list[int]()
        last_s = -float("inf")
        for packet in self._packets():
            if packet.pts is None and packet.dts is not None:
                heapq.heappush(unused, packet.dts)
            begun = last_s > -float("inf")
            read.packets += begun and packet.size > 0
            try:
                frames = packet.decode()
            except av.FFmpegError:
                read.lost += begun and packet.size > 0
                continue
            for frame in frames:
                if frame.pts is not None:
                    time_s = frame.pts * base
                elif unused:
                    time_s = heapq.heappop(unused) * base
                else:
                    time_s = last_s + self._pace.usual_s if begun else 0.0
                begun, last_s = True, time_s
                yield Stamped(time_s, (frame.duration or 0) * base, (frame.width, frame.height), frame)

    def _packets(self) -> Iterator[Any]:
        yield from self._container.demux(self.stream)


@contextmanager
def open_video(path: str | os.PathLike[str], threads: int = 1) -> Iterator[Video]:
    """Open the ordinary local file ``path``; ``threads`` are the decoder's, 0 for as many as there are cores.

    BadSource: it is empty, no container of media, without moving pictures, or in a format nobody here can decode.
    """
    with Path(path).open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            raise BadSource("the file is empty")
        file.seek(0)
        options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"}
        try:
            container = av.open(_Nameless(file), container_options=options)
        except av.FFmpegError as problem:
            raise BadSource("cannot be decoded: it is no video file, or its beginning is missing") from problem
        with container:
            # Presentation times that FFmpeg makes up from those of decoding are wrong where pictures are reordered.
            container.flags &= ~Flags.gen_pts.value
            stream = _seen_stream(container)
            stream.codec_context.thread_count = threads
            stream.codec_context.thread_type = "SLICE" if threads == 1 else "AUTO"
            yield Video(container, stream, file)


def _seen_stream(container: Any) -> Any:
    """The video stream that a player would show: no attached picture, then the default one, then the largest."""
    unseen = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & unseen]
    if not streams:
        raise BadSource("no video stream in the file")
    known = [stream for stream in streams if stream.codec_context is not None]
    if not known:
        raise BadSource("cannot be decoded: its video codec is unknown")
    return max(known, key=lambda s: (bool(s.disposition & Disposition.default), s.width * s.height, -s.index))


def _assumed_interval(stream: Any) -> float:
    """Seconds a picture until two were seen: what the container says, where that can be."""
    rate = float(stream.guessed_rate or stream.average_rate or 0)
    return 1 / rate if 1 <= rate <= 240 else 1 / 25
