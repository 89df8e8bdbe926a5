"""The manifest, as training reads it: kept clips with their captions, by bucket.

Ten million clips with their captions are tens of gigabytes, and every rank wants any row at any time. So the columns
that training needs are copied once into an Arrow file on a local disk, which all ranks of a machine map into memory.
Only the index of the buckets, eight bytes a clip, is a rank's own.
"""

import hashlib
import json
import os
import tempfile
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from numpy.typing import NDArray

from media.whole_file import writing
from training.data.buckets import ASPECTS, Bucket

ROWS_AT_ONCE = 4096
NAMED_IN_ERRORS = 3


class ManifestError(ValueError):
    """A manifest that cannot be trained on; the message names the files and what is wrong with them."""


@dataclass(frozen=True)
class Clip:
    """A row of the manifest; times in seconds, the crop in pixels of the source as displayed."""

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

    @property
    def bucket(self) -> Bucket:
        return Bucket(self.bucket_duration_s, self.bucket_aspect)


_KINDS = {str: pa.string(), float: pa.float64(), int: pa.int32()}
SCHEMA = pa.schema([pa.field(field.name, _KINDS[field.type], nullable=False) for field in fields(Clip)])  # type: ignore[index]


class Manifest:
    """Clips by bucket; rows are read when they are asked for.

    Attributes:
        fingerprint: hash of all that training reads of the clips: the same on every machine that has the same rows.
        rows: for each bucket, in their order, the numbers of its rows, int64.
    """

    def __init__(self, path: Path) -> None:
        """Map a file that ``open_manifest`` wrote."""
        self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        self.fingerprint = self._file.schema.metadata[b"fingerprint"].decode()
        batches = [self._file.get_batch(i) for i in range(self._file.num_record_batches)]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)]).tolist()
        keys = [_bucket_numbers(batch) for batch in batches]
        numbers = np.concatenate(keys) if keys else np.zeros(0, np.int64)
        order = np.argsort(numbers, kind="stable")
        found, begins = np.unique(numbers[order], return_index=True)
        parts = np.split(order, begins[1:])
        names = list(ASPECTS)
        buckets = [Bucket(int(n) // len(names), names[int(n) % len(names)]) for n in found]
        self.rows: dict[Bucket, NDArray[np.int64]] = dict(sorted(zip(buckets, parts, strict=True)))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def clip(self, row: int) -> Clip:
        """The clip in row number ``row``."""
        number = bisect_right(self._starts, row) - 1
        part = self._file.get_batch(number).slice(row - self._starts[number], 1)
        return Clip(**part.to_pylist()[0])


def open_manifest(uris: Sequence[str], cache: Path | None = None) -> Manifest:
    """Open one or more manifests as one.

    Args:
        uris: folders or buckets with Parquet files below them, as curation leaves them in ``OUT/manifest``.
        cache: local folder for the copy that is mapped; by default one of the system's temporary files.

    Raises:
        ManifestError: nothing is there, or a file is empty or of another schema.
    """
    files = [file for uri in uris for file in _parquet_files(uri)]
    cache = cache or Path(tempfile.gettempdir()) / f"contentv-manifests-{os.getuid()}"
    copy = cache / f"{hashlib.sha256(json.dumps(files).encode()).hexdigest()[:24]}.arrow"
    if not copy.is_file():
        _copy([uri for uri, _ in files], copy)
    return Manifest(copy)


def _parquet_files(uri: str) -> list[tuple[str, str]]:
    """URIs of the Parquet files below ``uri``, sorted, each with a token that changes when the file does."""
    fs, path = url_to_fs(uri)
    if not fs.exists(path):
        raise ManifestError(f"manifest {uri!r} does not exist")
    found = fs.find(path, detail=True)
    files = []
    for name, info in sorted(found.items()):
        if name.endswith(".parquet"):
            version = info.get("ETag") or info.get("md5Hash") or info.get("mtime") or info.get("LastModified")
            files.append((fs.unstrip_protocol(name), f"{info['size']} {version}"))
    if not files:
        raise ManifestError(f"manifest {uri!r} holds no Parquet file ({len(found)} others)")
    return files


def _copy(uris: Sequence[str], target: Path) -> None:
    """Check the files, and write their rows as one Arrow file, whole or not at all."""
    digest = hashlib.sha256()
    for uri in uris:  # read twice: the fingerprint stands at the head of the file
        for batch in _batches(uri):
            digest.update(_content(batch))
    schema = SCHEMA.with_metadata({"fingerprint": digest.hexdigest()[:16]})
    with writing(str(target)) as file, pa.ipc.new_file(file, schema) as writer:
        for uri in uris:
            for batch in _batches(uri):
                writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))


def _batches(uri: str) -> list[pa.RecordBatch]:
    """The columns that training reads. ManifestError for a file that is none of ours."""
    try:
        with fsspec.open(uri, "rb") as file:
            parquet = pq.ParquetFile(file)
            missing = [name for name in SCHEMA.names if name not in parquet.schema_arrow.names]
            if missing:
                raise ManifestError(
                    f"{uri} is no manifest: it lacks the columns {_some(missing)}; "
                    "a manifest is what curate-videos writes to OUT/manifest"
                )
            table = parquet.read(columns=SCHEMA.names).select(SCHEMA.names)
    except pa.ArrowInvalid as problem:
        raise ManifestError(f"{uri} cannot be read: {problem}") from problem
    if not table.num_rows:
        raise ManifestError(f"{uri} is empty: a bucket without clips cannot be trained on; remove the file")
    nulls = [name for name in SCHEMA.names if table[name].null_count]
    if nulls:
        raise ManifestError(f"{uri} has rows without {_some(nulls)}")
    try:
        table = table.cast(SCHEMA)
    except (pa.ArrowInvalid, ValueError) as problem:
        raise ManifestError(f"{uri} has columns of another type: {problem}") from problem
    unknown = set(table["bucket_aspect"].to_pylist()) - set(ASPECTS)
    if unknown:
        raise ManifestError(f"{uri} has buckets of aspect ratio {_some(sorted(unknown))}; known: {', '.join(ASPECTS)}")
    return table.combine_chunks().to_batches(max_chunksize=ROWS_AT_ONCE)


def _content(batch: pa.RecordBatch) -> bytes:
    """Bytes that are the same for the same rows, wherever they were stored."""
    return json.dumps(batch.to_pylist(), sort_keys=True).encode()


def _bucket_numbers(batch: pa.RecordBatch) -> NDArray[np.int64]:
    aspects: dict[Any, int] = {name: number for number, name in enumerate(ASPECTS)}
    names = batch.column("bucket_aspect").dictionary_encode()
    by_name = np.array([aspects[name] for name in names.dictionary.to_pylist()], np.int64)
    seconds = batch.column("bucket_duration_s").to_numpy().astype(np.int64)
    return seconds * len(ASPECTS) + by_name[names.indices.to_numpy()]


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED_IN_ERRORS
    return ", ".join(names[:NAMED_IN_ERRORS]) + (f" and {more} more" if more > 0 else "")
