"""Files behind URIs: every path of curation is opened through fsspec, so local disks and object stores behave alike."""

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem


def join(root: str, *parts: str) -> str:
    """``root/part/part``, for paths and URIs alike."""
    return "/".join([root.rstrip("/"), *parts])


def exists(uri: str) -> bool:
    fs, path = url_to_fs(uri)
    return bool(fs.exists(path))


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


def write_table(table: pa.Table, uri: str) -> None:
    with writing(uri) as file:
        pq.write_table(table, file, compression="zstd")


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    with fsspec.open(uri, "rb") as file:
        return pq.read_table(file, columns=columns)


def content_hash(uri: str, length: int = 16) -> str:
    """Hash of a file's bytes: the first ``length`` hex digits of its BLAKE2b."""
    digest = hashlib.blake2b()
    with fsspec.open(uri, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:length]
