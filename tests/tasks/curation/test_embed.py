"""Facts about embeddings: what light, borders and coding change is not in them; what a source shows is."""

import cv2
import numpy as np
import pytest

from tasks.curation.embed import SIDE, embed, embedding_of, film_of
from tasks.tables import storage
from tasks.tables.frame_store import FrameStoreWriter
from tasks.tables.picture import Image
from tests.tasks.rows import clip, read, write


def pan(seed: int, samples: int = 8, step: int = 3, height: int = 90) -> list[Image]:
    """A camera that pans over blobs of colour: RGB [height, 160, 3]."""
    rng = np.random.default_rng(seed)
    plate = cv2.resize(rng.uniform(0, 255, (9, 28, 3)).astype(np.float32), (280, height), interpolation=cv2.INTER_CUBIC)
    plate = plate.clip(0, 255).astype(np.uint8)
    return [np.ascontiguousarray(plate[:, i * step : i * step + 160]) for i in range(samples)]


def bars(image: Image, size: int) -> Image:
    return np.asarray(cv2.copyMakeBorder(image, size, size, 0, 0, cv2.BORDER_CONSTANT, value=(16, 16, 16)), np.uint8)


def cosine(a: list[Image], b: list[Image]) -> float:
    return float(embedding_of(film_of(a)) @ embedding_of(film_of(b)))


def test_an_embedding_is_a_unit_vector_also_of_nothing():
    for images in (pan(0), [np.zeros((90, 160, 3), np.uint8)]):
        assert np.linalg.norm(embedding_of(film_of(images))) == pytest.approx(1, abs=1e-5)


def test_brightness_and_contrast_hardly_show():
    scene = pan(1)
    assert cosine(scene, [(image * 0.7 + 40).astype(np.uint8) for image in scene]) > 0.98
    assert cosine(scene, pan(2)) < 0.9


def test_black_bars_are_not_part_of_the_picture():
    scene = pan(3, height=64)
    boxed = [bars(image, 13) for image in scene]
    assert cosine(scene, boxed) > 0.97
    assert cosine(boxed, [bars(image, 13) for image in pan(4, height=64)]) < 0.9


def test_every_readable_source_gets_both_columns_and_the_others_none(tmp_path):
    with storage.writing(str(tmp_path / "frames" / "00aa" / "samples.parquet")) as file:
        writer = FrameStoreWriter(file)
        for i, image in enumerate(pan(5, samples=6)):
            writer.add(10 + i / 2, image, None, None)
        writer.close()
    broken = clip(source_uri="/videos/b.mp4", source_id="00bb", error="truncated", frames_uri="frames/00bb")
    good, bad = read(embed.fn(write(tmp_path, "scan", [clip(), broken])))
    assert len(good["signature"]) == 6 * SIDE * SIDE
    assert bad["embedding"] is None
    assert bad["signature"] is None


def test_of_a_long_source_the_start_the_middle_and_the_end_are_kept(tmp_path):
    with storage.writing(str(tmp_path / "frames" / "00aa" / "samples.parquet")) as file:
        writer = FrameStoreWriter(file)
        for i in range(200):
            writer.add(i / 2, np.full((36, 64, 3), i, np.uint8), None, None)
        writer.close()
    (row,) = read(embed.fn(write(tmp_path, "scan", [clip()])))
    levels = np.frombuffer(row["signature"], np.uint8).reshape(-1, SIDE, SIDE)[:, 0, 0].astype(int)
    assert abs(levels - np.r_[:32, 84:116, 168:200]).max() <= 1
