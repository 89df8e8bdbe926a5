"""The copy of a manifest on a machine's own disk: one process makes it, and all processes map it into memory.

rows.arrow    the columns that training reads, in the order of the files
index.arrow   which rows each bucket has, and what is asked of all of them at once; written last
"""

import fcntl
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from media.whole_file import writing
from training.data.buckets import ASPECTS
from training.data.columns import ContentHash, row_hashes
from training.data.repeats import RowFiles, repeated_rows
from training.data.schema import SCHEMA, ManifestError, as_clips, check_columns, check_rows

ROWS_AT_ONCE = 32_768  # about 32 MB of captions; Arrow reads any one row of such a batch without the others
LAST = np.iinfo(np.int64).max  # sorts rows behind all buckets
BLANK = {"caption_short": 1, "caption_detailed": 2}  # bits of the index's column ``blank``
INDEX = {
    "row": np.dtype(np.int64),
    "short_side": np.dtype(np.int32),
    "crop_w": np.dtype(np.int32),
    "crop_h": np.dtype(np.int32),
    "duration_s": np.dtype(np.float32),
    "blank": np.dtype(np.uint8),
}


def once(file: Path, make: Callable[[Path], None]) -> None:
    """Make a file that the processes of a machine share, unless it is there: one makes it, the others wait for it.

    ``make`` writes it whole or not at all. A process that dies while it writes leaves the lock to the next.
    """
    if file.is_file():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed, or the process ends in whatever way
        if not file.is_file():
            make(file)


def write_copy(uris: Sequence[str], index: Path) -> None:
    """Check the manifest's files, and write their rows and the index beside each other.

    ManifestError: a file is none of a manifest, a row cannot be trained on, or two rows disagree about a clip.
    """
    content, found, files = ContentHash(SCHEMA), _Found(), RowFiles(index.with_name("rows.arrow"))
    with writing(str(files.rows)) as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for uri in uris:
            files.uris.append(uri)
            files.firsts.append(found.rows)
            for batch in _ahead(_batches(uri)):
                content.add(batch)
                found.add(batch)
                writer.write_batch(batch)
    try:
        repeats = repeated_rows(np.concatenate(found.ids), files)
    except ManifestError:
        files.rows.unlink()  # gigabytes that nobody will read
        raise
    found.ids.clear()
    write_index(index, found, repeats, content.hexdigest()[:16])


@dataclass
class _Found:
    """What the index is made of, of the rows so far."""

    rows: int = 0
    starts: list[int] = field(default_factory=lambda: [0])
    ids: list[NDArray[np.uint64]] = field(default_factory=list)
    buckets: list[NDArray[np.int64]] = field(default_factory=list)
    columns: dict[str, list[NDArray[np.generic]]] = field(default_factory=lambda: {n: [] for n in INDEX if n != "row"})

    def add(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows
        self.starts.append(self.rows)
        self.ids.append(row_hashes(batch, ["clip_id"], seed=0))
        self.buckets.append(_bucket_numbers(batch))
        width, height = batch["crop_w"].to_numpy(), batch["crop_h"].to_numpy()
        blank = np.zeros(batch.num_rows, np.uint8)
        for name, bit in BLANK.items():
            empty = pc.or_(pc.equal(batch[name], ""), pc.utf8_is_space(batch[name]))  # seen at the first letter
            blank |= empty.to_numpy(zero_copy_only=False) * np.uint8(bit)
        seconds = batch["end_s"].to_numpy() - batch["start_s"].to_numpy()
        values = {
            "short_side": np.minimum(width, height),
            "crop_w": width,
            "crop_h": height,
            "duration_s": seconds,
            "blank": blank,
        }
        for name, column in values.items():
            self.columns[name].append(column.astype(INDEX[name]))


def write_index(index: Path, found: _Found, repeats: NDArray[np.int64], fingerprint: str) -> None:
    """Write the rows in the order of their buckets, those that are counted already last, and what is asked of them."""
    numbers = np.concatenate(found.buckets)
    numbers[repeats] = LAST
    order = np.argsort(numbers, kind="stable")
    values, begins = np.unique(numbers[order], return_index=True)
    ends = [*begins[1:].tolist(), found.rows]
    names = sorted(ASPECTS)
    buckets = [
        [value // len(names), names[value % len(names)], begin, end]
        for value, begin, end in zip(values.tolist(), begins.tolist(), ends, strict=True)
        if value != LAST
    ]
    told = {"fingerprint": fingerprint, "repeated": len(repeats), "starts": found.starts, "buckets": buckets}
    schema = pa.schema([pa.field(n, pa.from_numpy_dtype(t), nullable=False) for n, t in INDEX.items()])
    columns = {"row": order}
    for name in list(found.columns):  # one after the other: each is as long as the manifest
        columns[name] = np.concatenate(found.columns.pop(name))[order]
    batch = pa.RecordBatch.from_arrays(
        [pa.array(columns[name], schema.field(name).type) for name in INDEX], schema=schema
    )
    write_arrow(index, batch, told)


def write_arrow(path: Path, batch: pa.RecordBatch, told: dict[str, Any]) -> None:
    """Write one batch and, at the file's head, ``told`` as JSON; whole or not at all."""
    schema = batch.schema.with_metadata({"told": json.dumps(told)})
    with writing(str(path)) as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))


def read_arrow(path: Path) -> tuple[pa.RecordBatch, dict[str, Any]]:
    """What ``write_arrow`` wrote, mapped: it takes no memory of the process."""
    file = pa.ipc.open_file(pa.memory_map(str(path)))
    return file.get_batch(0), json.loads(file.schema.metadata[b"told"])


def _batches(uri: str) -> Iterator[pa.RecordBatch]:
    """The rows of a file in the columns that training reads, checked. ManifestError: it is none of a manifest."""
    first = 0
    try:
        with fsspec.open(uri, "rb") as file:
            parquet = pq.ParquetFile(file)
            check_columns(uri, parquet.schema_arrow)
            for read in parquet.iter_batches(
                ROWS_AT_ONCE, columns=[n for n in SCHEMA.names if n in parquet.schema_arrow.names]
            ):
                if read.num_rows:
                    batch = as_clips(uri, read)
                    check_rows(uri, batch, first)
                    first += batch.num_rows
                    yield batch
    except pa.ArrowInvalid as problem:
        raise ManifestError(f"{uri} cannot be read: {problem}") from problem
    if not first:
        raise ManifestError(f"{uri} is empty: a bucket without clips cannot be trained on; remove the file")


def _ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same batches, the next one read while the one before is hashed and written."""
    with ThreadPoolExecutor(1) as reader:
        upcoming = reader.submit(next, batches, None)
        while (batch := upcoming.result()) is not None:
            upcoming = reader.submit(next, batches, None)
            yield batch


def _bucket_numbers(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Each row's bucket as one number, in the order of buckets."""
    aspects = {name: number for number, name in enumerate(sorted(ASPECTS))}
    names = batch["bucket_aspect"].dictionary_encode()
    by_name = np.array([aspects[name] for name in names.dictionary.to_pylist()], np.int64)
    return batch["bucket_duration_s"].to_numpy().astype(np.int64) * len(ASPECTS) + by_name[names.indices.to_numpy()]
