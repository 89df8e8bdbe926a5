"""Small video files of every kind for tests, whose pictures tell which one they are."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 96, 64
TICKS = 90_000  # a second
RATES = {"mpeg4": 30, "mpeg2video": 30, "msmpeg4": 30, "flv": 30, "gif": 25}  # of codecs that know only one


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Noise that stands still, and a row of eight fields that are the bits of ``number``."""
    image = np.random.default_rng(0).integers(60, 190, (height // 8, width // 8, 3), np.uint8)
    image = np.repeat(np.repeat(image, 8, 0), 8, 1)
    for bit in range(8):
        image[8:24, 8 * bit + 8 : 8 * bit + 16] = 255 if number >> bit & 1 else 0
    return image


def number_of(frame: av.VideoFrame) -> int:
    """Which ``picture`` a decoded frame is."""
    gray = frame.to_ndarray(format="gray")
    return sum(int(gray[12:20, 8 * bit + 11 : 8 * bit + 13].mean() > 128) << bit for bit in range(8))


def even(count: int, fps: float = 30.0, start_s: float = 0.0) -> list[float]:
    return [start_s + i / fps for i in range(count)]


def add_stream(
    container: Any,
    codec: str,
    gop: int = 15,
    width: int = WIDTH,
    height: int = HEIGHT,
    ticks: int = TICKS,
    **options: str,
) -> Any:
    quick = {"deadline": "realtime", "cpu-used": "8"} if codec == "libvpx" else {}
    stream = container.add_stream(codec, rate=RATES.get(codec, 30), options=quick | options)
    stream.width, stream.height = width, height
    stream.pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(codec, "yuv420p")
    stream.codec_context.gop_size = gop
    stream.codec_context.time_base = Fraction(1, RATES.get(codec, ticks))
    return stream


def packets(encoder: Any, times: Sequence[float], first: int = 0) -> list[Any]:
    """What a stream or codec context makes of the pictures from ``first`` on, shown at ``times`` in seconds."""
    base = getattr(encoder, "codec_context", encoder).time_base
    made = []
    for i, time_s in enumerate(times):
        image = picture(first + i, encoder.width, encoder.height)
        frame = av.VideoFrame.from_ndarray(image, "rgb24")
        frame.pts, frame.time_base = round(time_s / base), base
        made += encoder.encode(frame)
    return made + encoder.encode()


def encode(
    path: Path, times: Sequence[float], codec: str = "libx264", fast_start: bool = False, **options: Any
) -> Path:
    """A file of one stream."""
    with av.open(str(path), "w", options={"movflags": "faststart"} if fast_start else {}) as container:
        stream = add_stream(container, codec, **options)
        container.mux(packets(stream, times))
    return path


def stamped(path: Path, stamps: dict[int, float], count: int = 90, codec: str = "libx264") -> Path:
    """A file of ``count`` pictures at 30 a second, some of them stamped otherwise: number of the picture to seconds."""
    with av.open(str(path), "w") as container:
        stream = add_stream(container, codec, **({"bf": "0"} if codec == "libx264" else {}))
        for i, packet in enumerate(packets(stream, even(count))):
            packet.pts = round(stamps.get(i, i / 30) / packet.time_base)
            packet.dts = round((i - 3) / 30 / packet.time_base)  # before the time of display, where that goes back
            container.mux(packet)
    return path
