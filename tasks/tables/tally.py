"""Counts of tables, read from what Parquet files say of themselves: no row is read."""

from dataclasses import dataclass

import pyarrow.parquet as pq

from media.output_error import output_errors
from media.paths import fs_of
from tasks.tables import storage


@dataclass(frozen=True)
class ShardSize:
    """How much a shard holds: its sources, and their bytes."""

    sources: int
    bytes: int


def shard_size(listed: str) -> ShardSize:
    """The size of the shard whose list of sources is ``listed``."""
    sizes = storage.read_table(listed, ["bytes"])["bytes"].to_pylist()
    return ShardSize(len(sizes), sum(size or 0 for size in sizes))


def errors_in(table: str) -> int:
    """How many rows of a table have an ``error``; 0 where it has no such column."""
    with storage.open_read(table) as file, output_errors(table):
        parquet = pq.ParquetFile(file)
        schema = parquet.metadata.schema
        paths = [schema.column(number).path for number in range(len(schema))]
        if "error" not in paths:
            return 0
        place = paths.index("error")
        groups = [parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups)]
        counts = [group.column(place).statistics for group in groups]
        if all(known is not None and known.has_null_count for known in counts):
            return sum(group.num_rows - known.null_count for group, known in zip(groups, counts, strict=True))
        column = parquet.read(columns=["error"])["error"]
        return len(column) - column.null_count


def bytes_below(folder: str) -> int:
    """The size of all files below a folder, bytes."""
    with output_errors(folder):
        fs, path = fs_of(folder)
        fs.invalidate_cache(path)
        return sum(int(info["size"] or 0) for info in fs.find(path, detail=True).values())
