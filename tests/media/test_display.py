"""Frames as a viewer sees them: square pixels, one moment at a time, see-through parts on white."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from media.display import Display


def frame(width: int, height: int) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(np.full((height, width, 3), 99, np.uint8))


def shown_size(width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
    display = Display.of(frame(width, height), aspect)
    picture = display.picture(frame(width, height))
    assert picture.shape == (display.height, display.width, 3)
    return display.width, display.height


@pytest.mark.parametrize(
    ("size", "aspect", "expected"),
    [
        ((720, 576), Fraction(64, 45), (1024, 576)),
        ((720, 480), Fraction(8, 9), (640, 480)),
        ((1440, 1080), Fraction(4, 3), (1920, 1080)),
        ((352, 576), Fraction(32, 11), (1024, 576)),
        ((960, 800), Fraction(2, 1), (1920, 800)),
        ((720, 240), Fraction(1, 2), (360, 240)),
    ],
)
def test_pixels_that_are_not_square_are_made_so(size: tuple[int, int], aspect: Fraction, expected: tuple) -> None:
    assert shown_size(*size, aspect) == expected


@pytest.mark.parametrize(
    "aspect", [None, Fraction(0), Fraction(1), Fraction(300, 1), Fraction(1, 300), Fraction(16, 1), Fraction(1, 7)]
)
def test_a_pixel_aspect_that_no_display_has_is_passed_over(aspect: Fraction | None) -> None:
    assert shown_size(320, 180, aspect) == (320, 180)


@pytest.mark.parametrize(
    ("longest", "size"), [(160, (160, 90)), (100, (100, 56)), (320, (320, 180)), (999, (320, 180))]
)
def test_pictures_are_made_smaller_and_never_larger(longest: int, size: tuple[int, int]) -> None:
    display = Display.of(frame(320, 180), None)
    for picture in (display.picture(frame(320, 180), longest), display.small(frame(320, 180), longest)):
        assert picture.shape[1::-1] == size


def test_a_small_picture_is_as_stored_and_of_the_same_colours(tmp_path: Path) -> None:
    path = tmp_path / "turned.mp4"
    picture = np.zeros((90, 160, 3), np.uint8)
    picture[:, :80], picture[:, 80:] = (180, 60, 40), (40, 90, 200)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", 24, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 160, 90, "yuv420p"
        stream.set_display_rotation(90)
        for packet in (*stream.encode(av.VideoFrame.from_ndarray(picture)), *stream.encode()):
            file.mux(packet)
    with av.open(str(path)) as file:
        read = next(file.decode(video=0))
    display = Display.of(read, None)
    small, whole = display.small(read, 80), display.picture(read)
    assert (display.width, display.height) == (90, 160)
    assert small.shape == (45, 80, 3) and whole.shape == (160, 90, 3)
    for side, place in ((small[20, 10], whole[150, 45]), (small[20, 70], whole[10, 45])):
        assert np.abs(side.astype(int) - place).max() <= 3


def combs(picture: np.ndarray) -> float:
    """How much neighbouring rows differ where rows two apart are alike: mean over the pixels."""
    grey = picture.astype(float).mean(-1)
    return float(np.maximum(np.abs(grey[1:-1] - grey[:-2]) - np.abs(grey[2:] - grey[:-2]), 0).mean())


def interlaced(path: Path, pixel_format: str, height: int) -> list[av.VideoFrame]:
    """A bright bar that moves 12 pixels from field to field, coded as interlaced; the frames as decoded."""
    codec = "mpeg2video" if path.suffix == ".mpg" else "libx264"
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, 25, options={"flags": "+ildct+ilme", "x264-params": "tff=1", "b": "4M"})
        stream.width, stream.height, stream.pix_fmt = 192, height, pixel_format
        for number in range(6):
            picture = np.full((height, 192, 3), 40, np.uint8)
            for field in (0, 1):
                left = 12 * (2 * number + field) + 8
                picture[field::2, left : left + 30] = (210, 190, 60)
            coded = av.VideoFrame.from_ndarray(picture).reformat(format="yuv444p")
            planes = [np.frombuffer(plane, np.uint8).reshape(height, -1)[:, :192] for plane in coded.planes]
            if pixel_format == "yuv420p":  # as a camera does: each field has rows of chroma of its own
                quarter = [
                    np.stack([plane[0::2, ::2][0::2], plane[1::2, ::2][0::2]], 1).reshape(-1, 96)[: height // 2]
                    for plane in planes[1:]
                ]
                planes = [planes[0], *quarter]
            one = av.VideoFrame(192, height, pixel_format)
            for plane, values in zip(one.planes, planes, strict=True):
                rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
                rows[:, : values.shape[1]] = values
            one.pts, one.time_base = number, Fraction(1, 25)
            for packet in stream.encode(one):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    with av.open(str(path)) as file:
        return list(file.decode(video=0))


@pytest.mark.parametrize(("name", "pixel_format"), [("a.mkv", "yuv420p"), ("a.mp4", "yuv444p"), ("a.mpg", "yuv420p")])
@pytest.mark.parametrize("height", [144, 160])
def test_of_interlaced_frames_one_moment_is_read(tmp_path: Path, name: str, pixel_format: str, height: int) -> None:
    frames = interlaced(tmp_path / name, pixel_format, height)
    assert all(frame.interlaced_frame for frame in frames)
    display = Display.of(frames[0], None)
    for number, read in enumerate(frames):
        picture, small = display.picture(read), display.small(read, 192)
        assert combs(read.to_ndarray(format="rgb24")) > 4  # what a reader that knows of no fields sees
        assert picture.shape == small.shape == (height, 192, 3)
        assert combs(picture) < 1 and combs(small) < 1
        left = 24 * number + 8
        assert np.abs(picture[20:-20, left + 8 : left + 22].astype(int) - (210, 190, 60)).mean() < 12


@pytest.mark.parametrize("transparent", ["bgra", "yuva420p", "rgba64le"])
def test_what_is_see_through_lies_on_white(transparent: str) -> None:
    pixels = np.zeros((32, 96, 4), np.uint8)
    pixels[:, 32:64] = (200, 0, 0, 128)
    pixels[:, 64:] = (200, 0, 0, 255)
    read = av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format=transparent)
    display = Display.of(read, None)
    for picture in (display.picture(read), display.small(read, 96)):
        assert picture[16, 8].min() > 250
        assert np.abs(picture[16, 48].astype(int) - (227, 127, 127)).max() < 8
        assert np.abs(picture[16, 88].astype(int) - (200, 0, 0)).max() < 8
