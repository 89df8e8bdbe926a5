"""Facts about the motion of camera and subject."""

from io import BytesIO

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_sample_image

from tasks.curation.background import CELLS, Moving, camera_moves, decisions, in_common, spread
from tasks.curation.motion import MotionConfig, clip_speeds, score
from tasks.tables.clip import Clip
from tasks.tables.frame_store import FramePair, FrameStore, FrameStoreWriter, decode_jpeg, encode_jpeg
from tasks.tables.picture import Image
from tests.tasks.rows import CLIP

WIDTH, HEIGHT = 448, 252
DIAGONAL = float(np.hypot(WIDTH, HEIGHT))
GAP_S = 1 / 12


def pair_speeds(pair: FramePair) -> tuple[float, float]:
    return clip_speeds([pair])


def photograph(name: str = "china.jpg") -> Image:
    return np.asarray(cv2.resize(load_sample_image(name), (560, 374), interpolation=cv2.INTER_AREA), np.uint8)


def view(picture: Image, shift: tuple[float, float] = (0, 0), zoom: float = 1, turn: float = 0) -> Image:
    """The picture as a camera sees it: moved by ``shift`` pixels on the screen, scaled and turned (radians)."""
    cos, sin = np.cos(turn) / zoom, np.sin(turn) / zoom
    matrix = np.array([[cos, sin, 0.0], [-sin, cos, 0.0]])
    centre = np.array([WIDTH - 1, HEIGHT - 1]) / 2 + shift
    matrix[:, 2] = np.array(picture.shape[1::-1]) / 2 - matrix[:, :2] @ centre
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    seen = cv2.warpAffine(picture, matrix, (WIDTH, HEIGHT), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(seen, np.uint8)


def with_subject(background: Image, area: float, shift: tuple[float, float] = (0, 0)) -> Image:
    """A disc cut from a dahlia, of a fraction ``area`` of the frame, in front of the background."""
    radius = np.sqrt(area * WIDTH * HEIGHT / np.pi)
    xs, ys = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    distance = np.hypot(xs - WIDTH / 2 - shift[0], ys - HEIGHT / 2 - shift[1])
    alpha: NDArray[np.float64] = np.clip(radius - distance + 0.5, 0, 1)[..., None]
    return np.asarray(background * (1 - alpha) + view(photograph("flower.jpg"), shift) * alpha, np.uint8)


def pair(first: Image, second: Image, gap_s: float = GAP_S) -> FramePair:
    """As the frame store holds them."""
    return FramePair(0.0, gap_s, decode_jpeg(encode_jpeg(first)), decode_jpeg(encode_jpeg(second)))


@pytest.mark.parametrize("shift", [(0.6, 0.3), (3.0, -2.0), (-12.0, 5.0), (40.0, 12.0)])
def test_pan_without_subject_motion_has_no_foreground_motion(shift: tuple[float, float]) -> None:
    background, foreground = pair_speeds(pair(view(photograph()), view(photograph(), shift)))
    assert background == pytest.approx(np.hypot(*shift) / DIAGONAL / GAP_S, rel=0.07)
    assert foreground < 0.1 * background


def test_zoom_and_rotation_are_camera_motion() -> None:
    still = view(photograph())
    for moved in (view(photograph(), zoom=1.04), view(photograph(), turn=0.03)):
        background, foreground = pair_speeds(pair(still, moved))
        assert background > 0.02
        assert foreground < 0.1 * background


@pytest.mark.parametrize("area", [0.03, 0.1, 0.3])
@pytest.mark.parametrize("shift", [(1.5, 0.5), (9.0, -4.0)])
def test_subject_before_a_still_camera_is_foreground_however_small(area: float, shift: tuple[float, float]) -> None:
    still = view(photograph())
    background, foreground = pair_speeds(pair(with_subject(still, area), with_subject(still, area, shift)))
    assert background < 0.1 * foreground
    assert foreground == pytest.approx(np.hypot(*shift) / DIAGONAL / GAP_S, rel=0.4)


def test_subject_before_a_plain_wall_does_not_pass_for_the_camera() -> None:
    wall = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    background, foreground = pair_speeds(pair(with_subject(wall, 0.3), with_subject(wall, 0.3, (6, 2))))
    assert background < 0.1 * foreground


def test_foreground_is_measured_against_a_moving_background() -> None:
    first, second = view(photograph()), view(photograph(), (6, 0))
    background, foreground = pair_speeds(pair(with_subject(first, 0.1), with_subject(second, 0.1, (-6, 0))))
    assert background == pytest.approx(6 / DIAGONAL / GAP_S, rel=0.1)
    assert foreground == pytest.approx(12 / DIAGONAL / GAP_S, rel=0.3)


def test_nothing_moves_in_a_frozen_picture() -> None:
    noise = np.random.default_rng(0).normal(0, 3, (2, HEIGHT, WIDTH, 3))
    first, second = np.clip(view(photograph()) + noise, 0, 255).astype(np.uint8)
    assert pair_speeds(pair(first, second)) == (0, 0)
    black = np.zeros_like(first)
    assert pair_speeds(pair(black, black)) == (0, 0)


def test_fade_is_not_motion() -> None:
    still = view(photograph())
    assert pair_speeds(pair(still, (still * 0.9).astype(np.uint8))) == pytest.approx((0, 0), abs=2e-3)


def test_speed_does_not_depend_on_size_or_frame_rate() -> None:
    still = view(photograph())
    first, second, later = (with_subject(still, 0.15, (x, 0)) for x in (0, 6, 12))
    small = [np.asarray(cv2.resize(f, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)) for f in (first, second)]
    speeds = pair_speeds(pair(first, second))
    assert pair_speeds(pair(*small)) == pytest.approx(speeds, rel=0.1)
    assert pair_speeds(pair(first, later, 2 * GAP_S)) == pytest.approx(speeds, rel=0.1)


def test_one_odd_pair_does_not_decide_a_clip() -> None:
    still, moved = view(photograph()), view(photograph(), (3, 0))
    odd = pair(still, view(photograph("flower.jpg")))
    background, foreground = clip_speeds([pair(still, moved)] * 5 + [odd])
    assert background == pytest.approx(3 / DIAGONAL / GAP_S, rel=0.1)
    assert foreground < 0.1 * background


def test_background_lies_about_the_frame_and_not_in_a_patch() -> None:
    patch, frame = np.zeros((2, CELLS, CELLS), bool)
    patch[2:7, 2:7] = True
    frame[0], frame[:, 0], frame[:, -1] = True, True, True
    assert spread(frame.ravel())
    assert not spread(patch.ravel())


def test_camera_is_judged_by_the_cells_that_can_tell() -> None:
    apart = np.ones(CELLS**2)
    assert camera_moves(apart, apart) is True
    assert camera_moves(-apart, apart) is False
    assert camera_moves(apart, 0.1 * apart) is None


def test_pairs_that_cannot_tell_alone_tell_together() -> None:
    weak = Moving(np.eye(3), np.full(CELLS**2, 0.2), np.full(CELLS**2, 0.2))
    assert camera_moves(weak.gain, weak.apart) is None
    assert camera_moves(*in_common([weak] * 6)) is True


def test_pairs_that_cannot_tell_follow_those_that_can_if_these_are_half() -> None:
    sure = Moving(np.eye(3), np.ones(CELLS**2), np.ones(CELLS**2))
    blank = Moving(np.eye(3), np.zeros(CELLS**2), np.zeros(CELLS**2))
    assert decisions([sure, blank, sure, blank]) == [True] * 4
    assert decisions([sure, blank, blank, None]) == [True, False, False, False]


def test_subject_that_crosses_the_frame_is_no_camera() -> None:
    crossing = np.zeros((8, CELLS, CELLS))
    for i in range(CELLS):
        crossing[i, :, i] = 1  # one column of cells in every pair, each pair another
    assert not camera_moves(*in_common([Moving(np.eye(3), cells.ravel(), cells.ravel()) for cells in crossing]))


@pytest.mark.parametrize("speed", [0.5, 1.0])
def test_slow_pan_over_a_soft_picture_is_measured(speed: float) -> None:
    soft = np.asarray(cv2.GaussianBlur(photograph(), (0, 0), 2), np.uint8)
    pairs = [pair(view(soft, (i, 0)), view(soft, (i + speed, 0))) for i in range(6)]
    background, foreground = clip_speeds(pairs)
    assert background == pytest.approx(speed / DIAGONAL / GAP_S, rel=0.1)
    assert foreground < 0.1 * background


def test_clip_without_pairs_has_no_motion() -> None:
    file = BytesIO()
    writer = FrameStoreWriter(file)
    writer.add(0.0, view(photograph()), None, None)
    writer.close()
    clip = Clip(CLIP | {"duration_s": 0.0, "end_s": 0.0}, FrameStore(BytesIO(file.getvalue())))
    assert score(clip, MotionConfig()) == {"motion_bg": None, "motion_fg": None, "motion": None}
