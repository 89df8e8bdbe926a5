"""Clips: the wide table of a shard, joined once, after the verdict: every row, all scores, all reasons.

It is what OUT/clips publishes, and what manifest and report read.
"""

from collections.abc import Sequence

import pyarrow as pa

from tasks.curation.filter import OwnFilter, declared
from tasks.curation.scores import SCORES
from tasks.tables.rows import joined, narrow
from tasks.tables.schema import wide_schema
from tasks.tables.shards import read_passthrough
from tasks.tables.step import Made, kept, step_task

VERSION = 1


def wide(tables: Sequence[str], passthrough: str | None, own: Sequence[OwnFilter]) -> pa.Table:
    """The wide table of the shard of ``tables``; ``passthrough`` is the table of what an input list brings."""
    rows = joined(tables)
    fields: list[pa.Field] = []
    if passthrough:
        extra = read_passthrough(passthrough)
        brought = {row["source_uri"]: row for row in extra.to_pylist()}
        rows = [row | brought.get(row["source_uri"], {}) for row in rows]
        fields = [field for field in extra.schema if field.name != "source_uri"]
    for row in rows:
        row["keep"] = bool(row["keep"]) and not row["rejected_by"]
        if not row["keep"]:
            row |= dict.fromkeys(("bucket_aspect", "bucket_duration_s"))
    return narrow(rows, wide_schema([*SCORES, *declared(own)], fields))


@step_task("clips")
def clips(tables: list[str], passthrough: str | None, own: list[OwnFilter]) -> str:
    """Join all tables of a shard; returns the URI of the wide table."""
    needs = [*tables, passthrough] if passthrough else tables
    return kept(needs, "clips", [VERSION], lambda: Made(wide(tables, passthrough, own)))
