"""Where curation starts: the sources that a folder, a bucket, a file or an input list names."""

import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from media.paths import fs_of, is_local, uri_of
from tasks.tables.checks import PreflightError, check_place
from tasks.tables.folders import local_file, local_files
from tasks.tables.found import Found, PassedOver, Source, gather, version_of
from tasks.tables.input_list import LISTS, read_list
from tasks.tables.owner import MARK

VIDEO = {
    *(".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".qt", ".gif"),
    *(".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".m2t"),
    *(".wmv", ".asf", ".flv", ".f4v", ".3gp", ".3g2", ".ogv", ".ogm", ".mxf", ".dv", ".divx", ".rm", ".rmvb", ".y4m"),
}
IMAGE = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"),
    *(".heic", ".heif", ".hif", ".avif", ".jp2", ".jxl"),
}


def find_sources(source: str) -> pa.Table:
    """The table of the sources that ``source`` names: what ``look`` finds, without what it passes over."""
    return look(source).sources


def look(source: str) -> Found:
    """All videos and images below a folder or bucket, the one file named, or what an input list names.

    Of a local folder links are followed, each folder once; hidden files, files whose names end in no known extension,
    pipes, sockets and devices are passed over, and so is the output of a run. An input list (.csv, .parquet, .jsonl)
    is taken whole, see ``read_list``. Nothing is opened but the list: what a file holds (as a ``.ts`` that is
    TypeScript) the scan finds out, so that it has a row with its reason.

    Raises PreflightError where there is nothing to read.
    """
    check_place(source, "source")
    fs, path = fs_of(source)
    if not fs.exists(path):
        raise PreflightError(f"source {source!r} does not exist")
    if extension(path) in LISTS and not fs.isdir(path):
        return read_list(source)
    try:
        found = gather(_local(path) if is_local(source) else _remote(fs, path))
    except OSError as problem:
        raise PreflightError(f"source {source!r} cannot be read: {problem}") from problem
    if not found.sources.num_rows:
        passed = ", ".join(f"{count} {reason}" for reason, count in found.passed_over.most_common()) or "nothing else"
        kinds = " ".join(sorted(VIDEO | IMAGE))
        raise PreflightError(f"source {source!r} holds no video or image (there are {passed}; looked for {kinds})")
    return found


def extension(name: str) -> str:
    """The end of a file's name from the last dot, in lower case: ``.mp4``."""
    return "." + name.rsplit(".", 1)[-1].lower()


def is_media(name: str) -> bool:
    """Whether the extension is that of a video or an image."""
    return extension(name) in VIDEO | IMAGE


def _local(path: str) -> Iterator[Source | PassedOver]:
    if os.path.isdir(path):
        yield from local_files(path, is_media)
    else:
        yield local_file(path, is_media)


def _remote(fs: Any, path: str) -> Iterator[Source | PassedOver]:
    """The objects below ``path``. The listing takes about 2 KB of memory an object; a list of inputs takes less."""
    fs.invalidate_cache()
    found = fs.find(path, detail=True)
    marks = tuple(name.removesuffix(MARK) for name in found if name.endswith(f"/{MARK}") and name != f"{path}/{MARK}")
    for name, info in found.items():
        uri = uri_of(fs, name)
        below = name[len(path) :] or name.rsplit("/", 1)[-1]
        if any(part.startswith(".") for part in below.split("/")):
            yield PassedOver(uri, "hidden files and folders")
        elif marks and name.startswith(marks):
            yield PassedOver(uri, "files in output folders of a run")
        elif is_media(name) and info["type"] == "file":
            yield Source(uri, int(info["size"] or 0), version_of(info))
        else:
            yield PassedOver(uri, "files with other extensions")
