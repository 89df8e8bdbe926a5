"""A source as a file of this machine, read once: a remote one is hashed while it is fetched.

Only regular files are opened: a named pipe that nobody writes to would wait for ever, a device may do anything.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from media.paths import fs_of, is_local, path_of_uri

BLOCK_BYTES = 1 << 20
ID_DIGITS = 16  # of the source_id, hexadecimal


@dataclass(frozen=True)
class LocalSource:
    """The file ``path`` holds the bytes of a source, whose hash is ``source_id``."""

    path: str
    source_id: str


def fetched(uri: str, folder: str) -> LocalSource:
    """The source at ``uri`` on this machine: in its place where it is local, else copied into ``folder``.

    Raises OSError where it cannot be read, and ValueError where it is no regular file.
    """
    if is_local(uri):
        path = path_of_uri(uri)
        with _regular(path) as file:
            return LocalSource(path, _hashed(file))
    fs, remote = fs_of(uri)
    path = os.path.join(folder, "source")
    with fs.open(remote, "rb", block_size=BLOCK_BYTES, cache_type="readahead") as file, open(path, "wb") as copy:
        return LocalSource(path, _hashed(file, copy))


@contextmanager
def _regular(path: str) -> Iterator[IO[bytes]]:
    # Opening a pipe waits for a writer unless it is told not to, and opening some devices does something.
    if stat.S_ISREG(os.stat(path).st_mode):
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                yield file
                return
    raise ValueError("it is no regular file")


def _hashed(file: IO[bytes], copy: IO[bytes] | None = None) -> str:
    """The first ID_DIGITS of the BLAKE2b of a file's bytes, which also go to ``copy``."""
    digest = hashlib.blake2b()
    while block := file.read(BLOCK_BYTES):
        digest.update(block)
        if copy:
            copy.write(block)
    return digest.hexdigest()[:ID_DIGITS]
