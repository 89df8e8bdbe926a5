"""What a flow checks of places before it starts: that they can be reached and written."""

import os
import uuid
from collections.abc import Iterable

from media.paths import UnusablePath, fs_of, is_local, path_of_uri
from tasks.tables import storage

ROOTS = "CONTENTV_ROOTS"  # in a worker's environment: folders and buckets, with commas, that runs may read and write


class PreflightError(Exception):
    """The run cannot succeed; the message says what is missing and what brings it."""


def check_place(uri: str, what: str) -> None:
    """Raise PreflightError where no store is behind ``uri``: an archive, an unknown protocol, a missing package."""
    try:
        fs_of(uri)
    except UnusablePath as problem:
        raise PreflightError(f"{what} {problem}") from problem


def check_roots(uris: Iterable[str], what: str) -> None:
    """Raise PreflightError where a place lies outside of what this machine allows in CONTENTV_ROOTS; unset, all may be.

    Of a local place the real path counts, so that a link leads nowhere else.
    """
    allowed = os.environ.get(ROOTS)
    if allowed is None:
        return
    roots = [_real(root.strip()) for root in allowed.split(",") if root.strip()]
    for uri in uris:
        place = _real(uri)
        inside = any(place == root or place.startswith(root.rstrip("/") + "/") for root in roots)
        if not inside or ".." in place.split("/"):  # what a store makes of ".." is its own affair
            raise PreflightError(f"{what} {uri!r} is outside of what this machine allows: {ROOTS} is {allowed!r}")


def _real(uri: str) -> str:
    return os.path.realpath(path_of_uri(uri)) if is_local(uri) else uri.rstrip("/")


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
