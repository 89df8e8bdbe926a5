"""Rows and tables for tests of single steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.curation.embed import SOURCES_PER_GROUP
from tasks.curation.scores import SCORES
from tasks.tables import storage
from tasks.tables.frame_store import FrameStoreWriter, Image
from tasks.tables.keys import folder_of
from tasks.tables.rows import narrow
from tasks.tables.schema import fields_of, wide_schema

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
    "source_bytes": 625_000,
    "frames_uri": "frames/00aa",
    "error": None,
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

# The steps of a shard in order, each with the columns of its table.
FIELDS: dict[str, list[pa.Field]] = {
    **{step: fields_of(step) for step in ("scan", "dedup sources", "cut", "dedup clips")},
    **{score.name: [pa.field("clip_id", pa.string()), *score.fields] for score in SCORES},
    **{step: fields_of(step) for step in ("verdict", "caption", "buckets")},
}


def clip(**changes: Any) -> dict[str, Any]:
    """The row of a good clip, with changes."""
    return CLIP | changes


def seconds_of(sources: int, clips: int) -> list[dict[str, Any]]:
    """The rows of small sources, named by their numbers, each cut into clips of one second."""
    return [
        clip(
            clip_id=f"{s}{c}",
            source_uri=f"/v/{s}.mp4",
            source_id=f"id{s}",
            frames_uri=f"frames/{s}",
            width=64,
            height=36,
        )
        | {"crop_w": 64, "crop_h": 36, "start_s": float(c), "end_s": c + 1.0, "duration_s": 1.0}
        for s in range(sources)
        for c in range(clips)
    ]


def write(root: Path, step: str, rows: Sequence[dict[str, Any]], shard: str = "shard", key: str = "0123") -> str:
    """The table that ``step`` writes of a shard: of ``rows`` its own columns. Returns its URI."""
    uri = str(root / "steps" / folder_of(step) / f"{shard}-{key}.parquet")
    own = narrow(rows, FIELDS.get(step) or fields_of(step))
    storage.write_table(own, uri, SOURCES_PER_GROUP if step == "embed" else None)
    return uri


def tables(root: Path, last: str, rows: Sequence[dict[str, Any]], shard: str = "shard", key: str = "0123") -> list[str]:
    """The tables of a shard up to step ``last``, which together say what ``rows`` say: the error and the reasons of
    a row are in the table of clips."""
    steps = list(FIELDS)[: list(FIELDS).index(last) + 1]
    blameless = [row | {"error": None, "rejected_by": []} for row in rows]
    sources = list({row["source_uri"]: row for row in reversed(blameless)}.values())[::-1]
    clips = [row for row in blameless if row["clip_id"]]
    by_step = {"scan": sources, "dedup sources": [row | {"duplicate_of": None} for row in sources], "cut": rows}
    return [write(root, step, by_step.get(step, clips), shard, key) for step in steps]


def wide(root: Path, rows: Sequence[dict[str, Any]], shard: str = "shard") -> str:
    """The wide table of a shard, as OUT/clips publishes it; returns its URI."""
    uri = str(root / "steps" / "clips" / f"{shard}-0123.parquet")
    storage.write_table(narrow(rows, list(wide_schema(SCORES))), uri)
    return uri


def read(uri: str) -> list[dict[str, Any]]:
    return storage.read_table(uri).to_pylist()


def store(root: Path, images: Sequence[Image], frames_uri: str = "frames/00aa", partners: bool = True) -> None:
    """The frame store of a source with two pictures a second; each is its own partner, 0.1 s later."""
    with storage.writing(str(root / frames_uri / "samples.parquet")) as out:
        writer = FrameStoreWriter(out)
        for i, image in enumerate(images):
            writer.add(i / 2, image, i / 2 + 0.1 if partners else None, image if partners else None)
        writer.close()


def half_bright(samples: int = 10) -> list[Image]:
    """Pictures of 64 x 36 pixels, black on the left and of level 200 on the right."""
    image = np.zeros((36, 64, 3), np.uint8)
    image[:, 32:] = 200
    return [image] * samples
