"""Clips: the wide table of a shard, joined once, after the verdict: every row, all scores, all reasons.

It is what OUT/clips publishes, and what manifest and report read.
"""

from collections.abc import Sequence

import pyarrow as pa

from tasks.curation.filter import OwnFilter, declared
from tasks.curation.scores import SCORES
from tasks.tables import storage
from tasks.tables.rows import joined, narrow
from tasks.tables.schema import wide_schema
from tasks.tables.sources import passed_through
from tasks.tables.step import Made, kept, step_task

VERSION = 1


def wide(tables: Sequence[str], listed: str, own: Sequence[OwnFilter]) -> pa.Table:
    """The wide table of the shard of ``tables``; ``listed`` is the list of its sources, with the columns that an input
    list passed through."""
    extra = passed_through(storage.read_table(listed))
    by_source = {row["source_uri"]: row for row in extra.to_pylist()}
    rows = [row | by_source.get(row["source_uri"], {}) for row in joined(tables)]
    for row in rows:
        row["keep"] = bool(row["keep"]) and not row["rejected_by"]
        if not row["keep"]:
            row |= dict.fromkeys(("bucket_aspect", "bucket_duration_s"))
    fields = [field for field in extra.schema if field.name != "source_uri"]
    return narrow(rows, wide_schema([*SCORES, *declared(own)], fields))


@step_task("clips")
def clips(tables: list[str], listed: str, own: list[OwnFilter]) -> str:
    """Join all tables of a shard; returns the URI of the wide table."""
    return kept([listed, *tables], "clips", [VERSION], lambda: Made(wide(tables, listed, own)))
