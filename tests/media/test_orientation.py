"""Pictures stored in any of the eight ways come out upright, from images and from videos."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from media.display import Display
from media.image import read_image
from media.orientation import Orientation

# EXIF 2.32, tag 0x0112: the sides of the visual picture on which the stored row 0 and the stored column 0 lie.
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}
RED, GREEN = (220, 30, 30), (30, 200, 30)


def marked(height: int = 48, width: int = 80) -> np.ndarray:
    """A picture whose first rows are red and whose first columns are green."""
    picture = np.full((height, width, 3), 90, np.uint8)
    picture[:16] = RED
    picture[:, :16] = GREEN
    return picture


def side(picture: np.ndarray, name: str) -> np.ndarray:
    """The mean colour of the middle of a side."""
    height, width = picture.shape[:2]
    rows = {"top": slice(2, 10), "bottom": slice(height - 10, height - 2)}.get(
        name, slice(height // 2, height // 2 + 4)
    )
    columns = {"left": slice(2, 10), "right": slice(width - 10, width - 2)}.get(name, slice(width // 2, width // 2 + 4))
    return picture[rows, columns].mean((0, 1))


@pytest.mark.parametrize("tag", SIDES)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_an_image_is_shown_as_its_exif_says(kind: str, tag: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    file = io.BytesIO()
    Image.fromarray(marked()).save(file, kind, exif=exif)
    picture = read_image(io.BytesIO(file.getvalue()))
    assert picture.shape == ((48, 80, 3) if tag < 5 else (80, 48, 3))
    assert np.abs(side(picture, SIDES[tag][0]) - RED).max() < 30
    assert np.abs(side(picture, SIDES[tag][1]) - GREEN).max() < 30


def test_an_exif_number_that_is_no_orientation_means_upright() -> None:
    assert {Orientation.of_exif(tag) for tag in (0, 9, 65535)} == {Orientation()}


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_a_video_is_shown_as_its_display_matrix_says(
    tmp_path: Path, container: str, degrees: int, mirrored: bool
) -> None:
    path = tmp_path / f"turned.{container}"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", 24, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 80, 48, "yuv420p"
        stream.set_display_rotation(degrees, hflip=mirrored)
        for packet in (*stream.encode(av.VideoFrame.from_ndarray(marked())), *stream.encode()):
            file.mux(packet)
    with av.open(str(path)) as file:
        frame = next(file.decode(video=0))
        display = Display.of(frame, file.streams.video[0].sample_aspect_ratio)
        picture = display.picture(frame)
    # PyAV's angles are counter-clockwise, and it mirrors after it turns.
    turned = np.rot90(marked(), degrees // 90)
    expected = turned[:, ::-1] if mirrored else turned
    assert (display.height, display.width) == picture.shape[:2] == expected.shape[:2]
    assert np.abs(picture.astype(float) - expected).mean() < 8


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_matrix_that_scales_or_leans_a_little_names_the_nearest_orientation(degrees: int) -> None:
    angle = np.radians(degrees + 7)
    a, b = round(131072 * np.cos(angle)), round(131072 * np.sin(angle))
    leaning = np.array([a, b, 0, -b, a, 0, 9 << 16, 5 << 16, 1 << 30], np.int32).tobytes()
    picture = np.arange(6, dtype=np.uint8).reshape(2, 3)
    # The matrix maps points, with the second axis downwards: its angles are clockwise.
    assert (Orientation.of_matrix(leaning).upright(picture) == np.rot90(picture, -degrees // 90)).all()


def test_a_matrix_of_zeros_means_upright() -> None:
    assert Orientation.of_matrix(bytes(36)) == Orientation()


def test_orientation_is_read_beside_side_data_that_pyav_cannot_name(tmp_path: Path) -> None:
    """FFmpeg hands out the EXIF of motion JPEG as side data of a kind that is newer than PyAV's list."""
    exif = Image.Exif()
    exif[0x0112] = 5
    Image.fromarray(marked()).save(tmp_path / "a.jpg", exif=exif)
    with av.open(str(tmp_path / "a.jpg")) as file:
        assert Orientation.of_frame(next(file.decode(video=0))) == Orientation.of_exif(5)
