"""Captions (report, section 3.3). In profile ``lite`` a template says what the scores say, and no more.

``caption_model`` marks the captions as template text, so that nobody trains on them by mistake. The seam for a
multimodal model is a ``Captioner``.

A caption is the dearest thing that curation makes, so it is made once: OUT/captions holds a file for every source, and
in it each caption under a key of the clip, its crop, the model, and what else the model read. A threshold that lets a
clip in again finds its caption there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from tasks.tables import storage
from tasks.tables.clip import by_source
from tasks.tables.guard import Faults, guarded
from tasks.tables.keys import key_of, root_of
from tasks.tables.rows import joined, narrow
from tasks.tables.schema import field_of, fields_of
from tasks.tables.step import Made, Row, kept, side_by_side, step_task

LITE = "template-lite"
VERSION = 3
CAPTION = ("caption_short", "caption_detailed", "caption_model")
STORED = [pa.field("key", pa.string()), *(field_of(name) for name in CAPTION)]


def amount(speed: float | None, still: float, fast: float) -> str:
    """``speed`` in words; the bounds are in frame diagonals per second."""
    if speed is None:
        return "unmeasured"
    return "no" if speed < still else "slow" if speed < fast else "fast"


def describe(row: Row) -> Row:
    """Template captions of a clip from its measured scores; of what was not measured they say nothing."""
    width, height = row["crop_w"], row["crop_h"]
    shape = "landscape" if width > 1.1 * height else "portrait" if height > 1.1 * width else "square"
    if not row["duration_s"]:
        short = f"A {shape} photograph."
        detailed = f"{short} {width} by {height} pixels{_scored(', aesthetic score', row['aesthetic'], 1)}."
    else:
        camera = amount(row["motion_bg"], still=0.005, fast=0.15)
        subject = amount(row["motion_fg"], still=0.01, fast=0.15)
        short = f"A {shape} video with {camera} camera movement and {subject} subject movement."
        rate = "" if row["fps"] is None else f" at {row['fps']:.0f} frames per second"
        detailed = f"{short} It lasts {row['duration_s']:.1f} seconds{rate}, {width} by {height} pixels"
        if row["motion_bg"] is not None and row["motion_fg"] is not None:
            detailed += (
                f". The background moves {row['motion_bg']:.3f} and the foreground {row['motion_fg']:.3f} "
                "frame diagonals per second"
            )
        detailed += f"{_scored('; aesthetic score', row['aesthetic'], 1)}."
    return {"caption_short": short, "caption_detailed": detailed, "caption_model": LITE}


def _scored(words: str, value: float | None, digits: int) -> str:
    return "" if value is None else f"{words} {value:.{digits}f}"


@dataclass(frozen=True)
class Captioner:
    """What writes captions: its name, the columns that it reads besides the pictures, and how."""

    model: str
    reads: tuple[str, ...]
    describe: Callable[[Row], Row]

    def key(self, row: Row) -> str:
        """What a caption of ``row`` depends on: which pictures, how they are cropped, and who says what of them."""
        seen = [row[name] for name in ("clip_id", "frames_uri", "crop_x", "crop_y", "crop_w", "crop_h")]
        return key_of(self.model, VERSION, seen, [row[name] for name in self.reads])


TEMPLATE = Captioner(LITE, ("width", "height", "duration_s", "fps", "motion_bg", "motion_fg", "aesthetic"), describe)


def captions_of(root: str, rows: Sequence[Row], captioner: Captioner, faults: Faults) -> dict[str, Row]:
    """The captions of kept clips of one source, by ``clip_id``: those that are kept, and those that are missing."""
    uri = storage.join(root, "captions", f"{rows[0]['source_id']}.parquet")
    stored = storage.read_table(uri).to_pylist() if storage.exists(uri) else []
    known = {row["key"]: row for row in stored}
    found: dict[str, Row] = {}
    new = []
    for row in rows:
        own = {"source_uri": row["source_uri"], "error": None}
        with guarded([own], "caption", faults):
            key = captioner.key(row)
            if key not in known:
                known[key] = {"key": key} | captioner.describe(row)
                new.append(known[key])
            found[row["clip_id"]] = {name: known[key][name] for name in CAPTION}
        if own["error"]:
            found[row["clip_id"]] = {"error": own["error"]}
    if new:
        storage.write_table(narrow([*stored, *new], STORED), uri)
    return found


@step_task("caption")
def caption(tables: list[str]) -> list[str]:
    """Caption every kept clip of a shard; returns ``tables`` and the one with the captions."""

    def make() -> Made:
        clips = [row for row in joined(tables) if row["clip_id"]]
        faults = Faults()
        groups = by_source([row for row in clips if row["keep"]])
        parts = side_by_side(lambda rows: captions_of(root_of(tables[0]), rows, TEMPLATE, faults), groups)
        found = {clip_id: row for part in parts for clip_id, row in part.items()}
        rows = [{"clip_id": row["clip_id"]} | found.get(row["clip_id"], {}) for row in clips]
        return Made(narrow(rows, fields_of("caption")), finished=not faults.passed)

    return [*tables, kept(tables, "caption", [VERSION, LITE], make)]
