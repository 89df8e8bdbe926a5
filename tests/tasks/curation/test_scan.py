import shutil
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from benchmarks.sample_library import encode
from tasks.curation.scan import ScanConfig, scan, scan_once
from tasks.tables.frame_store import open_frames
from tasks.tables.shards import write_shards
from tasks.tables.sources import find_sources
from tests.tasks.rows import read

CONFIG = ScanConfig()


def ramp(count: int, width: int = 64, height: int = 48) -> list[np.ndarray]:
    """Frames whose left half brightens with time: frame i has level 2 i there, 200 in the right half."""
    frames = []
    for i in range(count):
        frame = np.full((height, width, 3), 200, np.uint8)
        frame[:, : width // 2] = min(2 * i, 190)
        frames.append(frame)
    return frames


def scanned(path: Path, root: Path) -> dict:
    return scan_once(str(path), str(root), CONFIG)


def samples(row: dict, root: Path) -> list[tuple[float, np.ndarray]]:
    with open_frames(str(root / row["frames_uri"] / "samples.parquet")) as store:
        return [(frame.time_s, frame.image) for frame in store.frames(-1, 1e9)]


def test_samples_carry_their_exact_times(tmp_path):
    encode(tmp_path / "a.mp4", ramp(72), fps=24, crf=1)
    row = scanned(tmp_path / "a.mp4", tmp_path)
    assert (row["width"], row["height"], row["error"]) == (64, 48, None)
    assert row["fps"] == pytest.approx(24)
    assert (row["start_s"], row["end_s"]) == (0, pytest.approx(3))
    found = samples(row, tmp_path)
    assert [time for time, _ in found] == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5])
    assert all(abs(float(image[:, 8:24].mean()) - 48 * time) < 4 for time, image in found)


def test_partners_follow_by_the_gap_that_flow_needs(tmp_path):
    encode(tmp_path / "a.mp4", ramp(72), fps=24)
    row = scanned(tmp_path / "a.mp4", tmp_path)
    with open_frames(str(tmp_path / row["frames_uri"] / "samples.parquet")) as store:
        assert [pair.gap_s for pair in store.pairs(0, 3)] == pytest.approx([2 / 24] * 6)


def test_a_late_first_frame_and_a_variable_frame_rate(tmp_path):
    times = [1.5 + i / 10 for i in range(20)] + [3.5 + i / 30 for i in range(30)]
    encode(tmp_path / "a.mp4", ramp(50), times=times)
    row = scanned(tmp_path / "a.mp4", tmp_path)
    assert row["start_s"] == pytest.approx(1.5)
    assert row["end_s"] == pytest.approx(4.5, abs=0.1)
    assert [time for time, _ in samples(row, tmp_path)] == pytest.approx([1.5, 2, 2.5, 3, 3.5, 4], abs=0.04)


def test_rotation_metadata_turns_the_picture(tmp_path):
    encode(tmp_path / "upright.mp4", ramp(24))
    encode(tmp_path / "turned.mp4", ramp(24), rotation=90)
    upright, turned = (scanned(tmp_path / name, tmp_path) for name in ("upright.mp4", "turned.mp4"))
    assert (turned["width"], turned["height"]) == (upright["height"], upright["width"])
    pictures = [samples(row, tmp_path)[0][1].astype(int) for row in (upright, turned)]
    assert np.abs(np.rot90(pictures[0], -1) - pictures[1]).mean() < 5


def test_sample_aspect_ratio_makes_pixels_square(tmp_path):
    path = tmp_path / "anamorphic.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = 2
        for frame in ramp(24):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    row = scanned(path, tmp_path)
    assert (row["width"], row["height"]) == (128, 48)
    assert samples(row, tmp_path)[0][1].shape == (48, 128, 3)


def test_an_image_is_a_source_without_duration(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), ramp(1, 800, 600)[0])
    row = scanned(tmp_path / "a.png", tmp_path)
    assert (row["width"], row["height"], row["duration_s"], row["fps"], row["error"]) == (800, 600, 0, 0, None)
    assert len(samples(row, tmp_path)) == 1


def test_one_frame_is_a_very_short_video(tmp_path):
    encode(tmp_path / "a.mp4", ramp(1))
    row = scanned(tmp_path / "a.mp4", tmp_path)
    assert row["error"] is None
    assert 0 < row["duration_s"] < 0.1


@pytest.mark.parametrize(("width", "height"), [(2, 2), (18, 98), (130, 34)])
def test_odd_sizes_are_scanned(tmp_path, width, height):
    encode(tmp_path / "a.mp4", ramp(12, width, height))
    row = scanned(tmp_path / "a.mp4", tmp_path)
    assert (row["width"], row["height"], row["error"]) == (width, height, None)


def broken(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is no video\n" * 50)
    elif kind == "unreadable":
        path.mkdir()
    elif kind == "audio":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=48000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 48000
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    else:
        encode(path, [np.random.default_rng(i).integers(0, 255, (96, 128, 3), np.uint8) for i in range(48)])
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if kind == "truncated" else whole[-len(whole) // 2 :])
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty", "the file is empty"),
        ("text", "cannot be decoded"),
        ("audio", "no video stream"),
        ("truncated", "truncated"),
        ("beheaded", "cannot be decoded"),
        ("unreadable", "cannot be read"),
    ],
)
def test_a_bad_input_is_a_row_with_its_error(tmp_path, kind, words):
    row = scanned(broken(tmp_path, kind), tmp_path)
    assert words in row["error"]
    assert row["rejected_by"] == ["error"]


def test_the_same_bytes_are_decoded_once_whatever_their_name(tmp_path):
    encode(tmp_path / "a.mp4", ramp(24))
    first = scanned(tmp_path / "a.mp4", tmp_path / "out")
    shutil.copy(tmp_path / "a.mp4", tmp_path / "b.mp4")
    store = tmp_path / "out" / first["frames_uri"] / "samples.parquet"
    store.write_bytes(b"tripwire")
    second = scanned(tmp_path / "b.mp4", tmp_path / "out")
    assert store.read_bytes() == b"tripwire"
    assert second == first | {"source_uri": str(tmp_path / "b.mp4")}


def test_a_shard_is_a_table_with_a_row_for_every_source(tmp_path):
    (tmp_path / "videos").mkdir()
    encode(tmp_path / "videos" / "good.mp4", ramp(24))
    broken(tmp_path / "videos", "text")
    (shard,) = write_shards(find_sources(str(tmp_path / "videos")), str(tmp_path / "out"), 64)
    rows = read(scan.fn(shard))
    assert [(Path(row["source_uri"]).name, row["error"] is None) for row in rows] == [
        ("good.mp4", True),
        ("text.mp4", False),
    ]


def test_no_half_written_file_is_left_by_a_source_that_breaks(tmp_path):
    scanned(broken(tmp_path, "truncated"), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.partial"))
