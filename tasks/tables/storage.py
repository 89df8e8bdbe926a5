"""Files behind URIs: every path of curation is opened through fsspec, so local disks and object stores behave alike."""

import hashlib

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from media.whole_file import writing as writing


def join(root: str, *parts: str) -> str:
    """``root/part/part``, for paths and URIs alike."""
    return "/".join([root.rstrip("/"), *parts])


def exists(uri: str) -> bool:
    fs, path = url_to_fs(uri)
    return bool(fs.exists(path))


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
