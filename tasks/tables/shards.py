"""Shards: groups of sources that tasks work on, each a Parquet table that is named by its content."""

import hashlib
import re
from collections.abc import Collection, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.tables import storage
from tasks.tables.checks import PreflightError
from tasks.tables.found import PASSED, SCHEMA
from tasks.tables.input_list import narrow
from tasks.tables.keys import key_of
from tasks.tables.sample import hashes_of

# A source weighs one of "about so many" for each part of this size: a shard of films holds fewer than one of images.
BYTES_PER_SOURCE = 64 << 20


def shards_of(sources: pa.Table, about: int) -> Iterator[pa.Table]:
    """Group sources into shards of about ``about`` sources or ``about`` x BYTES_PER_SOURCE bytes, in their order.

    A shard ends where the hash of a URI says so, not at a count: so a new source changes only the shard it falls into,
    and boundaries stay where they are when the library grows. Raises PreflightError where ``about`` is below 1.
    """
    if about < 1:
        raise PreflightError(f"sources per shard must be at least 1, not {about}")
    weights = np.maximum(1.0, sources["bytes"].to_numpy() / BYTES_PER_SOURCE)
    chances = hashes_of(sources["source_uri"], b"shard") / 2.0**64
    start, weight = 0, 0.0
    for place, (own, chance) in enumerate(zip(weights.tolist(), chances.tolist(), strict=True)):
        # A source that would fill a shard more than twice over begins one of its own.
        if place > start and weight + own > 2 * about:
            yield sources.slice(start, place - start)
            start, weight = place, 0.0
        weight += own
        if weight >= 2 * about or (weight > about / 2 and chance < own / about):
            yield sources.slice(start, place + 1 - start)
            start, weight = place + 1, 0.0
    if start < sources.num_rows:
        yield sources.slice(start)


def write_shards(sources: pa.Table, root: str, about: int) -> list[str]:
    """Write the list of each shard's sources (``found.SCHEMA``) to OUT/steps/sources; returns their URIs, in order.

    A list is called after its shard, and keyed by the URIs, sizes and change tokens in it: not by passed columns.
    """
    schema = pa.schema([field.with_type(pa.string()) if field.name == "source_uri" else field for field in SCHEMA])
    lists = []
    for shard in shards_of(sources, about):
        table = shard.select(SCHEMA.names).cast(schema)
        key = key_of(table.to_pylist())
        uri = storage.join(root, "steps", "sources", f"{shard_name(shard)}-{key}.parquet")
        if not storage.exists(uri):
            storage.write_table(table, uri)
        lists.append(uri)
    return lists


def check_passed(sources: pa.Table, taken: Collection[str]) -> None:
    """Raise PreflightError where an input list brings a column that has one of the names ``taken``."""
    names = [name.removeprefix(PASSED) for name in sources.column_names if name.startswith(PASSED)]
    if clash := [name for name in names if name in {"source_uri", *taken}]:
        raise PreflightError(
            f"the input list has a column {clash[0]!r}, and so have the tables of curation; call it something else"
        )


def write_passthrough(sources: pa.Table, root: str, about: int) -> list[str]:
    """Write ``source_uri`` and the passed columns of each shard to OUT/steps/passthrough; returns their URIs, in the
    order of ``write_shards``, or none where no column is passed. Columns have the names and types of the input list."""
    passed = [name for name in sources.column_names if name.startswith(PASSED)]
    if not passed:
        return []
    names = [name.removeprefix(PASSED) for name in passed]
    return [
        _written(
            narrow(shard.select(["source_uri", *passed]).rename_columns(["source_uri", *names])),
            storage.join(root, "steps", "passthrough"),
            shard_name(shard),
        )
        for shard in shards_of(sources, about)
    ]


def read_passthrough(uri: str) -> pa.Table:
    """What ``write_passthrough`` wrote of a shard: ``source_uri``, once each, and the columns of the input list."""
    return storage.read_table(uri)


def shard_name(shard: pa.Table) -> str:
    """What a shard is called: after its first source, with a hash of its URI, and how many more there are."""
    first = shard["source_uri"][0].as_py()
    stem = re.sub(r"\W+", "_", first.rsplit("/", 1)[-1].rsplit(".", 1)[0])[:24]
    more = f"_and_{shard.num_rows - 1}" if shard.num_rows > 1 else ""
    return f"{stem}{more}_{key_of(first)}"


def _written(table: pa.Table, folder: str, name: str) -> str:
    """The URI of a table that is called ``name`` and after its bytes; written unless it is there."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content = sink.getvalue().to_pybytes()
    uri = storage.join(folder, f"{name}-{hashlib.blake2b(content, digest_size=8).hexdigest()}.parquet")
    if not storage.exists(uri):
        with storage.writing(uri) as file:
            file.write(content)
    return uri
