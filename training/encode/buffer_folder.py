"""Where a buffer's batches lie: a folder of its own, which goes away with the last process that has it."""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from training.run import EncodeConfig

MEMORY = Path("/dev/shm")  # where Linux has a file system in memory
PREFIX = f"contentv-buffer-{os.getuid()}-"
GB = 10**9


def new_folder(encode: EncodeConfig) -> tuple[Path, int]:
    """A folder for one buffer and the open lock that says that it is in use.

    It is in ``buffer_folder``; by default in memory, or with the system's temporary files where there is no such place.
    What buffers left there whose processes are all dead is removed. OSError: there is less room than the bound.
    """
    place = Path(encode.buffer_folder or (MEMORY if MEMORY.is_dir() else tempfile.gettempdir()))
    place.mkdir(parents=True, exist_ok=True)
    for left in place.glob(f"{PREFIX}*"):
        remove_if_left(left)
    free = shutil.disk_usage(place).free
    if free < bound(encode):
        words = f"a buffer may take {encode.buffer_gb:g} GB, and {place} has {free / GB:.2f} GB free"
        raise OSError(errno.ENOSPC, f"{words}: make encode.buffer_gb smaller, or set encode.buffer_folder")
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        with contextlib.suppress(BlockingIOError, FileNotFoundError):  # another took it for left behind: not locked yet
            return folder, hold(folder)


def hold(folder: Path) -> int:
    """Lock a buffer's folder together with its other process. OSError: it is being removed."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if not os.stat(folder).st_ino == os.fstat(lock).st_ino:
            raise FileNotFoundError(folder)
    except OSError:
        os.close(lock)
        raise
    return lock


def remove_if_left(folder: Path) -> None:
    """Remove a buffer's folder if neither of its processes is alive."""
    with contextlib.suppress(OSError):  # it is in use, or gone by now
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        finally:
            os.close(lock)


def bound(encode: EncodeConfig) -> int:
    """Bytes that a buffer may have."""
    return int(encode.buffer_gb * GB)
