"""A clip's pixels: decoded, cropped, and made to the shape of its bucket.

Files are read as curation reads them (``media``): the stream that a player shows, each picture upright, in square
pixels and in sRGB, also of high dynamic range. Only what is trained on is decoded: from the key frame before the clip's
start to its last frame. Frames are taken at the recipe's rate, each the one that is on screen at that time, so clips of
any rate, also a variable one, move at the speed they were filmed at. A clip that is longer than its bucket is truncated
at its end.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from math import ceil
from typing import IO

import av
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from media.display import Display
from media.image import is_image, read_image
from media.paths import fs_of, is_local, path_of_uri
from media.video import Shown, Video
from training.data.buckets import Shape
from training.data.manifest import Clip

Image = NDArray[np.uint8]

GRACE = 0.5  # of a frame's time: how much later than asked for a frame may begin, as rates are rounded
SHORT = 1  # frames, of the recipe's rate, that may be missing at the end: then the last stays on screen
HEAD = 4096  # bytes that tell an image from a video


class ClipError(ValueError):
    """A clip that cannot be read; the message names it and its source."""


@dataclass(frozen=True)
class Crop:
    """What training sees, as fractions of the displayed frame: left, top, right, bottom."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def of_clip(cls, clip: Clip) -> "Crop":
        return cls(
            clip.crop_x / clip.width,
            clip.crop_y / clip.height,
            (clip.crop_x + clip.crop_w) / clip.width,
            (clip.crop_y + clip.crop_h) / clip.height,
        )

    def of(self, image: Image) -> Image:
        height, width = image.shape[:2]
        return image[
            round(self.top * height) : max(1, round(self.bottom * height)),
            round(self.left * width) : max(1, round(self.right * width)),
        ]


def read_clip(clip: Clip, shape: Shape, fps: int) -> Tensor:
    """The clip's first frames, uint8 RGB [frames, height, width, 3], or an image's one.

    ClipError: the source is missing or cannot be decoded, has frames of another size than the manifest says, breaks
    off inside the clip, or ends before the clip does.
    """
    crop = Crop.of_clip(clip)
    try:
        with _opened(clip.source_uri) as file:
            still = is_image(file.read(HEAD))
            file.seek(0)
            pictures = _image(file, clip) if still else _video(file, clip, shape, fps)
            whole = [cover(crop.of(picture), shape.height, shape.width) for picture in pictures]
    except (av.FFmpegError, OSError, ValueError, cv2.error) as problem:
        words = str(problem) or type(problem).__name__
        raise ClipError(f"clip {clip.clip_id} of {clip.source_uri} cannot be read: {words}") from problem
    missing = shape.frames - len(whole)
    if missing > SHORT:
        raise ClipError(
            f"clip {clip.clip_id} of {clip.source_uri} has {len(whole)} frames from {clip.start_s:.3f} s on, "
            f"not {shape.frames}: is the source another than the manifest's?"
        )
    return torch.from_numpy(np.stack(whole + whole[-1:] * missing))


def cover(image: Image, height: int, width: int) -> Image:
    """The image resized without stretching until it covers ``height`` x ``width``, and its middle cut out."""
    scale = max(height / image.shape[0], width / image.shape[1])
    rows, columns = max(height, round(image.shape[0] * scale)), max(width, round(image.shape[1] * scale))
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized = np.asarray(cv2.resize(np.ascontiguousarray(image), (columns, rows), interpolation=smooth), np.uint8)
    top, left = (rows - height) // 2, (columns - width) // 2
    return resized[top : top + height, left : left + width]


def to_float(frames: Tensor) -> Tensor:
    """uint8 [F, H, W, 3] -> what a codec encodes: float32 [1, 3, F, H, W] in [-1, 1]."""
    return (frames.permute(3, 0, 1, 2)[None].float() / 127.5 - 1).contiguous()


def _opened(uri: str) -> IO[bytes]:
    if is_local(uri):
        return open(path_of_uri(uri), "rb")
    fs, path = fs_of(uri)
    return fs.open(path, "rb")


def _image(file: IO[bytes], clip: Clip) -> Iterator[Image]:
    image = read_image(file)
    _check_size(clip, image.shape[1], image.shape[0])
    yield image


def _video(file: IO[bytes], clip: Clip, shape: Shape, fps: int) -> Iterator[Image]:
    """The clip's frames at the recipe's rate, whole, at most about twice as large as the shape asks for."""
    with closing(Video(file, threads=0)) as video:
        display: Display | None = None
        for shown in _at_times(video, clip.start_s, shape.frames, fps):
            if display is None or display.stored != (shown.frame.width, shown.frame.height):
                display = Display.of(shown.frame, video.stream.sample_aspect_ratio)
                _check_size(clip, display.width, display.height)
            yield display.picture(shown.frame, _longest(clip, shape))


def _check_size(clip: Clip, width: int, height: int) -> None:
    if (width, height) != (clip.width, clip.height):
        raise ValueError(f"its pictures are {width} x {height}, and {clip.width} x {clip.height} in the manifest")


def _longest(clip: Clip, shape: Shape) -> int:
    """The longest side at which a frame is read: large enough for its crop to be twice the shape.

    Beyond, reading costs time and is averaged away; below, ``cover`` would have too little to choose from.
    """
    scale = max(shape.height / clip.crop_h, shape.width / clip.crop_w)
    return ceil(2 * scale * max(clip.width, clip.height))


def _at_times(video: Video, start_s: float, count: int, fps: int) -> Iterator[Shown]:
    """For each of ``count`` times from ``start_s`` on, ``1 / fps`` apart, the picture that is then on screen."""
    grace = GRACE / fps
    given = 0
    first: Shown | None = None
    for shown in video.shown(from_s=start_s - grace):
        while given < count and start_s + given / fps + grace / 2 < shown.end_s:
            first = first or shown
            if shown.segment != first.segment:
                raise ValueError(f"its video breaks off or changes its size at {shown.time_s:.3f} s, inside the clip")
            yield shown
            given += 1
        if given == count:
            return
