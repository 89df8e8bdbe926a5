"""Files that are written whole or not at all, through fsspec: a reader never sees half of one."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem


@contextmanager
def writing(uri: str) -> Iterator[IO[bytes]]:
    """Open ``uri`` for writing whole or not at all.

    A local file is written beside its place and renamed over it once it is on disk. On an object store an upload
    becomes visible only when it is closed without an error, which is the same promise.
    """
    fs, path = url_to_fs(uri)
    if not isinstance(fs, LocalFileSystem):
        with fs.transaction, fs.open(path, "wb") as file:
            yield file
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    partial = f"{path}.{uuid.uuid4().hex[:8]}.partial"
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        if os.path.exists(partial):
            os.unlink(partial)
        raise
