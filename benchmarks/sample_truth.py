"""Compare what a curation found with what was planted in the sample library."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from benchmarks.sample_library import FileTruth, Truth

Row = dict[str, Any]

# Reasons in the truth -> reasons in the table.
REASONS = {
    "error": {"error"},
    "duplicate": {"duplicate_source"},
    "short": {"too_short"},
    "text": {"text"},
    "blur": {"blur"},
    "motion": {"motion_low"},
}


@dataclass(frozen=True)
class Fact:
    """One planted fact, and what the tables say of it."""

    file: str
    expected: str
    found: str
    holds: bool


def rows_by_file(curated: Path) -> dict[str, list[Row]]:
    """All rows of OUT/clips by the name of their source."""
    files: dict[str, list[Row]] = {}
    for row in ds.dataset(curated / "clips", format="parquet").to_table().to_pylist():
        files.setdefault(row["source_uri"].rsplit("/", 1)[-1], []).append(row)
    return files


def outside(box: tuple[int, int, int, int], row: Row) -> bool:
    """Whether the crop of a row shows nothing of ``box`` (x, y, width, height)."""
    x, y, width, height = box
    return (
        x + width <= row["crop_x"]
        or row["crop_x"] + row["crop_w"] <= x
        or y + height <= row["crop_y"]
        or row["crop_y"] + row["crop_h"] <= y
    )


def inside(box: tuple[int, int, int, int], row: Row) -> bool:
    """Whether the crop of a row lies in ``box``, to two pixels of the codec's blur."""
    x, y, width, height = box
    return (
        row["crop_x"] >= x - 2
        and row["crop_y"] >= y - 2
        and row["crop_x"] + row["crop_w"] <= x + width + 2
        and row["crop_y"] + row["crop_h"] <= y + height + 2
    )


def summary(rows: list[Row]) -> str:
    kept = [row for row in rows if row["keep"]]
    reasons = sorted({reason for row in rows for reason in row["rejected_by"]})
    area = min((r["crop_w"] * r["crop_h"] / (r["width"] * r["height"]) for r in kept), default=0)
    words = f"{len(kept)} of {len(rows)} kept"
    words += f", crop {area:.0%}" if kept and area < 1 else ""
    return words + (f", {' '.join(reasons)}" if reasons else "")


def facts(truth: Truth, curated: Path) -> Iterator[Fact]:
    """Every planted fact, in the order of the library."""
    found = rows_by_file(curated)
    for file in truth.files:
        rows = found.get(file.name, [])
        said = summary(rows)
        if file.outcome == "keep":
            yield Fact(file.name, f"{len(file.shots)} clean shots, kept", said, kept_whole(file, rows))
        elif file.outcome == "reject":
            reasons = REASONS[str(file.expected_reason)]
            holds = bool(rows) and all(not row["keep"] and reasons & set(row["rejected_by"]) for row in rows)
            yield Fact(file.name, f"rejected: {file.expected_reason}", said, holds)
        elif file.content_box:
            holds = any(row["keep"] for row in rows) and all(
                inside(file.content_box, row) for row in rows if row["keep"]
            )
            yield Fact(file.name, f"cropped: {file.expected_reason}", said, holds)
        else:
            boxes = [file.logo] if file.logo else [line[2:] for line in file.subtitles]
            hidden = all(outside(box, row) for row in rows if row["keep"] for box in boxes)
            holds = any(row["keep"] for row in rows) and hidden
            yield Fact(file.name, f"cropped: {file.expected_reason}", said, holds)


def kept_whole(file: FileTruth, rows: list[Row]) -> bool:
    """Whether kept clips cover at least 95 % of each shot that is long enough, and none reaches over a transition."""
    kept = [row for row in rows if row["keep"]]
    if file.duration_s == 0:
        return len(kept) == 1
    for start_s, end_s in file.shots:
        covered = sum(max(0.0, min(end_s, r["end_s"]) - max(start_s, r["start_s"])) for r in kept)
        if end_s - start_s >= 3 and covered < 0.95 * (end_s - start_s):
            return False
    within = [any(r["start_s"] >= a - 0.15 and r["end_s"] <= b + 0.15 for a, b in file.shots) for r in kept]
    return all(within)


def print_truth(truth: Path, curated: Path) -> int:
    """Print the facts as a table; returns how many do not hold."""
    checked = list(facts(Truth.load(truth), curated))
    width = max(len(fact.file) for fact in checked)
    for fact in checked:
        print(f"{'ok  ' if fact.holds else 'MISS'} {fact.file:{width}}  {fact.expected:28}  {fact.found}")
    missed = sum(not fact.holds for fact in checked)
    print(f"{len(checked) - missed} of {len(checked)} planted facts found")
    return missed
