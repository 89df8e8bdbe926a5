import errno
import os
import shutil
from io import BytesIO
from pathlib import Path
from typing import ClassVar

import av
import cv2
import fsspec
import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from sklearn.datasets import load_sample_image

from benchmarks.sample_library import encode
from media.paths import uri_of_path
from tasks.curation import scan as scan_module
from tasks.curation.motion import clip_speeds
from tasks.curation.scan import ScanConfig, scan, scan_once, scan_or_fault
from tasks.tables import storage
from tasks.tables.frame_store import open_frames
from tests.tasks.curation import hostile_work

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


def test_samples_per_s_is_how_many_pictures_are_kept(tmp_path):
    encode(tmp_path / "a.mp4", ramp(48), fps=24)
    times = {}
    for rate in (2, 6):
        row = scan_once(str(tmp_path / "a.mp4"), str(tmp_path), ScanConfig(samples_per_s=rate))
        times[rate] = [time for time, _ in samples(row, tmp_path)]
    assert times == {rate: pytest.approx([i / rate for i in range(2 * rate)]) for rate in (2, 6)}


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({}, None),
        ({"decode_max_s": 1e-4, "decode_max_s_per_gb": 0}, "scan: a.mp4: decoding took longer than 0.0001 s"),
        ({"decode_max_s": 1e-4, "decode_max_s_per_gb": 1e9}, None),
        ({"memory_max_gib": 1e-3}, "scan: a.mp4: decoding needed more than 0.001 GiB of memory"),
    ],
)
def test_limits_of_decoding_are_those_of_the_config(tmp_path, settings, error):
    encode(tmp_path / "a.mp4", ramp(24))
    assert scan_once(str(tmp_path / "a.mp4"), str(tmp_path), ScanConfig(**settings))["error"] == error


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


def shard_of(files: list[Path], root: Path) -> str:
    """A shard's list of sources, as preflight writes it."""
    listed = [{"source_uri": str(file), "bytes": file.stat().st_size, "version": "1"} for file in files]
    uri = str(root / "steps" / "sources" / "shard-0123.parquet")
    storage.write_table(pa.Table.from_pylist(listed), uri)
    return uri


def test_a_shard_is_a_table_with_a_row_for_every_source(tmp_path):
    encode(tmp_path / "good.mp4", ramp(24))
    table = shard_of([broken(tmp_path, "text"), tmp_path / "good.mp4"], tmp_path / "out")
    rows = storage.read_table(scan.fn(table)).to_pylist()
    assert [(Path(row["source_uri"]).name, row["error"] is None) for row in rows] == [
        ("good.mp4", True),
        ("text.mp4", False),
    ]
    assert rows[0]["segments"] == [{"start_s": 0.0, "end_s": pytest.approx(1), "width": 64, "height": 48}]


def test_no_half_written_file_is_left_by_a_source_that_breaks(tmp_path):
    row = scanned(broken(tmp_path, "truncated"), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["source.json"]
    assert "/tmp" not in row["error"]


def test_a_hole_in_time_and_a_change_of_size_begin_a_segment(tmp_path):
    times = [i / 24 for i in range(48)] + [12 + i / 24 for i in range(48)]
    encode(tmp_path / "hole.mkv", ramp(96), times=times)
    row = scanned(tmp_path / "hole.mkv", tmp_path)
    assert [(s["start_s"], round(s["end_s"], 1)) for s in row["segments"]] == [(0, 2), (12, 14)]
    assert [time for time, _ in samples(row, tmp_path)] == pytest.approx([0, 0.5, 1, 1.5, 12, 12.5, 13, 13.5])

    parts = []
    for name, size in (("wide.ts", (64, 36)), ("tall.ts", (48, 64))):
        start = 0 if not parts else 2
        encode(tmp_path / name, ramp(48, *size), times=[start + i / 24 for i in range(48)])
        parts.append((tmp_path / name).read_bytes())
    (tmp_path / "sizes.ts").write_bytes(b"".join(parts))
    row = scanned(tmp_path / "sizes.ts", tmp_path)
    assert row["error"] is None
    assert [(s["width"], s["height"]) for s in row["segments"]] == [(64, 36), (48, 64)]
    assert {image.shape[:2] for _, image in samples(row, tmp_path)} == {(36, 64), (64, 48)}


@pytest.mark.parametrize("hold", [2, 3, 4])
def test_pairs_of_held_footage_have_the_speed_of_what_it_shows(tmp_path, hold):
    plate = cv2.resize(load_sample_image("china.jpg"), (480, 270))
    taken = [plate[45:225, 2 * i : 320 + 2 * i] for i in range(72)]
    encode(tmp_path / "free.mp4", taken, fps=24)
    encode(tmp_path / "held.mp4", [taken[i // hold * hold] for i in range(72)], fps=24)
    speeds = []
    for name in ("free.mp4", "held.mp4"):
        row = scanned(tmp_path / name, tmp_path)
        with open_frames(str(tmp_path / row["frames_uri"] / "samples.parquet")) as store:
            speeds.append(clip_speeds(store.pairs(0, 3))[0])
    assert speeds[0] == pytest.approx(2 * 24 / np.hypot(320, 180), rel=0.1)
    assert speeds[1] == pytest.approx(speeds[0], rel=0.1)


@pytest.mark.parametrize("name", ["a::b.mp4", "img%d.mp4", "#1 50%41.mp4", "[a-z]*.mp4", "new\nline.mp4", "pipe:0.mp4"])
def test_any_name_is_a_plain_name(tmp_path, name):
    encode(tmp_path / "a.mp4", ramp(24))
    shutil.copy(tmp_path / "a.mp4", tmp_path / name)
    row = scanned(tmp_path / name, tmp_path / "out")
    assert (row["error"], row["source_uri"]) == (None, str(tmp_path / name))


def test_a_name_that_is_not_utf8_is_opened_by_its_uri(tmp_path):
    encode(tmp_path / "a.mp4", ramp(24))
    name = os.fsdecode(b"caf\xe9.mp4")
    shutil.copy(tmp_path / "a.mp4", tmp_path / name)
    row = scan_once(uri_of_path(str(tmp_path / name)), str(tmp_path / "out"), CONFIG)
    assert row["error"] is None
    row["source_uri"].encode()


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    for path in (tmp_path / "pipe.mp4", tmp_path / "folder.mp4", Path("/dev/zero")):
        row = scanned(path, tmp_path / "out")
        assert row["error"] == f"scan: {path.name}: cannot be read: it is no regular file"


def test_a_remote_source_is_fetched_once_and_out_may_be_remote(tmp_path):
    encode(tmp_path / "a.mp4", ramp(24))
    local = scanned(tmp_path / "a.mp4", tmp_path)
    fs = fsspec.filesystem("memory")
    fs.pipe("/scan-test/in/a.mp4", (tmp_path / "a.mp4").read_bytes())
    row = scan_once("memory://scan-test/in/a.mp4", "memory://scan-test/out", CONFIG)
    assert row == local | {"source_uri": "memory://scan-test/in/a.mp4"}
    for name in ("samples.parquet", "track.parquet", "source.json"):
        written = fs.cat(f"/scan-test/out/{row['frames_uri']}/{name}")
        assert written == (tmp_path / row["frames_uri"] / name).read_bytes()
    fs.rm("/scan-test", recursive=True)


class FlakyStore(MemoryFileSystem):
    """A store in memory that does not answer the next ``FlakyStore.down`` times a file is opened."""

    protocol = "flaky"
    store: ClassVar[dict] = {}
    down = 0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def _open(self, path, mode="rb", **options):
        if FlakyStore.down:
            FlakyStore.down -= 1
            raise OSError(errno.ETIMEDOUT, "Connection timed out")
        return super()._open(path, mode, **options)


@pytest.fixture
def flaky(tmp_path) -> str:
    """The URI of a video in a FlakyStore."""
    fsspec.register_implementation("flaky", FlakyStore, clobber=True)
    encode(tmp_path / "a.mp4", ramp(24))
    FlakyStore.down = 0
    fsspec.filesystem("flaky").pipe("/a.mp4", (tmp_path / "a.mp4").read_bytes())
    return "flaky://a.mp4"


def test_a_fault_of_the_network_is_tried_again(tmp_path, flaky):
    FlakyStore.down = 3
    assert scan_once(flaky, str(tmp_path / "out"), ScanConfig(retry_wait_s=0))["error"] is None


def test_the_waits_between_tries_double(tmp_path, flaky, monkeypatch):
    waited = []
    monkeypatch.setattr("tasks.tables.faults.time.sleep", waited.append)
    FlakyStore.down = 9
    scan_once(flaky, str(tmp_path / "out"), ScanConfig(retry_wait_s=0.25))
    assert waited == [0.25, 0.5, 1]


def test_a_fault_that_stays_is_an_error_that_is_not_kept(tmp_path, flaky):
    FlakyStore.down = 9
    row, stands = scan_or_fault(flaky, str(tmp_path / "out"), ScanConfig(retry_wait_s=0))
    assert row["error"] == "scan: a.mp4: cannot be read: Connection timed out"
    assert not stands
    assert not (tmp_path / "out").exists()
    FlakyStore.down = 0
    assert scan_once(flaky, str(tmp_path / "out"), CONFIG)["error"] is None


class _Short(BytesIO):
    size = 1_000_000


def test_a_transfer_that_ends_early_is_no_truncated_source(tmp_path, flaky, monkeypatch):
    half = (tmp_path / "a.mp4").read_bytes()[:1000]
    monkeypatch.setattr(FlakyStore, "_open", lambda self, path, mode="rb", **options: _Short(half))
    row, stands = scan_or_fault(flaky, str(tmp_path / "out"), ScanConfig(retry_wait_s=0))
    assert (row["error"], stands) == (
        "scan: a.mp4: cannot be read: the transfer ended after 1000 of 1000000 bytes",
        False,
    )


def test_a_file_that_goes_away_before_it_is_decoded_is_no_bad_content(tmp_path, monkeypatch):
    encode(tmp_path / "a.mp4", ramp(24))
    shutil.copy(tmp_path / "a.mp4", tmp_path / "b.mp4")
    with monkeypatch.context() as patched:
        patched.setattr(scan_module, "decode", hostile_work.finds_nothing)
        assert not scan_or_fault(str(tmp_path / "a.mp4"), str(tmp_path / "out"), CONFIG)[1]
    assert scanned(tmp_path / "b.mp4", tmp_path / "out")["error"] is None


def test_a_shard_with_a_fault_that_may_pass_is_scanned_again(tmp_path, monkeypatch):
    encode(tmp_path / "a.mp4", ramp(24))
    table = shard_of([tmp_path / "a.mp4"], tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(scan_module, "decode", hostile_work.fills_the_disk)
        (row,) = storage.read_table(scan.fn(table)).to_pylist()
    assert row["error"] == "scan: a.mp4: No space left on device"
    (row,) = storage.read_table(scan.fn(table)).to_pylist()
    assert row["error"] is None


@pytest.mark.parametrize(
    ("act", "config", "words"),
    [
        ("waits", {"decode_max_s": 0.2, "decode_max_s_per_gb": 0}, "scan: a.mp4: decoding took longer than 0.2 s"),
        ("takes_memory", {"memory_max_gib": 0.5}, "scan: a.mp4: decoding needed more than 0.5 GiB of memory"),
        ("reads_no_memory", {}, "scan: a.mp4: the decoder died (signal 11)"),
        ("breaks", {}, "scan: a.mp4: 'a bug met the file'"),
    ],
)
def test_what_a_source_does_to_its_decoder_is_its_own_error_and_stays(tmp_path, monkeypatch, act, config, words):
    encode(tmp_path / "a.mp4", ramp(24))
    monkeypatch.setattr(scan_module, "decode", getattr(hostile_work, act))
    row, stands = scan_or_fault(str(tmp_path / "a.mp4"), str(tmp_path / "out"), ScanConfig(**config))
    assert (row["error"], row["rejected_by"], stands) == (words, ["error"], True)
    monkeypatch.undo()
    assert scanned(tmp_path / "a.mp4", tmp_path / "out")["error"] == words


def test_a_large_file_gets_more_time(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"\1" * 1_000_000)
    monkeypatch.setattr(scan_module, "decode", hostile_work.takes_half_a_second)
    short = ScanConfig(decode_max_s=0.1, decode_max_s_per_gb=0)
    assert "took longer than 0.1 s" in scan_once(str(path), str(tmp_path / "short"), short)["error"]
    more = ScanConfig(decode_max_s=0.1, decode_max_s_per_gb=60_000)
    assert scan_once(str(path), str(tmp_path / "more"), more)["error"] == f"scan: {path.name}: it came to its end"


def test_an_image_that_unpacks_to_gigabytes_costs_only_itself(tmp_path):
    Image.new("L", (12_000, 12_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 1_000_000
    row = scan_once(str(tmp_path / "bomb.png"), str(tmp_path), ScanConfig(memory_max_gib=0.4))
    assert row["error"] == "scan: bomb.png: decoding needed more than 0.4 GiB of memory"


def test_limits_are_in_no_key(tmp_path):
    encode(tmp_path / "a.mp4", ramp(24))
    first = scanned(tmp_path / "a.mp4", tmp_path / "out")
    store = tmp_path / "out" / first["frames_uri"] / "samples.parquet"
    store.write_bytes(b"tripwire")
    limits = {"decode_max_s": 9, "decode_max_s_per_gb": 9, "memory_max_gib": 9, "retry_wait_s": 9}
    assert set(limits) | {"samples_per_s"} == set(ScanConfig.model_fields)
    assert scan_once(str(tmp_path / "a.mp4"), str(tmp_path / "out"), ScanConfig(**limits)) == first
    assert store.read_bytes() == b"tripwire"
    table = shard_of([tmp_path / "a.mp4"], tmp_path / "out")
    assert scan.fn(table, ScanConfig(**limits)) == scan.fn(table)
    assert scan.fn(table, ScanConfig(samples_per_s=1)) != scan.fn(table)


def test_samples_per_s_is_how_many_are_kept(tmp_path):
    encode(tmp_path / "a.mp4", ramp(72), fps=24)
    row = scan_once(str(tmp_path / "a.mp4"), str(tmp_path), ScanConfig(samples_per_s=24))
    assert len(samples(row, tmp_path)) == 72


def test_the_same_bad_bytes_under_two_names_name_each_file(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"\0" * 5000)
    first, second = (scanned(tmp_path / name, tmp_path / "out") for name in ("a.mp4", "b.mp4"))
    assert first["source_id"] == second["source_id"]
    assert first["error"].startswith("scan: a.mp4: ") and second["error"] == first["error"].replace("a.mp4", "b.mp4")
