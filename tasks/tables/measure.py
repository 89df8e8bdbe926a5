"""The one driver of all scores: it opens a source once, prepares its clips ahead in threads, fills the device's batches
across clips and sources, and writes what is measured as it goes.

Scores that run on the CPU are measured together, source by source, in their order: the pictures that one has decoded
serve the next. A score on an accelerator is a piece of work of its own, under a slot of its device.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from tasks.tables import storage
from tasks.tables.batches import Unit, batches, prepared, score_batch
from tasks.tables.clip import Clip, SharedFrames, by_source, is_live
from tasks.tables.device import device_slot
from tasks.tables.guard import Faults, guarded
from tasks.tables.keys import folder_of, result_uri, root_of
from tasks.tables.parts import Parts
from tasks.tables.rows import joined, narrow, values_over
from tasks.tables.score import MakeScorer, Score, Scorer
from tasks.tables.step import Made, Row, StepConfig, cores, kept
from tasks.tables.ticks import ticker

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

    def scorer(self, device: int | None = None) -> Scorer:
        """The scorer, made once in a process and kept for the shards that follow. Another declaration of the same
        name, as that of a filter whose module has changed, has its own; so has each ``device``, by its number in this
        process, as that is where its network stays."""
        key = self.name, self.config.model_dump_json(), device or 0
        with _LOADING:
            known = _LOADED.get(key)
            if known is None or known[0] is not self.score.scorers:
                _LOADED[key] = known = self.score.scorers, self.score.scorer(self.config)
        return known[1]


_LOADED: dict[tuple[str, str, int], tuple[Mapping[str, MakeScorer], Scorer]] = {}
_LOADING = threading.Lock()


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
    # What a score sees of a clip is what it needs and no more, whatever else is known: its key says so, too.
    needed = {name for each in missing for name in each.score.needs} - {each.name for each in missing}
    before = {name: _by_clip(uris[name]) for name in needed}
    work = _Work(missing, clips, before, uris)
    work.run()
    for each in missing:
        known = uris[each.name]
        needs = [*clips, *(uris[name] for name in each.score.needs)]
        uris[each.name] = kept(needs, each.name, _decides(each), lambda each=each: work.result(each))  # type: ignore[misc]
        work.end_parts(each, whole=uris[each.name] == known)
    return uris


def _by_clip(uri: str) -> dict[str, Row]:
    return {row.pop("clip_id"): row for row in storage.read_table(uri).to_pylist()}


class _Work:
    """Scores of one shard, as they are measured."""

    def __init__(
        self, chosen: Sequence[Chosen], clips: Sequence[str], before: dict[str, dict[str, Row]], uris: dict[str, str]
    ) -> None:
        self.chosen, self.root = chosen, root_of(clips[0])
        self.rows = [row for row in joined(clips) if row["clip_id"]]
        self.parts = {each.name: Parts(uris[each.name]) for each in chosen}
        self.found = before | {each.name: self.parts[each.name].read() for each in chosen}
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

    def end_parts(self, each: Chosen, whole: bool) -> None:
        """Remove the parts of a score whose table is whole. Where it is not, for a reason that may pass, all that was
        measured is written down as a part, and the next run measures the rest."""
        if whole:
            self.parts[each.name].remove()
        else:
            self.parts[each.name].write(self.found[each.name], each.score.fields, after_s=0)

    def _measure_source(self, rows: list[Row]) -> None:
        """All scores of one source, in their order, on pictures that are decoded once."""
        with SharedFrames(self.root, rows[0]) as frames:
            for each in self.chosen:
                units = self._units(each, rows)
                if len(units) > LONG:
                    with ThreadPoolExecutor(cores()) as pool:
                        list(pool.map(lambda unit, each=each: self._score(each, unit, frames), units))
                else:
                    for unit in units:
                        self._score(each, unit, frames)
        self._write_parts()
        self._tick()

    def _units(self, each: Chosen, rows: Sequence[Row]) -> list[list[Row]]:
        """What of one source's clips is still to be measured, as pieces of work: a clip, or all clips of the source.

        A row is what the score needs to see, in a dict of its own. One that lacks it has the reason why.
        """
        found = self.found[each.name]
        seen = [self._seen(each, row) for row in rows]
        for row in seen:
            if row["error"]:
                found[row["clip_id"]] = {"error": row["error"]}
        seen = [row for row in seen if not row["error"]]
        if each.score.per_source:
            return [seen] if any(row["clip_id"] not in found for row in seen) else []
        return [[row] for row in seen if row["clip_id"] not in found]

    def _seen(self, each: Chosen, row: Row) -> Row:
        """A clip with what the scores that ``each`` needs have found of it."""
        seen = dict(row)
        for name in each.score.needs:
            values_over(seen, self.found[name].get(row["clip_id"], {}))
        return seen

    def _score(self, each: Chosen, unit: list[Row], frames: SharedFrames) -> None:
        """Measure one unit on the CPU."""
        start = time.thread_time()
        with self._guarded(each, unit):
            scorer = each.scorer()
            (outcome,) = scorer.score([scorer.prepare(self._clips(each, unit, frames))])
            self._take(each, unit, outcome)
        self.seconds[each.name].append(time.thread_time() - start)

    def _clips(self, each: Chosen, unit: Sequence[Row], frames: SharedFrames) -> Clip | list[Clip]:
        clips = [Clip(row, frames.store) for row in unit]
        return clips if each.score.per_source else clips[0]

    @contextmanager
    def _guarded(self, each: Chosen, unit: Sequence[Row]) -> Iterator[None]:
        with guarded(unit, each.name, self.faults[each.name]):
            yield
        for row in unit:
            if row["error"]:
                self.found[each.name][row["clip_id"]] = {"error": row["error"]}

    def _take(self, each: Chosen, unit: Sequence[Row], outcome: Any) -> None:
        """Keep what a scorer returned for a unit. A clip whose values are not what was declared has an error."""
        for row, values in zip(unit, outcome if each.score.per_source else [outcome], strict=True):
            with self._guarded(each, [row]):
                self.found[each.name][row["clip_id"]] = each.score.checked(values)

    def _write_parts(self) -> None:
        for each in self.chosen:
            self.parts[each.name].write(self.found[each.name], each.score.fields)

    def _measure_batches(self, each: Chosen, groups: Sequence[list[Row]]) -> None:
        """A score whose samples are prepared in threads and scored in full batches, across clips and sources."""
        with device_slot(each.scorer().device) as device, ExitStack() as opened:
            start = time.perf_counter()
            scorer = each.scorer(device)
            samples = prepared(self._preparations(each, scorer, groups, opened), scorer.batch + 2 * cores())
            for batch in batches(samples, scorer.batch):
                score_batch(scorer, batch, partial(self._guarded, each), partial(self._take, each))
                self._write_parts()
            self.seconds[each.name].append(time.perf_counter() - start)

    def _preparations(
        self, each: Chosen, scorer: Scorer, groups: Sequence[list[Row]], opened: ExitStack
    ) -> Iterator[Callable[[], list[tuple[Unit, Any]]]]:
        """What prepares the units of all sources, in order; what it needs open is closed by ``opened``."""
        for rows in groups:
            units = self._units(each, rows)
            frames = opened.enter_context(SharedFrames(self.root, rows[0], users=len(units)))
            for unit in units:
                yield partial(self._prepare, each, scorer, unit, frames)

    def _prepare(self, each: Chosen, scorer: Scorer, unit: Unit, frames: SharedFrames) -> list[tuple[Unit, Any]]:
        """A unit with its sample; nothing where it has an error."""
        with frames.used(), self._guarded(each, unit):
            return [(unit, scorer.prepare(self._clips(each, unit, frames)))]
        return []
