"""Wall time of shards that are submitted level by level, as a flow does it, against one shard after the other.

Steps sleep for known times on the flow's own runner and cost nothing else, so the ratio is that of the order alone:

    python -m benchmarks.levels [--shards 4] [--workers 2]

The shortest time that is possible is the work divided by the workers.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

from prefect import Task, flow, task
from prefect.task_runners import ThreadPoolTaskRunner

from flows.shards import Shards
from flows.task_runners import tasks_run_on
from tasks.tables.tally import ShardSize

STEPS = {"scan": 0.8, "embed": 0.1, "cut": 0.2, "measure": 0.6, "verdict": 0.05}  # seconds, of a shard of size 1


def sleeper(name: str, seconds: float) -> Task[..., str]:
    @task(name=name, persist_result=False)
    def step(table: str, sizes: dict[str, float]) -> str:
        time.sleep(seconds * sizes[table])
        return table

    return step


Submit = Callable[[Sequence[Task[..., str]], dict[str, float]], None]


def by_level(steps: Sequence[Task[..., str]], sizes: dict[str, float]) -> None:
    listed = list(sizes)
    shards = Shards(listed, [ShardSize(1, round(1000 * size)) for size in sizes.values()], watch=lambda *_: None)
    column: Sequence[Any] = listed
    for step in steps:
        column = shards.run(step, column, sizes=sizes)
    shards.ended(column)


def by_shard(steps: Sequence[Task[..., str]], sizes: dict[str, float]) -> None:
    """As it was: all steps of a shard, then those of the next."""
    last = []
    for table in sizes:
        value: Any = table
        for step in steps:
            value = step.submit(value, sizes=sizes)
        last.append(value)
    for future in last:
        future.result()


def seconds(submit: Submit, sizes: dict[str, float], workers: int) -> float:
    steps = [sleeper(name, cost) for name, cost in STEPS.items()]

    @flow(name=submit.__name__)
    def run() -> float:
        began = time.perf_counter()
        with tasks_run_on(ThreadPoolTaskRunner(max_workers=workers)):
            submit(steps, sizes)
        return time.perf_counter() - began

    return run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    # Shards of unequal size, the largest last: the worst that a listing by name can bring.
    sizes = {f"OUT/steps/sources/shard{n}-0.parquet": 0.5 + n / options.shards for n in range(options.shards)}
    shortest = sum(STEPS.values()) * sum(sizes.values()) / options.workers
    old, new = (seconds(submit, sizes, options.workers) for submit in (by_shard, by_level))
    print(f"shard by shard {old:6.2f} s   level by level {new:6.2f} s   ratio {old / new:.2f}")
    print(f"work divided by {options.workers} workers: {shortest:.2f} s, {new / shortest:.2f} times that is taken")


if __name__ == "__main__":
    main()
