"""How far a curation is: counted in sources, step by step, while it works.

A step is done for a shard when its task ends; meanwhile the task's ticks (tasks/tables/ticks.py) move its count source
by source. What is known goes to the run's artifact in Prefect's UI, and to a display where the caller has one.
"""

import os
import queue
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import httpx
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger

from tasks.tables import ticks
from tasks.tables.run_record import ProgressArtifact
from tasks.tables.tally import errors_in

# What share of a run's time each step takes, as run.json says it of short videos on a local disk. The shares weigh the
# artifact alone; where they are off, it moves unevenly.
SHARES = {
    "scan": 0.35,
    "embed": 0.05,
    "dedup sources": 0.02,
    "cut": 0.08,
    "dedup clips": 0.02,
    "measure": 0.4,
    "verdict": 0.01,
    "caption": 0.01,
    "buckets": 0.01,
    "clips": 0.01,
    "manifest": 0.01,
    "report": 0.03,
}
EVERY_S = 0.2


@dataclass
class Level:
    """One step over all shards. Counts are of sources, but ``failed``, which are shards."""

    step: str
    sources: int
    done: int = 0
    errors: int = 0
    failed: int = 0
    began_s: float | None = None  # since the run's first step began: when its first source was done
    ended_s: float | None = None  # and when the task of its last shard had ended


class Display(Protocol):
    """Shows the levels that a run has so far; is called several times a second, by one thread."""

    def show(self, levels: Sequence[Level]) -> None: ...


_DISPLAY: ContextVar[Display | None] = ContextVar("display", default=None)


@contextmanager
def shown_on(display: Display) -> Iterator[None]:
    """Show the progress of the flow that is called inside on ``display``."""
    token = _DISPLAY.set(display)
    try:
        yield
    finally:
        _DISPLAY.reset(token)


@dataclass(frozen=True)
class _Task:
    level: int
    sources: int


class Progress:
    """The account of one run. As a context it watches, in a thread of its own; give it the futures of each step."""

    def __init__(self, times_measured: int = 1) -> None:
        """``times_measured`` is how often the step measure comes, as scores on accelerators are levels of their own."""
        self.levels: list[Level] = []
        self._times = {step: times_measured if step == "measure" else 1 for step in SHARES}
        self._tasks: dict[str, _Task] = {}
        self._ticks: Counter[str] = Counter()
        self._ended: queue.SimpleQueue[tuple[str, PrefectFuture[Any]]] = queue.SimpleQueue()
        self._over: set[str] = set()
        self._tables: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._display = _DISPLAY.get()
        self._log = get_run_logger()
        self._artifact = ProgressArtifact("curation-progress", "Work done, by the share that each step takes")
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> "Progress":
        handle, self._path = tempfile.mkstemp(prefix="contentv-ticks-")
        self._read = os.fdopen(handle, "r")
        self._before = os.environ.get(ticks.FILE)
        os.environ[ticks.FILE] = self._path
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        os.environ.pop(ticks.FILE)
        if self._before is not None:
            os.environ[ticks.FILE] = self._before
        self._read.close()
        os.unlink(self._path)

    def __call__(self, step: str, futures: Sequence[PrefectFuture[Any]], sources: Sequence[int]) -> None:
        """Watch the futures of one step; ``sources`` says how many each works on."""
        with self._lock:
            self.levels.append(Level(step, sum(sources)))
            for future, count in zip(futures, sources, strict=True):
                self._tasks[str(future.task_run_id)] = _Task(len(self.levels) - 1, count)
        for future in futures:
            future.add_done_callback(lambda ended: self._ended.put((str(ended.task_run_id), ended)))

    def share(self) -> float:
        """The part of the whole run that is done, 0 to 1."""
        parts = ((level.step, level.done / level.sources if level.sources else 1.0) for level in self.levels)
        return sum(SHARES[step] / self._times[step] * part for step, part in parts) / sum(SHARES.values())

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            self._look()
        self._look()  # what came last

    def _look(self) -> None:
        try:
            self._count()
            if self._display is not None:
                self._display.show(self.levels)
            self._artifact(round(1000 * self.share()), 1000)
        except (OSError, httpx.HTTPError) as problem:  # the run is more than its progress
            self._log.warning("progress cannot be told: %s", problem)

    def _count(self) -> None:
        self._ticks.update(line.strip() for line in self._read)
        while not self._ended.empty():
            self._end(*self._ended.get())
        with self._lock:
            done: Counter[int] = Counter()
            for name, task in self._tasks.items():
                done[task.level] += task.sources if name in self._over else min(self._ticks[name], task.sources)
            running = {task.level for name, task in self._tasks.items() if name not in self._over}
            now = time.monotonic() - self._began
            for number, level in enumerate(self.levels):
                level.done = done[number]
                level.began_s = level.began_s or (now if level.done else None)
                level.ended_s = level.ended_s or (None if number in running else now)

    def _end(self, name: str, future: PrefectFuture[Any]) -> None:
        """Count a task that ended, and the errors in the tables that it is the first to name."""
        self._over.add(name)
        level = self.levels[self._tasks[name].level]
        try:
            result = future.result()
        except Exception:  # the run says which, and why, at its end
            level.failed += 1
            return
        if level.step == "clips":  # its tables repeat the errors of all steps
            return
        tables = {table for table in ([result] if isinstance(result, str) else result) if table.endswith(".parquet")}
        level.errors += sum(errors_in(table) for table in tables - self._tables)
        self._tables |= tables
