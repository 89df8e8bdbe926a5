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

from collections.abc import Callable, Sequence
from functools import lru_cache

import faiss
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from tasks.curation.embed import SIDE, SOURCES_PER_GROUP, Film
from tasks.curation.same_film import similarity
from tasks.tables import storage
from tasks.tables.guard import file_name
from tasks.tables.keys import key_in, key_of, root_of, shard_of
from tasks.tables.rows import narrow
from tasks.tables.schema import fields_of
from tasks.tables.step import Made, Row, StepConfig, kept, side_by_side, step_task

VERSION = 3
FILMS_HELD = 1024  # at most 230 KB each
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


def read_sources(scanned: str, embedded: str) -> list[Row]:
    """The rows of a shard as far as they decide; ``embedding`` is an array, or None for what cannot be read, with the
    ``error`` where it could not be embedded, or is not known well enough to be compared."""
    columns = ["source_uri", "source_id", "width", "height", "bit_rate", "duration_s"]
    rows = {row["source_uri"]: row for row in storage.read_table(scanned, columns).to_pylist()}
    found = storage.read_table(embedded, ["source_uri", "embedding", "error"])
    vectors = [vector.values.to_numpy() if vector.is_valid else None for vector in found["embedding"]]
    sources = []
    for number, (uri, vector, error) in enumerate(
        zip(found["source_uri"].to_pylist(), vectors, found["error"].to_pylist(), strict=True)
    ):
        unknown = [name for name in ("width", "height", "duration_s") if rows[uri][name] is None]
        if vector is not None and unknown:
            vector, error = None, f"dedup sources: {file_name(rows[uri])}: {', '.join(unknown)} not known"
        sources.append(rows[uri] | {"embedding": vector, "error": error, "place": (embedded, number)})
    return sources


@lru_cache(maxsize=FILMS_HELD)
def film_at(table: str, number: int) -> Film:
    """The signature of source ``number`` of a table of embed, read alone, as few are ever asked for."""
    group, row = divmod(number, SOURCES_PER_GROUP)
    with storage.open_read(table) as file:
        signatures = pq.ParquetFile(file).read_row_group(group, columns=["signature"])["signature"]
    return np.frombuffer(signatures[row].as_py(), np.uint8).reshape(-1, SIDE, SIDE)


def decide(scanned: Sequence[str], embedded: Sequence[str], config: DedupSourcesConfig) -> list[dict[str, Row]]:
    """The outcome of every shard by ``source_uri``: of each copy ``duplicate_of`` and the reason, and the ``error`` of
    what could not be embedded, as nobody can say whether it is a copy."""
    shards = list(side_by_side(lambda tables: read_sources(*tables), list(zip(scanned, embedded, strict=True))))
    first: dict[str, Row] = {}
    for row in (row for rows in shards for row in rows if row["embedding"] is not None):
        known = first.get(row["source_id"])
        if known is None or row["source_uri"] < known["source_uri"]:
            first[row["source_id"]] = row
    copies = find_duplicates(list(first.values()), lambda row: film_at(*row["place"]), config)
    film_at.cache_clear()

    def outcome(row: Row) -> Row:
        if row["embedding"] is None:
            return {"error": row["error"]} if row["error"] else {}
        same_bytes = row["source_id"] if first[row["source_id"]]["source_uri"] != row["source_uri"] else None
        stays = copies.get(row["source_id"], same_bytes)
        return {"duplicate_of": stays, "rejected_by": ["duplicate_source"]} if stays else {}

    return [{row["source_uri"]: found for row in rows if (found := outcome(row))} for rows in shards]


def write_outcome(scanned: str, outcome: dict[str, Row]) -> str:
    """Write what became of a shard's sources; returns the URI. The outcome is part of the file's name, so what follows
    is made again only where it changed."""

    def make() -> Made:
        rows: list[Row] = storage.read_table(scanned, ["source_uri"]).to_pylist()
        found = [row | outcome.get(row["source_uri"], {}) for row in rows]
        return Made(narrow(found, fields_of("dedup sources")))

    return kept([scanned], "dedup sources", [VERSION, sorted(outcome.items())], make)


@step_task("dedup sources")
def dedup_sources(
    scanned: list[str], embedded: list[str], config: DedupSourcesConfig = DedupSourcesConfig()
) -> list[str]:
    """Mark every source that is a copy of a better one, over all shards; returns the shards' tables, in order.

    ``scanned`` and ``embedded`` are the tables of the scan and of embed, of the same shards.
    """
    if not scanned:
        return []
    faiss.omp_set_num_threads(1)  # sums in another order would make other clusters
    inputs = [f"{shard_of(table)}-{key_in(table)}" for table in embedded]
    decided = storage.join(root_of(scanned[0]), "steps", "duplicates", f"{key_of(inputs, VERSION, config)}.json")
    if not storage.exists(decided):
        storage.write_json(decide(scanned, embedded, config), decided)
    outcome = storage.read_json(decided)
    return list(side_by_side(lambda own: write_outcome(*own), list(zip(scanned, outcome, strict=True))))
