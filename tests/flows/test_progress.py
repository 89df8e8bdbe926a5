"""A run's progress moves with every source, wherever the tasks run, and tells errors when a shard's task ends."""

import time
from pathlib import Path

import pyarrow as pa
import pytest
from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner

from flows.progress import SHARES, Level, Progress, shown_on
from flows.shards import Shards
from flows.task_runners import task_runner, tasks_run_on
from tasks.tables import storage
from tasks.tables.run_record import FailedInPart, Failure, failed_in_part
from tasks.tables.step import side_by_side
from tasks.tables.tally import ShardSize

SOURCES = 6


def work(_: int) -> None:
    time.sleep(0.4)


@task(name="scan")
def slow(listed: str, output: str) -> str:
    list(side_by_side(work, range(SOURCES)))
    uri = storage.join(output, "steps", "scan", listed.rsplit("/", 1)[1])
    storage.write_table(pa.table({"error": [None, "cannot be decoded", None]}), uri)
    return uri


@task(name="embed")
def breaks(table: str) -> str:
    raise ValueError("broken")


class Seen:
    """A display that remembers the counts of every level that it was shown."""

    def __init__(self) -> None:
        self.done: dict[str, list[int]] = {}
        self.last: list[Level] = []

    def show(self, levels: list[Level]) -> None:
        for level in levels:
            self.done.setdefault(level.step, []).append(level.done)
        self.last = levels


@flow
def small_run(output: str, runner: str) -> float:
    listed = [f"{output}/steps/sources/{name}-{'0' * 16}.parquet" for name in ("one", "two")]
    with Progress() as progress, tasks_run_on(task_runner(runner)):  # type: ignore[arg-type]
        shards = Shards(listed, [ShardSize(SOURCES, 100)] * 2, watch=progress)
        scanned = shards.run(slow, listed, output=output)
        shards.ended(scanned)
    return progress.share()


@pytest.mark.parametrize("runner", ["threads", "processes"])
def test_the_count_moves_with_every_source_and_ends_whole(runner, tmp_path: Path, prefect_api, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    seen = Seen()
    with shown_on(seen):
        share = small_run(str(tmp_path), runner)
    counts = seen.done["scan"]
    assert counts == sorted(counts)
    assert counts[-1] == 2 * SOURCES
    assert set(counts) - {0, SOURCES, 2 * SOURCES}, "it moved only when a shard ended"
    assert seen.last[0].errors == 2
    assert share == pytest.approx(SHARES["scan"] / sum(SHARES.values()))


def test_a_shard_that_failed_is_counted_in_its_step(tmp_path: Path, prefect_api):
    @flow
    def half() -> None:
        listed = [f"{tmp_path}/steps/sources/{name}-{'0' * 16}.parquet" for name in ("one", "two")]
        with Progress() as progress, tasks_run_on(task_runner("threads")):
            shards = Shards(listed, [ShardSize(1, 1)] * 2, watch=progress)
            shards.ended(shards.run(breaks, listed))

    seen = Seen()
    with shown_on(seen), pytest.raises(ValueError, match="broken"):
        half()
    assert [(level.step, level.done, level.failed) for level in seen.last] == [("embed", 2, 2)]


def test_the_share_counts_each_step_by_what_it_costs(prefect_api):
    @flow
    def measured_twice() -> list[float]:
        progress = Progress(times_measured=2)
        shares = [progress.share()]
        progress.levels = [Level(step, 4, done=4) for step in ("scan", "measure")]
        shares.append(progress.share())
        progress.levels = [Level(step, 4, done=4) for step in [*SHARES, "measure"]]
        return [*shares, progress.share()]

    nothing, part, whole = measured_twice()
    assert nothing == 0
    assert part == pytest.approx((SHARES["scan"] + SHARES["measure"] / 2) / sum(SHARES.values()))
    assert whole == pytest.approx(1)


@task(name="cut")
def note(listed: str, file: str) -> str:
    with open(file, "a") as out:
        out.write(listed.rsplit("/", 1)[1] + "\n")
    return listed


def test_the_largest_shard_is_worked_on_first_and_results_keep_the_listed_order(tmp_path: Path, prefect_api):
    listed = [f"OUT/steps/sources/{name}-0.parquet" for name in ("small", "large", "middle")]

    @flow
    def run() -> list[str]:
        with tasks_run_on(ThreadPoolTaskRunner(max_workers=1)):
            shards = Shards(listed, [ShardSize(9, 1), ShardSize(1, 900), ShardSize(5, 30)], watch=lambda *_: None)
            futures = shards.run(note, listed, file=str(tmp_path / "order"))
            return shards.ended(futures)[0]

    assert run() == listed
    assert (tmp_path / "order").read_text().split() == [f"{name}-0.parquet" for name in ("large", "middle", "small")]


def test_a_failure_in_part_names_its_shards():
    problem = failed_in_part([Failure("films_and_3", "scan", "no space left")])
    assert isinstance(problem, FailedInPart)
    assert "films_and_3 at scan: no space left" in str(problem)
