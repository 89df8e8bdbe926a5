"""A clip's pixels: decoded, cropped, and made to the shape of its bucket.

Files are read as curation reads them (``media``): the stream that a player shows, each picture upright, in square
pixels and in sRGB, also of high dynamic range. Only what is trained on is decoded: from the key frame before the clip's
start to its last frame. Frames are taken at the recipe's rate, each the one that is on screen at that time, so clips of
any rate, also a variable one, move at the speed they were filmed at. A clip that is longer than its bucket is truncated
at its end; nothing before its start or after its end is shown.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from math import ceil, isfinite
from typing import IO, cast

import cv2
import numpy as np
import torch
from av import FFmpegError
from numpy.typing import NDArray
from torch import Tensor

from media.display import Display
from media.image import is_image, read_image
from media.video import SAME_S, Shown, Video
from training.data.buckets import Shape
from training.data.manifest import Clip
from training.data.sources import Source, SourceUnavailable, check_curated, from_source

__all__ = ["ClipError", "SourceUnavailable", "cover", "read_clip", "to_float"]

Image = NDArray[np.uint8]

GRACE = 0.5  # of a frame's time: how much later than asked for a frame may begin, as rates are rounded
SHORT = 1  # frames, of the recipe's rate, that a source may end too early: then the last stays on screen
HEAD = 4096  # bytes that tell an image from a video


class ClipError(ValueError):
    """A clip that cannot be read, and could not be the next time either; the message names it and its source."""


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

    ClipError: the row is impossible, the source is missing, is not the one that was curated or cannot be decoded, has
    frames of another size than the manifest says, shows none at the clip's start, breaks off inside the clip, or ends
    before the clip does.
    SourceUnavailable: storage failed, and kept failing for about a minute; the clip may be good.
    """
    try:
        _check_row(clip, shape, fps)
        whole = from_source(clip.source_uri, lambda source: _pictures(source, clip, shape, fps))
    except SourceUnavailable:
        raise
    except Exception as problem:
        if isinstance(problem, MemoryError) and not isinstance(problem, FFmpegError):
            raise  # this machine's; FFmpeg says so of files that ask for absurd sizes
        words = str(problem) or type(problem).__name__
        raise ClipError(f"clip {clip.clip_id} of {clip.source_uri} cannot be read: {words}") from problem
    missing = shape.frames - len(whole)
    if missing > SHORT or not whole:
        raise ClipError(
            f"clip {clip.clip_id} of {clip.source_uri} has {len(whole)} frames from {clip.start_s:.3f} s on, "
            f"not {shape.frames}: is the source another than the manifest's?"
        )
    return torch.from_numpy(np.stack(whole + whole[-1:] * missing))


def _check_row(clip: Clip, shape: Shape, fps: int) -> None:
    """ValueError: no file could be read as this row says."""
    if min(clip.width, clip.height, clip.crop_w, clip.crop_h) < 1:
        raise ValueError(f"{clip.width} x {clip.height} pixels, cropped to {clip.crop_w} x {clip.crop_h}, are no size")
    across, down = clip.crop_x + clip.crop_w, clip.crop_y + clip.crop_h
    if min(clip.crop_x, clip.crop_y) < 0 or across > clip.width or down > clip.height:
        raise ValueError(
            f"its crop from {clip.crop_x}, {clip.crop_y} to {across}, {down} is not inside its {clip.width} x "
            f"{clip.height} pixels"
        )
    if not isfinite(clip.start_s) or not isfinite(clip.end_s):
        raise ValueError(f"{clip.start_s} s to {clip.end_s} s are no times")
    last_s = (shape.frames - 1) / fps
    if clip.end_s < clip.start_s or (last_s and clip.end_s - clip.start_s <= last_s):
        raise ValueError(
            f"it is {clip.end_s - clip.start_s:.3f} s long, and the last of {shape.frames} frames is at {last_s:.3f} s"
        )


def _pictures(source: Source, clip: Clip, shape: Shape, fps: int) -> list[Image]:
    """The clip's pictures as they are trained on, as many as the source has of ``shape.frames``."""
    check_curated(source, clip.source_id, clip.source_bytes)
    file = cast(IO[bytes], source)
    still = is_image(file.read(HEAD))
    file.seek(0)
    if not still:
        return list(_video(file, clip, shape, fps))
    image = read_image(file)
    _check_size(clip, image.shape[1], image.shape[0])
    return [cover(Crop.of_clip(clip).of(image), shape.height, shape.width)]


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


def _video(file: IO[bytes], clip: Clip, shape: Shape, fps: int) -> Iterator[Image]:
    """The clip's frames at the recipe's rate."""
    crop = Crop.of_clip(clip)
    with closing(Video(file, threads=0)) as video:
        display: Display | None = None
        before: Shown | None = None
        for shown in _at_times(video, clip, shape.frames, fps):
            if display is None or display.stored != (shown.frame.width, shown.frame.height):
                display = Display.of(shown.frame, video.stream.sample_aspect_ratio)
                _check_size(clip, display.width, display.height)
            if shown is not before:  # else it stays on screen
                picture = crop.of(display.picture(shown.frame, _longest(clip, shape)))
                covered, before = cover(picture, shape.height, shape.width), shown
            yield covered


def _check_size(clip: Clip, width: int, height: int) -> None:
    if (width, height) != (clip.width, clip.height):
        raise ValueError(f"its pictures are {width} x {height}, and {clip.width} x {clip.height} in the manifest")


def _longest(clip: Clip, shape: Shape) -> int:
    """The longest side at which a frame is read: large enough for its crop to be twice the shape.

    Beyond, reading costs time and is averaged away; below, ``cover`` would have too little to choose from.
    """
    scale = max(shape.height / clip.crop_h, shape.width / clip.crop_w)
    return ceil(2 * scale * max(clip.width, clip.height))


def _at_times(video: Video, clip: Clip, count: int, fps: int) -> Iterator[Shown]:
    """For each of ``count`` times from the clip's start on, ``1 / fps`` apart, the picture that is then on screen.

    A picture that begins up to a quarter of a frame after its time counts as well, if the one before is nearly over:
    24 and 23.976 frames a second are then the same pictures. ValueError: there is none at the first time.
    """
    first = last = None
    times_s = [clip.start_s + number / fps for number in range(count)]
    for shown in video.shown(from_s=clip.start_s):
        if shown.time_s > clip.end_s - SAME_S:
            break
        early_s = min(GRACE / 2 / fps, (shown.end_s - shown.time_s) / 3)
        while times_s and times_s[0] + early_s < shown.end_s:
            if first is None and shown.time_s > clip.start_s + GRACE / fps:
                raise ValueError(f"it has no picture at {clip.start_s:.3f} s: the next one is at {shown.time_s:.3f} s")
            first, last = first or shown, shown
            if shown.segment != first.segment:
                raise ValueError(f"its video breaks off or changes its size at {shown.time_s:.3f} s, inside the clip")
            times_s.pop(0)
            yield shown
        if not times_s:
            return
    while last is not None and times_s and times_s[0] < last.end_s:
        times_s.pop(0)
        yield last  # to the end of the clip
