"""A clip's pixels: the right frames at the right speed, cropped and covered, and words for what cannot be read."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from models.video_file import GenerationMetadata, write_video
from tests.training.small_data import row
from training.buckets import Shape
from training.clips import ClipError, cover, read_clip, to_float
from training.manifest import Clip

SIZE = 48, 80


def clip(path: Path, seconds: int = 1, **changes: object) -> Clip:
    return replace(Clip(**row(0, path, SIZE, "16x9", seconds, float(seconds))), **changes)  # type: ignore[arg-type]


def counting(path: Path, frames: int, fps: int) -> Path:
    """Frame n is grey of level 4 n."""
    levels = torch.arange(frames).float() * 4 / 127.5 - 1
    write_video(levels[None, :, None, None].expand(3, -1, *SIZE), str(path), GenerationMetadata("", 0), fps, crf=0)
    return path


def levels(frames: torch.Tensor) -> list[int]:
    return [round(frame.float().mean().item() / 4) for frame in frames]


def test_frames_are_those_from_the_start_on(tmp_path: Path) -> None:
    source = counting(tmp_path / "a.mp4", 48, 24)
    shape = Shape(9, 48, 80)
    assert levels(read_clip(clip(source), shape, 24)) == list(range(9))
    assert levels(read_clip(clip(source, start_s=1.0, end_s=2.0), shape, 24)) == list(range(24, 33))


@pytest.mark.parametrize(("fps", "expected"), [(48, range(0, 18, 2)), (12, [0, 0, 1, 1, 2, 2, 3, 3, 4])])
def test_clips_of_any_rate_move_at_their_own_speed(tmp_path: Path, fps: int, expected: range | list[int]) -> None:
    source = counting(tmp_path / "a.mp4", 2 * fps if fps > 24 else 24, fps)
    assert levels(read_clip(clip(source), Shape(9, 48, 80), 24)) == list(expected)


def test_the_crop_is_what_training_sees(tmp_path: Path) -> None:
    video = torch.full((3, 24, *SIZE), -1.0)
    video[:, :, 8:40, 20:60] = 0.5
    write_video(video, str(tmp_path / "a.mp4"), GenerationMetadata("", 0), 24, crf=0)
    whole = read_clip(clip(tmp_path / "a.mp4"), Shape(5, 48, 80), 24)
    cropped = clip(tmp_path / "a.mp4", crop_x=24, crop_y=12, crop_w=32, crop_h=24)
    inside = read_clip(cropped, Shape(5, 48, 64), 24)
    assert whole.min() < 5 and inside.shape == (5, 48, 64, 3)
    assert inside.min() > 180  # nothing of the dark border


def test_colours_survive_the_file(tmp_path: Path) -> None:
    """A file of BT.709 that is read as BT.601 would shift every green of the training data."""
    colours = torch.tensor([[0.8, -0.6, -0.6], [-0.6, 0.8, -0.6], [-0.6, -0.6, 0.8]])
    for number, colour in enumerate(colours):
        path = tmp_path / f"{number}.mp4"
        write_video(colour[:, None, None, None].expand(3, 24, *SIZE), str(path), GenerationMetadata("", 0), 24, crf=0)
        read = to_float(read_clip(clip(path), Shape(5, 48, 80), 24))
        assert (read.mean((0, 2, 3, 4)) - colour).abs().max() < 0.03


def test_covering_cuts_and_never_stretches() -> None:
    circle = np.zeros((100, 200, 3), np.uint8)
    rows, columns = np.mgrid[:100, :200]
    circle[(rows - 50) ** 2 + (columns - 100) ** 2 < 30**2] = 255
    seen = cover(circle, 48, 48)[..., 0] > 127
    height, width = (np.ptp(np.nonzero(seen)[axis]) + 1 for axis in (0, 1))
    assert seen.shape == (48, 48)
    assert abs(height - width) <= 1


def test_a_file_of_turned_frames_is_read_upright(tmp_path: Path) -> None:
    upright = torch.full((3, 24, 80, 48), -0.8)
    upright[:, :, :20] = 0.8  # light above
    turned = torch.rot90(upright, 1, (2, 3))
    write_video(turned, str(tmp_path / "turned.mp4"), GenerationMetadata("", 0), 24, crf=0)
    rotated = tmp_path / "rotated.mp4"
    with av.open(str(tmp_path / "turned.mp4")) as source, av.open(str(rotated), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        copy.set_display_rotation(-90) if hasattr(copy, "set_display_rotation") else pytest.skip("PyAV cannot mark it")
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    one = clip(rotated, width=48, height=80, crop_w=48, crop_h=80)
    read = read_clip(one, Shape(5, 80, 48), 24).float()
    assert read[:, :16].mean() > 200 and read[:, 24:].mean() < 60


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    shape = Shape(9, 48, 80)
    with pytest.raises(ClipError, match=r"clip clip-0 of .*none.mp4 cannot be read: .*[Nn]o such file"):
        read_clip(clip(tmp_path / "none.mp4"), shape, 24)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ClipError, match="cannot be read"):
        read_clip(clip(tmp_path / "text.mp4"), shape, 24)
    short = counting(tmp_path / "short.mp4", 6, 24)
    with pytest.raises(ClipError, match=r"has 6 frames from 0.000 s on, not 9"):
        read_clip(clip(short), shape, 24)
