"""Why a clip was kept or not, in a page of text: what ``report.html`` shows of a few clips, for any one of them."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from tasks.pages.page import name_of
from tasks.pages.report import WORDS
from tasks.pages.report_cards import span_of
from tasks.pages.report_plots import number
from tasks.tables import storage
from tasks.tables.limit import Limit, value_of
from tasks.tables.score import CROP
from tasks.tables.step import Row

SHOWN = 20  # rows that are explained, of those that a name fits


def explain(root: str, what: str, allowed: Sequence[Limit]) -> str:
    """All that the tables of the output ``root`` say of the rows that ``what`` names: the beginning of a ``clip_id`` or
    ``source_id``, or a part of a source's URI. ``allowed`` are the limits that judged them.

    Raises LookupError where no row fits, or no run has published its clips there.
    """
    tables = [uri for uri in storage.list_below(storage.join(root, "clips")) if uri.endswith(".parquet")]
    if not tables:
        raise LookupError(f"{root} has no clips: no curation has ended there")
    rows = _rows(tables, what)
    if not rows:
        raise LookupError(f"no clip and no source of {root} fits {what!r}: give a clip_id or a part of a source's URI")
    page = _sections(root)
    parts = [explained(row, allowed, _copy(tables, row), _places(page, row, root)) for row in rows[:SHOWN]]
    if len(rows) > SHOWN:
        parts.append(f"and {len(rows) - SHOWN:,} more rows; give a clip_id to choose one")
    return "\n\n".join(parts)


def explained(row: Row, allowed: Sequence[Limit], copy: Row | None = None, places: Sequence[str] = ()) -> str:
    """One row in words. ``copy`` is the row of what stays in its stead, ``places`` where its preview is."""
    known = {limit.reason: limit for limit in allowed}
    reasons = row["rejected_by"]
    lines = [
        ("clip", row["clip_id"] or "none: the source yields no clip"),
        ("source", row["source_uri"]),
        ("source_id", row["source_id"] or "none: it could not be read"),
    ]
    if row["start_s"] is not None:
        size = f"{row['width']} x {row['height']} pixels" if row["width"] else ""
        rate = f", {number(row['fps'])} frames a second" if row["fps"] else ""
        lines.append(("span", f"{span_of(row)} ({number(row['duration_s'])} s), {size}{rate}"))
    if row["crop_w"] is not None and (row["crop_w"], row["crop_h"]) != (row["width"], row["height"]):
        x, y, w, h = (row[name] for name in CROP)
        lines.append(("crop", f"{w} x {h} pixels from ({x}, {y})"))
    lines.append(("verdict", "kept" if row["keep"] else f"rejected by {', '.join(reasons)}"))
    for reason in reasons:
        words = WORDS.get(reason) or (known[reason].words if reason in known else "")
        lines += [("", f"{reason}: {words}")] if words else []
    if row["error"]:
        lines.append(("error", row["error"]))
    if row["duplicate_of"]:
        where = f"{name_of(copy['source_uri'])}, {span_of(copy)}" if copy else "not in these tables"
        lines.append(("copy", f"{row['duplicate_of']} stays ({where})"))
    lines += [("preview", place) for place in places]
    text = "\n".join(f"{name:<10} {value}".rstrip() for name, value in lines)
    scores = _scores(row, allowed)
    return f"{text}\n{scores}" if scores else text


def _scores(row: Row, allowed: Sequence[Limit]) -> str:
    """Each score beside its limit; nothing for a row that was not measured."""
    limits: dict[str, list[Limit]] = {}
    for limit in allowed:
        limits.setdefault(limit.column, []).append(limit)
    if row["clip_id"] is None or all(row.get(column) is None for column in limits if column != "crop_area"):
        return ""
    others = [name for name, value in row.items() if isinstance(value, float) and name not in (*limits, *_TIMES)]
    lines = []
    for column in [*limits, *others]:
        judging = limits.get(column, [])
        bounds = [bound for limit in judging for bound in (limit.low, limit.high) if bound is not None]
        value = value_of(row, column)
        asked = [f"at least {number(limit.low)}" for limit in judging if limit.low is not None]
        asked += [f"at most {number(limit.high)}" for limit in judging if limit.high is not None]
        guilty = [limit.reason for limit in judging if limit.reason in row["rejected_by"]]
        said = " and ".join(asked) or ("switched off" if judging else "no limit")
        shown = number(value, bounds) if value is not None else "-"
        lines.append(f"  {column:<20} {shown:>10}  {said:<30} {'<- ' + ', '.join(guilty) if guilty else ''}".rstrip())
    return "\n".join(lines)


_TIMES = ("start_s", "end_s", "duration_s", "fps")


def _rows(tables: Sequence[str], what: str) -> list[Row]:
    """The rows that ``what`` names, in order: by id if it is the beginning of one, else by a part of the URI."""
    for fits in (_by_id, _by_uri):
        found: list[Row] = []
        for table in tables:
            chosen = fits(storage.read_table(table, ["clip_id", "source_id", "source_uri"]), what)
            if pc.any(chosen).as_py():
                found += storage.read_table(table).filter(chosen).to_pylist()
        if found:
            return sorted(found, key=lambda row: (row["source_uri"], row["start_s"] or 0.0))
    return []


def _by_id(table: Any, what: str) -> Any:
    starts = [pc.fill_null(pc.starts_with(table[name], what), False) for name in ("clip_id", "source_id")]
    return pc.and_(len(what) >= 4, pc.or_(*starts))


def _by_uri(table: Any, what: str) -> Any:
    return pc.match_substring(table["source_uri"], what)


def _copy(tables: Sequence[str], row: Row) -> Row | None:
    """The row of the copy that stays in the stead of ``row``: a clip, or the first row of a source."""
    if not row["duplicate_of"]:
        return None
    rows = _rows(tables, row["duplicate_of"])
    return next((other for other in rows if other["source_uri"] != row["source_uri"] or row["clip_id"]), None)


def _sections(root: str) -> dict[str, str]:
    """The sections of report.html by their anchors; none where there is no page."""
    uri = storage.join(root, "report.html")
    if not storage.exists(uri):
        return {}
    page, _, data = storage.read_bytes(uri).decode().partition('<script type="application/json" id="data">')
    found = re.split(r'<section id="([^"]+)">', page)
    return dict(zip(found[1::2], found[2::2], strict=True)) | {"clips": data.partition("</script>")[0]}


def _places(page: dict[str, str], row: Row, root: str) -> list[str]:
    """Links to the sections of the page that show a row."""
    uri = storage.join(root, "report.html")
    link = uri if "://" in uri else Path(uri).resolve().as_uri()
    names = [name for name in (row["clip_id"], row["source_uri"]) if name]
    marks = {mark for name in names[:1] for mark in (name, json.dumps(name)[1:-1])}
    return [f"{link}#{anchor}" for anchor, text in page.items() if any(mark in text for mark in marks)]
