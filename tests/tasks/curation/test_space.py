import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from media.image import read_image
from tasks.curation import space
from tasks.curation.probe import probe, stored
from tasks.curation.scan import ScanConfig, scan_all
from tasks.curation.space import check_space, predict
from tasks.tables.checks import PreflightError
from tasks.tables.found import Source, table_of
from tasks.tables.sources import find_sources

Usage = namedtuple("Usage", "total used free")


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """A picture with detail at several scales, RGB."""
    noise = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3))
    for cell in (2, 8, 32):
        coarse = noise.uniform(0, 85, (height // cell + 1, width // cell + 1, 3))
        picture += np.kron(coarse, np.ones((cell, cell, 1)))[:height, :width]
    return picture.astype(np.uint8)


def film(
    path: Path, size: tuple[int, int], seconds: float, fps: int = 24, codec: str = "libx264", seed: int = 0
) -> None:
    import av

    width, height = size
    picture = texture(height, width + 200, seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "ultrafast"} if codec == "libx264" else {}
        for number in range(round(seconds * fps)):
            left = number % 200
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:, left : left + width]), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def written(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """Films of several sizes, lengths, rates and containers, pictures, and files that are neither."""
    import cv2

    root = tmp_path_factory.mktemp("library")
    film(root / "small.mp4", (320, 180), 3, seed=1)
    film(root / "wide.mkv", (1280, 720), 1, fps=30, seed=2)
    film(root / "slow.avi", (640, 360), 4, fps=12, codec="mpeg4", seed=4)
    film(root / "stream.ts", (480, 270), 2, seed=5)
    for number, size in enumerate([(427, 640), (1000, 1500), (300, 200)]):
        cv2.imwrite(str(root / f"{number}.jpg"), texture(*size, number))
    (root / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(20_000))
    (root / "empty.mp4").touch()
    return root


@pytest.mark.parametrize("samples_per_s", [2.0, 6.0])
def test_the_prediction_is_right_within_30_per_cent(library, tmp_path, samples_per_s):
    sources = find_sources(str(library))
    prediction = predict(sources, samples_per_s)
    made = scan_all(sources.to_pylist(), str(tmp_path), ScanConfig(samples_per_s=samples_per_s))
    assert sum(error is not None for error in made.table["error"].to_pylist()) == 2
    assert prediction.probed == 8
    assert 0.7 < prediction.bytes / written(tmp_path) < 1.3


def test_what_is_not_probed_is_reckoned_by_bytes(library, monkeypatch):
    sources = find_sources(str(library / "wide.mkv"))
    one = predict(sources, 2.0)
    own = sources["bytes"][0].as_py()
    far = table_of([Source(str(library / "wide.mkv"), own, ""), Source("s3://bucket/far.mkv", 9 * own, "")])
    assert predict(far, 2.0).bytes == pytest.approx(10 * one.bytes, rel=1e-6)


def test_a_picture_takes_what_its_sample_takes(library):
    size = probe(str(library / "0.jpg"), 2.0)
    assert size == pytest.approx(stored(read_image(str(library / "0.jpg"))) * 0.7, rel=0.3)


def test_a_disk_that_cannot_hold_it_is_refused_and_what_is_there_counts(library, tmp_path, monkeypatch):
    sources = find_sources(str(library))
    needed = predict(sources, 2.0).bytes
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: Usage(0, 0, needed // 2))
    with pytest.raises(PreflightError, match=r"MiB free, and the run needs about .* MiB \(from 8 sources"):
        check_space(str(tmp_path), sources, 2.0)
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "samples.parquet").write_bytes(bytes(needed // 2 + 1024))
    assert "are free" in check_space(str(tmp_path), sources, 2.0)


def test_where_far_more_is_free_than_any_store_takes_nothing_is_probed(library, tmp_path, monkeypatch):
    sources = find_sources(str(library))
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: Usage(0, 0, 10**15))
    assert "far more" in check_space(str(tmp_path), sources, 2.0)


def test_nothing_is_said_where_nothing_can_be_known(tmp_path):
    far = table_of([Source("s3://bucket/far.mkv", 10**12, "")])
    assert predict(far, 2.0) is None
    assert "not known" in check_space(str(tmp_path), far, 2.0)
    assert "not checked" in check_space("memory://out", far, 2.0)


def test_real_footage_takes_what_is_predicted(media, tmp_path):
    files = [path for path in sorted(media.glob("*.mp4")) if path.stat().st_size < 1_100_000]
    for path in files:
        shutil.copy(path, tmp_path)
    sources = find_sources(str(tmp_path))
    scan_all(sources.to_pylist(), str(tmp_path / "out"), ScanConfig())
    assert 0.7 < predict(sources, 2.0).bytes / written(tmp_path / "out") < 1.3
