"""The manifest, as training reads it: kept clips with their captions, by bucket.

Ten million clips with their captions are gigabytes, and every rank wants any row at any time. So the columns that
training needs are copied once into Arrow files on a local disk, with an index of the buckets, which all processes of a
machine map into memory: none of them holds as much as a byte a clip of its own.
"""

import hashlib
import json
import os
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from fsspec.core import url_to_fs
from numpy.typing import NDArray

from training.data.buckets import Bucket
from training.data.local_copy import once, read_arrow, write_copy
from training.data.schema import SCHEMA, Clip, ManifestError

__all__ = ["SCHEMA", "Clip", "Manifest", "ManifestError", "Rows", "open_manifest"]

Rows = NDArray[np.int64]

FORMAT = 3  # of the copy; one that an earlier version of this program left is not read
LOOKED_AT = 256  # rows for each caption that is asked for


class Manifest:
    """Clips by bucket; rows are read when they are asked for.

    Attributes:
        fingerprint: hash of all that training reads of the clips: the same on every machine that has the same rows.
        repeated: rows whose clip an earlier row has too; they are in no bucket.
        rows: for each bucket, in their order, the numbers of its rows, int64, ascending.
        folder: of the local copy.
    """

    def __init__(self, folder: Path) -> None:
        """Map the files that ``open_manifest`` wrote."""
        self.folder = folder
        self._file = pa.ipc.open_file(pa.memory_map(str(folder / "rows.arrow")))
        self._index, told = read_arrow(folder / "index.arrow")
        self.fingerprint: str = told["fingerprint"]
        self.repeated: int = told["repeated"]
        self._starts: list[int] = told["starts"]
        self._slices = {Bucket(seconds, aspect): slice(first, end) for seconds, aspect, first, end in told["buckets"]}
        self.rows: dict[Bucket, Rows] = {bucket: self.column("row", bucket) for bucket in self._slices}

    def __len__(self) -> int:
        return sum(map(len, self.rows.values()))

    def column(self, name: str, bucket: Bucket) -> NDArray[Any]:
        """A column of the index (``INDEX`` in local_copy.py) for the rows of a bucket, in their order."""
        return self._index[name].to_numpy()[self._slices[bucket]]

    def clip(self, row: int) -> Clip:
        """The clip in row number ``row``."""
        number = bisect_right(self._starts, row) - 1
        part = self._file.get_batch(number).slice(row - self._starts[number], 1)
        return Clip(**part.to_pylist()[0])

    def captions(self, rows: Rows, name: str, count: int) -> list[str]:
        """The first ``count`` captions of ``rows`` that differ and say something; ``name`` is of their column.

        Fewer where the first rows have no more: not a whole bucket is read for it.
        """
        found: dict[str, None] = {}
        for row in rows[: count * LOOKED_AT]:
            if caption := getattr(self.clip(int(row)), name).strip():
                found[caption] = None
            if len(found) == count:
                break
        return list(found)


def open_manifest(uris: Sequence[str], cache: Path | None = None) -> Manifest:
    """Open one or more manifests as one. The processes of a machine that open the same make one copy.

    Args:
        uris: folders or buckets with Parquet files below them, as curation leaves them in ``OUT/manifest``.
        cache: local folder for the copy that is mapped; by default one of the system's temporary files.

    Raises:
        ManifestError: nothing is there, a file is empty or of another schema, a row cannot be trained on, or two rows
            disagree about a clip.
    """
    files = dict(file for uri in uris for file in _parquet_files(uri))  # each once, also below two of the folders
    cache = cache or Path(tempfile.gettempdir()) / f"contentv-manifests-{os.getuid()}"
    folder = cache / hashlib.sha256(json.dumps([FORMAT, *files.items()]).encode()).hexdigest()[:24]
    once(folder / "index.arrow", partial(write_copy, list(files)))
    return Manifest(folder)


def _parquet_files(uri: str) -> Iterator[tuple[str, str]]:
    """URIs of the Parquet files below ``uri``, sorted, each with a token that changes when the file does."""
    fs, path = url_to_fs(uri)
    if not fs.exists(path):
        raise ManifestError(f"manifest {uri!r} does not exist")
    found = fs.find(path, detail=True)
    files = {name: info for name, info in sorted(found.items()) if name.endswith(".parquet")}
    if not files:
        raise ManifestError(f"manifest {uri!r} holds no Parquet file ({len(found)} others)")
    for name, info in files.items():
        version = info.get("ETag") or info.get("md5Hash") or info.get("mtime") or info.get("LastModified")
        yield fs.unstrip_protocol(name), f"{info['size']} {version}"
