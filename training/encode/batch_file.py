"""A batch as an Arrow file, which the trainer maps where a buffer process wrote it."""

import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from training.encode.encoder import Encoded
from training.encode.wire import Stamp, WireError, from_record, read_stamp


def write_file(path: Path, records: Sequence[pa.RecordBatch]) -> None:
    """Records as an Arrow file, whole or not at all.

    Not as ``media.whole_file`` does it, which waits for the disk: a buffer is worth nothing after a crash.
    """
    partial = path.with_name(f"{path.name}.partial")
    with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, records[0].schema) as writer:
        for record in records:
            writer.write_batch(record)
    os.replace(partial, path)


def file_bytes(records: Sequence[pa.RecordBatch]) -> int:
    """What ``write_file`` will write."""
    counter = pa.MockOutputStream()
    with pa.ipc.new_file(counter, records[0].schema) as writer:
        for record in records:
            writer.write_batch(record)
    return int(counter.size())


def read_file(path: Path) -> tuple[Stamp, list[Encoded]]:
    """Map a file that ``write_file`` wrote. WireError: it is damaged; the message names it.

    The tensors' memory is the file's until they are written to, and lasts as long as they do, even when the file is
    deleted.
    """
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        reader = pa.ipc.open_file(pa.py_buffer(mapped))
        records: Iterable[pa.RecordBatch] = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        return read_stamp(reader.schema), [from_record(record) for record in records]
    except (pa.ArrowException, ValueError) as problem:
        raise WireError(f"batch {path} cannot be read: {problem}") from problem
