"""A video to what VideoAlign's vision tower takes: which frames, at which size, cut into patches (NUMERICS 6, 6b).

The rules are those of the published program's video reader, which is Qwen2-VL's with other limits.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from models.scoring.clip_pixels import CLIP_MEAN, CLIP_STD

FPS = 2.0
LEAST_FRAMES, MOST_FRAMES = 4, 768
LEAST_PIXELS, MOST_PIXELS = 128 * 28 * 28, 448 * 448
PATCH, MERGE, TOGETHER = 14, 2, 2  # pixels a side, patches a side of one token, frames in one patch

_FACTOR = PATCH * MERGE
_MOST_ASPECT = 200


def frame_indices(total: int, fps: float, *, wanted_fps: float = FPS) -> list[int]:
    """Which of ``total`` frames at ``fps`` are seen: ``wanted_fps`` a second, an even number, evenly spaced.

    There are four at least, or two where the video has only two or three.

    Raises:
        ValueError: the video has fewer than two frames, or no frame rate.
    """
    if total < TOGETHER or not fps > 0:
        raise ValueError(f"VideoAlign looks at two frames or more of a video with a frame rate, not {total} at {fps}")
    most = min(MOST_FRAMES, total) // TOGETHER * TOGETHER
    count = round(min(max(total / fps * wanted_fps, LEAST_FRAMES), most) / TOGETHER) * TOGETHER
    return torch.linspace(0, total - 1, count).round().long().tolist()


def frame_size(height: int, width: int, *, most_pixels: int = MOST_PIXELS) -> tuple[int, int]:
    """The size that frames are resized to: sides that are multiples of 28, within the limits on pixels.

    Raises:
        ValueError: one side is more than 200 times the other.
    """
    if max(height, width) > _MOST_ASPECT * min(height, width):
        raise ValueError(f"frames of {height}x{width}: one side is more than {_MOST_ASPECT} times the other")
    rows, columns = (max(_FACTOR, round(side / _FACTOR) * _FACTOR) for side in (height, width))
    if rows * columns > most_pixels:
        scale = math.sqrt(height * width / most_pixels)
        rows, columns = (math.floor(side / scale / _FACTOR) * _FACTOR for side in (height, width))
    elif rows * columns < LEAST_PIXELS:
        scale = math.sqrt(LEAST_PIXELS / (height * width))
        rows, columns = (math.ceil(side * scale / _FACTOR) * _FACTOR for side in (height, width))
    return rows, columns


def video_patches(frames: Tensor, *, most_pixels: int = MOST_PIXELS) -> tuple[Tensor, Tensor]:
    """The chosen frames, RGB uint8 [T, H, W, 3] with T even -> patches float32 [N, 1176] and their grid [3].

    The grid counts patches in time (T / 2), rows and columns; four neighbours become one token, so they stand together.

    Raises:
        ValueError: these are no RGB frames of 8 bits, or an odd number of them.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != torch.uint8 or frames.shape[0] % TOGETHER:
        raise ValueError(f"frames are uint8 [T, H, W, 3] with an even T, not {frames.dtype} {list(frames.shape)}")
    height, width = frame_size(frames.shape[1], frames.shape[2], most_pixels=most_pixels)
    # Rounded to 8 bits again, as published: torchvision does so for bytes.
    resized = resize(frames.permute(0, 3, 1, 2), [height, width], InterpolationMode.BICUBIC, antialias=True)
    mean, std = (torch.tensor(values, device=frames.device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    pixels = (resized.float() / 255 - mean) / std
    times, rows, columns = len(frames) // TOGETHER, height // PATCH, width // PATCH
    cut = pixels.reshape(times, TOGETHER, 3, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH)
    patches = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(times * rows * columns, -1)
    return patches, torch.tensor([times, rows, columns])


def token_count(grid: Sequence[int] | Tensor) -> int:
    """How many visual tokens a grid of patches becomes."""
    times, rows, columns = (int(side) for side in grid)
    return times * rows * columns // MERGE**2
