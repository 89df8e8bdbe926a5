"""Arithmetic on whole columns of a manifest: content hashes of millions of rows, and none becomes a Python object."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]


class ContentHash:
    """Hash of the rows of a table, the same however they are cut into files, row groups and batches."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._parts = {field.name: (hashlib.sha256(), hashlib.sha256()) for field in schema}  # lengths, values

    def add(self, batch: pa.RecordBatch) -> None:
        """Add the next rows, without nulls."""
        for field in self._schema:
            lengths, values = self._parts[field.name]
            column = batch[field.name]
            if pa.types.is_string(field.type):
                bounds, data = text_of(column)
                lengths.update(np.diff(bounds).astype(np.int32).data)
                values.update(data.data)
            else:
                values.update(np.ascontiguousarray(column.to_numpy()).data)

    def hexdigest(self) -> str:
        whole = hashlib.sha256(str(self._schema).encode())
        for lengths, values in self._parts.values():
            whole.update(lengths.digest() + values.digest())
        return whole.hexdigest()


def text_of(column: pa.StringArray) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Where the texts of a column begin and end, n + 1 places from 0, and their bytes in UTF-8, one after the other."""
    _, offsets, data = column.buffers()
    bounds = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    text = np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]] if data is not None else np.zeros(0, np.uint8)
    return bounds - bounds[0], text


def row_hashes(batch: pa.RecordBatch, names: Sequence[str], seed: int) -> Hashes:
    """64 bits of each row's values in the columns ``names``: sums of their bytes, each times a random number."""
    random = np.random.default_rng(seed)
    found = np.zeros(batch.num_rows, np.uint64)
    for name in names:
        column = batch[name]
        if pa.types.is_string(column.type):
            bounds, text = text_of(column)
        else:
            text = np.ascontiguousarray(column.to_numpy()).view(np.uint8)
            bounds = np.arange(batch.num_rows + 1) * (len(text) // max(1, batch.num_rows))
        lengths = np.diff(bounds)
        factors = random.integers(2**64, size=int(lengths.max(initial=0)) + 1, dtype=np.uint64)
        places = np.arange(len(text)) - np.repeat(bounds[:-1], lengths)
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum((text + np.uint64(1)) * factors[places])])
        found = mixed(found ^ mixed(sums[bounds[1:]] - sums[bounds[:-1]]))
    return found


def mixed(values: Hashes) -> Hashes:
    """Each value's bits stirred, one to one: the finaliser of SplitMix64 (Steele et al., 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
