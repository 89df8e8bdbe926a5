"""A video file as a viewer sees it: the stream that a player shows, its pictures in time, and whether all are there.

The file is given to FFmpeg as bytes without a name, and FFmpeg may read containers of media only. So no name is taken
for a pattern or a protocol, and no text that names other files or addresses (a playlist, a concat script) is followed.
"""

import errno
import heapq
import itertools
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import av
from av.container.core import Flags
from av.stream import Disposition

from media.key_frames import SAME_S, group_at
from media.promise import Promise, Read, promise_of
from media.source import BadSource
from media.stamps import HOLE_S, Pace, Shown, Stamped, WrongStamps, in_order, on_screen

__all__ = ["HOLE_S", "SAME_S", "BadSource", "Shown", "Video", "open_video"]

# Demuxers that read one file of coded pictures; none that follows a text to other files, or takes pictures for video.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpeg,mpegvideo,avi,flv,live_flv,asf,ogg,gif,m4v,h261,h263,h264,hevc,"
    "vvc,vc1,vc1test,ivf,obu,av1,mxf,gxf,dv,rm,nut,nsv,wtv,swf,yuv4mpegpipe,cavsvideo,dirac"
)
# How far before a time a key frame is looked for, before the file is read from its start.
_SEARCHED_BACK_S = (0.0, 2.0, 10.0, 60.0)


class _Nameless:
    """An open file as FFmpeg may see it: bytes, no name."""

    def __init__(self, file: IO[bytes]) -> None:
        self.read, self.tell, self._seek = file.read, file.tell, file.seek

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As a file's; -1 where the place is before its beginning, to which damaged indexes point."""
        try:
            return self._seek(offset, whence)
        except OSError as problem:
            if problem.errno != errno.EINVAL:
                raise
            return -1


class Video:
    """One video file, open. Made by ``open_video``; not for use by several threads at once."""

    def __init__(self, file: IO[bytes], threads: int) -> None:
        self._file, self._threads = file, threads
        self._container: Any = None
        self._open()
        self._fresh = True  # nothing was read since the container was opened
        self._begin()

    def _open(self) -> None:
        self.close()
        self._file.seek(0)
        options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"}
        try:
            self._container = av.open(_Nameless(self._file), container_options=options)
        except av.FFmpegError as problem:
            raise BadSource(f"cannot be decoded: {_what_it_is(self._file)}") from problem
        self.stream = _seen_stream(self._container)
        self.stream.codec_context.thread_count = self._threads
        self.stream.codec_context.thread_type = "SLICE" if self._threads == 1 else "AUTO"
        self._promise: Promise = promise_of(self._container, self.stream, self._file)
        if not self._promise.presented:
            # What FFmpeg then makes up of the times of decoding is wrong where pictures are reordered.
            self._container.flags &= ~Flags.gen_pts.value

    def close(self) -> None:
        if self._container is not None:
            self._container.close()

    def _begin(self) -> None:
        """Forget what an earlier pass over the pictures met."""
        rate = float(self.stream.guessed_rate or self.stream.average_rate or 0)
        self._pace = Pace(1 / rate if 1 <= rate <= 240 else 1 / 25)
        self._read, self._wrong = Read(), WrongStamps()
        self._first_s = self._last_s = self._end_s = 0.0
        self._moved, self._moving_s = 0, 0.0
        self.count = 0  # pictures shown so far

    @property
    def wrong_stamps(self) -> int:
        """How many time stamps were far off; their pictures are shown between their neighbours."""
        return self._wrong.count

    @property
    def fps(self) -> float:
        """Mean pictures per second of what was shown so far, holes left out; 0 for a single picture."""
        if self._moving_s:
            return self._moved / self._moving_s
        return (self.count - 1) / (self._last_s - self._first_s) if self.count > 1 else 0.0

    def shown(self, from_s: float | None = None) -> Iterator[Shown]:
        """The pictures in the order and at the times a viewer sees them; times strictly increase.

        With ``from_s``, a time of the container's clock, they begin with one that is on screen then or earlier, or with
        the first of all: at the last key frame before it, where the container can be searched and what is found proves
        right. Segments are then counted from the first picture given. BadSource: the time stamps start again in the
        middle.
        """
        found = None if from_s is None or not self._promise.searchable else self._search(from_s)
        if found is None:
            self._rewind()
            found = self._pass(self._packets())
        yield from found

    def _rewind(self) -> None:
        if not self._fresh:
            self._open()
        self._fresh = False
        self._begin()

    def _search(self, from_s: float) -> Iterator[Shown] | None:
        """The pictures from the last key frame on that is shown at ``from_s`` or earlier; None where none is found.

        A key frame that comes too late is looked for farther back, and last from the file's start. Pictures that do not
        begin with the key frame itself, as where a stream is refreshed bit by bit, may be spoilt.
        """
        for back_s in (*_SEARCHED_BACK_S, None):
            if back_s is None:
                self._rewind()
            elif not self._sought(from_s - back_s):
                continue
            # Read from the start, all stamps are those that a reader of the whole file has.
            promise = self._promise if back_s is not None else replace(self._promise, in_blocks=False)
            group = group_at(self._packets(), from_s, self.stream.time_base, promise)
            if group is not None:
                pictures = self._pass(group.packets, group.key_s)
                first = next(pictures, None)
                whole = first is not None and first.frame.key_frame and abs(first.time_s - group.key_s) < SAME_S
                return itertools.chain([first], pictures) if first and whole and not self._read.unstamped else None
        return None

    def _sought(self, time_s: float) -> bool:
        """Whether the container found a place for a time, which may be any place."""
        self._fresh = False
        self._begin()
        try:
            self._container.seek(round(time_s / self.stream.time_base), stream=self.stream)
        except av.FFmpegError:
            return False
        return True

    def _pass(self, packets: Iterator[Any], from_s: float = -math.inf) -> Iterator[Shown]:
        """What is shown of the packets, from ``from_s`` on."""
        ordered = in_order(self._decoded(packets, from_s), self._pace, self._wrong, self._promise.end_s)
        for picture in on_screen(ordered, self._pace, self._promise.last_until_s, self._promise.end_s):
            if not self.count:
                self._first_s = picture.time_s
            elif picture.time_s == self._end_s:  # no hole before it
                self._moved, self._moving_s = self._moved + 1, self._moving_s + picture.time_s - self._last_s
            self._last_s, self._end_s = picture.time_s, picture.end_s
            self.count += 1
            yield picture

    def check_whole(self) -> None:
        """To be called once ``shown()`` has given its last picture: BadSource where some that should be shown are lost.

        Judged is what was decoded, before anybody chose among it: a tenth of the time that the container promises, or
        of the packets. Pictures that an edit list hides, and slots without a picture, are no loss.
        """
        if not self.count:
            raise BadSource("cannot be decoded: no picture could be decoded")
        read = self._read
        if read.lost > 0.1 * read.packets:
            raise BadSource(f"truncated: {read.lost} of {read.packets} pictures could not be decoded")
        self._promise.check(self._first_s, self._end_s, read, self._wrong.latest_s, self._pace.usual_s)

    def _decoded(self, packets: Iterator[Any], from_s: float) -> Iterator[Stamped]:
        """Pictures as they are decoded. What cannot be decoded is counted and passed over, as players do.

        A container that stores no times of presentation (AVI) has times of decoding: the same times, in another order.
        As pictures come in order, the earliest that is left is the picture's.
        """
        base, read, presented = float(self.stream.time_base), self._read, self._promise.presented
        unused: list[int] = []
        last_s: float | None = None
        for packet in packets:
            counts = last_s is not None and packet.size > 0
            read.packets += counts
            try:
                frames = packet.decode()
            except av.FFmpegError:
                read.lost += counts
                continue
            if packet.dts is not None and not presented:
                heapq.heappush(unused, packet.dts)
            for frame in frames:
                if presented and frame.pts is not None:
                    time_s = frame.pts * base
                elif unused:
                    time_s = heapq.heappop(unused) * base
                else:
                    read.unstamped = True
                    time_s = 0.0 if last_s is None else last_s + self._pace.usual_s
                last_s = time_s
                if time_s >= from_s - SAME_S:
                    yield Stamped(time_s, (frame.duration or 0) * base, (frame.width, frame.height), frame)

    def _packets(self) -> Iterator[Any]:
        """The stream's packets, to the end or to where reading breaks off; other streams are only looked at."""
        read = self._read
        every = self._promise.of_all_streams or self._promise.bytes_end is not None
        others = list(self._container.streams.audio) if every else []
        try:
            for packet in self._container.demux(self.stream, *others):
                if every and packet.pts is not None:
                    end_s = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                    read.ended_s = max(read.ended_s, end_s)
                    read.ended_at = max(read.ended_at, (packet.pos or 0) + packet.size)
                if packet.stream.index == self.stream.index:
                    yield packet
        except av.FFmpegError:
            return  # what should have followed is missed by ``check_whole``


@contextmanager
def open_video(path: str | os.PathLike[str], threads: int = 1) -> Iterator[Video]:
    """Open the ordinary local file ``path``; ``threads`` are the decoder's, 0 for as many as there are cores.

    BadSource: it is empty, no container of media, without moving pictures, or in a format nobody here can decode.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise BadSource("no ordinary file")  # reading a pipe or a device may never end
    with Path(path).open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            raise BadSource("the file is empty")
        video = Video(file, threads)
        try:
            yield video
        finally:
            video.close()


def _what_it_is(file: IO[bytes]) -> str:
    """Why FFmpeg found no container of media in a file, as far as its beginning tells."""
    file.seek(0)
    head = file.read(1024)
    controls = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head)
    if not controls:
        return "it is a text, and what a text may name is not followed"
    return "it is no video file, or a part without which none can be read is missing"


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
