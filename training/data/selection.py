"""Which clips of a manifest a stage takes: large and long enough (report, Figure 2), and what of the others, counted.

What is kept is written beside the local copy of the manifest, once for a machine: its processes map it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from training.data.buckets import NEAREST, Bucket
from training.data.local_copy import once, read_arrow, write_arrow
from training.data.manifest import Manifest, Rows
from training.recipe import Recipe

GRACE_S = 1e-3  # times of clips are rounded to it


@dataclass(frozen=True)
class Selection:
    """The rows that a recipe trains on.

    Attributes:
        rows: for each bucket that has any their numbers, ascending.
        left_out: for each bucket, why clips of it are not trained on, in words, and how many; the first reason counts.
    """

    rows: dict[Bucket, Rows]
    left_out: dict[Bucket, dict[str, int]]

    def reasons(self, videos: bool) -> dict[str, int]:
        """How many videos, or images, are left out for each reason, over all buckets."""
        found: dict[str, int] = {}
        for bucket, counts in self.left_out.items():
            if bool(bucket.duration_s) == videos:
                for reason, count in counts.items():
                    found[reason] = found.get(reason, 0) + count
        return found


def select(manifest: Manifest, recipe: Recipe) -> Selection:
    """The rows of a manifest that a recipe takes. A pure function of both."""
    name = f"selection-{recipe.least_short_side}-{recipe.least_duration_s:.6g}.arrow"
    once(manifest.folder / name, partial(_write, manifest, recipe))
    batch, told = read_arrow(manifest.folder / name)
    rows = batch["row"].to_numpy()
    return Selection(
        {Bucket(seconds, aspect): rows[first:end] for seconds, aspect, first, end in told["kept"]},
        {Bucket(seconds, aspect): counts for seconds, aspect, counts in told["left_out"]},
    )


def _write(manifest: Manifest, recipe: Recipe, path: Path) -> None:
    parts: list[Rows] = [np.zeros(0, np.int64)]
    kept: list[tuple[int, str, int, int]] = []
    left_out: list[tuple[int, str, dict[str, int]]] = []
    first = 0
    for bucket, rows in manifest.rows.items():
        takes = np.ones(len(rows), bool)
        counts: dict[str, int] = {}
        for reason, wrong in _reasons(manifest, bucket, recipe):
            if count := int(np.count_nonzero(wrong & takes)):
                counts[reason] = count
                takes &= ~wrong
        if counts:
            left_out.append((bucket.duration_s, bucket.aspect, counts))
        parts.append(rows[takes])
        if end := len(parts[-1]):
            kept.append((bucket.duration_s, bucket.aspect, first, first + end))
            first += end
    schema = pa.schema([pa.field("row", pa.int64(), nullable=False)])
    batch = pa.RecordBatch.from_arrays([pa.array(np.concatenate(parts))], schema=schema)
    write_arrow(path, batch, {"kept": kept, "left_out": left_out})


def _reasons(manifest: Manifest, bucket: Bucket, recipe: Recipe) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Why clips of a bucket are not trained on, and which."""
    least = recipe.least_short_side
    yield f"smaller than {least} pixels at the shorter side", manifest.column("short_side", bucket) < least
    if bucket.duration_s:
        seconds, least_s = manifest.column("duration_s", bucket), recipe.least_duration_s
        yield f"shorter than {least_s:g} s", seconds < least_s - GRACE_S
        shortest = bucket.duration_s - NEAREST
        yield f"shorter than {shortest:g} s, too short for their bucket", seconds < shortest - GRACE_S
