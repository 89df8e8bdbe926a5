"""What a flow checks of places before it starts: that they can be reached and written."""

import uuid

from media.paths import UnusablePath, fs_of
from tasks.tables import storage


class PreflightError(Exception):
    """The run cannot succeed; the message says what is missing and what brings it."""


def check_place(uri: str, what: str) -> None:
    """Raise PreflightError where no store is behind ``uri``: an archive, an unknown protocol, a missing package."""
    try:
        fs_of(uri)
    except UnusablePath as problem:
        raise PreflightError(f"{what} {problem}") from problem


def check_writable(root: str) -> None:
    """Raise PreflightError unless files can be written under ``root``."""
    check_place(root, "output")
    probe = storage.join(root, f".probe-{uuid.uuid4().hex[:8]}")
    try:
        with storage.writing(probe) as file:
            file.write(b"\0" * 4096)
        fs, path = fs_of(probe)
        fs.rm(path)
    except OSError as problem:
        raise PreflightError(f"output {root!r} cannot be written: {problem}") from problem
