"""A clip's pixels: the right frames at the right speed, cropped and covered, and words for what cannot be read."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from models.video_file import GenerationMetadata, write_video
from tests.media.high_range import HLG, PQ, write_high_range
from tests.training.small_data import row
from training.data import clips
from training.data.buckets import Shape
from training.data.clips import ClipError, cover, read_clip, to_float
from training.data.manifest import Clip

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


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_file_of_turned_frames_is_read_upright(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    """Light above and dark at the left, however the file stores it."""
    upright = np.full((80, 48, 3), 120, np.uint8)
    upright[:, :16] = 20
    upright[:20] = 230
    stored = np.rot90(upright[:, ::-1] if mirrored else upright, -degrees // 90)
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", 24, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = *stored.shape[:2], "yuv420p"
        stream.set_display_rotation(degrees, hflip=mirrored)
        for _ in range(24):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(stored))))
        file.mux(stream.encode())
    read = read_clip(clip(path, width=48, height=80, crop_w=48, crop_h=80), Shape(5, 80, 48), 24).float()
    assert read[:, 2:16].mean() > 220
    assert read[:, 30:, 2:12].mean() < 30 and read[:, 30:, 24:].mean() > 110


@pytest.mark.parametrize("tag", [1, 3, 6, 8])
def test_an_image_is_read_as_its_exif_says(tmp_path: Path, tag: int) -> None:
    upright = np.full((48, 80, 3), 120, np.uint8)
    upright[:16] = 230
    stored = np.rot90(upright, {1: 0, 3: 2, 6: 1, 8: 3}[tag])
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "photo.jpg", exif=exif)
    read = read_clip(clip(tmp_path / "photo.jpg", seconds=0), Shape(1, 48, 80), 24).float()
    assert read.shape == (1, 48, 80, 3)
    assert read[:, :14].mean() > 220 and read[:, 20:].mean() < 130


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_high_dynamic_range_is_trained_on_as_standard_range(tmp_path: Path, transfer: int) -> None:
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[:, :40], picture[:, 40:] = (190, 60, 40), (60, 90, 180)
    write_high_range(tmp_path / "high.mp4", picture, transfer, frames=24)
    read = read_clip(clip(tmp_path / "high.mp4"), Shape(5, 48, 80), 24).float()
    assert np.abs(read[:, :, 4:32].mean((0, 1, 2)).numpy() - (190, 60, 40)).max() < 5
    assert np.abs(read[:, :, 48:76].mean((0, 1, 2)).numpy() - (60, 90, 180)).max() < 5


def test_a_large_source_gives_the_same_pixels_as_a_small_one(tmp_path: Path) -> None:
    """What is read at twice the shape's size, and what is read whole, show the same place of the picture."""
    rows, columns = np.mgrid[:480, :800] / 160
    large = np.stack([np.sin(rows), np.cos(columns), np.sin(rows + columns)], -1) * 90 + 128
    small = np.asarray(Image.fromarray(large.astype(np.uint8)).resize((80, 48), Image.Resampling.BOX))
    with av.open(str(tmp_path / "large.mp4"), "w") as file:
        stream = file.add_stream("libx264", 24, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = 480, 800, "yuv420p"
        for _ in range(12):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(large.astype(np.uint8))))
        file.mux(stream.encode())
    whole = clip(tmp_path / "large.mp4", width=800, height=480, crop_w=800, crop_h=480)
    assert np.abs(only_frame(whole) - small).mean() < 2
    corner = replace(whole, crop_x=400, crop_y=240, crop_w=400, crop_h=240)
    quarter = np.asarray(Image.fromarray(large[240:, 400:].astype(np.uint8)).resize((80, 48), Image.Resampling.BOX))
    assert np.abs(only_frame(corner) - quarter).mean() < 2


def only_frame(one: Clip) -> np.ndarray:
    return read_clip(one, Shape(1, 48, 80), 24)[0].numpy().astype(float)


def test_frames_of_another_size_than_the_manifest_says_are_an_error(tmp_path: Path) -> None:
    """The size changes after one second: each part is readable with its own size alone, and no clip over both."""
    parts = []
    for number, (height, width) in enumerate([(48, 80), (64, 48)]):
        with av.open(str(tmp_path / f"{number}.ts"), "w") as file:
            stream = file.add_stream("libx264", 24, options={"bf": "0"})
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            for i in range(24):
                frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 60 + 100 * number, np.uint8))
                frame.pts, frame.time_base = 24 * number + i, Fraction(1, 24)
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
        parts.append((tmp_path / f"{number}.ts").read_bytes())
    both = tmp_path / "both.ts"
    both.write_bytes(b"".join(parts))
    with av.open(str(both)) as file:
        times = [float(frame.time) for frame in file.decode(video=0)]
    first = clip(both, start_s=times[0], end_s=times[24])
    second = clip(both, start_s=times[24], end_s=times[24] + 1, width=48, height=64, crop_w=48, crop_h=64)
    assert read_clip(first, Shape(9, 48, 80), 24).float().mean() < 80
    assert read_clip(second, Shape(9, 64, 48), 24).float().mean() > 140
    with pytest.raises(ClipError, match=r"breaks off or changes its size at 1\.000 s, inside the clip"):
        read_clip(replace(first, start_s=times[12], end_s=times[24] + 1), Shape(24, 48, 80), 24)
    for wrong in (replace(first, start_s=times[24], end_s=times[24] + 1), replace(first, width=82)):
        with pytest.raises(ClipError, match=r"its pictures are \d+ x \d+, and \d+ x 48 in the manifest"):
            read_clip(wrong, Shape(9, 48, 80), 24)


def test_the_stream_that_a_player_shows_is_trained_on(tmp_path: Path) -> None:
    """A cover picture comes first in the file, and is no video."""
    path = tmp_path / "cover.mkv"
    with av.open(str(path), "w") as file:
        cover_stream, stream = file.add_stream("libx264", 24), file.add_stream("libx264", 24)
        stream.disposition = av.stream.Disposition.default
        cover_stream.disposition = av.stream.Disposition(0)
        for one, (height, width) in ((cover_stream, (32, 32)), (stream, SIZE)):
            one.height, one.width, one.pix_fmt = height, width, "yuv420p"
        for number in range(24):
            for one, level in ((cover_stream, 20), (stream, 200)):
                frame = av.VideoFrame.from_ndarray(np.full((one.height, one.width, 3), level, np.uint8))
                frame.pts, frame.time_base = number, Fraction(1, 24)
                file.mux(one.encode(frame))
        for one in (cover_stream, stream):
            file.mux(one.encode())
    assert read_clip(clip(path), Shape(9, 48, 80), 24).float().mean() > 190


@pytest.mark.parametrize("name", ["a::b.mp4", "img%d.mp4", "a#1 b.mp4"])
def test_a_name_is_a_name(tmp_path: Path, name: str) -> None:
    source = counting(tmp_path / "a.mp4", 24, 24).rename(tmp_path / name)
    assert levels(read_clip(clip(source), Shape(9, 48, 80), 24)) == list(range(9))


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


def test_nothing_after_the_end_of_a_clip_is_shown(tmp_path: Path) -> None:
    """Another shot begins where the clip ends: one picture of it is a cut inside a training sample."""
    source = counting(tmp_path / "a.mp4", 48, 24)
    for fps in (24, 25, 30):  # the last time is just before the end, where the next picture is the nearest
        frames = int(fps * 9 / 24 - 1e-9) + 1
        shape = Shape(frames, 48, 80)
        assert max(levels(read_clip(clip(source, start_s=0.5, end_s=0.875), shape, fps))) == 20, fps
    with pytest.raises(ClipError, match=r"it is 0\.300 s long, and the last of 9 frames is at 0\.333 s"):
        read_clip(clip(source, end_s=0.3), Shape(9, 48, 80), 24)


@pytest.mark.parametrize("seeks", [True, False])
def test_a_first_picture_that_comes_late_is_refused(tmp_path: Path, seeks: bool) -> None:
    """Its pictures would be repeated until the first one comes, and stand for something else."""
    path = tmp_path / ("a.mkv" if seeks else "a.avi")
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", 24)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for number in [*range(24), *range(240, 288)]:
            frame = av.VideoFrame.from_ndarray(np.full((*SIZE, 3), 60, np.uint8))
            frame.pts, frame.time_base = number, Fraction(1, 24)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    with pytest.raises(ClipError, match=r"it has no picture at 5\.000 s: the next one is at 10\.000 s"):
        read_clip(clip(path, start_s=5.0, end_s=12.0), Shape(9, 48, 80), 24)
    assert len(read_clip(clip(path, start_s=10.0, end_s=12.0), Shape(9, 48, 80), 24)) == 9


@pytest.mark.parametrize("fps", [60, 120])
def test_the_first_frame_is_the_clips_first_picture(tmp_path: Path, fps: int) -> None:
    source = counting(tmp_path / "a.mp4", 60, fps)
    read = read_clip(clip(source, end_s=60 / fps), Shape(5, 48, 80), 24)
    assert levels(read) == [number * fps // 24 for number in range(5)]


def test_a_picture_that_stays_on_screen_is_scaled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = counting(tmp_path / "a.mp4", 24, 6)
    scaled: list[int] = []
    monkeypatch.setattr(clips, "cover", lambda *arguments: scaled.append(1) or cover(*arguments))
    assert levels(read_clip(clip(source, end_s=4.0), Shape(9, 48, 80), 24)) == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert len(scaled) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crop_x": 60}, r"its crop from 60, 0 to 140, 48 is not inside its 80 x 48 pixels"),
        ({"crop_y": -1}, r"its crop from 0, -1 to 80, 47 is not inside"),
        ({"crop_w": 0}, r"80 x 48 pixels, cropped to 0 x 48, are no size"),
        ({"height": 0}, r"80 x 0 pixels, cropped to 80 x 48, are no size"),
        ({"start_s": 1.0, "end_s": 0.0}, r"it is -1\.000 s long"),
        ({"start_s": float("nan")}, r"nan s to 1\.0 s are no times"),
        ({"end_s": float("inf")}, r"0\.0 s to inf s are no times"),
    ],
)
def test_a_row_that_no_file_could_satisfy_is_named(tmp_path: Path, changes: dict[str, float], words: str) -> None:
    source = counting(tmp_path / "a.mp4", 24, 24)
    with pytest.raises(ClipError, match=rf"clip clip-0 of .*a\.mp4 cannot be read: {words}"):
        read_clip(clip(source, **changes), Shape(9, 48, 80), 24)


@pytest.mark.parametrize(("height", "width", "matrix"), [(720, 1280, "bt709"), (480, 640, "bt601")])
def test_a_video_without_a_tag_has_the_colours_of_its_size(
    tmp_path: Path, height: int, width: int, matrix: str
) -> None:
    """High definition is BT.709 and standard definition BT.601, as players and curation take it."""
    green = np.full((height, width, 3), (40, 200, 60), np.uint8)
    tagged = av.video.reformatter.Colorspace.ITU709 if matrix == "bt709" else av.video.reformatter.Colorspace.ITU601
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", 24, options={"qscale": "2"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for _ in range(6):
            frame = av.VideoFrame.from_ndarray(green).reformat(format="yuv420p", dst_colorspace=tagged)
            frame.colorspace = 2  # unspecified
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    whole = clip(tmp_path / "a.mp4", width=width, height=height, crop_w=width, crop_h=height)
    assert np.abs(only_frame(whole) - (40, 200, 60)).max() < 5


@pytest.mark.parametrize("name", ["a.png", "a.webp", "palette.png", "a.mov", "a.mkv"])
def test_colours_that_hide_in_what_is_see_through_are_not_seen(tmp_path: Path, name: str) -> None:
    """What editors leave under a transparent region: it lies on white, also where edges are scaled."""
    picture = np.zeros((480, 800, 4), np.uint8)
    picture[...] = (255, 0, 0, 0)  # hidden red
    picture[:, 403:] = (20, 160, 40, 255)
    path = tmp_path / name
    if path.suffix in (".png", ".webp"):
        image = Image.fromarray(picture, "RGBA")
        (image.quantize(8) if name == "palette.png" else image).save(path, lossless=True)
    else:
        with av.open(str(path), "w") as file:
            stream = file.add_stream("qtrle" if path.suffix == ".mov" else "ffv1", 24)
            stream.height, stream.width = 480, 800
            stream.pix_fmt = "argb" if path.suffix == ".mov" else "bgra"
            for _ in range(6):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgba")))
            file.mux(stream.encode())
    read = only_frame(clip(path, width=800, height=480, crop_w=800, crop_h=480))
    assert np.abs(read[:, :38] - 255).max() < 2
    assert np.abs(read[:, 42:] - (20, 160, 40)).max() < 3
    assert (read[:, 38:42, 0] <= read[:, 38:42, 1] + 2).all()  # between white and green, never red
