"""The columns of every table that curation writes: names, types, units and meaning, in one place.

A row is a clip, or a source that yields none (``clip_id`` null, with its reason). Tables grow to the right: each
step adds the columns of its group below and drops no row. Column names are fixed, since other programs read them.
"""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

BOX = pa.struct([("x", pa.int32()), ("y", pa.int32()), ("w", pa.int32()), ("h", pa.int32())])

# step -> [(column, type, meaning)]. Pixels are those of the source as displayed: rotated, with square pixels.
COLUMNS: dict[str, list[tuple[str, pa.DataType, str]]] = {
    "scan": [
        ("source_uri", pa.string(), "where the source is stored"),
        ("source_id", pa.string(), "hash of the source's bytes"),
        ("clip_id", pa.string(), "hash of source content, start and end; null: the source yields no clip"),
        ("start_s", pa.float64(), "presentation time of the clip's first frame, as stored in the container"),
        ("end_s", pa.float64(), "presentation time at which the clip's last frame ends (exclusive)"),
        ("duration_s", pa.float64(), "end_s - start_s"),
        ("fps", pa.float64(), "mean frames per second of the source; 0 for an image"),
        ("width", pa.int32(), "source width as displayed, pixels"),
        ("height", pa.int32(), "source height as displayed, pixels"),
        ("bit_rate", pa.int64(), "bits per second of the source file; for an image its size in bits"),
        ("frames_uri", pa.string(), "the source's frame store"),
        ("error", pa.string(), "what went wrong, in words; null: nothing"),
        ("rejected_by", pa.list_(pa.string()), "every reason for which the row is not kept"),
    ],
    "embed": [
        ("embedding", pa.list_(pa.float32()), "unit vector of the source, for duplicate search"),
        ("signature", pa.binary(), "the source as a film of 48 x 48 luma bytes a frame, to verify duplicates with"),
    ],
    "dedup sources": [
        ("duplicate_of", pa.string(), "source_id (of a source) or clip_id (of a clip) of the copy that stays"),
    ],
    "cut": [
        ("crop_x", pa.int32(), "left edge of what training sees, pixels"),
        ("crop_y", pa.int32(), "top edge of what training sees, pixels"),
        ("crop_w", pa.int32(), "width of what training sees, pixels"),
        ("crop_h", pa.int32(), "height of what training sees, pixels"),
    ],
    "text": [
        ("text_area", pa.float32(), "fraction of the frame under text, mean over the sampled frames"),
        ("text_area_kept", pa.float32(), "the same inside the crop, as a fraction of the crop"),
        ("text_static", pa.float32(), "fraction of the text area that stands still all through the clip"),
        ("text_boxes", pa.list_(BOX), "where text lives: merged boxes, pixels"),
    ],
    "overlays": [
        ("overlay_area", pa.float32(), "fraction of the frame under watermarks and logos"),
        ("overlay_area_kept", pa.float32(), "the same inside the crop, as a fraction of the crop"),
        ("overlay_boxes", pa.list_(BOX), "watermarks and logos, pixels"),
        ("border_area", pa.float32(), "fraction of the frame that is border: black bars, or bars of a blurred copy"),
    ],
    "blur": [("blur", pa.float32(), "variance of the Laplacian (lower is blurrier), median over frames")],
    "motion": [
        ("motion_bg", pa.float32(), "speed of the background, frame diagonals per second"),
        ("motion_fg", pa.float32(), "speed of the foreground against the background, frame diagonals per second"),
        ("motion", pa.float32(), "mean of motion_bg and motion_fg"),
    ],
    "aesthetics": [("aesthetic", pa.float32(), "aesthetic score, mean over key frames")],
    "verdict": [("keep", pa.bool_(), "whether training may read the clip")],
    "caption": [
        ("caption_short", pa.string(), "one sentence"),
        ("caption_detailed", pa.string(), "a paragraph"),
        ("caption_model", pa.string(), "what wrote the captions"),
    ],
    "buckets": [
        ("bucket_aspect", pa.string(), "nearest of the seven aspect ratios, as 16x9"),
        ("bucket_duration_s", pa.int32(), "nearest number of whole seconds; 0 for an image"),
    ],
}

STEPS = tuple(COLUMNS)


def schema(last_step: str) -> pa.Schema:
    """The schema of the table that ``last_step`` writes; the meaning of each field is in its metadata."""
    steps = STEPS[: STEPS.index(last_step) + 1]
    return pa.schema(
        [
            pa.field(name, kind, metadata={"meaning": meaning})
            for step in steps
            for name, kind, meaning in COLUMNS[step]
            if step != "embed" or last_step == "embed"
        ]
    )


def table(rows: Iterable[dict[str, Any]], last_step: str) -> pa.Table:
    """Rows as a table of ``schema(last_step)``; a column that a row lacks is null, an unknown one is an error."""
    fields = schema(last_step)
    rows = list(rows)
    unknown = {name for row in rows for name in row} - set(fields.names)
    if unknown:
        raise KeyError(f"columns not in tasks/tables/schema.py for step {last_step!r}: {sorted(unknown)}")
    return pa.Table.from_pylist(rows, schema=fields)
