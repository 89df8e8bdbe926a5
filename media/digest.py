"""The content of files as a hash, which is computed once for a file that does not change."""

import hashlib
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

from media.whole_file import writing

_DIGEST = re.compile(r"[0-9a-f]{64}")


def file_digest(path: str | Path) -> str:
    """The SHA-256 of a local file's content, in hexadecimal.

    It is remembered in the folder of temporary files, by the file's path, inode, size and time of change: weights of
    tens of gigabytes are read once, not at every start. OSError: the file cannot be read.
    """
    path = Path(path).resolve()
    stat = path.stat()
    key = hashlib.sha256(
        f"{path} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}".encode("utf-8", "surrogateescape")
    )
    memory = _memory()
    known = memory / key.hexdigest() if memory else None
    if known is not None:
        with suppress(OSError):
            if _DIGEST.fullmatch(digest := known.read_text()):
                return digest
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if known is not None:
        with suppress(OSError), writing(str(known)) as target:  # where it cannot be, only time is lost
            target.write(digest.encode())
    return digest


def _memory() -> Path | None:
    """The folder of what is remembered; None where it is somebody else's, or cannot be made."""
    folder = Path(tempfile.gettempdir()) / f"contentv-digests-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        stat = folder.stat(follow_symlinks=False)
    except OSError:
        return None
    return folder if stat.st_uid == os.getuid() and not stat.st_mode & 0o022 else None
