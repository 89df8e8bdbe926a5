"""Batches for a device: samples that threads prepare ahead of it, and what becomes of a batch that it cannot score."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from tasks.tables.device import out_of_memory
from tasks.tables.score import Scorer
from tasks.tables.step import Row, cores
from tasks.tables.storage import OutputError

T = TypeVar("T")
Unit = list[Row]  # what is scored as one: a clip, or all clips of a source


def prepared(works: Iterable[Callable[[], list[T]]], ahead: int) -> Iterator[T]:
    """What the works return, in their order, done in threads at most ``ahead`` of them before it is taken: pictures of
    a whole shard would not fit into memory."""
    coming: deque[Future[list[T]]] = deque()
    with ThreadPoolExecutor(cores()) as pool:
        for work in works:
            if len(coming) >= ahead:
                yield from coming.popleft().result()
            coming.append(pool.submit(work))
        while coming:
            yield from coming.popleft().result()


def batches(samples: Iterable[T], size: int) -> Iterator[list[T]]:
    """The samples, ``size`` at a time; the last batch may have fewer."""
    waiting: list[T] = []
    for sample in samples:
        waiting.append(sample)
        if len(waiting) == size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def score_batch(
    scorer: Scorer,
    batch: Sequence[tuple[Unit, Any]],
    guard: Callable[[Unit], AbstractContextManager[None]],
    take: Callable[[Unit, Any], None],
) -> None:
    """Score a batch; halve it where it fails, down to one sample: it may be too large for the device's memory, or one
    sample may spoil it, and the halves tell.

    ``take`` gets each unit with its outcome. What goes wrong with one goes to ``guard``, the context that makes it an
    error of the unit; failing storage of OUT (OutputError) is raised.
    """
    try:
        outcomes = scorer.score([sample for _, sample in batch])
        if len(outcomes) != len(batch):
            raise ValueError(f"the scorer returned {len(outcomes)} results for {len(batch)} samples")
    except OutputError:
        raise
    except Exception as problem:
        if len(batch) == 1:
            with guard(batch[0][0]):
                raise out_of_memory(problem) or problem from None
            return
        outcomes = None
    if outcomes is None:  # outside of the handler, so that its exception no longer holds the batch's memory
        middle = len(batch) // 2
        score_batch(scorer, batch[:middle], guard, take)
        score_batch(scorer, batch[middle:], guard, take)
        return
    for (unit, _), outcome in zip(batch, outcomes, strict=True):
        with guard(unit):
            take(unit, outcome)
