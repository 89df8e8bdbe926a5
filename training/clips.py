"""A clip's pixels: decoded, cropped, and made to the shape of its bucket.

Only what is trained on is decoded: from the key frame before the clip's start to its last frame. Frames are taken at
the recipe's rate, each the one that is on screen at that time, so clips of any rate, also a variable one, move at the
speed they were filmed at. A clip that is longer than its bucket is truncated at its end.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import cv2
import fsspec
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray
from torch import Tensor

from training.buckets import Shape
from training.manifest import Clip

Image = NDArray[np.uint8]

GRACE = 0.5  # of a frame's time: how much later than asked for a frame may begin, as rates are rounded
SHORT = 1  # frames, of the recipe's rate, that may be missing at the end: then the last stays on screen


class ClipError(ValueError):
    """A clip that cannot be read; the message names it and its source."""


@dataclass(frozen=True)
class Crop:
    """What training sees, as fractions of the displayed frame: left, top, right, bottom."""

    left: float
    top: float
    right: float
    bottom: float

    def of(self, image: Image) -> Image:
        height, width = image.shape[:2]
        return image[
            round(self.top * height) : max(1, round(self.bottom * height)),
            round(self.left * width) : max(1, round(self.right * width)),
        ]


def read_clip(clip: Clip, shape: Shape, fps: int) -> Tensor:
    """The clip's first frames, uint8 RGB [frames, height, width, 3], or an image's one.

    ClipError: the source is missing or cannot be decoded, or ends before the clip does.
    """
    crop = Crop(
        clip.crop_x / clip.width,
        clip.crop_y / clip.height,
        (clip.crop_x + clip.crop_w) / clip.width,
        (clip.crop_y + clip.crop_h) / clip.height,
    )
    try:
        with ExitStack() as stack:
            container = _opened(clip.source_uri, stack)
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if not clip.bucket_duration_s:
                shown = [next(container.decode(stream))]
            else:
                shown = list(_at_times(container, stream, clip.start_s, shape.frames, fps))
            reader = _Upright(stream.sample_aspect_ratio)
            whole = [cover(crop.of(reader.read(frame)), shape.height, shape.width) for frame in shown]
    except (av.FFmpegError, OSError, ValueError, StopIteration, IndexError, cv2.error) as problem:
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


def _opened(uri: str, stack: ExitStack) -> Any:
    fs, path = url_to_fs(uri)
    file = path if isinstance(fs, LocalFileSystem) else stack.enter_context(fsspec.open(uri, "rb"))
    container = stack.enter_context(av.open(file))
    if not container.streams.video:
        raise ValueError("no video stream in the file")
    return container


def _at_times(container: Any, stream: Any, start_s: float, count: int, fps: int) -> Iterator[av.VideoFrame]:
    """For each of ``count`` times from ``start_s`` on, ``1 / fps`` apart, the frame that is then on screen."""
    grace = GRACE / fps
    container.seek(max(0, int((start_s - grace) / stream.time_base)), stream=stream, backward=True)
    given = 0
    shown: av.VideoFrame | None = None
    for frame in container.decode(stream):
        if frame.time is None:
            raise ValueError("its frames have no times")
        while shown is not None and given < count and start_s + given / fps + grace / 2 < frame.time:
            yield shown
            given += 1
        if given == count:
            return
        shown = frame
    if shown is not None:  # the last frame stays for its time
        end_s = shown.time + (float(1 / stream.average_rate) if stream.average_rate else 1 / fps)
        while given < count and start_s + given / fps + grace / 2 < end_s:
            yield shown
            given += 1


class _Upright:
    """Decoded frames as RGB pictures with square pixels, turned upright; one scaler for all frames of a stream."""

    def __init__(self, sample_aspect: Fraction | None) -> None:
        self._aspect = float(sample_aspect or 1)
        self._scaler = VideoReformatter()

    def read(self, frame: av.VideoFrame) -> Image:
        width = max(1, round(frame.width * self._aspect))
        picture = self._scaler.reformat(frame, width, frame.height, "rgb24", interpolation=Interpolation.AREA)
        return np.rot90(np.asarray(picture.to_ndarray(), np.uint8), round(frame.rotation / 90) % 4)
