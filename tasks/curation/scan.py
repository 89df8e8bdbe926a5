"""Scan: the one decoding pass over a source (report, section 3.1, before everything else).

Each source is decoded in a process of its own (decode.py, isolated.py), under a limit of time and memory, into a
folder of this machine; what it wrote goes to OUT, the record ``source.json`` last, so that a record stands for all of
it. A source is known by its content: the same bytes under another name are not decoded again.
"""

import os
import tempfile

from pydantic import Field

from tasks.curation.decode import SAMPLES, TRACK, decode
from tasks.curation.fetch import LocalSource, fetched
from tasks.curation.isolated import Limits, call
from tasks.tables import storage
from tasks.tables.faults import in_words, passing, tried_again
from tasks.tables.guard import file_name
from tasks.tables.keys import key_of, root_of
from tasks.tables.rows import narrow
from tasks.tables.schema import fields_of
from tasks.tables.step import Made, Row, StepConfig, kept, side_by_side, step_task

VERSION = 2

COPY_BYTES = 1 << 20


class ScanConfig(StepConfig):
    """``samples_per_s`` decides what is recorded; the rest decides only when to give up, and is in no key."""

    samples_per_s: float = Field(2.0, gt=0, le=30, description="Sampled frames per second of video kept in the store")
    decode_max_s: float = Field(
        600, gt=0, description="Wall time after which decoding a source is given up, seconds; large files get more"
    )
    decode_max_s_per_gb: float = Field(
        4000, ge=0, description="What is added to that for each gigabyte of the file, seconds"
    )
    memory_max_gib: float = Field(4, gt=0, description="Memory that decoding one source may take, GiB")
    retry_wait_s: float = Field(
        0.5,
        ge=0,
        description="Wait before a source is read again after a fault of network or disk, seconds; doubles twice",
    )

    def decisive(self) -> "ScanConfig":
        """This config with all that changes no result at its default: what belongs into a key."""
        return ScanConfig(samples_per_s=self.samples_per_s)

    def limits(self, file_bytes: int) -> Limits:
        return Limits(self.decode_max_s + self.decode_max_s_per_gb * file_bytes / 1e9, self.memory_max_gib)

    def waits_s(self) -> list[float]:
        return [self.retry_wait_s, 2 * self.retry_wait_s, 4 * self.retry_wait_s]


def scan_once(uri: str, root: str, config: ScanConfig) -> Row:
    """The row of one source; ``error`` is set where it is no usable video or image, or could not be read."""
    return scan_or_fault(uri, root, config)[0]


def scan_or_fault(uri: str, root: str, config: ScanConfig) -> tuple[Row, bool]:
    """The row of one source, and whether it stands: False where its error may be gone the next time.

    Only OUT's own storage raises (OutputError). A source whose bytes were scanned before is not decoded.
    """
    row: Row = {"source_uri": uri, "error": None, "rejected_by": []}
    with tempfile.TemporaryDirectory(prefix="contentv-scan-") as scratch:
        try:
            source = tried_again(lambda: fetched(uri, scratch), config.waits_s())
        except Exception as problem:
            return _named(row | _error(f"cannot be read: {in_words(problem)}")), not passing(problem)
        row["source_bytes"] = os.path.getsize(source.path)
        frames_uri = f"frames/{source.source_id}-{key_of(VERSION, config.decisive().model_dump())[:6]}"
        folder = storage.join(root, frames_uri)
        record_uri = storage.join(folder, "source.json")
        if storage.exists(record_uri):
            found = storage.read_json(record_uri)
        else:
            found, stands = _decoded(source, scratch, config)
            row |= {"source_id": source.source_id, "frames_uri": frames_uri}
            if not stands:
                return _named(row | found), False
            if not found.get("error"):
                for name in (SAMPLES, TRACK):
                    _put(os.path.join(scratch, name), storage.join(folder, name))
            storage.write_json(found, record_uri)
        return _named(row | found | {"source_id": source.source_id, "frames_uri": frames_uri}), True


def _decoded(source: LocalSource, scratch: str, config: ScanConfig) -> tuple[Row, bool]:
    """What decoding says of a source, and whether it stands; what it wrote is in the folder ``scratch``.

    No name is in it, as the same bytes may lie under another.
    """
    arguments = {"path": source.path, "folder": scratch, "samples_per_s": config.samples_per_s}
    try:
        found: Row = call(decode, arguments, config.limits(os.path.getsize(source.path)))
    except Exception as problem:
        words = in_words(problem).replace(source.path, "the file").replace(scratch, "a temporary folder")
        # Under the name of its content is kept only what that content does, not what this machine could not do.
        return _error(words), not (passing(problem) or isinstance(problem, OSError))
    return (_error(found["error"]) if found.get("error") else found), True


def _error(words: str) -> Row:
    return {"error": words, "rejected_by": ["error"]}


def _named(row: Row) -> Row:
    """The row with the name of its file in its error, if it has one."""
    return row | {"error": f"scan: {file_name(row)}: {row['error']}"} if row.get("error") else row


def _put(path: str, uri: str) -> None:
    """Copy a local file to OUT, whole or not at all."""
    with open(path, "rb") as file, storage.writing(uri) as out:
        while block := file.read(COPY_BYTES):
            out.write(block)


def scan_all(sources: list[Row], root: str, config: ScanConfig) -> Made:
    """The rows of all sources of a shard; finished where all of them stand."""
    # The largest first, so that no thread is left alone with one at the end.
    uris = [source["source_uri"] for source in sorted(sources, key=lambda source: -source["bytes"])]
    scanned = list(side_by_side(lambda uri: scan_or_fault(uri, root, config), uris))
    rows = sorted((row for row, _ in scanned), key=lambda row: row["source_uri"])
    return Made(narrow(rows, fields_of("scan")), all(stands for _, stands in scanned))


@step_task("scan")
def scan(table: str, config: ScanConfig = ScanConfig()) -> str:
    """Decode every source of the shard ``table`` once; returns the URI of the shard's table, one row a source."""

    def make() -> Made:
        return scan_all(storage.read_table(table).to_pylist(), root_of(table), config)

    return kept([table], "scan", [VERSION, config.decisive()], make)
