"""What both launchers share: who hears of a run, how a run ended, and how often it is started again."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from media.lock import check_free
from media.whole_file import writing
from training.checkpoint.checkpoints import last_checkpoint
from training.launch.failures import RankFailed
from training.observe.progress import Lines, MetricsLine
from training.run import TrainingRun

POLL_S = 0.5
GRACE_S = 120  # that ranks have to save a checkpoint, unless a launcher is told otherwise


@dataclass(frozen=True)
class Outcome:
    """How a run ended that did not fail: ``stopped`` is None where it is done, else where or how it stopped.

    ``restarts`` counts all that were made, those before the last progress too.
    """

    stopped: str | None = None
    restarts: int = 0


def ignore(_: object) -> None:
    """Do nothing with what a listener is told."""


@dataclass
class Listener:
    """Who hears of a run, in the thread that launched it. After ``stop`` is set, ranks save and end.

    ``on_poll`` is called about twice a second while ranks run.
    """

    on_line: Callable[[str], object] = ignore
    on_metrics: Callable[[MetricsLine], object] = ignore
    on_poll: Callable[[], object] = lambda: None
    stop: Event = field(default_factory=Event)


class Restarts:
    """Decides after a failure whether training starts again: ``limit`` times without progress in between.

    A stage lasts for weeks, so faults of single machines add up however healthy the run is. What ends it is a fault
    that comes back before a checkpoint of a later step is whole.

    Attributes:
        made: how often it was started again, in all.
    """

    def __init__(self, run: TrainingRun, limit: int) -> None:
        self.made = 0
        self._checkpoints, self._limit = run.folder / "checkpoints", limit
        self._in_vain, self._saved = 0, self._last_saved()

    def again(self, failure: RankFailed, listener: Listener) -> None:
        """Say that training starts again. Raises the failure where that does not help, is used up or not wanted."""
        saved = self._last_saved()
        if saved > self._saved:
            self._in_vain = 0
        self._saved = saved
        if not failure.retry or self._in_vain == self._limit or listener.stop.is_set():
            raise failure
        self._in_vain, self.made = self._in_vain + 1, self.made + 1
        place = f"step {saved}" if saved else "the start"
        listener.on_line(f"{failure.headline}; starting again from {place}, {self._in_vain} of {self._limit} in a row")

    def _last_saved(self) -> int:
        """Finished steps of the newest whole checkpoint; 0: there is none."""
        newest = last_checkpoint(self._checkpoints)
        return newest[0] if newest else 0


def write_run(run: TrainingRun) -> Path:
    """Write OUTPUT/training.json, what the ranks read. InUse: another run is writing in the output."""
    check_free(str(run.folder))
    path = run.folder / "training.json"
    with writing(str(path)) as file:
        file.write(run.model_dump_json(indent=2).encode())
    return path


def clear_errors(run: TrainingRun) -> Path:
    """Remove the errors of an attempt before this one; returns the folder of the next ones."""
    errors = run.folder / "errors"
    shutil.rmtree(errors, ignore_errors=True)
    return errors


def tell(listener: Listener, metrics: Lines) -> None:
    """Tell of the metrics that are new, and that time has passed."""
    tell_metrics(listener, metrics)
    listener.on_poll()


def tell_metrics(listener: Listener, metrics: Lines) -> None:
    for line in metrics.new():
        listener.on_metrics(json.loads(line))


def calmly(on_line: Callable[[str], object]) -> Callable[[str], object]:
    """As ``on_line``, while another error is on its way already: what it raises must not cost the ranks their grace."""

    def told(line: str) -> None:
        with suppress(Exception):
            on_line(line)

    return told
