"""What the header of a container promises of a stream's length, and whether the file kept it.

A header that was written before the file was cut short still tells how long it was. Some containers promise nothing:
their length is what is there.
"""

import os
import struct
from dataclasses import dataclass
from typing import IO, Any

import av

from media.source import BadSource

WHOLE = 0.9  # of what is promised; a little less is a tail that players lose as well
# What FFmpeg gives as their duration it has read from the last pictures that are there, or guessed from their bytes.
_PROMISE_NOTHING = {"mpegts", "mpeg", "ogg", "gif", "nut", "wtv"}
_RAW = {"mpegvideo", "m4v", "h261", "h263", "h264", "hevc", "vvc", "vc1", "obu", "av1", "dv", "cavsvideo", "dirac"}
_OF_ALL_STREAMS = {"matroska", "flv", "live_flv"}  # the header has one duration, that of the longest stream

_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


@dataclass
class Read:
    """What was met on the way through the packets of one pass."""

    packets: int = 0  # with content, from the first picture on
    lost: int = 0  # of these, could not be decoded
    ended_s: float = -float("inf")  # where the last packet of any stream ends, seconds
    ended_at: int = 0  # and bytes of the file
    unstamped: bool = False  # a picture had no time stamp, not even one of decoding


@dataclass(frozen=True)
class Promise:
    """Where a container says that a stream ends; times are seconds of its clock, None where it says nothing."""

    start_s: float
    end_s: float | None  # of the stream, or where of_all_streams, of the longest of them
    of_all_streams: bool
    last_until_s: float | None  # the last picture is held until then, for certain
    end_mark_missing: bool
    bytes_end: int | None  # where packets are all there is in the file, its size
    searchable: bool  # by time
    presented: bool  # it stores when a picture is shown, not only when it is decoded
    in_blocks: bool  # its time stamps are of blocks of bytes, in which pictures begin anywhere

    def check(self, first_s: float, shown_until_s: float, read: "Read", wrong_stamp_s: float, usual_s: float) -> None:
        """BadSource: of what is promised, less than WHOLE was shown, from ``first_s`` to ``shown_until_s``.

        ``wrong_stamp_s`` is the latest of the stamps that were wrong, on which no promise may rest; ``usual_s`` the
        time of one picture.
        """
        if self.end_mark_missing:
            raise BadSource("truncated: the end of the file is missing")
        if self.bytes_end is not None and read.ended_at < WHOLE * self.bytes_end:
            unread = 1 - read.ended_at / self.bytes_end
            raise BadSource(
                f"{unread:.0%} of the file follows its last picture: a second recording that cannot be read?"
            )
        if self.end_s is None or max(shown_until_s, WHOLE * self.end_s) < wrong_stamp_s:
            return
        start_s = min(first_s, self.start_s)
        # Where sound may go on longer than pictures do, what counts is that the file goes on.
        seen_s = (max(shown_until_s, read.ended_s) if self.of_all_streams else shown_until_s) - first_s
        promised_s = self.end_s - start_s
        if seen_s + usual_s < WHOLE * promised_s:
            raise BadSource(f"truncated: {seen_s:.1f} of {promised_s:.1f} s could be decoded")


def promise_of(container: Any, stream: Any, file: IO[bytes]) -> Promise:
    """What ``container`` promises of ``stream``; ``file``, which it reads from, is left where it was."""
    name = container.format.name.split(",")[0]
    base = float(stream.time_base)
    start_s = (stream.start_time or 0) * base
    end_s = last_until_s = None
    of_all_streams = missing = False
    at = file.tell()
    if name in _OF_ALL_STREAMS:
        # These headers have no duration of a stream: one that is given was guessed, and that of the file from it.
        if container.duration and stream.duration is None:
            end_s = container.duration / av.time_base
        tagged_s = _tagged(stream.metadata)
        of_all_streams = tagged_s is None
        if tagged_s is not None:  # or less: a tag may be older than the file
            end_s = min(tagged_s, end_s or tagged_s)
    elif name == "avi":
        # FFmpeg makes the duration shorter where bytes are missing; the number of slots is as stored.
        end_s = start_s + stream.frames * base if stream.frames else None
        last_until_s = end_s if _all_bytes(file) else None
    elif name == "asf":
        end_s, of_all_streams = _played(file), True
    elif name == "gif":
        missing = not _tail(file).rstrip(b"\0\r\n ").endswith(b";")  # the trailer, but for padding
    elif name == "ogg":
        missing = not _last_page(_tail(file))
    elif name not in _PROMISE_NOTHING | _RAW and stream.duration:
        end_s = start_s + stream.duration * base
    # Its pictures and sound lie side by side, and nothing follows them.
    bytes_end = file.seek(0, os.SEEK_END) if name in ("flv", "live_flv") else None
    # FFmpeg reads the times of ASF as those of decoding, and makes the others up.
    presented = name not in _RAW | {"avi", "asf"} and not (name == "mxf" and _decoding_times_only(stream, file))
    file.seek(at)
    # From the middle on nothing tells how many pictures before the key frame were left out.
    reordered = not presented and stream.codec_context.has_b_frames
    searchable = name not in _RAW | {"gif"} and not reordered
    in_blocks = name == "mpeg"
    return Promise(start_s, end_s, of_all_streams, last_until_s, missing, bytes_end, searchable, presented, in_blocks)


def _decoding_times_only(stream: Any, file: IO[bytes]) -> bool:
    """Whether an MXF file of reordered pictures has no table that tells when they are shown.

    Its first picture is then shown as soon as it is decoded, before those that come between.
    """
    if not stream.codec_context.has_b_frames:
        return False
    file.seek(0)
    with av.open(file, "r", format="mxf") as container:
        first = next(container.demux(container.streams[stream.index]))
    return first.pts is None or first.pts == first.dts


def _tagged(metadata: dict[str, str]) -> float | None:
    """Matroska's statistics tag of one stream, as 00:00:08.000000000."""
    for key, text in metadata.items():
        if key.upper().split("-")[0] == "DURATION" and text.count(":") == 2:
            hours, minutes, seconds = text.split(":")
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return None


def _all_bytes(file: IO[bytes]) -> bool:
    """Whether an AVI file has as many bytes as its first chunk says; then what is not there was never to be shown."""
    file.seek(4)
    size = int.from_bytes(file.read(4), "little")
    return size > 0 and file.seek(0, os.SEEK_END) >= 8 + size


def _played(file: IO[bytes]) -> float | None:
    """The play duration in the File Properties Object of an ASF file (section 3.2 of its specification), seconds."""
    file.seek(0)
    _, found, properties = file.read(1 << 16).partition(_FILE_PROPERTIES)
    if not found or len(properties) < 76:
        return None
    play, _, preroll = struct.unpack("<QQQ", properties[48:72])
    broadcast = properties[72] & 1
    return None if broadcast or not play else play / 1e7 - preroll / 1e3


def _last_page(tail: bytes) -> bool:
    """Whether the last page of an Ogg file ends its stream (RFC 3533, section 6: the header's type has bit 4)."""
    page = tail.rfind(b"OggS")
    return page >= 0 and len(tail) > page + 5 and bool(tail[page + 5] & 4)


def _tail(file: IO[bytes]) -> bytes:
    """The last 128 KiB: more than a page of Ogg."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 17)))
    return file.read()
