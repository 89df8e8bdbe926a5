"""What every step shares: where its result is kept, when it is already there, and how it becomes a Prefect task.

A step reads a shard's table and writes a new one. The name of the new file is a hash of all that decides its content:
the table it read, the step's config and the step's version. So a file that exists is a result that is known: the same
run started again, after a crash or with one threshold changed, finds what it has done and does the rest.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any, TypeVar

import cv2
import pyarrow as pa
from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict

from tasks.tables import storage
from tasks.tables.crop import Box, crop_of, cut_out
from tasks.tables.frame_store import Frame, FramePair, FrameStore, open_frames
from tasks.tables.picture import Image
from tasks.tables.schema import COLUMNS

R = TypeVar("R")
Row = dict[str, Any]

# Columns of earlier steps that scoring may change.
SCORING_CHANGES = ("error", "rejected_by", "crop_x", "crop_y", "crop_w", "crop_h")

cv2.setNumThreads(1)  # steps run clips side by side: threads inside a filter would only contend


class StepConfig(BaseModel):
    """Base of all step configs: immutable, and a misspelt option is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Clip:
    """A clip as scoring sees it: its row, and its frames from the frame store."""

    row: Row
    store: FrameStore

    @property
    def crop(self) -> Box:
        return crop_of(self.row)

    @property
    def span(self) -> tuple[float, float]:
        """Start and end in seconds; an image, which has no duration, spans its only frame."""
        return self.row["start_s"], self.row["end_s"] if self.row["duration_s"] else inf

    def frames(self, limit: int | None = None, cropped: bool = True) -> list[Frame]:
        """Sampled frames inside the clip, RGB uint8, at most ``limit``, evenly spread."""
        found = self.store.frames(*self.span, limit)
        return [Frame(f.time_s, self._seen(f.image)) for f in found] if cropped else found

    def pairs(self, limit: int | None = None, cropped: bool = True) -> list[FramePair]:
        """Frame pairs inside the clip, for optical flow, at most ``limit``, evenly spread."""
        found = self.store.pairs(*self.span, limit)
        if not cropped:
            return found
        return [FramePair(p.time_s, p.gap_s, self._seen(p.first), self._seen(p.second)) for p in found]

    def _seen(self, image: Image) -> Image:
        return cut_out(image, self.crop, self.row["width"], self.row["height"])


def key_of(*parts: Any) -> str:
    """A short hash of JSON-able values, the same on every machine."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


def root_of(table: str) -> str:
    """The output folder OUT of a step's table OUT/steps/<step>/<shard>-<key>.parquet."""
    return table.rsplit("/", 3)[0]


def shard_of(table: str) -> str:
    """The name of the shard whose table this is."""
    return table.rsplit("/", 1)[1].split("-")[0]


def result_uri(table: str, step: str, config: BaseModel, version: int) -> str:
    """Where ``step`` keeps what it makes of ``table``."""
    before = table.rsplit("-", 1)[1].removesuffix(".parquet")
    key = key_of(before, step, version, config.model_dump(mode="json"))
    return storage.join(root_of(table), "steps", step.replace(" ", "-"), f"{shard_of(table)}-{key}.parquet")


def is_live(row: Row) -> bool:
    """Whether a row is a clip still worth measuring: no error, no duplicate, not too short."""
    return row["clip_id"] is not None and not row["rejected_by"]


def cores() -> int:
    """Cores that this process may use: those it is bound to, and no more than OMP_NUM_THREADS, which Ray sets."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(bound, max(1, int(asked))) if asked.isdecimal() else bound


def side_by_side(work: Callable[[Any], R], items: Sequence[Any]) -> Iterator[R]:
    """``map`` over threads, one a core that this process may use; results in order."""
    with ThreadPoolExecutor(cores()) as pool:
        yield from pool.map(work, items)


def by_source(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows grouped by frame store, in their order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["frames_uri"], []).append(row)
    return list(groups.values())


@contextmanager
def frames_of(table: str, row: Row) -> Iterator[FrameStore]:
    """The frame store of a row's source. ``frames_uri`` is relative to OUT, so that OUT can be moved.

    FileNotFoundError where it was deleted, with what brings it back: that is no error of the clip.
    """
    root = root_of(table)
    uri = storage.join(root, row["frames_uri"], "samples.parquet")
    if not storage.exists(uri):
        remedy = (
            f"to decode the sources again, remove {storage.join(root, 'steps', 'scan')} and {uri.rsplit('/', 1)[0]}"
        )
        raise FileNotFoundError(f"frame store {uri} is gone; {remedy}")
    with open_frames(uri) as store:
        yield store


def with_columns(old: pa.Table, rows: Sequence[Row], fields: Sequence[pa.Field]) -> pa.Table:
    """``old`` with ``fields`` set from ``rows`` (replaced in place where they exist, else added on the right)."""
    for field in fields:
        values = pa.array([row.get(field.name) for row in rows], field.type)
        place = old.schema.get_field_index(field.name)
        old = old.append_column(field, values) if place < 0 else old.set_column(place, field, values)
    return old


def fields_of(step: str) -> list[pa.Field]:
    return [pa.field(name, kind, metadata={"meaning": meaning}) for name, kind, meaning in COLUMNS[step]]


@contextmanager
def errors_of(rows: Sequence[Row], step: str) -> Iterator[None]:
    """What cannot be measured becomes the ``error`` of ``rows``, and the others go on; a disk's errors end the step."""
    try:
        yield
    except (ArithmeticError, LookupError, ValueError, RuntimeError, cv2.error) as problem:
        for row in rows:
            row["error"] = f"{step}: {problem}"
            row["rejected_by"] = [*row["rejected_by"], "error"]


def score_clips(
    table: str,
    step: str,
    config: BaseModel,
    score: Callable[[Clip], Row],
    version: int = 1,
    fields: Sequence[pa.Field] | None = None,
) -> str:
    """Measure every live clip of a shard with ``score`` and write the shard's table with the columns it returns.

    ``score`` returns values for the step's columns, and may move the crop (``crop_x`` ...). An exception on one clip
    becomes that row's ``error``; the others go on. Returns the URI of the new table.
    """
    result = result_uri(table, step, config, version)
    if storage.exists(result):
        return result
    fields = fields_of(step) if fields is None else fields
    old = storage.read_table(table)
    rows = old.to_pylist()

    def score_one(row: Row) -> None:
        with errors_of([row], step), frames_of(table, row) as store:
            row.update(score(Clip(row, store)))

    list(side_by_side(score_one, [row for row in rows if is_live(row)]))
    changed = [old.schema.field(name) for name in SCORING_CHANGES]
    storage.write_table(with_columns(old, rows, [*changed, *fields]), result)
    return result


def derive_rows(
    table: str,
    step: str,
    config: BaseModel,
    derive: Callable[[Row], Row],
    version: int = 1,
    changes: Sequence[str] = (),
) -> str:
    """Write a shard's table with the step's columns derived row by row from the columns before.

    ``derive`` returns values for the step's columns and for those earlier ones named in ``changes``; what it does not
    return is null, or stays as it is. Returns the URI of the new table.
    """
    result = result_uri(table, step, config, version)
    if not storage.exists(result):
        old = storage.read_table(table)
        rows = [row | derive(row) for row in old.to_pylist()]
        changed = [old.schema.field(name) for name in changes]
        storage.write_table(with_columns(old, rows, [*changed, *fields_of(step)]), result)
    return result


def step_task(name: str) -> Callable[[Callable[..., R]], Task[..., R]]:
    """Turn a step's function into a Prefect task whose runs are called after the step and the shard.

    Prefect's own cache is off: a result is known by its file (see above), also to another server or none.
    """

    def run_name(parameters: dict[str, Any]) -> str:
        table = parameters.get("table")
        return f"{name} · {shard_of(table)}" if isinstance(table, str) else name

    # Prefect's protocol for such a callable asks for more than Prefect uses.
    return task(name=name, task_run_name=run_name, cache_policy=NO_CACHE, persist_result=False)  # type: ignore[arg-type]
