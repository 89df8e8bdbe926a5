"""Dedup sources: of each group of copies of one video (or image), the best stays (report, section 3.1).

Hierarchical, as in the report: k-means groups sources that look alike; inside, neighbours by embedding become candidate
pairs; a pair is a duplicate if its signatures, laid over each other in space and time, are the same film to within a
threshold, which adapts to how dense the cluster is.

"Clusters with higher density undergo more aggressive deduplication using stricter similarity thresholds": strict is
meant for what may stay. Two sources both stay only while they are less alike than the threshold, and the threshold
falls as the cluster gets denser, so that more goes where there is plenty. Its lowest value still lies above what
different videos reach (0.43 for two stretches of one conversation, against 0.70 and more for copies:
benchmarks/duplicates.py).

The shard of each source is only a place to read and write: groups are formed over all shards, and a shard's result is
called after its own input and its own outcome, so that a source added elsewhere leaves it, and all that follows, alone.
"""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache

import faiss
import fsspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from tasks.curation.embed import SIDE, Film
from tasks.curation.same_film import similarity
from tasks.tables import storage
from tasks.tables.step import Row, StepConfig, fields_of, key_of, result_uri, root_of, shard_of, step_task, with_columns

VERSION = 1
Vectors = NDArray[np.float32]


class DedupSourcesConfig(StepConfig):
    similarity_sparse: float = Field(
        0.65, gt=0, le=1, description="Sources this alike are duplicates, in a sparse cluster"
    )
    similarity_dense: float = Field(
        0.55, gt=0, le=1, description="Sources this alike are duplicates, in a dense cluster"
    )
    candidate_cosine: float = Field(0.7, ge=-1, le=1, description="Embeddings less alike than this are not verified")
    neighbours: int = Field(64, gt=0, description="Nearest sources by embedding that a source is compared with")
    trim_s: float = Field(2.5, ge=0, description="Seconds of difference in length that a copy may have")


PROBES = 8  # clusters in which a source's neighbours are sought


def cluster(vectors: Vectors) -> tuple[Vectors, NDArray[np.int64]]:
    """Spherical k-means of unit vectors [N, D] with k = sqrt(N): centroids [k, D], and the cluster of each vector."""
    k = max(1, round(len(vectors) ** 0.5))
    kmeans = faiss.Kmeans(vectors.shape[1], k, niter=20, seed=0, spherical=True, min_points_per_centroid=1)
    kmeans.train(vectors)
    centroids: Vectors = np.asarray(kmeans.centroids)
    return centroids, kmeans.index.search(vectors, 1)[1][:, 0]


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


def read_sources(table: str) -> list[Row]:
    """The rows of a shard as far as they decide, ``embedding`` as an array."""
    columns = ["source_uri", "source_id", "width", "height", "bit_rate", "duration_s"]
    found = storage.read_table(table, [*columns, "embedding"])
    vectors = [vector.values.to_numpy() if vector.is_valid else None for vector in found["embedding"]]
    rows = found.drop_columns("embedding").to_pylist()
    return [row | {"embedding": vector} for row, vector in zip(rows, vectors, strict=True)]


def decide(tables: Sequence[str], config: DedupSourcesConfig) -> list[list[str | None]]:
    """``duplicate_of`` of every row of every table."""
    shards = [read_sources(table) for table in tables]
    first: dict[str, Row] = {}
    place: dict[str, tuple[str, int]] = {}
    for table, rows in zip(tables, shards, strict=True):
        for number, row in enumerate(rows):
            known = first.get(row["source_id"])
            if row["embedding"] is not None and (known is None or row["source_uri"] < known["source_uri"]):
                first[row["source_id"]] = row
                place[row["source_id"]] = table, number

    @lru_cache(maxsize=32)
    def signatures(table: str) -> pa.ChunkedArray:
        return storage.read_table(table, ["signature"])["signature"]

    def film(row: Row) -> Film:
        table, number = place[row["source_id"]]
        return np.frombuffer(signatures(table)[number].as_py(), np.uint8).reshape(-1, SIDE, SIDE)

    copies = find_duplicates(list(first.values()), film, config)

    def duplicate_of(row: Row) -> str | None:
        known = first.get(row["source_id"]) if row["embedding"] is not None else None
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
