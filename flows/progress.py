"""How far a run is: an artifact of the flow run in Prefect's UI, which moves with every task that ends."""

from collections.abc import Sequence
from threading import Lock
from typing import Any

from prefect.futures import PrefectFuture

from tasks.tables.run_record import ProgressArtifact


class Progress:
    """Counts the tasks that have ended, of those that were submitted so far."""

    def __init__(self) -> None:
        self._artifact = ProgressArtifact("curation-progress", "Steps of shards done")
        self._done = self._submitted = 0
        self._lock = Lock()

    def __call__(self, step: str, futures: Sequence[PrefectFuture[Any]]) -> None:
        """Watch the futures of one step."""
        self._submitted += len(futures)
        for future in futures:
            future.add_done_callback(self._count)

    def _count(self, _: object) -> None:
        with self._lock:
            self._done += 1
            self._artifact(self._done, self._submitted)
