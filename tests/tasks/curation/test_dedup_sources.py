"""Facts about duplicate sources: copies are found, whatever was done to them; what only looks alike is not one."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tasks.curation.dedup_sources import DedupSourcesConfig, dedup_sources, find_duplicates, threshold
from tasks.curation.embed import Film, embedding_of, film_of
from tasks.curation.same_film import similarity
from tasks.tables.picture import Image
from tasks.tables.rows import joined
from tests.tasks.rows import clip, write

CONFIG = DedupSourcesConfig()


def plate(seed: int, width: int = 700, height: int = 180) -> Image:
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (height // 18, width // 18, 3)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255), np.uint8)


def pan(seed: int, start: int = 0, samples: int = 12, step: int = 9) -> list[Image]:
    """A camera that pans over a plate: two samples a second, RGB [180, 320, 3]."""
    still = plate(seed)
    return [np.ascontiguousarray(still[:, start + i * step :][:, :320]) for i in range(samples)]


def take(seed: int, person: int, samples: int = 12) -> list[Image]:
    """A still camera in one place, before which somebody moves about."""
    rng = np.random.default_rng(person)
    place = np.array([160, 90]) + np.cumsum(rng.normal(0, 22, (samples, 2)), axis=0)
    return [cv2.circle(plate(seed, 320), tuple(map(int, xy)), 38, (200, 60, 60), -1) for xy in place]  # type: ignore


def copies(images: list[Image]) -> dict[str, list[Image]]:
    noise = np.random.default_rng(0)
    return {
        "half size": [cv2.resize(i, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for i in images],  # type: ignore
        "cropped": [i[9:171, 16:304] for i in images],
        "cropped in a corner": [i[18:, :288] for i in images],
        "brighter and warmer": [np.asarray((i * (1.1, 1.0, 0.85) + 20).clip(0, 255), np.uint8) for i in images],
        "noisy": [np.asarray((i + noise.normal(0, 12, i.shape)).clip(0, 255), np.uint8) for i in images],
        "without its first second": images[2:],
        "without its last second": images[:-2],
        "all of it": [np.asarray((i[9:171, 16:304] * 0.8).clip(0, 255), np.uint8)[::2, ::2] for i in images[2:]],
    }


def alike(a: list[Image], b: list[Image]) -> float:
    return similarity(film_of(a), film_of(b), CONFIG.trim_s)


@pytest.mark.parametrize("kind", list(copies(pan(0))))
@pytest.mark.parametrize("original", [pan(1), take(2, 3), [plate(3, 320)] * 12], ids=["pan", "take", "still"])
def test_a_copy_is_recognised(original, kind):
    assert alike(original, copies(original)[kind]) > CONFIG.similarity_sparse + 0.05


def poster(words: str) -> list[Image]:
    return [np.asarray(cv2.putText(plate(5, 320), words, (20, 90), 0, 2.5, (255,) * 3, 18), np.uint8)] * 12


@pytest.mark.parametrize(
    ("a", "b"),
    [
        pytest.param(pan(1), pan(2), id="other scenes"),
        pytest.param(pan(1), pan(1, start=250), id="disjoint pans over one photograph"),
        pytest.param(take(2, 3), take(2, 4), id="two takes in one place"),
        pytest.param(take(2, 3), [plate(2, 320)] * 12, id="a place with and without a person"),
        pytest.param(poster("MILK"), poster("ARTS"), id="posters"),
    ],
)
def test_what_only_looks_alike_is_no_copy(a, b):
    assert alike(a, b) < CONFIG.similarity_dense - 0.05


def test_black_bars_and_darkness_make_no_two_videos_alike():
    def boxed(images: list[Image]) -> list[Image]:
        return [np.asarray(cv2.copyMakeBorder(i // 4, 60, 60, 0, 0, cv2.BORDER_CONSTANT), np.uint8) for i in images]

    assert alike(boxed(pan(1)), boxed(pan(2))) < 0.3
    assert alike(boxed(pan(1)), pan(1)) > CONFIG.similarity_sparse
    assert alike([np.full((90, 160, 3), 9, np.uint8)] * 8, [np.full((90, 160, 3), 12, np.uint8)] * 8) == 0


def test_the_denser_a_cluster_the_less_alike_its_sources_may_be():
    limits = [threshold(density, CONFIG) for density in (0.0, 0.5, 1.0)]
    assert limits == sorted(limits, reverse=True)
    assert (limits[0], limits[2]) == (CONFIG.similarity_sparse, pytest.approx(CONFIG.similarity_dense))


def source(name: str, images: list[Image], **changes: Any) -> dict[str, Any]:
    """The row of a source after ``embed``."""
    film = film_of(images)
    duration_s = len(images) / 2 if len(images) > 1 else 0.0
    columns = {"embedding": embedding_of(film).tolist(), "signature": film.tobytes(), "duration_s": duration_s}
    identity = {"source_uri": f"/videos/{name}", "source_id": name, "clip_id": None}
    return clip(**identity, **columns) | {"film": film} | changes


def found(*rows: dict[str, Any]) -> dict[str, str]:
    films: dict[str, Film] = {row["source_id"]: row["film"] for row in rows}
    return find_duplicates(list(rows), lambda row: films[row["source_id"]], CONFIG)


def test_the_best_copy_stays():
    video = pan(1)
    small = source("a", copies(video)["half size"], width=320, height=180, bit_rate=9_000_000)
    coarse, fine = source("b", video, bit_rate=200_000), source("c", video, bit_rate=2_000_000)
    assert found(small, coarse, fine) == {"a": "c", "b": "c"}
    short = source("d", video[:-2], bit_rate=2_000_000)
    assert found(short, fine) == {"d": "c"}


def test_likeness_is_not_handed_on_along_a_chain():
    video = pan(1, samples=24, step=4)
    rows = [source(name, video[start:]) for name, start in (("a", 0), ("b", 4), ("c", 8))]
    assert found(*rows) == {"b": "a"}  # c is like b, but b does not stay


def test_an_image_is_a_copy_of_an_image_only():
    still = plate(1, 320)
    image, smaller = source("i", [still]), source("j", [still[::2, ::2]], width=160, height=90)
    assert found(image, smaller, source("v", [still] * 8)) == {"j": "i"}


Tables = tuple[list[str], list[str]]


def shards(root: Path, *groups: list[dict[str, Any]]) -> Tables:
    """The tables of the scan and of embed, of several shards. Embed has no error of what the scan could not read."""
    scanned = [write(root, "scan", rows, f"s{number}") for number, rows in enumerate(groups)]
    silent = [[row | {"error": None} for row in rows] for rows in groups]
    return scanned, [write(root, "embed", rows, f"s{number}") for number, rows in enumerate(silent)]


def test_groups_are_formed_over_all_shards_and_the_same_bytes_are_known_by_their_id(tmp_path):
    video = pan(1)
    first, other = [source("a", video), source("x", pan(2))], [source("b", video, width=64)]
    again = source("a", video) | {"source_uri": "/videos/z"}
    broken = source("e", video) | {"error": "truncated", "embedding": None, "rejected_by": ["error"]}
    scanned, embedded = shards(tmp_path, first, [*other, again, broken])
    rows = [row for pair in zip(scanned, dedup_sources.fn(scanned, embedded), strict=True) for row in joined(pair)]
    assert [row["duplicate_of"] for row in rows] == [None, None, "a", "a", None]
    assert [row["rejected_by"] for row in rows] == [[], [], ["duplicate_source"], ["duplicate_source"], ["error"]]
    assert not {"embedding", "signature"} & set(rows[0])


def test_a_source_added_elsewhere_leaves_a_shards_file_alone(tmp_path):
    tables = shards(tmp_path, [source("a", pan(1))], [source("b", pan(2))], [source("c", pan(1), width=900)])
    two, three = dedup_sources.fn(*(uris[:2] for uris in tables)), dedup_sources.fn(*tables)
    assert two[1] == three[1]
    assert two[0] != three[0]  # a better copy of its source has come
    assert dedup_sources.fn(*tables) == three
