"""The sample library holds what its truth says."""

import dataclasses
import hashlib
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from benchmarks.sample_library import FileTruth, Frame, Truth, build, draw_logo, draw_subtitle, edit, encode, scenes
from benchmarks.sample_scenes import SCENE_S, Scene


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    out = tmp_path_factory.mktemp("library")
    return out / "videos", build(out, quick=True)


@pytest.fixture(scope="module")
def small() -> dict[str, Scene]:
    return {scene.name: scene for scene in scenes(width=192, height=108)}


def decoded(path: Path) -> list[Frame]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def by_kind(library: tuple[Path, Truth], kind: str) -> tuple[Path, FileTruth]:
    folder, truth = library
    return folder / truth[kind].name, truth[kind]


def test_files_are_those_of_the_truth(library: tuple[Path, Truth]) -> None:
    folder, truth = library
    assert sorted(path.name for path in folder.iterdir()) == [file.name for file in truth.files]
    assert Truth.load(folder.parent / "truth.json") == truth


def test_whole_files_decode_to_their_size_and_length(library: tuple[Path, Truth]) -> None:
    folder, truth = library
    for file in truth.files:
        if not file.expect_error:
            frames = decoded(folder / file.name)
            assert frames[0].shape == (file.height, file.width, 3)
            assert len(frames) == pytest.approx(file.duration_s * 24)


def test_same_scene_gives_same_bytes(tmp_path: Path) -> None:
    for name in ("first.mp4", "second.mp4"):
        scene = next(scene for scene in scenes(seed=3, width=192, height=108) if scene.name == "skyline-day")
        encode(tmp_path / name, scene.frames(1.0))
    assert len(set(digests(tmp_path).values())) == 1


def test_another_seed_gives_other_scenes() -> None:
    first, second = (scenes(seed, 192, 108)[0].frame(0.0) for seed in (0, 1))
    assert np.abs(first.astype(int) - second).mean() > 10


def test_scenes_differ_from_each_other(small: dict[str, Scene]) -> None:
    seen = np.array([cv2.resize(scene.frame(2.0), (16, 9), interpolation=cv2.INTER_AREA) for scene in small.values()])
    seen = seen.reshape(len(seen), -1).astype(float)
    distance = np.sqrt(((seen[:, None] - seen) ** 2).mean(axis=-1)) + 1000 * np.eye(len(seen))
    assert distance.min() > 15  # grey levels; a re-encoded copy is within 2


def test_pan_moves_the_picture_at_its_speed(small: dict[str, Scene]) -> None:
    scene = small["postcard-day"]
    first, second = (cv2.cvtColor(scene.frame(t), cv2.COLOR_RGB2GRAY).astype(np.float32) for t in (2.0, 2.5))
    (dx, dy), _ = cv2.phaseCorrelate(first, second, cv2.createHanningWindow((192, 108), cv2.CV_32F))
    assert np.array([dx, dy]) / scene.diagonal / 0.5 == pytest.approx(np.array(scene.camera), abs=0.003)
    assert scene.background_speed == pytest.approx(np.hypot(*scene.camera))
    assert scene.foreground_speed == 0


def test_still_camera_leaves_the_background_alone(small: dict[str, Scene]) -> None:
    scene = small["lake-day"]
    changed = np.abs(scene.frame(1.0).astype(int) - scene.frame(3.0)).max(axis=2) > 8
    assert scene.background_speed == 0
    assert scene.foreground_speed > 0.03
    assert 0.02 < changed.mean() < 0.4  # where the subject was and where it is


def test_a_scene_ends(small: dict[str, Scene]) -> None:
    with pytest.raises(ValueError, match="lasts"):
        small["garden-day"].frame(SCENE_S + 0.1)


def test_middle_of_a_dissolve_is_the_mean_of_both_shots(small: dict[str, Scene]) -> None:
    first, second = small["meadow-dusk"], small["lake-autumn"]
    frames, shots, transitions = edit([first, second], 1.0, "dissolve", 11 / 24)
    middle = list(frames)[24 + 5]
    mean = (first.frame((24 + 5) / 24).astype(float) + second.frame(5 / 24)) / 2
    assert shots == [(0.0, 1.0), (35 / 24, 59 / 24)]
    assert transitions == [("dissolve", 1.0, 35 / 24)]
    assert np.abs(middle - mean).max() <= 1


def test_cut_falls_on_its_frame(library: tuple[Path, Truth]) -> None:
    path, file = by_kind(library, "cuts")
    frames = np.array([cv2.resize(frame, (32, 18), interpolation=cv2.INTER_AREA) for frame in decoded(path)], int)
    change = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    assert (change.argmax() + 1) / 24 == file.transitions[0][1]


def test_subtitles_are_inside_their_boxes(library: tuple[Path, Truth]) -> None:
    path, file = by_kind(library, "subtitles")
    frames = decoded(path)
    clean_rows = min(y for _, _, _, y, _, _ in file.subtitles) / file.height
    assert clean_rows > 0.75  # a crop that keeps three quarters is free of text
    for start, end, x, y, width, height in file.subtitles:
        inside = frames[int((start + end) / 2 * 24)][y : y + height, x : x + width].min(axis=2)
        assert (inside > 200).mean() > 0.1  # the letters
        assert (inside < 60).mean() > 0.1  # their outline


def test_drawing_changes_nothing_outside_the_box() -> None:
    grey = np.full((360, 640, 3), 128, np.uint8)
    for draw in (lambda frame: draw_subtitle(frame, "A line of text."), draw_logo):
        frame = grey.copy()
        x, y, width, height = draw(frame)
        changed = np.argwhere((frame != grey).any(axis=2))
        assert (changed.min(axis=0) >= (y, x)).all()
        assert (changed.max(axis=0) < (y + height, x + width)).all()
        assert len(changed) > 0.5 * width * height


def test_logo_stands_still_while_the_picture_moves(library: tuple[Path, Truth]) -> None:
    path, file = by_kind(library, "logo")
    assert file.logo is not None
    x, y, width, height = file.logo
    deviation = np.array(decoded(path)[::12]).std(axis=0).mean(axis=2)
    mark = deviation[
        y + height // 4 : y + 3 * height // 4, x + width // 4 : x + 3 * width // 4
    ]  # not its box's corners
    assert mark.mean() < 0.4 * deviation.mean()


def test_truncated_file_opens_and_breaks_off(library: tuple[Path, Truth]) -> None:
    path, file = by_kind(library, "truncated")
    with av.open(str(path)) as container:
        assert container.duration == pytest.approx(file.duration_s * av.time_base)
        assert 0.1 < file.surviving_fraction < 0.9
        with pytest.raises(av.FFmpegError):
            list(container.decode(video=0))


def test_text_file_does_not_open(library: tuple[Path, Truth]) -> None:
    with pytest.raises(av.FFmpegError):
        av.open(str(by_kind(library, "not_a_video")[0]))


def test_rotation_is_metadata(tmp_path: Path, small: dict[str, Scene]) -> None:
    upright = dataclasses.replace(small["facade-day"], width=108, height=192)
    encode(tmp_path / "rotated.mp4", (np.rot90(frame) for frame in upright.frames(0.5)), rotation=90)
    with av.open(str(tmp_path / "rotated.mp4")) as container:
        frame = next(container.decode(video=0))
    shown = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
    assert np.abs(shown.astype(int) - upright.frame(0.0)).mean() < 8


def test_times_are_kept(tmp_path: Path, small: dict[str, Scene]) -> None:
    times = [0.5, 0.54, 0.6, 0.7, 0.71]
    encode(tmp_path / "late.mp4", (small["garden-day"].frame(t) for t in times), times=times)
    with av.open(str(tmp_path / "late.mp4")) as container:
        assert [frame.time for frame in container.decode(video=0)] == pytest.approx(times, abs=1e-4)
