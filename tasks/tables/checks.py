"""What a flow checks of places before it starts: that they can be reached and written."""

import os
import uuid

from media.paths import UnusablePath, fs_of, is_local, path_of_uri, protocol_of
from tasks.tables import storage

# In the environment of whoever runs flows: the only places that they may read and write, with commas between them.
ROOTS = "CONTENTV_ROOTS"


class PreflightError(Exception):
    """The run cannot succeed; the message says what is missing and what brings it."""


def check_place(uri: str, what: str) -> None:
    """Raise PreflightError where no store is behind ``uri`` (an archive, an unknown protocol, a missing package), or
    where it lies outside of the places that ROOTS allows."""
    try:
        fs_of(uri)
    except UnusablePath as problem:
        raise PreflightError(f"{what} {problem}") from problem
    check_allowed(uri, what)


def check_allowed(uri: str, what: str) -> None:
    """Raise PreflightError where a path or URI lies outside of the places that ROOTS allows."""
    if not is_allowed(uri):
        raise PreflightError(f"{what} {uri!r} is not allowed on this machine: {ROOTS} is {os.environ[ROOTS]!r}")


def is_allowed(uri: str) -> bool:
    """Whether a path or URI lies in one of the places that ROOTS names. Unset, every place is allowed; empty, none is.

    Local links count as what they lead to. A URI must be spelt as its root is: another protocol or host is another
    place.
    """
    listed = os.environ.get(ROOTS)
    if listed is None:
        return True
    place = _spelt(uri)
    roots = [_spelt(root.strip()).rstrip("/") for root in listed.split(",") if root.strip()]
    return ".." not in place.split("/") and any(place == root or place.startswith(f"{root}/") for root in roots)


def _spelt(uri: str) -> str:
    """One spelling of a place."""
    if is_local(uri):
        return os.path.realpath(path_of_uri(uri))
    return f"{protocol_of(uri)}://{uri.partition('://')[2].rstrip('/')}"


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
