"""Manifest: the Parquet dataset that training reads, and the table of every clip that people and tools ask.

OUT/clips/     every clip, all scores, verdict and reasons, one file a shard
OUT/manifest/  kept clips only: aspect=16x9/duration=5/part-00000.parquet (hive partitions)
OUT/run.json   written last, removed first: where it stands, the rest is whole
"""

import logging
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from tasks.tables import storage
from tasks.tables.keys import root_of, shard_of
from tasks.tables.published import announce, publish
from tasks.tables.run_record import remove_record
from tasks.tables.step import side_by_side, step_task

ROWS_PER_PART = 50_000

# What only the curation itself can use.
LEFT_OUT = ["frames_uri", "error", "rejected_by", "duplicate_of", "keep"]

Partition = tuple[str, int]


def partitions(table: pa.Table) -> Iterator[tuple[Partition, pa.Table]]:
    """The kept clips of a shard by bucket, in order of source and start."""
    kept = table.filter(table["keep"]).sort_by([("source_uri", "ascending"), ("start_s", "ascending")])
    buckets = {(row["bucket_aspect"], row["bucket_duration_s"]) for row in kept.to_pylist()}
    for aspect, seconds in sorted(buckets):
        own = pc.and_(pc.equal(kept["bucket_aspect"], aspect), pc.equal(kept["bucket_duration_s"], seconds))
        yield (aspect, seconds), kept.filter(own).drop_columns([c for c in LEFT_OUT if c in kept.column_names])


def write_manifest(tables: Sequence[str], folder: str) -> set[str]:
    """Write the manifest of the shards ``tables`` into ``folder``, OUT/manifest; returns the URIs of its files.

    The bytes depend on the kept clips and the order of the shards alone. One shard is in memory at a time, besides
    less than a part of every bucket.
    """
    root = folder.rsplit("/", 1)[0]
    pending: dict[Partition, list[pa.Table]] = {}
    parts: dict[Partition, int] = {}
    written: set[str] = set()

    def flush(bucket: Partition) -> None:
        aspect, seconds = bucket
        number = parts.get(bucket, 0)
        uri = storage.join(folder, f"aspect={aspect}", f"duration={seconds}", f"part-{number:05d}.parquet")
        announce(root, "manifest", [uri])
        storage.write_table(pa.concat_tables(pending.pop(bucket)).combine_chunks(), uri)
        parts[bucket] = number + 1
        written.add(uri)

    for table in tables:
        for bucket, clips in partitions(storage.read_table(table)):
            pending.setdefault(bucket, []).append(clips)
            if sum(part.num_rows for part in pending[bucket]) >= ROWS_PER_PART:
                flush(bucket)
    for bucket in sorted(pending):
        flush(bucket)
    return written


def publish_all(tables: Sequence[str]) -> tuple[str, list[str]]:
    """Publish the shards' final tables as OUT/clips and OUT/manifest.

    Returns the URI of the manifest, and those of Parquet files beside ours that somebody else put there.
    """
    root = root_of(tables[0])
    clips, folder = storage.join(root, "clips"), storage.join(root, "manifest")
    remove_record(root)
    published = {storage.join(clips, f"{shard_of(table)}.parquet"): table for table in tables}
    announce(root, "clips", published)
    list(side_by_side(lambda pair: storage.write_table(storage.read_table(pair[1]), pair[0]), list(published.items())))
    foreign = publish(root, "clips", published)
    return folder, foreign + publish(root, "manifest", write_manifest(tables, folder))


@step_task("manifest")
def manifest(tables: list[str]) -> str:
    """``publish_all`` as a task; returns the URI of the manifest."""
    folder, foreign = publish_all(tables)
    for uri in foreign:
        logging.getLogger(__name__).warning("%s is not of this run, and is read with its files", uri)
    return folder
