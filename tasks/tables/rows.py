"""Rows across narrow tables. Each step of a shard writes the id of a row and its own columns; whoever needs more reads
several tables and joins them by id.

A table of sources has ``source_uri`` and no ``clip_id``. The table of clips, which cut writes, has both, and a row for
every source: its clips, or the source itself with ``clip_id`` null. All other tables have ``clip_id`` alone.
"""

from collections.abc import Iterable, Sequence

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
    known = {}
    for number, part in enumerate(parts):
        key = "clip_id" if "clip_id" in part.column_names else "source_uri"
        known[number] = key, {row[key]: row for row in part.to_pylist()} if part is not spine else {}
    rows = []
    for own in spine.to_pylist():
        row: Row = {"error": None, "rejected_by": []}
        for number, part in enumerate(parts):
            key, others = known[number]
            more = own if part is spine else others.get(own[key], {}) if own.get(key) else {}
            row |= {name: None for name in part.column_names if name not in row}
            values_over(row, more)
            reasons = [*(more.get("rejected_by") or []), *(["error"] if more.get("error") else [])]
            row["rejected_by"] = list(dict.fromkeys([*row["rejected_by"], *reasons]))
        rows.append(row)
    return rows


def values_over(row: Row, more: Row) -> None:
    """Let what the row ``more`` of a later table has stand in ``row``; of errors the first stands."""
    row["error"] = row["error"] or more.get("error")
    kept = ("error", "rejected_by")
    row |= {name: value for name, value in more.items() if value is not None and name not in kept}


def _read(uri: str) -> pa.Table:
    table = storage.read_table(uri)
    return table.drop_columns([name for name in LEFT_BEHIND if name in table.column_names])


def _is_spine(part: pa.Table) -> bool:
    return "clip_id" in part.column_names and "source_uri" in part.column_names
