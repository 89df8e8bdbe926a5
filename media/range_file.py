"""Files read by byte ranges: one request for the bytes that are asked for, and none for others.

fsspec's own files read ahead, 5 to 50 MB on an object store, which is right for a file that is read from end to end
and wrong for one of which a few pieces are wanted.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import SEEK_CUR, SEEK_END, SEEK_SET
from threading import Lock
from typing import IO

from fsspec.implementations.local import LocalFileSystem

from media.paths import fs_of
from media.read_only import ReadOnlyFile

Fetch = Callable[[int, int], bytes]


class RangeFile(ReadOnlyFile):
    """A binary file to read from, on top of ``fetch(start, end)``, which returns the bytes ``start <= i < end``.

    ``fetch`` must be safe to call from several threads. The position is the only state: give each thread a ``view``.
    """

    def __init__(self, fetch: Fetch, size: int) -> None:
        super().__init__()
        self._fetch, self._size, self._position = fetch, size, 0

    @classmethod
    def of(cls, file: "IO[bytes] | RangeFile") -> "RangeFile":
        """The ranges of any file that can seek, read under a lock; a RangeFile gives a view of itself."""
        if isinstance(file, RangeFile):
            return file.view()
        lock = Lock()

        def fetch(start: int, end: int) -> bytes:
            with lock:
                file.seek(start)
                return file.read(end - start)

        return cls(fetch, file.seek(0, SEEK_END))

    def view(self) -> "RangeFile":
        """The same file with a position of its own."""
        return RangeFile(self._fetch, self._size)

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    def read_at(self, start: int, end: int) -> bytes:
        """The bytes ``start <= i < end``, wherever the position is. OSError where they are not there any more."""
        data = self._fetch(start, end)
        if len(data) != end - start:
            raise OSError(f"{len(data)} of {end - start} bytes came back: the file was changed while it was read")
        return data

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._position)
        count = left if size is None or size < 0 else min(size, left)
        if not count:
            return b""
        data = self.read_at(self._position, self._position + count)
        self._position += count
        return data

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        self._position = offset + {SEEK_SET: 0, SEEK_CUR: self._position, SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position


@contextmanager
def open_ranges(uri: str) -> Iterator[RangeFile]:
    """Open ``uri`` to read pieces of it; opening costs one request for its size.

    On a store without handles, such as S3, the pieces of a file that is replaced meanwhile come from both: open only
    what is not replaced, or read it in one piece. Raises what the store raises.
    """
    fs, path = fs_of(uri)
    if not isinstance(fs, LocalFileSystem):
        fs.invalidate_cache(path)  # another process may have written it since its folder was listed
        yield RangeFile(lambda start, end: fs.cat_file(path, start=start, end=end), fs.info(path)["size"])
        return
    with open(path, "rb", buffering=0) as file:

        def fetch(start: int, end: int) -> bytes:
            pieces = []
            while start < end and (piece := os.pread(file.fileno(), end - start, start)):
                pieces.append(piece)
                start += len(piece)
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)

        yield RangeFile(fetch, os.fstat(file.fileno()).st_size)
