"""Parts: what is measured of a score so far, written down every PART_S, so that a killed run goes on there."""

import threading
import time
from collections.abc import Sequence

import pyarrow as pa

from tasks.tables import storage
from tasks.tables.rows import narrow
from tasks.tables.step import Row

PART_S = 60.0  # what was measured is written down this often


class Parts:
    """The parts of one result, in files beside it: ``uri`` without its ending, then .part0000.parquet and so on."""

    def __init__(self, uri: str) -> None:
        self._stem = uri.removesuffix(".parquet")
        self._written = time.monotonic()
        self._count = 0
        self._known: set[str] = set()
        self._lock = threading.Lock()

    def read(self) -> dict[str, Row]:
        """The rows of an earlier run's parts, by ``clip_id``; those with an error are measured again."""
        found: dict[str, Row] = {}
        while storage.exists(self._uri(self._count)):
            for row in storage.read_table(self._uri(self._count)).to_pylist():
                if not row["error"]:
                    found[row.pop("clip_id")] = row
            self._count += 1
        self._known = set(found)
        return found

    def write(self, found: dict[str, Row], fields: Sequence[pa.Field], after_s: float | None = None) -> None:
        """Write what is new in ``found``, if the last part is ``after_s`` ago (None: PART_S)."""
        with self._lock:
            if time.monotonic() - self._written < (PART_S if after_s is None else after_s):
                return
            new = [clip_id for clip_id in list(found) if clip_id not in self._known]
            if new:
                rows = [{"clip_id": clip_id} | found[clip_id] for clip_id in new]
                storage.write_table(narrow(rows, [pa.field("clip_id", pa.string()), *fields]), self._uri(self._count))
                self._known.update(new)
                self._count += 1
            self._written = time.monotonic()

    def remove(self) -> None:
        """Remove the parts, once the whole table stands."""
        for number in range(self._count):
            storage.remove(self._uri(number))

    def _uri(self, number: int) -> str:
        return f"{self._stem}.part{number:04d}.parquet"
