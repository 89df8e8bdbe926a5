"""Loops, stop motion, timelapses and flicker are no cuts; cuts beside and among them stay."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.curation import shots
from tasks.curation.jumps import unsteadiness
from tasks.curation.shots import ShotConfig, detect_transitions
from tests.tasks.curation.test_shots import HEIGHT, WIDTH, Frames, joined, scene, track_of

SEEDS = range(3)


def picture(rng: np.random.Generator, contrast: float = 50, sigma: float = 9) -> NDArray[np.float32]:
    """A smooth random texture around 0 [HEIGHT, WIDTH, 3], grey more than coloured."""
    noise = rng.normal(size=(HEIGHT, WIDTH, 3)).astype(np.float32)
    noise = cv2.GaussianBlur(noise + 2 * noise.mean(2, keepdims=True), (0, 0), sigma)
    return contrast * noise / noise.std()


def shown(pictures: list[NDArray[np.float32]] | NDArray[np.float32], times: int = 1) -> Frames:
    """Pictures around 0 as frames, each shown so many times."""
    return np.repeat(np.clip(128 + np.stack(list(pictures)), 0, 255), times, 0)


def looped(turn: Frames, frames: int = 180) -> Frames:
    return np.concatenate([turn] * (frames // len(turn) + 1))[:frames]


def alike(seed: int, count: int, common: float = 0.5) -> list[NDArray[np.float32]]:
    """Pictures that have a part of their energy in common and are random in the rest, as those of a timelapse."""
    rng = np.random.default_rng(seed)
    stays = picture(rng)
    return [np.sqrt(common) * stays + np.sqrt(1 - common) * picture(rng) for _ in range(count)]


def cuts_of(frames: Frames, fps: float = 25, config: ShotConfig = ShotConfig()) -> list[int]:
    transitions = detect_transitions(track_of(frames, np.arange(len(frames)) / fps), config)[1]
    assert {t.kind for t in transitions} <= {"cut"}
    return [round(t.start_s * fps) for t in transitions]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fps", [12.0, 25.0, 50.0])
@pytest.mark.parametrize("period", [6, 9, 14, 20])
def test_a_loop_is_one_shot(seed: int, fps: float, period: int) -> None:
    noise = np.random.default_rng(seed).normal(0, 4, (180, HEIGHT, WIDTH, 3))
    turn = scene(seed, period, speed=40 / period)
    turn[period // 2 :] = scene(seed + 10, period, speed=40 / period)[: period - period // 2] * 0.2 + turn[-1] * 0.8
    assert cuts_of(np.clip(looped(turn) + noise, 0, 255), fps) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_a_loop_that_changes_slowly_and_jumps_back_is_no_dissolve(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, last = picture(rng), picture(rng)
    for steps in (12, 20, 40):
        ways = np.linspace(0, 1, steps, dtype=np.float32)[:, None, None, None]
        assert cuts_of(looped(shown((1 - ways) * first + ways * last))) == []


def test_turns_of_a_loop_need_not_be_whole_frames() -> None:
    pan = scene(1, 12, speed=5)
    jumping = pan[(np.arange(180) * 10 / 24).astype(int) % 12]  # pictures at 10 a second in 24: 28.8 frames a turn
    assert cuts_of(jumping, 24) == []


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("length", [4, 8, 12])
def test_two_pictures_in_quick_turn_are_a_strobe(seed: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    assert cuts_of(looped(shown([picture(rng), picture(rng)], length))) == []


def test_two_views_in_slow_turn_are_parted_by_cuts() -> None:
    turn = np.concatenate([scene(1, 30, speed=0), scene(2, 30, speed=0)])
    assert cuts_of(looped(turn)) == [30, 60, 90, 120, 150]


def test_a_loop_longer_than_said_is_cut_where_it_jumps_back() -> None:
    frames = looped(scene(1, 40, speed=3))
    assert cuts_of(frames) == []
    assert cuts_of(frames, config=ShotConfig(loop_s=1.5)) == [40, 80, 120, 160]


def test_turns_of_a_loop_may_differ_by_as_much_as_said() -> None:
    noise = np.random.default_rng(1).normal(0, 4, (180, HEIGHT, WIDTH, 3))
    frames = np.clip(looped(scene(1, 40, speed=3)) + noise, 0, 255)
    assert cuts_of(frames) == []
    assert cuts_of(frames, config=ShotConfig(loop_alike=0)) == [40, 80, 120, 160]


def test_a_loop_begins_and_ends_with_cuts() -> None:
    loop = looped(scene(1, 15, speed=3), 75)
    assert cuts_of(np.concatenate([scene(2, 80), loop, scene(3, 80)])) == [80, 155]


def test_a_shot_that_comes_back_is_cut_off_from_what_was_between() -> None:
    view = scene(1, 90)
    assert cuts_of(np.concatenate([view[:40], scene(2, 30), view[40:]])) == [40, 70]


def test_a_loop_over_the_seam_of_two_blocks_is_one_shot(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [joined("dissolve"), looped(scene(5, 14, speed=3), 900), joined("wipe"), joined("fade")]
    track = track_of(np.concatenate(parts * 2))
    whole = detect_transitions(track, ShotConfig())
    assert len(whole[1]) == 13
    for length in (200, 333):
        monkeypatch.setattr(shots, "FRAMES_PER_BLOCK", length)
        assert detect_transitions(track, ShotConfig()) == whole


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("held", [1, 2, 3, 4, 6, 8, 12])
def test_footage_that_jumps_all_the_time_is_one_shot(seed: int, held: int) -> None:
    assert cuts_of(shown(alike(seed, 180 // held, common=0.7), held)) == []


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("flicker", [0.05, 0.2])
def test_a_crowd_in_a_timelapse_is_one_shot_whatever_its_exposure_does(seed: int, flicker: float) -> None:
    rng = np.random.default_rng(seed)
    square, frames = picture(rng), []
    for _ in range(150):
        frame = square.copy()
        for _ in range(40):
            place = int(rng.integers(WIDTH)), int(rng.integers(HEIGHT))
            cv2.circle(frame, place, int(rng.integers(2, 12)), rng.uniform(-128, 127, 3).tolist(), -1)
        frames.append((frame + 100) * np.exp(rng.normal(0, flicker)) - 100)
    assert cuts_of(shown(frames)) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_clouds_that_flicker_are_no_fade(seed: int) -> None:
    rng = np.random.default_rng(seed)
    land, sky, frames = picture(rng) * 0.5 - 30, picture(rng), []
    for t in range(180):
        sky = 0.95 * sky + 0.3 * picture(rng)
        frame = 1.2 * sky + 20
        frame[HEIGHT // 2 :] = land[HEIGHT // 2 :]
        light = (0.6 + 0.4 * np.sin(2 * np.pi * t / 90)) * np.exp(rng.normal(0, 0.2))
        frames.append((np.clip(frame, -128, 127) + 128) * light - 128)
    track = track_of(shown(frames))
    kinds = [t.kind for t in detect_transitions(track, ShotConfig())[1]]
    assert "fade" not in kinds and "cut" not in kinds
    assert "fade" in [t.kind for t in detect_transitions(track, ShotConfig(flicker=4.1))[1]]


@pytest.mark.parametrize("held", [8, 12])
def test_a_montage_of_cuts_is_no_footage_that_jumps(held: int) -> None:
    """Nothing is common to the shots of a montage but, here, black borders."""
    rng = np.random.default_rng(4)
    frames = shown([picture(rng) for _ in range(12)], held)
    frames[:, :, : WIDTH // 4] = frames[:, :, -WIDTH // 4 :] = 0
    assert cuts_of(frames) == [held * k for k in range(1, 12)]


def test_what_is_common_to_restless_pictures_is_a_matter_of_config() -> None:
    frames = shown(alike(1, 20, common=0.7), 8)
    assert cuts_of(frames, config=ShotConfig(restless=1.1)) == list(range(8, 160, 8))


def test_a_cut_between_two_stretches_of_stop_motion_or_into_one_stays() -> None:
    calm, restless = scene(1, 80), shown(alike(2, 10), 8)
    assert 80 in cuts_of(np.concatenate([calm, restless]))
    assert 80 in cuts_of(np.concatenate([restless, calm]))


@pytest.mark.parametrize("held", [1, 2, 3])
def test_a_straight_way_is_steady_however_often_a_picture_is_shown(held: int) -> None:
    rng = np.random.default_rng(0)
    ends = rng.uniform(0, 255, (2, 3, 12, 12))
    way = np.stack([(1 - r) * ends[0] + r * ends[1] for r in np.linspace(0, 1, 30)]).astype(np.float32)
    assert unsteadiness(np.repeat(way, held, 0)) == pytest.approx(0 if held == 1 else 2, abs=0.1)


def test_pictures_that_scatter_around_one_are_unsteady() -> None:
    scattered = np.random.default_rng(0).normal(128, 20, (60, 3, 12, 12)).astype(np.float32)
    assert unsteadiness(scattered) == pytest.approx(3, abs=0.2)
    walk = np.cumsum(scattered - 128, axis=0)
    assert unsteadiness(walk) == pytest.approx(2, abs=0.2)
    assert unsteadiness(walk[:1]) == unsteadiness(walk[:2]) == 0
