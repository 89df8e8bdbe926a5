"""What training reads of a clip: the columns of a manifest, and what no row of one may say."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from media.naming import first_of
from training.data.buckets import ASPECTS, Bucket


class ManifestError(ValueError):
    """A manifest that cannot be trained on; the message names the files and what is wrong with them."""


@dataclass(frozen=True)
class Clip:
    """A row of the manifest; times in seconds, the crop in pixels of the source as displayed.

    ``clip_id`` is curation's hash of the source's content, start and end. It says nothing of the crop or the words:
    manifests that disagree about those are refused (``training/data/repeats.py``). ``source_id`` and ``source_bytes``
    are hash and size of the file that was curated; empty and 0 where a manifest does not say.
    """

    clip_id: str
    source_uri: str
    start_s: float
    end_s: float
    width: int
    height: int
    crop_x: int
    crop_y: int
    crop_w: int
    crop_h: int
    caption_short: str
    caption_detailed: str
    bucket_aspect: str
    bucket_duration_s: int
    source_id: str = ""
    source_bytes: int = 0

    @property
    def bucket(self) -> Bucket:
        return Bucket(self.bucket_duration_s, self.bucket_aspect)


_KINDS = {str: pa.string(), float: pa.float64(), int: pa.int32()}
_LARGE = {"source_bytes": pa.int64()}
UNSAID: dict[str, str | int] = {"source_id": "", "source_bytes": 0}  # values of columns that a manifest may lack
SCHEMA = pa.schema(
    pa.field(field.name, _LARGE.get(field.name, _KINDS[field.type]), nullable=field.name in UNSAID)  # type: ignore[index]
    for field in fields(Clip)
)


def check_columns(uri: str, found: pa.Schema) -> None:
    """ManifestError unless a file has all columns that training reads."""
    missing = [name for name in SCHEMA.names if name not in found.names and name not in UNSAID]
    if missing:
        raise ManifestError(
            f"{uri} is no manifest: it lacks the columns {first_of(missing)}; "
            "a manifest is what curate-videos writes to OUT/manifest"
        )


def as_clips(uri: str, batch: pa.RecordBatch) -> pa.RecordBatch:
    """The columns of ``SCHEMA`` in its types. ManifestError: values are missing, or of a type that does not fit."""
    table = pa.Table.from_batches([batch])
    for name, value in UNSAID.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.repeat(value, len(table)))
        elif table[name].null_count:
            table = table.set_column(table.column_names.index(name), name, table[name].fill_null(value))
    table = table.select(SCHEMA.names)
    nulls = [name for name in SCHEMA.names if table[name].null_count]
    if nulls:
        raise ManifestError(f"{uri} has rows without {first_of(nulls)}")
    try:
        return table.cast(SCHEMA).combine_chunks().to_batches()[0]
    except (pa.ArrowInvalid, ValueError) as problem:
        raise ManifestError(f"{uri} has columns of another type: {problem}") from problem


def check_rows(uri: str, batch: pa.RecordBatch, first: int) -> None:
    """Look at each row for what would fail when it is trained on, hours later.

    Args:
        batch: rows of ``SCHEMA``.
        first: number of the first in its file.

    ManifestError names the file, the row, the clip and what is wrong, and how many more rows of ``batch`` are so.
    """
    unknown = set(pc.unique(batch["bucket_aspect"]).to_pylist()) - set(ASPECTS)
    if unknown:
        raise ManifestError(
            f"{uri} has buckets of aspect ratio {first_of(sorted(unknown))}; known: {', '.join(ASPECTS)}"
        )
    for words, wrong in _faults(batch):
        if places := np.flatnonzero(wrong).tolist():
            row = batch.slice(places[0], 1).to_pylist()[0]
            more = f"; so are {len(places) - 1} rows after it" if len(places) > 1 else ""
            named = f"row {first + places[0]}, clip {row['clip_id']!r}"
            raise ManifestError(f"{uri}, {named}: {words.format(**row)}{more}")


def _faults(batch: pa.RecordBatch) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """What may be wrong with a row, in words with its columns' names, and which rows are so."""
    start, end = (batch[name].to_numpy() for name in ("start_s", "end_s"))
    width, height, x, y, crop_w, crop_h, seconds = (
        batch[name].to_numpy().astype(np.int64)  # sums of the columns' int32 would wrap around
        for name in ("width", "height", "crop_x", "crop_y", "crop_w", "crop_h", "bucket_duration_s")
    )
    for name in ("clip_id", "source_uri"):
        yield f"its {name} is empty", pc.equal(batch[name], "").to_numpy(zero_copy_only=False)
    yield "its picture of {width} x {height} pixels has no size", (width < 1) | (height < 1)
    yield "its crop of {crop_w} x {crop_h} pixels has no size", (crop_w < 1) | (crop_h < 1)
    outside = (x < 0) | (y < 0) | (x + crop_w > width) | (y + crop_h > height)
    yield (
        "its crop of {crop_w} x {crop_h} pixels at {crop_x}, {crop_y} is not inside its picture of {width} x {height}",
        outside,
    )
    yield "it is from {start_s} to {end_s} s, which are no times", ~(np.isfinite(start) & np.isfinite(end))
    yield "its bucket of {bucket_duration_s} s is none", seconds < 0
    yield "it ends at {end_s} s, and starts at {start_s} s", (seconds > 0) & (end <= start)
