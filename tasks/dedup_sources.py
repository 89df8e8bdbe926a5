"""Dedup sources: of each group of copies of one video (or image), the best stays (report, section 3.1).

Hierarchical, as in the report: k-means groups sources that look alike; inside, neighbours by embedding become candidate
pairs; a pair is a duplicate if its signatures, laid over each other in space and time, are the same film to within a
threshold, which adapts to how dense the cluster is.

"Clusters with higher density undergo more aggressive deduplication using stricter similarity thresholds": strict is
meant for what may stay. Two sources may both stay while they are less alike than the threshold, and the threshold
falls as the cluster gets denser, so that more goes where there is plenty. Even the densest cluster's threshold lies above
what different videos reach (benchmarks/duplicates.py), so that precision does not pay for it.

The shard of each source is only a place to read and write: groups are formed over all shards, and a shard's result is
called after its own input and its own outcome, so that a source added elsewhere leaves it, and all that follows, alone.
"""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache

import cv2
import faiss
import fsspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from tasks import storage
from tasks.embed import RATE, SIDE, STRETCH, Film
from tasks.step import Row, StepConfig, fields_of, key_of, result_uri, root_of, shard_of, step_task, with_columns

VERSION = 1
Vectors = NDArray[np.float32]


class DedupSourcesConfig(StepConfig):
    similarity_sparse: float = Field(
        0.65, gt=0, le=1, description="Sources this alike are duplicates: in a sparse cluster"
    )
    similarity_dense: float = Field(
        0.55, gt=0, le=1, description="Sources this alike are duplicates: in a dense cluster"
    )
    candidate_cosine: float = Field(0.7, ge=-1, le=1, description="Embeddings less alike than this are not verified")
    neighbours: int = Field(64, gt=0, description="Nearest sources by embedding that a source is compared with")
    trim_s: float = Field(2.5, ge=0, description="Seconds of difference in length that a copy may have")


COARSE = 16  # side of the films that the first, exhaustive search compares, pixels
# What a copy may show of the original along one axis, (start, length) as fractions: crops of 10 and 20 %, any side.
WINDOWS = [(0.0, 1.0), (0.0, 0.9), (0.05, 0.9), (0.1, 0.9), (0.0, 0.8), (0.1, 0.8), (0.2, 0.8)]
PARTS = 4  # along a side
NOISE = 4.0  # variance in grey levels that compression leaves: less than this is no evidence
FLAT_NOISE = 0.01  # the same in local contrast
HOPELESS = 0.35  # at coarse sight; duplicates reach twice that
EVIDENCE = 4.0  # least contrast, in grey levels, of a film that can be told from another
PROBES = 8  # clusters in which a source's neighbours are sought


def local_contrast(film: Film) -> Vectors:
    """The film [T, H, W] with local mean taken off and local contrast made even: what light and colour leave alone."""
    planes = film.astype(np.float32)
    out = np.empty_like(planes)
    for plane, normal in zip(planes, out, strict=True):
        plane = cv2.GaussianBlur(plane, (0, 0), 1.0, borderType=cv2.BORDER_REFLECT)
        detail = plane - cv2.GaussianBlur(plane, (0, 0), 3.0, borderType=cv2.BORDER_REFLECT)
        power = cv2.GaussianBlur(detail * detail, (0, 0), 3.0, borderType=cv2.BORDER_REFLECT)
        normal[:] = detail / np.sqrt(power + 36.0)
    return out


def sampling(start: float, length: float, count: int) -> Vectors:
    """Linear interpolation [count, SIDE] of ``count`` points across the part (start, length) of an axis."""
    x = np.clip((start + length * (np.arange(count) + 0.5) / count) * SIDE - 0.5, 0, SIDE - 1)
    left = np.minimum(x.astype(int), SIDE - 2)
    weights = np.zeros((count, SIDE), np.float32)
    weights[np.arange(count), left] = left + 1 - x
    weights[np.arange(count), left + 1] += (x - left).astype(np.float32)
    return weights


_COARSE = np.stack([sampling(*w, 2 * COARSE).reshape(COARSE, 2, SIDE).mean(axis=1) for w in WINDOWS])
# A crop is the same along both axes, except where borders hide it along one.
_SEEDS = [(y, x) for y, v in enumerate(WINDOWS) for x, w in enumerate(WINDOWS) if v[1] == w[1] or 1.0 in (v[1], w[1])]


def half_steps(film: Vectors) -> Vectors:
    """[T, ...] to [2T - 1, ...]: with the mean of neighbours in between."""
    out = np.empty((2 * len(film) - 1, *film.shape[1:]), np.float32)
    out[::2] = film
    out[1::2] = (film[1:] + film[:-1]) / 2
    return out


def meeting(shift: int, outer: int, inner: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the frames that coincide: into the half steps of ``outer`` frames, and into ``inner`` frames."""
    j = np.arange(inner)
    i = shift + 2 * j
    inside = (i >= 0) & (i <= 2 * (outer - 1))
    return i[inside], j[inside]


def shifts_of(outer: int, inner: int, max_shift: int) -> list[int]:
    """The shifts, in half samples, at which at least half of the longer film coincides with the other."""
    least = (max(outer, inner) + 1) // 2
    return [s for s in range(-max_shift, max_shift + 1) if len(meeting(s, outer, inner)[1]) >= least]


def correlation(a: Vectors, b: Vectors, noise: float = 0.0) -> float:
    """Normalised correlation of two arrays; where both vary less than ``noise`` (a variance), they agree."""
    a, b = a - a.mean(), b - b.mean()
    return float(((a * b).mean() + noise) / np.sqrt(((a * a).mean() + noise) * ((b * b).mean() + noise) + 1e-12))


def warp(film: Vectors, box: NDArray[np.float64]) -> Vectors:
    """The part (top, height, left, width) of a film, at SIDE x SIDE again."""
    return sampling(box[0], box[1], SIDE) @ film @ sampling(box[2], box[3], SIDE).T


def seed(outer: Vectors, inner: Vectors, max_shift: int) -> tuple[float, int, NDArray[np.float64]]:
    """The correlation, shift and box at which ``inner`` [T, SIDE, SIDE] is most like ``outer``, over all WINDOWS."""
    b = (_COARSE[0] @ inner @ _COARSE[0].T).reshape(len(inner), -1)
    rows = [w @ outer for w in _COARSE]
    a = np.stack([half_steps((rows[y] @ _COARSE[x].T).reshape(len(outer), -1)) for y, x in _SEEDS])
    product, a_power, b_power = a @ b.T, (a * a).sum(axis=2), (b * b).sum(axis=1)
    best = (-2.0, 0, 0)
    for shift in shifts_of(len(outer), len(inner), max_shift):
        i, j = meeting(shift, len(outer), len(inner))
        noise = FLAT_NOISE * len(j) * COARSE**2
        power = (a_power[:, i].sum(axis=1) + noise) * (b_power[j].sum() + noise)
        scores = (product[:, i, j].sum(axis=1) + noise) / np.sqrt(power)
        k = int(scores.argmax())
        best = max(best, (float(scores[k]), shift, k))
    y, x = _SEEDS[best[2]]
    return best[0], best[1], np.array([*WINDOWS[y], *WINDOWS[x]])


def refine(outer: Vectors, inner: Vectors, box: NDArray[np.float64], steps: int = 5) -> NDArray[np.float64]:
    """The box at which frames ``outer`` [T, SIDE, SIDE] correlate best with ``inner``, by Gauss-Newton from ``box``.

    This is image alignment after Lucas and Kanade, on normalised films as in ECC (Evangelidis and Psarakis, 2008).
    """

    def unit(film: Vectors) -> Vectors:
        film = film - film.mean()
        return (film / (np.linalg.norm(film) + 1e-6)).ravel()

    some = np.unique(np.linspace(0, len(outer) - 1, 10).astype(int))
    outer, goal = outer[some], unit(inner[some])
    step = 0.5 / SIDE
    best, best_score = box, -2.0
    for _ in range(steps):
        seen = unit(warp(outer, box))
        score = float(seen @ goal)
        if score < best_score + 1e-4:
            break
        best, best_score = box, score
        slopes = np.stack([(unit(warp(outer, box + step * e)) - seen) / step for e in np.eye(4)], axis=1)
        box = box + np.linalg.solve(slopes.T @ slopes + 1e-4 * np.eye(4), slopes.T @ (goal - seen)).clip(-0.05, 0.05)
        box[1::2] = box[1::2].clip(0.7, 1.0)
        box[::2] = box[::2].clip(0.0, 1 - box[1::2])
    return best


def parts_alike(a: Vectors, b: Vectors) -> float:
    """Second lowest of the correlations of two pictures' 16 parts, [T, SIDE, SIDE] each; empty parts agree.

    Over the whole, what two slides of one template share would outweigh how they differ. The lowest is left to chance:
    a hand before the lens, a logo.
    """
    side = SIDE // PARTS
    a, b = (film.reshape(-1, PARTS, side, PARTS, side) for film in (a, b))
    a, b = (film - film.mean(axis=(0, 2, 4), keepdims=True) for film in (a, b))
    cov, a_power, b_power = ((x * y).mean(axis=(0, 2, 4)) + FLAT_NOISE for x, y in ((a, b), (a, a), (b, b)))
    return float(np.sort((cov / np.sqrt(a_power * b_power)).ravel())[1])


def agreement(pictures: tuple[Vectors, Vectors], lights: tuple[Vectors, Vectors]) -> float:
    """The least of two likenesses of films that coincide: of their pictures, and of what changes through time."""
    noise = NOISE / max(float(lights[0].std() * lights[1].std()), 1.0)
    moving = [(film - film.mean(axis=0)) / max(film.std(), 1.0) for film in lights]
    return min(parts_alike(*pictures), correlation(moving[0], moving[1], noise))


def overlay(outer: Film, inner: Film, max_shift: int) -> float:
    """How alike two films [T, SIDE, SIDE] are where, at best, one is a crop of the other; -1 to 1.

    The least of two correlations: of the pictures (local contrast), which tells scenes apart, and of what moves in
    them, which tells two takes of one scene apart. Frames meet half a sample or better; a frame between two samples
    is their mean.
    """
    if min(outer.std(), inner.std()) < EVIDENCE:
        return 0.0
    picture, goal = local_contrast(outer), local_contrast(inner)
    forward, backward = seed(picture, goal, max_shift), seed(goal, picture, max_shift)
    if backward[0] > forward[0]:
        outer, inner, picture, goal = inner, outer, goal, picture
    score, shift, box = max(forward, backward, key=lambda found: found[0])
    if score < HOPELESS:
        return score
    picture, light, light_goal = half_steps(picture), half_steps(outer.astype(np.float32)), inner.astype(np.float32)
    best = -1.0
    for _ in range(2):  # the shift of a quiet film shows only once the box is right, and the other way round
        i, j = meeting(shift, len(outer), len(inner))
        box = refine(picture[i], goal[j], box)
        picture_seen, light_seen = warp(picture, box), warp(light, box)
        before = shift
        for other in shifts_of(len(outer), len(inner), max_shift):
            i, j = meeting(other, len(outer), len(inner))
            alike = agreement((picture_seen[i], goal[j]), (light_seen[i], light_goal[j]))
            if alike > best:
                best, shift = alike, other
        if shift == before:
            break
    return best


def similarity(a: Film, b: Film, trim_s: float) -> float:
    """How much two signatures are the same film, -1 to 1, whichever is the crop; of long ones the least alike stretch."""
    max_shift = int(2 * RATE * trim_s)

    def stretches(film: Film) -> list[Film]:
        middle = (len(film) - STRETCH) // 2
        return [film[:STRETCH], film[max(0, middle) :][:STRETCH], film[-STRETCH:]]

    pairs = list(zip(stretches(a), stretches(b), strict=True))
    if max(len(a), len(b)) <= STRETCH:
        pairs = pairs[:1]
    return min(overlay(x, y, max_shift) for x, y in pairs)


def cluster(vectors: Vectors) -> tuple[Vectors, NDArray[np.int64]]:
    """Spherical k-means of unit vectors [N, D] with k = sqrt(N): centroids [k, D], and the cluster of each vector."""
    k = max(1, round(len(vectors) ** 0.5))
    kmeans = faiss.Kmeans(vectors.shape[1], k, niter=20, seed=0, spherical=True, min_points_per_centroid=1)
    kmeans.train(vectors)
    return kmeans.centroids, kmeans.index.search(vectors, 1)[1][:, 0]


def densities(vectors: Vectors, assigned: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Mean cosine between the members of each of ``k`` clusters, 0 (sparse) to 1 (dense); 0 for one alone."""
    count = np.bincount(assigned, minlength=k).astype(float)
    total = np.zeros((k, vectors.shape[1]))
    np.add.at(total, assigned, vectors)
    return (((total**2).sum(axis=1) - count) / np.maximum(count * (count - 1), 1)).clip(0, 1)


def threshold(density: float, config: DedupSourcesConfig) -> float:
    """The similarity from which sources of a cluster are duplicates: the lower, the denser."""
    return config.similarity_sparse + (config.similarity_dense - config.similarity_sparse) * density


def candidates(vectors: Vectors, centroids: Vectors, config: DedupSourcesConfig) -> list[dict[int, float]]:
    """For each vector its nearest, in either direction, out of the PROBES nearest clusters: index to cosine."""
    quantizer = faiss.IndexFlatIP(vectors.shape[1])
    quantizer.add(centroids)
    index = faiss.IndexIVFFlat(quantizer, vectors.shape[1], len(centroids), faiss.METRIC_INNER_PRODUCT)
    index.nprobe = PROBES
    index.add(vectors)
    cosine, found = index.search(vectors, min(config.neighbours + 1, len(vectors)))
    near: list[dict[int, float]] = [{} for _ in vectors]
    for i, k in zip(*np.nonzero((cosine >= config.candidate_cosine) & (found >= 0)), strict=True):
        j = int(found[i, k])
        near[i][j] = near[j][int(i)] = float(cosine[i, k])
    return near


def quality(row: Row) -> tuple[float, float, float, str]:
    """Sorts the best copy first: most pixels, then bit rate, then duration."""
    return -row["width"] * row["height"], -(row["bit_rate"] or 0), -row["duration_s"], row["source_uri"]


def find_duplicates(rows: list[Row], film: Callable[[Row], Film], config: DedupSourcesConfig) -> dict[str, str]:
    """Which source is a copy of which: source_id of each copy to that of the one that stays.

    ``rows`` are distinct sources with ``embedding``. Going from the best to the worst, a source is a copy if it is
    like one that stays: so every copy has been compared with what stands for it, and likeness is not handed on.
    """
    copies: dict[str, str] = {}
    for images in (False, True):
        ranked = sorted((row for row in rows if (row["duration_s"] == 0) == images), key=quality)
        if len(ranked) < 2:
            continue
        vectors = np.array([row["embedding"] for row in ranked], np.float32)
        centroids, assigned = cluster(vectors)
        limits = [threshold(d, config) for d in densities(vectors, assigned, len(centroids))]
        stays: dict[int, int] = {}
        for i, near in enumerate(candidates(vectors, centroids, config)):
            nearest_first = sorted((j for j in near if j < i), key=lambda j: -near[j])
            for best in dict.fromkeys(stays[j] for j in nearest_first):
                limit = max(limits[assigned[i]], limits[assigned[best]])
                gap_s = abs(ranked[i]["duration_s"] - ranked[best]["duration_s"])
                if gap_s <= config.trim_s and similarity(film(ranked[i]), film(ranked[best]), config.trim_s) >= limit:
                    stays[i] = best
                    copies[ranked[i]["source_id"]] = ranked[best]["source_id"]
                    break
            else:
                stays[i] = i
    return copies


def decide(tables: Sequence[str], config: DedupSourcesConfig) -> list[list[str | None]]:
    """``duplicate_of`` of every row of every table."""
    columns = ["source_uri", "source_id", "width", "height", "bit_rate", "duration_s", "error", "embedding"]
    shards = [storage.read_table(table, columns).to_pylist() for table in tables]
    first: dict[str, Row] = {}
    place: dict[str, tuple[str, int]] = {}
    for table, rows in zip(tables, shards, strict=True):
        for number, row in enumerate(rows):
            known = first.get(row["source_id"])
            if row["embedding"] and (known is None or row["source_uri"] < known["source_uri"]):
                first[row["source_id"]] = row
                place[row["source_id"]] = table, number

    @lru_cache(maxsize=4)
    def signatures(table: str) -> pa.ChunkedArray:
        return storage.read_table(table, ["signature"])["signature"]

    def film(row: Row) -> Film:
        table, number = place[row["source_id"]]
        return np.frombuffer(signatures(table)[number].as_py(), np.uint8).reshape(-1, SIDE, SIDE)

    copies = find_duplicates(list(first.values()), film, config)

    def duplicate_of(row: Row) -> str | None:
        known = first.get(row["source_id"]) if row["embedding"] else None
        if known is None:
            return None
        same_bytes = row["source_id"] if known["source_uri"] != row["source_uri"] else None
        return copies.get(row["source_id"], same_bytes)

    return [[duplicate_of(row) for row in rows] for rows in shards]


def write_outcome(table: str, duplicate_of: list[str | None], config: DedupSourcesConfig) -> str:
    """Write a shard's table with its outcome, which is part of the file's name; returns its URI."""
    plain = result_uri(table, "dedup sources", config, VERSION)
    key = key_of(plain.rsplit("-", 1)[1], duplicate_of)
    result = storage.join(plain.rsplit("/", 1)[0], f"{shard_of(table)}-{key}.parquet")
    if storage.exists(result):
        return result
    old = storage.read_table(table).drop_columns(["embedding", "signature"])
    rows = old.to_pylist()
    for row, stays in zip(rows, duplicate_of, strict=True):
        row["duplicate_of"] = stays
        if stays is not None:
            row["rejected_by"] = [*row["rejected_by"], "duplicate_source"]
    fields = [old.schema.field("rejected_by"), *fields_of("dedup sources")]
    storage.write_table(with_columns(old, rows, fields), result)
    return result


@step_task("dedup sources")
def dedup_sources(tables: list[str], config: DedupSourcesConfig = DedupSourcesConfig()) -> list[str]:
    """Mark every source that is a copy of a better one, over all shards; returns the shards' new tables, in order."""
    if not tables:
        return []
    faiss.omp_set_num_threads(1)  # sums in another order would make other clusters
    decided = storage.join(
        root_of(tables[0]), "steps", "duplicates", f"{key_of(tables, VERSION, config.model_dump())}.json"
    )
    if storage.exists(decided):
        with fsspec.open(decided, "r") as file:
            outcome = json.load(file)
    else:
        outcome = decide(tables, config)
        with storage.writing(decided) as out:
            out.write(json.dumps(outcome).encode())
    return [write_outcome(table, stays, config) for table, stays in zip(tables, outcome, strict=True)]
