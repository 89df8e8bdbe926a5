"""What the report must know of all clips, gathered shard by shard: two passes, only the columns needed in memory.

The first pass finds ranges, candidates for the strips, errors and buckets; the second counts the histograms.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks.pages.report_examples import Place, Pool, ids_of
from tasks.pages.report_plots import Spread
from tasks.tables import storage
from tasks.tables.funnel import CLIP_STAGES, Mask, reason_masks
from tasks.tables.limit import Limit
from tasks.tables.schema import STEPS
from tasks.tables.step import Row

CROP = ["crop_w", "crop_h", "width", "height"]
# What is drawn and is no column of a score: its name, label and meaning.
BESIDES = {
    "crop_area": ("crop", "fraction of the frame that the crop keeps"),
    "duration_s": ("seconds", "length of the clip, seconds"),
}
ERRORS = 200
LISTED = 1000


@dataclass
class Strips:
    """Candidates for one reason's strips."""

    limit: Limit | None
    rejected: Pool = field(default_factory=Pool)
    rejected_random: Pool = field(default_factory=Pool)
    kept: Pool = field(default_factory=Pool)


@dataclass
class Survey:
    columns: list[str]
    labels: dict[str, str]
    meanings: dict[str, str]
    spreads: dict[str, Spread]
    strips: dict[str, Strips] = field(default_factory=dict)
    alone: Counter[str] = field(default_factory=Counter)
    kept_random: Pool = field(default_factory=lambda: Pool(96))
    listed: Pool = field(default_factory=lambda: Pool(LISTED))
    rows: int = 0
    errors: list[Row] = field(default_factory=list)
    error_count: int = 0
    buckets: Counter[tuple[str, int]] = field(default_factory=Counter)


def score_of(table: pa.Table, column: str) -> NDArray[np.float64]:
    """A score of every row, NaN where it was not measured; ``crop_area`` is derived, as in ``limit.value_of``."""
    if column == "crop_area":
        w, h, width, height = (table[name].to_numpy().astype(np.float64) for name in CROP)
        return w * h / (width * height)
    return table[column].to_numpy().astype(np.float64)


def survey(tables: Sequence[str], allowed: Sequence[Limit]) -> Survey:
    """Both passes."""
    with storage.open_read(tables[0]) as file:
        fields = pq.read_schema(file)
    notes = {field.name: {k.decode(): v.decode() for k, v in (field.metadata or {}).items()} for field in fields}
    limited = [limit.column for limit in allowed]
    drawn = [name for name in fields.names if "drawn" in notes[name]]
    scores = list(dict.fromkeys([*drawn, "crop_area", *limited, "duration_s"]))
    stored = ["source_uri", "clip_id", "error", "rejected_by", "keep", "bucket_aspect", "bucket_duration_s", *CROP]
    columns = list(dict.fromkeys([*stored, *(name for name in scores if name != "crop_area")]))
    labels = {name: notes[name].get("label", name) for name in fields.names}
    meanings = {name: notes[name].get("meaning", "") for name in fields.names}
    for name, (label, meaning) in BESIDES.items():
        labels[name], meanings[name] = label, meaning
    spreads = {
        name: Spread(name, [limit for limit in allowed if limit.column == name], "log" in notes.get(name, ()))
        for name in scores
    }
    found = Survey(scores, labels, meanings, spreads)
    for number, uri in enumerate(tables):
        _first_pass(found, number, storage.read_table(uri, columns), allowed)
    for spread in spreads.values():
        spread.lay_bins()
    for uri in tables:
        table = storage.read_table(uri, columns)
        judged, is_clip = _judged(table)
        for name, spread in spreads.items():
            spread.count(score_of(table, name)[is_clip if name == "duration_s" else judged])
    return found


def _judged(table: pa.Table) -> tuple[Mask, Mask]:
    """The clips that the thresholds judged, and all clips."""
    masks = reason_masks(table)
    is_clip: Mask = table["clip_id"].is_valid().to_numpy()
    judged = is_clip.copy()
    for reason, _ in CLIP_STAGES:
        if reason in masks:
            judged &= ~masks[reason]
    return judged, is_clip


def _first_pass(found: Survey, number: int, table: pa.Table, allowed: Sequence[Limit]) -> None:
    ids, sources = ids_of(table), table["source_uri"].to_pylist()
    masks = reason_masks(table)
    keep = table["keep"].fill_null(False).to_numpy()
    judged, is_clip = _judged(table)
    nowhere = np.zeros(len(table))
    found.rows += len(table)
    for name, spread in found.spreads.items():
        spread.see(score_of(table, name)[is_clip if name == "duration_s" else judged])

    by_reason = {limit.reason: limit for limit in allowed}
    counted = sum((mask.astype(int) for mask in masks.values()), np.zeros(len(table), int))
    for reason in [*by_reason, *(other for other in masks if other not in by_reason)]:
        limit = by_reason.get(reason)
        strips = found.strips.setdefault(reason, Strips(limit))
        mask = masks.get(reason, np.zeros(len(table), bool))
        found.alone[reason] += int((mask & (counted == 1) & is_clip).sum())
        strips.rejected_random.add(number, mask, nowhere, ids, sources)
        if limit is not None:
            distance = _distance(score_of(table, limit.column), limit, found.spreads[limit.column].log)
            strips.rejected.add(number, mask, distance, ids, sources)
            strips.kept.add(number, keep & np.isfinite(distance), distance, ids, sources)
    found.kept_random.add(number, keep, nowhere, ids, sources)
    found.listed.add(number, np.ones(len(table), bool), nowhere, ids, sources)

    wrong = table.filter(table["error"].is_valid()).select(["source_uri", "clip_id", "error"])
    found.error_count += len(wrong)
    found.errors += wrong.slice(0, max(0, ERRORS - len(found.errors))).to_pylist()
    pairs = table.filter(pa.array(keep)).select(["bucket_aspect", "bucket_duration_s"]).drop_null()
    for row in pairs.group_by(["bucket_aspect", "bucket_duration_s"]).aggregate([([], "count_all")]).to_pylist():
        found.buckets[row["bucket_aspect"], row["bucket_duration_s"]] += row["count_all"]


def _distance(values: NDArray[np.float64], limit: Limit, log: bool) -> NDArray[np.float64]:
    """How far scores lie from the threshold, in decades for scores that spread over decades; inf: not measured."""
    far = np.full(len(values), np.inf)
    for bound in (limit.low, limit.high):
        if bound is not None:
            scaled = (np.log10(np.maximum(v, 1e-9)) for v in (values, bound)) if log else None
            a, b = scaled if scaled else (values, bound)
            far = np.fmin(far, np.abs(a - b))
    return far


def rows_at(tables: Sequence[str], places: Iterable[Place]) -> dict[Place, Row]:
    """The full rows at these places."""
    by_table: dict[int, list[int]] = {}
    for number, row in sorted(set(places)):
        by_table.setdefault(number, []).append(row)
    found: dict[Place, Row] = {}
    for number, rows in by_table.items():
        full = storage.read_table(tables[number]).take(rows).to_pylist()
        found |= {(number, row): values for row, values in zip(rows, full, strict=True)}
    return found


def copies(tables: Sequence[str], duplicates: Iterable[Row]) -> dict[str, tuple[int, Row]]:
    """For each duplicate, by its ``duplicate_of``: the copy that stays, with the number of its table.

    A source that stays is shown whole, from the start of its first clip to the end of its last.
    """
    wanted = pa.array(sorted({row["duplicate_of"] for row in duplicates if row["duplicate_of"]}), pa.string())
    found: dict[str, tuple[int, Row]] = {}
    for number, uri in enumerate(tables if len(wanted) else []):
        table = storage.read_table(uri, ["source_id", "clip_id", "duplicate_of"])
        hit = pc.or_(pc.is_in(table["clip_id"], wanted), pc.is_in(table["source_id"], wanted))
        places = np.flatnonzero(hit.fill_null(False).to_numpy())
        rows: list[dict[str, Any]] = storage.read_table(uri).take(places).to_pylist() if len(places) else []
        for row in rows:
            if row["clip_id"] is not None:
                found.setdefault(row["clip_id"], (number, row))
            # A duplicate with the very same bytes has the source_id of the copy that stays.
            if row["source_id"] and not (row["clip_id"] is None and row["duplicate_of"]):
                _, whole = found.setdefault(row["source_id"], (number, dict.fromkeys(row) | _whole_source(row)))
                whole["end_s"] = max(whole["end_s"] or 0.0, row["end_s"] or 0.0)
                whole["duration_s"] = whole["end_s"] - (whole["start_s"] or 0.0)
    return found


def _whole_source(clip: Row) -> Row:
    """What the row of a clip says of its source."""
    names = [name for name in STEPS["scan"] if name in clip and name != "error"]
    return {name: clip[name] for name in names} | {"rejected_by": []}
