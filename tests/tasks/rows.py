"""Rows and tables for tests of single steps."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.tables import storage
from tasks.tables.schema import STEPS, schema

CLIP: dict[str, Any] = {
    "source_uri": "/videos/a.mp4",
    "source_id": "00aa",
    "clip_id": "c0",
    "start_s": 0.0,
    "end_s": 5.0,
    "duration_s": 5.0,
    "fps": 24.0,
    "width": 640,
    "height": 360,
    "bit_rate": 1_000_000,
    "frames_uri": "frames/00aa",
    "rejected_by": [],
    "crop_x": 0,
    "crop_y": 0,
    "crop_w": 640,
    "crop_h": 360,
    "text_area": 0.0,
    "text_area_kept": 0.0,
    "text_static": 0.0,
    "text_boxes": [],
    "overlay_area": 0.0,
    "overlay_area_kept": 0.0,
    "overlay_boxes": [],
    "border_area": 0.0,
    "blur": 1000.0,
    "motion_bg": 0.05,
    "motion_fg": 0.05,
    "motion": 0.05,
    "aesthetic": 8.0,
    "keep": True,
}


def clip(**changes: Any) -> dict[str, Any]:
    """The row of a good clip, with changes."""
    return CLIP | changes


def write(root: Path, last_step: str, rows: list[dict[str, Any]], shard: str = "shard") -> str:
    """A shard's table as ``last_step`` leaves it; returns its URI."""
    assert last_step in STEPS
    fields = schema(last_step)
    table = pa.Table.from_pylist([{name: row.get(name) for name in fields.names} for row in rows], schema=fields)
    uri = str(root / "steps" / last_step.replace(" ", "-") / f"{shard}-0123.parquet")
    storage.write_table(table, uri)
    return uri


def read(uri: str) -> list[dict[str, Any]]:
    return storage.read_table(uri).to_pylist()
