"""What the frame store of one source will take, from its header and a few of its pictures (it imports no Prefect)."""

from typing import Any

import numpy as np

from media.display import Display, Image
from media.image import is_image, read_image
from media.source import BadSource
from media.video import open_video
from tasks.curation.decode import HEAD_BYTES
from tasks.tables.frame_store import PAIR_SIDE, SAMPLE_SIDE, encode_jpeg, shrink

# Where in a video pictures are looked at, as fractions of its duration.
LOOKED_AT = (0.1, 0.35, 0.6, 0.85)


def probe(path: str, samples_per_s: float) -> float | None:
    """Bytes that the frame store of the local file ``path`` will take, about.

    The number of samples follows from the header's duration, and their size from LOOKED_AT. 0 for what is no usable
    video or image; None where a video does not say how long it is.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
        if is_image(head):
            return float(len(encode_jpeg(shrink(read_image(path), SAMPLE_SIDE))))
        return _video(path, samples_per_s)
    except BadSource:
        return 0.0


def _video(path: str, samples_per_s: float) -> float | None:
    with open_video(path) as video:
        stream = video.stream
        start_s, seconds = _span(stream)
        if not seconds:
            return None
        sizes = []
        for part in LOOKED_AT:
            shown = next(video.shown(start_s + part * seconds), None)
            if shown is not None:
                display = Display.of(shown.frame, stream.sample_aspect_ratio)
                sizes.append(stored(display.picture(shown.frame, SAMPLE_SIDE)))
        if not sizes:
            return 0.0
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        pictures = seconds * min(samples_per_s, rate) if rate else seconds * samples_per_s
        return max(1.0, pictures) * float(np.mean(sizes))


def stored(picture: Image) -> int:
    """Bytes of a sample RGB [H, W, 3] and its partner in a frame store."""
    return len(encode_jpeg(shrink(picture, SAMPLE_SIDE))) + len(encode_jpeg(shrink(picture, PAIR_SIDE)))


def _span(stream: Any) -> tuple[float, float]:
    """Start and duration of a stream in seconds, as the header says; duration 0 where it says none."""
    base = float(stream.time_base or 0)
    start_s = (stream.start_time or 0) * base
    if stream.duration:
        return start_s, float(stream.duration) * base
    return start_s, float(stream.container.duration or 0) / 1e6
