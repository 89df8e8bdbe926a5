"""The columns of every table that curation writes: names, types, units and meaning, in one place.

The wide table OUT/clips has a row for every clip, and for every source that yields none (``clip_id`` null, with its
reason). Its columns are those of the steps below, of the declared scores, and what an input list passed through. Column
names are fixed, since other programs read them.
"""

from collections.abc import Iterable, Sequence

import pyarrow as pa

from tasks.tables.score import Score

BOX = pa.struct([("x", pa.int32()), ("y", pa.int32()), ("w", pa.int32()), ("h", pa.int32())])
SEGMENT = pa.struct([("start_s", pa.float64()), ("end_s", pa.float64()), ("width", pa.int32()), ("height", pa.int32())])

CLIP_ID = (
    "hash of source content, start and end: which seconds of which bytes, wherever they are stored; it does not change "
    "with the crop, the scores or the captions; null: the source yields no clip"
)

# Pixels are those of the source as displayed: turned upright, with square pixels.
_MEANINGS: dict[str, tuple[pa.DataType, str]] = {
    "source_uri": (pa.string(), "where the source is stored"),
    "source_id": (pa.string(), "hash of the source's bytes"),
    "clip_id": (pa.string(), CLIP_ID),
    "start_s": (pa.float64(), "presentation time of the clip's first frame, as stored in the container"),
    "end_s": (pa.float64(), "presentation time at which the clip's last frame ends (exclusive)"),
    "duration_s": (pa.float64(), "end_s - start_s"),
    "fps": (pa.float64(), "mean frames per second of the source; 0 for an image"),
    "width": (pa.int32(), "width of the source as displayed, pixels"),
    "height": (pa.int32(), "height of the source as displayed, pixels"),
    "bit_rate": (pa.int64(), "bits per second of the source file; for an image its size in bits"),
    "source_bytes": (pa.int64(), "size of the source file, bytes"),
    "frames_uri": (pa.string(), "the source's frame store, relative to the output folder"),
    "segments": (pa.list_(SEGMENT), "stretches of the source without a hole in time, each of one picture size"),
    "error": (pa.string(), "what went wrong, in words; null: nothing"),
    "rejected_by": (pa.list_(pa.string()), "every reason for which the row is not kept"),
    "embedding": (pa.list_(pa.float32()), "unit vector of the source, for duplicate search"),
    "signature": (pa.binary(), "the source as a film of 48 x 48 luma bytes a frame, to verify duplicates with"),
    "duplicate_of": (pa.string(), "source_id (of a source) or clip_id (of a clip) of the copy that stays"),
    "crop_x": (pa.int32(), "left edge of what training sees, pixels"),
    "crop_y": (pa.int32(), "top edge of what training sees, pixels"),
    "crop_w": (pa.int32(), "width of what training sees, pixels"),
    "crop_h": (pa.int32(), "height of what training sees, pixels"),
    "keep": (pa.bool_(), "whether training may read the clip"),
    "caption_short": (pa.string(), "one sentence"),
    "caption_detailed": (pa.string(), "a paragraph"),
    "caption_model": (pa.string(), "what wrote the captions"),
    "bucket_aspect": (pa.string(), "nearest of the seven aspect ratios, as 16x9"),
    "bucket_duration_s": (pa.int32(), "nearest number of whole seconds; 0 for an image"),
}

# The narrow table of each step: the id of its rows first, then its own columns.
STEPS: dict[str, tuple[str, ...]] = {
    "scan": (
        *("source_uri", "source_id", "start_s", "end_s", "duration_s", "fps", "width", "height", "bit_rate"),
        *("source_bytes", "frames_uri", "segments", "error"),
    ),
    "embed": ("source_uri", "source_id", "embedding", "signature", "error"),
    "dedup sources": ("source_uri", "duplicate_of", "error", "rejected_by"),
    "cut": (
        *("source_uri", "clip_id", "start_s", "end_s", "duration_s", "width", "height"),
        *("crop_x", "crop_y", "crop_w", "crop_h", "error", "rejected_by"),
    ),
    "dedup clips": ("clip_id", "duplicate_of", "error", "rejected_by"),
    "verdict": ("clip_id", "keep", "error", "rejected_by"),
    "caption": ("clip_id", "caption_short", "caption_detailed", "caption_model", "error"),
    "buckets": ("clip_id", "bucket_aspect", "bucket_duration_s", "error"),
}

# The wide table, in order; the columns of scores stand between.
_BEFORE_SCORES = (
    *("source_uri", "source_id", "clip_id", "start_s", "end_s", "duration_s", "fps", "width", "height", "bit_rate"),
    *("source_bytes", "frames_uri", "error", "rejected_by", "duplicate_of", "crop_x", "crop_y", "crop_w", "crop_h"),
)
_AFTER_SCORES = ("keep", "caption_short", "caption_detailed", "caption_model", "bucket_aspect", "bucket_duration_s")

RESERVED = frozenset(_MEANINGS)  # no score and no passed-through column may have such a name


def field_of(name: str) -> pa.Field:
    """The column ``name`` of a step's table."""
    kind, meaning = _MEANINGS[name]
    return pa.field(name, kind, metadata={"meaning": meaning})


def fields_of(step: str) -> list[pa.Field]:
    """The columns of the table that ``step`` writes."""
    return [field_of(name) for name in STEPS[step]]


def wide_schema(scores: Sequence[Score], passed_through: Iterable[pa.Field] = ()) -> pa.Schema:
    """The schema of OUT/clips; the meaning of each column is in its metadata."""
    measured = [column.field for score in scores for column in score.columns]
    before, after = ([field_of(name) for name in names] for names in (_BEFORE_SCORES, _AFTER_SCORES))
    return pa.schema([*before, *measured, *after, *passed_through])
