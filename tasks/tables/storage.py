"""Files behind URIs: what a run keeps in OUT is written and read here, on local disks and object stores alike.

Every failure of OUT's storage is an OutputError (media/output_error.py), so that no source or clip is blamed for it.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from media.output_error import OutputError as OutputError
from media.output_error import OutputMissing as OutputMissing
from media.output_error import output_errors
from media.paths import fs_of
from media.range_file import RangeFile, open_ranges
from media.whole_file import writing as writing

HASH_BLOCK = 16 << 20  # bytes a request


def join(root: str, *parts: str) -> str:
    """``root/part/part``, for paths and URIs alike."""
    return "/".join([root.rstrip("/"), *parts])


def _fresh(uri: str) -> tuple[Any, str]:
    """The store and path of ``uri``, without what the store remembers of its folders: other processes write, too."""
    fs, path = fs_of(uri)
    fs.invalidate_cache(path)
    return fs, path


def exists(uri: str) -> bool:
    """Whether there is such a file or folder. A store that does not answer is an OutputError, not an absent file."""
    with output_errors(uri):
        fs, path = _fresh(uri)
        try:
            fs.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def list_below(folder: str) -> list[str]:
    """The URIs of all files below ``folder``, sorted and spelt as ``join`` spells them; none where it is absent.

    Files that are still being written are left out.
    """
    with output_errors(folder):
        fs, path = _fresh(folder)
        found = fs.find(path)
    below = (name[len(path.rstrip("/")) :].lstrip("/") for name in found)
    return sorted(join(folder, name) for name in below if name and not name.endswith(".partial"))


def remove(uri: str) -> None:
    """Remove a file; one that is not there is no error."""
    with output_errors(uri):
        fs, path = _fresh(uri)
        with suppress(FileNotFoundError):
            fs.rm_file(path)


@contextmanager
def open_read(uri: str) -> Iterator[RangeFile]:
    """Open a file of OUT to read pieces of it, each with one request and nothing read ahead.

    Raises OutputError where it cannot be opened or read, also from reads of the body; what else the body raises comes
    out as it is. For files that are never replaced, as results named by content are.
    """
    with output_errors(uri):
        opened = open_ranges(uri)
        file = opened.__enter__()

    def fetch(start: int, end: int) -> bytes:
        with output_errors(uri):
            return file.read_at(start, end)

    try:
        yield RangeFile(fetch, file.size)
    finally:
        opened.__exit__(None, None, None)


def read_bytes(uri: str) -> bytes:
    """All bytes of a file, as they were at one moment."""
    with output_errors(uri):
        fs, path = _fresh(uri)
        return bytes(fs.cat_file(path))


def write_table(table: pa.Table, uri: str) -> None:
    with writing(uri) as file:
        pq.write_table(table, file, compression="zstd")


def read_table(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The table in a Parquet file: all with one request, or only ``columns`` with one for each stretch of them."""
    if columns is None:
        data = read_bytes(uri)
        with output_errors(uri):
            return pq.read_table(pa.BufferReader(data))
    with open_read(uri) as file, output_errors(uri):
        return pq.read_table(file, columns=list(columns))


def write_json(value: Any, uri: str, indent: int | None = None) -> None:
    """Write ``value`` as JSON in UTF-8."""
    text = json.dumps(value, indent=indent)
    with writing(uri) as file:
        file.write(text.encode())


def read_json(uri: str) -> Any:
    data = read_bytes(uri)
    with output_errors(uri):
        return json.loads(data)


def content_hash(uri: str, length: int = 16) -> str:
    """Hash of a file's bytes: the first ``length`` hex digits of its BLAKE2b.

    The file may be a source, so what fails is raised as the store raises it.
    """
    digest = hashlib.blake2b()
    with open_ranges(uri) as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()[:length]
