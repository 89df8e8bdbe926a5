"""Files that are written whole or not at all, on every store that fsspec opens: a reader never sees half of one.

No state is shared between two files that are being written, so writes nest and run in threads on every store.
"""

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter, FileIO
from typing import IO, Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from media.output_error import output_errors
from media.paths import fs_of

# Stores whose protocol promises that an object appears when all of it has arrived. On every other store a file that
# is being put can be seen while it grows.
PUT_IS_ATOMIC = frozenset(
    {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "ocilake", "obs", "tos", "tosfs"}
)
BUFFER = 1 << 20


class _CheckedFile(FileIO):
    """A file whose failing writes are errors of the output, whoever calls ``write``."""

    def __init__(self, descriptor: int, uri: str) -> None:
        super().__init__(descriptor, "wb")
        self._uri = uri

    def write(self, data: Any) -> int:
        with output_errors(self._uri):
            return super().write(data)


@contextmanager
def writing(uri: str) -> Iterator[IO[bytes]]:
    """Open ``uri`` for writing whole or not at all.

    What is written goes to a file of its own on a local disk, and to its place when the body has ended without an
    error: a local file by a rename beside its place, once it is on disk; an object by a put; a file on a store where
    a put can be seen before it is complete by a put beside its place and a move. Room for one copy must be in the
    folder of temporary files (TMPDIR) where ``uri`` is not local.

    An exception of the body comes out as it is. Raises OutputError where the storage fails: at opening, in a ``write``
    of the body, or when the file is put in its place.
    """
    with output_errors(uri):
        fs, path = fs_of(uri)
        local = isinstance(fs, LocalFileSystem)
        if local:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            partial = partial_name(path)
        else:
            partial = os.path.join(tempfile.gettempdir(), f"{uuid.uuid4().hex}.partial")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666 if local else 0o600)
    raw = _CheckedFile(descriptor, uri)
    file = BufferedWriter(raw, BUFFER)
    try:
        yield file
        with output_errors(uri):
            file.flush()
            if local:
                os.fsync(raw.fileno())
                os.replace(partial, path)
            else:
                _put(fs, partial, path)
    finally:
        raw.close()  # not through the buffer: after an error nothing more must be written
        with suppress(OSError):  # it has been renamed; else the first error is the one to hear of
            os.unlink(partial)


def partial_name(path: str) -> str:
    """A name beside ``path`` for what is not complete yet. It is hidden, so that readers of whole folders skip it."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.partial"


def _put(fs: AbstractFileSystem, local: str, path: str) -> None:
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if protocols & PUT_IS_ATOMIC:
        fs.put_file(local, path)
        return
    partial = partial_name(path)
    try:
        fs.put_file(local, partial)
        _move(fs, partial, path)
    except BaseException:
        with suppress(Exception):  # the first error is the one to hear of
            fs.rm_file(partial)
        raise


def _move(fs: AbstractFileSystem, old: str, new: str) -> None:
    """Give a file its name, also where another file has it."""
    if type(fs).mv is AbstractFileSystem.mv:
        # fsspec's own move reads names as patterns: "[1]" would not be found.
        fs.cp_file(old, new)
        fs.rm_file(old)
        return
    try:
        fs.mv(old, new)
    except Exception:
        # SMB, HDFS and some FTP servers rename to no name that is taken. They cannot replace a file in one step.
        if not fs.exists(new):
            raise
        fs.rm_file(new)
        fs.mv(old, new)
