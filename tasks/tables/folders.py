"""The files below a local folder: links followed once, and nothing opened that is no ordinary file."""

import os
import stat
from collections.abc import Callable, Iterator

from media.paths import uri_of_path
from tasks.tables.found import PassedOver, Source, token
from tasks.tables.owner import MARK

_KINDS = [
    (stat.S_ISFIFO, "pipes"),
    (stat.S_ISSOCK, "sockets"),
    (stat.S_ISCHR, "devices"),
    (stat.S_ISBLK, "devices"),
]


def local_files(folder: str, wanted: Callable[[str], bool]) -> Iterator[Source | PassedOver]:
    """The ordinary files below ``folder`` whose names are ``wanted``, and what was passed over.

    Hidden files and folders, other names, pipes, sockets, devices, and the output of a curation are passed over. Links
    to files and to folders are followed, each folder once, so that a loop ends: first the folders that lie below
    ``folder`` themselves, then those that links lead to. A link to a file that is found below ``folder`` anyway is
    passed over. Raises OSError where ``folder`` itself cannot be read.
    """
    real_root = os.path.realpath(folder)
    seen = set[tuple[int, int]]()
    linked_folders, linked_files = [folder], list[os.DirEntry[str]]()
    while linked_folders:
        waiting = [linked_folders.pop(0)]
        while waiting:
            path = waiting.pop()
            try:
                if _once(seen, os.stat(path)):
                    with os.scandir(path) as found:
                        entries = sorted(found, key=lambda entry: entry.name)
                else:
                    yield PassedOver(uri_of_path(path), "linked folders that are read anyway")
                    continue
            except OSError:
                if path == folder:
                    raise
                yield PassedOver(uri_of_path(path), "folders that cannot be read")
                continue
            if any(entry.name == MARK for entry in entries) and path != folder:
                yield PassedOver(uri_of_path(path), "output folders of a run")
                continue
            below = list[str]()
            for entry in entries:
                if entry.name.startswith("."):
                    yield PassedOver(uri_of_path(entry.path), "hidden files and folders")
                elif entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
                elif entry.is_symlink() and os.path.isdir(entry.path):  # False for a link to itself
                    linked_folders.append(entry.path)
                elif entry.is_symlink():
                    linked_files.append(entry)
                else:
                    yield local_file(entry.path, wanted)
            waiting.extend(reversed(below))
    for link in linked_files:
        target = os.path.realpath(link.path)
        inside = target.startswith(real_root.rstrip("/") + "/")
        hidden = any(part.startswith(".") for part in target[len(real_root) :].split("/"))
        if inside and not hidden and wanted(target) and os.path.exists(target):
            yield PassedOver(uri_of_path(link.path), "links to files that are taken anyway")
        else:
            yield local_file(link.path, wanted)


def local_file(path: str, wanted: Callable[[str], bool] = lambda name: True) -> Source | PassedOver:
    """One file as a source, or why it is none. Nothing is opened: a pipe would wait for its writer."""
    uri = uri_of_path(path)
    if not wanted(path):
        return PassedOver(uri, "files with other extensions")
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return PassedOver(uri, "links to nowhere" if os.path.islink(path) else "missing files")
    except OSError:
        return PassedOver(uri, "files that cannot be read")
    if stat.S_ISDIR(status.st_mode):
        return PassedOver(uri, "folders")
    for is_kind, kind in _KINDS:
        if is_kind(status.st_mode):
            return PassedOver(uri, kind)
    return Source(uri, status.st_size, local_version(status))


def local_version(status: os.stat_result) -> str:
    """The change token of a local file: its size, its inode, and the times of change of its content and of its inode
    to the nanosecond; nobody can set the latter back."""
    return token(status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)


def _once(seen: set[tuple[int, int]], status: os.stat_result) -> bool:
    """Whether a folder is met for the first time."""
    known = (status.st_dev, status.st_ino)
    if known in seen:
        return False
    seen.add(known)
    return True
