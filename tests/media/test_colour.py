"""What the codes of a frame mean in sRGB: matrices, range, high dynamic range, wide gamuts."""

from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from media.colour import KNEE, roll_off, to_srgb
from media.display import Display
from media.source import BadSource
from tests.media.high_range import HLG, PQ, TO_BT2020, hlg_codes, linear, pq_codes, write_high_range

COLOURS = np.array([(200, 40, 40), (40, 180, 60), (50, 60, 210), (128, 128, 128), (235, 220, 180)], np.uint8)


def bars(height: int, width: int) -> np.ndarray:
    """RGB uint8: vertical bars of COLOURS."""
    return COLOURS[np.arange(width) * len(COLOURS) // width][None].repeat(height, 0)


def middles(picture: np.ndarray) -> np.ndarray:
    """The colours of the middles of the bars, int [5, 3]."""
    height, width = picture.shape[:2]
    return picture[height // 2, (2 * np.arange(5) + 1) * width // 10].astype(int)


def frame_of(rgb: np.ndarray, matrix: int, tag: int, full_range: bool = False) -> av.VideoFrame:
    """YUV 4:2:0 that is made by ``matrix`` and tagged ``tag`` (ITU-T H.273)."""
    colour_range = ColorRange.JPEG if full_range else ColorRange.MPEG
    frame = av.VideoFrame.from_ndarray(rgb).reformat(
        format="yuv420p", dst_colorspace=matrix, dst_color_range=colour_range
    )
    frame.colorspace, frame.color_range = tag, colour_range
    return frame


def shown(frame: av.VideoFrame) -> np.ndarray:
    return middles(Display.of(frame, None).picture(frame))


@pytest.mark.parametrize(
    ("size", "matrix"),
    [
        ((1280, 720), Colorspace.ITU709),
        ((720, 1280), Colorspace.ITU709),
        ((1280, 534), Colorspace.ITU709),
        ((1920, 1080), Colorspace.ITU709),
        ((720, 576), Colorspace.ITU601),
        ((640, 480), Colorspace.ITU601),
        ((320, 180), Colorspace.ITU601),
    ],
)
@pytest.mark.parametrize("tag", [0, 2, 3])
def test_untagged_pictures_of_high_definition_are_bt709_and_others_bt601(
    size: tuple[int, int], matrix: int, tag: int
) -> None:
    assert np.abs(shown(frame_of(bars(size[1], size[0]), matrix, tag)) - COLOURS).max() <= 4


@pytest.mark.parametrize(("tag", "matrix"), [(1, 1), (5, 5), (6, 5), (7, 7), (9, 9)])
@pytest.mark.parametrize("size", [(1280, 720), (320, 180)])
@pytest.mark.parametrize("full_range", [False, True])
def test_a_tag_says_how_the_colours_are_stored(tag: int, matrix: int, size: tuple[int, int], full_range: bool) -> None:
    assert np.abs(shown(frame_of(bars(size[1], size[0]), matrix, tag, full_range)) - COLOURS).max() <= 4


@pytest.mark.parametrize("tag", [8, 10, 14])
def test_a_matrix_that_makes_no_rgb_is_refused_in_words(tag: int) -> None:
    frame = frame_of(bars(64, 64), 5, tag)
    with pytest.raises(BadSource, match=f"matrix {tag}"):
        Display.of(frame, None).picture(frame)
    with pytest.raises(BadSource, match=f"matrix {tag}"):
        Display.of(frame, None).small(frame, 32)


@pytest.mark.parametrize(("transfer", "coded"), [(PQ, pq_codes), (HLG, hlg_codes)])
def test_what_fits_in_standard_range_is_shown_as_the_standard_take(transfer: int, coded: object) -> None:
    """Colours of BT.709 below the knee, stored as high dynamic range with diffuse white at 203 cd/m2, come back."""
    light = linear(bars(10, 50)) @ TO_BT2020.T * 203
    assert np.abs(middles(to_srgb(coded(light), transfer, ColorPrimaries.BT2020)) - COLOURS).max() <= 2
    untagged = to_srgb(coded(light), transfer, ColorPrimaries.UNSPECIFIED)
    assert np.abs(middles(untagged) - COLOURS).max() <= 2


def test_diffuse_white_of_the_standards_is_nearly_full_white() -> None:
    """BT.2408, table 1: diffuse white is 58 % of PQ and 75 % of HLG."""
    for transfer, code in ((PQ, 0.58), (HLG, 0.75)):
        white = to_srgb(np.full((1, 1, 3), round(code * 65535), np.uint16), transfer, ColorPrimaries.BT2020)
        assert white.min() >= 246 and white.max() <= 250


def test_highlights_keep_their_order_and_their_hue() -> None:
    levels = np.array([100, 203, 400, 700, 1000, 4000])
    grey = to_srgb(pq_codes(levels[None, :, None].repeat(3, 2)), PQ, ColorPrimaries.BT2020)[0, :, 0].astype(int)
    assert (np.diff(grey[:5]) > 0).all() and grey[4] == grey[5] == 255
    warm = np.array([900.0, 600.0, 300.0])[None, None] @ TO_BT2020.T
    light = linear(to_srgb(pq_codes(warm), PQ, ColorPrimaries.BT2020)[0, 0].astype(float))
    assert np.abs(light / light[0] - (1, 2 / 3, 1 / 3)).max() < 0.02


def test_the_tone_curve_leaves_all_below_its_knee_and_never_turns() -> None:
    light = np.linspace(0, 50, 5001, dtype=np.float32)
    bent = roll_off(light)
    assert (bent[light <= KNEE] == light[light <= KNEE]).all()
    assert (np.diff(bent) >= 0).all() and bent.max() == 1
    assert np.diff(bent).max() <= np.diff(light).max() * 1.001  # no step where it begins


def test_wide_gamuts_of_standard_range_become_bt709() -> None:
    """BT.2020 and Display P3 that are read as BT.709 look washed out."""
    codes = np.rint(
        np.where(
            (light := linear(bars(10, 50)) @ TO_BT2020.T) <= 0.0031308,
            12.92 * light,
            1.055 * light ** (1 / 2.4) - 0.055,
        )
        * 65535
    ).astype(np.uint16)
    assert np.abs(middles(to_srgb(codes, ColorTrc.BT2020_10, ColorPrimaries.BT2020)) - COLOURS).max() <= 2
    full_red = np.array([[[65535, 0, 0]]], np.uint16)
    assert to_srgb(full_red, ColorTrc.BT709, ColorPrimaries.SMPTE432).tolist() == [[[255, 0, 0]]]
    grey = np.full((1, 1, 3), 128 * 257, np.uint16)
    for primaries in (ColorPrimaries.BT2020, ColorPrimaries.SMPTE432):
        assert np.abs(to_srgb(grey, ColorTrc.BT709, primaries).astype(int) - 128).max() <= 1


@pytest.mark.parametrize("transfer", [PQ, HLG])
@pytest.mark.parametrize(("codec", "container"), [("libx265", "mp4"), ("libx264", "mkv"), ("libx265", "ts")])
@pytest.mark.parametrize("size", [(320, 180), (1280, 720)])
def test_a_file_of_high_dynamic_range_looks_like_the_standard_take(
    tmp_path: Path, transfer: int, codec: str, container: str, size: tuple[int, int]
) -> None:
    path = tmp_path / f"high.{container}"
    write_high_range(path, bars(size[1], size[0]), transfer, codec)
    with av.open(str(path)) as file:
        read = next(file.decode(video=0))
    display = Display.of(read, None)
    assert np.abs(middles(display.picture(read)) - COLOURS).max() <= 8
    small = display.small(read, 128)
    assert max(small.shape) == 128 and np.abs(middles(small) - COLOURS).max() <= 10
