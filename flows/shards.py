"""The shards of a flow run: their tasks are submitted level by level, and one that fails for good stops no other."""

from collections.abc import Callable, Sequence
from typing import Any

from prefect import Task
from prefect.futures import PrefectFuture, wait

from flows.task_runners import resources
from tasks.tables.guard import words_of
from tasks.tables.keys import shard_of
from tasks.tables.run_record import Failure
from tasks.tables.tally import ShardSize

Watch = Callable[[str, Sequence[PrefectFuture[Any]], Sequence[int]], None]


class Shards:
    """Submits tasks for every shard, and keeps account of what failed.

    ``watch`` is told of each level: the step's name, a future for every shard, and how many sources each has.
    ``sizes`` are those of the shards ``listed``: the largest is submitted first, so that no core is left alone with it
    at the end. What is returned keeps the listed order.
    """

    def __init__(self, listed: Sequence[str], sizes: Sequence[ShardSize], watch: Watch) -> None:
        self.failures: list[Failure] = []
        self._names = [shard_of(table) for table in listed]
        self._sizes = dict(zip(self._names, sizes, strict=True))
        self._futures: dict[str, list[tuple[str, PrefectFuture[Any]]]] = {name: [] for name in self._names}
        self._watch = watch

    def run(
        self, step: Task[..., Any], *columns: Sequence[Any], accelerator: bool = False, **settings: Any
    ) -> list[PrefectFuture[Any]]:
        """Submit ``step`` once for every shard, with its values of the ``columns`` (futures, too) and the same
        ``settings``; returns the futures. Nothing is waited for. ``accelerator``: the task wants one."""
        rows = dict(zip(self._names, zip(*columns, strict=True), strict=True))
        submitted: dict[str, PrefectFuture[Any]] = {}
        with resources(accelerator):
            for name in sorted(self._names, key=lambda name: -self._sizes[name].bytes):
                submitted[name] = step.submit(*rows[name], **settings)
                self._futures[name].append((step.name, submitted[name]))
        futures = [submitted[name] for name in self._names]
        self._watch(step.name, futures, [self._sizes[name].sources for name in self._names])
        return futures

    def run_whole(self, step: Task[..., Any], *values: Any) -> PrefectFuture[Any]:
        """Submit ``step`` once, for all shards together; returns its future."""
        with resources():
            future = step.submit(*values)
        self._watch(step.name, [future], [sum(self._sizes[name].sources for name in self._names)])
        return future

    def ended(self, *columns: Sequence[Any]) -> list[list[Any]]:
        """Wait for columns of futures; returns their results, for the shards that have not failed.

        The others are in ``failures``, and are no longer among the shards. Where all have failed, the first failure is
        raised: a run without any shard has nothing to end with.
        """
        wait([value for column in columns for value in column if isinstance(value, PrefectFuture)])
        rows: list[tuple[Any, ...]] = []
        names: list[str] = []
        first: BaseException | None = None
        for name, *values in zip(self._names, *columns, strict=True):
            failure = self._failure(name)
            if failure is None:
                names.append(name)
                rows.append(tuple(v.result() if isinstance(v, PrefectFuture) else v for v in values))
            else:
                step, problem = failure
                self.failures.append(Failure(name, step, words_of(problem)))
                first = first or problem
        if first is not None and not names:
            raise first
        self._names = names
        return [list(column) for column in zip(*rows, strict=True)]

    def _failure(self, name: str) -> tuple[str, BaseException] | None:
        """The first step of a shard that failed, and why; what followed only failed because of it."""
        for step, future in self._futures[name]:
            future.wait()
            try:
                future.result()
            except Exception as problem:
                return step, problem
        return None
