"""The same clip more than once: in two manifests, or in one that was given twice, it is counted once.

``clip_id`` says which seconds of which content a clip is. Rows that agree in all else but the source's address are one
clip, as a source may lie in two places; rows that do not would train on other pixels or words under one name, and are
refused.
"""

from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from training.data.columns import Hashes, row_hashes
from training.data.schema import SCHEMA, UNSAID, ManifestError

COMPARED = [name for name in SCHEMA.names if name != "source_uri" and name not in UNSAID]  # clip_id says what these say


@dataclass
class RowFiles:
    """Where rows are: all in the file ``rows``; before, in the file ``uris[i]`` from number ``firsts[i]`` on."""

    rows: Path
    uris: list[str] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)

    def named(self, row: int) -> str:
        number = bisect_right(self.firsts, row) - 1
        return f"{self.uris[number]} (row {row - self.firsts[number]})"


def repeated_rows(ids: Hashes, files: RowFiles) -> NDArray[np.int64]:
    """Numbers of the rows whose clip is in an earlier row too, ascending.

    Args:
        ids: ``row_hashes`` of each row's ``clip_id``. Rows are looked at only where hashes meet.

    ManifestError: two rows disagree about a clip; names both, and in what.
    """
    ordered = np.sort(ids)
    again = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(again):
        return np.zeros(0, np.int64)
    rows = np.flatnonzero(np.isin(ids, again))
    rows = rows[np.argsort(ids[rows], kind="stable")]  # those of one clip beside each other, the first first
    with pa.memory_map(str(files.rows)) as mapped:
        file = pa.ipc.open_file(mapped)
        contents = _contents(file, rows)
        repeats = np.zeros(len(rows), bool)
        same_id = ids[rows[1:]] == ids[rows[:-1]]
        repeats[1:] = same_id & (contents[1:] == contents[:-1])
        for place in np.flatnonzero(same_id & ~repeats[1:]).tolist():
            _refuse_unless_strangers(file, int(rows[place]), int(rows[place + 1]), files)
    return np.sort(rows[repeats])


def _contents(file: pa.RecordBatchFileReader, rows: NDArray[np.int64]) -> Hashes:
    """Hashes of all that is compared of the rows, in their order."""
    found = np.zeros(len(rows), np.uint64)
    order = np.argsort(rows)
    ascending, first, done = rows[order], 0, 0
    for number in range(file.num_record_batches):
        batch = file.get_batch(number)
        upto = int(np.searchsorted(ascending, first + batch.num_rows))
        if upto > done:
            own = batch.take(pa.array(ascending[done:upto] - first))
            found[order[done:upto]] = row_hashes(own, COMPARED, seed=1)
        first, done = first + batch.num_rows, upto
    return found


def _refuse_unless_strangers(file: pa.RecordBatchFileReader, one: int, other: int, files: RowFiles) -> None:
    """ManifestError where two rows are of one clip and disagree; not where their hashes met by chance."""
    first, second = (_row(file, row) for row in (one, other))
    if first["clip_id"] != second["clip_id"]:
        return
    name = next(name for name in COMPARED if first[name] != second[name])
    raise ManifestError(
        f"clip {first['clip_id']} is twice in the manifests, and {name} is {first[name]!r} in {files.named(one)} and "
        f"{second[name]!r} in {files.named(other)}; give one of the two manifests, or curate their sources in one run"
    )


def _row(file: pa.RecordBatchFileReader, row: int) -> dict[str, object]:
    for number in range(file.num_record_batches):
        batch = file.get_batch(number)
        if row < batch.num_rows:
            return batch.slice(row, 1).to_pylist()[0]
        row -= batch.num_rows
    raise IndexError("the file has no such row")
