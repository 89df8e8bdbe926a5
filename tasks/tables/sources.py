"""Where curation starts: find the sources, group them into shards, and check first that the run can succeed."""

import os
import re
import uuid
from collections.abc import Iterator

import pyarrow as pa
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from tasks.tables import storage
from tasks.tables.keys import key_of

VIDEO = {
    ".mp4",
    ".mov",
    ".mkv",
    ".webm",
    ".avi",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".ts",
    ".wmv",
    ".flv",
    ".3gp",
    ".ogv",
    ".gif",
}
IMAGE = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}

Source = dict[str, str | int]


class PreflightError(Exception):
    """The run cannot succeed; the message says what is missing and what brings it."""


def find_sources(source: str) -> list[Source]:
    """All videos and images below a folder or bucket (or the one file named), sorted by URI.

    Each is ``source_uri``, ``bytes`` and ``version``, a token that changes when the file does. Hidden files, and files
    whose names end in no known extension, are no sources. Raises PreflightError where there is nothing to read.
    """
    fs, path = url_to_fs(source)
    if not fs.exists(path):
        raise PreflightError(f"source {source!r} does not exist")
    local = isinstance(fs, LocalFileSystem)
    path = os.path.normpath(path) if local else path
    found = fs.find(path, detail=True)
    sources: list[Source] = []
    for name, info in sorted(found.items()):
        below = name[len(path) :] or name.rsplit("/", 1)[-1]
        hidden = any(part.startswith(".") for part in below.split("/"))
        if not hidden and extension(name) in VIDEO | IMAGE:
            token = info.get("ETag") or info.get("md5Hash") or str(info.get("mtime") or info.get("LastModified"))
            uri = name if local else fs.unstrip_protocol(name)
            sources.append({"source_uri": uri, "bytes": int(info["size"] or 0), "version": str(token)})
    if not sources:
        kinds = " ".join(sorted(VIDEO | IMAGE))
        raise PreflightError(f"source {source!r} holds no video or image ({len(found)} files; looked for {kinds})")
    return sources


def extension(name: str) -> str:
    return "." + name.rsplit(".", 1)[-1].lower()


def shards_of(sources: list[Source], about: int) -> Iterator[list[Source]]:
    """Group sources into shards of about ``about``, so that a new source changes only the shard it falls into.

    A shard ends where the hash of a URI says so, not at a count: boundaries stay where they are when the library grows.
    """
    shard: list[Source] = []
    for source in sources:
        shard.append(source)
        ends_here = int(key_of(source["source_uri"]), 16) % about == 0 and len(shard) > about // 2
        if ends_here or len(shard) >= 2 * about:
            yield shard
            shard = []
    if shard:
        yield shard


def write_shards(sources: list[Source], root: str, about: int) -> list[str]:
    """Write the list of each shard's sources; returns their URIs. A shard is called after its first source."""
    tables: list[str] = []
    names: set[str] = set()
    for shard in shards_of(sources, about):
        stem = str(shard[0]["source_uri"]).rsplit("/", 1)[-1].rsplit(".", 1)[0]
        name = re.sub(r"\W+", "_", stem)[:24] + (f"_and_{len(shard) - 1}" if len(shard) > 1 else "")
        if name in names:
            name += f"_{key_of(shard[0]['source_uri'])[:6]}"
        names.add(name)
        uri = storage.join(root, "steps", "sources", f"{name}-{key_of(shard)}.parquet")
        if not storage.exists(uri):
            storage.write_table(pa.Table.from_pylist(shard), uri)
        tables.append(uri)
    return tables


def check_writable(root: str) -> None:
    """Raise PreflightError unless files can be written under ``root``."""
    probe = storage.join(root, f".probe-{uuid.uuid4().hex[:8]}")
    try:
        with storage.writing(probe) as file:
            file.write(b"\0" * 4096)
        fs, path = url_to_fs(probe)
        fs.rm(path)
    except OSError as problem:
        raise PreflightError(f"output {root!r} cannot be written: {problem}") from problem


def passed_through(listed: pa.Table) -> pa.Table:
    return listed.select(["source_uri"])
