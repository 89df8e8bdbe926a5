"""The files that clips lie in, as storage gives them.

What storage fails of passes: a network, a disk or a server comes back. So a source is opened and read again, with
longer and longer waits, and an error of storage never looks like one of the file, whatever a decoder makes of it. Only
what would fail again is the file's own: it is not there, or it holds something else.
"""

import errno
import hashlib
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import SEEK_CUR, SEEK_END, SEEK_SET
from typing import IO, TypeVar

from media.paths import UnusablePath, fs_of, is_local, path_of_uri
from media.read_only import ReadOnlyFile

WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # before each further try, about a minute in all
HASHED_BYTES = 4 << 20  # a file up to this size is hashed whole: a few milliseconds beside what decoding takes
SPREAD = 0.25  # of a wait: ranks that failed together do not come back together

_log = logging.getLogger(__name__)
_random = random.Random()  # of its own: nothing that is drawn for training may depend on a fault of storage

R = TypeVar("R")


class SourceUnavailable(OSError):
    """Storage did not give a source, however often it was asked: no fault of the clip. The message names the source."""


class StorageFault(Exception):
    """Storage failed; its ``__cause__`` says of what."""


class Source(ReadOnlyFile):
    """An open file to read from. It remembers when storage failed, and takes a transfer that ends early for that.

    Attributes:
        fault: what storage last failed of; None where it did not.
        size: bytes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self.fault: Exception | None = None
        self.size = self._file.seek(0, SEEK_END)
        self._file.seek(0)

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.size - self.tell())
        wanted = left if size is None or size < 0 else min(size, left)
        pieces = []
        try:
            while wanted:
                piece = self._file.read(wanted)
                if not piece:
                    raise OSError(errno.EIO, f"the transfer ended after {self.tell()} of {self.size} bytes")
                pieces.append(piece)
                wanted -= len(piece)
        except MemoryError:
            raise
        except Exception as problem:
            self.fault = problem
            raise
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        """OSError with EINVAL where the place is before the beginning, as a file's, whatever the store says."""
        place = offset + {SEEK_SET: 0, SEEK_CUR: self.tell(), SEEK_END: self.size}[whence]
        if place < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return self._file.seek(place)

    def tell(self) -> int:
        return self._file.tell()


def check_curated(source: Source, source_id: str, source_bytes: int) -> None:
    """ValueError: the file is not the one that was curated, so that nobody knows what its seconds show.

    Compared are its size and, of a file of up to HASHED_BYTES, its content. A larger one of the same size passes.

    Args:
        source: is left at its beginning.
        source_id: beginning of the BLAKE2b of its bytes, hexadecimal; empty where it is not known.
        source_bytes: its size; 0 where it is not known.
    """
    changed = "it is not the file that was curated, which was replaced or written again"
    if source_bytes and source.size != source_bytes:
        raise ValueError(f"{changed}: it has {source.size} bytes, and had {source_bytes}")
    source.seek(0)
    if source_id and source.size <= HASHED_BYTES:
        if not hashlib.blake2b(source.read()).hexdigest().startswith(source_id):
            raise ValueError(f"{changed}: its content has another hash than source_id {source_id}")
        source.seek(0)


def from_source(uri: str, read: Callable[[Source], R]) -> R:
    """What ``read`` makes of the open source, which it may call several times, from the beginning each time.

    Raises:
        SourceUnavailable: storage failed at each try; there is one more after each of WAITS_S.
        OSError, ValueError: there is no such file, or it may not be read, and that will be so the next time as well.
        What ``read`` raises, where storage did not fail.
    """
    for wait_s in WAITS_S:
        try:
            return _once(uri, read)
        except StorageFault as fault:
            _log.warning("%s: %s; it is read again in %.0f s", uri, _words(fault.__cause__), wait_s)
        time.sleep(wait_s * _random.uniform(1 - SPREAD, 1 + SPREAD))
    try:
        return _once(uri, read)
    except StorageFault as fault:
        raise SourceUnavailable(
            f"{uri} cannot be had from storage, tried {len(WAITS_S) + 1} times in {sum(WAITS_S):.0f} s: "
            f"{_words(fault.__cause__)}"
        ) from fault.__cause__


def _once(uri: str, read: Callable[[Source], R]) -> R:
    """StorageFault, or what ``read`` returns and raises."""
    with _opened(uri) as source:
        try:
            found = read(source)
        except MemoryError:
            raise
        except Exception:
            if source.fault is None:
                raise
        if source.fault is None:
            return found
        raise StorageFault from source.fault  # also where a decoder went on with what it had


@contextmanager
def _opened(uri: str) -> Iterator[Source]:
    try:
        file = _open(uri)
    except (UnusablePath, FileNotFoundError, IsADirectoryError, NotADirectoryError, MemoryError):
        raise
    except PermissionError as problem:
        if is_local(uri):
            raise
        raise StorageFault from problem  # of a store: a token that expired
    except Exception as problem:
        raise StorageFault from problem
    with file:
        try:
            source = Source(file)
        except Exception as problem:
            raise StorageFault from problem
        yield source


def _open(uri: str) -> IO[bytes]:
    if is_local(uri):
        return open(path_of_uri(uri), "rb")
    fs, path = fs_of(uri)
    fs.invalidate_cache(path)  # what it remembers of a listing may be older than the file
    file: IO[bytes] = fs.open(path, "rb")
    return file


def _words(problem: BaseException | None) -> str:
    return str(problem) or type(problem).__name__
