"""The shards of a run: one that fails for good is named, and the others go on."""

from collections.abc import Sequence
from typing import Any

import pytest
from prefect import flow, task

from flows.shards import Shards
from tasks.tables.run_record import failed_in_part
from tasks.tables.tally import ShardSize

LISTED = [f"/out/steps/sources/{name}-0123.parquet" for name in "abc"]


@task
def first(table: str) -> str:
    if "/b-" in table:
        raise LookupError("b cannot be had")
    return table


@task
def second(table: str, times: int = 1) -> list[str]:
    if "/c-" in table and times == 3:
        raise LookupError("c fails later")
    return [table] * times


@task
def third(tables: list[str]) -> int:
    return len(tables)


def run(work: Any) -> tuple[Any, list[tuple[str, int]]]:
    """What ``work`` makes of the shards inside a flow run, and the levels that were watched."""
    levels: list[tuple[str, int]] = []

    def watch(step: str, futures: Sequence[Any], *_: Any) -> None:
        levels.append((step, len(futures)))

    @flow
    def curation() -> Any:
        return work(Shards(LISTED, [ShardSize(1, 10)] * len(LISTED), watch=watch))

    return curation(), levels


def test_a_shard_that_fails_is_named_with_its_step_and_its_words_and_the_others_go_on(prefect_api) -> None:
    def work(shards: Shards) -> Any:
        made = shards.run(second, shards.run(first, LISTED), times=2)
        counts = shards.run(third, made)
        return *shards.ended(LISTED, counts), shards.failures

    (listed, counts, failures), levels = run(work)
    assert (listed, counts) == ([LISTED[0], LISTED[2]], [2, 2])
    assert [(failure.shard, failure.step, failure.words) for failure in failures] == [("b", "first", "b cannot be had")]
    assert levels == [("first", 3), ("second", 3), ("third", 3)]
    assert "1 shards failed" in str(failed_in_part(failures)) and "b at first: b cannot be had" in str(
        failed_in_part(failures)
    )


def test_after_a_barrier_only_the_shards_that_are_left_go_on_and_may_fail_too(prefect_api) -> None:
    def work(shards: Shards) -> Any:
        (made,) = shards.ended(shards.run(first, LISTED))
        (later,) = shards.ended(shards.run(second, made, times=3))
        return later, [failure.shard for failure in shards.failures]

    (later, failed), levels = run(work)
    assert later == [[LISTED[0]] * 3]
    assert failed == ["b", "c"]
    assert levels == [("first", 3), ("second", 2)]


def test_where_all_fail_the_first_failure_is_raised(prefect_api) -> None:
    def work(shards: Shards) -> Any:
        return shards.ended(shards.run(first, [LISTED[1]] * 3))

    with pytest.raises(LookupError, match="b cannot be had"):
        run(work)
