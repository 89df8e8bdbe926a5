"""Rows across narrow tables. Each step of a shard writes the id of a row and its own columns; whoever needs more reads
several tables and joins them by id.

A table of sources has ``source_uri`` and no ``clip_id``. The table of clips, which cut writes, has both, and a row for
every source: its clips, or the source itself with ``clip_id`` null. All other tables have ``clip_id`` alone.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from tasks.tables import storage
from tasks.tables.step import Row

# What duplicate search alone reads, and too large to carry along.
LEFT_BEHIND = ("embedding", "signature")


def narrow(rows: Iterable[Row], fields: Sequence[pa.Field]) -> pa.Table:
    """Rows as a table of ``fields``; what a row lacks is null, what is not among the fields is left out."""
    names = [field.name for field in fields]
    return pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows], schema=pa.schema(fields))


def joined(tables: Sequence[str]) -> list[Row]:
    """The rows of a shard, with the columns of all ``tables`` (URIs in the order of the steps).

    The rows are those of the table of clips, or of the first table where there is none among them. Of a column that
    several tables have, the last value that is not null stands, as each step may move the crop; but the first ``error``
    stands, and the reasons of all tables are in ``rejected_by``, in order.
    """
    parts = [_read(uri) for uri in tables]
    spine = next((part for part in parts if _is_spine(part)), parts[0])
    sources = [part for part in parts if part is not spine and "clip_id" not in part.column_names]
    clips = [part for part in parts if part is not spine and "clip_id" in part.column_names]
    rows = [_fresh(row) for row in spine.to_pylist()]
    for part in sources:
        known = {row["source_uri"]: row for row in part.to_pylist()}
        rows = [_before(known[row["source_uri"]], row) if row["source_uri"] in known else row for row in rows]
    for part in clips:
        known = {row["clip_id"]: row for row in part.to_pylist()}
        names = [name for name in part.column_names if name not in ("error", "rejected_by")]
        for row in rows:
            _add(row, known.get(row["clip_id"]) if row["clip_id"] else None, names)
    return rows


def _read(uri: str) -> pa.Table:
    table = storage.read_table(uri)
    return table.drop_columns([name for name in LEFT_BEHIND if name in table.column_names])


def _is_spine(part: pa.Table) -> bool:
    return "clip_id" in part.column_names and "source_uri" in part.column_names


def _fresh(row: Row) -> Row:
    reasons = [*(row.get("rejected_by") or []), *(["error"] if row.get("error") else [])]
    return row | {"error": row.get("error"), "rejected_by": list(dict.fromkeys(reasons))}


def _before(earlier: Row, row: Row) -> Row:
    """``row`` with what the table of an earlier step says of its source, ahead of its own."""
    whole = _fresh(earlier)
    _add(whole, row, list(row))
    return whole


def _add(row: Row, more: Row | None, names: Iterable[str]) -> None:
    """Let the columns ``names`` of a later table stand in ``row``; null where it has no such row."""
    more = more or {}
    for name in names:
        if name not in ("error", "rejected_by") and (more.get(name) is not None or name not in row):
            row[name] = more.get(name)
    row["error"] = row["error"] or more.get("error")
    reasons: dict[Any, None] = dict.fromkeys(
        [*(more.get("rejected_by") or []), *(["error"] if more.get("error") else [])]
    )
    row["rejected_by"] += [reason for reason in reasons if reason not in row["rejected_by"]]
