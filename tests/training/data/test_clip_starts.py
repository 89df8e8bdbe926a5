"""Clips that begin anywhere in files of every kind are the pictures of a decoder that reads the file from its start.

A search in a container ends where it likes: at a packet that is no key frame (MPEG-TS, MPEG-PS), at a key frame whose
leading pictures need the group before (open groups of pictures, the default of HEVC), or at a picture that is refreshed
bit by bit. What is read wrong then looks like a picture, so only a comparison of pixels shows it.
"""

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from media.display import Display
from media.video import open_video
from tests.media.made_video import picture
from tests.training.small_data import row
from training.data.buckets import Shape
from training.data.clips import read_clip
from training.data.manifest import Clip

COUNT, GOP, FPS = 20, 6, 25
HEIGHT, WIDTH = 48, 80
BROADCAST = 576, 720  # of formats that know no other size

OPEN, CLOSED, REFRESHED = "open", "closed", "refreshed bit by bit"
X264 = f"keyint={GOP}:min-keyint={GOP}:scenecut=0:bframes=2"
X265 = X264 + ":log-level=error:pools=none:frame-threads=1"
QUICK = {"deadline": "realtime", "cpu-used": "8"}
KINDS: dict[tuple[str, str], dict[str, str]] = {
    ("libx264", OPEN): {"x264-params": X264 + ":open-gop=1", "preset": "veryfast"},
    ("libx264", CLOSED): {"x264-params": X264, "preset": "veryfast"},
    ("libx264", REFRESHED): {"x264-params": f"keyint={GOP}:intra-refresh=1:bframes=0", "preset": "veryfast"},
    ("libx265", OPEN): {"x265-params": X265 + ":open-gop=1", "preset": "ultrafast"},
    ("libx265", CLOSED): {"x265-params": X265 + ":open-gop=0", "preset": "ultrafast"},
    ("mpeg1video", OPEN): {"bf": "2"},
    ("mpeg2video", OPEN): {"bf": "2"},
    ("mpeg2video", CLOSED): {"bf": "2", "flags": "+cgop", "sc_threshold": "1000000000"},
    ("mpeg4", OPEN): {"bf": "2"},
    ("mpeg4", CLOSED): {},
    ("libvpx", CLOSED): QUICK,
    ("libvpx-vp9", CLOSED): QUICK,
    ("libsvtav1", OPEN): {"preset": "13", "svtav1-params": "irefresh-type=1:lp=1"},
    **{(codec, CLOSED): {} for codec in ("flv", "wmv2", "msmpeg4", "h263p", "rv20", "gif", "svq1", "cinepak", "qtrle")},
    **{(codec, CLOSED): {} for codec in ("mjpeg", "ffv1", "prores_ks", "dvvideo", "rawvideo", "png", "huffyuv")},
}
FORMATS = {
    **{"mjpeg": "yuvj420p", "gif": "rgb8", "prores_ks": "yuv422p10le", "qtrle": "rgb24", "png": "rgb24"},
    **{"cinepak": "rgb24", "svq1": "yuv410p", "huffyuv": "yuv422p"},
}
SIZES = {"dvvideo": BROADCAST, "h263p": (144, 176), "rv20": (144, 176)}

_MP4 = "libx264 libx265 mpeg1video mpeg2video mpeg4 libvpx-vp9 libsvtav1 mjpeg ffv1 png"
_AVI = "libx264 mpeg1video mpeg2video mpeg4 libvpx mjpeg ffv1 flv wmv2 msmpeg4 h263p rawvideo huffyuv svq1 cinepak"
_TS = "libx264 libx265 mpeg1video mpeg2video mpeg4"
WRITABLE = {
    "mp4": _MP4,
    "mov": "libx264 libx265 mpeg2video prores_ks dvvideo qtrle gif svq1 cinepak",
    "mkv": "libx264 libx265 mpeg1video mpeg2video mpeg4 libvpx libvpx-vp9 libsvtav1 mjpeg ffv1 prores_ks rawvideo",
    "webm": "libvpx libvpx-vp9 libsvtav1",
    "avi": _AVI,
    "wmv": _AVI,
    "ts": _TS,
    "m2ts": "libx264 libx265",
    "mpg": "mpeg1video mpeg2video",
    "vob": "mpeg2video",
    "flv": "libx264 libx265 flv",
    "f4v": "libx264",
    "3gp": "libx264 mpeg4",
    "ogv": "libvpx",
    "nut": "libx264 libx265 mpeg2video mpeg4",
    "mxf": "libx264 mpeg2video",
    "gxf": "mpeg2video",
    "wtv": "libx264 mpeg2video h263p wmv2",
    "rm": "rv20",
    "swf": "flv",
    "gif": "gif",
    "dv": "dvvideo",
    "ivf": "libvpx libvpx-vp9",
    "h264": "libx264",
    "hevc": "libx265",
    "m4v": "mpeg4",
    "m2v": "mpeg2video",
    "y4m": "rawvideo",
}
UNWRITABLE = {("gxf", "mpeg2video", OPEN)}
EVERY = [
    (suffix, codec, gop)
    for suffix, codecs in WRITABLE.items()
    for (codec, gop) in KINDS
    if codec in codecs.split() and (suffix, codec, gop) not in UNWRITABLE
]


def write(path: Path, codec: str, gop: str, count: int = COUNT) -> Path:
    height, width = BROADCAST if path.suffix == ".gxf" else SIZES.get(codec, (HEIGHT, WIDTH))
    scheduling = os.sched_getscheduler(0), os.sched_getparam(0)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, FPS, options=dict(KINDS[codec, gop]))
        stream.height, stream.width, stream.pix_fmt = height, width, FORMATS.get(codec, "yuv420p")
        stream.codec_context.gop_size = GOP
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number, width, height), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    # SVT-AV1 gives the thread that calls it real-time priority where it may (root), and all its later children too.
    os.sched_setscheduler(0, *scheduling)
    return path


def linear(path: Path) -> list[np.ndarray]:
    """The file's pictures by FFmpeg alone, read from the start."""
    with av.open(str(path)) as file:
        frames = list(file.decode(video=0))
        display = Display.of(frames[0], file.streams.video[0].sample_aspect_ratio)
        return [display.picture(frame) for frame in frames]


def times(path: Path) -> list[float]:
    """When each picture is shown, and the end: what curation writes to the manifest."""
    with open_video(path) as video:
        shown = list(video.shown())
    return [one.time_s for one in shown] + [shown[-1].end_s]


def clip(path: Path, picture_of_file: np.ndarray, start_s: float, end_s: float) -> Clip:
    height, width = picture_of_file.shape[:2]
    one = Clip(**row(0, path, (height, width), "16x9", 1, 1.0))
    return replace(one, start_s=start_s, end_s=end_s)


@pytest.mark.parametrize(("suffix", "codec", "gop"), EVERY)
def test_a_clip_that_starts_anywhere_is_the_pictures_of_a_linear_decode(
    tmp_path: Path, suffix: str, codec: str, gop: str
) -> None:
    path = write(tmp_path / f"a.{suffix}", codec, gop)
    pictures, times_s = linear(path), times(path)
    assert len(pictures) == len(times_s) - 1 == COUNT
    height, width = pictures[0].shape[:2]
    step = 5 if height > 200 else 1
    for start in range(0, COUNT, step):
        frames = min(2, COUNT - start)
        read = read_clip(
            clip(path, pictures[0], times_s[start], times_s[start + frames]), Shape(frames, height, width), FPS
        )
        for number, frame in enumerate(read.numpy()):
            assert np.array_equal(frame, pictures[start + number]), (start, number)
