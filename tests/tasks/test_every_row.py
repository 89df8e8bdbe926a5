"""Every kind of row that the steps before can make goes through every step: nothing raises, every row has its place."""

from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from tasks.curation.buckets import buckets
from tasks.curation.caption import caption
from tasks.curation.clips import clips
from tasks.curation.cut import cut
from tasks.curation.dedup_clips import dedup_clips
from tasks.curation.dedup_sources import dedup_sources
from tasks.curation.embed import embed
from tasks.curation.filter import OwnFilter
from tasks.curation.manifest import manifest
from tasks.curation.measure import measure, pieces
from tasks.curation.scores import SCORES
from tasks.curation.settings import CurationConfig
from tasks.curation.shots import TRACK_SCHEMA
from tasks.curation.verdict import limits, verdict
from tasks.pages.report import report
from tasks.tables import storage
from tasks.tables.frame_store import Image, shrink
from tasks.tables.funnel import funnel
from tests.tasks.curation.own_filters import DARK
from tests.tasks.rows import clip, read, store, tables

SIZES = [(640, 360), (9000, 40), (2, 640), (1, 1), (64, 36)]
PICTURES = ["noise", "black", "bar", "still"]
FRAMES = [0, 1, 2, 24]
MISSING: list[dict[str, Any]] = [{}, {"duration_s": None}, {"fps": None}, {"fps": 0.0}, {"duration_s": 0.0, "fps": 0.0}]

OFF = {name: None for name in type(CurationConfig().verdict).model_fields if name != "filters"}
LOOSE = CurationConfig.model_validate({"verdict": OFF | {"filters": [{"filter": DARK, "low": 1.0}]}})
OWN = [OwnFilter.of(DARK)]


def picture(kind: str, number: int, width: int, height: int) -> Image:
    image = np.zeros((height, width, 3), np.uint8)
    if kind == "noise":
        image = np.random.default_rng(number).integers(0, 255, image.shape, np.uint8)
    elif kind == "bar":
        image[height // 2 : height // 2 + 3] = 240
    elif kind == "still":
        image[:, : max(1, width // 2)] = (200, 90, 30)
    return image


def sources(root: Path, random: Random, count: int) -> list[dict[str, Any]]:
    """Rows of a scan with their frame stores and tracks: of any size, content, length and number of frames."""
    rows = []
    for number in range(count):
        (width, height), kind, frames = SIZES[number % len(SIZES)], random.choice(PICTURES), random.choice(FRAMES)
        row = clip(source_uri=f"/v/{number:03d}.mp4", source_id=f"id{number}", frames_uri=f"frames/{number}")
        end_s = max(0.5, frames / 2)
        row |= {"width": width, "height": height, "start_s": 0.0, "end_s": end_s, "duration_s": end_s}
        row |= random.choice(MISSING)
        if random.random() < 0.1:
            row |= {"error": "scan: cannot be decoded", "width": None, "height": None, "frames_uri": None}
        rows.append(row)
        small = [shrink(picture(kind, i, width, height), 640) for i in range(frames)]
        store(root, small, f"frames/{number}", partners=random.random() < 0.7)
        side = TRACK_SCHEMA.field("thumbnail").type.byte_width
        track = [
            {"time_s": i / 8, "end_s": (i + 1) / 8, "segment": 0, "content_val": random.choice([0.0, 1.0, 90.0])}
            | {"thumbnail": random.randbytes(side) if kind == "noise" else bytes(side)}
            for i in range(frames * 4 if frames > 1 else frames)
        ]
        table = pa.Table.from_pylist(track, schema=TRACK_SCHEMA)
        storage.write_table(table, str(root / "frames" / str(number) / "track.parquet"))
    return rows


def finish(given: list[str], config: Any, own: list[OwnFilter]) -> list[dict[str, Any]]:
    """Run the steps from the verdict to the report; returns the rows of the wide table."""
    given = buckets.fn(caption.fn(verdict.fn(given, config.verdict, own)))
    final = clips.fn(given, None, own)
    allowed = limits(config.verdict, own)
    folder, page = manifest.fn([final]), report.fn([final], allowed)
    rows = read(final)
    names = {path.name for path in Path(folder).rglob("*.parquet")}
    trained = ds.dataset(folder, partitioning="hive").to_table().to_pylist() if names else []
    assert sorted(row["clip_id"] for row in trained) == sorted(row["clip_id"] for row in rows if row["keep"])
    assert "</html>" in Path(page).read_text()
    stages = funnel([final], [limit.reason for limit in allowed])
    assert stages[-1].left == sum(row["keep"] for row in rows)
    assert [a.left for a, b in pairwise(stages) if a.unit == b.unit] == [
        b.entered for a, b in pairwise(stages) if a.unit == b.unit
    ]
    return rows


def has_its_place(row: dict[str, Any]) -> bool:
    """A row is kept, and then whole, or there is a reason; an error is among the reasons."""
    assert bool(row["error"]) == ("error" in row["rejected_by"])
    assert row["rejected_by"] == list(dict.fromkeys(row["rejected_by"]))
    if row["keep"]:
        assert row["crop_w"] >= 1 and row["crop_h"] >= 1 and row["bucket_aspect"] and row["caption_short"]
    return bool(row["keep"]) != bool(row["rejected_by"])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sources_of_every_kind_go_from_scan_to_report(tmp_path: Path, seed: int) -> None:
    found = sources(tmp_path, Random(seed), 30)
    (scanned,) = tables(tmp_path, "scan", found)
    with_errors = {row["source_uri"]: row["error"] for row in found}
    rows = [row | {"error": with_errors[row["source_uri"]]} for row in read(scanned)]
    storage.write_table(pa.Table.from_pylist(rows, schema=storage.read_table(scanned).schema), scanned)
    (unique,) = dedup_sources.fn([scanned], [embed.fn(scanned)])
    config = CurationConfig.model_validate(LOOSE.model_dump() | {"cut": {"clip_min_s": 0.5, "clip_max_s": 1.5}})
    given = dedup_clips.fn(cut.fn([scanned, unique], config.cut), config.dedup_clips)
    for names in pieces(config, OWN):
        given = measure.fn(given, names, config, OWN)
    rows = finish(given, config, OWN)
    assert {row["source_uri"] for row in rows} == {row["source_uri"] for row in found}
    assert all(map(has_its_place, rows))
    assert any(row["keep"] for row in rows) and any(row["error"] for row in rows)


VALUES = [None, float("nan"), float("inf"), float("-inf"), 0.0, 0.5, 1e30]
NUMBERS = [column.name for score in SCORES for column in score.columns if column.type == pa.float32()]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_of_every_kind_go_from_verdict_to_report(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    rows = []
    for number in range(200):
        row = clip(clip_id=f"c{number:03d}", source_uri=f"/v/{number // 3}.mp4", source_id=f"id{number // 3}")
        row |= {name: random.choice(VALUES) for name in NUMBERS if random.random() < 0.1}
        row |= {"crop_w": random.choice([0, 1, 640, 640]), "crop_h": random.choice([0, 360, 360, 360])}
        row |= random.choice([{}, {"duration_s": 0.0}, {"fps": None}, {"fps": float("nan")}])
        if random.random() < 0.1:
            row |= {"error": "blur: odd", "rejected_by": ["error"]} | dict.fromkeys(NUMBERS)
        rows.append(row)
    config = CurationConfig.model_validate({"verdict": OFF | {"aesthetic_min": 0.1, "blur_min": 0.1, "motion_max": 9}})
    given = tables(tmp_path, "aesthetics", rows)
    wide = finish(given, config, [])
    assert [row["clip_id"] for row in wide] == [row["clip_id"] for row in rows]
    assert all(map(has_its_place, wide))
    judged = ("aesthetic", "blur", "motion")
    kept = [row for row in wide if row["keep"]]
    assert kept and all(row[name] is None or np.isfinite(row[name]) for row in kept for name in judged)
    odd = [row for row in wide if any(row[name] is not None and not np.isfinite(row[name]) for name in judged)]
    assert odd and all(row["error"] for row in odd)
