"""The one driver of all scores: it opens a source once, prepares its clips ahead in threads, fills the device's batches
across clips and sources, and writes what is measured as it goes.

Scores that run on the CPU are measured together, source by source, in their order: the pictures that one has decoded
serve the next. A score on an accelerator is a piece of work of its own, under a slot of its device.
"""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from math import isfinite
from typing import Any

import pyarrow as pa

from tasks.tables import storage
from tasks.tables.clip import Clip, by_source, frames_of, is_live
from tasks.tables.device import device_slot, out_of_memory
from tasks.tables.frame_store import FrameStore
from tasks.tables.guard import Faults, guarded
from tasks.tables.keys import folder_of, result_uri, root_of
from tasks.tables.rows import joined, narrow
from tasks.tables.score import Score, Scorer
from tasks.tables.step import Made, Row, StepConfig, cores, kept
from tasks.tables.ticks import ticker

PART_S = 60.0  # what was measured is written down this often
LONG = 16  # clips: those of a longer source are measured side by side


@dataclass(frozen=True)
class Chosen:
    """A score with its config: what is to be measured."""

    score: Score
    config: StepConfig

    @property
    def name(self) -> str:
        return self.score.name

    @property
    def step(self) -> str:
        """The folder of its tables."""
        return folder_of(self.name)

    def scorer(self) -> Scorer:
        """The scorer, made once in a process and kept for the shards that follow."""
        key = self.name, self.config.model_dump_json()
        if key not in _LOADED:
            _LOADED[key] = self.score.scorer(self.config)
        return _LOADED[key]


_LOADED: dict[tuple[str, str], Scorer] = {}


def in_order(chosen: Sequence[Chosen]) -> list[list[Chosen]]:
    """Pieces of work, in order: runs of scores on the CPU together, each score on an accelerator alone.

    ValueError: a score needs one that is not chosen, or two need each other.
    """
    done: set[str] = set()
    waiting, ordered = list(chosen), list[Chosen]()
    while waiting:
        ready = next((each for each in waiting if set(each.score.needs) <= done), None)
        if ready is None:
            lacks = {name: sorted(set(each.score.needs) - done) for each in waiting for name in [each.name]}
            raise ValueError(f"scores need what is not measured before them: {lacks}")
        waiting.remove(ready)
        ordered.append(ready)
        done.add(ready.name)
    pieces: list[list[Chosen]] = []
    for each in ordered:
        on_cpu = each.scorer().device == "cpu"
        if on_cpu and pieces and pieces[-1][-1].scorer().device == "cpu":
            pieces[-1].append(each)
        else:
            pieces.append([each])
    return pieces


def uris_of(chosen: Sequence[Chosen], clips: Sequence[str], measured: dict[str, str]) -> dict[str, str]:
    """Where the results of scores of one shard are: of each, the hash of what it needs. ``clips`` are the tables that
    its clips come from, ``measured`` those of scores before."""
    uris = dict(measured)
    for each in chosen:
        needs = [*clips, *(uris[name] for name in each.score.needs)]
        uris[each.name] = result_uri(needs, each.name, *_decides(each))
    return uris


def _decides(each: Chosen) -> list[Any]:
    return [each.score.version, each.config, each.score.scorer_name(each.config), each.scorer().weights]


def measure(chosen: Sequence[Chosen], clips: Sequence[str], measured: dict[str, str]) -> dict[str, str]:
    """Measure scores on the live clips of a shard; returns the URI of each score's table, those before included.

    ``clips`` are the URIs of the tables of scan, cut and dedup clips; ``measured`` those of scores measured before, by
    name. A clip that cannot be measured has the reason in ``error``, and is not measured by the scores that need this
    one; the others go on.
    """
    uris = uris_of(chosen, clips, measured)
    missing = [each for each in chosen if not storage.exists(uris[each.name])]
    if not missing:
        return uris
    # The rows as the scores left them that are here already; the others add to them as they go.
    known = [name for name in uris if name not in {each.name for each in missing}]
    rows = joined([*clips, *(uris[name] for name in known)])
    work = _Work(root_of(clips[0]), missing, [row for row in rows if row["clip_id"]], uris)
    work.run()
    for each in missing:
        needs = [*clips, *(uris[name] for name in each.score.needs)]
        uris[each.name] = kept(needs, each.name, _decides(each), lambda each=each: work.result(each))  # type: ignore[misc]
        work.parts[each.name].remove()
    return uris


class Parts:
    """What is measured of a score so far, written down every PART_S, so that a killed run goes on there."""

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

    def write(self, found: dict[str, Row], fields: Sequence[pa.Field]) -> None:
        """Write what is new in ``found``, if the last part is long enough ago."""
        with self._lock:
            if time.monotonic() - self._written < PART_S:
                return
            new = [clip_id for clip_id in list(found) if clip_id not in self._known]
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


class _Work:
    """Scores of one shard, as they are measured."""

    def __init__(self, root: str, chosen: Sequence[Chosen], rows: Sequence[Row], uris: dict[str, str]) -> None:
        self.root, self.chosen, self.rows = root, chosen, rows
        self.parts = {each.name: Parts(uris[each.name]) for each in chosen}
        self.found: dict[str, dict[str, Row]] = {each.name: self.parts[each.name].read() for each in chosen}
        self.faults: dict[str, Faults] = {each.name: Faults() for each in chosen}
        self.seconds: dict[str, list[float]] = {each.name: [] for each in chosen}
        self._tick = ticker()

    def run(self) -> None:
        groups = by_source([row for row in self.rows if is_live(row)])
        # The longest first, so that no thread is left alone with one at the end.
        groups.sort(key=lambda rows: -len(rows))
        if self.chosen[0].scorer().device == "cpu":
            with ThreadPoolExecutor(cores()) as pool:
                list(pool.map(self._measure_source, groups))
        else:
            self._measure_batches(self.chosen[0], groups)

    def result(self, each: Chosen) -> Made:
        """The table of a score: a row for every clip, null where it is not live."""
        found = self.found[each.name]
        rows = [{"clip_id": row["clip_id"]} | found.get(row["clip_id"], {}) for row in self.rows]
        table = narrow(rows, [pa.field("clip_id", pa.string()), *each.score.fields])
        table = table.replace_schema_metadata({"seconds": f"{sum(self.seconds[each.name]):.3f}"})
        return Made(table, finished=not self.faults[each.name].passed)

    def _measure_source(self, rows: list[Row]) -> None:
        """All scores of one source, in their order, on pictures that are decoded once."""
        rows = [dict(row) for row in rows]  # as earlier scores move the crop, and errors end a row
        with ExitStack() as stack:
            store = stack.enter_context(frames_of(self.root, rows[0]))
            for each in self.chosen:
                if each.score.per_source:
                    self._score(each, [row for row in rows if is_live(row)], store)
                elif len(rows) > LONG:
                    with ThreadPoolExecutor(cores()) as pool:
                        list(pool.map(lambda row, each=each: self._score(each, [row], store), rows))
                else:
                    for row in rows:
                        self._score(each, [row], store)
        self._write_parts()
        self._tick()

    def _score(self, each: Chosen, rows: list[Row], store: FrameStore) -> None:
        """One unit of work on the CPU: a clip, or all clips of a source."""
        rows = [row for row in rows if is_live(row)]
        before = self.found[each.name]
        if rows and all(row["clip_id"] in before for row in rows):
            for row in rows:
                self._take(each, row, before[row["clip_id"]])
            return
        if not rows:
            return
        start = time.thread_time()
        with guarded(rows, each.name, self.faults[each.name]):
            scorer = each.scorer()
            clips = [Clip(row, store) for row in rows]
            (outcome,) = scorer.score([scorer.prepare(clips if each.score.per_source else clips[0])])
            for row, values in zip(rows, outcome if each.score.per_source else [outcome], strict=True):
                self._take(each, row, values)
        self._end_with_errors(each, rows)
        self.seconds[each.name].append(time.thread_time() - start)

    def _take(self, each: Chosen, row: Row, values: Row) -> None:
        check_numbers(values)
        row.update({name: value for name, value in values.items() if value is not None})
        self.found[each.name][row["clip_id"]] = values

    def _end_with_errors(self, each: Chosen, rows: Sequence[Row]) -> None:
        for row in rows:
            if row["error"]:
                row["rejected_by"] = [*row["rejected_by"], "error"]
                self.found[each.name][row["clip_id"]] = {"error": row["error"]}

    def _write_parts(self) -> None:
        for each in self.chosen:
            self.parts[each.name].write(self.found[each.name], each.score.fields)

    def _measure_batches(self, each: Chosen, groups: Sequence[list[Row]]) -> None:
        """A score whose samples are prepared in threads and scored in full batches, across clips and sources."""
        scorer = each.scorer()
        waiting: list[tuple[list[Row], Any]] = []
        with device_slot(scorer.device), ThreadPoolExecutor(cores()) as pool:
            start = time.perf_counter()
            for prepared in pool.map(lambda rows: self._prepared(each, rows), groups):
                waiting += prepared
                while len(waiting) >= scorer.batch:
                    self._score_batch(each, waiting[: scorer.batch])
                    waiting = waiting[scorer.batch :]
                    self._write_parts()
            if waiting:
                self._score_batch(each, waiting)
            self.seconds[each.name].append(time.perf_counter() - start)

    def _prepared(self, each: Chosen, rows: list[Row]) -> list[tuple[list[Row], Any]]:
        rows = [dict(row) for row in rows if row["clip_id"] not in self.found[each.name]]
        if not rows:
            return []
        units = [rows] if each.score.per_source else [[row] for row in rows]
        samples = []
        with frames_of(self.root, rows[0]) as store:
            for unit in units:
                with guarded(unit, each.name, self.faults[each.name]):
                    clips = [Clip(row, store) for row in unit]
                    samples.append((unit, each.scorer().prepare(clips if each.score.per_source else clips[0])))
                self._end_with_errors(each, unit)
        return samples

    def _score_batch(self, each: Chosen, batch: Sequence[tuple[list[Row], Any]]) -> None:
        """Score a batch; halve it where the device has too little memory for it, down to one sample."""
        rows = [row for unit, _ in batch for row in unit]
        try:
            outcomes = each.scorer().score([sample for _, sample in batch])
        except Exception as problem:
            if len(batch) > 1:  # one sample may spoil a batch, or the batch be too large: the halves tell
                middle = len(batch) // 2
                self._score_batch(each, batch[:middle])
                self._score_batch(each, batch[middle:])
                return
            with guarded(rows, each.name, self.faults[each.name]):
                raise out_of_memory(problem) or problem from None
            self._end_with_errors(each, rows)
            return
        for (unit, _), outcome in zip(batch, outcomes, strict=True):
            with guarded(unit, each.name, self.faults[each.name]):
                for row, values in zip(unit, outcome if each.score.per_source else [outcome], strict=True):
                    self._take(each, row, values)
            self._end_with_errors(each, unit)


def check_numbers(values: Row) -> None:
    """Raise ValueError where a measured value is not a finite number: no limit can judge it."""
    for name, value in values.items():
        if isinstance(value, float) and not isfinite(value):
            raise ValueError(f"{name} is {value}, which is not a number that can be judged")
