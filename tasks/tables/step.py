"""What every step shares: where its result is kept, when it is already there, and how it becomes a Prefect task.

A step reads tables of one shard and writes a narrow one: the id of each row and the columns that are its own. The name
of the new file is a hash of all that decides its content: the tables it read, its config, its version, its weights. So
the same run started again, after a crash or with one threshold changed, finds what it has done and does the rest.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import pyarrow as pa
from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff
from pydantic import BaseModel, ConfigDict

from tasks.tables import storage
from tasks.tables.faults import passing
from tasks.tables.keys import result_uri, shard_of, unfinished
from tasks.tables.ticks import ticker

R = TypeVar("R")
Row = dict[str, Any]

RETRIES = 3  # of a task whose storage failed for a reason that may pass, after 2, 4 and 8 s

cv2.setNumThreads(1)  # steps run clips side by side: threads inside a filter would only contend


class StepConfig(BaseModel):
    """Base of all step configs: immutable; a misspelt option is an error, and so is a number that is none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Made:
    """What a step made of a shard. ``finished`` is False where a row has an error that may pass: then the table serves
    this run, and the next makes it again."""

    table: pa.Table
    finished: bool = True


def kept(
    needs: Sequence[str],
    step: str,
    decides: Sequence[Any],
    make: Callable[[], Made],
    rows_per_group: int | None = None,
) -> str:
    """The URI of what ``step`` makes of the tables ``needs`` of one shard; ``make`` is called only where it is missing.

    ``decides`` is what the content depends on besides: config, version, weights. ``rows_per_group`` is that of the
    Parquet file, small where single rows are read.
    """
    uri = result_uri(needs, step, *decides)
    if storage.exists(uri):
        return uri
    made = make()
    uri = uri if made.finished else unfinished(uri)
    storage.write_table(made.table, uri, rows_per_group)
    return uri


def cores() -> int:
    """Cores that this process may use: those it is bound to, and no more than OMP_NUM_THREADS, which Ray sets."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(bound, max(1, int(asked))) if asked.isdecimal() else bound


def side_by_side(work: Callable[[Any], R], items: Sequence[Any]) -> Iterator[R]:
    """``map`` over threads, one a core that this process may use; results in order. Each item done is a tick."""
    tick = ticker()

    def work_and_tick(item: Any) -> R:
        result = work(item)
        tick()
        return result

    with ThreadPoolExecutor(cores()) as pool:
        yield from pool.map(work_and_tick, items)


def step_task(name: str) -> Callable[[Callable[..., R]], Task[..., R]]:
    """Turn a step's function into a Prefect task whose runs are called after the step and the shard.

    Prefect's own cache is off: a result is known by its file (see above), also to another server or none. A task is
    tried again where storage failed for a reason that may pass; any other failure would only repeat itself.
    """

    def run_name(parameters: dict[str, Any]) -> str:
        tables = parameters.get("tables", parameters.get("table"))
        first = tables[0] if isinstance(tables, list) and name not in BARRIERS and tables else tables
        return f"{name} · {shard_of(first)}" if isinstance(first, str) else name

    return task(
        name=name,
        task_run_name=run_name,  # type: ignore[arg-type]  # Prefect's protocol for it asks for more than Prefect uses
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=RETRIES,
        retry_delay_seconds=exponential_backoff(2),
        retry_condition_fn=_may_pass,
    )


BARRIERS = ("dedup sources", "manifest", "report", "gallery")  # steps that see the tables of all shards


def _may_pass(_task: Any, _run: Any, state: Any) -> bool:
    try:
        state.result(raise_on_failure=True)
    except Exception as problem:
        return passing(problem)
    return False
