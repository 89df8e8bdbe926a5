"""Shots on small synthetic scenes: smooth random textures that a camera moves over."""

import itertools
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from scenedetect import FrameTimecode, StatsManager
from scenedetect.detectors import ContentDetector

from tasks.curation import shots
from tasks.curation.shots import (
    TRACK_SCHEMA,
    FrameTrack,
    Shot,
    ShotConfig,
    detect_shots,
    detect_transitions,
    split_shot,
)

Frames = NDArray[np.float32]
HEIGHT, WIDTH = 72, 128


def scene(seed: int, frames: int, speed: float = 0.3) -> Frames:
    """A camera that pans ``speed`` pixels a frame over a texture: RGB [T, HEIGHT, WIDTH, 3], 0 to 255."""
    noise = np.random.default_rng(seed).normal(size=(HEIGHT, WIDTH + int(speed * frames) + 1, 3)).astype(np.float32)
    texture = cv2.GaussianBlur(noise, (0, 0), 9)
    texture = np.clip(128 + 50 * (texture - texture.mean()) / texture.std(), 0, 255)
    return np.stack([texture[:, int(speed * t) : int(speed * t) + WIDTH] for t in range(frames)])


def track_of(
    frames: Frames | list[Frames], times: NDArray[np.float64] | None = None, segments: NDArray[np.int64] | None = None
) -> pa.Table:
    track = FrameTrack()
    times = np.arange(len(frames)) / 25 if times is None else times
    ends = np.append(times[1:], times[-1] + 1 / 25)
    segments = np.zeros(len(frames), np.int64) if segments is None else segments
    ends[:-1] = np.where(np.diff(segments), times[:-1] + 1 / 25, ends[:-1])
    for time_s, end_s, segment, image in zip(times, ends, segments, frames, strict=True):
        track.add(float(time_s), float(end_s), int(segment), image.astype(np.uint8))
    return track.flush()


def joined(kind: str, n: int = 24, body: int = 60) -> Frames:
    """Two moving scenes of ``body`` frames each, and n frames between them in which one gives way to the other."""
    old, new = scene(1, body + n), scene(2, body + n)
    alpha = (np.arange(1, n + 1, dtype=np.float32) / (n + 1))[:, None, None, None]
    if kind == "wipe":
        alpha = (np.arange(WIDTH) / WIDTH < alpha[..., 0]).astype(np.float32)[..., None] * np.ones((1, HEIGHT, 1, 1))
    mixed = (1 - alpha) * old[body:] + alpha * new[:n]
    if kind == "fade":
        mixed = np.abs(1 - 2 * alpha) * np.where(alpha < 0.5, old[body:], new[:n])
    return np.concatenate([old[:body], mixed, new[n:]])


def test_a_cut_parts_two_shots_at_its_first_new_frame() -> None:
    times = 1.5 + np.cumsum(np.resize([1 / 30, 1 / 24, 1 / 15], 90))
    found = detect_shots(track_of(np.concatenate([scene(1, 50), scene(2, 40)]), times), ShotConfig())
    assert [s.start_s for s in found] == [times[0], times[50]]
    assert found[0].end_s == times[50]
    assert found[1].end_s == pytest.approx(times[-1] + 1 / 25)


@pytest.mark.parametrize("kind", ["dissolve", "fade", "wipe"])
@pytest.mark.parametrize("length", [12, 24, 40])
def test_a_gradual_transition_belongs_to_no_shot(kind: str, length: int) -> None:
    found, transitions = detect_transitions(track_of(joined(kind, length)), ShotConfig())
    assert [t.kind for t in transitions] == [kind]
    before, after = found
    assert 0 <= 60 - round(before.end_s * 25) + length / 8 <= length / 8 + 6
    assert 0 <= round(after.start_s * 25) - (60 + length) + length / 8 <= length / 8 + 6


def test_fast_footage_has_the_same_shots() -> None:
    slow, fast = joined("dissolve", 24), joined("dissolve", 48, 120)
    ends = [
        detect_shots(track_of(frames, np.arange(len(frames)) / fps), ShotConfig())[0].end_s
        for frames, fps in ((slow, 30), (fast, 60))
    ]
    assert ends[0] == pytest.approx(ends[1], abs=0.1)


@pytest.mark.parametrize("what", ["pan", "exposure", "flash", "passing object", "still"])
def test_what_happens_within_a_shot_does_not_end_it(what: str) -> None:
    frames = scene(3, 150, speed=0 if what == "still" else 1.0 if what == "pan" else 0.2)
    if what == "exposure":
        frames = frames * (1 - 0.6 * np.clip((np.arange(150) - 60) / 20, 0, 1))[:, None, None, None]
    if what == "flash":
        frames[70:72] = 0.2 * frames[70:72] + 0.8 * 255
    if what == "passing object":
        for t in range(60, 90):
            left = int((t - 60) / 30 * 1.6 * WIDTH - 0.6 * WIDTH)
            frames[t, :, max(0, left) : max(0, left + int(0.6 * WIDTH))] = 20
    assert detect_shots(track_of(frames), ShotConfig()) == [Shot(0.0, pytest.approx(6.0))]


def test_thresholds_change_without_recording_again() -> None:
    track = track_of(joined("dissolve"))
    assert len(detect_shots(track, ShotConfig())) == 2
    assert len(detect_shots(track, ShotConfig(least_change=250))) == 1


def test_a_track_in_blocks_has_the_same_shots(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [joined(kind) for kind in ("dissolve", "wipe", "fade", "wipe")] * 3
    track = track_of(np.concatenate(parts))
    whole = detect_transitions(track, ShotConfig())
    assert len(whole[1]) == 23
    assert len(track) > 200 + shots.OVERLAP  # or there would be one block
    monkeypatch.setattr(shots, "FRAMES_PER_BLOCK", 200)
    assert detect_transitions(track.to_batches(max_chunksize=90), ShotConfig()) == whole


def test_a_track_is_handed_out_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shots, "FRAMES_PER_BLOCK", 3)
    track, blocks = FrameTrack(), []
    for t in range(7):
        track.add(t / 25, (t + 1) / 25, 0, np.full((HEIGHT, WIDTH, 3), t, np.uint8))
        blocks.append(track.take_block())
    assert [len(b) for b in blocks if b is not None] == [3, 3]
    assert track.flush()["time_s"].to_pylist() == [6 / 25]


def test_tracks_of_one_frame_and_of_none() -> None:
    assert detect_shots(TRACK_SCHEMA.empty_table(), ShotConfig()) == []
    assert detect_shots([], ShotConfig()) == []
    assert detect_shots(track_of(scene(1, 1)), ShotConfig()) == [Shot(0.0, 1 / 25)]


def test_the_content_value_is_that_of_pyscenedetect() -> None:
    small = np.random.default_rng(0).integers(0, 255, (40, HEIGHT // 4, WIDTH // 4, 3), np.uint8)
    detector, expected = ContentDetector(), []
    detector.stats_manager = StatsManager()
    for i, image in enumerate(small):
        detector.process_frame(FrameTimecode(i, 25.0), np.ascontiguousarray(image[..., ::-1]))
        expected.append(detector.stats_manager.get_metrics(FrameTimecode(i, 25.0), ["content_val"])[0] or 0.0)
    track = track_of(small.repeat(4, 1).repeat(4, 2))  # the track looks at means of 4x4 pixels
    assert track["content_val"].to_pylist() == pytest.approx(expected)
    assert min(expected[1:]) > 50


def test_a_segment_ends_a_shot_and_no_transition_reaches_over_it() -> None:
    frames = joined("dissolve")
    assert len(detect_transitions(track_of(frames), ShotConfig())[1]) == 1  # about where the hole will be
    times = np.arange(len(frames)) / 25
    segments = (np.arange(len(frames)) >= 72).astype(int)
    track = track_of(frames, times + 20 * segments, segments)
    for batches in (track, track.to_batches(max_chunksize=50)):
        found, transitions = detect_transitions(batches, ShotConfig())
        assert {shot.segment for shot in found} == {0, 1}
        for part in (*found, *transitions):
            assert part.end_s < 72 / 25 + 1e-6 or part.start_s > 20 + 72 / 25 - 1e-6
        assert found[-1].end_s == pytest.approx(20 + len(frames) / 25)


def test_a_shot_ends_with_its_last_frame_also_before_a_hole() -> None:
    track = FrameTrack()
    for i in range(50):
        segment, within = divmod(i, 25)
        start_s = 60.0 * segment + within / 25
        track.add(start_s, start_s + (2.5 if i == 49 else 1 / 25), segment, np.full((8, 8, 3), i, np.uint8))
    assert detect_shots(track.flush(), ShotConfig()) == [
        Shot(0.0, pytest.approx(1.0), 0),
        Shot(60.0, pytest.approx(63.46), 1),
    ]


def test_frames_may_change_their_size_with_the_segment() -> None:
    small, large = scene(1, 30)[:, :, :96], scene(2, 30)
    track = track_of([*small, *large], np.arange(60) / 25, np.repeat([0, 1], 30))
    assert track["content_val"].to_pylist()[30] == 0
    assert [(s.start_s, s.segment) for s in detect_shots(track, ShotConfig())] == [(0.0, 0), (pytest.approx(1.2), 1)]


def test_a_segment_that_is_longer_than_a_block_keeps_its_shots(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.concatenate([joined("wipe"), joined("dissolve"), joined("fade")] * 4)
    segments = (np.arange(len(frames)) >= 2 * len(frames) // 3).astype(int)
    track = track_of(frames, np.arange(len(frames)) / 25 + 20 * segments, segments)
    whole = detect_transitions(track, ShotConfig())
    monkeypatch.setattr(shots, "FRAMES_PER_BLOCK", 200)
    assert detect_transitions(track.to_batches(max_chunksize=37), ShotConfig()) == whole
    assert {shot.segment for shot in whole[0]} == {0, 1}


@pytest.mark.parametrize(("length", "clips"), [(2.0, 1), (3.0, 1), (6.0, 1), (6.1, 2), (12.0, 2), (13.0, 3)])
def test_a_shot_is_split_into_the_fewest_equal_clips(length: float, clips: int) -> None:
    times = 10 + np.arange(0, length, 1 / 100)
    spans = split_shot(Shot(10.0, 10.0 + length), times)
    assert len(spans) == clips
    assert spans[0][0] == 10.0
    assert spans[-1][1] == 10.0 + length
    assert np.ptp([b - a for a, b in spans]) <= 0.0101


@pytest.mark.parametrize("seed", range(40))
def test_clips_begin_where_frames_do_and_keep_within_their_lengths(seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = 5 + np.cumsum(rng.choice([1 / 60, 1 / 30, 0.1, 0.45], int(rng.integers(30, 400)), p=[0.3, 0.4, 0.2, 0.1]))
    shot = Shot(float(times[0]), float(times[-1]) + 0.04)
    spans = split_shot(shot, times)
    assert spans[0][0] == shot.start_s
    assert spans[-1][1] == shot.end_s
    assert all(a == b for (_, a), (b, _) in itertools.pairwise(spans))
    assert set(start for start, _ in spans) <= set(times.tolist())
    if shot.end_s - shot.start_s >= 7:
        assert all(3 - 1e-3 <= end - start <= 6 + 1e-3 for start, end in spans)


def test_where_the_even_split_has_no_frame_another_one_is_found() -> None:
    # 12 s make two clips of 6 s only with a frame at 6 s exactly; without it, three.
    times = np.delete(np.arange(0, 12, 1 / 25), 150)
    assert [round(b - a, 2) for a, b in split_shot(Shot(0.0, 12.0), times)] == [4.0, 4.0, 4.0]
    # Held for two seconds, from 2 to 4 and from 5 to 7: the nearest to the middle would leave too long a rest.
    assert split_shot(Shot(0.0, 11.0), np.array([0.0, 1, 2, 4, 5, 7, 8, 9, 10])) == [(0.0, 5.0), (5.0, 11.0)]


def test_a_picture_that_stands_for_long_makes_a_long_clip() -> None:
    times = np.append(np.arange(0, 4, 1 / 25), 4.0)
    spans = split_shot(Shot(0.0, 14.0), times)
    assert spans[-1][1] == 14.0
    assert set(start for start, _ in spans) <= set(times.tolist())


def test_a_shot_of_an_hour_is_split_as_well() -> None:
    times = np.arange(0, 3600, 1001 / 30000)
    spans = split_shot(Shot(0.0, 3600.0), times)
    assert len(spans) == 603  # 179 frames, a little less than 6 s, are the most that fit
    assert all(3 <= b - a <= 6 + 1e-3 for a, b in spans)


def recorded(path: Path) -> pa.Table:
    track = FrameTrack()
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            scale = 256 / max(frame.width, frame.height)
            size = round(frame.width * scale), round(frame.height * scale)
            track.add(
                frame.time,
                frame.time + 0.04,
                0,
                frame.reformat(*size, "rgb24", interpolation="FAST_BILINEAR").to_ndarray(),
            )
    return track.flush()


def test_nature_shots_with_cuts_fades_and_a_dissolve(media: Path) -> None:
    transitions = detect_transitions(recorded(media / "psd_testvideo.mp4"), ShotConfig())[1]
    assert [t.kind for t in transitions] == ["cut", "cut", "fade", "fade", "dissolve", "fade"]
    assert [t.start_s for t in transitions[:2]] == pytest.approx([1.0, 6.0], abs=0.05)


@pytest.mark.parametrize("name", ["dj_video5.mp4", "va_1_B.mp4", "ft_hiker.mp4"])
def test_one_take_is_one_shot(media: Path, name: str) -> None:
    assert len(detect_shots(recorded(media / name), ShotConfig())) == 1
